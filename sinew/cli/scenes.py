"""Which scenes serve which purpose. Their seeds never meet, so nothing is measured on scenes that it was taught on."""

from __future__ import annotations

from typing import Literal

from sinew.errors import InputError

BLOCK = 1_000_000
"""Scenes that one purpose has for one --seed."""
PURPOSES = {"demonstrations": 0, "test": 20, "gate": 30, "practice": 40}
"""Purpose → number of its first block. Ten values of --seed share a range of a hundred blocks."""
LARGEST_SEED = 2**31 - 1
"""Of --seed; every random generator that it reaches takes as much."""


def first_scene(purpose: Literal["demonstrations", "test", "gate", "practice"], seed: int = 0) -> int:
    """Seed of the first scene that `purpose` has for one value of --seed; the next ones follow.

    Raises:
        InputError: the seed is negative or too large.
    """
    check_seed(seed)
    return (seed // 10 * 100 + PURPOSES[purpose] + seed % 10) * BLOCK


def check_seed(seed: int) -> None:
    """Refuse a seed that some random generator would refuse.

    Raises:
        InputError: it is negative or too large.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed {seed}: give a whole number from 0 to {LARGEST_SEED}")
