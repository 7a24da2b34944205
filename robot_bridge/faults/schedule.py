"""What shall go wrong, when and for how long: the file that `sinew robot --faults` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sinew.config import read_config
from sinew.errors import InputError, unknown

Event = Literal["start", "reset", "command", "motion"]


class Kind(NamedTuple):
    """One way to misbehave."""

    text: str
    parameters: Mapping[str, float | str] = {}
    """Names with what they are if left out."""
    process: bool = False
    """Only a robot in a process of its own can do it."""


KINDS: Mapping[str, Kind] = {
    "joint_states_dropped": Kind("joint states do not come; `part` of them", {"part": 1.0}),
    "joint_states_frozen": Kind("joint states come with new stamps and the values of before"),
    "joint_states_jump": Kind("one joint is measured `size_rad` from where it is", {"joint": 0.0, "size_rad": 0.5}),
    "joint_states_reversed": Kind("stamps run backwards"),
    "joint_states_nan": Kind("one joint is measured as NaN", {"joint": 0.0}),
    "joint_names_wrong": Kind("joints have other names", process=True),
    "joint_count_wrong": Kind("the last joint is left out"),
    "effort_spike": Kind("one joint measures `size_nm` more effort", {"joint": 0.0, "size_nm": 200.0}),
    "camera_stall": Kind("images do not come", {"camera": ""}),
    "camera_unplugged": Kind("images do not come and their topics are gone", {"camera": ""}),
    "camera_black": Kind("images are black", {"camera": ""}),
    "cameras_swapped": Kind("the first two cameras' images are exchanged"),
    "clock_offset": Kind("stamps are off by `offset_s`", {"offset_s": 3600.0}, process=True),
    "clock_slew": Kind("the stamps' clock runs fast by `rate` seconds per second", {"rate": 0.1}, process=True),
    "commands_ignored": Kind("commands come and nothing moves"),
    "commands_delayed": Kind("commands are followed `delay_s` late", {"delay_s": 0.2}),
    "controller_inactive": Kind("nobody subscribes to commands any more", process=True),
    "second_publisher": Kind("another node publishes on the command topic", process=True),
    "wrong_message_type": Kind("`topic` (joint_states or commands) is there with another message", {"topic": "joint_states"}, process=True),
    "robot_estop": Kind("the robot stops by itself and takes no commands until it is over"),
    "process_killed": Kind("the robot's process gets SIGKILL", process=True),
    "process_stopped": Kind("the robot's process gets SIGSTOP, and SIGCONT when it is over", process=True),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault and when it happens."""

    what: str
    """A name of `KINDS`."""
    after: Event = "start"
    """What its time is counted from: the start of the robot, the last reset of the scene, or the first command or motion since."""
    at_s: float = 0.0
    """Seconds after that event."""
    for_s: float | None = None
    """Seconds that it lasts; None for ever."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and names of this kind of fault; what is left out is as in `KINDS`."""

    def __post_init__(self) -> None:
        if self.what not in KINDS:
            raise unknown("fault", self.what, KINDS)
        known = KINDS[self.what].parameters
        for name, value in self.parameters.items():
            if name not in known:
                raise InputError(f"fault {self.what!r} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
            wanted = str if isinstance(known[name], str) else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool) or (not isinstance(value, str) and not isfinite(value)):
                raise InputError(f"fault {self.what!r}: parameter {name} is {value!r}, expected something like {known[name]!r}")
        if not (isfinite(self.at_s) and self.at_s >= 0) or not (self.for_s is None or (isfinite(self.for_s) and self.for_s > 0)):
            raise InputError(f"fault {self.what!r}: at_s {self.at_s} must be 0 or more, for_s {self.for_s} above 0 or null")
        if self.what == "wrong_message_type" and self["topic"] not in ("joint_states", "commands"):
            raise InputError(f"fault {self.what!r}: topic {self['topic']!r} is not known; known are joint_states, commands")

    def __getitem__(self, name: str) -> Any:
        """A parameter, or what it is if left out."""
        return self.parameters.get(name, KINDS[self.what].parameters[name])


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """All faults of one run."""

    faults: tuple[Fault, ...] = ()
    seed: int = 0
    """Of every chance."""

    def check_in_process(self) -> None:
        """Refuse what only a process can do.

        Raises:
            InputError: names it.
        """
        for fault in self.faults:
            if KINDS[fault.what].process:
                raise InputError(f"fault {fault.what!r} needs a robot in a process of its own: sinew robot --faults FILE")


def load_schedule(path: Path | str) -> Schedule:
    """Read a schedule.

    Raises:
        InputError: there is no such file, it is not JSON, or names faults, parameters or times that do not exist.
    """
    return read_config(Schedule, Path(path), "faults")
