"""Whether what a robot measured may be shown to a policy: fresh, together in time, and pictures that show something.

Joint states, cameras and transforms come at their own rates, each with its own stamp. A value that is a little late is used and
counted. One that is older than its budget is not shown: the robot holds. One that stays away ends the episode, which is kept.
Black pictures, and pictures that stay the same while the arm moves, are counted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from robot_bridge.contract import Contract, Source
from sinew.errors import InputError
from sinew.protocols import Observation

LATE = 1.5
"""Times the usual interval of a source, after which its value counts as late."""
ACCOUNTED = 32
"""Intervals that the usual one is the median of."""
BLACK = 8
"""A picture whose brightest pixel is below this, of 255, counts as black."""
EVERY = 8
"""Each this many pixels of a row and column are looked at."""
MOVED_RAD = 0.02
"""An arm that has moved this far should look different."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How old one value may be."""

    hold_after_s: float = 0.2
    """Older than this it is not shown to the policy, and the robot holds."""
    end_after_s: float = 1.0
    """Older than this the episode ends."""
    tolerance_s: float = 0.1
    """Stamps farther than this from the joint state's are counted."""

    def __post_init__(self) -> None:
        if not 0.0 < self.hold_after_s <= self.end_after_s or not self.tolerance_s > 0.0:
            raise InputError(
                f"a budget of {self.hold_after_s} s to hold and {self.end_after_s} s to end: both must be above 0, the second not below"
            )


JOINTS = Budget(hold_after_s=0.1)
"""Joint states, gripper and forces: as old as the safety gate lets them be."""
SEEN = Budget()
"""Cameras and transforms."""


def budgets(needed: Iterable[str], contract: Contract | None = None) -> dict[str, Budget]:
    """The budget of each value: that of the contract's source where it sets one, else the default of its kind.

    Args:
        needed: keys of `Observation.values`.
        contract: the robot's; None for the defaults.
    """
    chosen = {key: SEEN if key.startswith(("images.", "pose.")) else JOINTS for key in needed}
    for source in contract.sources if contract is not None else ():
        if source.key in chosen:
            hold = source.age_max_s if source.age_max_s != Source.age_max_s else chosen[source.key].hold_after_s
            chosen[source.key] = Budget(hold_after_s=hold, end_after_s=max(SEEN.end_after_s, 2.0 * hold), tolerance_s=source.tolerance_s)
    return chosen


class Judgement(NamedTuple):
    """What may be done with a measurement."""

    answer: Literal["use", "hold", "end"]
    key: str
    """The value that is too old; empty for "use"."""
    age_s: float


USE = Judgement("use", "", 0.0)


