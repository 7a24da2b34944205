"""From `sinew reward propose` to `sinew improve --reward`, without a model and with one that cannot be had."""

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch

import sim
from calibration.camera import Camera
from calibration.results import Mounted
from rewards import files
from rewards.environment import Rewarded
from rewards.keypoint import KeypointSettings, Place
from sinew.cli import collect, improve, main, reward_propose, reward_situation, train
from sinew.cli.improve_actors import tell
from sinew.cli.reward_scene import open_scene
from sinew.errors import DataError, InputError
from sinew.progress import Progress
from sinew.rundir import read_json, write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of lift, a policy that has hardly learned, and a reward by the oracle."""
    folder = tmp_path_factory.mktemp("reward")
    collect.collect(collect.Args(task="lift", out=folder / "data", episodes=4, quality="human"))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=20, batch_size=32))
    propose(task="lift", vlm="oracle", out=folder / "reward.json", record=folder / "answers")
    return folder


def propose(**options):
    return reward_propose.run(reward_propose.Args(**options))


def nobody():
    """The address of a server that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def test_a_reward_proposed_in_one_scene_leads_to_success_in_others(folder):
    interface = sim.make_interface("lift")
    env = sim.MujocoVecEnv(interface, 4)
    reward = files.build(folder / "reward.json", reward_situation.situation(interface, 0.99, 4))
    worlds, expert = Rewarded(env, reward), sim.Expert(interface, num_envs=4)
    obs = worlds.reset([100, 200, 300, 400])
    expert.reset(seeds=[100, 200, 300, 400])
    returns, phi, solved, running = torch.zeros(4), [], torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    while running.any():
        obs, got, terminated, truncated, info = worlds.step(expert.act(obs))
        phi.append(torch.where(running & ~terminated, reward.source.phi, torch.nan))
        returns += running * got
        solved |= running & info["success"]
        running &= ~(terminated | truncated)
    env.close()
    assert solved.all()
    told = torch.stack(phi)
    assert told[0].max() < -0.9
    before_success = torch.stack([world[torch.isfinite(world)][-1] for world in told.T])
    assert before_success.min() > -0.25
    falls = (told[1:] - told[:-1]).nan_to_num(0).clamp(max=0).sum(0)
    assert falls.min() > -0.2  # nearly monotone along a good demonstration
    assert returns.min() > 1.5  # success, and nearly all of a way that is worth as much


