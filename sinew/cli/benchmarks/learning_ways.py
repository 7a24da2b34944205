"""Whether a policy keeps several ways to act: the demonstrator comes to the block from its left or its right, by the toss of a coin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TASK = "push"
SCENES, SAMPLES = 40, 64


def shares(runs: Mapping[str, Path], scenes: int = SCENES, samples: int = SAMPLES) -> dict[str, dict[str, float]]:
    """Shares of first chunks that go left, right and between, for the demonstrator and each run.

    A chunk is told by its sideways share: the sum of its motions in y over the path length. In each scene the demonstrator's own
    chunks give the two ways, as the means of their two clusters; "between" is the middle half of the span from one to the other,
    where a policy lands that averages over ways.

    Args:
        runs: {name: folder of a run on `TASK`}.
        scenes: test scenes; none of them is used to judge success.
        samples: chunks in each.

    Returns:
        {name: {"left", "between", "right", "rarer"}}; "rarer" is the share, within a scene, of the side that is taken less often,
        averaged over scenes: 0.5 where both ways are kept.
    """
    import torch

    import policies
    from sinew.cli.scenes import first_scene
    from sinew.rundir import RunDir

    loaded = {name: policies.load(RunDir.open(path)) for name, path in runs.items()}
    places: dict[str, list[np.ndarray]] = {name: [] for name in ("demonstrator", *loaded)}
    first = first_scene("test", 9)
    for scene in range(first, first + scenes):
        seen, chunks = _demonstrations(scene, samples, max([p.spec.horizon for p in loaded.values()], default=8))
        mine = sideways(chunks)
        ways = clusters(mine)
        places["demonstrator"].append(position(mine, ways))
        for name, policy in loaded.items():
            noise = torch.randn(1, samples, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(scene))
            with torch.no_grad():
                context = policy.encode({key: seen[key][:1].unsqueeze(1) for key in policy.spec.observation})
                actions = policy.spec.action.denormalize(policy.sample(context, n=samples, noise=noise).actions[0])
            places[name].append(position(sideways(actions.numpy()), ways))
    return {name: summary(np.stack(found)) for name, found in places.items()}


def _demonstrations(scene: int, samples: int, horizon: int) -> tuple[dict[str, Any], np.ndarray]:
    """The observation that begins a scene, and the first chunks (samples, horizon, A) of as many demonstrations in it."""
    import sim

    env, expert = sim.make_vec(TASK, samples), sim.make_expert(TASK, "human", samples)
    try:
        seen = obs = env.reset([scene] * samples)
        expert.reset(list(range(samples)), [scene * samples + i for i in range(samples)])
        chunk = []
        for _ in range(horizon):
            chunk.append(expert.act(obs))
            obs, *_ = env.step(chunk[-1])
        return seen, np.stack([action.numpy() for action in chunk], axis=1)
    finally:
        env.close()


def sideways(chunks: np.ndarray) -> np.ndarray:
    """Motion in y over the path length, (n,), of chunks (n, H, A) of dx, dy, dz, ...."""
    path = np.abs(chunks[:, :, :3]).sum((1, 2))
    return chunks[:, :, 1].sum(1) / np.maximum(path, 1e-9)


def clusters(values: np.ndarray) -> tuple[float, float]:
    """Means of the two clusters (k-means on a line) of values (n,), the smaller first."""
    low, high = np.quantile(values, (0.25, 0.75))
    for _ in range(20):
        upper = values > (low + high) / 2
        if upper.all() or not upper.any():
            break
        low, high = values[~upper].mean(), values[upper].mean()
    return float(low), float(high)


def position(values: np.ndarray, ways: tuple[float, float]) -> np.ndarray:
    """Where values lie between the two ways: -1 at the first, 1 at the second."""
    middle, half = (ways[1] + ways[0]) / 2, (ways[1] - ways[0]) / 2
    return (values - middle) / max(half, 1e-9)


def summary(places: np.ndarray) -> dict[str, float]:
    """Shares over scenes and samples of positions (scenes, samples)."""
    upper = (places > 0).mean(1)
    return {
        "left": float((places > 0.5).mean()),
        "between": float((np.abs(places) <= 0.5).mean()),
        "right": float((places < -0.5).mean()),
        "rarer": float(np.minimum(upper, 1 - upper).mean()),
    }
