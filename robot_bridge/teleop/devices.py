"""A person's device by its name, with everything that goes beside it: words of the keyboard and of a topic, and the clutch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from robot_bridge.takeover import Frame, Given, KeyboardTakeover, Request, Takeover, Together, open_takeover
from robot_bridge.transport import Transport, open_transport
from sinew.errors import InputError, unknown
from sinew.protocols import RobotSpec

STEPPING = ("keyboard", "gamepad", "spacemouse")
DEVICES = (*STEPPING, "leader", "topic")
"""Devices that are opened here."""
LEROBOT = "lerobot:"
"""Before the name of one of LeRobot's teleoperators."""
LET_GO: tuple[Request, ...] = ("pause", "reset", "discard", "success", "failure", "stop")
"""Words that end the hold of a device that cannot tell by itself: nobody watches it then."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which device, for which robot."""

    name: str
    """Of `DEVICES`, or lerobot:NAME."""
    robot: RobotSpec
    arms: int = 1
    step: tuple[float, float] = (0.0125, 0.025)
    """Largest displacement and turn of a tool in one step, metres and rad."""
    rate_hz: float = 20.0
    """Steps per second."""
    files: tuple[Path, ...] = ()
    """What is to be known of the device: one file, or one for each of several leader arms."""
    frame: Frame = "world"
    events: str = ""
    """Topic of words; empty for none."""
    transport: str = "dds"
    domain: int | None = None
    reach: str | None = None

    @property
    def joints(self) -> list[tuple[str, ...]]:
        """Of each arm, in the robot's order."""
        names, width = self.robot.joint_names, len(self.robot.joint_names) // self.arms
        return [names[i * width : (i + 1) * width] for i in range(self.arms)]

    def node(self, name: str) -> Transport:
        """A node of the network."""
        return open_transport(self.transport, name, domain=self.domain, reach=self.reach)


def check_device(name: str, files: Sequence[Path] = (), more: Sequence[str] = ()) -> None:
    """Refuse what is no device, or files that it does not take.

    Args:
        name: of the device.
        files: given for it.
        more: other devices that there are.

    Raises:
        InputError: says which there are.
    """
    if not name.startswith(LEROBOT) and name not in (*DEVICES, *more):
        raise unknown("device", name, (*DEVICES, *more, f"{LEROBOT}NAME"))
    if name == "leader" and not files:
        raise InputError("--teleop leader needs --teleop-config FILE: make one with 'sinew calibrate leader'")
    if files and name in (*STEPPING, *more):
        raise InputError(f"--teleop-config {files[0]}: a {name} takes none; it is for leader, topic and {LEROBOT}NAME")
    if len(files) > 1 and name != "leader":
        raise InputError(f"--teleop-config: {len(files)} files are given; only leader arms take several, one for each")


def open_device(choice: Choice, tell: Callable[[str], None] = lambda line: None) -> Takeover:
    """The device, with the words of the terminal and of the topic of events beside its own.

    Args:
        choice: which.
        tell: gets lines for the person.

    Raises:
        InputError: it is not there, it does not fit the robot, or nobody could say when it is held.
        MissingDependency: its package is not installed.
    """
    check_device(choice.name, choice.files)
    if choice.name in STEPPING:
        device, tells_hold = _stepping(choice), True
    else:
        device, tells_hold = _speaking(choice)
    if choice.name not in STEPPING and sys.stdin.isatty():
        device = _beside(device, lambda: KeyboardTakeover(arms=choice.arms))
    if choice.events:
        from robot_bridge.teleop.topics.device import TopicWords

        device = _beside(device, lambda: TopicWords(choice.node("sinew_teleop_events"), choice.events))
    if tells_hold:
        return device
    if not sys.stdin.isatty() and not choice.events:
        device.close()
        raise InputError(
            f"nobody can say when {choice.name} is held: run it in a terminal, where c takes hold and lets go, or give --teleop-events"
        )
    return Held(device, tell)


def _stepping(choice: Choice) -> Takeover:
    if choice.name != "spacemouse" or choice.arms == 1 or not sys.stdin.isatty():
        return open_takeover(choice.name, frame=choice.frame, arms=choice.arms)  # type: ignore[arg-type]  # one of three names
    from robot_bridge.spacemouse import SpaceMouseTakeover

    return _beside(SpaceMouseTakeover(frame=choice.frame), lambda: KeyboardTakeover(arms=choice.arms), switch=True)


