"""Calibrating on a robot: it takes the views itself, and what it took is solved as any other session is."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.errors import InputError, SafetyStop
from sinew.progress import Progress

if TYPE_CHECKING:
    from calibration.boards import Board
    from calibration.camera import Camera
    from calibration.model import Mount
    from calibration.next_view import Goal
    from calibration.results import Mounted
    from calibration.routine import Outcome, Pace
    from robot_bridge.calibrating.hand import Hand
    from robot_bridge.calibrating.scene import Truth
    from robot_bridge.gate import Operator
    from robot_bridge.robots import RobotConfig
    from sinew.protocols import Robot

UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6}
RAD_PER_M = 2.9
"""Where only one is wanted: 0.3 mm go with 0.05 degrees, as far as a corner moves at 35 cm."""
SPEED, SIM_SPEED = 0.1, 0.5
SIM_CAMERA_HZ, SIM_SIZE = 5.0, (480, 640)
WHERE = {"in_hand": "table", "to_hand": "hand"}


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """A robot on the network."""

    robot_config: str | None = None
    """Which robot: a name of 'sinew robot list' or a file of 'sinew robot add'; our simulated arm if left out."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: str | None = None
    """LOCALHOST, SUBNET, or the network interface that DDS keeps to; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if left out."""
    timeout: float = 10.0
    """Seconds to wait for the robot and its camera."""


@dataclass(frozen=True, kw_only=True)
class RobotArgs(NetworkArgs):
    """A robot that takes the views itself, slowly and through the safety gate."""

    robot: Literal["sim", "dds", "ros2"] | None = None
    """Let a robot take the views: sim in this process, dds or ros2 over the network."""
    controller: str = ""
    """Kind of controller that drives it, as trajectory; the usual one of its contract if left out."""
    gripper_controller: str = ""
    """Kind of its gripper's controller; likewise."""
    arm: int = 0
    """Which of several arms moves, from 0 on."""
    accuracy: str = "0.3mm"
    """A robot stops taking views at this standard deviation of the camera's place, as 0.5mm or 0.5mm,0.1deg."""
    views_max: int = 25
    """Views at which it ends though the wanted accuracy is not reached."""
    speed: float | None = None
    """Share of the joints' largest speed, 0.1 if left out, or 0.5 of a simulated robot; the hand keeps below 0.25 m/s in any case."""
    floor: float | None = None
    """The tool stays above this height, m: higher than the workspace's own where a board or camera hangs below it."""
    session: Path | None = None
    """Folder that every picture goes to as it is taken; inside of the result's if left out."""
    resume: bool = False
    """Go on with the views that are in that folder."""
    yes: bool = False
    """Move without asking first."""
    e_stop_topic: str = "/sinew/e_stop"
    """std_msgs/Bool that stops the robot, with a service of the same name; '' for none."""
    truth: Path | None = None
    """What 'sinew robot --board --truth FILE' wrote, to tell how far off the result is."""


def check(args: Any) -> None:
    """Refuse what cannot be before anything is loaded or moves.

    Raises:
        InputError: names the option.
    """
    if len(args.camera) != 1:
        raise InputError(f"--robot {args.robot} needs the one camera that is to be calibrated: --camera NAME")
    if args.robot == "sim" and (args.domain is not None or args.reach is not None):
        raise InputError("--domain and --reach are for robots on the network: leave them out, or give --robot dds")
    if (args.controller or args.gripper_controller) and args.robot_config is None:
        raise InputError("--controller and --gripper-controller are for robots of --robot-config: give it, or leave them out")
    if args.views_max < 3:
        raise InputError(f"--views-max {args.views_max}: at least 3 are needed, 10 or more are better")
    if args.speed is not None and not 0 < args.speed <= 1:
        raise InputError(f"--speed {args.speed:g}: a share of the joints' largest speed is above 0 and at most 1")
    if not args.timeout > 0:
        raise InputError(f"--timeout {args.timeout:g} must be above 0 s")
    if args.e_stop_topic and not args.e_stop_topic.startswith("/"):
        raise InputError(f"--e-stop-topic {args.e_stop_topic}: give an absolute name, as /sinew/e_stop, or '' for none")
    if args.robot != "sim" and not args.yes and not sys.stdin.isatty():
        raise InputError("the robot is going to move and there is no terminal to ask in: give --yes once its way is free")


def accuracy(given: str) -> Goal:
    """The accuracy that is wanted, of "0.5mm", "0.1deg" or "0.5mm,0.1deg".

    Raises:
        InputError: it is none.
    """
    import numpy as np

    from calibration.next_view import Goal

    found: dict[str, float] = {}
    for part in given.replace("/", ",").split(","):
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(m|cm|mm|um|deg|rad)\s*", part)
        try:
            value = float(match[1]) if match else float("nan")
        except ValueError:
            value = float("nan")
        kind = "" if match is None else "rad" if match[2] in ("deg", "rad") else "m"
        if match is None or not value > 0 or kind in found:
            raise InputError(f"--accuracy {given}: give a standard deviation with its unit, as 0.5mm, or 0.5mm,0.1deg")
        found[kind] = value * UNITS[match[2]] if kind == "m" else float(np.deg2rad(value)) if match[2] == "deg" else value
    position = found.get("m", found.get("rad", 0.0) / RAD_PER_M)
    return Goal(position_m=position, rotation_rad=found.get("rad", RAD_PER_M * position))


