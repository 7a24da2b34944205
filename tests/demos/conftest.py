from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinew.specs import ActionSpec, ObservationSpec, TensorSpec


def make_specs(cameras: int = 0, height: int = 32, width: int = 48) -> tuple[ObservationSpec, ActionSpec]:
    tensors = {
        "observation.state": TensorSpec(shape=(4,), unit="rad", names=("a", "b", "c", "d"), low=-1.0, high=1.0),
        "observation.environment_state": TensorSpec(shape=(1,), unit="m"),
    }
    for i in range(cameras):
        tensors[f"observation.images.cam{i}"] = TensorSpec(shape=(height, width, 3), dtype="uint8")
    action = ActionSpec(kind="ee_delta", low=(-1.0,) * 3, high=(1.0,) * 3, rate_hz=20.0, names=("x", "y", "gripper"))
    return ObservationSpec(tensors), action


def make_frame(episode: int, at: int, cameras: int = 0, height: int = 32, width: int = 48) -> dict[str, Any]:
    """A frame that tells which one it is: the state says so exactly, the picture by a bar that moves."""
    rng = np.random.default_rng([episode, at])
    state = rng.uniform(-1, 1, 4).astype(np.float32)
    state[0] = at / 1000
    frame: dict[str, Any] = {
        "observation.state": state,
        "observation.environment_state": np.array([episode], np.float32),
        "action": rng.uniform(-1, 1, 3).astype(np.float32),
    }
    for i in range(cameras):
        rows, columns = np.mgrid[0:height, 0:width]
        image = np.stack([rows * 150 / height, columns * 150 / width, np.full((height, width), 40.0 * i)], -1)
        x = (at * 4) % (width - 8)
        image[:, x : x + 8] = (230, 230, 20 * (episode % 8))
        frame[f"observation.images.cam{i}"] = image.astype(np.uint8)
    return frame


def record(root: Path, lengths: list[int], cameras: int = 0, video: bool = True, task: str = "push the block") -> Path:
    import demos

    observation, action = make_specs(cameras)
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task=task, video=video) as writer:
        for episode, length in enumerate(lengths):
            for at in range(length):
                writer.add_frame(make_frame(episode, at, cameras), stamp_ns=at * 50_000_000)
            writer.save_episode(success=episode % 2 == 0)
    return root


@pytest.fixture(scope="session")
def helpers():
    """`make_specs`, `make_frame` and `record`, for test modules and the processes they start."""
    import types

    return types.SimpleNamespace(specs=make_specs, frame=make_frame, record=record)
