"""`check` names what is wrong, `repair` keeps every episode that can be read in full and never deletes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import demos
from demos import footer, layout, tables
from sinew.errors import DataError

DATA = "data/chunk-000/file-00{}.parquet"


@pytest.fixture(scope="module")
def source(tmp_path_factory, helpers):
    return helpers.record(tmp_path_factory.mktemp("doctor") / "d", [24, 25, 26], cameras=2)


@pytest.fixture
def root(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "d"))


def change(root: Path, episode: int, key: str, edit) -> None:
    """Edit one column of an episode's data file in place."""
    path = root / DATA.format(episode)
    table = pq.read_table(path)
    values = np.array(table[key].to_pylist())
    edit(values)
    kind = table.schema.field(key).type
    table = table.set_column(table.column_names.index(key), key, pa.array(values.tolist(), kind))
    pq.write_table(table, path)


def set_at(*place_and_value):
    *place, value = place_and_value

    def edit(values):
        values[tuple(place)] = value

    return edit


def only(report: demos.Report) -> demos.Finding:
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


def test_a_sound_dataset_has_no_findings(source):
    report = demos.check(source)
    assert report.ok and not report.findings and (report.episodes, report.frames) == (3, 75)
    assert report.as_dict()["ok"] is True
    json.dumps(report.as_dict())


CHANGES = [
    (1, "action", set_at(7, 2, np.nan), ("warning", "action", 1, 7), "element 2 is nan; 1 frame not finite"),
    (2, "observation.state", set_at(0, 0, np.inf), ("warning", "observation.state", 2, 0), "element 0 is inf"),
    (
        1,
        "timestamp_ns",
        lambda v: v.__setitem__(slice(10, None), v[10:] + 200_000_000),
        ("warning", "timestamp_ns", 1, 10),
        "gap of 250.0 ms",
    ),
    (0, "timestamp_ns", set_at(5, 0), ("warning", "timestamp_ns", 0, 5), "does not rise"),
    (1, "timestamp", set_at(4, 9.0), ("warning", "timestamp", 1, 4), "away from frame_index"),
    (1, "frame_index", set_at(3, 17), ("error", "frame_index", 1, 3), "is 17, expected 3"),
    (1, "episode_index", set_at(3, 2), ("error", "episode_index", 1, 3), "is 2, expected 1"),
    (2, "task_index", set_at(3, 9), ("error", "task_index", 2, 3), "names a task"),
    (2, "action", set_at(3, 1, 1.5), ("warning", "action", 2, 3), "y is 1.5, outside -1 … 1; 1 frame"),
]


@pytest.mark.parametrize(("episode", "key", "edit", "place", "message"), CHANGES)
def test_values_are_flagged_with_frame_and_key(root, episode, key, edit, place, message):
    change(root, episode, key, edit)
    findings = [f for f in demos.check(root, pictures=False).findings if f.key == key]
    assert (findings[0].level, findings[0].key, findings[0].episode, findings[0].frame) == place
    assert message in findings[0].message and f"frame {place[3]}" in str(findings[0])


def test_index_holes_are_flagged(root):
    change(root, 1, "index", set_at(3, 1000))
    finding = only(demos.check(root, pictures=False))
    assert finding.level == "error" and "repair" in finding.message


def test_empty_task_is_flagged(root):
    tables.write_tasks(root / layout.TASKS, ["  "])
    finding = only(demos.check(root, pictures=False))
    assert finding.message == "the task is empty" and (finding.episode, finding.frame) == (0, 0)


def test_missing_and_damaged_files_are_flagged(root):
    missing = root / "videos/observation.images.cam1/chunk-000/file-001.mp4"
    missing.unlink()
    short = root / DATA.format(2)
    short.write_bytes(short.read_bytes()[:900])
    found = {(f.level, f.where, f.episode) for f in demos.check(root).findings}
    assert found == {("error", str(missing.relative_to(root)), 1), ("error", str(short.relative_to(root)), 2)}


