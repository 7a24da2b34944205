"""Watching cameras while a robot works: pictures of a board or tag as they come, what they say on /diagnostics, and the stop where that
is wanted.

It only looks. It has a process or a thread of its own, and shares nothing with control but topics. A picture counts when the hand stood
still as it was taken, so that neither blur nor the camera's delay looks like a bump; where the arm is not between camera and board that
does not matter.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from calibration.boards import Board
from calibration.detection import detect
from calibration.drift import USUAL, Drift, DriftMonitor, On, Picture
from calibration.results import Mounted
from robot_bridge.calibrating.hand import Hand
from robot_bridge.dds.messages import blank, make
from robot_bridge.robots.config import RobotConfig
from robot_bridge.transport import DEFAULT, Transport
from sinew.errors import InputError
from sinew.protocols import Robot

POLL_S = 0.05
STILL_S, STILL_RAD = 0.35, 2e-3
"""The hand stood still when no joint moved by more over this time up to the picture's arrival, which covers the camera's delay."""
UNSEEN_S = 60.0
"""A camera that has not shown a board for so long is told of as not watched."""
DIAGNOSTICS_S = 1.0
OK, WARN, ERROR, STALE = 0, 1, 2, 3
"""Levels of diagnostic_msgs/DiagnosticStatus."""


def only_looking(config: RobotConfig) -> RobotConfig:
    """The same robot without anything that commands it: who only looks must not appear as a second publisher."""
    return replace(config, contract=replace(config.contract, sinks=(), action=None), alternatives=())


@dataclass
class Watched:
    """What came of one camera's pictures."""

    pictures: int = 0
    used: int = 0
    seen_ns: int = -(1 << 62)
    """When a board was last seen, and when a picture came."""
    came_ns: int = -(1 << 62)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Pictures that were not used, by reason."""


class DriftWatch:
    """Looks at what the cameras of a robot show.

    Args:
        robot: connected, or a simulated one; it is only read.
        hand: of the arm that carries camera or board.
        cameras: the stored calibrations, by the names that the robot gives its cameras.
        boards: what each camera may see, by its name.
        on: where that is; None for where the calibration had it.
        monitor: what judges; a new one if left out.
        rate_hz: pictures per second and camera that are looked at, at most.
        now_ns: the robot's clock.
    """

    def __init__(
        self,
        robot: Robot,
        hand: Hand,
        cameras: Sequence[Mounted],
        boards: Mapping[str, Board],
        *,
        on: On | None = None,
        monitor: DriftMonitor | None = None,
        rate_hz: float = 2.0,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not rate_hz > 0:
            raise InputError(f"--rate {rate_hz:g}: above 0 pictures a second are needed")
        self.robot, self.hand = robot, hand
        self.on: On | None = on
        self.monitor = monitor or DriftMonitor(cameras)
        self.cameras, self.boards = {m.name: m for m in cameras}, dict(boards)
        self.watched = {m.name: Watched() for m in cameras}
        self.drift: Drift | None = None
        """What the newest picture said; after an alarm it never holds again, and later pictures tell better what has moved."""
        self._period_ns, self._now_ns, self._began_ns = round(1e9 / rate_hz), now_ns, now_ns()
        self._joints: deque[tuple[int, np.ndarray]] = deque()

    @property
    def holds(self) -> bool:
        """Whether no mount has moved, as far as can be told."""
        return self.drift is None or self.drift.holds

    def look(self) -> list[Drift]:
        """Take in what has come since the last look; returns at once where nothing has."""
        observation = self.robot.read()
        joints = np.asarray(observation.values.get("joint_position", ()), dtype=float)
        if joints.shape != (len(self.hand.spec.joint_names),) or not np.isfinite(joints).all():
            return []
        if not self._joints or observation.stamp_ns > self._joints[-1][0]:
            self._joints.append((observation.stamp_ns, joints))
        while len(self._joints) > 2 and self._joints[1][0] < self._now_ns() - 4 * STILL_S * 1e9:
            self._joints.popleft()
        found = []
        for name, state in self.watched.items():
            key = f"images.{name}"
            came_ns = observation.stamps_ns.get(key, -1)
            if key not in observation.values or came_ns < state.came_ns + (self._period_ns if state.pictures else 1):
                continue
            state.came_ns, state.pictures = came_ns, state.pictures + 1
            drift = self._see(name, np.asarray(observation.values[key]), came_ns, state)
            if drift is not None:
                found.append(drift)
        return found

    def _see(self, name: str, image: np.ndarray, came_ns: int, state: Watched) -> Drift | None:
        stored = self.cameras[name]
        on = self.on or USUAL[stored.mount]
        size = (image.shape[1], image.shape[0])
        if size != (stored.camera.width, stored.camera.height):
            wanted = f"{stored.camera.width} x {stored.camera.height}"
            return self._pass(state, f"its pictures are {size[0]} x {size[1]}, its calibration is for {wanted}")
        # the arm is between camera and board where the calibration had them
        joints = self._still(came_ns) if on == USUAL[stored.mount] else self._joints[-1][1]
        if joints is None:
            return self._pass(state, "the hand moved")
        seen = detect(image, self.boards[name])
        if seen.refused:
            return self._pass(state, seen.refused)
        points = self.boards[name].points[seen.ids]
        picture = Picture(camera=name, robot=self.hand.pose(joints), points=points, pixels=seen.pixels, sigma=seen.sigma, on=on)
        try:
            drift = self.monitor.see(picture)
        except InputError as e:
            return self._pass(state, str(e))
        state.seen_ns = came_ns
        if np.isnan(drift.chance):
            return self._pass(state, "its corners fit no board")
        state.used += 1
        self.drift = drift
        return drift

    def _pass(self, state: Watched, why: str) -> None:
        state.passed_over[why] += 1

    def _still(self, came_ns: int) -> np.ndarray | None:
        """Where the joints stood over the time before a picture came; None where they moved, or it is not known yet."""
        window = [(stamp, q) for stamp, q in self._joints if stamp > came_ns - STILL_S * 1e9]
        before = [stamp for stamp, _ in self._joints if stamp <= came_ns - STILL_S * 1e9]
        if len(window) < 2 or not before:
            return None
        path = np.array([q for _, q in window])
        return path[-1] if float(np.ptp(path, axis=0).max()) < STILL_RAD else None

    # ------------------------------------------------------------ what it says

    def status(self, name: str) -> tuple[int, str, dict[str, str]]:
        """Level, message and values of a camera, as /diagnostics takes them."""
        state, drift, now_ns = self.watched[name], self.drift, self._now_ns()
        values = {"pictures": str(state.pictures), "used": str(state.used), "calibration": self.cameras[name].hash}
        if drift is not None:
            values |= {"evidence": f"{drift.evidence:.3g}", "moved_mm": f"{1e3 * drift.moved_m:.2f}"}
            values |= {"moved_deg": f"{np.rad2deg(drift.moved_rad):.3f}"}
        if drift is not None and not drift.holds and (f"camera {name}" in drift.moved or not any("camera" in m for m in drift.moved)):
            return ERROR, drift.told, values
        if now_ns - max(state.came_ns, self._began_ns) > 5e9:
            return STALE, f"camera {name} gives no pictures", values
        if now_ns - max(state.seen_ns, self._began_ns) > UNSEEN_S * 1e9 or not state.used:
            reason = state.passed_over.most_common(1)
            return WARN, f"camera {name} is not watched: {reason[0][0] if reason else 'no picture yet'}", values
        return OK, f"camera {name} is where it was, as far as {state.used} pictures tell", values

    def summary(self) -> dict[str, Any]:
        """JSON-able."""
        cameras = {
            name: {"pictures": w.pictures, "used": w.used, "passed_over": dict(w.passed_over), "told": self.status(name)[1]}
            for name, w in self.watched.items()
        }
        return {**told(self.drift), "cameras": cameras}


def told(drift: Drift | None) -> dict[str, Any]:
    """What a monitor says, JSON-able."""
    if drift is None:
        return {"holds": None, "moved": [], "moved_mm": None, "moved_deg": None, "since": None, "told": "no picture could be used"}
    return {
        "holds": drift.holds, "moved": list(drift.moved), "moved_mm": 1e3 * drift.moved_m if drift.moved else None,
        "moved_deg": float(np.rad2deg(drift.moved_rad)) if drift.moved else None, "since": drift.since if drift.moved else None,
        "told": drift.told,
    }  # fmt: skip


class Diagnostics:
    """Says on /diagnostics how the cameras are, and stops a deployment when one has moved, if that is asked for.

    Args:
        node: where.
        watch: whose word it is.
        stop_topic: std_msgs/Bool that stops a deployment; empty for none.
    """

    def __init__(self, node: Transport, watch: DriftWatch, stop_topic: str = "") -> None:
        self._watch, self._said_ns = watch, -(1 << 62)
        self._array = node.publisher("/diagnostics", "diagnostic_msgs/DiagnosticArray", DEFAULT)
        self._stop = node.publisher(stop_topic, "std_msgs/Bool", DEFAULT) if stop_topic else None

    def tell(self) -> None:
        """Say it once a second, and at once when something has moved; to be called often."""
        now_ns = time.monotonic_ns()
        if now_ns - self._said_ns < DIAGNOSTICS_S * 1e9:
            return
        self._said_ns = now_ns
        statuses = []
        for name in self._watch.watched:
            level, message, values = self._watch.status(name)
            pairs = [make("diagnostic_msgs/KeyValue", key=key, value=value) for key, value in values.items()]
            statuses.append(
                make(
                    "diagnostic_msgs/DiagnosticStatus", level=level, name=f"sinew_watch: camera {name}", message=message, hardware_id=name,
                    values=pairs,
                )
            )  # fmt: skip
        wall_ns = time.time_ns()
        stamp = make("builtin_interfaces/Time", sec=wall_ns // 1_000_000_000, nanosec=wall_ns % 1_000_000_000)
        header = make("std_msgs/Header", stamp=stamp, frame_id="")
        self._array.send(blank("diagnostic_msgs/DiagnosticArray", header=header, status=statuses))
        if self._stop is not None and not self._watch.holds:
            self._stop.send(make("std_msgs/Bool", data=True))

    def at_once(self) -> None:
        """The next `tell` does not wait."""
        self._said_ns = -(1 << 62)


def keep_watching(
    watch: DriftWatch,
    quit_event: threading.Event,
    tell: Callable[[str], None],
    diagnostics: Diagnostics | None = None,
    *,
    until_moved: bool = False,
    duration_s: float | None = None,
) -> None:
    """Look until `quit_event`, a time, or the first alarm; one line when something has moved, and when it is known better what."""
    end = None if duration_s is None else time.monotonic() + duration_s
    named: tuple[str, ...] = ()
    while not quit_event.wait(POLL_S) and (end is None or time.monotonic() < end):
        watch.look()
        drift = watch.drift
        if drift is not None and not drift.holds and set(drift.moved) != set(named):
            named = drift.moved
            tell(drift.told)
            if diagnostics is not None:
                diagnostics.at_once()
        if diagnostics is not None:
            diagnostics.tell()
        if named and until_moved:
            return
