"""Serve a simulated robot over DDS, in ROS 2's wire format: joint states, object poses, images; commands come by topic."""

from __future__ import annotations

import ctypes
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

MAX_RATE_HZ = 1000
PR_SET_PDEATHSIG = 1
"""Number of the request in prctl(2)."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Serve a simulated robot over DDS, in ROS 2's wire format, until Ctrl-C."""

    task: str = "lift"
    """Task whose scene is simulated."""
    robot_config: str | None = None
    """Serve an arm without a scene instead, which speaks as its contract says: a name of sinew robot list, or a file."""
    controller: str = ""
    """Kind of controller that this arm has active, as trajectory; the usual one of its contract if left out."""
    gripper_controller: str = ""
    """Kind of its gripper's controller, as gripper_position; likewise."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: str | None = None
    """LOCALHOST, SUBNET, or the network interface that DDS keeps to, as eth0; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if
    left out."""
    rate: float = 100.0
    """Joint states per second, Hz."""
    board: Literal["table", "hand"] | None = None
    """The arm of the tasks, or that of --robot-config, with a calibration board on the table or in its hand, and nothing else."""
    truth: Path | None = None
    """File that gets where the camera before the board truly is, to compare a calibration with."""
    cameras: tuple[str, ...] = ()
    """Cameras to publish: front, wrist; with a board the one that looks at it if left out."""
    image_size: int | None = None
    """Height and width of the images in pixels; 84, or 480 with a board if left out."""
    camera_rate: float | None = None
    """Images per second; 20, or 5 with a board if left out."""
    compressed: bool = False
    """Publish JPEG images besides raw ones."""
    faults: Path | None = None
    """What shall go wrong on purpose, a file of JSON: see docs/faults.md."""
    trace: Path | None = None
    """File that gets a line of JSON per tick: time, commands taken, true joint positions and velocities."""
    with_parent: bool = False
    """End when the process that started this one ends, however it ends; Linux only."""
    seed: int = 0
    """Seed of the first scene."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: Args) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM."""
    if not 1 <= args.rate <= MAX_RATE_HZ:
        raise InputError(f"--rate {args.rate:g}: between 1 and {MAX_RATE_HZ} Hz are possible")
    if args.image_size is not None and args.image_size < 1:
        raise InputError(f"--image-size {args.image_size}: at least 1 pixel is needed")
    if args.camera_rate is not None and not 0 < args.camera_rate <= args.rate:
        raise InputError(f"--camera-rate {args.camera_rate:g}: above 0 and up to --rate {args.rate:g} images per second are possible")
    if args.truth is not None and args.board is None:
        raise InputError("--truth tells of the camera before a calibration board: give --board table or hand too")
    if args.with_parent:
        end_with_parent()
    if args.robot_config is not None:
        return _serve_config(args)
    from robot_bridge import serve
    from robot_bridge.faults.schedule import load_schedule

    size = args.image_size or (480 if args.board else 84)
    told = serve(
        args.task,
        args.seed,
        args.domain,
        reach=args.reach,
        rate_hz=args.rate,
        cameras=_cameras(args),
        camera_rate_hz=_camera_rate(args),
        image_size=(size, size),
        compressed=args.compressed,
        faults=None if args.faults is None else load_schedule(args.faults),
        trace=args.trace,
        board=args.board or "",
        truth=args.truth,
    )
    return {"task": args.task, "ended": "asked to", **told}


def _cameras(args: Args) -> tuple[str, ...]:
    if args.cameras or args.board is None:
        return args.cameras
    from robot_bridge.calibrating.scene import PLACES

    return (PLACES[args.board][1],)


def _camera_rate(args: Args) -> float:
    return args.camera_rate or min(args.rate, 5.0 if args.board else 20.0)


def _serve_config(args: Args) -> dict[str, Any]:
    """Let a stand-in of a robot speak until SIGINT or SIGTERM."""
    import sys
    import threading

    from robot_bridge.robots import load_robot
    from robot_bridge.robots.served import serve_robot

    if args.faults is not None or args.trace is not None:
        raise InputError("--faults and --trace are for tasks; leave them out with --robot-config, or give --task instead")
    config = load_robot(args.robot_config or "").with_controller(args.controller, args.gripper_controller)
    quit_event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: quit_event.set())
    serve_robot(
        config,
        domain=args.domain,
        reach=args.reach,
        rate_hz=args.rate,
        cameras=_cameras(args),
        camera_rate_hz=_camera_rate(args),
        seed=args.seed,
        board=args.board or "",
        truth=args.truth,
        ready=lambda line: print(line, file=sys.stderr, flush=True),
        quit_event=quit_event,
    )
    return {"robot": config.spec.name, "ended": "asked to"}


def end_with_parent() -> None:
    """Ask the system for SIGTERM when the parent process ends, so that a killed command leaves nothing behind.

    Raises:
        InputError: the system cannot.
    """
    try:
        failed = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    except AttributeError:
        failed = -1
    if failed:
        raise InputError("--with-parent works on Linux only; leave it out and end this process with Ctrl-C")


def show(result: dict[str, Any], console: Console) -> None:
    """Nothing is left to say."""