@dataclass(frozen=True)
class Station:
    """A robot that is to be calibrated, not connected yet."""

    robot: Robot
    hand: Hand
    camera: Camera
    config: RobotConfig | None
    chains: Any
    clock: Any
    truth: Truth | None
    camera_frame: str = ""
    """Of its optical axes, as its driver calls it."""


def take(args: Any, board: Board, mount: Mount, folder: Path, goal: Goal, pace: Pace, lens: Camera | None) -> dict[str, Any]:
    """Let a robot take the views of a session.

    Args:
        args: of a verb with `RobotArgs` and `camera`.
        board: what is looked at.
        mount: where the camera is.
        folder: of the session.
        goal: the wanted accuracy.
        pace: how long to try.
        lens: the camera's intrinsics; None for what the driver tells.

    Returns:
        "taken", how it ended; "truth" of a simulation, or None; "frames", names of the base's, the hand's and the camera's.

    Raises:
        SafetyStop: the robot holds; what it took is kept.
    """
    from robot_bridge.calibrating.cell import calibrating
    from robot_bridge.calibrating.mover import Care
    from robot_bridge.calibrating.taking import take_views
    from robot_bridge.gate import Operator
    from sinew.cli.console_progress import ConsoleProgress

    care = Care(speed=args.speed or (SIM_SPEED if args.robot == "sim" else SPEED))
    with ExitStack() as stack:
        progress = stack.enter_context(ConsoleProgress())
        operator = Operator()
        station = _station(args, board, mount, lens, stack)
        confirm = stack.enter_context(_attended(args, operator, progress))
        mover = stack.enter_context(
            calibrating(
                station.robot, station.hand, args.camera[0], config=station.config, chains=station.chains,
                floor_m=_floor(args, mount, board), care=care, operator=operator, clock=station.clock, timeout_s=args.timeout,
            )
        )  # fmt: skip
        try:
            outcome = take_views(
                mover, folder, board, station.camera, mount, goal=goal, pace=pace, resume=args.resume, confirm=confirm, progress=progress,
                seed=args.seed,
            )  # fmt: skip
        except SafetyStop as e:
            raise SafetyStop(f"{e}{_kept(folder)}") from None
    frames = (station.hand.base_frame, station.hand.hand_frame, station.camera_frame)
    return {"taken": told(outcome, folder), "truth": station.truth, "frames": frames}


def check_views(args: Any, stored: Mounted, board: Board) -> Path:
    """Let a robot take enough views to judge a calibration by; the folder of their session."""
    from itertools import count

    from calibration.routine import Pace

    check(args)
    place = args.result if args.result.is_dir() else args.result.parent
    free = next(place / f"check-{i}" for i in count(1) if not (place / f"check-{i}").exists())
    folder = args.session or free
    take(args, board, stored.mount, folder, accuracy(args.accuracy), Pace(least=min(6, args.views_max), most=args.views_max), stored.camera)
    return folder


