"""Decoding: foreign files, several threads, and damage that is told in one line."""

from __future__ import annotations

import json
import os
import shutil
import threading
from fractions import Fraction

import av
import numpy as np
import pytest

import demos
from demos import tables
from demos.embedded import Embedded
from demos.video import VideoReader, Videos
from sinew.errors import DataError

CAM = "observation.images.cam0"


def film(path, codec, fps, frames, options, size=(48, 64)):
    """A video whose frame i has the grey level 4 i + 8."""
    with av.open(str(path), "w") as sink:
        out = sink.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        out.height, out.width, out.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((*size, 3), 4 * i + 8, np.uint8), format="rgb24")
            picture.pts = i
            picture.time_base = 1 / Fraction(fps).limit_denominator(1001)
            sink.mux(out.encode(picture))
        sink.mux(out.encode(None))
    return path


def number(picture):
    return round((float(picture.mean()) - 8) / 4)


CODECS = {
    "av1, as LeRobot": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
    "h264, keyframes far apart, looking ahead": ("libx264", {"g": "25", "bf": "2", "crf": "18"}),
    "h264, one keyframe": ("libx264", {"g": "1000", "sc_threshold": "0", "crf": "18"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:keyint=7", "crf": "18"}),
}


@pytest.mark.parametrize("fps", [30, 15.5, 29.97])
@pytest.mark.parametrize("name", CODECS)
def test_any_frame_of_any_codec_at_any_rate(tmp_path, name, fps):
    codec, options = CODECS[name]
    path = film(tmp_path / "a.mp4", codec, fps, 50, options)
    reader, rng = VideoReader(path, fps), np.random.default_rng(0)
    assert [number(p) for p in reader.read_all(0, 50)] == list(range(50))
    for _ in range(12):
        wanted = sorted(rng.choice(50, rng.integers(1, 6), replace=False).tolist())
        assert {i: number(p) for i, p in reader.read(wanted).items()} == {i: i for i in wanted}
    assert [number(p) for p in reader.read_all(20, 40)] == list(range(20, 50)), "it ends where the file does"
    with pytest.raises(DataError, match=r"a\.mp4 has no frame 50"):
        reader.read([49, 50])
    reader.close()


def test_a_frame_is_reached_without_going_back_where_no_keyframe_lies_between(tmp_path, monkeypatch):
    reader = VideoReader(film(tmp_path / "a.mp4", "libx264", 30, 50, {"g": "25", "crf": "18"}), 30)
    if not reader._index:
        pytest.skip("this PyAV does not tell a file's index")
    sought, real = [], VideoReader._seek
    monkeypatch.setattr(VideoReader, "_seek", lambda self, to: (sought.append(to), real(self, to))[1])
    reader.read([2, 12, 20])
    assert sought == []
    reader.read([40])
    assert sought == [40]
    reader.read([47])
    reader.read([10])
    assert sought == [40, 10]


def test_threads_have_readers_of_their_own(tmp_path):
    path = film(tmp_path / "a.mp4", "libx264", 30, 50, {"g": "2", "crf": "18"})
    videos, wrong = Videos(30), []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            at = int(rng.integers(50))
            with videos.reader(path) as reader:
                wrong.extend(n for n in [number(reader.read([at])[at])] if n != at)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and 1 <= len(videos._idle) <= 4
    videos.close()
    assert videos._idle == []


@pytest.mark.parametrize("cache_bytes", [0, 30_000, 1 << 30])
def test_threads_may_read_one_dataset(tmp_path, helpers, cache_bytes):
    data = demos.Dataset(helpers.record(tmp_path / "d", [20, 9], 2), cache_bytes=cache_bytes)
    want = demos.Dataset(data.root).window(np.arange(29), 2, 1)[CAM]
    wrong = []

    def work(seed):
        for _ in range(10):
            indices = np.random.default_rng(seed).integers(0, 29, 7)
            if not np.array_equal(data.window(indices, 2, 1)[CAM], want[indices]):
                wrong.append(indices)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_child_of_a_fork_has_decoders_of_its_own(tmp_path, helpers):
    """A decoder that was used before a fork fails in the child: LeRobot's does."""
    data = demos.Dataset(helpers.record(tmp_path / "d", [20, 9], 2), cache_bytes=0)
    want = data.window(np.arange(29), 1, 1)[CAM]
    children = []
    for seed in range(2):
        child = os.fork()
        if child == 0:
            order = np.random.default_rng(seed).permutation(29)
            os._exit(0 if np.array_equal(data.window(order, 1, 1)[CAM], want[order]) else 1)
        children.append(child)
    np.testing.assert_array_equal(data.window(np.arange(29)[::-1], 1, 1)[CAM], want[::-1])
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def one_file(root):
    """Put the frames of all episodes into one data file of many row groups, as LeRobot does."""
    import pyarrow.parquet as pq

    paths = sorted((root / "data").rglob("*.parquet"))
    whole = root / "whole.parquet"
    with pq.ParquetWriter(whole, pq.read_schema(paths[0])) as sink:
        for path in paths:
            sink.write_table(pq.read_table(path), row_group_size=4)
            path.unlink()
    whole.rename(paths[0])
    for path in sorted((root / "meta/episodes").rglob("*.parquet")):
        table = pq.read_table(path)
        at = table.column_names.index("data/file_index")
        pq.write_table(table.set_column(at, "data/file_index", table["data/chunk_index"]), path)
    return paths[0]


def test_pictures_in_parquet_are_read_group_by_group(tmp_path, helpers, monkeypatch):
    data = demos.Dataset(helpers.record(tmp_path / "d", [9, 3, 8], 2, video=False))
    want = data.window(np.arange(20), 1, 1)
    path = one_file(data.root)
    assert tables.group_lengths(path) == [4, 4, 1, 3, 4, 4]
    reads, real = [], tables.read_group
    monkeypatch.setattr(tables, "read_group", lambda p, group, c: (reads.append(group), real(p, group, c))[1])
    again = demos.Dataset(data.root, cache_bytes=0)
    order = np.random.default_rng(0).permutation(20)
    for index in order:
        np.testing.assert_array_equal(again.window(np.array([index]), 1, 1, (CAM,))[CAM][0], want[CAM][index])
    assert sorted(reads) == [0, 1, 2, 3, 4, 5], "each once: they stay"
    reads.clear()
    few = Embedded(1)
    for index in range(20):
        np.testing.assert_array_equal(few.read(path, CAM, [index])[index], want[CAM][index, 0])
    assert reads == [0, 1, 2, 3, 4, 5], "in a row, each once, with one at a time in memory"
    with pytest.raises(DataError, match="has no frame 20"):
        few.read(path, CAM, [20])


def test_data_files_are_not_read_with_their_pictures(tmp_path, helpers, monkeypatch):
    root = helpers.record(tmp_path / "d", [5], 1, video=False)
    read, real = [], tables.read_table
    monkeypatch.setattr(tables, "read_table", lambda path, columns=None: (read.append((path, columns)), real(path, columns))[1])
    demos.Dataset(root)
    assert all(CAM not in (columns or [CAM]) for path, columns in read if "data" in path.parts)


def test_a_resolution_that_changed_is_told(tmp_path, helpers):
    root = helpers.record(tmp_path / "d", [6, 4], 1)
    film(root / f"videos/{CAM}/chunk-000/file-001.mp4", "libx264", 20, 4, {"crf": "18"}, size=(64, 64))
    for budget in (0, 1 << 30):
        with pytest.raises(DataError, match=r"cam0 of episode 1 shows \(64, 64, 3\), .* says \(32, 48, 3\)") as error:
            demos.Dataset(root, cache_bytes=budget).window(np.array([7]), 1, 1)
        assert "\n" not in str(error.value)


def test_a_picture_of_another_size_in_parquet_is_told(tmp_path, helpers):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = demos.Dataset(helpers.record(tmp_path / "d", [5], 1, video=False))
    small = demos.Dataset(helpers.record(tmp_path / "small", [1], 1, video=False))
    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.pix_fmt, context.time_base = 16, 24, "rgb24", Fraction(1, 20)
    png = b"".join(map(bytes, context.encode(av.VideoFrame.from_ndarray(small[0][CAM][::2, ::2].copy(), format="rgb24"))))
    path = next((data.root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    rows = table[CAM].to_pylist()
    rows[3]["bytes"] = png
    at = table.column_names.index(CAM)
    pq.write_table(table.set_column(at, CAM, pa.array(rows, table[CAM].type)), path)
    for budget in (0, 1 << 30):
        with pytest.raises(DataError, match=r"cam0 of episode 0 shows \(16, 24, 3\), .* says \(32, 48, 3\)"):
            demos.Dataset(data.root, cache_bytes=budget).window(np.array([3]), 1, 1)


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_damage_in_the_middle_is_one_line_and_does_not_stay(tmp_path, helpers, budget):
    root = helpers.record(tmp_path / "d", [30, 4], 1)
    path = root / f"videos/{CAM}/chunk-000/file-000.mp4"
    good = path.read_bytes()
    with av.open(str(path)) as source:
        sizes = [(p.pos, p.size) for p in source.demux(video=0) if p.size]
    harmed = bytearray(good)
    for position, size in sizes[10:]:
        harmed[position : position + size] = bytes(size)
    path.write_bytes(harmed)
    data = demos.Dataset(root, cache_bytes=budget)
    with pytest.raises(DataError, match=r"file-000\.mp4|cam0 of episode 0") as error:
        data.window(np.array([20]), 1, 1)
    assert "\n" not in str(error.value) and "sinew data" in str(error.value)
    assert data.window(np.array([31]), 1, 1)[CAM].any(), "the other episodes are still there"
    path.write_bytes(good)
    assert data.window(np.array([20]), 1, 1)[CAM].any()


def test_a_foreign_rate_counts_from_the_episode_s_place_in_a_file(tmp_path, helpers):
    """Several episodes in one AV1 file at 12.5 frames per second, as LeRobot writes them."""
    root = helpers.record(tmp_path / "d", [7, 6], 1)
    shutil.rmtree(root / "videos")
    (root / f"videos/{CAM}/chunk-000").mkdir(parents=True)
    film(root / f"videos/{CAM}/chunk-000/file-000.mp4", "libsvtav1", 12.5, 13, {"g": "2", "crf": "20", "preset": "12"}, size=(32, 48))
    info = json.loads((root / "meta/info.json").read_text())
    info["fps"] = 12.5
    (root / "meta/info.json").write_text(json.dumps(info))
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path, first in zip(sorted((root / "meta/episodes").rglob("*.parquet")), (0, 7), strict=True):
        table = pq.read_table(path)
        for name, value in ((f"videos/{CAM}/file_index", 0), (f"videos/{CAM}/from_timestamp", first / 12.5)):
            table = table.set_column(table.column_names.index(name), name, pa.array([value], table[name].type))
        pq.write_table(table, path)
    for budget in (0, 1 << 30):
        data = demos.Dataset(root, cache_bytes=budget)
        assert [number(p) for p in data.window(np.arange(13), 1, 1)[CAM][:, 0]] == list(range(13))
        assert [number(p) for p in data.window(np.array([7, 8, 6]), 2, 1)[CAM].reshape(6, 32, 48, 3)] == [7, 7, 7, 8, 5, 6]
