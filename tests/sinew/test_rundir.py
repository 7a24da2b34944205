"""The run directory: atomic under kill -9 and a full disk, refuses other runs, survives torn lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sinew.errors import DataError, InputError
from sinew.rundir import RunDir, atomic_write, commit, provenance, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Config:
    steps: int
    rate: float = 0.5


def child(source: str, *arguments: str) -> subprocess.Popen[str]:
    source = textwrap.dedent(source)
    return subprocess.Popen([sys.executable, "-c", source, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# ---------------------------------------------------------------- atomic writes


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_files_get_the_permissions_that_the_umask_grants(tmp_path: Path) -> None:
    atomic_write(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_kill_at_any_moment_leaves_one_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "state"
    source = """
        import sys
        from sinew.rundir import atomic_write
        print("go", flush=True)
        while True:
            for letter in "ab":
                atomic_write(sys.argv[1], letter * 300_000)
    """
    for i in range(12):
        process = child(source, str(path))
        assert process.stdout and process.stdout.readline() == "go\n"
        time.sleep(0.02 + 0.013 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if path.exists():
            content = path.read_text()
            assert len(content) == 300_000 and len(set(content)) == 1


def test_a_full_disk_is_one_line_and_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    source = """
        import resource, sys
        from sinew.errors import InputError
        from sinew.rundir import atomic_write
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            atomic_write(sys.argv[1], "x" * 100_000)
        except InputError as e:
            print(e)
    """
    out, err = child(source, str(path)).communicate(timeout=60)
    assert out.startswith(f"cannot write {path}: ") and out.count("\n") == 1 and not err
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        atomic_write(tmp_path / "file" / "below", "x")


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": (1, 2), "c": Config(3)})
    assert read_json(path) == {"a": [1, 2], "c": {"steps": 3, "rate": 0.5}}
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "y.json")
    for damaged in (b'{"a": [1,', b"\xff\xfe\x00"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.json cannot be read as JSON"):
            read_json(path)


# ---------------------------------------------------------------- runs


def test_create_records_config_and_provenance(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", Config(10), seeds={"train": 3}, inputs={"data": "abc"})
    assert read_json(run / "config.json") == {"format_version": 1, "steps": 10, "rate": 0.5}
    told = read_json(run / "provenance.json")
    assert told["seeds"] == {"train": 3} and told["inputs"] == {"data": "abc"}
    assert {"commit", "python", "packages", "machine", "command", "created_unix_s"} <= told.keys()


def test_the_same_config_opens_the_same_run_again(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", Config(10), seeds={"train": 3})
    before = (tmp_path / "run" / "provenance.json").read_bytes()
    RunDir.create(tmp_path / "run", Config(10), seeds={"train": 4})
    assert (tmp_path / "run" / "provenance.json").read_bytes() == before


def test_a_folder_is_free_for_what_is_known_of_a_run(tmp_path: Path) -> None:
    RunDir(tmp_path / "new").check_free({"verb": "improve"})
    RunDir.create(tmp_path / "run", {"verb": "improve", "task": "lift", "more": 3})
    RunDir(tmp_path / "run").check_free({"verb": "improve", "task": "lift"})
    with pytest.raises(InputError, match="task is 'lift' there, 'peg' here"):
        RunDir(tmp_path / "run").check_free({"verb": "improve", "task": "peg"})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; choose another folder"):
        RunDir.create(tmp_path / "file", {})


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", Config(10))
    with pytest.raises(InputError, match="holds another run: steps is 10 there, 20 here; choose another --out"):
        RunDir.create(tmp_path / "run", Config(20))
    with pytest.raises(InputError, match="extra is None there, 1 here"):
        RunDir.create(tmp_path / "run", {"steps": 10, "rate": 0.5, "extra": 1})
    RunDir.create(tmp_path / "improved", {"verb": "improve", "bound": 1.5, "method": "dsrl"})
    with pytest.raises(InputError, match="method is 'dsrl' there, 'residual' here"):
        RunDir.create(tmp_path / "improved", {"verb": "improve", "scale": 0.5, "method": "residual"})
    with pytest.raises(InputError, match="verb is None there, 'improve' here"):
        RunDir.create(tmp_path / "run", {"base": "x", "verb": "improve"})
    RunDir.create(tmp_path / "deep", {"residual": {"gamma": 0.99, "learner": {"tau": 0.1, "rate": [1, 2]}}})
    with pytest.raises(InputError, match=r"another run: residual.learner.rate is \[1, 2\] there, \[1, 3\] here; choose"):
        RunDir.create(tmp_path / "deep", {"residual": {"gamma": 0.99, "learner": {"tau": 0.1, "rate": [1, 3]}}})


def test_open_names_the_runs_beside_a_missing_one(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "right", Config(1))
    assert RunDir.open(tmp_path / "right").path == tmp_path / "right"
    with pytest.raises(InputError, match=r"no run at .*wrong: runs there are .*right"):
        RunDir.open(tmp_path / "wrong")
    (tmp_path / "empty" / "x").mkdir(parents=True)
    with pytest.raises(InputError, match="train one with sinew train"):
        RunDir.open(tmp_path / "empty" / "x")


def test_metrics_survive_a_torn_line_and_go_on_after_it(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, Config(1))
    run.log(step=1, loss=0.5)
    with open(run / "metrics.jsonl", "ab") as f:
        f.write(b'{"step": 2, "lo\xc3')  # killed in the middle of a character
    run.log(step=3, loss=0.25)
    run.log(step=4)
    assert [m["step"] for m in run.metrics()] == [1, 3, 4]
    assert list(RunDir(tmp_path / "none").metrics()) == []


def test_the_commit_is_ours_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    if shutil.which("git"):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        subprocess.run(["git", "-C", tmp_path, *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
        assert len(commit(tmp_path)) == 12
    (tmp_path / "venv" / "site-packages").mkdir(parents=True)
    assert commit(tmp_path / "venv" / "site-packages") == "unknown"  # inside a repository that is not ours
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without git
    assert commit(tmp_path) == "unknown"
    RunDir.create(tmp_path / "run", Config(1))


def test_provenance_is_json_and_names_no_user() -> None:
    text = json.dumps(provenance({"a": 1}, {}))
    assert os.uname().nodename not in json.loads(text)["machine"].values()


# ---------------------------------------------------------------- one process at a time


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", Config(steps=3))
    source = """
        import sys, time
        from sinew.rundir import RunDir
        with RunDir(sys.argv[1]).held():
            print("held", flush=True)
            time.sleep(60)
    """
    process = child(source, str(run.path))
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"pid {process.pid}"), run.held():
        pass
    process.kill()
    process.wait()
    with run.held():
        pass
    with run.held():
        pass


def test_a_dataset_is_no_place_for_a_run(tmp_path: Path) -> None:
    write_json(tmp_path / "data/meta/info.json", {})
    with pytest.raises(InputError, match="holds a dataset"):
        RunDir.create(tmp_path / "data", Config(steps=3))
