"""Robots as data: list those that are known, show one, or make a config for another from its URDF or from the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from robot_bridge.robots import RobotConfig


@dataclass(frozen=True, kw_only=True)
class List:
    """The robots that are known."""

    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Limits, controllers, cameras and sources of a robot; with --json all of it."""

    name: Annotated[str, tyro.conf.Positional]
    """Name, or file of a config."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


@dataclass(frozen=True, kw_only=True)
class Add:
    """Make a config from a URDF or from /robot_description, and write it as JSON for `--robot-config`."""

    name: Annotated[str, tyro.conf.Positional]
    """What the robot is called."""
    urdf: Path | None = None
    """URDF file."""
    from_network: bool = False
    """Read /robot_description, joint states and controllers of a living robot."""
    out: Path | None = None
    """File to write; NAME.json here if left out."""
    joints: tuple[str, ...] = ()
    """Arm joints, base to tool; those on the way to the tool if left out."""
    tool: str = ""
    """Link between the fingers; the end of the longest chain of joints if left out."""
    gripper: str = ""
    """Joint that drives the gripper; found by its name if left out."""
    opening: tuple[float, ...] = ()
    """Openings in metres at the gripper joint's lower and upper limit; the joint's own where it slides."""
    velocity: tuple[float, ...] = ()
    """Largest joint speeds, rad/s: one or one for each joint; the URDF's if left out."""
    acceleration: tuple[float, ...] = ()
    """Largest joint accelerations, rad/s², likewise; if left out the full speed in 0.5 s, and marked as derived."""
    home: tuple[float, ...] = ()
    """Home pose, rad, one for each joint."""
    namespace: str = ""
    """Namespace of the robot's topics and controllers, as /left."""
    rate: float = 100.0
    """Commands per second that the controller expects."""
    transport: Literal["dds", "ros2"] = "dds"
    """How the network is spoken to."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: str | None = None
    """LOCALHOST, SUBNET, or the network interface that DDS keeps to, as eth0; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if
    left out."""
    timeout: float = 10.0
    """Seconds to wait for the description."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


Args = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Add, tyro.conf.subcommand("add")]
)


def run(args: List | Show | Add) -> dict[str, Any]:
    """Do what the subcommand says.

    Raises:
        InputError: no such robot or file, or limits are missing.
    """
    from robot_bridge.robots import ROBOTS, load_robot

    if isinstance(args, List):
        return {"action": "list", "robots": [_row(load_robot(name)) for name in ROBOTS]}
    if isinstance(args, Show):
        return {"action": "show", **_told(load_robot(args.name))}
    config = _made(args)
    path = args.out or Path(f"{args.name}.json")
    config.save(path)
    return {"action": "add", "file": str(path), **_told(config)}


def _made(args: Add) -> RobotConfig:
    from robot_bridge.robots import ROBOTS
    from robot_bridge.robots.add import Choice, from_network, from_urdf
    from robot_bridge.robots.urdf import urdf_file

    if (args.urdf is None) != args.from_network:
        raise InputError("give either --urdf FILE or --from-network")
    if args.name in ROBOTS:
        raise InputError(f"robot {args.name!r} is known already; 'sinew robot show {args.name}', or choose another name")
    choice = Choice(
        joints=args.joints, tool=args.tool, gripper=args.gripper, opening_m=args.opening, velocity=args.velocity,
        acceleration=args.acceleration, home=args.home, namespace=args.namespace, rate_hz=args.rate,
    )  # fmt: skip
    if args.urdf is not None:
        return from_urdf(args.name, urdf_file(args.urdf), choice)
    from robot_bridge.transport import open_transport

    node = open_transport(args.transport, "sinew_robot_add", domain=args.domain, reach=args.reach)
    try:
        return from_network(args.name, node, choice, args.timeout)
    finally:
        node.close()


def _row(config: RobotConfig) -> dict[str, Any]:
    """One line of the list."""
    spec = config.spec
    return {
        "name": spec.name,
        "joints": len(spec.joint_names),
        "arms": config.arms,
        "gripper_m": [spec.gripper_low_m, spec.gripper_high_m] if spec.gripper_name else None,
        "rate_hz": spec.rate_hz,
        "controllers": list(dict.fromkeys(sink.kind for sink in config.contract.sinks)),
        "alternatives": list(dict.fromkeys(sink.kind for sink in config.alternatives)),
        "cameras": list(config.contract.cameras),
    }


def _told(config: RobotConfig) -> dict[str, Any]:
    """Everything of a config, and the hash of its contract."""
    from sinew.config import to_json

    return {"robot": to_json(config), "contract_hash": config.contract.hash()}


def show(result: dict[str, Any], console: Console) -> None:
    """Tables of robots, or of one robot's joints and topics."""
    from rich.table import Table

    if result["action"] == "list":
        table = Table("robot", "joints", "gripper", "rate", "controllers", "cameras", box=None)
        for row in result["robots"]:
            grip = "none" if row["gripper_m"] is None else f"{row['gripper_m'][0] * 1e3:g} to {row['gripper_m'][1] * 1e3:g} mm"
            table.add_row(
                row["name"], str(row["joints"]), grip, f"{row['rate_hz']:g} Hz", ", ".join(row["controllers"]), ", ".join(row["cameras"])
            )
        console.print(table)
        return
    robot = result["robot"]
    _show_joints(robot, console)
    contract = robot["contract"]
    for sink in contract["sinks"]:
        console.print(f"{sink['value']} goes to {sink['topic']} ({sink['kind']})", markup=False, highlight=False)
    for source in contract["sources"]:
        console.print(f"{source['key']} comes from {source['topic']}, {source['message']}.{source['field']}", markup=False, highlight=False)
    for field, text in robot["cited"].items():
        console.print(f"source of {field}: {text}", markup=False, highlight=False, soft_wrap=True)
    if robot["derived"]:
        console.print(f"[yellow]derived, check against your robot:[/] {', '.join(robot['derived'])}", highlight=False, soft_wrap=True)
    console.print(f"contract {result['contract_hash'][:16]}", highlight=False)
    if result["action"] == "add":
        console.print(
            f"written: {result['file']}; use it with --robot-config {result['file']}", markup=False, highlight=False, soft_wrap=True
        )


def _show_joints(robot: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    spec = robot["spec"]
    table = Table("joint", "position rad", "rad/s", "rad/s²", "rad/s³", "Nm", "home rad", box=None)
    home = spec["home_rad"] or [None] * len(spec["joint_names"])
    for j, name in enumerate(spec["joint_names"]):
        table.add_row(
            name,
            f"{spec['position_low_rad'][j]:.4g} to {spec['position_high_rad'][j]:.4g}",
            *(f"{values[j]:.4g}" for values in (spec["velocity_max_rad_s"], spec["acceleration_max_rad_s2"])),
            *(f"{robot[field][j]:.4g}" for field in ("jerk_max_rad_s3", "effort_max_nm")),
            "" if home[j] is None else f"{home[j]:.4g}",
        )
    console.print(table)
