"""`sinew export`: files that run, and refusals in one line that leave nothing behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import policies
from policies.export import OnnxPolicy, TorchPolicy
from sinew.cli.main import main
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

SMALL = {"width": 16, "feedforward": 16, "heads": 2, "style_layers": 1, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture
def run(tmp_path):
    """The run of a policy that is one small graph."""
    torch.set_num_threads(1)
    action = ActionSpec(kind="ee_delta", low=(-1.0, -2.0), high=(1.0, 2.0), rate_hz=20.0, names=("x", "y"))
    spec = PolicySpec(observation=ObservationSpec({STATE: TensorSpec(shape=(3,))}), action=action, horizon=4)
    stats = {STATE: {"mean": np.zeros(3), "std": np.ones(3)}}
    policies.save(policies.make("act", spec, stats, SMALL, seed=0), tmp_path / "run")
    return tmp_path / "run"


def refusal(capsys, *arguments, code=2) -> str:
    """The one line of a refused export."""
    assert main(["export", *map(str, arguments)]) == code
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line]
    assert told.out == "" and len(lines) == 1 and lines[0].startswith("sinew: "), told
    return lines[0]


@pytest.mark.parametrize(("format", "runner", "suffix"), [("onnx", OnnxPolicy, "onnx"), ("torch", TorchPolicy, "pt2")])
def test_an_exported_run_acts_as_the_run_does(format, runner, suffix, run, capsys):
    out = run / format
    assert main(["export", str(run), "--format", format, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {name: (out / name).stat().st_size for name in (f"sample.{suffix}", "export.json")}
    assert 0 <= told["parity"]["sample"] <= told["tolerance"] == 1e-4
    policy, obs = policies.load(run), {STATE: torch.randn(1, 1, 3)}
    noise = torch.randn(1, 2, *policy.spec.noise_shape)
    with torch.no_grad():
        wanted = policy.sample(policy.encode(obs), n=2, noise=noise).actions
    np.testing.assert_allclose(runner(out).chunk({STATE: obs[STATE].numpy()}, noise.numpy()), wanted, atol=1e-4)
    assert "is not an empty folder" in refusal(capsys, run, "--format", format, "--out", out)
    assert policies.load(run).spec == policy.spec  # graphs in a run's folder do not hinder it


def test_lines_say_the_files_and_how_far_they_are_from_the_policy(run, capsys):
    assert main(["export", str(run), "--format", "torch", "--out", str(run.parent / "out")]) == 0
    told = capsys.readouterr().out.replace("\n", "")
    assert "sample.pt2" in told and "export.json" in told and "at most 0.0001 is let through" in told


def test_refusals_are_one_line_and_leave_nothing(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert "no run at" in refusal(capsys, tmp_path / "none", "--out", out)
    assert f"{run} exists and is not an empty folder" in refusal(capsys, run, "--out", run)
    assert "at least 1 step, not 0" in refusal(capsys, run, "--format", "torch", "--out", out, "--steps", 0)
    monkeypatch.setattr("policies.export.find_spec", lambda name: None)
    assert "needs onnx: pip install 'sinew[export]'" in refusal(capsys, run, "--out", out, code=3)
    for name in ("weights.pt", "model.bin", "policy.pkl", "last.ckpt"):
        (run / name).write_bytes(b"\x80\x04N.")
        assert f"{name} is a pickle, which can run any code" in refusal(capsys, run, "--format", "torch", "--out", out)
        (run / name).unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unknown_format_is_refused_by_the_command_line(run, capsys):
    assert main(["export", str(run), "--format", "tensorrt", "--out", str(run.parent / "out")]) == 2
    assert "onnx" in capsys.readouterr().err and not (run.parent / "out").exists()