def test_wrong_picture_size_is_flagged(root):
    info = json.loads((root / layout.INFO).read_text())
    specs = json.loads((root / layout.SPECS).read_text())
    info["features"]["observation.images.cam0"]["shape"] = [64, 48, 3]
    specs["observation"]["observation.images.cam0"]["shape"] = [64, 48, 3]
    (root / layout.INFO).write_text(json.dumps(info))
    (root / layout.SPECS).write_text(json.dumps(specs))
    findings = demos.check(root).findings
    assert {f.key for f in findings} == {"observation.images.cam0"} and "(32, 48, 3)" in findings[0].message


def test_wrong_vector_shape_is_flagged(root):
    info = json.loads((root / layout.INFO).read_text())
    info["features"]["observation.state"]["shape"] = [5]
    (root / layout.INFO).write_text(json.dumps(info))
    assert any("observation.state" in f.message and f.level == "error" for f in demos.check(root, pictures=False).findings)


def test_short_video_is_flagged_with_its_frame(root):
    videos = root / "videos/observation.images.cam0/chunk-000"
    shutil.copy(videos / "file-000.mp4", videos / "file-002.mp4")
    finding = only(demos.check(root))
    assert (finding.key, finding.episode, finding.frame) == ("observation.images.cam0", 2, 24)


def test_info_tells(source):
    told = demos.info(source)
    assert told["episodes"] == 3 and told["frames"] == 75 and told["fps"] == 20
    assert told["tasks"] == {"push the block": 3} and told["outcomes"] == {"success": 2, "failure": 1}
    assert told["specs_from"] == "meta/sinew.json" and told["unsaved"] == []
    json.dumps(told)


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_repair_changes_nothing_that_is_sound(root):
    before = content(root)
    report = demos.repair(root)
    assert report.ok and not report.actions and content(root) == before


def test_repair_tells_counts(root):
    info = json.loads((root / layout.INFO).read_text())
    (root / layout.INFO).write_text(json.dumps({**info, "total_episodes": 7, "total_frames": 500}))
    before = {k: v for k, v in content(root).items() if not k.startswith("meta/info")}
    assert demos.repair(root).ok
    dataset = demos.Dataset(root)
    assert dataset.num_episodes == 3 and len(dataset) == 75
    after = content(root)
    assert all(after[k] == v for k, v in before.items() if not k.startswith("meta/stats"))


def test_repair_closes_the_hole_of_a_lost_episode(root, helpers):
    path = root / "videos/observation.images.cam1/chunk-000/file-001.mp4"
    path.write_bytes(path.read_bytes()[:400])
    report = demos.repair(root)
    assert report.ok, report.findings
    assert any("left out episode 1" in a for a in report.actions)
    dataset = demos.Dataset(root)
    assert [dataset.episode(i).length for i in range(2)] == [24, 26] and dataset.num_episodes == 2
    for new, old in ((0, 0), (1, 2)):
        for at in (0, 11, 23):
            have, want = dataset[dataset.episode(new).start + at], helpers.frame(old, at, 2)
            np.testing.assert_array_equal(have["observation.state"], want["observation.state"])
            assert np.abs(have["observation.images.cam1"].astype(int) - want["observation.images.cam1"]).mean() < 6
    assert dataset.column("index")[:, 0].tolist() == list(range(50))
    assert demos.check(root).ok
    assert list((root / layout.DAMAGED).rglob("*.parquet.saved")), "nothing is deleted"


