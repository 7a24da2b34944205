"""Policies made ready before the control loop: the same actions, and the policy as it was wherever that is not possible."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

import policies
import policies.warmup as warmup
from policies.executor import ChunkExecutor
from policies.export_graphs import example
from policies.live import LiveExecutor
from policies.warmup import in_words, prepare
from sinew.config import to_json
from sinew.errors import InputError


def noise(policy, rows=1, n=1, seed=5):
    return torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(seed))


def observations(toys, policy, data, rows=1):
    batch = toys.batch(data, policy.spec, rows)
    return {key: batch[key] for key in policy.spec.observation}


def newest(obs):
    return {key: value[:, -1] for key, value in obs.items()}


def sample(policy, obs, noise, **options):
    with torch.no_grad():
        return policy.sample(policy.encode(obs), n=noise.shape[1], noise=noise, **options)


@pytest.fixture
def lines(caplog):
    """What is said as warnings, once it was said."""
    caplog.set_level(logging.WARNING, "policies.warmup")
    return lambda: caplog.messages


def test_a_compiled_sample_acts_alike_and_nothing_is_compiled_later(toys, monkeypatch):
    # Captured and guarded as always, but without C++, which takes a compiler half a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    policy, data = toys.make("diffusion-mlp")
    ready = prepare(policy, steps=2)
    assert ready.config.compiled and not ready.config.recorded and ready.config.difference < 1e-4
    assert "sample compiled in" in in_words(to_json(ready.config))
    real = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: real("fail_on_recompile"))
    for seed in range(3):
        obs = {key: value + seed for key, value in observations(toys, policy, data).items()}
        given = noise(policy, seed=seed)
        torch.testing.assert_close(sample(ready, obs, given).actions, sample(policy, obs, given, steps=2).actions, rtol=0, atol=1e-4)
    kept = sample(ready, obs, given).actions
    before = kept.clone()
    sample(ready, obs, noise(policy, seed=9))
    assert torch.equal(kept, before)  # what was given is not written over
    # Other numbers of observations, candidates and steps run as before, with features and guidance too.
    many = observations(toys, policy, data, 3)
    assert torch.equal(sample(ready, many, noise(policy, 3, 2)).actions, sample(policy, many, noise(policy, 3, 2), steps=2).actions)
    assert torch.equal(sample(ready, obs, given, steps=3).actions, sample(policy, obs, given, steps=3).actions)
    assert sample(ready, obs, given, features=True).features is not None
    # The executors act by what was compiled, also from a thread of their own: a recompilation would raise here.
    executor = ChunkExecutor(ready, 1)
    torch.testing.assert_close(executor.act(newest(obs)), ChunkExecutor(policy, 1, steps=2).act(newest(obs)), rtol=0, atol=1e-4)
    live = LiveExecutor(ready, mode="async", delay=1)
    live.act(newest(obs))
    live.close()
    assert live.act(newest(obs)) is not None


def test_without_a_compiler_one_line_says_so_and_the_policy_acts_as_it_was(toys, lines, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand a long story about it")

    monkeypatch.setattr(torch, "compile", fails)
    policy, data = toys.make("flow-mlp")
    ready = prepare(policy)
    assert lines() == ["the sample is not compiled, it runs as it was: No working C++ compiler found"]
    assert not ready.config.compiled and in_words(to_json(ready.config)) == "the sample runs as it was, neither compiled nor recorded"
    obs = observations(toys, policy, data, 2)
    assert torch.equal(sample(ready, obs, noise(policy, 2, 3)).actions, sample(policy, obs, noise(policy, 2, 3)).actions)


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_what_acts_otherwise_is_not_used(dtype, toys, lines, monkeypatch):
    monkeypatch.setattr(warmup, "_compiled", lambda run, context, noise: lambda *_: torch.full((1, 1, 5, 3), float("nan")))
    policy, data = toys.make("flow-mlp")
    ready = prepare(policy, dtype=dtype)
    assert lines() == ["prepared actions differ from the policy's by nan: the policy is used as it was"]
    assert (ready.config.compiled, ready.config.dtype) == (False, "float32")
    obs = observations(toys, policy, data)
    assert torch.equal(sample(ready, obs, noise(policy)).actions, sample(policy, obs, noise(policy)).actions)


def test_products_in_bfloat16_give_float32_actions_nearby(toys):
    policy, data = toys.make("flow-mlp")
    ready = prepare(policy, dtype="bf16", compile=False)
    found = sample(ready, observations(toys, policy, data), noise(policy)).actions
    wanted = sample(policy, observations(toys, policy, data), noise(policy)).actions
    assert found.dtype == torch.float32 and 0 < (found - wanted).abs().max() < 0.1
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_observations_to_prepare_with_follow_the_policy_to_its_device(toys):
    policy, _ = toys.make("flow-mlp")  # "meta" stands for a GPU: nothing of the CPU mixes with it
    obs = example(policy.to("meta"), 1, seed=0)
    assert {obs[key].device.type for key in policy.spec.observation.vectors} == {"meta"}


def test_a_prepared_policy_keeps_what_the_policy_can_do(toys):
    policy, data = toys.make("residual-edm-mlp")
    ready, obs = prepare(policy, compile=False), newest(observations(toys, policy, data, 4))
    planned = torch.rand(4, 3) * 2 - 1
    assert torch.equal(ready.correct(obs, planned), policy.correct(obs, planned))
    assert torch.equal(ready.observe(obs), policy.observe(obs)) and ready.observation_dim == policy.observation_dim
    assert torch.equal(ready.sigmas(3), policy.sigmas(3))
    descends, data = toys.make("energy-mlp")
    ready, obs, x = prepare(descends, compile=False), observations(toys, descends, data, 2), torch.randn(2, 5, 3)
    assert torch.equal(ready.energy(x, ready.encode(obs)), descends.energy(x, descends.encode(obs)))
    assert not hasattr(ready, "correct")


def test_a_language_policy_is_prepared_for_its_instruction(toys):
    policy, data = toys.make("vla-bidirectional")
    with pytest.raises(InputError, match="acts by language and was given no instruction"):
        prepare(policy, compile=False)
    ready = prepare(policy, compile=False, instruction="Touch the red button.")
    obs = {**observations(toys, policy, data), "task": ["Touch the red button."]}
    assert torch.equal(sample(ready, obs, noise(policy)).actions, sample(policy, obs, noise(policy)).actions)


def test_a_prepared_policy_is_not_saved_and_unknown_precisions_are_told(toys, tmp_path):
    policy, _ = toys.make("flow-mlp")
    with pytest.raises(InputError, match="unknown dtype 'fp16'"):
        prepare(policy, dtype="fp16")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Prepared is not a registered policy"):
        policies.save(prepare(policy, compile=False), tmp_path)
    assert not list(tmp_path.iterdir())
