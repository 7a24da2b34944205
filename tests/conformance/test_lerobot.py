"""Against the real lerobot package, in the venv that has it: our folders load there, its folders load here, frame for frame."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="runs in the venv with the real lerobot: make conformance")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

import demos
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

torch.set_num_threads(1)
FPS, HEIGHT, WIDTH = 20, 48, 64
CAMERAS = ("observation.images.front", "observation.images.wrist")


def specs(cameras: tuple[str, ...]) -> tuple[ObservationSpec, ActionSpec]:
    tensors = {
        "observation.state": TensorSpec(shape=(6,), unit="rad", names=tuple("abcdef")),
        "observation.environment_state": TensorSpec(shape=(3,), unit="m"),
        **{c: TensorSpec(shape=(HEIGHT, WIDTH, 3), dtype="uint8") for c in cameras},
    }
    action = ActionSpec(kind="ee_delta", low=(-1.0,) * 4, high=(1.0,) * 4, rate_hz=FPS, names=("x", "y", "z", "gripper"))
    return ObservationSpec(tensors), action


def frame(episode: int, at: int, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([episode, at])
    values = {
        "observation.state": rng.uniform(-1, 1, 6).astype(np.float32),
        "observation.environment_state": rng.uniform(-1, 1, 3).astype(np.float32),
        "action": rng.uniform(-1, 1, 4).astype(np.float32),
    }
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    for n, camera in enumerate(cameras):
        image = np.stack([rows * 4.0 + at, columns * 3.0, np.full((HEIGHT, WIDTH), 30.0 * episode + 60 * n)], -1)
        image[10:30, at * 2 : at * 2 + 10] = (240, 240, 40)
        values[camera] = image.clip(0, 255).astype(np.uint8)
    return values


def record(root: Path, cameras: tuple[str, ...], video: bool, lengths: tuple[int, ...] = (17, 9, 23)) -> Path:
    observation, action = specs(cameras)
    with demos.Writer.create(root, fps=FPS, observation_spec=observation, action_spec=action, robot_type="arm", video=video) as writer:
        for episode, length in enumerate(lengths):
            for at in range(length):
                writer.add_frame(frame(episode, at, cameras), task=f"task {episode % 2}", stamp_ns=at * 50_000_000)
            writer.save_episode(success=episode != 1)
    return root


def theirs(root: Path, **options) -> LeRobotDataset:
    return LeRobotDataset("local/test", root=root, video_backend="pyav", **options)


def same_frames(ours: demos.Dataset, other: LeRobotDataset, cameras: tuple[str, ...]) -> None:
    """Every frame alike: numbers exactly, pictures exactly as decoded from the same file."""
    assert len(ours) == len(other) and ours.num_episodes == other.num_episodes and ours.fps == other.fps
    for i in range(len(ours)):
        a, b = ours[i], other[i]
        assert a["task"] == b["task"]
        for key in ("observation.state", "action"):
            np.testing.assert_array_equal(a[key], b[key].numpy())
        for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
            assert a[key][0] == b[key].item(), (i, key)
        for camera in cameras:
            np.testing.assert_array_equal(np.moveaxis(a[camera], -1, 0).astype(np.float32) / 255, b[camera].numpy(), err_msg=camera)


KINDS = [((), True), (CAMERAS, True), (CAMERAS[:1], False)]


@pytest.mark.parametrize(("cameras", "video"), KINDS, ids=["state", "video", "image"])
def test_our_dataset_loads_in_lerobot(tmp_path, cameras, video):
    root = record(tmp_path / "d", cameras, video)
    other = theirs(root)
    same_frames(demos.Dataset(root), other, cameras)
    assert other.meta.robot_type == "arm" and list(other.meta.tasks.index) == ["task 0", "task 1"]
    for episode, length in enumerate((17, 9, 23)):
        first = sum((17, 9, 23)[:episode])
        for at in (0, length - 1):
            want, item = frame(episode, at, cameras), other[first + at]
            np.testing.assert_array_equal(item["observation.state"].numpy(), want["observation.state"])
            np.testing.assert_array_equal(item["action"].numpy(), want["action"])
            for camera in cameras:
                error = np.abs(item[camera].numpy() * 255 - np.moveaxis(want[camera], -1, 0)).mean()
                assert error < (4 if video else 1e-4), (camera, error)
        assert item["next.done"].item() and item["next.success"].item() == (episode != 1)
        assert item["timestamp_ns"].item() == (length - 1) * 50_000_000


@pytest.mark.parametrize(("cameras", "video"), KINDS, ids=["state", "video", "image"])
def test_delta_timestamps_agree(tmp_path, cameras, video):
    root = record(tmp_path / "d", cameras, video)
    deltas = {"action": [t / FPS for t in range(-2, 12)], "observation.state": [-0.1, 0.0], **{c: [-0.1, -0.05, 0.0] for c in cameras}}
    ours, other = demos.Dataset(root), theirs(root, delta_timestamps=deltas)
    for i in range(0, len(ours), 3):
        a, b = ours.at(np.array([i]), deltas), other[i]
        for key, value in a.items():
            value = np.moveaxis(value, -1, -3).astype(np.float32) / 255 if key in cameras else value
            np.testing.assert_array_equal(value[0], b[key].numpy(), err_msg=f"{i} {key}")


@pytest.mark.parametrize(("cameras", "video"), KINDS, ids=["state", "video", "image"])
def test_window_is_what_lerobot_gives_a_policy(tmp_path, cameras, video):
    root = record(tmp_path / "d", cameras, video)
    steps = {"action": [t / FPS for t in range(8)], "observation.state": [-1 / FPS, 0.0]}
    ours, other = demos.Dataset(root), theirs(root, delta_timestamps=steps)
    window = ours.window(np.arange(len(ours)), 2, 8)
    for i in range(0, len(ours), 5):
        for key in ("action", "action_is_pad", "observation.state"):
            np.testing.assert_array_equal(window[key][i], other[i][key].numpy())


def test_stats_of_ours_agree_with_what_lerobot_reads(tmp_path):
    root = record(tmp_path / "d", CAMERAS, True)
    told, exact = theirs(root).meta.stats, demos.Dataset(root).stats()
    for key, values in exact.items():
        for name, value in values.items():
            np.testing.assert_allclose(told[key][name], value, rtol=1e-5, atol=1e-6)
    assert told[CAMERAS[0]]["mean"].shape == (3, 1, 1) and 0 < told[CAMERAS[0]]["mean"].mean() < 1


def features(mode: str) -> dict:
    return {
        "observation.state": {"dtype": "float32", "shape": (6,), "names": {"motors": list("abcdef")}},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
        "gripper": {"dtype": "float32", "shape": (1,), "names": None},
        CAMERAS[0]: {"dtype": mode, "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]},
    }


def lerobot_records(root: Path, mode: str, codec: str = "h264", episodes: int = 3, finalize: bool = True) -> LeRobotDataset:
    dataset = LeRobotDataset.create("local/test", fps=FPS, features=features(mode), root=root, use_videos=mode == "video", vcodec=codec)
    for episode in range(episodes):
        for at in range(11 + episode):
            values = frame(episode, at, CAMERAS[:1])
            del values["observation.environment_state"]
            dataset.add_frame({**values, "gripper": np.array([at / 10], np.float32), "task": f"task {episode % 2}"})
        dataset.save_episode()
    if finalize:
        dataset.finalize()
    return dataset


@pytest.mark.parametrize(("mode", "codec"), [("video", "h264"), ("video", "libsvtav1"), ("image", "h264")])
def test_lerobots_dataset_loads_in_ours(tmp_path, mode, codec):
    root = tmp_path / "d"
    lerobot_records(root, mode, codec)
    ours = demos.Dataset(root)
    same_frames(ours, theirs(root), CAMERAS[:1])
    assert ours.observation_spec["observation.state"].names == tuple("abcdef")
    assert ours.action_spec.dim == 4 and ours.action_spec.rate_hz == FPS
    assert [ours.episode(i).length for i in range(3)] == [11, 12, 13]
    assert demos.check(root).ok
    deltas = {"action": [0.0, 0.05, 0.1], CAMERAS[0]: [-0.05, 0.0]}
    other = theirs(root, delta_timestamps=deltas)
    for i in (0, 10, 11, 35):
        a, b = ours.at(np.array([i]), deltas), other[i]
        np.testing.assert_array_equal(np.moveaxis(a[CAMERAS[0]], -1, -3).astype(np.float32)[0] / 255, b[CAMERAS[0]].numpy())
        np.testing.assert_array_equal(a["action"][0], b["action"].numpy())


def test_lerobot_goes_on_with_our_dataset_and_we_with_its(tmp_path):
    root = tmp_path / "d"
    lerobot_records(root, "video")
    with demos.Writer.resume(root) as writer:
        for at in range(8):
            values = frame(3, at, CAMERAS[:1])
            del values["observation.environment_state"]
            writer.add_frame({**values, "gripper": np.array([0.5], np.float32)}, task="task 2")
        writer.save_episode()
    ours, other = demos.Dataset(root), theirs(root)
    same_frames(ours, other, CAMERAS[:1])
    assert ours.num_episodes == 4 and other[len(other) - 1]["task"] == "task 2"


def test_a_policy_of_lerobot_trains_on_our_dataset(tmp_path):
    from lerobot.configs.types import FeatureType
    from lerobot.datasets.utils import dataset_to_policy_features
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    root = record(tmp_path / "d", CAMERAS, True, lengths=(20, 20))
    deltas = {"action": [t / FPS for t in range(8)]}
    dataset = theirs(root, delta_timestamps=deltas)
    told = dataset_to_policy_features(dataset.meta.features)
    assert set(told) == {"observation.state", "observation.environment_state", "action", *CAMERAS}
    config = ACTConfig(
        input_features={k: v for k, v in told.items() if v.type is not FeatureType.ACTION},
        output_features={k: v for k, v in told.items() if v.type is FeatureType.ACTION},
        chunk_size=8, n_action_steps=8, dim_model=32, n_heads=2, dim_feedforward=64, n_encoder_layers=1, latent_dim=8,
        n_vae_encoder_layers=1, pretrained_backbone_weights=None, device="cpu", push_to_hub=False,
    )  # fmt: skip
    policy = make_policy(config, ds_meta=dataset.meta)
    before, _ = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    policy.train()
    losses = []
    for step, batch in enumerate(torch.utils.data.DataLoader(dataset, batch_size=8)):
        loss, _ = policy.forward(before(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 2:
            break
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[-1] < losses[0]


KILLED = """
import os, sys
sys.path.insert(0, os.environ["HERE"])
import test_lerobot
from pathlib import Path
kept = test_lerobot.lerobot_records(Path(sys.argv[1]), sys.argv[2], episodes=int(sys.argv[3]), finalize=False)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("mode", "episodes"), [("video", 3), ("video", 12), ("image", 3)])
def test_a_killed_lerobot_session_is_repaired(tmp_path, mode, episodes):
    """LeRobot itself cannot load what it leaves behind; after `repair` both of us can, with every episode it had saved."""
    root = tmp_path / "d"
    environment = {**os.environ, "HERE": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), mode, str(episodes)], env=environment, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()[-500:]
    with pytest.raises(demos_error(), match="repair"):
        demos.Dataset(root)
    report = demos.repair(root)
    assert report.ok, report.findings
    ours = demos.Dataset(root)
    assert [ours.episode(i).length for i in range(ours.num_episodes)] == [11 + i for i in range(episodes)]
    same_frames(ours, theirs(root), CAMERAS[:1])
    for episode in range(episodes):
        want, have = frame(episode, 5, CAMERAS[:1]), ours[ours.episode(episode).start + 5]
        np.testing.assert_array_equal(have["observation.state"], want["observation.state"])
        assert np.abs(have[CAMERAS[0]].astype(int) - want[CAMERAS[0]]).mean() < 6


