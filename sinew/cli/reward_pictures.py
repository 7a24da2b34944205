"""Pictures of recorded episodes: those of a recorded camera, or of the simulated episode played again, which shows more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from demos import Dataset
    from rewards.files import CameraView
    from rewards.inspection import Episode

HEIGHT, WIDTH = 240, 320
CAMERA = "front"
SAME = 1e-3
"""Played again, positions and angles differ by no more than this from what was recorded."""


@dataclass(frozen=True)
class Film:
    """Pictures of an episode, one for each frame, and the camera they are of."""

    pictures: tuple[np.ndarray, ...]
    """(H, W, 3) uint8 each."""
    view: CameraView | None
    """Where the camera was; None where nobody told, or it moves."""


def film(data: Dataset, episode: Episode, camera: str | None) -> Film | None:
    """Pictures of an episode; None where there are none to be had.

    Args:
        data: the dataset.
        episode: one of its episodes.
        camera: name of a camera; the first that stands still if None.
    """
    from sinew.cli.reward_recorded import cameras, simulated
    from sinew.specs import IMAGES

    interface = simulated(data)
    if interface is not None and (again := _simulated(data, episode, interface, camera or CAMERA)) is not None:
        return again
    names = [key.removeprefix(IMAGES) for key in data.cameras]
    eyes = cameras(data)
    name = camera or next((n for n in names if n in eyes), names[0] if names else None)
    if name not in names:
        return None
    eye = eyes.get(name)
    taken = (picture for block in data.pictures(IMAGES + name, episode.index) for picture in block)
    pictures = tuple(taken if eye is None else map(eye.straight, taken))
    return Film(pictures, None if eye is None else eye.view) if len(pictures) == len(episode.frames) else None


def _simulated(data: Dataset, episode: Episode, interface: Any, camera: str) -> Film | None:
    """The episode played again from its seed and actions; None where that leads somewhere else, or nothing can be drawn here."""
    import torch

    import sim
    from sinew.cli.collect import COLLECTION
    from sinew.cli.reward_situation import standing
    from sinew.cli.scenes import first_scene
    from sinew.errors import InputError, MissingDependency
    from sinew.rundir import read_json
    from sinew.specs import ACTION

    note = read_json(data.root / COLLECTION)
    view = standing(interface, {camera: (HEIGHT, WIDTH)}).get(camera)
    if note.get("through") is not None or view is None:
        return None
    action = torch.from_numpy(np.array(data.column(ACTION)[episode.frames]))
    keys = [key for key in interface.observation_spec if key in data.observation_spec]
    env = sim.MujocoVecEnv(interface, 1)
    try:
        obs = env.reset([first_scene("demonstrations", int(note["seed"])) + episode.index])
        pictures = []
        for step, row in enumerate(episode.frames):
            if any(np.abs(obs[k][0].numpy() - data.column(k)[row]).max() > SAME for k in keys):
                return None
            pictures.append(sim.render_frame(env, 0, camera, HEIGHT, WIDTH))
            if step + 1 < len(episode.frames):
                obs = env.step(action[step : step + 1])[0]
    except (InputError, MissingDependency):
        return None
    finally:
        env.close()
    return Film(tuple(pictures), view)


def strip(pictures: tuple[np.ndarray, ...], count: int) -> Iterator[tuple[int, np.ndarray]]:
    """`count` pictures spread over an episode, with their frames."""
    for i in np.unique(np.linspace(0, len(pictures) - 1, count).round().astype(int)):
        yield int(i), pictures[i]
