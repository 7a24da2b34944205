"""`sinew improve --robot … --success FILE`: a classifier that says when the task is done, where no scene and nobody else does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError
from sinew.specs import ObservationSpec

if TYPE_CHECKING:
    from torch import Tensor

SURE, STEPS = 0.9, 2
"""The task is done where the classifier says so with this chance, in so many steps running."""


class Detector:
    """Says whether the task is done.

    Args:
        path: reward file of `sinew reward classifier`.
        seen: observations that there are.

    Raises:
        InputError: it is another file, or looks at something that is not observed.
    """

    def __init__(self, path: Path, seen: ObservationSpec) -> None:
        from rewards import files
        from rewards.latent import Sight
        from rewards.preference.classifier import KIND, ClassifierSettings
        from rewards.preference.scored import load_scored

        kind, loaded = files.load(path)
        settings: Any = loaded
        if not isinstance(settings, ClassifierSettings):
            raise InputError(f"--success {path} is a reward of kind {kind}: give one of sinew reward classifier, which learns what is done")
        self._scored = load_scored(path.parent / settings.weights, KIND)
        config = self._scored.encoder.config
        for key in config.keys:
            if key not in seen:
                raise InputError(f"--success {path} looks at {key}, and the policy only at {', '.join(seen)}: train one with --keys")
            if key in config.vectors and seen[key].shape != (config.vectors[key],):
                raise InputError(f"--success {path} was trained on {key} of length {config.vectors[key]}, here it is {seen[key].shape}")
        self.keys, self._see = config.keys, Sight(self._scored.encoder)
        self._running = 0

    def __call__(self, obs: Mapping[str, Tensor], step: int) -> bool:
        """Whether the task is done after a step of an episode, from 1 on; obs {key: (1, ...)}."""
        import torch

        with torch.no_grad():
            chance = float(self._scored.chance(self._see(obs))[0])
        self._running = (0 if step <= 1 else self._running) + 1 if chance >= SURE else 0
        return self._running >= STEPS
