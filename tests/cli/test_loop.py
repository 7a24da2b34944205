"""The loop through the real command line: every verb a process of its own, on a small budget."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def sinew(*args, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", "sinew", *map(str, args)], capture_output=True, text=True, env=ENV, timeout=280)
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def result(*args) -> dict:
    """What --json prints: exactly one object."""
    return json.loads(sinew(*args, "--json").stdout)


def refusal(*args, code: int = 2) -> str:
    """The one line that a refused command says."""
    done = sinew(*args, code=code)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sinew: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a dataset `data` and a run `bc` trained on it."""
    folder = tmp_path_factory.mktemp("loop")
    collected = result("collect", "--task", "lift", "--episodes", 12, "--quality", "clean", "--out", folder / "data")
    assert collected["episodes"] == 12 and collected["successes"] >= 11
    result("train", "--data", folder / "data", "--steps", 400, "--out", folder / "bc")
    return folder


def test_evaluation_repeats_itself_and_says_its_interval(trained):
    first = result("eval", trained / "bc", "--episodes", 10)
    second = result("eval", trained / "bc", "--episodes", 10)
    assert first["successes"] == second["successes"] and first["n"] == 10
    assert first["wilson95"][0] <= first["k"] / 10 <= first["wilson95"][1]
    assert json.loads((trained / "bc/eval/lift.json").read_text())["seeds"] == first["seeds"]


def test_improving_leaves_the_base_alone_and_makes_a_run_that_evaluates_and_deploys(trained):
    before = (trained / "bc/policy.safetensors").read_bytes()
    got = result("improve", trained / "bc", "--out", trained / "better", "--steps", 3500)
    assert got["steps"] == 3500 and (trained / "bc/policy.safetensors").read_bytes() == before
    assert result("eval", trained / "better", "--episodes", 4)["n"] == 4
    deployed = result("deploy", trained / "better", "--robot", "sim", "--episodes", 1)
    assert deployed["success"]["n"] == 1 and deployed["stopped"] == ""


def test_deploying_over_the_network(trained):
    domain = str(100 + os.getpid() % 100)
    robot = subprocess.Popen(
        [sys.executable, "-m", "sinew", "robot", "--task", "lift", "--domain", domain], env=ENV, stderr=subprocess.PIPE, text=True
    )
    try:
        assert robot.stderr is not None and "ready" in robot.stderr.readline()
        got = result("deploy", trained / "bc", "--robot", "dds", "--domain", domain, "--episodes", 2)
        assert got["success"]["n"] == 2
    finally:
        robot.send_signal(signal.SIGINT)
        assert robot.wait(10) in (0, 130)


def test_collection_killed_and_repeated_is_the_same_collection(tmp_path):
    command = ["collect", "--task", "lift", "--quality", "human", "--episodes", "80", "--seed", "3", "--json", "--out"]
    whole = result(*command[:-2], "--out", tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "sinew", *command, str(tmp_path / "cut")], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut").glob("data/**/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    again = result(*command[:-2], "--out", tmp_path / "cut")
    assert (again["frames"], again["successes"], again["episodes"]) == (whole["frames"], whole["successes"], 80)


