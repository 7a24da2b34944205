"""Watch cameras for bumps while a robot works, or look for one in what was recorded."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli.calibrate_robot import NetworkArgs
from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.boards import Board
    from calibration.drift import DriftMonitor
    from calibration.results import Mounted
    from robot_bridge.drift_watch import DriftWatch
    from sinew.se3 import Array

NICENESS = 10
"""Looking at pictures gives way to whatever controls the robot."""
MOVED = 2
"""Exit code where a mount has moved."""
READY = "watching"


@dataclass(frozen=True, kw_only=True)
class WatchArgs(NetworkArgs):
    """Watch cameras for bumps: beside a robot that works, until Ctrl-C, or in what was recorded. The robot is never commanded."""

    result: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Results of sinew calibrate: folders, or CAMERA=FOLDER where the robot calls the camera otherwise."""
    robot: Literal["sim", "dds", "ros2"] | None = None
    """dds, ros2: a robot on the network, beside whatever commands it; sim: a simulated one with a board, which goes around."""
    data: Path | None = None
    """Pictures with poses instead, of any kind that 'handeye' reads; a camera's number there is its place among the results."""
    board: Path | None = None
    """board.json of what the cameras may see, or a session that has one; the board of the calibration if left out."""
    on: Literal["base", "hand"] | None = None
    """Where that board or tag is: on the ground that the robot stands on, or on its hand; where the calibration had it if left out."""
    remember: Path | None = None
    """File that keeps where boards are from one watch to the next: a bump in between is then found too."""
    rate: float = 2.0
    """Pictures per second and camera that are looked at."""
    duration: float | None = None
    """Seconds after which it ends by itself."""
    until_moved: bool = False
    """End at the first alarm."""
    hold_on_drift: bool = False
    """Stop the deployment, on --e-stop-topic, as long as something has moved."""
    e_stop_topic: str = "/sinew/e_stop"
    """std_msgs/Bool that stops it."""
    arm: int = 0
    """Which of several arms carries camera or board, from 0 on."""
    hand_frame: str = ""
    """Its hand, as the calibration had it; the tool of the robot's config if left out."""
    pictures: int = 60
    """Pictures that are taken with --robot sim."""
    with_parent: bool = False
    """End when the process that started this one ends; Linux only."""
    seed: int = 0
    """Of the simulated scene."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: WatchArgs) -> dict[str, Any]:
    """Watch, and tell what was seen.

    Raises:
        InputError: no such calibration, data or robot, or options that do not go together.
    """
    from calibration.drift import DriftMonitor
    from calibration.results import read_named

    _check(args)
    cameras = read_named(args.result)
    if len({m.scale for m in cameras}) > 1:
        raise InputError("the results tell of boards of several sizes: watch them one by one")
    monitor = DriftMonitor(cameras)
    _recall(args.remember, monitor)
    if args.data is not None:
        result = _recorded(args, cameras, monitor)
    else:
        result = _living(args, cameras, monitor)
    if args.remember is not None and result["holds"]:
        from sinew.rundir import write_json

        write_json(args.remember, monitor.remember())
    return {"action": "watch", **result}


def exit_code(result: dict[str, Any]) -> int:
    """0, or 2 where something has moved."""
    return MOVED if result["holds"] is False else 0


def _check(args: WatchArgs) -> None:
    if not args.result:
        raise InputError("which calibration? give the folder of one")
    if (args.data is None) == (args.robot is None):
        raise InputError("give either --robot sim, dds or ros2, which is watched, or --data, what was recorded")
    if args.robot in (None, "sim"):
        for given, option in ((args.domain, "--domain"), (args.reach, "--reach"), (args.hold_on_drift or None, "--hold-on-drift")):
            if given is not None:
                raise InputError(f"{option} is for a robot on the network: leave it out, or give --robot dds or ros2")
    if args.hold_on_drift and not args.e_stop_topic.startswith("/"):
        raise InputError(f"--e-stop-topic {args.e_stop_topic}: give an absolute name, as /sinew/e_stop")
    if not 0 < args.rate <= 30 or (args.duration is not None and not args.duration > 0) or args.pictures < 1:
        raise InputError(f"--rate {args.rate:g} must be above 0 and at most 30 a second, --duration and --pictures above 0")


def _recall(path: Path | None, monitor: DriftMonitor) -> None:
    from sinew.rundir import read_json

    if path is not None and path.exists():
        monitor.recall(read_json(path), str(path))


def boards_of(results: Sequence[str], given: Path | None, cameras: Sequence[Mounted]) -> dict[str, Board]:
    """What each camera may see, by its name.

    Raises:
        InputError: nobody tells.
        DataError: the file is damaged.
    """
    from calibration.boards import Board
    from calibration.results import read_board, read_named
    from sinew.config import read_config

    if given is not None:
        path = given / "board.json" if given.is_dir() else given
        board = read_config(Board, path, "--board")
        return {m.name: board for m in cameras}
    found: dict[str, Board] = {}
    for result in results:
        path = Path(result if Path(result).exists() else result.partition("=")[2])
        board = read_board(path)
        if board is None:
            raise InputError(f"{path} does not tell which board it was made with: give --board board.json, or a session that has one")
        found |= {m.name: board for m in read_named([result])}
    return found


# ---------------------------------------------------------------- what was recorded


def _recorded(args: WatchArgs, cameras: Sequence[Mounted], monitor: DriftMonitor) -> dict[str, Any]:
    """Take in the pictures of a session in the order of their stamps."""
    from dataclasses import replace

    import numpy as np

    from calibration.drift import Drift, Picture
    from calibration.foreign import read_session
    from calibration.session import find_views
    from robot_bridge.drift_watch import told
    from sinew.cli.console_progress import ConsoleProgress

    assert args.data is not None  # checked
    session = read_session(args.data)
    if len(session.cameras) > len(cameras):
        raise InputError(f"{args.data} has {len(session.cameras)} cameras, the results have {', '.join(m.name for m in cameras)}")
    if args.board is not None:
        session = replace(session, board=boards_of((), args.board, cameras)[cameras[0].name])
    shots = sorted(session.shots, key=lambda s: (s.stamp_ns is None, s.stamp_ns or 0))
    known = tuple(m.camera for m in cameras[: len(session.cameras)])
    session = replace(session, shots=tuple(shots), cameras=known, mount=cameras[0].mount)
    with ConsoleProgress() as progress:
        found = find_views(session, progress=progress)
    views, rejected = found.views, dict(found.rejected)
    last: Drift | None = None
    for i in range(len(views)):
        seen = views.seen[i]
        name, robot = cameras[views.camera[i]].name, views.robot[views.pose[i]]
        points, pixels, sigma = (each[i, seen] for each in (views.points, views.pixels, views.sigma))
        picture = Picture(camera=name, robot=robot, points=points, pixels=pixels, sigma=sigma, on=args.on)
        try:
            drift = monitor.see(picture)
        except InputError as e:
            rejected[views.names[i]] = str(e)
            continue
        if np.isnan(drift.chance):
            rejected[views.names[i]] = "its corners fit no board"
        last = drift
    return {**told(last), "pictures": len(views), "rejected": rejected}


# ---------------------------------------------------------------- a robot


def _living(args: WatchArgs, cameras: Sequence[Mounted], monitor: DriftMonitor) -> dict[str, Any]:
    boards = boards_of(args.result, args.board, cameras)
    if args.with_parent:
        from sinew.cli.robot import end_with_parent

        end_with_parent()
    with ExitStack() as stack:
        if args.robot == "sim":
            return _simulated(args, cameras, monitor, boards, stack)
        return _networked(args, cameras, monitor, boards, stack)


def _networked(
    args: WatchArgs, cameras: Sequence[Mounted], monitor: DriftMonitor, boards: dict[str, Board], stack: ExitStack
) -> dict[str, Any]:
    """Look at a robot on the network until Ctrl-C; the robot is only read."""
    from robot_bridge.calibrating.hand import hand_of, hand_of_task
    from robot_bridge.dds_robot import task_robot
    from robot_bridge.drift_watch import Diagnostics, DriftWatch, keep_watching, only_looking
    from robot_bridge.ros_robot import RosRobot
    from robot_bridge.transport import open_transport
    from sinew.cli.calibrate_robot import robot_of

    names, config = [m.name for m in cameras], robot_of(args)
    if config is None:
        from sim import make_interface

        interface = make_interface("reach")
        config, hand = task_robot(interface.robot_spec, names), hand_of_task(interface)
    else:
        hand = hand_of(config, args.arm, args.hand_frame)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    quit_event = stack.enter_context(_until_interrupted())
    node = open_transport(str(args.robot), "sinew_watch", domain=args.domain, reach=args.reach)
    robot = RosRobot(only_looking(config), node, cameras=names)
    stack.callback(robot.close)
    robot.connect(args.timeout)
    watch = DriftWatch(robot, hand, cameras, boards, on=args.on, monitor=monitor, rate_hz=args.rate)
    diagnostics = Diagnostics(node, watch, args.e_stop_topic if args.hold_on_drift else "")
    _say(f"{READY} {', '.join(names)} of robot {config.spec.name}, DDS domain {node.domain} ({node.reach}); Ctrl-C ends it")
    keep_watching(watch, quit_event, _say, diagnostics, until_moved=args.until_moved, duration_s=args.duration)
    return watch.summary()


def _simulated(
    args: WatchArgs, cameras: Sequence[Mounted], monitor: DriftMonitor, boards: dict[str, Board], stack: ExitStack
) -> dict[str, Any]:
    """A simulated robot that goes around before a board, or with one, as one does that works."""
    from robot_bridge.calibrating.cell import calibrating
    from robot_bridge.drift_watch import DriftWatch
    from sinew.cli.calibrate_robot import _floor, robot_of
    from sinew.cli.calibrate_robot import _simulated as station_of

    if len(cameras) > 1:
        raise InputError(f"--robot sim has one camera; the results have {', '.join(m.name for m in cameras)}")
    stored = cameras[0]
    given = _Given(camera=(stored.name,), seed=args.seed, arm=args.arm)
    station = station_of(given, robot_of(args), boards[stored.name], stored.mount, None, stack)
    floor_m = _floor(given, stored.mount, boards[stored.name])
    moving = calibrating(
        station.robot, station.hand, stored.name, config=station.config, chains=station.chains, floor_m=floor_m, clock=station.clock
    )
    mover = stack.enter_context(moving)
    now_ns = station.clock.now_ns
    watch = DriftWatch(station.robot, station.hand, cameras, boards, on=args.on, monitor=monitor, rate_hz=args.rate, now_ns=now_ns)
    home, count = station.hand.pose(station.robot.read().values["joint_position"]), 0
    while count < args.pictures and not (args.until_moved and not watch.holds):
        for pose in around(home, stored.mount):
            with contextlib.suppress(InputError):  # a pose that cannot be reached: the next one
                mover.move(pose)
            _dwell(station.clock, watch)
            count = watch.watched[stored.name].pictures
            if count >= args.pictures or (args.until_moved and not watch.holds):
                break
    if not watch.holds and watch.drift is not None:
        _say(watch.drift.told)
    return watch.summary()


DWELL_S = 1.0
TURN_RAD, BEFORE_M = 0.25, 0.3


def around(T_base_hand: Array, mount: str) -> list[Array]:
    """Poses (4, 4) turned about one from which a board is seen; a camera on the hand turns about what is before it."""
    import numpy as np

    from sinew.se3 import se3, so3_exp

    pivot, made = np.array([0.0, 0.0, BEFORE_M if mount == "in_hand" else 0.0]), [T_base_hand]
    for turn in ([1, 0, 0], [0, 1, 0], [-1, 0, 1], [0, -1, -1], [1, 1, 0], [-1, 1, 1], [1, -1, 0], [0, 0, 2], [-1, -1, 0]):
        rotation = so3_exp(TURN_RAD * np.array(turn, dtype=float))
        made.append(T_base_hand @ se3(rotation, pivot - rotation @ pivot))
    return made


def _dwell(clock: Any, watch: DriftWatch) -> None:
    """Stand for a while and look."""
    end_ns = clock.now_ns() + int(DWELL_S * 1e9)
    while clock.now_ns() < end_ns:
        clock.wait_until(clock.now_ns() + 50_000_000)
        watch.look()


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What a simulated station is made from."""

    camera: tuple[str, ...] = ()
    seed: int = 0
    arm: int = 0
    floor: float | None = None


@contextlib.contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    event = threading.Event()
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(result: dict[str, Any], console: Console) -> None:
    """What was seen."""
    for name, why in result.get("rejected", {}).items():
        console.print(f"left out {name}: {why}", style="yellow", markup=False)
    for camera in result.get("cameras", {}).values():
        passed = sum(camera["passed_over"].values())
        console.print(f"{camera['told']}; {passed} of {camera['pictures']} pictures passed over", markup=False)
    console.print(result["told"], markup=False)