class Synchroniser:
    """Judges the measurements of one deployment, one for every policy tick.

    Args:
        budgets: for each value that the policy needs.
    """

    def __init__(self, budgets: Mapping[str, Budget]) -> None:
        self.budgets = dict(budgets)
        self.counts: dict[str, Counter[str]] = {key: Counter() for key in budgets}
        """Ticks per value and what was wrong with it: late, held, apart, black, frozen."""
        self.oldest_s: dict[str, float] = dict.fromkeys(budgets, 0.0)
        """The largest age with which each value was used."""
        self._stamps: dict[str, int] = {}
        self._intervals: dict[str, deque[int]] = {key: deque(maxlen=ACCOUNTED) for key in budgets}
        self._pictures: dict[str, tuple[bytes, np.ndarray]] = {}
        self._begun_ns = 0

    def start(self, now_ns: int) -> None:
        """An episode begins: what has not come yet is waited for from now on."""
        self._begun_ns = now_ns
        self._stamps.clear()
        self._pictures.clear()

    def judge(self, measured: Observation, now_ns: int) -> Judgement:
        """Whether `measured` may be used at `now_ns`, monotonic."""
        worst = USE
        for key, budget in self.budgets.items():
            stamp_ns = self._stamp(key, measured)
            age_s = (now_ns - stamp_ns) / 1e9
            if key not in measured.values or age_s > budget.hold_after_s:
                self.counts[key]["held"] += 1
                answer: Literal["hold", "end"] = "end" if age_s >= budget.end_after_s else "hold"
                if worst.answer == "use" or age_s > worst.age_s:
                    worst = Judgement("end" if "end" in (answer, worst.answer) else "hold", key, age_s)
                continue
            self._account(key, budget, measured, stamp_ns, age_s)
        return worst

    def too_old(self, measured: Observation, now_ns: int) -> list[str]:
        """Values that are there and too old to begin with; nothing is counted."""
        ages = {key: now_ns - measured.stamps_ns.get(key, measured.stamp_ns) for key in self.budgets if key in measured.values}
        return [key for key, age_ns in ages.items() if age_ns > self.budgets[key].hold_after_s * 1e9]

    def report(self) -> dict[str, Any]:
        """JSON-able: per value, the ticks with something wrong and the largest age that was used."""
        return {key: {**self.counts[key], "oldest_ms": round(1e3 * self.oldest_s[key], 1)} for key in self.budgets}

    # ------------------------------------------------------------ inside

    def _stamp(self, key: str, measured: Observation) -> int:
        """When the value came; the last time that it did where it is missing now."""
        if key in measured.values:
            stamp_ns = measured.stamps_ns.get(key, measured.stamp_ns)
            last_ns = self._stamps.get(key)
            if last_ns is not None and stamp_ns > last_ns:
                self._intervals[key].append(stamp_ns - last_ns)
            self._stamps[key] = stamp_ns
        return self._stamps.get(key, self._begun_ns)

    def _account(self, key: str, budget: Budget, measured: Observation, stamp_ns: int, age_s: float) -> None:
        self.oldest_s[key] = max(self.oldest_s[key], age_s)
        intervals = self._intervals[key]
        if len(intervals) >= 4 and age_s * 1e9 > LATE * sorted(intervals)[len(intervals) // 2]:
            self.counts[key]["late"] += 1
        if abs(stamp_ns - measured.stamp_ns) > budget.tolerance_s * 1e9:
            self.counts[key]["apart"] += 1
        if key.startswith("images."):
            self._look(key, measured)

    def _look(self, key: str, measured: Observation) -> None:
        picture = np.asarray(measured.values[key])[::EVERY, ::EVERY]
        if not picture.size or picture.max() < BLACK:
            self.counts[key]["black"] += 1
        seen, joints = picture.tobytes(), np.asarray(measured.values.get("joint_position", ()), dtype=float)
        before = self._pictures.get(key)
        if before is None or before[0] != seen or before[1].shape != joints.shape:
            self._pictures[key] = (seen, joints)
        elif joints.size and np.abs(joints - before[1]).max() > MOVED_RAD:
            self.counts[key]["frozen"] += 1


def policy(needed: Iterable[str], rate_hz: float, contract: Contract | None = None) -> dict[str, Any]:
    """How values of different times become frames, as it is kept with every recorded episode; JSON-able.

    Args:
        needed: keys of `Observation.values`.
        rate_hz: frames per second.
        contract: the robot's, whose sources say how each value is aligned; None where the newest value is taken of each.

    Returns:
        "rate_hz"; "delay_s", a frame being of this long before its tick; "streams": per value "alignment" (newest at or before, nearest,
        interpolate), "age_max_s", "tolerance_s", "stamp" and "ends_after_s"; "when_older": what is stored then.
    """
    sources = {s.key: s for s in contract.sources} if contract is not None else {}
    streams = {}
    for key, budget in budgets(needed, contract).items():
        source = sources.get(key)
        streams[key] = {
            "alignment": "newest" if source is None else source.alignment,
            "age_max_s": budget.hold_after_s,
            "tolerance_s": budget.tolerance_s,
            "ends_after_s": budget.end_after_s,
            "stamp": "receipt" if source is None else source.stamp,
        }
    return {
        "rate_hz": rate_hz,
        "delay_s": 0.0 if contract is None else contract.delay_s,
        "streams": streams,
        "when_older": "no frame: the tick is counted as skipped, the robot holds, and the episode ends after ends_after_s",
    }
