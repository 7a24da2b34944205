"""What a bad network does to packets, apart from sockets: when each leaves, once, twice, late or never."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LinkFaults:
    """How badly one direction of a link does."""

    loss: float = 0.0
    """Part of the packets that never arrive, 0 to 1."""
    delay_s: float = 0.0
    """Mean time on the way."""
    jitter_s: float = 0.0
    """The time on the way is uniform within this much of the mean; packets keep their order unless `reorder`."""
    duplicate: float = 0.0
    """Part of the packets that arrive twice."""
    reorder: float = 0.0
    """Part of the packets that overtake or are overtaken: they are held back by another `delay_s` and 5 ms."""
    partition: bool = False
    """Nothing arrives at all."""

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"link faults: {name} {getattr(self, name)} must be a part from 0 to 1")
        if not 0.0 <= self.jitter_s <= self.delay_s < 60.0:
            raise InputError(f"link faults: delay_s {self.delay_s} +- jitter_s {self.jitter_s} must be 0 or more and below 60 s")


Packet = TypeVar("Packet")
CLEAR = LinkFaults()
"""A link that only passes on."""
HELD_BACK_S = 0.005


class Link(Generic[Packet]):
    """One direction of a link; the same seed and packets at the same times give the same fate. Used by one thread.

    Args:
        faults: may be replaced at any time.
        seed: of every chance.
    """

    def __init__(self, faults: LinkFaults = CLEAR, seed: int = 0) -> None:
        self.faults = faults
        self.taken = self.lost = self.doubled = self.given = 0
        """Packets that came, that were dropped, that were sent twice, and that left."""
        self._random = np.random.default_rng(seed)
        self._waiting: list[tuple[int, int, Packet]] = []
        self._order = itertools.count()
        self._last_ns = 0

    def put(self, packet: Packet, now_ns: int) -> None:
        """A packet enters the link."""
        faults, chance = self.faults, self._random.random(4)
        self.taken += 1
        if faults.partition or chance[0] < faults.loss:
            self.lost += 1
            return
        due_ns = now_ns + int(1e9 * (faults.delay_s + faults.jitter_s * (2.0 * chance[1] - 1.0)))
        if chance[2] < faults.reorder:
            due_ns += int(1e9 * (faults.delay_s + HELD_BACK_S))
        else:
            due_ns = self._last_ns = max(due_ns, self._last_ns)
        copies = 2 if chance[3] < faults.duplicate else 1
        self.doubled += copies - 1
        for _ in range(copies):
            heapq.heappush(self._waiting, (due_ns, next(self._order), packet))

    def due(self, now_ns: int) -> list[Packet]:
        """What leaves the link by now, in order; a partition also drops what was on the way."""
        if self.faults.partition:
            self.lost += len(self._waiting)
            self._waiting.clear()
        packets = []
        while self._waiting and self._waiting[0][0] <= now_ns:
            packets.append(heapq.heappop(self._waiting)[2])
        self.given += len(packets)
        return packets

    def chance(self) -> float:
        """A number from 0 to 1 from the link's own generator."""
        return float(self._random.random())

    @property
    def next_ns(self) -> int | None:
        """When the next packet leaves; None when the link is empty."""
        return self._waiting[0][0] if self._waiting else None
