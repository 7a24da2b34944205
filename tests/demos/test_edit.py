import hashlib
import json

import numpy as np
import pytest

import demos
from demos import layout
from demos.edit import PLAN, Piece, assemble, pieces_of
from sinew.errors import DataError, InputError, SpecError
from sinew.progress import Progress


class Stops(Progress):
    """Breaks off after some episodes, as Ctrl-C does."""

    def __init__(self, after):
        self.left = after

    def start(self, *_, **__):
        pass

    def advance(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def digests(root, pattern):
    return sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob(pattern))


def same_frames(new, start, old, rows):
    for offset, at in enumerate(rows):
        a, b = new[start + offset], old[at]
        for key in ("observation.state", "action", "observation.images.cam0", "timestamp_ns", "task"):
            assert np.array_equal(a[key], b[key]), (key, at)
        assert a["frame_index"][0] == offset and a["timestamp"][0] == pytest.approx(offset / 20)


@pytest.fixture(scope="module", params=[True, False], ids=["video", "png"])
def source(request, helpers, tmp_path_factory):
    return helpers.record(tmp_path_factory.mktemp("source") / "data", [9, 6, 12, 5], cameras=1, video=request.param)


def test_episodes_are_chosen_and_put_in_order_without_encoding_anew(source, tmp_path):
    assemble(tmp_path / "new", [Piece(root=source, episode=2), Piece(root=source, episode=0)])
    new, old = demos.Dataset(tmp_path / "new"), demos.Dataset(source)
    assert (new.num_episodes, len(new)) == (2, 21)
    same_frames(new, 0, old, range(15, 27))
    same_frames(new, 12, old, range(9))
    assert [new.episode(i).success for i in range(2)] == [True, True]
    assert set(digests(tmp_path / "new", "*.mp4")) <= set(digests(source, "*.mp4"))
    report = demos.check(tmp_path / "new")
    assert not report.findings, report.findings
    assert not (tmp_path / "new" / layout.RECORDING).exists()


def test_all_pieces_together_are_what_there_was(source, tmp_path):
    assemble(tmp_path / "new", pieces_of(source))
    new, old = demos.Dataset(tmp_path / "new"), demos.Dataset(source)
    for key in layout.columns(old.info):
        assert np.array_equal(new.column(key), old.column(key)), key
    for name in (layout.STATS, layout.INFO):
        a, b = (json.loads((root / name).read_text()) for root in (tmp_path / "new", source))
        assert a.keys() == b.keys()
    for key, parts in b["features"].items():
        assert a["features"][key] == parts
    before, after = (json.loads((root / layout.STATS).read_text()) for root in (source, tmp_path / "new"))
    for key in before:
        for name in before[key]:
            assert np.allclose(before[key][name], after[key][name], atol=1e-6), (key, name)


def test_frames_are_cut_off_at_both_ends(source, tmp_path):
    assemble(tmp_path / "new", [Piece(root=source, episode=2, first=3, end=8, success=False), Piece(root=source, episode=1, first=1)])
    new, old = demos.Dataset(tmp_path / "new"), demos.Dataset(source)
    same_frames(new, 0, old, range(18, 23))
    same_frames(new, 5, old, range(10, 15))
    assert new.column("next.done")[:, 0].tolist() == [False] * 4 + [True] + [False] * 4 + [True]
    assert not new.column("next.success").any() and new.episode(1).success is False
    assert not demos.check(tmp_path / "new").findings


def test_tasks_and_outcomes_are_told_anew(source, tmp_path):
    pieces = [Piece(root=source, episode=1, task="lift it", success=True), Piece(root=source, episode=3)]
    assemble(tmp_path / "new", pieces)
    new = demos.Dataset(tmp_path / "new")
    assert new.tasks == ("lift it", "push the block")
    assert [new.episode(i).task for i in range(2)] == ["lift it", "push the block"]
    assert new.column("next.success")[:, 0].tolist() == [False] * 5 + [True] + [False] * 5
    assert new.column("next.reward")[:, 0].tolist() == [0.0] * 5 + [1.0] + [0.0] * 5


def test_datasets_are_joined_and_keep_their_tasks(source, helpers, tmp_path):
    kept_as_video = layout.cameras(layout.load_info(source))["observation.images.cam0"] == "video"
    other = helpers.record(tmp_path / "other", [4], cameras=1, video=kept_as_video, task="turn the block")
    assemble(tmp_path / "new", [*pieces_of(source), *pieces_of(other)])
    new = demos.Dataset(tmp_path / "new")
    assert (new.num_episodes, len(new)) == (5, 36)
    assert new.tasks == ("push the block", "turn the block")
    same_frames(new, 32, demos.Dataset(other), range(4))
    with demos.Writer.resume(tmp_path / "new") as writer:  # and it can be recorded into
        writer.add_frame(helpers.frame(9, 0, 1), task="turn the block")
        writer.save_episode()
    assert demos.Dataset(tmp_path / "new").num_episodes == 6


def test_a_run_that_was_cut_off_goes_on(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        assemble(tmp_path / "new", pieces_of(source), Stops(2))
    assert (tmp_path / "new" / PLAN).exists()
    with pytest.raises(DataError):
        demos.Dataset(tmp_path / "new")
    first = next((tmp_path / "new" / "data").rglob("file-000.parquet"))
    was = first.stat().st_mtime_ns
    with pytest.raises(InputError, match="another unfinished"):
        assemble(tmp_path / "new", pieces_of(source)[:2])
    assemble(tmp_path / "new", pieces_of(source))
    assert first.stat().st_mtime_ns == was
    assert np.array_equal(demos.Dataset(tmp_path / "new").column("action"), demos.Dataset(source).column("action"))


def test_what_does_not_fit_is_refused_before_anything_is_written(source, helpers, tmp_path):
    bare = helpers.record(tmp_path / "bare", [3])
    for pieces, error, said in (
        ([], InputError, "nothing is left"),
        ([Piece(root=source, episode=4)], DataError, "no episode 4"),
        ([Piece(root=source, episode=1, first=2, end=9)], DataError, "frames 0 to 5"),
        ([Piece(root=source, episode=1, task=" ")], DataError, "task"),
        ([*pieces_of(source), *pieces_of(bare)], SpecError, "cam0"),
    ):
        with pytest.raises(error, match=said):
            assemble(tmp_path / "new", pieces)
        assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="holds a dataset"):
        assemble(bare, pieces_of(source))


def test_contracts_and_calibrations_are_kept_or_refused(source, helpers, tmp_path):
    from sinew import calibrations

    kept_as_video = layout.cameras(layout.load_info(source))["observation.images.cam0"] == "video"
    other = helpers.record(tmp_path / "other", [3], cameras=1, video=kept_as_video)
    (other / "meta" / "contract.json").write_text("{}")
    with pytest.raises(SpecError, match="contract"):
        assemble(tmp_path / "new", [*pieces_of(source), *pieces_of(other)])
    camera = {"name": "cam0", "mount": "to_hand", "T": np.eye(4).tolist(), "covariance": np.eye(6).tolist(), "hash": "aa"}
    camera["camera"] = {"focal": [50, 50], "centre": [24, 16], "width": 48, "height": 32}
    calibrations.begin(other, 1, calibrations.Calibration(cameras=(camera,)))
    assemble(tmp_path / "copy", pieces_of(other))
    assert (tmp_path / "copy" / "meta" / "contract.json").read_text() == "{}"
    assert [c.hash for c in calibrations.load(tmp_path / "copy")] == [""]
