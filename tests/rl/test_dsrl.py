"""Latent steering learns what noise to give a frozen policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import point_mass
import pytest
import torch
from torch import Tensor, nn

from rl.dsrl import DsrlConfig, DsrlMethod, train_dsrl
from rl.noise_judge import NoiseJudge
from rl.runner import Runner
from sinew.errors import InputError
from sinew.progress import SILENT
from sinew.rundir import RunDir

HORIZON, DIM = 4, 2
LEARNS = DsrlConfig(
    steps=8_000,
    random_steps=1_500,
    critic_hidden=(64, 64),
    evaluate_every=1_000,
    checkpoint_every=1_000,
    batch_size=128,
    updates_per_step=0.5,
    n_step=1,
    stop_success=0.96,
)
SHORT = replace(LEARNS, steps=1_200, random_steps=320, critic_hidden=(16,), batch_size=32, evaluate_every=400, checkpoint_every=400)


class Actor(nn.Module):
    """A tanh-Gaussian over one vector, repeated over the chunk."""

    active: Tensor

    def __init__(self, bound: float = 1.5) -> None:
        super().__init__()
        self.size, self.bound = DIM, bound
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * DIM))
        self.register_buffer("active", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        return self.bound * torch.tanh(self.layers(features)[:, :DIM])

    def draw(self, features: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.layers(features).chunk(2, dim=-1)
        u = torch.tanh(mean + log_std.clamp(-5, 2).exp() * normal)
        return self.bound * u, (-0.5 * normal.square() - log_std.clamp(-5, 2) - (1 - u.square() + 1e-6).log()).sum(-1)


class Steering:
    """A policy that moves towards a point beside the goal, and as far to the side as its noise says."""

    act_steps = HORIZON

    def __init__(self, actor: Actor | None = None, bias_m: float = 0.2) -> None:
        self.actor, self.bias_m = actor or Actor(), bias_m

    def reset(self, ids: Sequence[int] | None) -> None:
        pass

    def frames(self, obs: Mapping[str, Tensor], ids: Any = None, *, remember: bool = True) -> dict[str, Tensor]:
        return {"features": obs[point_mass.STATE].clone()}

    def decode(self, frames: Mapping[str, Tensor], u: Tensor) -> Tensor:
        place, goal = frames["features"][:, :2].clone(), frames["features"][:, 2:] + torch.tensor([self.bias_m, 0.0]) + 0.2 * u
        chunk = []
        for _ in range(HORIZON):
            chunk.append(((goal - place) / 0.15).clamp(-1, 1))
            place = place + 0.15 * chunk[-1]
        return torch.stack(chunk, dim=1)


def rollout(steering: Steering, episodes: int = 100, seed: int = 1_000_000) -> dict[str, int]:
    """Successes on fixed seeds: with drawn noise, or with the actor's likeliest where it is active."""
    env = point_mass.PointMass(episodes)
    obs = env.reset(list(range(seed, seed + 1000 * episodes, 1000)))
    stream = torch.Generator().manual_seed(seed)
    done, won = torch.zeros(episodes, dtype=torch.bool), torch.zeros(episodes, dtype=torch.bool)
    for step in range(env.max_episode_steps):
        if step % HORIZON == 0:
            drawn = torch.randn(episodes, DIM, generator=stream).clamp(-1.5, 1.5)
            with torch.no_grad():
                u = steering.actor(obs[point_mass.STATE]) if bool(steering.actor.active) else drawn
            chunk = steering.decode(steering.frames(obs), u)
        obs, _, terminated, truncated, _ = env.step(env.action_spec.denormalize(chunk[:, step % HORIZON]))
        won |= terminated & ~done
        done |= terminated | truncated
    return {"k": int(won.sum()), "n": episodes}


def learn(folder, config: DsrlConfig, *, steering=None, evaluate: Any = True, env=None):
    steering = steering or Steering()
    measure = (lambda: rollout(steering)) if evaluate is True else evaluate
    run = RunDir.create(folder, config)
    return train_dsrl(env or point_mass.PointMass(8), steering, run, config, evaluate=measure), steering


@pytest.mark.parametrize("variant", ["na", "sac"])
def test_a_biased_policy_is_steered_to_the_goal(tmp_path, variant):
    result, steering = learn(tmp_path / "run", replace(LEARNS, variant=variant))
    assert result.base is not None and result.best is not None
    fresh = rollout(steering, 200, seed=5_000_000)
    assert result.base.rate < 0.8 and fresh["k"] > 185, (result.base, fresh, result.reason)
    assert bool(steering.actor.active)