def told(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """How the routine ended, JSON-able."""
    import numpy as np

    worst = [float(np.sqrt(np.linalg.eigvalsh(outcome.covariance[s, s]).max())) for s in (slice(0, 3), slice(3, 6))]
    return {
        "views": len(outcome.views), "reached": outcome.reached, "why": outcome.why, "worst_m": worst[0], "worst_rad": worst[1],
        "session": str(folder), "rejected": outcome.rejected,
    }  # fmt: skip


def error(truth: Truth | None, args: Any, T: Any) -> dict[str, float] | None:
    """How far a result is from the truth of a simulation; None where nobody knows it."""
    import numpy as np

    if args.truth is not None:
        from robot_bridge.calibrating.scene import Truth as Known

        truth = Known.load(args.truth)
    if truth is None:
        return None
    off_m, off_rad = truth.error(np.asarray(T, dtype=float))
    return {"mm": 1e3 * off_m, "deg": float(np.rad2deg(off_rad))}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What there is to say to a person about the taking of the views."""
    import numpy as np

    taken = result.get("taken")
    if taken is not None:
        worst = f"{1e3 * taken['worst_m']:.2f} mm and {np.rad2deg(taken['worst_rad']):.3f} degrees in the worst direction"
        yield f"{taken['views']} views in {taken['session']}: {taken['why']}, {worst}"
    if result.get("error") is not None:
        yield f"off the simulation's truth by {result['error']['mm']:.3f} mm and {result['error']['deg']:.4f} degrees"


# ---------------------------------------------------------------- the robot


def _station(args: Any, board: Board, mount: Mount, lens: Camera | None, stack: ExitStack) -> Station:
    from robot_bridge.calibrating.hand import hand_of, hand_of_task

    config = robot_of(args)
    if args.robot == "sim":
        return _simulated(args, config, board, mount, lens, stack)
    if config is None:
        from robot_bridge import DdsRobot
        from sim import make_interface

        interface = make_interface("reach")
        hand, chains = hand_of_task(interface), interface.chains
        robot: Any = DdsRobot(
            interface.robot_spec, cameras=args.camera, domain=args.domain, reach=args.reach, name="sinew_calibrate", transport=args.robot
        )
    else:
        from robot_bridge.ros_robot import RosRobot
        from robot_bridge.transport import open_transport

        hand, chains = hand_of(config, args.arm, args.hand_frame), None
        node = open_transport(args.robot, "sinew_calibrate", domain=args.domain, reach=args.reach)
        robot = RosRobot(config, node, cameras=args.camera)
    stack.callback(robot.close)
    robot.connect(args.timeout)
    lens, frame = _lens(robot, args, lens)
    return Station(robot, hand, lens, config, chains, None, None, frame)


def _lens(robot: Any, args: Any, given: Camera | None) -> tuple[Camera, str]:
    """The intrinsics, given or as the camera's driver tells them, and the name of its optical frame where it tells that."""
    from robot_bridge.calibrating.feed import lens, picture_topic

    try:
        told, frame = lens(robot.node, picture_topic(args.camera[0], robot.contract)[0], args.timeout)
    except InputError:
        if given is None:
            raise
        return given, ""
    return given or told, frame


def _simulated(args: Any, config: RobotConfig | None, board: Board, mount: Mount, lens: Camera | None, stack: ExitStack) -> Station:
    """A simulated robot of this process, stepped as fast as it can be."""
    from calibration.camera import Camera as Lens
    from robot_bridge import SimRobot, SteppedClock
    from robot_bridge.calibrating.hand import hand_of, hand_of_task
    from robot_bridge.calibrating.scene import PLACES, robot_scene, task_scene
    from sim.render import camera_matrix

    place = WHERE[mount]
    name = PLACES[place][1]
    if args.camera[0] != name:
        raise InputError(f"--camera {args.camera[0]}: the simulated camera {'on' if mount == 'in_hand' else 'beside'} the robot is {name}")
    physics: Any
    if config is None:
        physics, truth = task_scene(board, place, args.seed)
        interface = physics.interface
        hand, spec, model, chains = hand_of_task(interface), interface.robot_spec, physics.scene.model, interface.chains
    else:
        hand = hand_of(config, args.arm, args.hand_frame)
        physics, truth = robot_scene(config, board, place, args.seed, arm=args.arm, hand_frame=args.hand_frame)
        spec, model, chains = config.spec, physics.model, None
    stack.callback(physics.close)
    clock = SteppedClock()
    robot = SimRobot(physics, spec, cameras=(name,), camera_rate_hz=SIM_CAMERA_HZ, image_size=SIM_SIZE, clock=clock)
    known = lens or Lens.from_matrix(camera_matrix(model, name, *SIM_SIZE), [0.0] * 5, SIM_SIZE[1], SIM_SIZE[0])
    return Station(robot, hand, known, config, chains, clock, truth)


def robot_of(args: Any) -> RobotConfig | None:
    """The robot as data; None for our simulated arm."""
    if args.robot_config is None:
        return None
    from robot_bridge.robots import load_robot

    return load_robot(args.robot_config).with_controller(getattr(args, "controller", ""), getattr(args, "gripper_controller", ""))


def _floor(args: Any, mount: Mount, board: Board) -> float | None:
    """The least height of the tool: a board in the hand reaches below it."""
    return 0.5 * max(board.size_m) if args.floor is None and mount == "to_hand" else args.floor


@contextmanager
def _attended(args: Any, operator: Operator, progress: Progress) -> Iterator[Callable[[str], bool] | None]:
    """Everything that stops the robot; gives the question before it moves."""
    from robot_bridge.switches import StopTopic, TerminalKeys, stop_signals

    with ExitStack() as stack:
        stack.enter_context(stop_signals(operator))
        if args.robot != "sim" and args.e_stop_topic:
            topic = StopTopic(operator, args.e_stop_topic, backend=args.robot, domain=args.domain, reach=args.reach)
            stack.callback(topic.close)
        keys = None
        if args.robot != "sim" and sys.stdin.isatty():
            keys = TerminalKeys(operator, tell=progress.note)
            stack.callback(keys.close)
            progress.note("any key stops the robot")
        if args.yes or keys is None:
            yield None
        else:
            asked = keys
            yield lambda what: asked.ask(f"{what}: is the way free? y goes on") == "y"


def _kept(folder: Path) -> str:
    """What a routine that was cut short leaves."""
    poses = folder / "poses.jsonl"
    count = len(poses.read_text().splitlines()) if poses.exists() else 0
    return f"; {count} pictures are kept: --resume goes on, 'sinew calibrate handeye --data {folder}' solves them" if count else ""
