"""Bringing a scene back to where episodes begin, without a person as far as it goes.

A reset is a list of ways that are tried in turn: a policy that plays the task backward, a fixed motion, whatever there is. After
each round a predicate says whether the scene is back; after a bounded number of rounds a person is asked. (A reset policy beside
the forward one: Eysenbach et al. 2017, arXiv:1711.06782.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sinew.errors import InputError

Way = Callable[[int], None]
"""(seed of the next episode): tries to bring the scene back."""


@dataclass
class ResetCounts:
    """What resets came to."""

    alone: int = 0
    """Scenes that came back without a person …"""
    rounds: int = 0
    """… and the rounds that all resets took."""
    asked: int = 0
    """Scenes that a person had to set up."""


@dataclass
class Reset:
    """The reset procedure of a scene."""

    ways: Sequence[Way]
    """Tried one after the other in every round."""
    back: Callable[[], bool]
    """Whether the scene is as it is where episodes begin."""
    ask: Callable[[int, str], None]
    """(seed, what is wrong): has a person set the scene up, who is believed."""
    rounds: int = 3
    """Rounds before the person is asked."""
    counts: ResetCounts = field(default_factory=ResetCounts)

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.ways:
            raise InputError(f"a reset of {len(self.ways)} ways in {self.rounds} rounds does nothing; give at least one of each")

    def __call__(self, seed: int) -> bool:
        """Bring the scene back for the episode of `seed`; whether it came back without a person."""
        for round_ in range(self.rounds):
            for way in self.ways:
                way(seed + round_)
            self.counts.rounds += 1
            if self.back():
                self.counts.alone += 1
                return True
        self.counts.asked += 1
        self.ask(seed, f"the scene is not back after {self.rounds} tries")
        return False
