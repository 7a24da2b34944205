"""Decoded pictures that are kept on disk: found again, never wrong, never in the way."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import demos
from demos import decoded, video
from demos.decoded import Shelf

CAMS = ("observation.images.cam0", "observation.images.cam1")


@pytest.fixture(scope="module")
def root(tmp_path_factory, helpers):
    return helpers.record(tmp_path_factory.mktemp("set") / "d", [13, 5, 1, 8], cameras=2)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "shelf", 1 << 30)


@pytest.fixture
def decodes(monkeypatch):
    """Videos that are opened, in order."""
    opened = []
    real = video.VideoReader.__init__
    monkeypatch.setattr(video.VideoReader, "__init__", lambda self, path, fps: (opened.append(path), real(self, path, fps))[1])
    return opened


def pictures(data):
    window = data.window(np.arange(len(data)), 1, 1)
    return {camera: window[camera] for camera in CAMS}


def same(a, b):
    return all(np.array_equal(a[camera], b[camera]) for camera in CAMS)


@pytest.mark.parametrize("size", [None, 16])
def test_a_second_run_decodes_nothing_and_sees_the_same(root, shelf, decodes, size):
    plain, first, second = (demos.Dataset(root, shelf=s) for s in (None, shelf, shelf))
    if size:
        plain, first, second = (data.resized(size) for data in (plain, first, second))
    want = pictures(plain)
    assert same(pictures(first), want)
    decodes.clear()
    assert same(pictures(second), want) and same(pictures(first), want) and decodes == []


def test_what_does_not_depend_on_the_place_is_found_after_a_copy(root, shelf, decodes, tmp_path):
    pictures(demos.Dataset(root, shelf=shelf))
    shutil.copytree(root, tmp_path / "copy")
    decodes.clear()
    pictures(demos.Dataset(tmp_path / "copy", shelf=shelf))
    assert decodes == []


def test_edited_data_are_decoded_again(root, shelf, helpers, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    pictures(demos.Dataset(copy, shelf=shelf))
    other = helpers.record(tmp_path / "other", [13, 5, 1, 8], cameras=2, task="another")
    for camera in CAMS:
        a, b = (copy / f"videos/{camera}/chunk-000/file-{i:03d}.mp4" for i in (0, 1))
        shutil.copy(other / f"videos/{camera}/chunk-000/file-003.mp4", b)
        a.write_bytes(a.read_bytes())  # written anew, but the same
    data = demos.Dataset(copy, shelf=shelf)
    changed = data.window(np.arange(13, 18), 1, 1)[CAMS[0]][:, 0]
    want = demos.Dataset(other).window(np.arange(19, 24), 1, 1)[CAMS[0]][:, 0]
    np.testing.assert_array_equal(changed, want)
    assert same(pictures(data), pictures(demos.Dataset(copy)))


def test_other_decoders_sizes_and_cameras_do_not_meet(root, shelf, monkeypatch):
    data = demos.Dataset(root, shelf=shelf)
    names = {data._frames._name(camera) for camera in CAMS} | {data.resized(16)._frames._name(CAMS[0])}
    monkeypatch.setattr("demos.frames.decoder_version", lambda: "another")
    assert len(names | {data._frames._name(CAMS[0])}) == 4


@pytest.mark.parametrize("harm", ["a byte", "half a file", "an empty file"])
def test_what_was_damaged_is_decoded_again(root, shelf, harm):
    want = pictures(demos.Dataset(root, shelf=shelf))
    for path in (shelf.folder / "pictures").glob("*/pictures.u8"):
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes({"a byte": bytes(data), "half a file": data[: len(data) // 2], "an empty file": b""}[harm])
    assert same(pictures(demos.Dataset(root, shelf=shelf)), want)


WORKER = """
import os, sys, numpy as np
import demos
from demos.decoded import Shelf
data = demos.Dataset(sys.argv[1], shelf=Shelf(__import__("pathlib").Path(sys.argv[2])))
order = np.random.default_rng(int(sys.argv[3])).permutation(len(data))
for index in order:
    found = data.window(np.array([index]), 1, 1)
    if sys.argv[3] == "0" and index == 14:
        os.kill(os.getpid(), 9)
np.save(sys.argv[4], found["observation.images.cam0"])
print(int(order[-1]))
"""


def test_processes_that_fill_it_together_and_one_that_is_killed(root, shelf, tmp_path):
    repository = str(decoded.__file__).rsplit("/demos/", 1)[0]
    environment = {**os.environ, "PYTHONPATH": repository, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(root), str(shelf.folder), str(n), str(tmp_path / f"{n}.npy")],
                         env=environment, stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [-9, 0, 0]
    want = pictures(demos.Dataset(root))
    for n in (1, 2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{n}.npy")[0], want[CAMS[0]][int(told[n])])
    assert same(pictures(demos.Dataset(root, shelf=shelf)), want)


def test_the_oldest_goes_when_there_is_no_room(root, shelf, tmp_path, helpers):
    one = sum(27 * 32 * 48 * 3 for _ in CAMS)
    narrow = Shelf(shelf.folder, one + 3 * 4096)
    pictures(demos.Dataset(root, shelf=narrow))
    old = sorted((shelf.folder / "pictures").iterdir())
    for place in old:
        os.utime(place / "about.json", (1, 1))
    other = helpers.record(tmp_path / "other", [14, 13], cameras=2)
    data = demos.Dataset(other, shelf=narrow)
    assert same(pictures(data), pictures(demos.Dataset(other)))
    assert len(list((shelf.folder / "pictures").iterdir())) <= 3 and not all(place.exists() for place in old)


def test_large_pictures_and_what_does_not_fit_stay_in_memory(root, shelf, monkeypatch):
    assert not shelf.takes((257, 256, 3), 1) and shelf.takes((256, 256, 3), 1) and not shelf.takes((8, 8, 3), (1 << 30) + 1)
    want = pictures(demos.Dataset(root))
    assert same(pictures(demos.Dataset(root, shelf=Shelf(shelf.folder, 1000))), want) and not shelf.folder.exists()
    monkeypatch.setattr(decoded, "MOST_PIXELS", 100)
    assert same(pictures(demos.Dataset(root, shelf=shelf)), want) and not shelf.folder.exists()


def test_a_folder_that_cannot_be_written_is_told_once(root, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "demos"):
        data = demos.Dataset(root, shelf=Shelf(tmp_path / "file" / "shelf"))
        assert same(pictures(data), pictures(demos.Dataset(root)))
        pictures(data)
    assert sum("are not kept" in r.message for r in caplog.records) == 1


def test_a_full_disk_ends_keeping_and_not_the_run(root, shelf, caplog, monkeypatch):
    real, written = os.pwrite, []

    def full(*given):
        written.append(given)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return real(*given)

    monkeypatch.setattr(decoded.os, "pwrite", full)
    with caplog.at_level(logging.WARNING, "demos"):
        assert same(pictures(demos.Dataset(root, shelf=shelf)), pictures(demos.Dataset(root)))
    assert "no longer kept: [Errno 28] No space left on device" in caplog.text
    monkeypatch.undo()
    assert same(pictures(demos.Dataset(root, shelf=shelf)), pictures(demos.Dataset(root)))


def test_files_are_closed(root, shelf):
    def count():
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for how in ({"shelf": shelf}, {"cache_bytes": 0}, {}):
        data = demos.Dataset(root, **how)
        want = pictures(data)
        data.close()
        assert same(pictures(data), want), "it may be used again"
        data.close()
        forgotten = demos.Dataset(root, **how)
        pictures(forgotten)
        del data, forgotten
    gc.collect()
    assert count() <= before
