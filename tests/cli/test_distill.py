"""Distilling by the real command: a process of its own, stopped, repeated and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import policies
from sinew.cli import collect, distill, eval, train
from sinew.errors import InputError, SpecError
from sinew.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def sinew(*args, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", "sinew", *map(str, args)], capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a dataset `data` and a run `bc` trained on it."""
    folder = tmp_path_factory.mktemp("distill")
    collect.collect(collect.Args(task="reach", episodes=6, out=folder / "data"))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=60, batch_size=32))
    return folder


def args(made: Path, out: Path, **changed) -> distill.Args:
    return distill.Args(**{"run": made / "bc", "out": out, "updates": 8, "batch_size": 16, "teacher_steps": 3, **changed})


def test_the_command_makes_a_run_that_evaluates_and_leaves_the_teacher_alone(made, tmp_path):
    before = {path.name: path.read_bytes() for path in (made / "bc").iterdir() if path.is_file()}
    options = ["--updates", 8, "--batch-size", 16, "--json", "--form", "ctm", "--out", tmp_path / "fast"]
    got = json.loads(sinew("distill", made / "bc", *options).stdout)
    assert got["steps"] == 1 and got["updates"] == 8 and got["run"] == str(tmp_path / "fast")
    assert {path.name: path.read_bytes() for path in (made / "bc").iterdir() if path.is_file()} == before
    student = policies.load(tmp_path / "fast")
    assert type(student).__name__ == "ConsistencyPolicy" and student.config.steps == 1
    config = json.loads((tmp_path / "fast/config.json").read_text())
    assert config["verb"] == "distill" and config["task"] == "reach" and config["teacher"] == str(made / "bc")
    assert eval.evaluate(eval.Args(run=str(tmp_path / "fast"), episodes=2))["n"] == 2


def test_stopped_and_repeated_is_the_same_run(made, tmp_path):
    """Ctrl-C leaves a whole state, from which the same command goes on."""
    settings = {"updates": 200, "form": "ctm"}
    whole = distill.distil(args(made, tmp_path / "whole", **settings))
    command = ["distill", made / "bc", "--updates", 200, "--batch-size", 16, "--teacher-steps", 3, "--form", "ctm"]
    command += ["--out", tmp_path / "cut"]
    process = subprocess.Popen([sys.executable, "-m", "sinew", *map(str, command)], env=ENV, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "cut/metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert 50 <= json.loads((tmp_path / "cut/train_state.json").read_text())["step"] < 200
    again = distill.distil(args(made, tmp_path / "cut", **settings))
    assert again["loss"] == whole["loss"]
    tensors = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("whole", "cut")]
    assert tensors[0] == tensors[1]


def test_refusals_are_one_line_with_code_2(made, tmp_path):
    done = sinew("distill", made / "bc", "--steps", "0", "--out", tmp_path / "out", code=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sinew: ")]
    assert len(lines) == 1 and "distilling steps must be at least 1, not 0" in lines[0] and "Traceback" not in done.stderr
    with pytest.raises(InputError, match="steps must be at least 1, not 0"):
        distill.distil(args(made, tmp_path / "out", updates=0))
    train.train(train.Args(data=(made / "data",), out=tmp_path / "ddpm", policy="diffusion", steps=2, batch_size=16))
    with pytest.raises(SpecError, match="samples in at most 100 steps, the levels of its schedule, not 101"):
        distill.distil(args(made, tmp_path / "out", run=tmp_path / "ddpm", teacher_steps=101))
    collect.collect(collect.Args(task="reach", episodes=1, out=tmp_path / "brief"))
    train.train(train.Args(data=(made / "data",), out=tmp_path / "long", horizon=9, steps=2, batch_size=16))
    with pytest.raises(InputError, match="the horizon of 9 actions is longer than the longest episode, 7 frames"):
        distill.distil(args(made, tmp_path / "out", run=tmp_path / "long", data=(tmp_path / "brief",)))
    assert not (tmp_path / "out").exists()  # nothing is begun that cannot be finished


def test_a_run_that_is_no_denoiser_is_refused(made, tmp_path):
    distill.distil(args(made, tmp_path / "fast"))
    with pytest.raises(SpecError, match="distilling needs a policy with capability 'denoise'; ConsistencyPolicy has: "):
        distill.distil(args(made, tmp_path / "faster", run=tmp_path / "fast"))
    assert not (tmp_path / "faster").exists()


def test_data_of_another_robot_or_none_is_refused(made, tmp_path):
    collect.collect(collect.Args(task="handover", episodes=2, out=tmp_path / "two_arms"))
    with pytest.raises(SpecError, match=r"the dataset[^\n]*the policy"):
        distill.distil(args(made, tmp_path / "out", data=(tmp_path / "two_arms",)))
    moved = shutil.copytree(made / "bc", tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match=r"was trained on .*gone, which is not there; say where it is with --data"):
        distill.distil(args(made, tmp_path / "out", run=moved))
    (moved / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "data"}))
    with pytest.raises(InputError, match="does not say which data it was trained on; name them with --data"):
        distill.distil(args(made, tmp_path / "out", run=moved))
    assert not (tmp_path / "out").exists()


def test_another_teacher_form_or_budget_does_not_go_on_in_the_same_folder(made, tmp_path):
    out = tmp_path / "fast"
    distill.distil(args(made, out))
    with pytest.raises(InputError, match=r"holds another run: distill\.form is 'rl100' there, 'ctm' here; choose another --out"):
        distill.distil(args(made, out, form="ctm"))
    with pytest.raises(InputError, match="holds another run: updates is 8 there, 9 here; choose another --out"):
        distill.distil(args(made, out, updates=9))
    train.train(train.Args(data=(made / "data",), out=tmp_path / "other", steps=2, batch_size=32, seed=1))
    with pytest.raises(InputError, match="holds another run: teacher"):
        distill.distil(args(made, out, run=tmp_path / "other"))
    assert len(list(RunDir(out).metrics())) == 1
