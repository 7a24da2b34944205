"""What a randomisation makes of a task's episodes: numbers, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

EPISODES_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Check a randomisation against a task, and show what its first demonstrations would be played with."""

    file: Annotated[Path, tyro.conf.Positional]
    """Randomisation, JSON; docs/simulation.md."""
    task: str
    """Simulated task."""
    episodes: int = 4
    """Scenes to draw for."""
    cameras: tuple[str, ...] = ()
    """Cameras to take pictures with, for --pictures; front if left out."""
    image_size: int = 240
    """Height and width of the pictures in pixels."""
    pictures: Path | None = None
    """Folder for a picture of each camera in each scene, as a policy would see it."""
    seed: int = 0
    """Chooses the scenes, as for sinew collect."""
    json: bool = False
    """Print one JSON object."""


def draw(args: Draw) -> dict[str, Any]:
    """Draw, and take pictures where they are wanted.

    Raises:
        InputError: the file or the task cannot be, or they do not fit each other.
        MissingDependency: pictures are wanted and no OpenGL library works.
    """
    import sim
    from sim.randomised import randomiser_of
    from sinew.cli.scenes import first_scene
    from sinew.specs import IMAGES

    if not 1 <= args.episodes <= EPISODES_MAX:
        raise InputError(f"--episodes {args.episodes}: from 1 to {EPISODES_MAX} are possible")
    randomisation = sim.load_randomisation(args.file)
    cameras = (args.cameras or ("front",)) if args.pictures else ()
    interface = sim.make_interface(args.task, cameras=cameras, image_size=args.image_size)
    first = first_scene("demonstrations", args.seed)
    seeds = list(range(first, first + args.episodes))
    _, randomiser = randomiser_of(interface, randomisation)
    assert randomiser is not None
    written = []
    if args.pictures is not None:
        import cv2

        env = sim.MujocoVecEnv(interface, len(seeds), randomisation=randomisation)
        try:
            seen = env.reset(seeds)
        finally:
            env.close()
        args.pictures.mkdir(parents=True, exist_ok=True)
        for camera in cameras:
            for i, image in enumerate(seen[IMAGES + camera].numpy()):
                path = args.pictures / f"{camera}-{i:03d}.png"
                cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
                written.append(str(path))
    values = randomiser.draw(seeds).values
    return {"task": args.task, "names": list(randomiser.names), "seeds": seeds, "values": values.tolist(), "pictures": written}


def show(result: dict[str, Any], console: Console) -> None:
    """A line for each number."""
    for i, name in enumerate(result["names"]):
        drawn = "  ".join(f"{row[i]:>9.4g}" for row in result["values"])
        console.print(f"{name:<32}{drawn}", highlight=False, soft_wrap=True)
    if result["pictures"]:
        console.print(f"{len(result['pictures'])} pictures, the first is {result['pictures'][0]}", highlight=False, soft_wrap=True)
