"""Training: it learns, resumes exactly after a real kill, and several processes train as one."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import policies
from policies.train import TrainConfig, learning_rate, train
from sinew.errors import DataError, InputError, SpecError
from sinew.progress import Progress
from sinew.rundir import RunDir

WORKER = Path(__file__).with_name("train_worker.py")
SETTINGS: dict[str, Any] = {"steps": 60, "batch_size": 16, "warmup_steps": 5, "log_every": 1, "checkpoint_every": 7, "seed": 3}


def run_dir(path):
    path.mkdir(parents=True, exist_ok=True)
    return RunDir(path)


def worker(folder, case, settings=SETTINGS, kill_at=None, processes=1):
    """Run the training process(es); gives the exit status."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    last = [] if kill_at is None else [str(kill_at)]
    command = [sys.executable, *launcher, str(WORKER), str(folder), case, json.dumps(settings), *last]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    if done.returncode != 0 and (kill_at is None or ("SIGKILL" not in done.stderr and done.returncode != -signal.SIGKILL)):
        pytest.fail(done.stderr[-2000:])
    return done.returncode


def losses(folder):
    lines = [line for line in RunDir(folder).metrics() if line["stage"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # each step once, in order
    return np.array([line["loss"] for line in lines])


def tensors(folder):
    return policies.load(folder).state_dict()


@pytest.mark.parametrize("name", ["flow-mlp", "flow-mlp-camera", "vla-bidirectional"])
def test_killed_and_resumed_takes_the_same_steps(toys, tmp_path, name):
    policy, data = toys.make(name)
    settings = SETTINGS | {"steps": 60 if name == "flow-mlp" else 20}
    train(policy, data, run_dir(tmp_path / "whole"), TrainConfig(**settings))
    for step in sorted(random.Random(name).sample(range(1, settings["steps"]), 2 if name == "flow-mlp" else 1)):
        assert worker(tmp_path / "killed", name, settings, kill_at=step) == -signal.SIGKILL
        with open(tmp_path / "killed" / "metrics.jsonl", "a") as f:
            f.write('{"stage": "train", "st')  # a line torn by the kill
    assert worker(tmp_path / "killed", name, settings) == 0
    np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "whole"), rtol=0, atol=1e-6)
    assert len(losses(tmp_path / "whole")) == settings["steps"]
    whole, killed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_killed_at_any_moment_leaves_a_whole_state(toys, tmp_path):
    """Checkpoints after every step, killed from outside at moments nobody chose: the state is always one that resumes."""
    settings = {**SETTINGS, "steps": 80, "checkpoint_every": 1, "log_every": 80}
    (tmp_path / "run").mkdir()
    command = [sys.executable, str(WORKER), str(tmp_path / "run"), "flow-mlp", json.dumps(settings)]
    reached = []
    for pause in (0.03, 0.19):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        state, before = tmp_path / "run" / "train_state.json", reached[-1] if reached else 0
        while process.poll() is None and not (state.exists() and json.loads(state.read_text())["step"] > before):
            time.sleep(0.02)
        time.sleep(pause)
        process.kill()
        process.wait()
        policies.load(tmp_path / "run")
        reached.append(json.loads(state.read_text())["step"])
    assert reached == sorted(reached) and 0 < reached[0] <= reached[-1] <= 80
    policy, data = toys.make("flow-mlp")
    resumed = train(policy, data, RunDir(tmp_path / "run"), TrainConfig(**settings)).state_dict()
    policy, data = toys.make("flow-mlp")
    whole = train(policy, data, run_dir(tmp_path / "whole"), TrainConfig(**settings)).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize(("name", "killed"), [("flow-mlp", True), ("flow-mlp-camera", False)])
def test_two_processes_train_as_one(toys, tmp_path, name, killed):
    """The first case loses a process after step 12 and goes on from step 7 with the other number of processes; in the second
    samples have weights."""
    settings = {**SETTINGS, "steps": 25}
    policy, data = toys.make(name)
    weights = None
    if not killed:  # very different ones, so that the processes' shares weigh differently
        settings["weights"] = (np.random.default_rng(0).uniform(size=len(data)) ** 8).tolist()
        weights = np.array(settings["weights"])
    train(policy, data, run_dir(tmp_path / "one"), TrainConfig(**{k: v for k, v in settings.items() if k != "weights"}), weights=weights)
    assert (worker(tmp_path / "two", name, settings, kill_at=12 if killed else None, processes=2) == 0) is not killed
    if killed:
        assert json.loads((tmp_path / "two" / "train_state.json").read_text())["step"] == 7
        worker(tmp_path / "two", name, settings)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=0, atol=1e-5)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-5)