def test_demo_goes_on_after_a_kill_and_writes_its_report(tmp_path):
    small = [
        "demo",
        "--out",
        str(tmp_path / "demo"),
        "--episodes",
        "12",
        "--train-steps",
        "300",
        "--improve-steps",
        "3500",
        "--steer-steps",
        "1600",
        "--eval-episodes",
        "6",
        "--deploy-episodes",
        "1",
        "--videos",
        "0",
    ]
    process = subprocess.Popen([sys.executable, "-m", "sinew", *small], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "demo/stages/evaluate.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    evaluated = (tmp_path / "demo/stages/evaluate.json").stat().st_mtime_ns
    summary = result(*small)
    assert (tmp_path / "demo/stages/evaluate.json").stat().st_mtime_ns == evaluated
    assert summary["bc"]["n"] == summary["improved"]["n"] == 6 and summary["deployed"]["n"] == 1
    assert summary["steered"]["n"] == 6 and (tmp_path / "demo/steered/policy.safetensors").exists()
    assert set(summary["paired"]) >= {"p", "wins", "losses"} and summary["demos"]["episodes"] == 12
    assert json.loads((tmp_path / "demo/summary.json").read_text())["task"] == "lift"
    assert "<svg" in (tmp_path / "demo/report.html").read_text()
    assert "holds a demo with episodes 12, not 13" in refusal(*[a if a != "12" else "13" for a in small])


def test_unknown_names_offer_near_ones(tmp_path, trained):
    assert "did you mean 'lift'" in refusal("collect", "--task", "lfit", "--out", tmp_path / "d")
    assert "did you mean 'flow'" in refusal("train", "--data", trained / "data", "--policy", "flwo", "--out", tmp_path / "r")
    assert "did you mean 'train'" in refusal("trian")
    assert not (tmp_path / "d").exists()


def test_specs_that_do_not_fit_are_named(trained):
    assert "observation.environment_state" in refusal("eval", trained / "bc", "--task", "reach")


def test_rates_and_times_that_cannot_be_are_refused(trained):
    assert "--rate 0" in refusal("robot", "--rate", 0)
    assert "--controller-rate 0" in refusal("deploy", trained / "bc", "--controller-rate", 0)
    assert "--timeout -2" in refusal("deploy", trained / "bc", "--timeout", -2)


def test_a_policy_with_a_camera_goes_the_whole_way(tmp_path):
    if subprocess.run([sys.executable, "-c", "import sim.gl; sim.gl.backend()"], env=ENV, capture_output=True).returncode:
        pytest.skip("no OpenGL on this machine")
    result("collect", "--task", "lift", "--episodes", 2, "--cameras", "front", "--image-size", 32, "--out", tmp_path / "data")
    result("train", "--data", tmp_path / "data", "--steps", 3, "--batch-size", 8, "--out", tmp_path / "bc")
    assert result("eval", tmp_path / "bc", "--episodes", 2)["n"] == 2
    assert result("deploy", tmp_path / "bc", "--robot", "sim", "--episodes", 1)["stopped"] == ""


def test_a_missing_run_names_the_runs_beside_it(trained):
    said = refusal("eval", trained / "nothing")
    assert str(trained / "bc") in said and "no run at" in said


def test_foreign_and_truncated_datasets_are_refused(tmp_path, trained):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    assert str(tmp_path / "photos") in refusal("train", "--data", tmp_path / "photos", "--out", tmp_path / "r")
    subprocess.run(["cp", "-r", trained / "data", tmp_path / "cut"], check=True)
    table = next((tmp_path / "cut").glob("data/**/*.parquet"))
    table.write_bytes(table.read_bytes()[:200])
    assert "sinew data" in refusal("train", "--data", tmp_path / "cut", "--out", tmp_path / "r")


def test_a_checkpoint_of_another_version_is_refused(tmp_path, trained):
    subprocess.run(["cp", "-r", trained / "bc", tmp_path / "old"], check=True)
    described = json.loads((tmp_path / "old/policy.json").read_text())
    (tmp_path / "old/policy.json").write_text(json.dumps({**described, "format_version": 99}))
    assert "99" in refusal("eval", tmp_path / "old")


def test_no_robot_is_told_with_the_seconds_waited(trained):
    assert "within 1 s" in refusal("deploy", trained / "bc", "--robot", "dds", "--domain", 230, "--timeout", 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_keeps_what_was_recorded(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        said = refusal("collect", "--task", "lift", "--episodes", 400, "--out", disk / "data")
        assert "space" in said.lower()
        kept = result("data", "info", disk / "data")
        assert kept["episodes"] > 0
    finally:
        subprocess.run(["umount", disk], check=False)


def test_a_mistyped_command_leaves_the_folder_free(trained):
    """What was wrong with the first command must not keep the right one out."""
    train = ("train", "--data", trained / "data", "--out", trained / "typo")
    assert "steps" in refusal(*train, "--steps", 0)
    assert "unknown policy" in refusal(*train, "--policy", "flwo")
    assert "unknown device" in refusal(*train, "--device", "gpu")
    assert "finite" in refusal(*train, "--learning-rate", "nan")
    assert "--seed -1" in refusal(*train, "--seed", -1)
    assert "longer than the longest episode" in refusal(*train, "--horizon", 5000)
    assert not (trained / "typo").exists()
    improve = ("improve", trained / "bc", "--out", trained / "typo")
    assert "no dataset" in refusal(*improve, "--demos", trained / "nowhere")
    assert "--num-envs 0" in refusal(*improve, "--num-envs", 0)
    assert not (trained / "typo").exists()


def test_evaluations_made_in_different_ways_are_kept_apart(trained):
    for way in ((), ("--executor", "ensemble"), ("--act-steps", 3)):
        result("eval", trained / "bc", "--episodes", 4, *way)
    names = {path.name for path in (trained / "bc/eval").glob("lift*.json")}
    assert {"lift.json", "lift-ensemble.json", "lift-act3.json"} <= names
    same = result("compare", trained / "bc", trained / "bc", "--executor", "ensemble")
    assert same["executor"] == "ensemble" and same["a"]["n"] == 4


@pytest.mark.parametrize("wrong", [("--deploy-episodes", 0), ("--train-steps", 0), ("--videos", -1), ("--task", "lfit")])
def test_the_demo_refuses_at_once_and_leaves_the_folder_free(tmp_path, wrong):
    assert str(wrong[1]) in refusal("demo", "--out", tmp_path / "demo", *wrong)
    assert not (tmp_path / "demo").exists()


def test_a_killed_command_leaves_no_robot_behind():
    """The robot that a demo starts ends with the demo, even by kill -9."""
    start = "from sinew.cli.deploy import simulated_robot"
    lines = ("import time", start, "with simulated_robot('reach'):", " print(1, flush=True)", " time.sleep(60)")
    source = "\n".join(lines)
    parent = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, env=ENV)
    assert parent.stdout is not None and parent.stdout.readline() == "1\n"
    (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    time.sleep(4)  # until it serves
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the robot still runs"
        time.sleep(0.1)
