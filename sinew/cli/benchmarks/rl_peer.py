"""Steering by soft actor-critic on the noise, beside stable-baselines3's SAC on it: what the published code of DSRL does."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.bench import Row

if TYPE_CHECKING:
    from rl.dsrl import DsrlConfig
    from rl.learner import Learner

FEATURES, CHUNK, ACTIONS, BATCH, STORED = 40, 8, 7, 256, 20_000
NOISE, BOUND = CHUNK * ACTIONS, 1.5
PEER = "stable-baselines3 SAC on the noise, same networks with layer norm and batch, actor every time (CPU, 1 thread)"
SIZES = ((2, (256, 256)), (10, (128, 128, 128)))
"""Critics and widths: ours, and those of DSRL for a vision-language-action model."""


def rows(timed: Callable[..., list[float]], rounds: int) -> list[Row]:
    """Updates per second of one core, sampling included, ours and theirs in turns.

    Args:
        timed: (functions, calls, rounds) → milliseconds of CPU per call.
        rounds: to measure.
    """
    out = []
    for heads, hidden in SIZES:
        ours = our_update(heads, hidden, actor_every=1)
        names = {"": ours, ", actor every 2nd as by default": our_update(heads, hidden, actor_every=2)}
        half = our_update(heads, hidden, actor_every=2, engine="loop_bf16")
        names |= {", actor every 2nd, bfloat16 products (opt-in)": half}
        try:
            peer, why = peer_update(heads, hidden), PEER
        except ImportError:
            peer, why = None, "stable-baselines3 is not installed: pip install stable-baselines3"
        took = timed((*names.values(), *(() if peer is None else (peer,))), 4, rounds)
        theirs = 1e3 / took[-1] if peer is not None else None
        for name, ms in zip(names, took, strict=False):
            row = Row(
                name=f"dsrl-sac update with sampling, {heads} x {len(hidden)}x{hidden[0]}, batch {BATCH}{name}",
                unit="1/s",
                ours=1e3 / ms,
                peer=why,
                peer_value=theirs,
                target=">= 3x peer" if not name else "",
                holds=None if name or theirs is None else 1e3 / ms >= 3 * theirs,
            )
            out.append(row)
    return out


def our_config(heads: int, hidden: tuple[int, ...], **settings: Any) -> DsrlConfig:
    """Settings of `sinew improve --method dsrl-sac` but for sizes and delay."""
    from dataclasses import replace

    from rl.dsrl import DsrlConfig

    return DsrlConfig(variant="sac", critic_heads=heads, critic_hidden=hidden, learner=replace(DsrlConfig().learner, **settings))


def our_learner(config: DsrlConfig) -> Learner:
    """The learner that `rl.dsrl` makes, for a policy that is never asked."""
    import torch

    from policies.steered import NoiseActor
    from rl.dsrl import DsrlMethod

    actor = NoiseActor(FEATURES, NOISE, config.critic_hidden, BOUND)
    steering: Any = SimpleNamespace(actor=actor, act_steps=CHUNK)
    return DsrlMethod(steering, 4, ACTIONS, config).make_learner({"features": torch.zeros(1, FEATURES)})


def our_update(heads: int, hidden: tuple[int, ...], **settings: Any) -> Callable[[], None]:
    """One update as a run of ours makes it, its batch one of four drawn together as a run draws them."""
    import torch

    from rl.replay import Ring

    config = our_config(heads, hidden, **settings)
    learner = our_learner(config)
    ring = Ring(STORED // 4, 4, {"features": ((FEATURES,), torch.float32), "u": ((NOISE,), torch.float32)}, NOISE)
    running = torch.zeros(4, dtype=torch.bool)
    for step in range(ring.length):
        ended = torch.tensor([step % 50 == 49] * 4)
        noise = BOUND * (2 * torch.rand(4, NOISE) - 1)
        ring.add({"features": torch.randn(4, FEATURES), "u": noise}, noise, ended.float(), ended, running)
    drawn: list[Any] = []

    def update() -> None:
        if not drawn:
            drawn.extend(ring.sample(BATCH, updates=4, gamma=0.99))
        learner.update(drawn.pop())

    return update


def peer_update(heads: int, hidden: tuple[int, ...]) -> Callable[[], None]:
    """One gradient step of their SAC on transitions of the same shapes.

    Raises:
        ImportError: it is not installed.
    """
    import gymnasium as gym
    from stable_baselines3 import SAC  # type: ignore[import-not-found]  # optional
    from stable_baselines3.common.logger import Logger  # type: ignore[import-not-found]
    from torch import nn

    class NormRelu(nn.Sequential):
        """Layer norm and ReLU, as our hidden layers end."""

        def __init__(self) -> None:
            super().__init__(nn.LayerNorm(hidden[0]), nn.ReLU())

    class Nothing(gym.Env):
        """Gives shapes to learn from; it is never stepped."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
        action_space = gym.spaces.Box(-BOUND, BOUND, (NOISE,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
            return np.zeros(FEATURES, np.float32), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            return np.zeros(FEATURES, np.float32), 0.0, False, False, {}

    networks = {"net_arch": list(hidden), "n_critics": heads, "activation_fn": NormRelu}
    model = SAC("MlpPolicy", Nothing(), learning_rate=3e-4, batch_size=BATCH, buffer_size=STORED, policy_kwargs=networks, device="cpu")
    model.set_logger(Logger(None, []))
    random, buffer = np.random.default_rng(0), model.replay_buffer
    for step in range(STORED):
        seen, after = random.standard_normal((2, 1, FEATURES)).astype(np.float32)
        noise = random.uniform(-1, 1, (1, NOISE)).astype(np.float32)
        buffer.add(seen, after, noise, np.zeros(1), np.array([step % 50 == 49]), [{}])
    return lambda: model.train(gradient_steps=1, batch_size=BATCH)