@pytest.mark.parametrize("lost", ["meta/episodes/chunk-000/file-001.parquet", "meta/tasks.parquet", "meta/info.json", "meta/stats.json"])
def test_repair_writes_lost_metadata_anew(root, lost, helpers):
    (root / lost).unlink()
    report = demos.repair(root)
    assert report.ok, report.findings
    dataset = demos.Dataset(root)
    assert [dataset.episode(i).length for i in range(3)] == [24, 25, 26]
    np.testing.assert_array_equal(dataset[30]["action"], helpers.frame(1, 6, 2)["action"])
    assert demos.check(root).ok
    with demos.Writer.resume(root, task="more") as writer:
        writer.add_frame(helpers.frame(3, 0, 2))
        writer.save_episode()
    assert demos.Dataset(root).num_episodes == 4


def test_repair_of_what_is_no_dataset(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="not a LeRobotDataset"):
        demos.repair(tmp_path / "photos")
    with pytest.raises(DataError, match="no dataset"):
        demos.repair(tmp_path / "nothing")
    assert not list((tmp_path / "photos").iterdir())


def test_repair_without_anything_readable(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"codebase_ver')
    with pytest.raises(DataError, match="nothing was changed"):
        demos.repair(tmp_path)


def test_footer_is_rebuilt_for_every_cut(tmp_path):
    """A file of three row groups, cut anywhere: every whole row group comes back, and nothing else."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [7]},
        "flag": {"dtype": "bool", "shape": [1]},
        "observation.images.cam": {"dtype": "image", "shape": [4, 4, 3]},
        "index": {"dtype": "int64", "shape": [1]},
    }
    template, leaves = tables.template({"features": features})
    schema = pq.read_schema(pa.BufferReader(template))
    rng, path = np.random.default_rng(0), tmp_path / "x.parquet"
    counts, groups, ends, start = (5, 40, 3000), [], [], 0
    writer = pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=True)
    for n in counts:
        state = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(n * 7, dtype=np.float32)), 7)
        images = pa.array([{"bytes": rng.bytes(900), "path": f"{i}.png"} for i in range(n)], tables.PICTURE)
        table = pa.table([state, pa.array(rng.random(n) < 0.5), images, pa.array(range(start, start + n))], schema=schema)
        groups.append(table)
        writer.write_table(table)
        start += n
    writer.close()
    whole = path.read_bytes()
    facts = pq.read_metadata(path)
    for g in range(len(counts)):
        last = facts.row_group(g).column(facts.num_columns - 1)
        first_page = last.dictionary_page_offset if last.has_dictionary_page else last.data_page_offset
        ends.append(first_page + last.total_compressed_size)
    for cut in sorted({*ends, *(e - 1 for e in ends), ends[0] + 40, len(whole) - 9, ends[2] // 2}):
        complete = sum(e <= cut for e in ends)
        data = footer.complete(whole[:cut], leaves, template)
        if not complete:
            assert data is None
            continue
        assert data is not None
        found = pq.read_table(pa.BufferReader(data))
        assert found.equals(pa.concat_tables(groups[:complete]))
    assert footer.complete(b"PAR1" + rng.bytes(5000), leaves, template) is None


def test_pictures_that_freeze_in_a_video_are_found(tmp_path, helpers):
    """As another program might have recorded it: nothing warned, the video itself stands still."""
    root = helpers.record(tmp_path / "d", [40, 40], cameras=2)
    observation, action = helpers.specs(cameras=2)
    frozen = tmp_path / "frozen"
    with demos.Writer.create(frozen, fps=20, observation_spec=observation, action_spec=action, task="t") as writer:
        for at in range(40):
            frame = helpers.frame(1, at, 2)
            frame["observation.images.cam1"] = helpers.frame(1, max(0, min(at, 12)), 2)["observation.images.cam1"]
            writer.add_frame(frame)
        writer.save_episode()
    name = "videos/observation.images.cam1/chunk-000/file-00{}.mp4"
    shutil.copy(frozen / name.format(0), root / name.format(1))
    finding = only(demos.check(root))
    assert (finding.level, finding.key, finding.episode, finding.frame) == ("warning", "observation.images.cam1", 1, 12)
    assert "stuck" in finding.message
