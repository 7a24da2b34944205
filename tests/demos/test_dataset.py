"""Reading: windows against a naive reference, statistics against NumPy, and clear words for what is not a dataset."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import numpy as np
import pytest

import demos
from sinew.errors import DataError
from sinew.protocols import EpisodeData


@pytest.fixture(scope="module")
def root(tmp_path_factory, helpers):
    return helpers.record(tmp_path_factory.mktemp("set") / "d", [13, 5, 1, 8], cameras=2)


def naive_window(dataset: demos.Dataset, index: int, n_obs_steps: int, horizon: int) -> dict[str, np.ndarray]:
    """One item, frame by frame, straight from the definition."""
    episode = next(e for e in map(dataset.episode, range(dataset.num_episodes)) if e.start <= index < e.start + e.length)
    past = [max(episode.start, index - n_obs_steps + 1 + i) for i in range(n_obs_steps)]
    last = episode.start + episode.length - 1
    item = {k: np.stack([dataset[i][k] for i in past]) for k in dataset.observation_spec}
    item["action"] = np.stack([dataset[min(last, index + i)]["action"] for i in range(horizon)])
    item["action_is_pad"] = np.array([index + i > last for i in range(horizon)])
    return item


@pytest.mark.parametrize("cache_bytes", [1 << 30, 40_000], ids=["all pictures fit", "few pictures fit"])
@pytest.mark.parametrize(("n_obs_steps", "horizon"), [(1, 1), (2, 8), (3, 20)])
def test_window_equals_the_naive_one(root, cache_bytes, n_obs_steps, horizon):
    dataset = demos.Dataset(root, cache_bytes=cache_bytes)
    indices = np.random.default_rng(0).permutation(len(dataset))
    window = dataset.window(indices, n_obs_steps, horizon)
    assert set(window) == {*dataset.observation_spec, "action", "action_is_pad"}
    for row, index in enumerate(indices):
        for key, value in naive_window(dataset, int(index), n_obs_steps, horizon).items():
            np.testing.assert_array_equal(window[key][row], value)
            assert window[key].dtype == value.dtype


def test_window_types_and_keys(root):
    dataset = demos.Dataset(root)
    data: EpisodeData = dataset
    window = data.window(np.array([3, 4]), 2, 4, keys=("observation.state",))
    assert set(window) == {"observation.state", "action", "action_is_pad"}
    assert window["observation.state"].dtype == np.float32 and window["action"].shape == (2, 4, 3)
    images = dataset.window(np.array([3]), 1, 1)["observation.images.cam0"]
    assert images.dtype == np.uint8 and images.shape == (1, 1, 32, 48, 3)
    images[:] = 0
    assert dataset.window(np.array([3]), 1, 1)["observation.images.cam0"].any(), "a window is the caller's own"


def test_round_trip(root, helpers):
    dataset = demos.Dataset(root)
    assert [dataset.episode(i).length for i in range(4)] == [13, 5, 1, 8]
    for i in range(4):
        e = dataset.episode(i)
        assert e.success is (i % 2 == 0) and e.task == "push the block"
        for at in range(e.length):
            want, have = helpers.frame(i, at, 2), dataset[e.start + at]
            for key in ("observation.state", "observation.environment_state", "action"):
                np.testing.assert_array_equal(have[key], want[key])
            for key in dataset.cameras:
                error = np.mean((have[key].astype(float) - want[key]) ** 2)
                assert 10 * np.log10(255**2 / error) > 28, (key, error)


def test_lossless_pictures(tmp_path, helpers):
    root = helpers.record(tmp_path / "d", [4, 3], cameras=2, video=False)
    assert not (root / "videos").exists()
    dataset = demos.Dataset(root)
    for index, (i, at) in enumerate([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]):
        for key in dataset.cameras:
            np.testing.assert_array_equal(dataset[index][key], helpers.frame(i, at, 2)[key])


def test_stats_against_numpy(root):
    dataset = demos.Dataset(root)
    stats = dataset.stats()
    assert set(stats) == {"observation.state", "observation.environment_state", "action"}
    for key, told in stats.items():
        values = np.stack([dataset[i][key] for i in range(len(dataset))]).astype(np.float64)
        for name, value in {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}.items():
            np.testing.assert_allclose(told[name], value, rtol=1e-12)
            assert told[name].dtype == np.float64
    written = json.loads((root / "meta/stats.json").read_text())
    for key, told in stats.items():
        for name, value in told.items():
            np.testing.assert_allclose(written[key][name], value, rtol=1e-6, atol=1e-7)


def test_episode_statistics_add_up():
    from demos.statistics import aggregate, image_stats, vector_stats

    rng = np.random.default_rng(1)
    parts = [rng.normal(i, 1 + i, (n, 3)) for i, n in enumerate((7, 40, 1))]
    total, whole = aggregate([{"x": vector_stats(p)} for p in parts])["x"], np.concatenate(parts)
    for name, value in {"mean": whole.mean(0), "std": whole.std(0), "min": whole.min(0), "max": whole.max(0)}.items():
        np.testing.assert_allclose(total[name], value)
    assert total["count"] == [48]
    images = rng.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    told, flat = image_stats(images), images.reshape(-1, 3) / 255
    for name, value in {"mean": flat.mean(0), "std": flat.std(0), "min": flat.min(0), "max": flat.max(0)}.items():
        np.testing.assert_allclose(told[name].ravel(), value)
        assert told[name].shape == (3, 1, 1)
    np.testing.assert_allclose(told["q50"].ravel(), np.quantile(flat, 0.5, axis=0, method="inverted_cdf"))


def test_at_repeats_the_ends_and_says_so(root):
    dataset = demos.Dataset(root)
    found = dataset.at(np.array([0, 13]), {"action": [-0.1, 0.0, 0.05], "observation.images.cam1": [0.0]})
    assert found["action_is_pad"].tolist() == [[True, False, False]] * 2
    np.testing.assert_array_equal(found["action"][1], dataset.column("action")[[13, 13, 14]])
    with pytest.raises(DataError, match="fall between frames"):
        dataset.at(np.array([0]), {"action": [0.03]})
    with pytest.raises(DataError, match=r"no 'observation\.nope'"):
        dataset.at(np.array([0]), {"observation.nope": [0.0]})
    with pytest.raises(DataError, match="27 frames"):
        dataset.window(np.array([27]), 1, 1)
    with pytest.raises(IndexError):
        dataset[27]


def test_hash_tells_content(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert demos.Dataset(copy).content_hash() == demos.Dataset(root).content_hash()
    video = next((copy / "videos").rglob("*.mp4"))
    data = bytearray(video.read_bytes())
    data[-1] ^= 1
    video.write_bytes(bytes(data))
    assert demos.Dataset(copy).content_hash() != demos.Dataset(root).content_hash()


def test_pickle_and_fork(root):
    dataset = demos.Dataset(root, cache_bytes=40_000)
    want = dataset.window(np.arange(27), 1, 1)["observation.images.cam0"]
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.window(np.arange(27), 1, 1)["observation.images.cam0"], want)
    child = os.fork()
    if child == 0:
        same = np.array_equal(dataset.window(np.arange(27)[::-1], 1, 1)["observation.images.cam0"], want[::-1])
        os._exit(0 if same else 1)
    np.testing.assert_array_equal(dataset.window(np.arange(27), 1, 1)["observation.images.cam0"], want)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def damaged(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    return copy


def test_no_dataset(tmp_path, root):
    with pytest.raises(DataError, match="no dataset at"):
        demos.Dataset(tmp_path / "nope")
    with pytest.raises(DataError, match="datasets there are d"):
        demos.Dataset(root.parent / "nope")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"not a LeRobotDataset v3: meta/info\.json is missing"):
        demos.Dataset(tmp_path / "holiday")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(codebase_version="v2.1"), r"LeRobotDataset v2\.1, Sinew reads v3.*convert"),
        (lambda d: d.pop("codebase_version"), "no codebase_version"),
        (lambda d: d.pop("fps"), "field 'fps'"),
        (lambda d: d.update(features=[]), "field 'features'"),
        (lambda d: d["features"].update(action={"dtype": "float32"}), "'action' has no dtype and shape"),
        (lambda d: d["features"].pop("action"), "no feature 'action'"),
        (lambda d: d.update(total_episodes=9), "counts 9 episodes, meta/episodes holds 4.*sinew data repair"),
        (lambda d: d.update(total_frames=28), "counts 28 frames, its episodes 27"),
    ],
)
def test_foreign_or_wrong_info(root, tmp_path, change, message):
    copy = damaged(root, tmp_path)
    info = json.loads((copy / "meta/info.json").read_text())
    change(info)
    (copy / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=message) as error:
        demos.Dataset(copy)
    assert "\n" not in str(error.value)


FILES = ["meta/info.json", "meta/tasks.parquet", "meta/sinew.json", "meta/episodes/chunk-000/file-001.parquet",
         "data/chunk-000/file-002.parquet"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_named(root, tmp_path, name):
    copy = damaged(root, tmp_path)
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=path.name) as error:
        demos.Dataset(copy)
    assert "\n" not in str(error.value)


def test_missing_and_truncated_videos_are_named(root, tmp_path):
    copy = damaged(root, tmp_path)
    path = copy / "videos/observation.images.cam1/chunk-000/file-001.mp4"
    path.write_bytes(path.read_bytes()[:500])
    dataset = demos.Dataset(copy)
    with pytest.raises(DataError, match=r"cam1.*file-001\.mp4"):
        dataset.window(np.array([14]), 1, 1)
    path.unlink()
    with pytest.raises(DataError, match=r"file-001\.mp4 is missing"):
        demos.Dataset(copy)


def test_foreign_specs_are_derived(root, tmp_path):
    copy = damaged(root, tmp_path)
    (copy / "meta/sinew.json").unlink()
    dataset = demos.Dataset(copy)
    assert dataset.observation_spec["observation.state"].names == ("a", "b", "c", "d")
    assert dataset.observation_spec.images == ("observation.images.cam0", "observation.images.cam1")
    assert dataset.action_spec.kind == "joint_position" and dataset.action_spec.names == ("x", "y", "gripper")
    np.testing.assert_allclose(dataset.action_spec.low, dataset.stats()["action"]["min"])


def test_empty_dataset(tmp_path, helpers):
    observation, action = helpers.specs()
    demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action).finalize()
    dataset = demos.Dataset(tmp_path / "d")
    assert len(dataset) == 0 and dataset.num_episodes == 0
    assert demos.check(tmp_path / "d").episodes == 0 and demos.info(tmp_path / "d")["frames"] == 0