@contextmanager
def seer(truth):
    """A real server that answers as somebody who knows the truth would."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = asked["messages"][0]["content"]
            assert [c["type"] for c in content] == ["text", "image_url", "image_url"]
            answer = truth(content[0]["text"], [], asked["response_format"]["json_schema"]["schema"])
            told = json.dumps({"choices": [{"message": {"content": json.dumps(answer)}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1"
    finally:
        made.shutdown()
        made.server_close()


def calibration(path, view):
    camera = Camera.from_matrix(view.camera.matrix, np.zeros(5), view.camera.width, view.camera.height)
    zeros = {"covariance": np.zeros((6, 6)), "Z": np.eye(4), "pixel_sigma": 0.1, "robot_sigma_m": 0.0, "robot_sigma_rad": 0.0}
    mounted = Mounted(name="front", mount="to_hand", T=view.camera.T_world_camera, camera=camera, **zeros)
    write_json(path, {"version": 1, "cameras": [mounted]})
    return path


def test_two_calibrated_pictures_and_a_server_make_a_reward_in_metres(tmp_path):
    scene = open_scene(sim.make_interface("lift"), 3, oracle=True)
    given = {}
    for name, view in (("", scene.view), ("2", scene.second)):
        cv2.imwrite(str(tmp_path / f"view{name}.png"), view.image[..., ::-1])
        given |= {f"image{name}": tmp_path / f"view{name}.png", f"camera{name}": calibration(tmp_path / f"camera{name}.json", view)}
    with seer(scene.truth) as url:
        told = propose(**given, task_text="lift the cube", vlm=url, out=tmp_path / "r.json")
    assert told["reward"] == "keypoint" and told["tool_stands_in"]
    assert np.linalg.norm(np.array(told["points_m"]["grasp"]) - scene.poses["cube"][:3, 3]) < 0.04  # somewhere on the cube
    _, settings = files.load(tmp_path / "r.json")
    assert settings.function.object == "tool" and settings.waypoints[-1].offset_m[2] > 0.08
    hand = json.loads((tmp_path / "camera.json").read_text().replace("to_hand", "in_hand"))
    write_json(tmp_path / "hand.json", hand)
    with pytest.raises(InputError, match="camera on the hand"):
        propose(**given | {"camera": tmp_path / "hand.json"}, task_text="lift", vlm=nobody(), out=tmp_path / "x.json")
    cv2.imwrite(str(tmp_path / "small.png"), scene.view.image[::2, ::2])
    with pytest.raises(InputError, match="is of pictures of 640 x 480, and this one has 320 x 240"):
        propose(**given | {"image": tmp_path / "small.png"}, task_text="lift", vlm=nobody(), out=tmp_path / "x.json")


def test_recorded_answers_make_the_same_reward_again(folder, tmp_path):
    propose(task="lift", vlm=f"recorded:{folder / 'answers'}", out=tmp_path / "again.json")
    assert read_json(tmp_path / "again.json")["settings"] == read_json(folder / "reward.json")["settings"]
    made = read_json(folder / "reward.json")["made"]
    assert made["vlm"] == "oracle" and set(made["answer"]) >= {"grasp", "function", "path"}
    for name in made["pictures"]:
        assert cv2.imread(str(folder / name)).shape[0] >= 480


@pytest.mark.parametrize("options", [{"task": "lift"}, {"image": "picture.png", "task_text": "lift it"}])
def test_without_an_answer_or_a_calibration_success_alone_is_proposed_and_said(tmp_path, options, capsys):
    if "image" in options:
        cv2.imwrite(str(tmp_path / "picture.png"), np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8))
        options = options | {"image": tmp_path / "picture.png"}
    told = propose(**options, vlm=nobody(), out=tmp_path / "r.json", timeout=5.0)
    assert told["reward"] == "sparse" and ("cannot be asked" in told["because"] or "not calibrated" in told["because"])
    said = []
    interface = sim.make_interface("lift")
    args = improve.Args(run="x", out=tmp_path, reward=str(tmp_path / "r.json"))
    assert reward_situation.chosen(args, interface, None, said.append).reward == "sparse"
    assert len(said) == 1 and told["because"] in said[0] and said[0].endswith("success alone is rewarded in this run")


def test_wrong_input_is_said_in_one_line(folder, tmp_path, capsys):
    (tmp_path / "no.png").write_text("hello")
    for options, said in (
        ({"task": "lift", "out": folder / "reward.json"}, "is there already"),
        ({"out": tmp_path / "r"}, "give --image"),
        ({"image": tmp_path / "no.png", "out": tmp_path / "r"}, "give --task-text"),
        ({"image": tmp_path / "none.png", "task_text": "x", "out": tmp_path / "r"}, "is no picture"),
        ({"image": tmp_path / "no.png", "task_text": "x", "vlm": "oracle", "out": tmp_path / "r"}, "knows simulated tasks alone"),
        ({"task": "lift", "image": tmp_path / "no.png", "out": tmp_path / "r"}, "draws its own pictures"),
        ({"task": "lift", "vlm": "recorded:/nowhere", "out": tmp_path / "r"}, "holds no recorded answers"),
        ({"task": "lift", "vlm": "localhost:8000", "out": tmp_path / "r"}, "address of a model"),
        ({"task": "lfit", "out": tmp_path / "r"}, "did you mean 'lift'"),
    ):
        with pytest.raises(InputError, match=said):
            propose(**options)
    with pytest.raises(DataError, match="cannot be read as a picture"):
        propose(image=tmp_path / "no.png", task_text="x", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()
    assert main.main(["reward", "propose", "--out", str(tmp_path / "r")]) == 2
    assert "give --image" in capsys.readouterr().err


def test_demonstrations_carry_the_reward_of_the_worlds(folder):
    from demos import Dataset

    data, interface = Dataset(folder / "data"), sim.make_interface("lift")
    args = improve.Args(run="x", out=folder, reward=str(folder / "reward.json"))
    together = reward_situation.recorded(args, interface, 0.97)(data.root)
    assert together is not None and [len(r) for r in together] == [data.episode(i).length for i in range(4)]
    alone = files.build(folder / "reward.json", reward_situation.situation(interface, 0.97, 1))
    for i, got in enumerate(together):
        info = data.episode(i)
        frames = [
            {k: torch.from_numpy(data.column(k)[t : t + 1].copy()) for k in ("observation.state", "observation.environment_state")}
            for t in range(info.start, info.start + info.length)
        ]
        alone.begin(frames[0], [0])
        for t in range(info.length):
            won = torch.tensor([bool(info.success) and t == info.length - 1])
            after = {f"next.{k}": v for k, v in frames[min(t + 1, info.length - 1)].items()}
            expected = alone.reward({**frames[t], **after, "success": won, "terminated": won}, {})
            torch.testing.assert_close(got[t : t + 1], expected)
    assert reward_situation.recorded(improve.Args(run="x", out=folder), interface, 0.97)(data.root) is None


@pytest.fixture
def short(monkeypatch):
    """Learning that is over in seconds."""
    import rl.residual

    monkeypatch.setattr(improve, "GATE_EPISODES", 4)
    kind = rl.residual.ResidualConfig
    small = {"random_steps": 40, "critic_only_updates": 10, "updates_per_step": 0.1, "batch_size": 16, "critic_hidden": (16,)}

    def made(**settings):
        return kind(**{**settings, **small, "evaluate_every": 60})

    made.steps = kind.steps
    monkeypatch.setattr(rl.residual, "ResidualConfig", made)


class Notes(Progress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def test_learning_takes_the_file_its_bounds_and_its_name(folder, short, tmp_path):
    notes = Notes()
    args = improve.Args(
        run=folder / "bc", out=tmp_path / "out", steps=120, reward=str(folder / "reward.json"), act_steps=4, base_noise="sample"
    )
    made = improve.improve(args, notes)
    assert made["steps"] == 120 and made["updates"] > 0
    config = read_json(tmp_path / "out/config.json")
    assert config["reward"] == str(folder / "reward.json") and len(config["reward_sha256"]) == 64
    learner = config["residual"]["learner"]
    assert (learner["target_low"], learner["target_high"]) == (0.0, 2.5)  # 1 + weight 1 * (1 + 0.5)
    assert not any("success alone" in said for said in notes.said)


def test_a_policy_whose_worlds_do_not_tell_poses_learns_from_success_and_hears_it_once(folder, short, tmp_path):
    blind = tmp_path / "blind.json"
    whole = json.loads((folder / "reward.json").read_text())
    blind.write_text(json.dumps(whole).replace('"cube"', '"ball"'))
    with pytest.raises(InputError, match="about 'ball'; the environment has cube"):
        improve.improve(improve.Args(run=folder / "bc", out=tmp_path / "a", steps=60, reward=str(blind)))
    with pytest.raises(InputError, match="give sparse, shaped, or a file"):
        improve.improve(improve.Args(run=folder / "bc", out=tmp_path / "b", steps=60, reward="spares"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    files.save(tmp_path / "s.json", "sparse", files.SparseSettings(because="nobody answered"), {})
    notes = Notes()
    args = improve.Args(run=folder / "bc", out=tmp_path / "c", steps=60, reward=str(tmp_path / "s.json"), act_steps=4, base_noise="sample")
    improve.improve(args, notes)
    assert [s for s in notes.said if "nobody answered" in s] and sum("success alone" in s for s in notes.said) == 1
    assert read_json(tmp_path / "c/config.json")["reward"] == "sparse"


def test_actors_find_the_file_from_anywhere(folder, monkeypatch):
    monkeypatch.chdir(folder)
    told = tell(improve.Args(run=folder / "bc", out=folder / "x", reward="reward.json"))
    assert told["reward"] == str(folder / "reward.json")
    assert tell(improve.Args(run=folder / "bc", out=folder / "x"))["reward"] == "sparse"


def test_a_model_is_asked_at_every_episodes_beginning_and_learning_goes_on_without_it(folder, short, tmp_path):
    told = propose(task="lift", vlm=nobody(), every_episode=True, out=tmp_path / "r.json", timeout=5.0)
    assert told["reward"] == "keypoint-asked" and "cannot be asked" in told["because"]
    kind, settings = files.load(tmp_path / "r.json")
    assert kind == "keypoint-asked" and settings.proposed is None and settings.record == ""
    notes = Notes()
    args = improve.Args(
        run=folder / "bc", out=tmp_path / "out", steps=60, num_envs=1, reward=str(tmp_path / "r.json"), act_steps=4, base_noise="sample"
    )
    assert improve.improve(args, notes)["steps"] == 60
    said = [line for line in notes.said if "success alone" in line]
    assert any("cannot be asked" in line and line.endswith("learning goes on") for line in said)
    assert read_json(tmp_path / "out/config.json")["reward"] == str(tmp_path / "r.json")


def test_the_oracle_is_asked_about_each_world_as_it_is(tmp_path):
    propose(task="lift", vlm="oracle", every_episode=True, out=tmp_path / "r.json")
    _, settings = files.load(tmp_path / "r.json")
    assert settings.proposed is not None
    interface = sim.make_interface("lift")
    env = sim.MujocoVecEnv(interface, 1)
    reward = replace(settings, wait_s=600.0, proposed=None).build(reward_situation.situation(interface, 0.99, 1, env=env))
    worlds = Rewarded(env, reward)
    for seed in (100, 200):
        worlds.reset([seed])
        cube = env.scene.poses(env.qpos)["cube"][0, :3]
        start = reward.inner.paths.places[1, 0]
        assert np.linalg.norm(start - cube) < 0.01
    env.close()
    assert reward.counts == {"asked": 2, "answered": 2, "late": 0, "failed": 0}


def test_asking_anew_is_for_worlds_that_can_be_seen_and_answers_are_kept_beside_the_file(tmp_path):
    for options, said in (
        ({"image": tmp_path / "a.png"}, "asks about simulated worlds"),
        ({"task": "lift", "vlm": "recorded:x"}, "nobody has recorded yet"),
        ({"task": "lift", "record": tmp_path / "in" / "answers"}, "kept beside --out"),
        ({"task": "lift", "vlm": "oracle", "wait": -1.0}, "wait_s must lie"),
    ):
        with pytest.raises(InputError, match=said):
            propose(**{"task_text": "lift", "every_episode": True, "out": tmp_path / "r.json"} | options)


def test_an_object_is_followed_by_two_cameras_of_a_simulation():
    interface = sim.make_interface("lift")
    env, expert = sim.MujocoVecEnv(interface, 1), sim.Expert(interface)
    middle, above = (Place(offset_m=(0.0, 0.0, z), object="cube") for z in (0.0, 0.1))
    settings = KeypointSettings(function=middle, waypoints=(above,), grasp=middle, follow=True)
    reward = settings.build(reward_situation.situation(interface, 0.99, 1, env=env))
    worlds = Rewarded(env, reward)
    obs, errors, phi = worlds.reset([0]), [], []
    expert.reset(seeds=[0])
    for _ in range(25):
        obs, _, terminated, truncated, _ = worlds.step(expert.act(obs))
        if bool(terminated | truncated):
            break
        phi.append(float(reward.phi[0]))
        if reward.poses.confidence[0] >= settings.confidence:
            cube = env.scene.poses(env.qpos)["cube"][0, :3]
            errors.append(np.linalg.norm(reward.poses.frames(obs)["cube"][:3, 0] - cube))
    assert len(errors) > 12 and max(errors) < 0.005
    assert phi[0] < -0.9 and max(phi) > -0.7
    env.close()
