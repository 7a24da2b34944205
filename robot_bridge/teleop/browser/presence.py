"""Whether the person at the page holds the robot at this moment: the dead-man switch of a network.

The server stamps everything that it says, and the page repeats the newest stamp in everything that it says. So the age of a
person's word is known without comparing two clocks, and whatever delays it, a slow network in either direction, a browser that
does not draw, a machine that sleeps, makes it too old to count. What lapsed once does not come to life again by itself: the
person takes hold anew.
"""

from __future__ import annotations

from robot_bridge.teleop.browser.messages import Hand, Sample

DEAD_MAN_S = 0.2
"""A person's word counts for this long."""


class Presence:
    """The words of one connection. One thread tells it, any may ask.

    Args:
        within_s: a word counts for this long after the newest stamp that the page had when it said it.
    """

    def __init__(self, within_s: float = DEAD_MAN_S) -> None:
        self._within_ns = round(within_s * 1e9)
        self._newest: Sample | None = None
        self._hands: tuple[Hand, ...] = ()
        self._dead = 0

    @property
    def newest(self) -> Sample | None:
        """What was said last, whether it counts or not."""
        return self._newest

    def heard(self, sample: Sample, now_ns: int) -> None:
        """The page has said this; what is not newer than what it said before is ignored."""
        before = self._newest
        if before is not None and sample.number <= before.number:
            return
        lapsed = before is None or now_ns - before.heard_ns > self._within_ns or not self._fresh(sample, now_ns)
        if lapsed:
            self._dead = max([self._dead, *(hand.grip for hand in (*sample.hands, *(before.hands if before else ())))])
        self._newest = sample
        self._hands = tuple(hand for hand in sample.hands if hand.grip > self._dead)

    def held(self, now_ns: int) -> tuple[Hand, ...]:
        """What the person asks now, of each arm that they hold; empty when they hold none."""
        sample, hands = self._newest, self._hands
        return hands if sample is not None and self._fresh(sample, now_ns) else ()

    def lapsed(self) -> bool:
        """Whether the person holds something that does not count any more: they must let go and take hold again."""
        sample = self._newest
        return sample is not None and any(0 < hand.grip <= self._dead for hand in sample.hands)

    def _fresh(self, sample: Sample, now_ns: int) -> bool:
        return 0 <= now_ns - sample.heard_ns <= self._within_ns
