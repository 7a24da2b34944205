"""Learners in processes of their own compute what one learner computes on everything: real processes, gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ppo_toys import make_learner
from ppo_worker import learned
from safetensors.torch import load_file

from rl.group import ALONE, torchrun
from rl.running_norm import RunningNorm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_learners_are_one_learner_with_twice_the_worlds(tmp_path: Path) -> None:
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **where, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    command = [sys.executable, str(HERE / "ppo_worker.py"), str(tmp_path)]
    processes = [subprocess.Popen(command, env={**environment, "RANK": str(r)}, stderr=subprocess.PIPE, text=True) for r in range(2)]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    alone = {k: v.detach() for k, v in learned(make_learner()).items()}
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key  # all learners are the same, to the bit
        torch.testing.assert_close(first[key], value, atol=2e-5, rtol=2e-4)
    untouched = make_learner()
    assert not torch.allclose(alone["log_std"], untouched.actor.log_std)


def test_without_torchrun_a_learner_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torchrun("cpu") as group:
        assert group is ALONE and group.leads and group.size == 1
        x = torch.ones(2)
        group.average([x])
        assert x.tolist() == [1, 1]


def test_statistics_of_two_learners_are_those_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves, exchanged by hand: each learner's moments are replaced by the mean of both."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 3 + 2
    halves, whole = x.split(20), RunningNorm(3)
    whole.update(x)

    class Two(type(ALONE)):
        size = 2

        def average(self, tensors):
            moments = [torch.stack((h.mean(0), h.square().mean(0))) for h in halves]
            tensors[0].copy_((moments[0] + moments[1]) / 2)

    norm = RunningNorm(3)
    norm.update(halves[0], Two())
    assert float(norm.count) == 40
    torch.testing.assert_close(norm.mean, whole.mean)
    torch.testing.assert_close(norm.variance, whole.variance, rtol=1e-4, atol=1e-5)
