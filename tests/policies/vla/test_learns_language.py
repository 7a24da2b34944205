"""A vision-language-action policy learns from pixels which of two squares it is told to go to: the instruction decides.

The small sibling of the simulated tasks touch_red and touch_blue, whose figures are in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import policies
from policies.evaluate import evaluate
from policies.train import TrainConfig, train
from policies.vla.policy import VlaConfig
from policies.vla.tiny import TinyConfig
from sinew.rundir import RunDir
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

CAMERA = "observation.images.front"
PIXELS, SQUARE = 24, 4
STEP = 0.3
NEAR = 0.2
INSTRUCTIONS = ("Go to the red square.", "Go to the blue square.")
OBSERVATION = ObservationSpec({STATE: TensorSpec(shape=(2,)), CAMERA: TensorSpec(shape=(PIXELS, PIXELS, 3), dtype="uint8")})
ACTION = ActionSpec(kind="ee_delta", low=(-STEP, -STEP), high=(STEP, STEP), rate_hz=10.0, names=("x", "y"))
EPISODES, HORIZON, LENGTH = 3000, 4, 8


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the red and the blue square are, (2, 2) in [-0.8, 0.8], and where the hand starts, (2,)."""
    stream = np.random.default_rng(seed)
    while True:
        squares = stream.uniform(-0.8, 0.8, (2, 2))
        if np.linalg.norm(squares[0] - squares[1]) > 3 * NEAR:
            return squares, stream.uniform(-0.8, 0.8, 2)


def picture(squares: np.ndarray) -> np.ndarray:
    """(PIXELS, PIXELS, 3) uint8; the hand is not in it."""
    image = np.full((PIXELS, PIXELS, 3), 90, np.uint8)
    for place, channel in zip(squares, (0, 2), strict=True):
        column, row = np.round((place + 1) / 2 * PIXELS - SQUARE / 2).astype(int)
        image[row : row + SQUARE, column : column + SQUARE] = np.eye(3, dtype=np.uint8)[channel] * 220
    return image


class Demonstrations:
    """Straight ways to the red square in even episodes, to the blue one in odd ones."""

    observation_spec, action_spec, num_episodes, tasks = OBSERVATION, ACTION, EPISODES, INSTRUCTIONS

    def __init__(self) -> None:
        states, images, actions = [], [], []
        for episode in range(EPISODES):
            squares, hand = scene(episode)
            for _ in range(LENGTH):
                action = np.clip(squares[episode % 2] - hand, -STEP, STEP)
                states.append(hand)
                images.append(picture(squares))
                actions.append(action)
                hand = hand + action
        self.states, self.actions = np.array(states, np.float32), np.array(actions, np.float32)
        self.images = np.stack(images)

    def __len__(self) -> int:
        return len(self.states)

    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        return {STATE: {"mean": self.states.mean(0), "std": self.states.std(0)}}

    def column(self, key: str) -> np.ndarray:
        frames = np.arange(len(self))
        return {"task_index": frames // LENGTH % 2, "frame_index": frames % LENGTH}[key]

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        ahead, last = indices[:, None] + np.arange(horizon), (indices // LENGTH * LENGTH + LENGTH - 1)[:, None]
        return {
            STATE: self.states[indices, None],
            CAMERA: self.images[indices, None],
            "action": self.actions[np.minimum(ahead, last)],
            "action_is_pad": ahead > last,
        }


class Squares:
    """A hand that success asks to be near one of the two squares."""

    observation_spec, action_spec, max_episode_steps = OBSERVATION, ACTION, LENGTH

    def __init__(self, num_envs: int, wanted: int) -> None:
        self.num_envs, self.wanted = num_envs, wanted

    def reset(self, seed: Any = None, ids: Any = None) -> dict[str, Tensor]:
        scenes = [scene(s) for s in seed]
        self.squares, self.hands = np.stack([s[0] for s in scenes]), np.stack([s[1] for s in scenes])
        self.images = torch.from_numpy(np.stack([picture(s) for s in self.squares]))
        self.steps = 0
        return self._observe()

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        self.hands = self.hands + action.numpy()
        self.steps += 1
        over = torch.full((self.num_envs,), self.steps == LENGTH)
        success = torch.from_numpy(np.linalg.norm(self.squares[:, self.wanted] - self.hands, axis=1) < NEAR) & over
        return self._observe(), success.float(), success, over & ~success, {"success": success}

    def _observe(self) -> dict[str, Tensor]:
        return {STATE: torch.from_numpy(self.hands).float(), CAMERA: self.images}

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A policy trained on both instructions."""
    torch.set_num_threads(1)
    data = Demonstrations()
    tiny = TinyConfig(patch_px=6, width=32, heads=2, kv_heads=2, vision_layers=1, text_layers=2)
    config = VlaConfig(backbone="tiny", tiny=tiny, instructions=INSTRUCTIONS, steps=5)
    policy = policies.make("vla", PolicySpec(observation=OBSERVATION, action=ACTION, horizon=HORIZON), data.stats(), config, seed=0)
    budget = TrainConfig(steps=1200, batch_size=64, learning_rate=3e-3, ema_decay=0.99)
    return train(policy, data, RunDir.create(tmp_path_factory.mktemp("vla") / "run", {}), budget)


@pytest.mark.parametrize("wanted", [0, 1], ids=["red", "blue"])
def test_the_instruction_decides_where_it_goes(learned, wanted):
    def succeeded(instruction: str) -> float:
        outcome = evaluate(learned, Squares(50, wanted), range(10_000, 10_100), executor_kwargs={"instruction": instruction})
        return outcome.k / outcome.n

    assert succeeded(INSTRUCTIONS[wanted]) >= 0.8
    assert succeeded(INSTRUCTIONS[1 - wanted]) <= 0.2
