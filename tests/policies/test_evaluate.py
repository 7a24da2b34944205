"""Evaluation over seeds on a toy environment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.base import EmbeddingContext
from policies.evaluate import evaluate
from sinew.errors import InputError, SafetyStop, SpecError
from sinew.protocols import Chunk
from sinew.specs import STATE, ObservationSpec, PolicySpec, TensorSpec


class Homing:
    """Steps towards the origin with noise; a chunk is the same step repeated."""

    def __init__(self, toys, noise_scale=0.3, horizon=2):
        self.noise_scale = noise_scale
        self.rows = []
        self.spec = PolicySpec(observation=toys.PointEnv.observation_spec, action=toys.ACTION_SPEC, horizon=horizon,
                               noise_shape=(2,), capabilities=("noise",))

    def encode(self, obs):
        self.rows.append(len(obs[STATE]))
        return EmbeddingContext(obs[STATE][:, -1])

    def loss(self, batch, *, t=None, noise=None):
        raise NotImplementedError

    def sample(self, ctx, *, n=1, noise=None, steps=None, **_):
        assert noise is not None
        step = -ctx.embedding * 0.5 + self.noise_scale * noise[:, 0]
        physical = torch.cat([step, torch.zeros(len(step), 1)], -1)
        action = self.spec.action.normalize(physical).clamp(-1, 1)
        return Chunk(actions=action[:, None, None].expand(-1, 1, self.spec.horizon, -1).clone(), noise=noise)


def test_result_does_not_depend_on_the_number_of_worlds(toys):
    seeds = list(range(40, 63))
    results = [evaluate(Homing(toys), toys.PointEnv(n), seeds) for n in (1, 5, 23, 64)]
    for other in results[1:]:
        assert other.success == results[0].success and other.lengths == results[0].lengths
    assert 0 < results[0].k < results[0].n == 23
    assert results[0].seeds == tuple(seeds) and len(set(results[0].lengths)) > 3


def test_result_of_a_seed_does_not_depend_on_the_other_seeds(toys):
    full = evaluate(Homing(toys), toys.PointEnv(6), range(30))
    part = evaluate(Homing(toys), toys.PointEnv(4), [29, 3, 3, 17])
    assert part.success == tuple(full.success[s] for s in (29, 3, 3, 17))
    assert part.lengths == tuple(full.lengths[s] for s in (29, 3, 3, 17))


def test_episodes_agree_with_a_loop_by_hand(toys):
    policy = Homing(toys, noise_scale=0.0, horizon=1)
    result = evaluate(policy, toys.PointEnv(3), range(6))
    for seed in range(6):
        stream = np.random.default_rng(seed)
        position, wind = stream.uniform(-2, 2, 2), stream.uniform(-0.1, 0.1, 2)
        step = 0
        while step < 12 and np.linalg.norm(position) >= 0.2:
            step += 1
            position = position + np.clip(-0.5 * position, [-0.5, -2], [0.5, 2]) + wind
        assert result.success[seed] == (np.linalg.norm(position) < 0.2)
        assert result.lengths[seed] == step


def test_worlds_that_are_over_are_not_looked_at(toys):
    class Poisoned(toys.PointEnv):
        """Worlds give NaN after their first episode, as if the next episode were broken."""

        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            self.over = getattr(self, "over", torch.zeros(self.num_envs, dtype=torch.bool)) | terminated | truncated
            obs[STATE][self.over] = torch.nan
            return obs, reward, terminated, truncated, info

        def reset(self, seed=None, ids=None):
            self.over = torch.zeros(self.num_envs, dtype=torch.bool)
            return super().reset(seed, ids)

    policy = Homing(toys)
    result, clean = evaluate(policy, Poisoned(8), range(12)), evaluate(Homing(toys), toys.PointEnv(8), range(12))
    assert result.success == clean.success and result.lengths == clean.lengths
    assert sum(policy.rows) == sum((length + 1) // 2 for length in result.lengths)  # one query per two steps of live worlds


def test_frames_of_every_episode_are_shown_once_in_order(toys):
    shown = {}


    def show(seed, step, obs):
        shown.setdefault(seed, []).append((step, obs[STATE]))

    result = evaluate(Homing(toys), toys.PointEnv(4), range(6), on_frame=show)
    for seed, length, success in zip(result.seeds, result.lengths, result.success, strict=True):
        assert [step for step, _ in shown[seed]] == list(range(length + 1))
        assert (float(shown[seed][-1][1].norm()) < 0.2) == success  # the last frame is that of the episode, not of the next


def test_settings_reach_the_executor_and_progress_is_told(toys):
    from sinew.progress import Progress

    class Count(Progress):
        done = 0

        def start(self, stage, total, done=0):
            self.total = total

        def advance(self, n=1, **values):
            self.done += n

    progress = Count()
    settings = {"noise": "zero", "act_steps": 1}
    zero = evaluate(Homing(toys, noise_scale=5.0), toys.PointEnv(4), range(10), executor_kwargs=settings, progress=progress)
    silent = evaluate(Homing(toys, noise_scale=0.0, horizon=1), toys.PointEnv(4), range(10))
    assert zero.success == silent.success and zero.lengths == silent.lengths
    assert progress.done == progress.total == 10
    assert zero.summary()["k"] == zero.k and zero.summary()["n"] == 10 and zero.summary()["seeds"] == list(range(10))


def test_what_does_not_fit_is_refused_before_anything_runs(toys):
    env = toys.PointEnv(2)
    with pytest.raises(InputError, match="at least one seed"):
        evaluate(Homing(toys), env, [])
    policy = Homing(toys)
    policy.spec = replace(policy.spec, observation=ObservationSpec({"observation.images.top": TensorSpec(shape=(8, 8, 3), dtype="uint8")}))
    with pytest.raises(SpecError, match=r"the policy needs 'observation.images.top'"):
        evaluate(policy, env, [0])
    policy.spec = replace(policy.spec, observation=env.observation_spec, action=replace(env.action_spec, rate_hz=10.0))
    with pytest.raises(SpecError, match="rate_hz"):
        evaluate(policy, env, [0])


def test_a_policy_that_gives_nan_is_stopped(toys):
    with pytest.raises(SafetyStop, match="non-finite"):
        evaluate(Homing(toys, noise_scale=float("nan")), toys.PointEnv(2), [0, 1])
