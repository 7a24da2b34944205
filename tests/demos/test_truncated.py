"""Files cut off at random bytes, as a power failure leaves them: whatever is whole is kept, unchanged, and the rest is said."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import demos
from demos import layout
from sinew.errors import DataError

LENGTHS = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def source(tmp_path_factory, helpers):
    return helpers.record(tmp_path_factory.mktemp("cut") / "d", LENGTHS, cameras=1)


def same_frames(root: Path, helpers) -> list[int]:
    """Which of the recorded episodes are there, by their states; each of them must be there in full and as it was recorded."""
    data, found = demos.Dataset(root), []
    for i in range(data.num_episodes):
        e = data.episode(i)
        number = int(data[e.start]["observation.environment_state"][0])
        assert e.length == LENGTHS[number]
        for at in (0, e.length // 2, e.length - 1):
            have, want = data[e.start + at], helpers.frame(number, at, 1)
            np.testing.assert_array_equal(have["observation.state"], want["observation.state"])
            np.testing.assert_array_equal(have["action"], want["action"])
            assert np.abs(have["observation.images.cam0"].astype(int) - want["observation.images.cam0"]).mean() < 6
        found.append(number)
    return found


PATTERNS = ("data/*/*.parquet", "videos/*/*/*.mp4", "meta/episodes/*/*.parquet", "meta/tasks.parquet", "meta/info.json", "meta/stats.json")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_file_cut_anywhere(source, tmp_path, helpers, pattern):
    rng = random.Random(pattern)
    files = sorted(p.relative_to(source) for p in source.glob(pattern))
    for turn in range(4):
        root, name = Path(shutil.copytree(source, tmp_path / f"d{turn}")), rng.choice(files)
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[: rng.randrange(len(whole))])
        report = demos.repair(root)
        assert report.ok, report.findings
        found = same_frames(root, helpers)
        lost = int(name.stem.split("-")[1]) if pattern.startswith(("data", "videos")) else None
        assert found == [i for i in range(4) if i != lost] or found == [0, 1, 2, 3]
        if len(found) < 4:
            assert any(f"left out episode {lost}" in action or "unreadable" in action for action in report.actions), report.actions
            assert list((root / layout.DAMAGED).rglob("*")), "nothing is deleted"
        assert demos.check(root).ok


def test_several_files_cut_at_once(source, tmp_path, helpers):
    rng = random.Random(5)
    for turn in range(5):
        root = Path(shutil.copytree(source, tmp_path / f"d{turn}"))
        files = rng.sample(sorted(p for p in root.rglob("*") if p.is_file() and "sinew.json" not in p.name), 3)
        for path in files:
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        hit = {int(p.stem.split("-")[1]) for p in files if p.relative_to(root).parts[0] in ("data", "videos")}
        try:
            report = demos.repair(root)
        except DataError as error:
            assert "\n" not in str(error)
            continue
        assert report.ok, (files, report.findings)
        assert set(range(4)) - hit <= set(same_frames(root, helpers))
        assert demos.check(root).ok


def test_a_power_failure_while_recording(source, tmp_path, helpers):
    """The journal's files end anywhere: what was saved before is untouched, of the episode that was being recorded a beginning is kept."""
    rng = random.Random(8)
    for turn in range(6):
        root = Path(shutil.copytree(source, tmp_path / f"d{turn}"))
        writer = demos.Writer.resume(root, task="push the block")
        for at in range(10):
            writer.add_frame(helpers.frame(4, at, 1), stamp_ns=at * 50_000_000)
        writer.finalize()
        folder = next((root / layout.RECORDING).glob("episode-*"))
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
        for path in rng.sample(files, min(2, len(files))):
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        try:
            report = demos.repair(root)
        except DataError as error:
            pytest.fail(f"{[p.name for p in files]}: {error}")
        data = demos.Dataset(root)
        assert [data.episode(i).length for i in range(4)] == LENGTHS and data.num_episodes in (4, 5)
        if data.num_episodes == 5:
            for at in range(data.episode(4).length):
                np.testing.assert_array_equal(data[50 + at]["observation.state"], helpers.frame(4, at, 1)["observation.state"])
        assert all(f.level == "note" for f in report.findings), report.findings
