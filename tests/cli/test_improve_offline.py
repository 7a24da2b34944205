"""Learning from recorded episodes through `sinew improve` and `sinew bench offline`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import policies
import sim
from demos import Dataset
from rewards.shaping import DistancePotential
from rl.recap import RecapConfig
from rl.recap_value import ValueConfig
from sinew.cli import collect, eval, improve, reward_situation, train
from sinew.cli.benchmarks import offline
from sinew.cli.improve_offline import READ_TOGETHER, features_of, remembered
from sinew.errors import InputError

torch.set_num_threads(1)  # sums of two threads are not the same bits every time


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset of reach and a policy that has hardly learned."""
    folder = tmp_path_factory.mktemp("offline")
    collect.collect(collect.Args(task="reach", out=folder / "data", episodes=4))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=30, batch_size=32))
    return folder


@pytest.fixture
def short(monkeypatch):
    """A gate of a few scenes, and values that are learned in a moment."""
    monkeypatch.setattr(improve, "GATE_EPISODES", 3)
    small = functools.partial(RecapConfig, value=ValueConfig(updates=10, hidden=(8,), batch_size=16))
    monkeypatch.setattr("rl.recap.RecapConfig", small)


@pytest.mark.parametrize(("method", "kind", "horizon", "steps"), [("iql", "direct", 1, None), ("qc", "flow_q", 8, 1_040)])
def test_a_policy_of_its_own_is_learned_from_the_runs_data(folder, short, method, kind, horizon, steps):
    args = improve.Args(run=folder / "bc", out=folder / method, method=method, updates=20, steps=steps)
    made = improve.improve(args)
    assert made["gate"]["n"] == 3 and made["steps"] == (steps or 0)
    assert made["updates"] >= 20 if steps is None else made["updates"] > 20  # it went on in the world
    described = json.loads((folder / method / "policy.json").read_text())
    assert (described["type"], described["spec"]["horizon"]) == (kind, horizon)
    assert json.loads((folder / method / "config.json").read_text())["demos"] == str(folder / "data")
    assert eval.evaluate(eval.Args(run=folder / method, episodes=2))["n"] == 2
    assert improve.improve(args) == made  # finished: nothing is learned again


def test_recorded_episodes_become_replay_with_their_outcome(folder):
    data, policy = Dataset(folder / "data"), policies.load(folder / "bc")
    ring = remembered(data, policy)
    ends = torch.nonzero(ring.terminated[: len(ring)] | ring.truncated[: len(ring)])[:, 0]
    won = [bool(data.episode(i).success) for i in range(data.num_episodes)]
    assert len(ends) == data.num_episodes and ring.reward[ends].tolist() == [float(w) for w in won]
    torch.testing.assert_close(policy.spec.action.denormalize(ring.action[:5]), torch.from_numpy(data.column("action")[:5].copy()))


def test_recorded_episodes_are_rewarded_as_was_asked_for(folder):
    """Along a success the difference of a potential sums up to what it began with; nothing else changes."""
    data, policy, interface = Dataset(folder / "data"), policies.load(folder / "bc"), sim.make_interface("reach")
    args = improve.Args(run=folder / "bc", out=folder / "none", method="iql", reward="shaped")
    ring = remembered(data, policy, reward_situation.recorded(args, interface, 0.99)(data.root))
    plain = remembered(data, policy)
    here = reward_situation.situation(interface, 0.99, 1)
    potential, first = DistancePotential(here.observation, here.objects[0], reward_situation.DRAWN), 0
    for info in (data.episode(i) for i in range(data.num_episodes)):
        assert info.success
        begun = {key: torch.from_numpy(data.column(key)[info.start : info.start + 1].copy()) for key in data.observation_spec}
        discount = 0.99 ** torch.arange(info.length)
        paid, alone = (r.reward[first : first + info.length].flatten() for r in (ring, plain))
        assert float((discount * (paid - alone)).sum()) == pytest.approx(-float(potential(begun)), abs=1e-4)
        first += info.length
    assert torch.equal(ring.action[: len(ring)], plain.action[: len(plain)])


