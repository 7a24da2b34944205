"""How badly each episode is predicted by a small policy that learned from the other ones."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from demos import Dataset
    from policies import PolicyModule

HORIZON = 8
LOOK_AT = 256
"""Windows whose loss is computed at once."""
LARGEST_PICTURE_PX = 48


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long each fold learns."""

    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 2e-3
    hidden: tuple[int, ...] = (128, 128)


def losses(dataset: Dataset, folds: int, seed: int = 0, effort: Effort | None = None, progress: Progress = SILENT) -> np.ndarray:
    """Loss of every frame's chunk under a policy that was trained without its episode, (frames,) float64.

    The policy is a plain regression to the chunk: it learns in seconds and, as it gives one answer for each observation, its loss is
    how far an episode is from what the others do there.

    Args:
        dataset: demonstrations.
        folds: parts into which the episodes are dealt; each is judged by the policy of the others.
        seed: of dealing and training.
        effort: how long each fold learns.
        progress: told every fold.

    Raises:
        InputError: fewer than two folds, or more than there are episodes.
    """
    if not 2 <= folds <= dataset.num_episodes:
        raise InputError(f"--policy-folds {folds}: at least 2, and at most the {dataset.num_episodes} episodes; 0 leaves the policy out")
    shapes = [dataset.observation_spec[key].shape for key in dataset.cameras]
    large = any(max(shape[:2]) > LARGEST_PICTURE_PX for shape in shapes)
    data = dataset.resized(LARGEST_PICTURE_PX) if large else dataset
    fold = np.random.default_rng([seed, 3]).permutation(np.arange(dataset.num_episodes) % folds)
    of_frame = fold[dataset.column("episode_index")[:, 0]]
    found = np.zeros(len(dataset))
    progress.start("policy folds", folds)
    for number in range(folds):
        policy = _trained(data, of_frame != number, seed, effort or Effort())
        rows = np.flatnonzero(of_frame == number)
        found[rows] = _losses(policy, data, rows)
        progress.advance()
    return found


def _trained(data: Dataset, chosen: np.ndarray, seed: int, effort: Effort) -> PolicyModule:
    import policies
    from policies.train import train
    from sinew.rundir import RunDir
    from sinew.specs import PolicySpec

    spec = PolicySpec(observation=data.observation_spec, action=data.action_spec, horizon=min(HORIZON, _longest(data)))
    policy = policies.make("direct", spec, data.stats(), {"hidden": list(effort.hidden)}, seed=seed)
    steps = effort.steps
    budget = policies.TrainConfig(
        steps=steps, batch_size=effort.batch_size, learning_rate=effort.learning_rate, warmup_steps=min(50, steps), ema_decay=0.98,
        seed=seed, checkpoint_every=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sinew-quality-") as folder:
        run = RunDir.create(Path(folder) / "run", {"verb": "quality"}, seeds={"train": seed}, inputs={})
        return train(policy, data, run, budget, draw=chosen.astype(np.float64))


def _longest(data: Dataset) -> int:
    return int(data.column("frame_index").max()) + 1


def _losses(policy: PolicyModule, data: Dataset, rows: np.ndarray) -> np.ndarray:
    import torch

    spec, found = policy.spec, []
    with torch.no_grad():
        for first in range(0, len(rows), LOOK_AT):
            window = data.window(rows[first : first + LOOK_AT], 1, spec.horizon, list(spec.observation))
            batch = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in window.items()}
            batch["action"] = spec.action.normalize(batch["action"].float())
            found.append(policy.loss(batch).per_sample.double().numpy())
    return np.concatenate(found)
