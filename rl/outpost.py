"""Worlds whose learning half is elsewhere."""

from __future__ import annotations

from rl.loop_config import LoopConfig, LoopResult
from rl.worlds import Method


class Outpost:
    """Given to a runner in place of worlds: it acts for a learner that is elsewhere."""

    def act(self, method: Method, config: LoopConfig) -> LoopResult:
        """Act until the learner has enough."""
        raise NotImplementedError