def test_a_start_that_could_not_be_measured_is_measured_by_who_goes_on(tmp_path):
    class Stops:
        """A measurement that somebody ends, the second time."""

        def __init__(self) -> None:
            self.active: list[bool] = []

        def __call__(self):
            self.active.append(bool(policy.actor.active))
            if len(self.active) == 2:
                raise KeyboardInterrupt
            return {"k": 10 * len(self.active), "n": 100}

    policy, evaluate = Steering(), Stops()

    def begun() -> Runner:
        run = RunDir.create(tmp_path / "run", SHORT)
        return Runner(point_mass.PointMass(8), DsrlMethod(policy, 8, DIM, SHORT), run, SHORT, None, evaluate, SILENT)

    runner = begun()
    with pytest.raises(KeyboardInterrupt):
        runner.run_to_end()
    assert not bool(policy.actor.active)
    runner._stop()
    again = begun()
    assert [e.k for e in again.gate.history] == [10] and len(list(again.run.metrics())) == 1
    again.run_to_end()
    assert evaluate.active[:3] == [False, True, True] and [e.step for e in again.gate.history[:2]] == [0, 0]


def test_where_nothing_beats_the_policy_it_is_left_as_it_was(tmp_path):
    scores = iter([30, 10, 29, 30, 5])
    result, steering = learn(tmp_path / "run", SHORT, evaluate=lambda: {"k": next(scores), "n": 50})
    assert result.best == result.base and not bool(steering.actor.active)


def test_noise_is_judged_as_the_chunks_that_come_of_it(tmp_path):
    """Against known critics, the fitted judge of noise tells what they say of the decoded chunk, within the actor's bound."""
    steering = Steering()
    method = DsrlMethod(steering, 8, DIM, replace(SHORT, critic_hidden=(64, 64), learner=replace(SHORT.learner, critic_lr=1e-3)))
    stream = torch.Generator().manual_seed(0)
    features = torch.rand(256, 4, generator=stream) * 1.6 - 0.8
    learner = method.make_learner({"features": features, "u": torch.zeros(256, DIM)})
    judge, decoded = learner.judge, []
    assert isinstance(judge, NoiseJudge)
    decode = judge._decode
    judge._decode = lambda frames, u: decoded.append(u) or decode(frames, u)
    before = [p.clone() for p in learner.critic.parameters()]

    def some() -> tuple[dict[str, Tensor], Tensor]:
        return {"features": torch.rand(256, 4, generator=stream) * 1.6 - 0.8}, torch.rand(256, DIM, generator=stream) * 3 - 1.5

    for _ in range(1500):
        frames, u = some()
        judge.decode(*some())  # as the critics' target does
        asked = len(decoded)
        own = (torch.rand(256, generator=stream) < 0.9).float()
        executed = decode(frames, u) + 9.0 * (1 - own[:, None])  # somebody else's chunks tell nothing of the noise beside them
        judge.fit(learner, {**frames, "u": u, "executed": executed, "own": own})
        assert [len(u) for u in decoded[asked:]] == [64], "only the noise of the prior is decoded anew"
    assert all(u.abs().max() <= 1.5 for u in decoded)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.critic.parameters(), strict=True)), "the critics learn from rewards alone"
    u = torch.rand(256, DIM, generator=stream) * 2 - 1
    with torch.no_grad():
        wanted = learner.critic(learner.critic_input({"features": features}, decode({"features": features}, u)))
        told = judge.critic(judge.see({"features": features}, u))
    assert (told - wanted).square().mean() < 0.05 * wanted.var()


def test_a_choice_holds_for_a_chunk_and_the_chunk_is_what_is_executed():
    method = DsrlMethod(Steering(), 2, DIM, replace(SHORT, random_steps=0))
    stream, env = torch.Generator().manual_seed(0), point_mass.PointMass(2)
    obs = env.reset([1, 2])
    method.reset(None, [0, 0])
    seen, executed = [], []
    for _ in range(HORIZON + 1):
        frames = method.look(obs, 0, stream)
        seen.append(frames["u"].clone())
        executed.append(method.act(frames, 0, stream).clone())
        obs, *_ = env.step(env.action_spec.denormalize(executed[-1]))
    assert all(torch.equal(seen[0], u) for u in seen[:HORIZON]) and not torch.equal(seen[0], seen[HORIZON])
    first = method.steering.decode({"features": env.reset([1, 2])[point_mass.STATE]}, seen[0])
    torch.testing.assert_close(torch.stack(executed[:HORIZON], 1), first)


def test_settings_that_cannot_be_are_told():
    with pytest.raises(InputError, match="steps is 0"):
        DsrlConfig(steps=0)
