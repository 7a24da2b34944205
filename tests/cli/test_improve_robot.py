"""`sinew improve --robot`: a run like any other, with a person's steps in it, and one that can be stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import policies
from demos import Dataset
from sinew.cli import collect, eval, improve, train
from sinew.errors import InputError, SpecError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset of lift and a policy that has hardly learned."""
    folder = tmp_path_factory.mktemp("improve")
    collect.collect(collect.Args(task="lift", out=folder / "data", episodes=4))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=30, batch_size=32))
    return folder


@pytest.fixture
def short(monkeypatch):
    """Learning that is over in seconds, with a gate of a few scenes."""
    import rl.dsrl
    import rl.residual

    monkeypatch.setattr(improve, "GATE_EPISODES", 4)
    for module, name in ((rl.residual, "ResidualConfig"), (rl.dsrl, "DsrlConfig")):
        kind = getattr(module, name)
        small = {"random_steps": 60, "critic_only_updates": 10, "updates_per_step": 0.1, "batch_size": 16, "critic_hidden": (16,)}

        def made(kind=kind, small=small, **settings):
            return kind(**{**settings, **small, "evaluate_every": 100})

        made.steps = kind.steps  # type: ignore[attr-defined]
        monkeypatch.setattr(module, name, made)


def args_of(folder: Path, out: str, **options: Any) -> improve.Args:
    return improve.Args(run=folder / "bc", out=folder / out, **{"robot": "sim", "intervene": "expert", "steps": 200, **options})


@pytest.mark.parametrize("method", ["residual", "dsrl", "dsrl-sac"])
def test_what_was_learned_on_a_robot_is_a_run_like_any_other(folder, short, method):
    args = args_of(folder, method, method=method)
    made = improve.improve(args)
    assert made["steps"] >= 200 and made["updates"] > 0 and made["gate"]["n"] == 4 and made["report"]["gate"]["latched"] == ""
    lines = [json.loads(line) for line in (folder / method / "interventions.jsonl").read_text().splitlines()]
    assert 30 < len(lines) == made["human_steps"] < made["steps"] and {line["kind"] for line in lines} == {"action"}
    assert min(line["step"] for line in lines) == 36  # the expert waits for the policy
    config = json.loads((folder / method / "config.json").read_text())
    assert (config["robot"], config["intervene"], config["reset"]) == ("sim", "expert", "scene")
    policies.load(folder / method)
    assert eval.evaluate(eval.Args(run=folder / method, episodes=2))["n"] == 2
    again = improve.improve(args)
    assert (again["steps"], again["updates"], again["curve"]) == (made["steps"], made["updates"], made["curve"])  # nothing is learned again


def test_episodes_on_a_robot_are_recorded_with_who_chose_each_action_and_recap_reads_that(folder, short):
    """An action of the policy counts for what it led to; an action of a person always counts as good."""
    made = improve.improve(args_of(folder, "recorded", record=folder / "robot"))
    data = Dataset(folder / "robot")
    human = np.asarray(data.column("intervention")).reshape(-1)
    assert 30 < human.sum() <= made["human_steps"] and not human.all()
    assert data.num_episodes >= 1 and sum(e.length for e in map(data.episode, range(data.num_episodes))) == len(human) <= made["steps"]
    args = improve.Args(run=folder / "bc", out=folder / "recap", method="recap", demos=folder / "robot", rounds=1, rollouts=2, updates=2)
    rounds: list[Any] = []

    def teach(self: Any, round: int, good: np.ndarray) -> int:
        rounds.append(good[: len(human)])
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sinew.cli.improve_offline.Rounds.teach", teach)
        improve.improve(args)
    assert rounds and all(good[human].all() for good in rounds)


def test_a_policy_can_be_measured_on_the_robot_and_bring_the_scene_back(folder, short):
    made = improve.improve(args_of(folder, "back", gate_on="robot", gate_episodes=1, reset="policy", reset_policy=folder / "bc", steps=120))
    assert made["gate"]["n"] == 1 and [n for _, _, n in made["curve"]] == [1] * len(made["curve"]) and len(made["curve"]) >= 2
    counts = made["report"]["reset"]
    assert counts["alone"] + counts["asked"] > 2 and counts["rounds"] >= counts["alone"]
    with pytest.raises(InputError, match="gate_on is 'robot' there, 'sim' here"):
        improve.improve(args_of(folder, "back", gate_on="sim", gate_episodes=1, reset="policy", reset_policy=folder / "bc", steps=240))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "rlpd"}, InputError, "--method rlpd does not learn on a robot yet: residual, dsrl, "),
        ({"reward": "nowhere.json"}, InputError, "there is none of that name"),
        ({"robot": "dds", "scene": False}, InputError, "somebody must say what was a success"),
        ({"scene": False, "intervene": "keyboard"}, InputError, "the robot in this process always has its scene"),
        ({"intervene": "keyboard"}, InputError, "standard input is none"),
        ({"reset": "policy"}, InputError, "--reset policy and --reset-policy RUN go together"),
        ({"reset_policy": Path("x")}, InputError, "--reset policy and --reset-policy RUN go together"),
        ({"gate_episodes": 0}, InputError, "at least 1 is needed"),
        ({"robot": None}, InputError, "--intervene expert is for learning on a robot: give --robot sim or --robot dds"),
        ({"robot": None, "intervene": None, "reset": "home"}, InputError, "--reset and --no-scene are for learning on a robot"),
        ({"task": "peg"}, SpecError, "observation"),
    ],
)
def test_options_that_do_not_go_together_leave_the_folder_free(folder, options, error, words, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(error, match=words) as told:
        improve.improve(args_of(folder, "never", **options))
    assert "\n" not in str(told.value) and not (folder / "never").exists()


def test_ctrl_c_brings_the_robot_to_rest_and_the_same_command_goes_on(folder):
    """A real process, stopped with a real signal in the middle of an episode."""
    out = folder / "stopped"
    command = [sys.executable, "-m", "sinew", "improve", str(folder / "bc"), "--out", str(out), "--method", "dsrl", "--robot", "sim"]
    command += ["--intervene", "expert", "--gate-on", "none", "--json", "--steps"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    while process.poll() is None and not (out / "interventions.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    stopped = json.loads(stdout)
    assert "stopped as asked" in stopped["reason"] and 36 <= stopped["steps"] < 2000 and stderr.count("stopping") == 1
    assert "Traceback" not in stderr and (out / "train_state.safetensors").exists()
    second = subprocess.Popen([*command, "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    before = (out / "interventions.jsonl").stat().st_size
    while second.poll() is None and (out / "interventions.jsonl").stat().st_size == before:
        time.sleep(0.02)
    second.send_signal(signal.SIGTERM)
    stdout, stderr = second.communicate(timeout=300)
    assert second.returncode == 0 and json.loads(stdout)["steps"] > stopped["steps"], stderr
