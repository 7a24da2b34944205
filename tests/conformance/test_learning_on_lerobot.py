"""A diffusion policy of LeRobot as a black box under reinforcement learning: corrected, steered, and kept in a run of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lerobot", reason="runs in the venv with the real lerobot: make conformance")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

sys.path.insert(0, str(Path(__file__).parent))

import torch
from test_policies import ACTION, ENVIRONMENT_STATE, OBSERVATION, STATE, edited, noise_for, observations, save

import policies
from policies.executor import ChunkExecutor, CorrectedPlans
from policies.lerobot import LeRobotPolicy, load
from policies.steered import LatentSteered, Steering
from rl.dsrl import DsrlConfig, train_dsrl
from rl.residual import ResidualConfig, train_residual
from sinew.errors import DataError, InputError, SpecError
from sinew.rundir import RunDir
from sinew.specs import ObservationSpec

WORLDS = 2
SHORT: dict[str, Any] = {
    "steps": 80, "random_steps": 20, "critic_only_updates": 4, "updates_per_step": 0.3, "batch_size": 8, "critic_hidden": (16,),
    "evaluate_every": 40, "checkpoint_every": 40,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Numbers:
    """Worlds of random vectors, told by their seed; an episode ends by time, or where an action is large."""

    num_envs, max_episode_steps, action_spec = WORLDS, 9, ACTION
    observation_spec = ObservationSpec({key: OBSERVATION[key] for key in (STATE, ENVIRONMENT_STATE)})

    def __init__(self) -> None:
        self.seeds, self.age = [0] * WORLDS, torch.zeros(WORLDS, dtype=torch.int64)

    def _observe(self) -> dict[str, torch.Tensor]:
        streams = [torch.Generator().manual_seed(s % 2**31 * 100 + int(a)) for s, a in zip(self.seeds, self.age, strict=True)]
        return {key: torch.stack([torch.randn(t.shape, generator=g) for g in streams]) for key, t in self.observation_spec.tensors.items()}

    def reset(self, seed=None, ids=None):
        for world, value in zip(range(WORLDS) if ids is None else ids, seed, strict=True):
            self.seeds[world], self.age[world] = value, 0
        return self._observe()

    def step(self, action):
        self.age += 1
        final, success = self._observe(), action[:, 0] > 0.3 * ACTION.high[0]
        truncated = (self.age >= self.max_episode_steps) & ~success
        for world in torch.nonzero(success | truncated)[:, 0].tolist():
            self.seeds[world], self.age[world] = self.seeds[world] + 1, 0
        return self._observe(), success.float(), success, truncated, {"success": success, "final_observation": final}

    def close(self) -> None:
        pass


@pytest.fixture
def base(tmp_path) -> LeRobotPolicy:
    return load(str(save("diffusion-state", tmp_path / "theirs")), OBSERVATION, ACTION)


def test_it_is_corrected_and_the_run_needs_its_folder_no_more(base, tmp_path):
    policy = policies.Residual(base, scale=0.5, hidden=(16,))
    run, config = RunDir.create(tmp_path / "run", {}), ResidualConfig(**SHORT)
    executor = CorrectedPlans(ChunkExecutor(policy.base, WORLDS))
    before = {key: value.clone() for key, value in base.state_dict().items()}
    scores = iter([1, 2, 3, 4, 5])
    gate = lambda: {"k": next(scores), "n": 5}  # noqa: E731
    result = train_residual(Numbers(), executor, policy.actor, policy.observe, run, config, evaluate=gate)
    assert result.updates > 4 and result.best is not None and result.best.k > 1
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())
    policies.save(policy, run)
    shutil.rmtree(tmp_path / "theirs")
    again = policies.load(run)
    obs, noise = observations(base), noise_for(base, 5, 1)
    assert torch.equal(again.sample(again.encode(obs), noise=noise).actions, policy.sample(policy.encode(obs), noise=noise).actions)
    newest, planned = {k: v[:, -1] for k, v in obs.items()}, torch.zeros(5, 3)
    corrected: Any = again
    assert torch.equal(corrected.correct(newest, planned), policy.correct(newest, planned))
    assert not torch.equal(policy.correct(newest, planned), planned)


def test_it_is_steered_by_the_noise_of_its_own_sampler(base, tmp_path):
    policy = LatentSteered(base, hidden=(16,), steps=2)
    steering = Steering(policy, ChunkExecutor(policy, WORLDS), base.spec.horizon)
    run, config = RunDir.create(tmp_path / "run", {}), DsrlConfig(**{**SHORT, "critic_only_updates": 0})
    scores = iter([1, 2, 3, 4, 5])
    result = train_dsrl(Numbers(), steering, run, config, evaluate=lambda: {"k": next(scores), "n": 5})
    assert result.updates > 4 and bool(policy.actor.active)
    policies.save(policy, run)
    again, obs = policies.load(run), observations(base)
    steered = policy.sample(policy.encode(obs)).actions
    assert torch.equal(again.sample(again.encode(obs)).actions, steered)
    assert not torch.equal(steered, base.sample(base.encode(obs), noise=torch.zeros(5, 1, *base.spec.noise_shape)).actions)


def test_what_takes_no_noise_is_corrected_but_not_steered(tmp_path):
    act = load(str(save("act-state", tmp_path / "act")), OBSERVATION, ACTION)
    with pytest.raises(SpecError, match="latent steering needs a policy with capability 'noise'; LeRobotPolicy has: features, observe"):
        LatentSteered(act)
    policies.save(policies.Residual(act), RunDir.create(tmp_path / "run", {}))
    obs = observations(act)
    assert torch.equal(policies.load(tmp_path / "run").sample(act.encode(obs)).actions, act.sample(act.encode(obs)).actions)


def test_pictures_and_renamed_keys_come_back_too(tmp_path):
    policy = load(str(save("diffusion", tmp_path / "theirs")), OBSERVATION, ACTION)
    policies.save(policies.Residual(policy), RunDir.create(tmp_path / "run", {}))
    shutil.rmtree(tmp_path / "theirs")
    again, obs, noise = policies.load(tmp_path / "run"), observations(policy), noise_for(policy, 5, 2)
    assert torch.equal(
        again.sample(again.encode(obs), n=2, noise=noise).actions, policy.sample(policy.encode(obs), n=2, noise=noise).actions
    )


def test_a_record_that_could_run_code_is_not_let_through(base, tmp_path):
    run = RunDir.create(tmp_path / "run", {})

    def changed(change) -> None:
        policies.save(base, run)
        files = dict(base.config.files)
        change(files)
        base.config = type(base.config)(**{**base.config.__dict__, "files": files})
        policies.save(base, run)

    original = base.config
    for change, message in [
        (lambda f: f.update({"policy_preprocessor.json": json.dumps({"steps": [{"class": "os.system"}]})}), "names the class 'os.system'"),
        (lambda f: f.update({"../policy.py": "x"}), r"holds a file '\.\./policy\.py'"),
        (lambda f: f.pop("config.json"), "has no config.json"),
        (lambda f: f.update({next(k for k in f if k.endswith(".safetensors")): "no base64!"}), "is damaged"),
    ]:
        base.config = original
        changed(change)
        with pytest.raises(DataError, match=message):
            policies.load(run)


def test_it_is_no_kind_that_training_makes(base):
    with pytest.raises(InputError, match="trained with lerobot-train"):
        type(base).build(base.spec, {}, None)


def test_lerobots_own_loss_trains_it_on_a_dataset_of_ours(tmp_path):
    from lerobot_base import train
    from test_lerobot import record

    record(tmp_path / "data", (), False, lengths=(20, 20))
    small = {"down_dims": (16, 32), "horizon": 8, "n_action_steps": 4, "n_groups": 4, "kernel_size": 3, "diffusion_step_embed_dim": 16}
    losses = [train(tmp_path / "data", tmp_path / str(steps), steps, batch_size=16, **small) for steps in (1, 60)]
    assert losses[1] < losses[0]
    import demos

    data = demos.Dataset(tmp_path / "data")
    made = load(str(tmp_path / "60"), data.observation_spec, data.action_spec)
    assert "noise" in made.spec.capabilities and made.spec.horizon == 4
    edited(tmp_path / "60", "config.json", lambda told: {**told, "noise_scheduler_type": "DDPM"})
    assert "noise" in load(str(tmp_path / "60"), data.observation_spec, data.action_spec).spec.capabilities
