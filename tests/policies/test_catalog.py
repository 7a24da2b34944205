"""A new policy in one short class: registered, it is made, trained, saved, loaded, executed and wrapped like any other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

import policies
from policies.base import EmbeddingContext, PolicyModule, noise_for
from policies.catalog import register, register_all, registry
from policies.encoders import ImageConfig, ObservationEncoder
from policies.executor import ChunkExecutor
from policies.train import TrainConfig, train
from sinew.protocols import Chunk, Loss
from sinew.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Settings of the regression policy."""

    hidden: int = 32
    """Width of the hidden layer."""


class RegressionPolicy(PolicyModule):
    """Predicts the mean chunk; a baseline without noise."""

    Config = RegressionConfig

    def __init__(self, spec, config):
        super().__init__(replace(spec, noise_shape=(0,), capabilities=("noise", "observe")), config)
        self.encoder = ObservationEncoder(spec.observation, spec.n_obs_steps, ImageConfig())
        shape = (spec.horizon, spec.action_dim)
        self.net = nn.Sequential(nn.Linear(self.encoder.dim, config.hidden), nn.SiLU(), nn.Linear(config.hidden, shape[0] * shape[1]))
        self.net.append(nn.Unflatten(-1, shape))

    @classmethod
    def build(cls, spec, stats, config):
        policy = cls(spec, config)
        policy.encoder.normalizer.fit(stats)
        return policy

    @classmethod
    def rebuild(cls, spec, config, bases):
        return cls(spec, config)

    def encode(self, obs):
        return EmbeddingContext(self.encoder(obs))

    def sample(self, ctx: Any, *, n=1, noise=None, steps=None, guidance=(), features=False, generator=None):
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        actions = self.net(ctx.embedding).clamp(-1, 1).repeat_interleave(ctx.candidates * n, 0)
        return Chunk(actions.unflatten(0, (ctx.batch, n)), noise)

    def loss(self, batch, *, t=None, noise=None):
        per_sample = (self.net(self.encoder(batch)) - batch["action"]).square().mean((1, 2))
        return Loss(per_sample.mean(), per_sample)

    def observe(self, obs):
        return self.encoder.newest(obs).detach()

    @property
    def observation_dim(self):
        return self.encoder.step_dim


@pytest.fixture
def registered(monkeypatch):
    register_all()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    return register("regression")(RegressionPolicy)


def test_a_new_policy_goes_the_whole_way(registered, toys, tmp_path):
    data = toys.ToyData()
    policy = policies.make("regression", toys.policy_spec(), data.stats(), {"hidden": 64})
    batch = toys.batch(data, policy.spec)
    before = policy.loss(batch).scalar.item()
    (tmp_path / "run").mkdir()
    train(policy, data, RunDir(tmp_path / "run"), TrainConfig(steps=400, batch_size=32, learning_rate=3e-3))
    loaded = policies.load(tmp_path / "run")
    assert loaded.loss(batch).scalar.item() < 0.75 * before
    residual = policies.Residual(loaded, scale=0.1)
    policies.save(residual, tmp_path / "improved")
    executor = ChunkExecutor(policies.load(tmp_path / "improved"), 3, act_steps=2)
    executor.reset(seeds=[1, 2, 3])
    obs = {key: torch.from_numpy(data.frames[key][:3]) for key in policy.spec.observation}
    expected = loaded.sample(loaded.encode({key: value[:, None] for key, value in obs.items()})).actions[:, 0, 0]
    torch.testing.assert_close(executor.act(obs), expected, rtol=0, atol=1e-6)


def test_a_name_is_given_once(registered):
    with pytest.raises(ValueError, match="registered twice"):
        register("flow")(RegressionPolicy)


def test_importing_the_package_loads_neither_torch_nor_a_policy():
    script = "import sys, policies; print([m for m in ('torch', 'safetensors', 'policies.flow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'maek'"):
        policies.maek  # noqa: B018
