"""A leader arm for teleoperation: which servo is which joint of the robot, which way round, and where its zero is."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.errors import InputError

if TYPE_CHECKING:
    from sinew.protocols import RobotSpec

POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class LeaderArgs:
    """A leader arm of Dynamixel or Feetech servos: asks you to hold it and to move it, and writes what --teleop leader needs."""

    maker: Literal["dynamixel", "feetech"]
    """Whose servos it has."""
    port: str
    """Its serial port, as /dev/ttyACM0, or better a name under /dev/serial/by-id, which stays."""
    robot_config: str | None = None
    """The robot that it shall lead: a name of sinew robot list, or a file."""
    task: str | None = None
    """Or the simulated task whose arm it shall lead."""
    arm: int = 0
    """Which arm of it, of several."""
    ids: tuple[int, ...] = ()
    """Servos of the joints from the base on, and after them that of the handle; 1, 2, 3, … if left out."""
    signs: tuple[int, ...] = ()
    """1 or -1 for each joint, where it is known which way round they turn: nothing is asked about it then."""
    pose: tuple[float, ...] = ()
    """Angles in which the arm is held at first, rad; the robot's home pose if left out."""
    baud: int = 1_000_000
    """Bits per second of the bus."""
    out: Path = Path("leader.json")
    """File to write."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


def run(args: LeaderArgs) -> dict[str, Any]:
    """Go through it with the person at the terminal, and write the file.

    Raises:
        InputError: no terminal, no arm, or no such robot.
    """
    from robot_bridge.teleop.leader.calibrating import Lesson, calibrate
    from robot_bridge.teleop.leader.servos import BusFault, ServoBus, maker_of
    from sinew.config import to_json
    from sinew.rundir import write_json

    if not sys.stdin.isatty():
        raise InputError("calibrating a leader arm asks you to hold and to move it: run it in a terminal")
    robot, arms = _robot(args)
    if not 0 <= args.arm < arms:
        raise InputError(f"--arm {args.arm}: {robot.name} has {arms}, counted from 0")
    width = len(robot.joint_names) // arms
    joints = robot.joint_names[args.arm * width : (args.arm + 1) * width]
    home = robot.home_rad[args.arm * width : (args.arm + 1) * width] or (0.0,) * width
    ids = args.ids or tuple(range(1, width + 1 + (robot.gripper_name is not None)))
    lesson = Lesson(robot=robot.name, arm=args.arm, joints=joints, pose_rad=args.pose or home, ids=ids, signs=args.signs)
    bus = ServoBus(maker_of(args.maker), args.port, args.baud)
    try:
        config = calibrate(bus, lesson, ask, tell)
    except BusFault as e:
        raise InputError(f"the leader arm is gone ({e}); nothing was written") from None
    finally:
        bus.close()
    write_json(args.out, to_json(config))
    return {"action": "leader", "out": str(args.out), **to_json(config)}


def _robot(args: LeaderArgs) -> tuple[RobotSpec, int]:
    if (args.robot_config is None) == (args.task is None):
        raise InputError("give either --robot-config, the robot that the arm shall lead, or --task, whose simulated arm it shall lead")
    if args.task is not None:
        import sim

        interface = sim.make_interface(args.task)
        return interface.robot_spec, len(interface.chains)
    from robot_bridge.robots import load_robot

    config = load_robot(args.robot_config or "")
    return config.spec, config.arms


def ask(question: str, watch: Callable[[], None]) -> None:
    """Show a question on the terminal and wait for Enter; `watch` is called all the while.

    Raises:
        InputError: the terminal is closed.
    """
    tell(question)
    while True:
        watch()
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            data = os.read(sys.stdin.fileno(), 1024)
            if not data:
                raise InputError("the terminal is closed; nothing was written")
            if b"\n" in data:
                return


def tell(line: str) -> None:
    """Show a line."""
    print(line, file=sys.stderr, flush=True)


def lines(result: dict[str, Any]) -> list[str]:
    """What is shown in the end."""
    joints = [f"  {j['name']}: servo {j['id']} ({j['model']}), {'alike' if j['sign'] > 0 else 'turned round'}" for j in result["joints"]]
    return [f"{result['out']}: leads {result['robot']}", *joints, f"sinew collect --teleop leader --teleop-config {result['out']} …"]
