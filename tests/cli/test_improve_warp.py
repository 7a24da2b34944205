"""Improving a policy in worlds of MuJoCo Warp: learning really runs there, on its CPU device, and what it makes is a run like any other."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import policies
from rl.dsrl import DsrlConfig
from rl.residual import ResidualConfig
from sinew.cli import collect, improve, improve_methods, train
from sinew.cli.improve_methods import for_many

needs_warp = pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is None, reason="mujoco-warp is not installed")
SMALL: dict[str, Any] = {"random_steps": 40, "critic_only_updates": 10, "batch_size": 16, "critic_hidden": (16,), "evaluate_every": 10**6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of lift and a policy that has hardly learned."""
    folder = tmp_path_factory.mktemp("warp")
    collect.collect(collect.Args(task="lift", out=folder / "data", episodes=2))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=20, batch_size=16))
    return folder


@needs_warp
@pytest.mark.parametrize(("method", "num_envs", "steps"), [("residual", 4, 120), ("dsrl", 4, 120), ("residual", 96, 960)])
def test_learning_in_worlds_of_warp(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, num_envs: int, steps: int) -> None:
    monkeypatch.setattr(improve, "GATE_EPISODES", 2)
    monkeypatch.setattr("sinew.cli.eval.WORLDS", 2)
    small = {**SMALL, "random_steps": 40 * num_envs // 4, "updates_per_step": 0.4 / num_envs}
    monkeypatch.setattr(improve_methods, "for_many", lambda config, args: replace(config, **small))
    noises: list[Any] = []
    make = policies.ChunkExecutor.__init__
    monkeypatch.setattr(policies.ChunkExecutor, "__init__", functools.partialmethod(_told, make, noises))
    out = folder / f"{method}-{num_envs}"
    options: dict[str, Any] = {"act_steps": 4, "base_noise": "sample"} if method == "residual" else {"act_steps": 4}
    args = improve.Args(run=folder / "bc", out=out, method=method, backend="warp", num_envs=num_envs, steps=steps, **options)  # type: ignore[arg-type]
    made = improve.improve(args)
    assert made["steps"] == steps and made["updates"] > 10 and made["gate"]["n"] == 2
    assert ("stream" in noises) == (num_envs > improve_methods.MANY)
    assert policies.load(out).spec.action_dim == 4
    assert improve.improve(args) == made  # finished: nothing is learned again


def _told(self: Any, make: Any, noises: list[Any], *arguments: Any, **settings: Any) -> None:
    noises.append(settings.get("noise"))
    make(self, *arguments, **settings)


@pytest.mark.parametrize("kind", [ResidualConfig, DsrlConfig])
def test_settings_for_many_worlds_are_as_many_rounds_of_all_of_them(kind: Any) -> None:
    usual, args = kind(), SimpleNamespace(num_envs=4_096, steps=None)
    many = for_many(usual, args)  # type: ignore[arg-type]
    assert many.steps / 4_096 == usual.steps / 4 and many.random_steps / 4_096 == usual.random_steps / 4
    assert many.updates_per_step * 4_096 == pytest.approx(usual.updates_per_step * 4)
    assert many.batch_size == 16_384 and many.replay_steps == 5_000_000 and many.evaluate_every >= 25 * 4_096
    assert many.learner == usual.learner and many.gamma == usual.gamma
    assert for_many(usual, SimpleNamespace(num_envs=64, steps=None)) is usual  # type: ignore[arg-type]
    assert for_many(usual, SimpleNamespace(num_envs=128, steps=7)).steps == 7  # type: ignore[arg-type]
