"""What lies beside the frames: samples at their own rates survive a kill, and every loss is counted, stored and carried."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import demos
from demos import accounts, edit, layout, native, tables
from demos.native import FRAMES, Beside, SampleLog, Samples, account, line, losses, read_log
from sinew.errors import DataError, InputError

MS = 1_000_000


def stream(times_ms, width=1, receipts_ms=None) -> Samples:
    stamps = np.array([round(t * MS) for t in times_ms], np.int64)
    receipts = stamps + 500 if receipts_ms is None else np.array([round(t * MS) for t in receipts_ms], np.int64)
    return Samples(stamps, receipts, np.arange(len(stamps) * width, dtype=np.float32).reshape(len(stamps), width))


def test_samples_come_back_as_they_were_and_a_torn_one_is_left_out(tmp_path):
    log = SampleLog(tmp_path)
    for i in range(5):
        log.add("joint_position", [(i * MS, i * MS + 7, np.array([i, -i, 0.5]))])
    log.add("images.a/b", [(1, 2, None), (3, 4, None)])  # any name is a file's name
    log.note("dropped", "queue_full", 2)
    log.close()
    with open(tmp_path / ("joint_position" + native.SAMPLES), "ab") as f:
        f.write(b"half a row")
    with open(tmp_path / native.EVENTS, "ab") as f:
        f.write(b'{"what": "dro')
    beside = read_log(tmp_path)
    joints = beside.streams["joint_position"]
    assert joints.stamps_ns.tolist() == [i * MS for i in range(5)] and joints.receipts_ns.tolist() == [i * MS + 7 for i in range(5)]
    np.testing.assert_array_equal(joints.values, [[i, -i, 0.5] for i in range(5)])
    assert beside.streams["images.a/b"].values.shape == (2, 0)
    assert [dict(e) for e in beside.events] == [{"what": "dropped", "of": "queue_full", "n": 2}]


def test_a_row_that_was_damaged_ends_its_stream(tmp_path):
    log = SampleLog(tmp_path)
    log.add("a", [(i, i, np.array([float(i)])) for i in range(10)])
    log.close()
    path = tmp_path / ("a" + native.SAMPLES)
    data = bytearray(path.read_bytes())
    head, size = data.index(b"\n") + 1, 8 + 8 + 8 + 4
    data[head + 6 * size + 20] ^= 1
    path.write_bytes(data)
    assert len(read_log(tmp_path).streams["a"]) == 6


def test_a_stream_that_changes_its_width_is_refused(tmp_path):
    log = SampleLog(tmp_path)
    log.add("a", [(0, 0, np.zeros(3))])
    with pytest.raises(DataError, match="a has 2 values now and had 3 before"):
        log.add("a", [(1, 1, np.zeros(2))])


def test_messages_that_are_missing_are_counted_by_their_stamps():
    # every 5 ms from 0 to 100 ms without those of 20, 50, 55 and 60 ms: 1 + 3 are missing
    times = [t for t in range(0, 101, 5) if t not in (20, 50, 55, 60)]
    told = account(Beside({"joint_position": stream(times)}))["streams"]["joint_position"]
    assert (told["came"], told["lost"]) == (17, 4) and told["longest_gap_s"] == 0.02


def test_what_a_pause_leaves_out_is_not_lost():
    times = [*range(0, 50, 5), *range(200, 250, 5)]
    cut = [{"what": "cut", "of": "pause", "after": {"a": 10}}]
    assert account(Beside({"a": stream(times)}))["streams"]["a"]["lost"] == 30  # 155 ms are 31 intervals
    told = account(Beside({"a": stream(times)}, cut))["streams"]["a"]
    assert (told["lost"], told["rate_hz"]) == (0, 200.0)
    whole = Beside({"a": stream(times)}, cut)
    _, part = native.trimmed(Beside(whole.streams), account(whole), 25 * MS, 225 * MS)  # a part knows of the pause too
    assert (part["streams"]["a"]["came"], part["streams"]["a"]["lost"]) == (10, 0)


def test_without_stamps_of_its_own_or_numbers_nobody_claims_to_know():
    bursts = [0, 0.01, 10, 10.01, 20, 20.01, 50, 50.01]
    told = account(Beside({"a": stream(bursts, receipts_ms=bursts)}))["streams"]["a"]
    assert told["lost"] is None
    numbered = [{"what": "numbered", "of": "a", "n": 1}, {"what": "lost", "of": "a", "n": 4}]
    assert account(Beside({"a": stream(bursts, receipts_ms=bursts)}, numbered))["streams"]["a"]["lost"] == 4


def test_pictures_that_no_frame_shows_and_frames_that_show_one_twice():
    """A camera at 30 fps and frames at 20 Hz: of 9 pictures, frames at 0, 50, … show the newest one."""
    came = [0, 33, 67, 100, 133, 167, 200, 233, 267]
    frames = [0, 50, 100, 150, 200, 250]
    shown = [max(t for t in came if t <= at) for at in frames]  # 0, 33, 100, 133, 200, 233
    shown[3] = 100  # and one was late
    ages = np.array([[(at - s) / 1e3] for at, s in zip(frames, shown, strict=True)], np.float32)
    stamps = np.array(frames, np.int64) * MS
    beside = Beside(
        {"images.front": stream(came, 0), FRAMES: Samples(stamps, stamps, ages)},
        [{"what": "ages", "of": FRAMES, "names": ["images.front"]}],
    )
    told = account(beside)
    front = told["streams"]["images.front"]
    assert told["frames"] == 6 and (front["shown"], front["passed_over"], front["repeated"]) == (5, 4, 1)


def test_an_account_in_words():
    events = [
        {"what": "dropped", "of": "queue_full", "n": 3}, {"what": "skipped", "of": "images.front", "n": 2},
        {"what": "skipped", "of": "deadline", "n": 1}, {"what": "clock_jump", "of": "/joint_states", "n": 1},
    ]  # fmt: skip
    told = account(Beside({"joint_position": stream(range(0, 50, 5))}, events))
    assert losses(told) == {
        "frames dropped (encoding too slow)": 3, "ticks skipped (images.front too old)": 2, "ticks skipped (loop too late)": 1,
        "clock jumps of /joint_states": 1,
    }  # fmt: skip
    assert line(told).startswith("0 frames, joint_position 200/s; 3 frames dropped (encoding too slow), 2 ticks")
    assert line(account(Beside({}))) == "0 frames; nothing lost"


# ---------------------------------------------------------------- in a dataset


def recorded(root: Path, helpers, lengths=(6, 8, 5)) -> Path:
    """Episodes at 20 Hz with joints at 200 Hz beside them; in episode i, i frames were dropped."""
    observation, action = helpers.specs()
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="push") as writer:
        for episode, length in enumerate(lengths):
            for at in range(length):
                writer.add_frame(helpers.frame(episode, at), stamp_ns=at * 50 * MS)
                stamps = [at * 50 * MS + i * 5 * MS for i in range(10)]
                writer.add_samples("joint_position", [(t, t + 1, np.array([episode, t / 1e9])) for t in stamps])
            if episode:
                writer.note("dropped", "queue_full", episode)
            writer.save_episode(success=True)
    return root


def test_a_saved_episode_has_its_samples_and_its_losses_are_told(tmp_path, helpers):
    root = recorded(tmp_path / "d", helpers)
    joints = accounts.samples(root, 1)["joint_position"]
    assert len(joints) == 80 and (joints.values[:, 0] == 1).all() and (np.diff(joints.stamps_ns) == 5 * MS).all()
    told = demos.info(root)["beside"]
    assert told["episodes"] == 3 and told["streams"]["joint_position"] == {"rate_hz": 200.0, "lost": 0}
    assert told["losses"] == {"frames dropped (encoding too slow)": 3}
    found = {f.episode: f.message for f in demos.check(root).findings if f.where.startswith("native/")}
    assert found == {1: "while recording: 1 frames dropped (encoding too slow)", 2: "while recording: 2 frames dropped (encoding too slow)"}


def test_a_damaged_file_beside_the_frames_is_told_and_does_no_harm(tmp_path, helpers):
    root = recorded(tmp_path / "d", helpers)
    path = layout.native_path(root, 0)
    path.write_bytes(path.read_bytes()[:-20])
    report = demos.check(root)
    assert any("the frames are not" in f.message and f.episode == 0 for f in report.findings)
    assert demos.info(root)["beside"]["episodes"] == 2 and len(demos.Dataset(root)) == 19
    with pytest.raises(DataError, match="truncated"):
        accounts.samples(root, 0)


def test_split_merge_and_trim_carry_it(tmp_path, helpers):
    first, second = recorded(tmp_path / "a", helpers), recorded(tmp_path / "b", helpers, (4, 4))
    pieces = [edit.Piece(root=first, episode=1, first=2, end=5), *edit.pieces_of(second), edit.Piece(root=first, episode=2)]
    edit.assemble(tmp_path / "c", pieces)
    joints = [accounts.samples(tmp_path / "c", i)["joint_position"] for i in range(4)]
    assert [len(j) for j in joints] == [30, 40, 40, 50] and [int(j.values[0, 0]) for j in joints] == [1, 0, 1, 2]
    assert joints[0].stamps_ns[0] == 100 * MS and joints[0].stamps_ns[-1] == 245 * MS
    told = [tables.native_account(layout.native_path(tmp_path / "c", i)) for i in range(4)]
    assert told[0]["of_whole_episode"] and told[0]["dropped"] == {"queue_full": 1} and told[0]["streams"]["joint_position"]["came"] == 30
    assert told[3] == tables.native_account(layout.native_path(first, 2))


def test_repair_renumbers_it_with_the_episodes(tmp_path, helpers):
    root = recorded(tmp_path / "d", helpers)
    (root / "data/chunk-000/file-000.parquet").write_bytes(b"gone")
    demos.repair(root)
    assert demos.Dataset(root).num_episodes == 2
    assert [int(accounts.samples(root, i)["joint_position"].values[0, 0]) for i in range(2)] == [1, 2]
    assert not layout.native_path(root, 2).exists() and (root / "damaged/native/chunk-000/file-000.parquet.saved").exists()
    assert not list((root / "native").rglob(".*"))


def test_an_interrupted_episode_keeps_its_samples(tmp_path, helpers):
    root = recorded(tmp_path / "d", helpers, (3,))
    writer = demos.Writer.resume(root, task="push")
    writer.add_samples("joint_position", [(0, 0, np.array([7.0, 7.0]))])
    writer.add_frame(helpers.frame(1, 0))
    writer.add_samples("joint_position", [(5 * MS, 0, np.array([7.0, 8.0]))])
    writer.finalize()  # as if the process had gone
    demos.repair(root)
    np.testing.assert_array_equal(accounts.samples(root, 1)["joint_position"].values, [[7, 7], [7, 8]])


# ---------------------------------------------------------------- changing what was recorded


def test_the_newest_frame_can_be_amended(tmp_path, helpers):
    from sinew.specs import TensorSpec

    observation, action = helpers.specs()
    extra = {"sent": TensorSpec(shape=(2,))}
    with demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action, task="t", extra=extra) as writer:
        for at in range(3):
            if at:
                writer.amend({"sent": np.array([at, 5], np.float32)})
            writer.add_frame(helpers.frame(0, at) | {"sent": np.zeros(2, np.float32)})
        with pytest.raises(DataError, match="'sent' of the newest frame cannot become float64"):
            writer.amend({"sent": np.zeros(2)})
        with pytest.raises(DataError, match=r"observation\.state"):
            writer.amend({"observation.state": np.zeros(4, np.float32)})
        writer.save_episode()
        with pytest.raises(InputError, match="no frame"):
            writer.amend({"sent": np.zeros(2, np.float32)})
    data = demos.Dataset(tmp_path / "d")
    np.testing.assert_array_equal(data.column("sent"), [[1, 5], [2, 5], [0, 0]])
    np.testing.assert_array_equal(data[2]["action"], helpers.frame(0, 2)["action"])


def test_the_episode_saved_last_can_be_thrown_away_and_recorded_again(tmp_path, helpers):
    root = recorded(tmp_path / "d", helpers, (3, 4))
    with demos.Writer.resume(root, task="push") as writer:
        with pytest.raises(DataError, match="this run has saved no episode"):
            writer.retract_episode()
        for again in range(2):
            for at in range(5 + again):
                writer.add_frame(helpers.frame(9 + again, at), stamp_ns=at * 50 * MS)
            writer.add_samples("joint_position", [(0, 0, np.array([9.0 + again, 0]))])
            writer.save_episode(success=False)
            if not again:
                writer.add_frame(helpers.frame(0, 0))
                with pytest.raises(DataError, match="discard_episode"):
                    writer.retract_episode()
                writer.discard_episode()
                assert writer.retract_episode().length == 5
                data = demos.Dataset(root)
                assert data.num_episodes == 2 and len(data) == 7 and demos.check(root).findings[0].episode == 1
                assert not layout.native_path(root, 2).exists()
    data = demos.Dataset(root)
    assert [data.episode(i).length for i in range(3)] == [3, 4, 6] and accounts.samples(root, 2)["joint_position"].values[0, 0] == 10
    np.testing.assert_array_equal(data[7]["action"], helpers.frame(10, 0)["action"])
    stats = json.loads((root / "meta/stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["mean"], data.column("action").mean(0), rtol=1e-5)


def test_the_only_episode_can_be_thrown_away(tmp_path, helpers):
    observation, action = helpers.specs(cameras=1)
    with demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action, task="t") as writer:
        for episode in range(2):
            writer.add_frame(helpers.frame(episode, 0, 1))
            writer.save_episode()
            if not episode:
                writer.retract_episode()
                assert demos.Dataset(tmp_path / "d").num_episodes == 0
    data = demos.Dataset(tmp_path / "d")
    assert len(data) == 1 and demos.check(tmp_path / "d").ok
    np.testing.assert_array_equal(data[0]["action"], helpers.frame(1, 0)["action"])


def test_dying_at_any_moment_of_it_leaves_the_episode_in_or_out(tmp_path, helpers, monkeypatch):
    from demos import ledger as module

    class Died(BaseException):
        pass

    real, steps, outcomes = Path.unlink, 0, set()
    while True:
        root = tmp_path / f"d{steps}"
        observation, action = helpers.specs(cameras=1)
        writer = demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="t")
        for episode in range(2):
            writer.add_frame(helpers.frame(episode, 0, 1), stamp_ns=0)
            writer.save_episode()
        left = steps

        def dying(self, missing_ok=False, root=root):
            nonlocal left
            if left == 0 and root in self.parents:
                raise Died
            left -= root in self.parents
            real(self, missing_ok=missing_ok)

        monkeypatch.setattr(module.Path, "unlink", dying)
        try:
            writer.retract_episode()
            died = False
        except Died:
            died = True
        monkeypatch.setattr(module.Path, "unlink", real)
        writer.finalize()
        assert len(demos.Dataset(root)) == 1  # nobody counts it any more
        demos.repair(root)
        mended = demos.Dataset(root)
        outcomes.add(mended.num_episodes)
        assert mended.num_episodes in (1, 2) and demos.check(root).ok
        np.testing.assert_array_equal(mended[0]["action"], helpers.frame(0, 0)["action"])
        if not died:
            break
        steps += 1
    assert steps >= 3 and 1 in outcomes


def test_a_disk_lasts_as_long_as_is_foretold(tmp_path, helpers):
    from demos.forecast import RESERVE_BYTES, WHILE_SAVING, Forecast, rate_of

    room = Forecast(root=tmp_path, free_bytes=RESERVE_BYTES + 6_000_000, bytes_per_s=10_000.0)
    assert room.minutes_left == 10.0 and room.refusal(6_000_000 / 10_000 / WHILE_SAVING - 1) == ""
    said = room.refusal(300)
    assert "would not fit" in said and "23 MB are free" in said and "\n" not in said
    assert Forecast(root=tmp_path, free_bytes=0, bytes_per_s=None).refusal(1e9) == ""
    root = recorded(tmp_path / "d", helpers)
    size = sum(p.stat().st_size for name in ("data", "native") for p in (root / name).rglob("*.parquet"))
    assert rate_of(root, layout.load_info(root)) == pytest.approx(size / (19 / 20))
