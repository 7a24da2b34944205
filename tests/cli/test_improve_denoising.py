"""Denoising PPO through `sinew improve`, and what recorded episodes are to it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

import policies
from demos import Dataset
from policies.chain import ChainActor, ChainConfig
from rl.chunk_critics import CriticConfig
from rl.denoising_offline import OfflineConfig
from sinew.cli import collect, distill, eval, improve, train
from sinew.cli.improve_denoising import recorded_decisions
from sinew.errors import InputError, SpecError
from sinew.rundir import RunDir, read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset of reach and a policy that has hardly learned."""
    folder = tmp_path_factory.mktemp("denoising")
    collect.collect(collect.Args(task="reach", out=folder / "data", episodes=4))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=30, batch_size=32))
    return folder


@pytest.fixture
def short(monkeypatch):
    """A gate of a few scenes, critics that are learned in a moment and one round."""
    monkeypatch.setattr(improve, "GATE_EPISODES", 2)
    critics = CriticConfig(updates=3, hidden=(8,), batch_size=16)
    monkeypatch.setattr("rl.denoising_offline.OfflineConfig", functools.partial(OfflineConfig, rounds=1, round_states=32, critics=critics))


def test_the_policys_own_weights_are_improved_in_stages(folder, short):
    args = improve.Args(run=folder / "bc", out=folder / "ppo", method="ppo-denoise", steps=1_200)
    made = improve.improve(args)
    assert made["gate"]["n"] == 2 and made["steps"] == 1_200
    stages = [line["stage"] for line in RunDir(folder / "ppo").metrics()]
    assert stages[0] == "base" and "offline" in stages and stages[-1] == "online"
    assert json.loads((folder / "ppo" / "policy.json").read_text())["type"] == "flow"
    assert eval.evaluate(eval.Args(run=folder / "ppo", episodes=1))["n"] == 1
    assert improve.improve(args) == made  # finished: nothing is learned again
    run = RunDir.open(folder / "ppo")  # and it can be distilled without naming its data
    assert distill._own_data(run, read_json(run / "config.json")) == (folder / "data",)


def test_recorded_chunks_end_with_their_episode(folder):
    data, policy = Dataset(folder / "data"), policies.load(folder / "bc")
    table = recorded_decisions(folder / "data", ChainActor(policy, 1, ChainConfig()), 0.9)
    H, row = policy.spec.horizon, 0
    actions = torch.from_numpy(data.column("action").copy())
    for index in range(data.num_episodes):
        info = data.episode(index)
        for t in range(info.length if info.success else max(0, info.length - H)):
            left = info.length - t
            ends = bool(info.success) and left <= H
            assert float(table.reward[row]) == pytest.approx(0.9 ** (left - 1) if ends else 0.0)
            assert float(table.discount[row]) == pytest.approx(0.0 if ends else 0.9**H)
            executed = policy.spec.action.denormalize(table.action[row, : min(left, H)])
            torch.testing.assert_close(executed, actions[info.start + t : info.start + t + min(left, H)], atol=1e-4, rtol=0)
            if not ends:
                state = {k: torch.from_numpy(data.column(k)[info.start + t + H][None]) for k in policy.spec.observation}
                torch.testing.assert_close(table.next_features[row], policy.observe(state)[0])
            row += 1
    assert row == len(table) and not bool(table.own.any())


def test_what_cannot_be_is_told_before_a_folder_is_made(folder, tmp_path):
    policy = policies.Direct.seeing_as(policies.load(folder / "bc"))
    policies.save(policy, RunDir.create(tmp_path / "direct", {"task": "reach"}))
    with pytest.raises(SpecError, match="capability 'denoise'"):
        improve.improve(improve.Args(run=tmp_path / "direct", out=tmp_path / "out", task="reach", method="ppo-denoise"))
    with pytest.raises(InputError, match="each once"):
        improve.improve(improve.Args(run=folder / "bc", out=tmp_path / "out", method="ppo-denoise", stages=("online", "online")))
    assert not (tmp_path / "out").exists()
