"""Serve a simulated robot over DDS, in ROS 2's wire format: joint states, object poses, images; commands come by topic."""

from __future__ import annotations

import ctypes
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    cameras: tuple[str, ...] = ()
    """Cameras to publish: front, wrist."""
    image_size: int = 84
    """Height and width of the images in pixels."""
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
    if args.image_size < 1:
        raise InputError(f"--image-size {args.image_size}: at least 1 pixel is needed")
    if args.with_parent:
        end_with_parent()
    if args.robot_config is not None:
        return _serve_config(args)
    from robot_bridge import serve
    from robot_bridge.faults.schedule import load_schedule

    size = (args.image_size, args.image_size)
    told = serve(
        args.task,
        args.seed,
        args.domain,
        reach=args.reach,
        rate_hz=args.rate,
        cameras=args.cameras,
        image_size=size,
        compressed=args.compressed,
        faults=None if args.faults is None else load_schedule(args.faults),
        trace=args.trace,
    )
    return {"task": args.task, "ended": "asked to", **told}


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
        cameras=args.cameras,
        seed=args.seed,
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
