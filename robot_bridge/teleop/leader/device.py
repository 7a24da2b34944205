"""Taking over with a leader arm: what a hand does with it, the robot's arm does."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from robot_bridge.takeover import Given
from robot_bridge.teleop.leader.config import LeaderConfig
from robot_bridge.teleop.leader.servos import BusFault, ServoBus, maker_of
from robot_bridge.teleop.mailbox import Mailbox
from sinew.errors import InputError

RATE_HZ = 60.0
MAX_AGE_S = 0.15
"""Angles older than this do not count: nine are missing by then."""
LOST_S = 1.0
"""An arm that has not answered for this long is gone."""
REOPEN_S = 0.5
"""Between two tries to find it again."""


class LeaderTakeover(Mailbox):
    """A leader arm. It cannot tell whether a hand is on it: somebody says when it leads, see `robot_bridge.takeover.Request`.

    Args:
        config: the arm.
        joints: of the robot's arm that it leads, in the robot's order.

    Raises:
        InputError: the port cannot be opened, a servo is missing or another one, or the arm leads another robot.
        MissingDependency: the servos' library is not installed.
    """

    def __init__(self, config: LeaderConfig, joints: Sequence[str]) -> None:
        super().__init__(MAX_AGE_S)
        self._config, self._order = config, config.order(joints)
        self._bus: ServoBus | None = self._connected()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"leader {config.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Takeover.close`."""
        self._quit.set()
        self._thread.join()
        if self._bus is not None:
            self._bus.close()

    def _connected(self) -> ServoBus:
        bus = ServoBus(maker_of(self._config.maker), self._config.port, self._config.baud)
        try:
            bus.check(self._config.servos)
            for servo in self._config.servos:
                bus.release(servo)
        except (InputError, BusFault):
            bus.close()
            raise
        return bus

    def _run(self) -> None:
        heard_s = due_s = time.monotonic()
        while not self._quit.is_set():
            due_s = max(due_s + 1 / RATE_HZ, time.monotonic() - 1 / RATE_HZ)
            if self._bus is None:
                self._quit.wait(REOPEN_S)
                self._reconnect()
                heard_s = due_s = time.monotonic()
                continue
            try:
                self.put(self._read(self._bus))
                heard_s = time.monotonic()
            except BusFault as e:
                if time.monotonic() - heard_s > LOST_S:
                    self._bus.close()
                    self._bus = None
                    self.lose(f"the leader arm on {self._config.port} is gone ({e})")
            self._quit.wait(max(0.0, due_s - time.monotonic()))

    def _reconnect(self) -> None:
        try:
            self._bus = self._connected()
        except (InputError, BusFault):
            return
        self.lose("")

    def _read(self, bus: ServoBus) -> Given:
        grip = self._config.grip
        angles = bus.angles([*(joint.id for joint in self._order), *([grip.id] if grip else [])])
        values = tuple(joint.value(angle) for joint, angle in zip(self._order, angles, strict=False))
        return Given(values, kind="joints", arm=self._config.arm, open=grip.share(angles[-1]) if grip else None)