def test_a_batch_that_does_not_divide_is_told():
    from policies.parallel import Group

    assert [Group(rank, 2).share(10) for rank in (0, 1)] == [slice(0, 5), slice(5, 10)]
    with pytest.raises(InputError, match="batch_size 10 is not a multiple of the 4 processes: use 8"):
        Group(1, 4).share(10)


def test_training_learns_and_returns_the_averaged_policy(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    batch = toys.batch(data, policy.spec, 64)
    pinned = policy.draw(64, torch.Generator().manual_seed(1))
    before = policy.loss(batch, **{k: pinned[k] for k in ("t", "noise")}).scalar.item()
    config = TrainConfig(steps=400, batch_size=64, learning_rate=3e-3, log_every=50)
    result = train(policy, data, run_dir(tmp_path), config)
    assert result is policy and not policy.training
    assert policy.loss(batch, **{k: pinned[k] for k in ("t", "noise")}).scalar.item() < 0.7 * before
    loaded = policies.load(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in policy.state_dict().items())
    lines = list(RunDir(tmp_path).metrics())
    assert [line["step"] for line in lines] == list(range(50, 401, 50))
    for line in lines:
        spent = line["load_s"] + line["preprocess_s"] + line["update_s"]
        assert min(line["load_s"], line["preprocess_s"], line["update_s"]) >= 0
        assert line["samples_per_s"] == pytest.approx(64 / spent)


def test_a_finished_run_is_given_back_without_a_step(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    config = TrainConfig(**SETTINGS)
    first = {k: v.clone() for k, v in train(policy, data, run_dir(tmp_path), config).state_dict().items()}
    policy, data = toys.make("flow-mlp")
    policy.loss = None  # a step would fail
    again = train(policy, data, RunDir(tmp_path), config).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert len(losses(tmp_path)) == 60


def test_ctrl_c_ends_the_step_and_leaves_a_resumable_run(toys, tmp_path):
    class PressAt(Progress):
        def start(self, stage, total, done=0):
            self.done = done

        def advance(self, n=1, **values):
            self.done += n
            if self.done == 20:
                os.kill(os.getpid(), signal.SIGINT)

    policy, data = toys.make("flow-mlp")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(policy, data, run_dir(tmp_path / "stopped"), TrainConfig(**{**SETTINGS, "checkpoint_every": 1000}), PressAt())
    assert signal.getsignal(signal.SIGINT) is before
    assert 20 <= json.loads((tmp_path / "stopped" / "train_state.json").read_text())["step"] <= 22
    policy, data = toys.make("flow-mlp")
    resumed = train(policy, data, RunDir(tmp_path / "stopped"), TrainConfig(**{**SETTINGS, "checkpoint_every": 1000})).state_dict()
    policy, data = toys.make("flow-mlp")
    whole = train(policy, data, run_dir(tmp_path / "whole"), TrainConfig(**SETTINGS)).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_loss_that_is_not_finite_names_the_frames(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    data.actions[37] = np.nan
    with pytest.raises(DataError, match=r"not finite at step \d+ for dataset frames .*; action not finite there") as told:
        train(policy, data, run_dir(tmp_path), TrainConfig(**{**SETTINGS, "checkpoint_every": 1}))
    frames = [int(f) for f in str(told.value).split("frames ")[1].split(";")[0].split(",")]
    assert set(frames) <= set(range(33, 38))  # the windows of five actions that hold frame 37
    if (tmp_path / "policy.json").exists():
        policies.load(tmp_path)  # what was saved before the bad step is whole


def test_divergence_is_told_as_such(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    config = TrainConfig(**{**SETTINGS, "learning_rate": 1e30, "warmup_steps": 0, "gradient_clip": 0.0})
    with pytest.raises(DataError, match=r"\(16 of 16\); the data are finite, so training diverged: lower learning_rate"):
        train(policy, data, run_dir(tmp_path), config)


def test_other_settings_or_data_do_not_resume(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    train(policy, data, run_dir(tmp_path), TrainConfig(**SETTINGS))
    policy, data = toys.make("flow-mlp")
    with pytest.raises(InputError, match="was trained with batch_size = 16, not 32"):
        train(policy, data, RunDir(tmp_path), TrainConfig(**{**SETTINGS, "batch_size": 32}))
    with pytest.raises(InputError, match="was trained with episodes = 6, not 7"):
        train(policy, toys.ToyData(7), RunDir(tmp_path), TrainConfig(**SETTINGS))
    unet, data = toys.make("flow-unet")
    with pytest.raises(DataError, match="belongs to another policy"):
        train(unet, data, RunDir(tmp_path), TrainConfig(**SETTINGS))


@pytest.mark.parametrize("keep", [0, 50, 0.7])
def test_a_damaged_state_is_told(toys, tmp_path, keep):
    policy, data = toys.make("flow-mlp")
    train(policy, data, run_dir(tmp_path), TrainConfig(**SETTINGS))
    path = tmp_path / "train_state.safetensors"
    path.write_bytes(path.read_bytes()[: keep if isinstance(keep, int) else int(path.stat().st_size * keep)])
    policy, data = toys.make("flow-mlp")
    with pytest.raises(DataError, match=r"train_state.safetensors is truncated or not a safetensors file"):
        train(policy, data, RunDir(tmp_path), TrainConfig(**SETTINGS))


def test_a_foreign_state_is_told(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    save_file(policy.state_dict(), tmp_path / "train_state.safetensors")
    with pytest.raises(DataError, match="is not a training state of Sinew: remove it to start over"):
        train(policy, data, RunDir(tmp_path), TrainConfig(**SETTINGS))
    save_file(policy.state_dict(), tmp_path / "train_state.safetensors", {"sinew_train_state": '{"format_version": 7, "config": {}}'})
    with pytest.raises(DataError, match="format version 7, this Sinew reads 1"):
        train(policy, data, RunDir(tmp_path), TrainConfig(**SETTINGS))


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(toys, tmp_path, monkeypatch):
    policy, data = toys.make("flow-mlp")
    written = []

    def fill(fd):
        written.append(fd)
        if len(written) > 7:  # some checkpoints fit
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(InputError, match="No space left on device"):
        train(policy, data, run_dir(tmp_path), TrainConfig(**SETTINGS))
    monkeypatch.undo()
    assert policies.load(tmp_path) is not None
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    policy, data = toys.make("flow-mlp")
    train(policy, data, RunDir(tmp_path), TrainConfig(**SETTINGS))
    assert len(losses(tmp_path)) == 60


def test_data_that_do_not_fit_are_refused(toys, tmp_path):
    policy, _ = toys.make("flow-mlp-camera")
    with pytest.raises(SpecError, match=r"the policy needs 'observation.images.front'"):
        train(policy, toys.ToyData(), RunDir(tmp_path), TrainConfig(**SETTINGS))
    policy, _ = toys.make("flow-mlp")
    with pytest.raises(DataError, match="no frames"):
        train(policy, toys.ToyData(0), RunDir(tmp_path), TrainConfig(**SETTINGS))


def test_a_frozen_policy_has_nothing_to_train(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    with pytest.raises(InputError, match="no parameters to train"):
        train(policy.requires_grad_(False), data, RunDir(tmp_path), TrainConfig(**SETTINGS))


def test_learning_rate_warms_up_and_falls_as_half_a_cosine():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=2.0)
    assert [learning_rate(config, k) for k in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert learning_rate(config, 10) == 2.0 and learning_rate(config, 60) == pytest.approx(1.0)
    assert learning_rate(config, 35) == pytest.approx(1 + math.cos(math.pi / 4))
    assert learning_rate(config, 110) == pytest.approx(0.0)


def test_the_global_generator_is_left_as_it_was(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    before = torch.get_rng_state()
    train(policy, data, run_dir(tmp_path), TrainConfig(**{**SETTINGS, "steps": 3}))
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_settings_are_told():
    with pytest.raises(InputError, match="training steps must be at least 1, not 0"):
        TrainConfig(steps=0)
    with pytest.raises(InputError, match="ema_decay"):
        TrainConfig(ema_decay=1.0)


def test_a_run_killed_between_its_last_state_and_its_policy_still_gets_the_policy(toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    first = {k: v.clone() for k, v in train(policy, data, run_dir(tmp_path), TrainConfig(**SETTINGS)).state_dict().items()}
    (tmp_path / "policy.json").unlink()
    (tmp_path / "policy.safetensors").unlink()
    policy, data = toys.make("flow-mlp")
    train(policy, data, RunDir(tmp_path), TrainConfig(**SETTINGS))
    assert all(torch.equal(first[key], value) for key, value in tensors(tmp_path).items())
