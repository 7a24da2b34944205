"""Datasets made to read elsewhere, to fill the memory or to end the process are refused in one line."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import demos
from demos import doctor, layout, rescue, tables, video
from sinew.errors import DataError


@pytest.fixture(scope="module")
def whole(tmp_path_factory, helpers) -> Path:
    return helpers.record(tmp_path_factory.mktemp("malicious") / "whole", [5, 4], cameras=1)


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def change(root: Path, **fields: Any) -> None:
    path = root / layout.INFO
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(root: Path, message: str) -> None:
    """By whatever reads it, in one line; the doctor may list it instead."""
    with pytest.raises(DataError, match=message) as told:
        demos.Dataset(root)
    assert "\n" not in str(told.value)
    try:
        findings = doctor.check(root).findings
    except DataError as e:
        assert re.search(message, str(e)) and "\n" not in str(e)
    else:
        assert any(finding.level == "error" and re.search(message, finding.message) for finding in findings)


@pytest.mark.parametrize("field", ["data_path", "video_path"])
@pytest.mark.parametrize(
    "template",
    [
        "/etc/passwd",
        "/etc/{chunk_index:03d}/{file_index:03d}",
        "../elsewhere/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "data/../../x/{file_index:03d}",
        "data/{chunk_index.__class__.__mro__}",
        "data/{chunk_index.real}/{file_index:03d}",
        "data/{chunk_index:999999999d}",
        "data/{chunk_index:>99999999}",
        "data/{chunk_index}/{0}",
        "data/{unknown}",
        "data/{chunk_index!r}",
        "data/{chunk_index:{file_index}}",
        "data/{chunk_index",
        "data/\0",
        7,
    ],
)
def test_paths_that_lead_elsewhere(root, field, template):
    change(root, **{field: template})
    refused(root, r"data_path is|video_path is|field 'data_path' is 7")


def test_paths_as_lerobot_writes_them_are_fine(root):
    change(root, data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    assert len(demos.Dataset(root)) == 9
    (root / "data/chunk-000").rename(root / "data/chunk-0")
    change(root, data_path="data/chunk-{chunk_index}/file-{file_index:03d}.parquet")
    assert len(demos.Dataset(root)) == 9


@pytest.mark.parametrize("key", ["../../etc", "..", "a/b", "a\\b", "", "a\0b"])
def test_names_of_features_that_are_paths(root, key):
    features = json.loads((root / layout.INFO).read_text())["features"]
    change(root, features=features | {key: {"dtype": "video", "shape": [4, 4, 3]}})
    refused(root, "has a name that no file can have")


@pytest.mark.parametrize("shape", [[2**40], [2**20, 2**20], [-1], ["3"], [1.5], [None]])
def test_shapes_that_no_frame_has(root, shape):
    features = json.loads((root / layout.INFO).read_text())["features"]
    change(root, features=features | {"action": {"dtype": "float32", "shape": shape}})
    refused(root, "feature 'action' has the shape")


@pytest.mark.parametrize("fields", [{"total_frames": 10**15}, {"total_episodes": 2**24}, {"total_frames": -1}])
def test_numbers_that_no_dataset_has(root, fields):
    change(root, **fields)
    refused(root, f"{next(iter(fields))} is")


def test_large_numbers_that_are_not_there(root):
    change(root, total_frames=2**31 - 1)
    with pytest.raises(DataError, match="counts 2147483647 frames, its episodes 9"):
        demos.Dataset(root)
    change(root, total_frames=9, total_episodes=2**24 - 1)
    with pytest.raises(DataError, match="counts 16777215 episodes, meta/episodes holds 2"):
        demos.Dataset(root)


@pytest.mark.parametrize(
    ("column", "value"),
    [("data/file_index", "../../../etc/passwd"), ("data/chunk_index", -1), ("length", 10**15), ("length", None), ("episode_index", 0.5)],
)
def test_lines_of_episodes_that_are_no_lines(root, column, value):
    path = next((root / "meta/episodes").glob("*/*.parquet"))
    table = pq.read_table(path)
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array([value] * len(table))), path)
    refused(root, f"{column} is")


def test_a_parquet_file_that_unfolds_into_billions_of_values(root, tmp_path):
    path = next((root / "data").glob("*/*.parquet"))
    zeros = pa.array(np.zeros(2_000_000, np.int64))
    with pq.ParquetWriter(path, pa.schema([(f"c{i}", pa.int64()) for i in range(8)]), compression="zstd") as writer:
        writer.write_table(pa.table({f"c{i}": zeros for i in range(8)}))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"would unfold into \d+: it is damaged or a trap"):
        tables.read_table(path)
    with pytest.raises(DataError, match="damaged or a trap"):
        demos.Dataset(root)


def test_pictures_that_say_they_are_huge():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(side: int) -> bytes:
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        pixels = zlib.compress((b"\0" + b"\7" * side * 3) * side) if side < 100 else zlib.compress(b"\0" * 1000)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    assert video.decode_picture(png(8)).shape == (8, 8, 3)
    with pytest.raises(DataError, match="cannot be decoded as png"):
        video.decode_picture(png(20_000))


def test_repair_moves_nothing_outside_of_the_dataset(root, tmp_path):
    outside = tmp_path / "outside.parquet"
    outside.write_bytes(b"PAR1 not really")
    change(root, data_path="../outside.parquet")
    rescue.repair(root)
    assert json.loads((root / layout.INFO).read_text())["data_path"] == layout.DATA and len(demos.Dataset(root)) == 9
    assert outside.read_bytes() == b"PAR1 not really"
