"""Finding out which servo of a leader arm is which joint of the robot, which way round it turns, and where its zero is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import degrees

import numpy as np

from robot_bridge.teleop.leader.config import LeaderConfig, LeaderGrip, LeaderJoint, around
from robot_bridge.teleop.leader.servos import BusFault, ServoBus
from sinew.errors import InputError

TURNED_RAD = 0.15
"""A joint that is turned on purpose turns by this much at least."""
MOVED_RAD = 0.3
"""A joint that was moved through its range has moved by this much at least."""
READINGS = 9
"""Whose median an angle is."""
Ask = Callable[[str, Callable[[], None]], None]
"""Shows a question, calls a function again and again, and returns when the person has answered."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is to be found out."""

    robot: str
    """Its name."""
    arm: int
    joints: tuple[str, ...]
    """Of that arm, in the robot's order."""
    pose_rad: tuple[float, ...]
    """That the person holds the leader arm in: the robot's home pose."""
    ids: tuple[int, ...]
    """Servos of the joints, and after them that of the gripper's handle, if it has one."""
    signs: tuple[int, ...] = ()
    """Which way round they turn, where it is known."""

    def __post_init__(self) -> None:
        n = len(self.joints)
        if len(self.ids) not in (n, n + 1) or len(set(self.ids)) != len(self.ids):
            raise InputError(
                f"servos {list(self.ids)}: the arm has joints {', '.join(self.joints)}: give {n} ids, or {n + 1} with the handle's"
            )
        if len(self.pose_rad) != n:
            raise InputError(
                f"a pose of {len(self.pose_rad)} angles: arm {self.arm} of {self.robot} has {n} joints, {', '.join(self.joints)}"
            )
        if self.signs and (len(self.signs) != n or any(sign not in (1, -1) for sign in self.signs)):
            raise InputError(f"signs {list(self.signs)}: give 1 or -1 for each of {', '.join(self.joints)}")


def find(bus: ServoBus, ids: Sequence[int]) -> dict[int, str]:
    """{id: model} of servos that are there.

    Raises:
        InputError: one does not answer, or is of a model that is not known.
    """
    names = {number: name for name, number in bus.maker.models.items()}
    found = {}
    for servo in ids:
        number = bus.ping(servo)
        if number is None:
            there = [i for i in range(1, 21) if bus.ping(i) is not None]
            told = f"those of {', '.join(map(str, there))} do: give --ids" if there else f"none does at {bus.baud} baud: is it powered?"
            raise InputError(f"servo {servo} on {bus.port} does not answer; {told}")
        if number not in names:
            raise InputError(f"servo {servo} on {bus.port} is of model number {number}; known are {', '.join(names.values())}")
        found[servo] = names[number]
    return found


def calibrate(bus: ServoBus, lesson: Lesson, ask: Ask, tell: Callable[[str], None] = lambda line: None) -> LeaderConfig:
    """Go through it with the person.

    Raises:
        InputError: a servo is missing, or the person's answers do not fit together.
        BusFault: the bus is gone.
    """
    models = find(bus, lesson.ids)
    for servo in lesson.ids:
        bus.release(servo)
    n = len(lesson.joints)
    pose = ", ".join(f"{name} {degrees(angle):.0f}°" for name, angle in zip(lesson.joints, lesson.pose_rad, strict=True))
    ask(f"hold the leader arm as the robot stands in its home pose ({pose}), and press Enter", lambda: None)
    held = _angles(bus, lesson.ids)
    signs = lesson.signs or tuple(_sign(bus, name, servo, ask, tell) for name, servo in zip(lesson.joints, lesson.ids, strict=False))
    zeros = [angle - sign * at for angle, sign, at in zip(held[:n], signs, lesson.pose_rad, strict=True)]
    low, high = _ranges(bus, lesson, held, ask, tell)
    joints = []
    for i, name in enumerate(lesson.joints):
        ends = sorted(signs[i] * (end - zeros[i]) for end in (low[i], high[i]))
        joints.append(
            LeaderJoint(
                name=name,
                id=lesson.ids[i],
                model=models[lesson.ids[i]],
                sign=signs[i],
                zero_rad=zeros[i],
                low_rad=ends[0],
                high_rad=ends[1],
            )
        )
    grip = _grip(bus, lesson.ids[n], models[lesson.ids[n]], ask, tell) if len(lesson.ids) > n else None
    return LeaderConfig(
        robot=lesson.robot, maker=bus.maker.name, port=bus.port, baud=bus.baud, arm=lesson.arm, joints=tuple(joints), grip=grip
    )  # fmt: skip


def _angles(bus: ServoBus, ids: Sequence[int]) -> list[float]:
    """Medians of some readings, rad; a few may fail.

    Raises:
        BusFault: most of them fail.
    """
    readings: list[list[float]] = []
    for left in reversed(range(2 * READINGS)):
        try:
            readings.append(bus.angles(ids))
        except BusFault:
            if left + len(readings) < READINGS:
                raise
    return np.median(readings[:READINGS], axis=0).tolist()


def _sign(bus: ServoBus, name: str, servo: int, ask: Ask, tell: Callable[[str], None]) -> int:
    while True:
        (before,) = _angles(bus, [servo])
        ask(f"turn {name} a little, the way that the robot's {name} turns when its angle grows, and press Enter", lambda: None)
        (after,) = _angles(bus, [servo])
        turned = around(after - before, 0.0)
        if abs(turned) >= TURNED_RAD:
            return 1 if turned > 0 else -1
        tell(
            f"servo {servo} turned by {degrees(turned):.1f}° only: at least {degrees(TURNED_RAD):.0f}° are needed, or another one is {name}"
        )


def _ranges(
    bus: ServoBus, lesson: Lesson, held: Sequence[float], ask: Ask, tell: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Lowest and highest angle (J,) of each servo while the person moves them, turns counted on."""
    n = len(lesson.joints)
    at = np.array(held[:n])
    low, high = at.copy(), at.copy()

    def watch() -> None:
        try:
            now = bus.angles(lesson.ids[:n])
        except BusFault:  # one reading less
            return
        at[:] = [around(angle, before) for angle, before in zip(now, at, strict=True)]
        np.minimum(low, at, out=low)
        np.maximum(high, at, out=high)

    ask("move every joint of the leader arm through its whole range, and press Enter", watch)
    while still := [name for name, width in zip(lesson.joints, high - low, strict=True) if width < MOVED_RAD]:
        ask(f"{', '.join(still)} did not move: move through the whole range, and press Enter", watch)
    tell("ranges: " + ", ".join(f"{name} {degrees(w):.0f}°" for name, w in zip(lesson.joints, high - low, strict=True)))
    return low, high


def _grip(bus: ServoBus, servo: int, model: str, ask: Ask, tell: Callable[[str], None]) -> LeaderGrip:
    while True:
        ask("close the gripper's handle, and press Enter", lambda: None)
        (closed,) = _angles(bus, [servo])
        ask("open the gripper's handle, and press Enter", lambda: None)
        (opened,) = _angles(bus, [servo])
        turned = around(opened - closed, 0.0)
        if abs(turned) >= TURNED_RAD:
            return LeaderGrip(id=servo, model=model, closed_rad=closed, open_rad=closed + turned)
        tell(f"the handle turned by {degrees(turned):.1f}° only: at least {degrees(TURNED_RAD):.0f}° are needed")
