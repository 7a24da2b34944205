"""Tell ROS where calibrated cameras are, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class PublishArgs:
    """Publish a calibration on /tf_static, and the lens as camera_info, until Ctrl-C."""

    result: Annotated[Path, tyro.conf.Positional]
    """A calibration.json, or its folder."""
    robot: Literal["dds", "ros2"] = "dds"
    """How ROS 2 is spoken: by Cyclone DDS alone, or by rclpy."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: str | None = None
    """LOCALHOST, SUBNET, or the network interface that DDS keeps to; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if left out."""
    root: str = ""
    """Root of the camera driver's frames, as camera_link, where the driver places the optical frame itself: this one is placed instead."""
    camera_info: bool = True
    """Publish camera_info too, on /CAMERA/calibrated/camera_info."""
    set_camera_info: bool = False
    """Give the lens to the camera's driver, by its service /CAMERA/set_camera_info."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: PublishArgs) -> dict[str, Any]:
    """Publish until SIGINT or SIGTERM."""
    return publish(
        args.result, args.robot, args.domain, args.reach, root=args.root, infos=args.camera_info, set_camera_info=args.set_camera_info
    )


def publish(
    result: Path,
    transport: str,
    domain: int | None,
    reach: str | None,
    *,
    root: str = "",
    infos: bool = True,
    set_camera_info: bool = False,
) -> dict[str, Any]:
    """Publish until SIGINT or SIGTERM; one line tells that it is so.

    Raises:
        InputError: the result, a frame or the network cannot be used.
    """
    from robot_bridge.calibrating.publish import Publication
    from robot_bridge.transport import open_transport

    node = open_transport(transport, "sinew_calibration", domain=domain, reach=reach)
    try:
        publication = Publication(result, node, root=root, infos=infos)
        services = publication.set_camera_info() if set_camera_info else []
        frames = [{"camera": p.camera, "parent": p.parent, "child": p.child} for p in publication.placed]
        told = ", ".join(f"{f['child']} in {f['parent']}" for f in frames)
        print(f"published on /tf_static: {told}; Ctrl-C ends it", file=sys.stderr, flush=True)
        _until_asked()
    finally:
        node.close()
    return {"action": "publish", "frames": frames, "camera_info": list(publication.info_topics), "set": services, "rejected": {}}


def _until_asked() -> None:
    """Return on SIGINT or SIGTERM."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not asked.wait(0.2):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(result: dict[str, Any], console: Console) -> None:
    """What was published."""
    for frame in result["frames"]:
        console.print(f"{frame['child']} was published in {frame['parent']}")
    for service in result["set"]:
        console.print(f"{service} keeps the lens")