def demos_error() -> type[Exception]:
    from sinew.errors import DataError

    return DataError


def test_lerobot_loads_after_every_save_and_in_the_middle_of_an_episode(tmp_path):
    observation, action = specs(CAMERAS)
    writer = demos.Writer.create(tmp_path / "d", fps=FPS, observation_spec=observation, action_spec=action, task="t")
    for episode in range(3):
        for at in range(5):
            writer.add_frame(frame(episode, at, CAMERAS))
            if episode:
                other = theirs(tmp_path / "d")
                assert (other.num_episodes, len(other)) == (episode, 5 * episode)
        writer.save_episode()
        same_frames(demos.Dataset(tmp_path / "d"), theirs(tmp_path / "d"), CAMERAS)
    writer.finalize()


@pytest.mark.parametrize("video", [True, False], ids=["video", "image"])
def test_lerobots_editing_tools_take_our_dataset(tmp_path, video):
    """Deleting an episode and merging with LeRobot's tools; what comes out loads in both, and ours is unharmed."""
    from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets

    root = record(tmp_path / "d", CAMERAS[:1], video)
    less = delete_episodes(theirs(root), [1], output_dir=tmp_path / "less", repo_id="local/less")
    assert less.num_episodes == 2
    ours = demos.Dataset(tmp_path / "less")
    same_frames(ours, theirs(tmp_path / "less"), CAMERAS[:1])
    np.testing.assert_array_equal(ours[17]["observation.state"], frame(2, 0, ())["observation.state"])
    merge_datasets([theirs(root), theirs(tmp_path / "less")], output_repo_id="local/more", output_dir=tmp_path / "more")
    more = demos.Dataset(tmp_path / "more")
    assert more.num_episodes == 5
    same_frames(more, theirs(tmp_path / "more"), CAMERAS[:1])
    assert demos.check(root).ok
    assert [(f.kind, f.episode) for f in demos.check(tmp_path / "more").findings] == [("double", 3), ("double", 4)]  # they are: 0 and 2
