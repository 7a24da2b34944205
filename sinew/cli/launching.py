"""What the files in launch/ share: arguments that are checked before anything starts, and the command that they become.

Launch files of ROS 2 are Python; each of ours names a verb and its arguments and leaves the rest to `description`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

from sinew.cli.main import VERBS
from sinew.errors import InputError, MissingDependency

GRACE_S = "10"
"""Seconds that a command may take to bring a robot to rest and finish its files, before it is ended harder."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument of a launch file, and the option of our command that it becomes."""

    name: str
    description: str
    default: str | None = None
    """None where it must be given; an empty one leaves the option out."""
    kind: Literal["text", "flag", "number", "count", "list", "words", "file", "new"] = "text"
    """flag: true or false, becomes --name or --no-name; count: a whole number; list: values separated by spaces; words: a whole
    command line, quoted as in a shell; file: must be there; new: must not."""
    choices: tuple[str, ...] = ()
    low: float = -inf
    high: float = inf
    option: str | None = None
    """Option of the command; None for the name with dashes, empty for a word without one."""
    environment: str = ""
    """Environment variable that gives the default, if it is set."""

    def words(self, value: str) -> list[str]:
        """The words that it adds to a command.

        Raises:
            InputError: the value cannot be; says what can.
        """
        if not value and self.default == "":
            return []
        self._check(value)
        option = "--" + self.name.replace("_", "-") if self.option is None else self.option
        if self.kind == "flag":
            return [option if value == "true" else "--no-" + option.removeprefix("--")]
        if self.kind == "words":
            return _split(self.name, value)
        if self.kind == "list":
            return [option, *value.split()]
        return [option, value] if option else [value]

    def _check(self, value: str) -> None:
        if not value.strip():
            raise InputError(f"{self.name}:= is empty: give {self.description}")
        choices = ("true", "false") if self.kind == "flag" else self.choices
        if choices and value not in choices:
            raise InputError(f"{self.name}:={value}: give one of {', '.join(choices)}")
        if self.kind in ("number", "count"):
            self._check_number(value)
        if self.kind == "file" and not Path(value).is_file():
            raise InputError(f"{self.name}:={value}: no such file")
        if self.kind == "new" and Path(value).exists():
            raise InputError(f"{self.name}:={value} is there already; choose another path")

    def _check_number(self, value: str) -> None:
        between = f"a {'whole ' if self.kind == 'count' else ''}number from {self.low:g} to {self.high:g}"
        try:
            number = int(value) if self.kind == "count" else float(value)
        except ValueError:
            raise InputError(f"{self.name}:={value}: give {between}") from None
        if not isfinite(number) or not self.low <= number <= self.high:
            raise InputError(f"{self.name}:={value}: give {between}")