def _speaking(choice: Choice) -> tuple[Takeover, bool]:
    """A device that speaks when it likes, and whether it says by itself when it is held."""
    if choice.name == "topic":
        from robot_bridge.teleop.topics.config import TopicConfig, load_topics
        from robot_bridge.teleop.topics.device import TopicTakeover

        topics = load_topics(choice.files[0]) if choice.files else TopicConfig()
        speed = (choice.step[0] * choice.rate_hz, choice.step[1] * choice.rate_hz)
        return TopicTakeover(topics, choice.node("sinew_teleop"), choice.joints, speed), topics.tells_hold
    if choice.name == "leader":
        return _leaders(choice), False
    from robot_bridge.teleop.lerobot.config import LerobotConfig, load_lerobot
    from robot_bridge.teleop.lerobot.device import LerobotTakeover

    config = load_lerobot(choice.files[0]) if choice.files else LerobotConfig(frame=choice.frame)
    limits = dict(
        zip(choice.robot.joint_names, zip(choice.robot.position_low_rad, choice.robot.position_high_rad, strict=True), strict=True)
    )
    device = LerobotTakeover(choice.name.removeprefix(LEROBOT), config, choice.joints, limits)
    return device, device.tells_hold


def _leaders(choice: Choice) -> Takeover:
    from robot_bridge.teleop.leader.config import load_leader
    from robot_bridge.teleop.leader.device import LeaderTakeover

    configs = [load_leader(file) for file in choice.files]
    arms = [config.arm for config in configs]
    if len(set(arms)) != len(arms) or max(arms) >= choice.arms:
        raise InputError(f"leader arms lead arms {arms}; the robot has {choice.arms}, counted from 0, each led once")
    devices: list[Takeover] = []
    try:
        for config in configs:
            devices.append(LeaderTakeover(config, choice.joints[config.arm]))
    except BaseException:
        for device in devices:
            device.close()
        raise
    return devices[0] if len(devices) == 1 else Several(devices)


def _beside(device: Takeover, words: Callable[[], Takeover], *, switch: bool = False) -> Takeover:
    """Words beside a device, which is closed where they cannot be had."""
    try:
        made = words()
    except BaseException:
        device.close()
        raise
    return Switched(device, made) if switch else Together(device, made)


class Switched(Together):
    """A device of one arm moves the arm that the keyboard beside it has chosen."""

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        given = super().read()
        return None if given is None else replace(given, arm=getattr(self.words, "arm", 0))


class Several:
    """Devices of one arm each, as one device. Where one is lost, all arms hold.

    Args:
        devices: which.
    """

    def __init__(self, devices: Sequence[Takeover]) -> None:
        self._devices = tuple(devices)

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        given = [part for device in self._devices if (part := device.read()) is not None]
        return replace(given[0], also=(*given[0].also, *given[1:])) if given else None

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        return next((word for device in self._devices if (word := device.request()) is not None), None)

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """See `Takeover.watch`."""
        for device in self._devices:
            device.watch(observation, step, seed)

    def reopen(self) -> bool:
        """See `Takeover.reopen`."""
        return all([device.reopen() for device in self._devices])

    def close(self) -> None:
        """See `Takeover.close`."""
        for device in self._devices:
            device.close()


class Held:
    """A device that cannot tell whether a hand is on it: the word "intervene" takes hold of it, and lets go again.

    A word that ends or interrupts an episode lets go too, and so does a device that was lost.

    Args:
        device: gives motions and words.
        tell: gets lines for the person.
    """

    def __init__(self, device: Takeover, tell: Callable[[str], None] = lambda line: None) -> None:
        self._device, self._tell = device, tell
        self._holds, self._times = False, 0
        tell("c takes hold of the device and lets go of it; the robot does not move when it is taken hold of")

    def read(self) -> Given | None:
        """See `Takeover.read`."""
        given = self._device.read()
        return self._numbered(given) if given is not None and self._holds else None

    def request(self) -> Request | None:
        """See `Takeover.request`."""
        while (word := self._device.request()) == "intervene":
            self._hold(not self._holds)
        if word in LET_GO:
            self._hold(False)
        return word

    def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
        """See `Takeover.watch`."""
        self._device.watch(observation, step, seed)

    def reopen(self) -> bool:
        """See `Takeover.reopen`."""
        self._hold(False)
        return self._device.reopen()

    def close(self) -> None:
        """See `Takeover.close`."""
        self._device.close()

    def _hold(self, holds: bool) -> None:
        if holds != self._holds:
            self._tell("taken hold of: the robot follows" if holds else "let go of: the robot holds; c takes hold again")
        self._times += holds
        self._holds = holds

    def _numbered(self, given: Given) -> Given:
        """Both counts only grow, so that their sum is a new one where either is."""
        return replace(given, hold=given.hold + self._times, also=tuple(self._numbered(part) for part in given.also))
