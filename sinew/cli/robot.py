"""Serve a simulated robot over DDS, in ROS 2's wire format: joint states, object poses, images; commands come by topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Args:
    """Serve a simulated robot over DDS, in ROS 2's wire format, until Ctrl-C."""

    task: str = "lift"
    """Task whose scene is simulated."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: Literal["LOCALHOST", "SUBNET"] | None = None
    """Who may find it; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if left out."""
    rate: float = 100.0
    """Joint states per second, Hz."""
    cameras: tuple[str, ...] = ()
    """Cameras to publish: front, wrist."""
    image_size: int = 84
    """Height and width of the images in pixels."""
    compressed: bool = False
    """Publish JPEG images besides raw ones."""
    seed: int = 0
    """Seed of the first scene."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: Args) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM."""
    from robot_bridge import serve

    size = (args.image_size, args.image_size)
    serve(
        args.task,
        args.seed,
        args.domain,
        reach=args.reach,
        rate_hz=args.rate,
        cameras=args.cameras,
        image_size=size,
        compressed=args.compressed,
    )
    return {"task": args.task, "ended": "asked to"}


def show(result: dict[str, Any], console: Console) -> None:
    """Nothing is left to say."""