def _split(name: str, value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError as e:
        raise InputError(f"{name}:={value}: {e}; close the quotes") from None


DOMAIN = Argument(name="domain", description="DDS domain", default="0", kind="count", low=0, high=232, environment="ROS_DOMAIN_ID")
REACH = Argument(
    name="reach", description="how far discovery reaches", default="SUBNET", choices=("LOCALHOST", "SUBNET"),
    environment="ROS_AUTOMATIC_DISCOVERY_RANGE",
)  # fmt: skip
COLLECTION = (
    Argument(name="task", description="what is done: a task of sinew tasks, or with robot:= a sentence", default="lift"),
    Argument(name="out", description="folder of the dataset; one that is there goes on"),
    Argument(name="robot", description="which robot: ur5e, or a file of sinew robot add; that of the task if left out", default="",
             option="--robot-config"),
    Argument(name="teleop_config", description="files of the device, separated by spaces: docs/teleop.md", default="", kind="list"),
    Argument(name="events", description="topic of words: success, failure, discard, pause, intervene, stop", default="/sinew/teleop/event",
             option="--teleop-events"),
    Argument(name="action", description="what is recorded as action; what suits the device if left out", default="",
             choices=("", "ee_delta", "joint_position")),
    Argument(name="frame", description="axes of the person's motions", default="world", choices=("world", "tool")),
    Argument(name="episodes", description="episodes to record", default="100", kind="count", low=1, high=100_000),
    Argument(name="episode_s", description="seconds after which an episode ends", default="60.0", kind="number", low=1, high=3600),
    Argument(name="cameras", description="cameras to record, separated by spaces", default="", kind="list"),
    Argument(name="calibration", description="results of sinew calibrate, separated by spaces", default="", kind="list"),
    Argument(name="transport", description="rclpy, Cyclone DDS alone, or a robot in simulation", default="ros2",
             choices=("ros2", "dds", "sim"), option="--robot"),
    DOMAIN,
    REACH,
)  # fmt: skip
"""What a launch file takes that lets a person demonstrate; the device itself is its own."""
TRANSPORT = Argument(
    name="transport", description="how ROS 2 is spoken: by rclpy, or by Cyclone DDS alone", default="ros2", choices=("ros2", "dds")
)


def command(verb: Sequence[str], arguments: Sequence[Argument], values: Mapping[str, str]) -> list[str]:
    """The command of a launch file.

    Args:
        verb: words after "sinew": ("data", "record").
        arguments: what the file declares.
        values: the value of each.

    Raises:
        InputError: a value cannot be, or the verb is not there yet.
    """
    if verb[0] not in VERBS:
        raise InputError(f"sinew {verb[0]} is not there yet in this version; there are {', '.join(VERBS)}")
    words = [word for argument in arguments for word in argument.words(values[argument.name])]
    return [sys.executable, "-m", "sinew", *verb, *words]


@dataclass(frozen=True, kw_only=True)
class Instead:
    """Another command that a launch file runs where one of its arguments is given."""

    given: str
    """The name of that argument."""
    verb: tuple[str, ...]
    arguments: tuple[Argument, ...]


def description(verb: Sequence[str], arguments: Sequence[Argument], name: str, instead: Instead | None = None) -> Any:
    """The LaunchDescription that checks the arguments and runs the command; when it ends, so does the launch.

    Args:
        verb: words after "sinew".
        arguments: what the file declares.
        name: of the process.
        instead: another command, with arguments that are declared too.

    Raises:
        MissingDependency: ROS 2's launch is not here.
    """
    try:
        actions, events, substitutions = (import_module(f"launch.{part}") for part in ("actions", "events", "substitutions"))
        launch = import_module("launch")
    except ImportError as e:
        raise MissingDependency(f"launch files need ROS 2's launch, which comes with ROS 2: source its setup.bash ({e})") from None

    named = {argument.name: argument for argument in (*(instead.arguments if instead else ()), *arguments)}
    every = tuple(named.values())

    def start(context: Any) -> list[Any]:
        values = {argument.name: substitutions.LaunchConfiguration(argument.name).perform(context) for argument in every}
        end = actions.EmitEvent(event=events.Shutdown(reason=f"{name} ended"))
        if instead is not None and values[instead.given]:
            words = command(instead.verb, instead.arguments, values)
        else:
            words = command(verb, arguments, values)
        return [actions.ExecuteProcess(cmd=words, name=name, output="screen", sigterm_timeout=GRACE_S, on_exit=[end])]

    def declared(argument: Argument) -> Any:
        given: dict[str, Any] = {"description": argument.description}
        if argument.default is not None:
            given["default_value"] = os.environ.get(argument.environment) or argument.default
        if argument.choices or argument.kind == "flag":
            allowed = list(argument.choices) or ["true", "false"]
            given["description"] += f" ({', '.join(allowed)})"
        return actions.DeclareLaunchArgument(argument.name, **given)

    return launch.LaunchDescription([*(declared(argument) for argument in every), actions.OpaqueFunction(function=start)])