@pytest.mark.parametrize("method", ["td3-bc", "fql"])
def test_a_reward_is_learned_from_recorded_episodes_and_its_range_is_known(folder, short, tmp_path, method):
    made = improve.improve(improve.Args(run=folder / "bc", out=tmp_path / "a", method=method, updates=10, reward="shaped"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert made["updates"] == 10 and config["reward"] == made["reward"]["name"] == "shaped"
    told = config[method]["learner"]
    assert (told["target_low"], told["target_high"]) == (-0.5, 1.5)


def test_improvement_by_experience_goes_on_where_it_was_interrupted(folder, short, monkeypatch):
    args = {"run": folder / "bc", "method": "recap", "rounds": 1, "rollouts": 3, "updates": 20}
    whole = improve.improve(improve.Args(out=folder / "recap", **args))
    assert whole["steps"] > 0 and whole["updates"] == 20 and len(whole["curve"]) == 2
    assert Dataset(folder / "recap" / "rollouts-1").num_episodes == 3
    assert json.loads((folder / "recap" / "policy.json").read_text())["type"] == "advantage"

    with monkeypatch.context() as patch:  # killed when it is about to teach
        patch.setattr("policies.train.train", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            improve.improve(improve.Args(out=folder / "again", **args))
    assert improve.improve(improve.Args(out=folder / "again", **args)) == {**whole, "run": str(folder / "again")}
    taught = [folder / name / "round-1" / "policy.safetensors" for name in ("recap", "again")]
    assert taught[0].read_bytes() == taught[1].read_bytes()
    more = improve.improve(improve.Args(out=folder / "again", **{**args, "rounds": 2}))
    assert len(more["curve"]) == 3 and more["curve"][:2] == whole["curve"]


def _interrupt(*arguments, **named):
    raise KeyboardInterrupt


class Listener:
    """A language policy that observes how long each instruction is."""

    spec = SimpleNamespace(observation=("observation.state",), capabilities=("language", "observe"))

    def observe(self, obs):
        assert len(obs["task"]) == len(obs["observation.state"]) <= READ_TOGETHER
        return torch.tensor([[float(len(text))] for text in obs["task"]])


class Spoken:
    """A dataset of more frames than are read at once, with two instructions."""

    tasks = ("short", "rather long")

    def __len__(self):
        return READ_TOGETHER + 10

    def column(self, key):
        return np.arange(len(self))[:, None] % 2

    def window(self, rows, steps, horizon, keys):
        return {key: np.zeros((len(rows), steps, 3), np.float32) for key in keys}


def test_a_language_policy_observes_every_frame_with_its_own_instruction():
    found = features_of(Listener(), Spoken(), torch.device("cpu"))
    assert found[:4, 0].tolist() == [5, 11, 5, 11] and len(found) == READ_TOGETHER + 10
    assert found[READ_TOGETHER:, 0].tolist() == [5, 11] * 5


def test_what_cannot_be_learned_from_is_told(folder, short, tmp_path):
    with pytest.raises(InputError, match="recap tells better from worse by success alone"):
        improve.improve(improve.Args(run=folder / "bc", out=tmp_path / "a", method="recap", reward="shaped"))
    with pytest.raises(InputError, match="recap counts --rounds and --rollouts"):
        improve.improve(improve.Args(run=folder / "bc", out=tmp_path / "a", method="recap", steps=100))
    with pytest.raises(InputError, match="drawn by fql and qc, not by iql"):
        improve.improve(improve.Args(run=folder / "bc", out=tmp_path / "a", method="iql", candidates=4))
    config = json.loads((folder / "bc" / "config.json").read_text())
    (tmp_path / "bare").mkdir()
    for name in ("policy.json", "policy.safetensors"):
        (tmp_path / "bare" / name).write_bytes((folder / "bc" / name).read_bytes())
    (tmp_path / "bare" / "config.json").write_text(json.dumps({**config, "data": "gone"}))
    with pytest.raises(InputError, match="names none that is there: give --demos DIR"):
        improve.improve(improve.Args(run=tmp_path / "bare", out=tmp_path / "a", method="td3-bc"))
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------- bench offline


def test_cells_are_made_once_and_compared_with_imitation(tmp_path):
    budget = offline.Budget(episodes=3, updates=4, batch_size=8, scenes=2)
    asked = {"policies": ("bc", "td3-bc"), "tasks": ("reach:mixed",), "seeds": (0,), "out": tmp_path}
    first = offline.rows(False, budget=budget, **asked)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cell.json")}
    again = offline.rows(True, **asked)
    assert len(stamps) == 2 and {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert [r.name for r in first] == ["reach, mixed: bc", "reach, mixed: td3-bc"]
    assert [r.ours for r in again] == [r.ours for r in first]
    assert again[1].detail is not None and again[1].detail["n"] == 2 and "paired" in again[1].detail
    missing = offline.rows(True, policies=("qc",), tasks=("reach:mixed",), seeds=(0,), out=tmp_path)
    assert missing[0].ours is None and "not run yet" in (missing[0].peer or "")
    page = offline.markdown([{"ours": r.ours, "detail": r.detail} for r in (*again, *missing)])
    assert page.splitlines()[0] == "| data | recorded | bc | td3-bc | qc |" and "not measured" in page
    with pytest.raises(InputError, match="another budget"):
        offline.rows(False, **asked)


def test_kinds_of_data_differ_and_unknown_ones_are_told(tmp_path):
    assert len({offline.style(kind) for kind in offline.KINDS}) == 4
    with pytest.raises(InputError, match="clumsy"):
        offline.rows(True, tasks=("lift:clumsy",), out=tmp_path)
    with pytest.raises(InputError, match="ppo"):
        offline.rows(True, policies=("ppo",), out=tmp_path)
