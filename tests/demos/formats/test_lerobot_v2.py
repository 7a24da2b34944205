import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import demos
from demos import layout
from demos.edit import PLAN
from demos.formats import lerobot_v2
from sinew.errors import DataError, InputError


def downgrade(v3, root, version="v2.1"):
    """A dataset of ours laid out as LeRobot v2 lays it out: one Parquet and one MP4 file per episode, JSON lines."""
    data, info = demos.Dataset(v3), json.loads((v3 / layout.INFO).read_text())
    (root / "meta").mkdir(parents=True)
    lines = {"episodes": [], "episodes_stats": []}
    for i in range(data.num_episodes):
        episode = data.episode(i)
        rows = slice(episode.start, episode.start + episode.length)
        columns = {}
        for key, (dtype, shape) in layout.columns(info).items():
            values = data.column(key)[rows].astype(dtype)
            columns[key] = pa.array(values.reshape(-1)) if shape == (1,) else pa.array(list(values))
        path = root / f"data/chunk-000/episode_{i:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        for key in data.cameras:
            target = root / f"videos/chunk-000/{key}/episode_{i:06d}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data.video_path(key, i), target)
        lines["episodes"].append({"episode_index": i, "tasks": [episode.task], "length": episode.length})
        of_pictures = {n: [[[v]]] * 3 for n, v in (("min", 0.0), ("max", 1.0), ("mean", 0.4), ("std", 0.2))} | {"count": [9]}
        stats = dict.fromkeys(data.cameras, of_pictures)
        lines["episodes_stats"].append({"episode_index": i, "stats": stats})
    lines["tasks"] = [{"task_index": i, "task": t} for i, t in enumerate(data.tasks)]
    if version == "v2.0":
        del lines["episodes_stats"]
    for name, found in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    info |= {
        "codebase_version": version, "total_chunks": 1, "total_videos": 3,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module")
def v3(helpers, tmp_path_factory):
    return helpers.record(tmp_path_factory.mktemp("v3") / "data", [7, 4, 6], cameras=1)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_version_two_becomes_what_it_was(v3, tmp_path, version):
    v2 = downgrade(v3, tmp_path / "v2", version)
    assert lerobot_v2.is_it(v2) and not lerobot_v2.is_it(v3)
    assert lerobot_v2.upgrade(v2, tmp_path / "new") == {"episodes": 3, "frames": 17}
    new, old = demos.Dataset(tmp_path / "new"), demos.Dataset(v3)
    for key in ("observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index", "next.success"):
        assert np.array_equal(new.column(key), old.column(key)), key
    for at in (0, 8, 16):
        assert np.array_equal(new[at]["observation.images.cam0"], old[at]["observation.images.cam0"])
    assert new.tasks == old.tasks and (tmp_path / "new/videos/observation.images.cam0/chunk-000/file-002.mp4").is_file()
    told = json.loads((tmp_path / "new" / layout.STATS).read_text())["observation.images.cam0"]["mean"]
    assert (np.ravel(told) == 0.4).all() == (version == "v2.1")
    assert not demos.check(tmp_path / "new").findings
    assert not (tmp_path / "new" / layout.RECORDING).exists()


def test_what_was_cut_off_goes_on(v3, tmp_path, monkeypatch):
    v2 = downgrade(v3, tmp_path / "v2")

    class Stops:
        left = 2

        def start(self, *_, **__): ...

        def advance(self, *_):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lerobot_v2.upgrade(v2, tmp_path / "new", Stops())
    assert (tmp_path / "new" / PLAN).exists()
    assert lerobot_v2.upgrade(v2, tmp_path / "new") == {"episodes": 3, "frames": 17}
    with pytest.raises(InputError, match="not empty"):
        lerobot_v2.upgrade(v2, tmp_path / "new")


def test_damaged_and_hostile_ones_are_refused(v3, tmp_path):
    v2 = downgrade(v3, tmp_path / "v2")
    info = json.loads((v2 / "meta/info.json").read_text())
    for change, said in (
        (lambda: (v2 / "meta/info.json").write_text(json.dumps(info | {"data_path": "/etc/{episode_index}"})), "data_path"),
        (lambda: (v2 / "meta/info.json").write_text(json.dumps(info | {"video_path": "../{video_key}/{episode_index}"})), "video_path"),
        (lambda: (v2 / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1"), "episode_000001"),
        (lambda: (v2 / "meta/episodes.jsonl").write_text('{"episode_index": 1, "length": 4}\n'), "lacks episode 0"),
        (lambda: (v2 / "meta/episodes.jsonl").write_text("nonsense"), "episodes.jsonl"),
    ):
        (v2 / "meta/info.json").write_text(json.dumps(info))
        change()
        with pytest.raises(DataError, match=said):
            lerobot_v2.upgrade(v2, tmp_path / "new")
    assert not (tmp_path / "new" / layout.INFO).exists()
