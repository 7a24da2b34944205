"""What a reward is shown: lenses taken out of pictures, cameras of other sizes, and an object followed in recorded pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import sim
from calibration.camera import Camera
from calibration.results import Mounted, carried
from demos import Dataset, Writer
from rewards.files import save
from rewards.keypoint.settings import KeypointSettings, Place
from rewards.replay import play
from sim.views import SceneViews, speckled
from sinew import calibrations
from sinew.cli.main import main
from sinew.cli.reward_eyes import calibrated, undistorted
from sinew.cli.reward_recorded import builder, episodes
from sinew.specs import ObservationSpec, TensorSpec

SIZE = (480, 640)
LENSES = [("pinhole", (-0.2, 0.05, 0.001, -0.001, 0.0)), ("fisheye", (-0.05, 0.01, 0.0, 0.0))]


def mounted(name: str, lens: Camera, T: np.ndarray, mount: str = "to_hand") -> Mounted:
    wrong = {"pixel_sigma": 0.3, "robot_sigma_m": 1e-4, "robot_sigma_rad": 1e-4}
    return Mounted(name=name, mount=mount, T=T, covariance=1e-8 * np.eye(6), camera=lens, Z=np.eye(4), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_a_straightened_picture_shows_points_where_a_pinhole_sees_them(model, distortion):
    """Dots are painted where the lens puts them; afterwards they are at K (x, y, 1) / z."""
    lens = Camera(320, 240, (260.0, 262.0), (158.0, 121.0), distortion, model)
    points = np.array([[x, y, 1.0] for x in (-0.4, 0.0, 0.4) for y in (-0.3, 0.0, 0.3)])
    v, u = np.mgrid[:240, :320]
    picture = np.zeros((240, 320, 3), np.uint8)
    for x, y in lens.project(points):
        picture[np.hypot(u - x, v - y) < 3] = 255
    straight = undistorted(picture, lens)[..., 0].astype(float)
    for x, y in (points @ lens.matrix.T)[:, :2]:
        near = np.hypot(u - x, v - y) < 7
        weight = straight * near
        assert weight.sum() > 1000
        assert np.hypot((weight * u).sum() / weight.sum() - x, (weight * v).sum() / weight.sum() - y) < 0.7


def test_a_calibration_holds_for_pictures_of_another_size_and_not_of_another_shape():
    lens = Camera(640, 480, (500.0, 500.0), (319.5, 239.5))
    cameras = [mounted("front", lens, np.eye(4)), mounted("wrist", lens, np.eye(4), "in_hand")]
    found = calibrated(cameras, {"front": (240, 320), "wrist": (240, 320)})
    assert list(found) == ["front"]  # one on the hand does not stand still
    np.testing.assert_allclose(found["front"].view.matrix, [[250, 0, 159.5], [0, 250, 119.5], [0, 0, 1]])
    assert calibrated(cameras, {"front": (240, 240)}) == {} == calibrated(cameras, {"side": (240, 320)})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two episodes of lift by the expert, one cut off half way, in pictures of two calibrated cameras; the cube has speckles."""
    root = tmp_path_factory.mktemp("followed") / "data"
    interface = sim.make_interface("lift")
    env, expert = sim.MujocoVecEnv(interface, 1), sim.Expert(interface)
    drawer = SceneViews(speckled(interface.scene))
    turns, found = {"front": 0.0, "side": 0.9}, []
    for name, turn in turns.items():
        _, matrix, T = drawer.picture(env.qpos[0].copy(), "front", *SIZE, turn)
        found.append(mounted(name, Camera.from_matrix(matrix, (), SIZE[1], SIZE[0]), T))
    tensors = dict(interface.observation_spec.tensors)
    tensors |= {f"observation.images.{name}": TensorSpec(shape=(*SIZE, 3), dtype="uint8") for name in turns}
    spec, action_spec = ObservationSpec(tensors), interface.action_spec
    with Writer.create(root, fps=20, observation_spec=spec, action_spec=action_spec, robot_type="arm", task=interface.task_text) as writer:
        for seed, most in ((1, 99), (2, 16)):
            obs, over, step = env.reset([seed]), False, 0
            expert.reset(seeds=[seed])
            while not over and step < most:
                action = expert.act(obs)
                frame = {key: value[0].numpy() for key, value in obs.items()} | {"action": action[0].numpy()}
                for name, turn in turns.items():
                    frame[f"observation.images.{name}"] = drawer.picture(env.qpos[0].copy(), "front", *SIZE, turn)[0]
                writer.add_frame(frame, stamp_ns=step * 50_000_000)
                obs, _, terminated, truncated, _ = env.step(action)
                over, step = bool(terminated | truncated), step + 1
            writer.save_episode(success=over)
    drawer.close()
    env.close()
    calibrations.store([replace(carried(found), from_episode=0)], root / "meta")
    middle, above = Place(offset_m=(0.0, 0.0, 0.0), object="cube"), Place(offset_m=(0.0, 0.0, 0.1), object="cube")
    save(root.parent / "follow.json", "keypoint", KeypointSettings(function=middle, waypoints=(above,), grasp=middle, follow=True), {})
    return root


def test_an_object_is_followed_in_recorded_pictures_where_it_was(recorded):
    """Poses are looked at when an episode begins, and not afterwards: then the pictures tell, which the recorded poses judge."""
    data = Dataset(recorded)
    reward = builder(str(recorded.parent / "follow.json"), data, print)(1, 1.0)
    names = data.observation_spec["observation.environment_state"].names
    at, errors, sure = [names.index(f"cube.{axis}") for axis in "xyz"], [], []

    def look(step, rows, obs):
        if step:
            truth = obs["observation.environment_state"][0, at].numpy()
            errors.append(np.linalg.norm(reward.poses.frames(obs)["cube"][:3, 0] - truth))
            sure.append(reward.poses.confidence[0] >= reward.settings.confidence)

    play(data, [episodes(data, 2)[0].frames], reward, on_step=look)
    known = np.array(errors[:-1])[np.array(sure[:-1])]  # the last picture of an episode is not looked at
    assert len(known) > 0.5 * len(errors) and np.percentile(known, 95) < 0.01


def test_following_is_previewed_on_a_recorded_dataset(recorded, tmp_path, capsys):
    capsys.readouterr()
    words = ["reward", "preview", str(recorded.parent / "follow.json"), "--data", str(recorded), "--out", str(tmp_path / "page")]
    assert main([*words, "--films", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["films"] == ["episode-0-success.mp4"] and (tmp_path / "page" / "sheet.png").stat().st_size > 10_000
