"""--compile of `sinew deploy` and `sinew serve`: off unless asked for, before anything moves, refused where it has no use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from policies.live import LiveExecutor
from policies.warmup import Prepared
from sinew.cli import deploy, serve
from sinew.errors import InputError
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec


@pytest.fixture
def policy():
    torch.set_num_threads(1)
    action = ActionSpec(kind="ee_delta", low=(-1.0, -2.0), high=(1.0, 2.0), rate_hz=20.0, names=("x", "y"))
    spec = PolicySpec(observation=ObservationSpec({STATE: TensorSpec(shape=(3,))}), action=action, horizon=8)
    return policies.make("flow", spec, {STATE: {"mean": np.zeros(3), "std": np.ones(3)}}, {"hidden": [8]}, seed=0).eval()


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch):
    """Compiling is tested with the policies; here it fails, which must not matter."""

    def fails(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)


def args(**settings) -> deploy.Args:
    return deploy.Args(run=Path("run"), **settings)


def test_the_policy_is_prepared_only_where_that_was_asked_for(policy):
    assert deploy._executor(args(), policy, "lift it").policy is policy
    ready = deploy._executor(args(compile=True), policy, "lift it")
    assert isinstance(ready.policy, Prepared) and ready.act({STATE: torch.zeros(1, 3)}).shape == (1, 2)
    live = deploy._executor(args(compile=True, executor="async", delay=1), policy, "lift it")
    assert isinstance(live, LiveExecutor) and isinstance(live.policy, Prepared)
    live.close()
    assert isinstance(serve._compiled(policy, "cpu"), Prepared)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": True, "executor": "rtc"}, "--compile: executor rtc guides its samples"),
        ({"compile": True, "delay": 2}, "executor sync waits for its chunks and knows no delay"),
        ({"device": "cuda:99"}, "--device 'cuda:99' cannot be used"),
    ],
)
def test_what_has_no_use_is_refused_before_anything_is_compiled(settings, message, policy, monkeypatch):
    monkeypatch.setattr("policies.warmup.prepare", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(InputError, match=message):
        deploy._executor(args(**settings), policy, "lift it")
