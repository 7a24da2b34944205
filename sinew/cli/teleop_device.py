"""A person's device as the command line opens it: for which robot, on which network, and for which actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from sinew.errors import InputError

if TYPE_CHECKING:
    from robot_bridge.takeover import Takeover
    from sinew.cli.collect import Args
    from sinew.specs import ActionSpec

Action = Literal["ee_delta", "joint_position"]


def checked(args: Args, pages: tuple[str, ...]) -> None:
    """Refuse a device that there is not, and options that belong to another.

    Args:
        args: of `sinew collect`.
        pages: devices that are a page in a browser.

    Raises:
        InputError: names the option.
    """
    if args.teleop is None:
        for name in ("teleop_config", "teleop_events", "action"):
            if getattr(args, name):
                raise InputError(f"--{name.replace('_', '-')} is for a person's demonstrations: give --teleop")
        return
    from robot_bridge.teleop.devices import check_device

    check_device(args.teleop, args.teleop_config, pages)
    if args.teleop_events and not args.teleop_events.startswith("/"):
        raise InputError(f"--teleop-events {args.teleop_events}: a topic begins with /, as /sinew/teleop/event")


def action_of(args: Args) -> Action:
    """What is recorded as action: as asked, or joints for a device that speaks of joints, and displacements of the tool for others."""
    if args.action is not None:
        return args.action
    device = args.teleop or ""
    if device == "leader" or (device.startswith("lerobot:") and device.endswith("leader")):
        return "joint_position"
    if device == "topic" and args.teleop_config:
        from robot_bridge.teleop.topics.config import load_topics

        if any(source.message == "sensor_msgs/JointState" for source in load_topics(args.teleop_config[0]).sources):
            return "joint_position"
    return "ee_delta"


def joint_action(config: Any, rate_hz: float) -> ActionSpec:
    """Joint targets of a robot, at a rate.

    Raises:
        InputError: its contract commands something else.
    """
    from dataclasses import replace

    action = config.contract.action
    if action is None or action.kind != "joint_position":
        kind = "nothing" if action is None else action.kind
        raise InputError(f"robot {config.spec.name} is commanded by {kind}, not by joint positions: give --action ee_delta")
    return replace(action, rate_hz=rate_hz)


def open_device(args: Args, interface: Any, tell: Callable[[str], None]) -> Takeover:
    """The device of `sinew collect`.

    Args:
        args: of the command.
        interface: of the task.
        tell: gets lines for the person.

    Raises:
        InputError: it is not there, or it does not fit the robot.
        MissingDependency: its package is not installed.
    """
    from robot_bridge.teleop import devices

    assert args.teleop is not None
    network = args.robot if args.robot in ("dds", "ros2") else "dds"
    choice = devices.Choice(
        name=args.teleop, robot=interface.robot_spec, arms=arms_of(interface), step=interface.tool_step,
        rate_hz=interface.action_spec.rate_hz, files=args.teleop_config, frame=args.frame, events=args.teleop_events,
        transport=network, domain=args.domain, reach=args.reach,
    )  # fmt: skip
    return devices.open_device(choice, tell)


def arms_of(interface: Any) -> int:
    """How many arms a person moves: of a robot as data, or of a simulated task."""
    config = getattr(interface, "config", None)
    return len(interface.chains) if config is None else config.arms
