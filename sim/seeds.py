"""Seeds of the episodes that follow each other in one world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sinew.errors import SpecError


def next_seed(seed: int) -> int:
    """The seed of the episode that follows the episode of `seed` in the same world, whichever world that is."""
    return (seed * 6364136223846793005 + 1442695040888963407) % 2**63


def seeds_of_reset(
    seed: int | Sequence[int] | None, ids: Sequence[int] | None, present: np.ndarray, started: bool
) -> tuple[np.ndarray, list[int]]:
    """What `VecEnv.reset(seed, ids)` asks for.

    Args:
        seed: as `sinew.protocols.VecEnv.reset` takes it.
        ids: the same.
        present: (N,) seeds of the present episodes.
        started: whether those have begun; where they have, None for `seed` means the ones that follow them.

    Returns:
        (n,) int64 worlds to start anew, and the seed of each.

    Raises:
        SpecError: not as many seeds as worlds, a world named twice, or one that is not there.
    """
    rows = np.arange(len(present)) if ids is None else np.asarray(ids, dtype=np.int64).reshape(-1)
    if len(set(rows.tolist())) != len(rows) or not ((rows >= 0) & (rows < len(present))).all():
        raise SpecError(f"worlds {rows.tolist()} cannot be reset: each once, from 0 to {len(present) - 1}")
    if seed is None:
        seeds = [next_seed(int(s)) if started else int(s) for s in present[rows]]
    else:
        seeds = [int(seed) + i for i in range(len(rows))] if isinstance(seed, (int, np.integer)) else [int(s) for s in seed]
    if len(seeds) != len(rows):
        raise SpecError(f"{len(seeds)} seeds given for {len(rows)} worlds")
    return rows, seeds
