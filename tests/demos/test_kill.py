"""A recorder killed with SIGKILL for real, at random moments: what it acknowledged is there afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import demos
from sinew.errors import DataError

REPOSITORY = Path(demos.__file__).parent.parent

RECORDER = """
import os, sys
import numpy as np
sys.path.insert(0, os.environ["CONFTEST"])
from conftest import make_frame, make_specs
import demos
root, cameras, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
observation, action = make_specs(cameras)
if os.path.exists(root):
    writer = demos.Writer.resume(root, task="push the block")
else:
    writer = demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="push the block")
def tell(text):
    os.write(1, (text + "\\n").encode())
tell(f"ready {writer.num_episodes}")
for episode in range(writer.num_episodes, 1000):
    for at in range(length):
        writer.add_frame(make_frame(episode, at, cameras))
        tell(f"frame {episode} {at}")
    tell(f"saving {episode}")
    writer.save_episode(success=True)
    tell(f"saved {episode}")
"""


def run_and_kill(root: Path, cameras: int, length: int, when, tmp_path: Path) -> list[list[str]]:
    """Start the recorder, kill it where `when(lines)` says so, and give what it had acknowledged by then."""
    environment = {**os.environ, "CONFTEST": str(Path(__file__).parent), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(root), str(cameras), str(length)], stdout=subprocess.PIPE, env=environment, text=True
    )
    lines: list[list[str]] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.split())
        delay_s = when(lines)
        if delay_s is not None:
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            break
    rest = process.stdout.read()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    return lines + [line.split() for line in rest.splitlines()]


def hashes(root: Path) -> dict[str, str]:
    """Hash of every file that holds frames, by path."""
    files = [*root.glob("data/**/*.parquet"), *root.glob("videos/**/*.mp4"), *root.glob("meta/episodes/**/*.parquet")]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check_content(dataset: demos.Dataset, helpers, cameras: int) -> None:
    """Every frame of every episode is the one that was recorded under that number."""
    for i in range(dataset.num_episodes):
        e = dataset.episode(i)
        for at in (0, e.length // 2, e.length - 1):
            want, have = helpers.frame(i, at, cameras), dataset[e.start + at]
            np.testing.assert_array_equal(have["observation.state"], want["observation.state"])
            np.testing.assert_array_equal(have["action"], want["action"])
            for key in dataset.cameras:
                assert np.abs(have[key].astype(int) - want[key]).mean() < 6, (key, i, at)


@pytest.mark.parametrize("cameras", [0, 2])
def test_kill_at_random_moments(tmp_path, helpers, cameras):
    """Seven kills on one dataset, in the middle of episodes, while saving and right after."""
    root, length, rng = tmp_path / "d", 12, random.Random(cameras)
    expected = 0
    for kill in range(7):
        before = hashes(root) if root.exists() else {}
        told = json.loads((root / "meta/info.json").read_text())["total_episodes"] if root.exists() else 0

        def when(lines, kind=kill % 3):
            episodes = sum(line[0] == "saved" for line in lines)
            if episodes < 1:
                return None
            if kind == 0 and lines[-1][0] == "frame" and rng.random() < 0.2:
                return rng.random() * 0.01
            if kind == 1 and lines[-1][0] == "saving":
                return rng.random() * 0.05
            return rng.random() * 0.02 if kind == 2 and lines[-1][0] == "saved" else None

        lines = run_and_kill(root, cameras, length, when, tmp_path)
        saved = sum(line[0] == "saved" for line in lines)
        assert lines[0][0] == "ready"
        expected = int(lines[0][1]) + saved
        acknowledged = 0
        for line in lines:
            acknowledged = int(line[2]) + 1 if line[0] == "frame" else 0 if line[0] == "saved" else acknowledged
        for name, digest in before.items():
            number = int(name.split("file-")[1].split(".")[0])
            assert number >= told or hashes(root)[name] == digest, f"{name} changed"
        torn = demos.Dataset(root)
        assert expected <= torn.num_episodes <= expected + 1
        check_content(torn, helpers, cameras)
        kept = hashes(root)

        report = demos.repair(root)
        assert report.ok or all(f.level == "note" for f in report.findings), report.findings
        mended = demos.Dataset(root)
        frames = sum(mended.episode(i).length for i in range(expected, mended.num_episodes))
        assert frames >= acknowledged, f"kill {kill}: {acknowledged} frames acknowledged, {frames} readable"
        assert frames <= acknowledged + 1
        check_content(mended, helpers, cameras)
        after = hashes(root)
        assert all(after[n] == d for n, d in kept.items() if int(n.split("file-")[1].split(".")[0]) < expected)
        assert not (root / "recording").exists()
        total = json.loads((root / "meta/info.json").read_text())
        assert total["total_episodes"] == mended.num_episodes and total["total_frames"] == len(mended)
        assert demos.check(root).ok


def test_every_rename_of_a_save_can_be_the_last(tmp_path, helpers, monkeypatch):
    """The process dies before each rename in turn: the dataset has the episode or not, and repair brings it in."""
    from demos import ledger as module

    class Died(BaseException):
        pass

    real, steps = os.replace, 0
    while True:
        root = tmp_path / f"d{steps}"
        helpers.record(root, [5, 6], cameras=1)
        before = hashes(root)
        writer = demos.Writer.resume(root, task="push the block")
        for at in range(7):
            writer.add_frame(helpers.frame(2, at, 1), stamp_ns=at * 50_000_000)
        left = steps

        def dying(source, target):
            nonlocal left
            if left == 0 and "seal" not in str(source):
                raise Died
            left -= "seal" not in str(source)
            real(source, target)

        monkeypatch.setattr(module.os, "replace", dying)
        try:
            writer.save_episode(success=True)
            died = False
        except Died:
            died = True
        monkeypatch.setattr(module.os, "replace", real)
        writer.finalize()
        torn = demos.Dataset(root)
        assert torn.num_episodes in (2, 3)
        check_content(torn, helpers, 1)
        demos.repair(root)
        mended = demos.Dataset(root)
        assert [mended.episode(i).length for i in range(mended.num_episodes)] == [5, 6, 7]
        assert mended.episode(2).success is True and not mended.episode(2).interrupted
        check_content(mended, helpers, 1)
        assert {k: v for k, v in hashes(root).items() if k in before} == before
        if not died:
            break
        steps += 1
    assert steps >= 5


def test_resume_drops_or_keeps_what_was_interrupted(tmp_path, helpers):
    for keep in (True, False):
        root = tmp_path / str(keep)
        helpers.record(root, [4])
        writer = demos.Writer.resume(root)
        for at in range(3):
            writer.add_frame(helpers.frame(1, at), task="t")
        writer.finalize()  # as if the process had gone: nothing was saved
        resumed = demos.Writer.resume(root, keep_interrupted=keep)
        assert resumed.num_episodes == (2 if keep else 1)
        assert [e.length for e in resumed.recovered] == ([3] if keep else [])
        resumed.finalize()
        if keep:
            assert demos.Dataset(root).episode(1).interrupted
            assert not demos.Dataset(root).column("next.done")[-1]


def test_a_second_recorder_is_refused(tmp_path, helpers):
    root = helpers.record(tmp_path / "d", [3])
    writer = demos.Writer.resume(root)
    script = "import sys, demos\ntry:\n demos.Writer.resume(sys.argv[1])\nexcept Exception as e:\n print(type(e).__name__, e)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    out = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, env=environment).stdout
    assert out.startswith("DataError") and str(os.getpid()) in out
    with pytest.raises(DataError, match="another process"):
        demos.repair(root)
    writer.finalize()


def test_create_killed_before_it_was_done_can_be_repeated(tmp_path, helpers):
    """Only the specs were written: nothing that is missed, so creating again is no error."""
    root = helpers.record(tmp_path / "d", [])
    (root / "meta/info.json").unlink()
    observation, action = helpers.specs()
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="t") as writer:
        writer.add_frame(helpers.frame(0, 0))
        writer.save_episode()
    assert len(demos.Dataset(root)) == 1
