"""What the verbs that write reward files share, above all those that learn them from recorded episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from demos import Dataset
    from rewards.latent import EncoderConfig
    from rewards.preference.episodes import Episodes


@dataclass(frozen=True, kw_only=True)
class RewardArgs:
    """Arguments of a verb that writes a reward file."""

    out: Path
    """Reward file to write, for example reward.json, for sinew improve --reward; what belongs to it goes beside it."""
    weight: float = 1.0
    """Factor on what is added to success; success is worth 1."""
    seed: int = 0
    """Of weights and batches, of which episodes are held out, and of what a model that is asked samples."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class LearnedArgs(RewardArgs):
    """Arguments of a verb that learns a reward from outcomes."""

    data: Path
    """Dataset with successes and failures, at least 5 of each."""
    labels: Path | None = None
    """What was said of the episodes later, one JSON object a line; it holds over what the recorder was told."""
    keys: tuple[str, ...] = ()
    """Observations that are seen; all vectors if left out, with pictures where nothing tells where objects are."""


def check_out(out: Path) -> Path:
    """Where the weights of a reward file go.

    Raises:
        InputError: the name of the reward file does not end in .json.
    """
    if out.suffix != ".json":
        raise InputError(f"--out {out}: a reward file ends in .json")
    return out.with_suffix(".safetensors")


def seen_by(data: Dataset, keys: Sequence[str], dim: int) -> tuple[tuple[str, ...], EncoderConfig, tuple[Any, Any]]:
    """What a reward looks at, its encoder, and the scale of its vectors.

    Without `keys` all vectors, and pictures too where nothing tells where objects are.
    """
    from rewards.latent import EncoderConfig, statistics
    from sinew.cli.reward_progress import default_keys

    found = tuple(keys) or default_keys(data)
    config = EncoderConfig.of(data.observation_spec, found, dim=dim)
    return found, config, statistics(data.stats(), config)


def parts(
    data: Dataset, keys: Sequence[str], labels: Path | None, seed: int
) -> tuple[tuple[Episodes, Episodes, Episodes], tuple[list[int], list[int], list[int]], dict[int, tuple[bool, int]]]:
    """Episodes to learn from, to calibrate on and to measure on; their numbers; and what was said of all."""
    from rewards.preference.episodes import gather, outcomes, split

    said = outcomes(data, labels)
    numbers = split(said, seed)
    learn, tune, test = (gather(data, keys, said, which) for which in numbers)
    return (learn, tune, test), numbers, said


def actions_of(data: Dataset, said: dict[int, tuple[bool, int]], which: Sequence[int]) -> np.ndarray:
    """Actions (F, A) in [-1, 1] of the frames that `rewards.preference.episodes.gather` takes."""
    import numpy as np

    actions = data.action_spec.normalize(np.array(data.column("action"), np.float32))
    cut = []
    for number in which:
        info, (success, step) = data.episode(number), said[number]
        cut.append(actions[info.start : info.start + (step + 1 if success else info.length)])
    return np.concatenate(cut)


def made_of(data: Dataset, root: Path, seed: int, **others: Any) -> dict[str, Any]:
    """What a reward file says of how it came about."""
    return {"data": str(root), "hash": data.content_hash(), "seed": seed, **others}
