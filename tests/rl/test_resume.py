"""A run that is killed and goes on computes what one that nobody interrupted computes, bit for bit, whatever the clock says."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import test_dsrl
import test_residual
import test_rlpd
from torch import nn

from rl.learner import Learner
from rl.runner import STATE_FILE
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir

NEVER = {"stop_success": 2.0}
WAYS: dict[str, Callable[[Path, Any], tuple[Any, nn.Module]]] = {}


def way(name: str, **changes: Any):
    """Register how a method learns into a folder in given worlds."""

    def register(function: Callable[..., tuple[Any, nn.Module]]) -> Callable[..., Any]:
        WAYS[name] = lambda folder, env: function(folder, env, changes)
        return function

    return register


@way("residual")
@way("residual-files", replay_ram_gb=0.0, replay_steps=500)
def residual(folder: Path, env: Any, changes: dict[str, Any]) -> tuple[Any, nn.Module]:
    return test_residual.learn(folder, replace(test_residual.SHORT, **NEVER, **changes), env=env)


@way("dsrl")
@way("dsrl-sac", variant="sac")
def dsrl(folder: Path, env: Any, changes: dict[str, Any]) -> tuple[Any, nn.Module]:
    result, steering = test_dsrl.learn(folder, replace(test_dsrl.SHORT, **NEVER, **changes), env=env)
    return result, steering.actor


@way("rlpd")
def rlpd(folder: Path, env: Any, changes: dict[str, Any]) -> tuple[Any, nn.Module]:
    return test_rlpd.learn(folder, replace(test_rlpd.SHORT, **NEVER), test_rlpd.demonstrations(5), env=env)


class Kills(point_mass.PointMass):
    """Ends its process as the system's out-of-memory killer does, at a step that is no checkpoint's."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 125:  # 8 worlds: after the checkpoint at 800
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def in_a_process(work: Callable[[], Any]) -> int:
    """Do this in a process of its own; gives how it ended, as `os.waitpid` tells it."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


@contextmanager
def watched() -> Iterator[list[str]]:
    """What every update made of the weights."""
    seen: list[str] = []
    update = Learner.update

    def watching(self: Learner, *args: Any, **kwargs: Any) -> None:
        update(self, *args, **kwargs)
        weights = [p.detach().numpy().tobytes() for m in (self.actor, self.critic, self.critic_target) for p in m.parameters()]
        seen.append(hashlib.sha256(b"".join(weights)).hexdigest())

    Learner.update = watching  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Learner.update = update  # type: ignore[method-assign]


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "wall_s"} for line in RunDir(folder).metrics()]


@pytest.mark.parametrize("name", WAYS)
def test_the_next_updates_after_a_kill_equal_the_uninterrupted_ones(tmp_path, name):
    with watched() as whole:
        result, actor = WAYS[name](tmp_path / "whole", point_mass.PointMass(8))
    status = in_a_process(lambda: WAYS[name](tmp_path / "killed", Kills(8)))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    assert (tmp_path / "killed" / STATE_FILE).exists()
    with watched() as resumed:
        again, other = WAYS[name](tmp_path / "killed", point_mass.PointMass(8))
    assert len(resumed) >= 100 and resumed == whole[-len(resumed) :], "the updates from the checkpoint on"
    assert all((a == b).all() for a, b in zip(actor.state_dict().values(), other.state_dict().values(), strict=True))
    assert again == result
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert not (tmp_path / "killed" / "replay").exists(), "a finished run leaves no replay behind"


# ------------------------------------------------------------ disk


class FillsTheDisk(point_mass.PointMass):
    """From a step on, no file of this process may grow beyond a few bytes."""

    def __init__(self, at: int) -> None:
        super().__init__(8)
        self.at, self.steps = at, 0

    def step(self, action):
        self.steps += 1
        if self.steps == self.at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().step(action)


@pytest.mark.parametrize("name", ["residual", "residual-files"])
def test_a_full_disk_at_a_checkpoint_is_told_and_the_run_goes_on_later(tmp_path, name):
    _, whole = WAYS[name](tmp_path / "whole", point_mass.PointMass(8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(InputError, match=r"(cannot write|no room for the replay).*; free space") as told:
            WAYS[name](tmp_path / "full", FillsTheDisk(90))  # after the checkpoint at 400, before that at 800
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(told.value)
    assert (tmp_path / "full" / STATE_FILE).exists() and not list((tmp_path / "full").glob(f".{STATE_FILE}*"))
    _, resumed = WAYS[name](tmp_path / "full", point_mass.PointMass(8))
    assert test_residual.same(whole, resumed)


def test_files_of_a_replay_that_are_gone_are_told(tmp_path):
    import shutil

    class Stops(point_mass.PointMass):
        steps = 0

        def step(self, action):
            self.steps += 1
            if self.steps == 70:
                raise KeyboardInterrupt
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        WAYS["residual-files"](tmp_path / "run", Stops(8))
    shutil.rmtree(tmp_path / "run" / "replay")
    with pytest.raises(DataError, match=r"layout\.json does not exist"):
        WAYS["residual-files"](tmp_path / "run", point_mass.PointMass(8))


# ------------------------------------------------------------ clock


def test_the_clock_on_the_wall_may_jump(tmp_path, monkeypatch):
    _, whole = WAYS["residual"](tmp_path / "whole", point_mass.PointMass(8))
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: -1e9 * next(jumps))
    _, other = WAYS["residual"](tmp_path / "jumps", point_mass.PointMass(8))
    assert test_residual.same(whole, other)
    assert all(0 <= line["wall_s"] < 3_600 for line in RunDir(tmp_path / "jumps").metrics() if "wall_s" in line)


# ------------------------------------------------------------ requests


class Asked(point_mass.PointMass):
    """Somebody beside the worlds, who asks for something before given steps."""

    def __init__(self, requests: dict[int, list[str | None]]) -> None:
        super().__init__(8)
        self.requests, self.steps, self.polled = requests, 0, 0

    def control(self) -> str | None:
        self.polled += 1
        waiting = self.requests.get(self.steps, [])
        return waiting.pop(0) if waiting else None

    def step(self, action):
        self.steps += 1
        return super().step(action)


def test_a_pause_changes_nothing(tmp_path):
    _, whole = WAYS["residual"](tmp_path / "whole", point_mass.PointMass(8))
    env = Asked({0: ["pause", None, None, "resume"], 60: ["pause", "resume"], 61: [None]})
    _, paused = WAYS["residual"](tmp_path / "paused", env)
    assert test_residual.same(whole, paused) and env.steps == 150
    assert env.polled == env.steps + 1 + 4 - 1 + 1, "asked once before every step, and while paused"


def test_who_asks_to_stop_can_go_on_later(tmp_path):
    WAYS["residual"](tmp_path / "run", Asked({77: ["stop"]}))
    result, _ = WAYS["residual"](tmp_path / "run", env := Asked({}))
    assert result.steps == 1200 and env.steps == 150 - 77


def test_who_stops_what_is_not_measured_has_what_was_learned(tmp_path):
    actor = point_mass.ToyActor()
    config = replace(test_residual.SHORT, **NEVER)
    test_residual.learn(tmp_path / "run", config, env=Asked({77: ["stop"]}), evaluate=None, actor=actor)
    assert not test_residual.same(actor, point_mass.ToyActor())


def test_a_reset_that_is_asked_for_cuts_episodes_and_starts_others(tmp_path):
    starts: list[list[int]] = []

    class Watched(Asked):
        def reset(self, seed=None, ids=None):
            starts.append(list(seed))  # type: ignore[arg-type]
            return super().reset(seed, ids)

    WAYS["residual"](tmp_path / "run", Watched({10: ["reset"]}))
    assert len(starts) == 1 + 1 + 2 and len({tuple(s) for s in starts}) == 4, "once asked for, and at two checkpoints"
    with pytest.raises(InputError, match="unknown request 'dance'"):
        WAYS["residual"](tmp_path / "other", Asked({1: ["dance"]}))
