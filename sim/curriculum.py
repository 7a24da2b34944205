"""Ranges that grow while success holds: automatic domain randomisation, decided at one boundary at a time.

Source: Akkaya et al. 2019, Solving Rubik's Cube with a Robot Hand (arXiv 1910.07113), section 5: some episodes are played with one
parameter at the end of its range, and the success of the last ones there decides whether that end moves. What differs: an end moves by a
share of the way from what the scene has to what the file says, and a seed alone tells whether and where its episode is played at an end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.randomise import Widening
from sim.sampling import Draws, Sampler, stream_of, uniform
from sinew.errors import DataError

VERSION = 1
_STREAMS = np.array([stream_of("curriculum: whether"), stream_of("curriculum: where")], dtype=np.uint64)


class Curriculum:
    """How far the range of each parameter of a file has grown, and the outcomes at its ends that are not decided about yet.

    Args:
        sampler: of the scene.
        widening: when ends move.
    """

    def __init__(self, sampler: Sampler, widening: Widening) -> None:
        self.sampler, self.widening = sampler, widening
        parameters = sampler.randomisation.parameters
        self.reach = np.zeros((len(parameters), 2))
        """(E, 2) share of the way downwards and upwards, from 0 to 1."""
        low, high = sampler.ranges(np.zeros((len(parameters), 2)))
        least, most = sampler.ranges(None)
        moves = [(least < low), (high < most)]
        self.ends = tuple(2 * e + side for e in range(len(parameters)) for side in (0, 1) if moves[side][sampler.entries == e].any())
        """2 parameter + side (1 above) of every end that can move."""
        self._outcomes: dict[int, list[bool]] = {end: [] for end in self.ends}

    def draw(self, seeds: Sequence[int] | np.ndarray) -> Draws:
        """What the episodes of these seeds are played with, as ranges are now."""
        seeds = np.asarray(seeds)
        values = self.sampler.draw(seeds, self.reach)
        whether, where = uniform(seeds, _STREAMS).T
        boundary = np.full(len(seeds), -1, dtype=np.int64)
        if self.ends:
            at = np.array(self.ends)[(where * len(self.ends)).astype(np.int64)]
            boundary = np.where(whether < self.widening.share, at, boundary)
        for side, end in enumerate(self.sampler.ranges(self.reach)):
            mine = (boundary[:, None] >= 0) & (self.sampler.entries[None] == boundary[:, None] // 2) & (boundary[:, None] % 2 == side)
            values = np.where(mine, end[None], values)
        return Draws(values, boundary)

    def told(self, boundary: np.ndarray, success: np.ndarray) -> None:
        """Take the outcomes (n,) of episodes that were played at boundaries (n,), and move ends that are decided."""
        for end, won in zip(boundary.tolist(), success.tolist(), strict=True):
            if end not in self._outcomes:
                continue
            outcomes = self._outcomes[end]
            outcomes.append(bool(won))
            if len(outcomes) >= self.widening.episodes:
                self._decide(end, sum(outcomes) / len(outcomes))
                outcomes.clear()

    def _decide(self, end: int, rate: float) -> None:
        step = self.widening.step * ((rate >= self.widening.widen_at) - (rate <= self.widening.narrow_at))
        self.reach[divmod(end, 2)] = np.clip(round(self.reach[divmod(end, 2)] + step, 9), 0.0, 1.0)

    @property
    def share(self) -> float:
        """How far the ends that can move have moved, on average, from 0 to 1."""
        return float(np.mean([self.reach[divmod(end, 2)] for end in self.ends])) if self.ends else 1.0

    def state(self) -> dict[str, Any]:
        """Everything to go on from, for JSON."""
        outcomes = {str(end): list(map(int, found)) for end, found in self._outcomes.items()}
        return {"version": VERSION, "parameters": self._labels(), "reach": self.reach.tolist(), "outcomes": outcomes}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            DataError: it is of another file.
        """
        if state.get("version") != VERSION or state.get("parameters") != self._labels():
            raise DataError(
                f"this curriculum is of {', '.join(state.get('parameters', ())) or 'something else'}, not {', '.join(self._labels())}"
            )
        self.reach[:] = state["reach"]
        self._outcomes = {end: list(map(bool, state["outcomes"][str(end)])) for end in self.ends}

    def _labels(self) -> list[str]:
        return [".".join((p.what, *p.of)) for p in self.sampler.randomisation.parameters]
