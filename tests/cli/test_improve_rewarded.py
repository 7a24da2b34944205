"""`sinew improve --robot … --reward`: what a robot observes is rewarded, while it stands, and what it cannot tell is refused first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from sinew.cli import collect, improve, improve_rewarded, reward_propose, train
from sinew.errors import InputError

GAMMA = 0.99
HAND_HIGH = "def potential(now):\n    return clip(now.tool[2], 0, 1)\n"


def code(path: Path, source: str = HAND_HIGH) -> Path:
    """A reward file with generated code."""
    path.write_text(json.dumps({"reward": "code", "version": 1, "made": {}, "settings": {"source": source}}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Demonstrations of lift, a policy that has hardly learned, one that sees no poses, and rewards."""
    folder = tmp_path_factory.mktemp("rewarded")
    collect.collect(collect.Args(task="lift", out=folder / "data", episodes=4))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=30, batch_size=32))
    train.train(train.Args(data=(folder / "data",), out=folder / "blind", steps=5, batch_size=32, keys=("observation.state",)))
    reward_propose.run(reward_propose.Args(task="lift", vlm="oracle", out=folder / "way.json"))
    code(folder / "high.json")
    return folder


@pytest.fixture
def short(monkeypatch):
    """Learning that is over in seconds, with a gate of a few scenes."""
    import rl.dsrl
    import rl.residual

    monkeypatch.setattr(improve, "GATE_EPISODES", 2)
    small = {"random_steps": 60, "critic_only_updates": 10, "updates_per_step": 0.1, "batch_size": 16, "critic_hidden": (16,)}
    for module, name in ((rl.residual, "ResidualConfig"), (rl.dsrl, "DsrlConfig")):
        kind = getattr(module, name)

        def made(kind=kind, **settings):
            return kind(**{**settings, **small, "evaluate_every": 100})

        made.steps = kind.steps  # type: ignore[attr-defined]
        monkeypatch.setattr(module, name, made)


@pytest.fixture
def assessed(monkeypatch) -> list[dict[str, Any]]:
    """Every episode as it was rewarded, and what stands in the replay at the end."""
    import rl.supervised

    found: list[dict[str, Any]] = []
    assess, save = improve_rewarded.Assessment.assess, rl.supervised.SupervisedRunner._save

    def remembered(self, begin, steps, success, terminated):
        paid = assess(self, begin, steps, success, terminated)
        seen = [self._held[time] for time in range(begin, begin + steps)]
        found.append({"begin": begin, "paid": paid, "success": success, "terminated": terminated, "seen": seen})
        return paid

    def saved(self, *, finished):
        save(self, finished=finished)
        for episode in found:
            times = np.arange(episode["begin"], episode["begin"] + len(episode["paid"]))
            held = times >= self.ring.count - self.ring.window  # the newest steps take the places of the oldest
            stands = self.ring.reward.numpy()[times % self.ring.length]
            episode["replay"] = np.where(held, stands, episode["paid"]).tolist()

    monkeypatch.setattr(improve_rewarded.Assessment, "assess", remembered)
    monkeypatch.setattr(rl.supervised.SupervisedRunner, "_save", saved)
    return found


def args_of(folder: Path, out: Path, **options: Any) -> improve.Args:
    told = {"run": folder / "bc", "robot": "sim", "intervene": "expert", "steps": 200, "reward": str(folder / "way.json"), **options}
    return improve.Args(out=out, **told)


def test_episodes_on_a_robot_are_rewarded_with_the_potential_and_it_telescopes(folder, short, assessed, tmp_path):
    """Σ γ^k r_k = γ^(T-1) [success] − Φ₀, and γ^T Φ_T more where time ran out; Φ₀ = −1 for a way that has not begun."""
    made = improve.improve(args_of(folder, tmp_path / "run"))
    whole = [e for e in assessed if e["terminated"]]
    assert made["steps"] >= 200 and made["updates"] > 0 and made["reward"]["name"].endswith("way.json") and len(whole) >= 2
    for episode in assessed:
        assert episode["replay"] == pytest.approx(episode["paid"], abs=1e-6)
        assert len({round(r, 5) for r in episode["paid"]}) > 5  # dense
    for episode in whole:
        powers = GAMMA ** np.arange(len(episode["paid"]))
        assert episode["success"]
        assert float(powers @ episode["paid"]) == pytest.approx(powers[-1] + 1.0, abs=1e-4)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["reward"].endswith("way.json") and len(config["reward_sha256"]) == 64


def test_the_same_episode_is_worth_the_same_on_the_robot_as_in_a_world(folder, short, assessed, tmp_path):
    """Code that reads the tool alone, for a policy and a robot that know no poses; computed again by hand from what was seen."""
    made = improve.improve(args_of(folder, tmp_path / "run", run=folder / "blind", reward=str(folder / "high.json")))
    at = sim.make_interface("lift").observation_spec["observation.state"].names.index("tool.z")
    assert made["steps"] >= 200 and assessed
    for episode in assessed:
        before = np.array([float(s.before["observation.state"][0, at]) for s in episode["seen"]])
        after = np.array([float(s.after["observation.state"][0, at]) for s in episode["seen"]])
        after[-1] *= not episode["terminated"]
        wanted = GAMMA * after - before
        wanted[-1] += episode["success"]
        np.testing.assert_allclose(episode["paid"], wanted, atol=1e-5)


# ------------------------------------------------------------ what a robot cannot tell


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward": "nothing.json"}, "there is none of that name"),
        ({"reward": "picture.json"}, "cannot be told on this robot: the reward looks at observation.images.front"),
        ({"reward": "oracle.json"}, "asks the oracle, which knows simulated worlds alone"),
        ({"reward": "asked.json", "robot": "dds"}, "give --calibration NAME=PATH"),
        ({"reward": "sparse", "calibration": ("front=c.json",)}, "give --reward FILE"),
        ({"reward": "way.json", "calibration": ("nowhere.json",)}, "nowhere.json"),
        ({"robot": None, "intervene": None, "calibration": ("front=c.json",)}, "is for learning on a robot"),
    ],
)
def test_what_a_robot_cannot_tell_is_refused_before_anything_is_connected(folder, tmp_path, monkeypatch, options, words):
    import robot_bridge

    def never(*args, **options):
        raise AssertionError("a robot was opened")

    made = {"reward": "keypoint-asked", "version": 1, "made": {}}
    (folder / "oracle.json").write_text(json.dumps({**made, "settings": {"base_url": "oracle"}}))
    (folder / "asked.json").write_text(json.dumps({**made, "settings": {"base_url": "http://127.0.0.1:9/v1"}}))
    classifier_of_pictures(folder / "picture.json")
    for name in ("SimRobot", "DdsRobot"):
        monkeypatch.setattr(robot_bridge, name, never)
    if options.get("reward", "sparse") != "sparse":
        options = {**options, "reward": str(folder / options["reward"])}
    with pytest.raises(InputError, match=words) as told:
        improve.improve(args_of(folder, tmp_path / "never", **options))
    assert "\n" not in str(told.value) and not (tmp_path / "never").exists()


def classifier_of_pictures(path: Path) -> None:
    """A classifier that looks at a camera which the policy does not look at."""
    from rewards.files import save
    from rewards.latent import Encoder, EncoderConfig
    from rewards.preference.classifier import KIND, ClassifierSettings
    from rewards.preference.scored import Scored, save_scored

    encoder = EncoderConfig(vectors={}, pictures=("observation.images.front",))
    save_scored(path.with_suffix(".safetensors"), Scored(Encoder(encoder)), KIND, {})
    save(path, KIND, ClassifierSettings(weights=path.with_suffix(".safetensors").name), {})


SERVER = """
import sys
import sim
from robot_bridge import serve_sim

class Silent(sim.RobotSim):
    poses = {}

serve_sim._simulation = lambda task, seed, board, truth: Silent(task, seed)
serve_sim.serve("lift", 0, int(sys.argv[1]), trace=sys.argv[2], realtime=False)
"""


@pytest.fixture
def silent(tmp_path):
    """A robot in a process of its own that tells no pose of any object, and where it was at every tick."""
    domain = 1 + os.getpid() % 90
    command = [sys.executable, "-c", SERVER, str(domain), str(tmp_path / "trace.jsonl")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "ready on DDS domain" in line, line + process.stderr.read()
    yield domain, tmp_path / "trace.jsonl"
    process.terminate()
    process.wait(60)


@pytest.fixture
def patient(monkeypatch):
    """Limits of time that hold on a busy machine as well."""
    from dataclasses import replace

    import robot_bridge.attended
    import robot_bridge.deploy
    import robot_bridge.safety.watch

    kind, make_gate = robot_bridge.attended.LearningConfig, robot_bridge.deploy.make_gate

    def config(**told):
        return kind(**{**told, "connect_timeout_s": 15.0, "command_ttl_s": 20.0, "realtime": False})

    def gate(*args):
        made = make_gate(*args)
        made.config = replace(made.config, observation_ttl_s=20.0, latch_after_s=60.0, command_ttl_max_s=40.0)
        made.config = replace(made.config, tracking_error_max_rad=9.0, standing_error_max_rad=9.0)
        return made

    config.patience_s = kind.patience_s  # type: ignore[attr-defined]
    monkeypatch.setattr(robot_bridge.safety.watch, "WINDOW_TRAVEL_RAD", 9.0)
    monkeypatch.setattr(robot_bridge.attended, "LearningConfig", config)
    monkeypatch.setattr(robot_bridge.deploy, "make_gate", gate)


def test_over_dds_poses_that_nobody_publishes_are_refused_before_anything_moves(folder, short, patient, tmp_path, silent):
    """A robot server in a process of its own; the same policy learns there with a reward of what that does tell."""
    domain, trace = silent
    told = {"run": folder / "blind", "robot": "dds", "domain": domain, "intervene": None, "gate_on": "none", "reset": "scene"}
    with pytest.raises(InputError, match=r"way.json looks at pose.cube, which robot .* did not send within 15 s; it sends .*gripper"):
        improve.improve(args_of(folder, tmp_path / "never", **told))
    ticks = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len(ticks) > 10 and not any(tick["taken"] for tick in ticks)  # no command came
    assert not (tmp_path / "never").exists()
    made = improve.improve(args_of(folder, tmp_path / "run", steps=130, reward=str(folder / "high.json"), **told))
    assert made["steps"] >= 130 and made["updates"] > 0 and made["reward"]["said"] == []
    assert made["report"]["gate"]["latched"] == ""


# ------------------------------------------------------------ what says that it is done


def classifier_of_state(path: Path, sure: bool) -> Path:
    """A classifier that finds every state done, or none."""
    from rewards.files import save
    from rewards.latent import Encoder, EncoderConfig
    from rewards.preference.classifier import KIND, ClassifierSettings
    from rewards.preference.scored import Scored, save_scored

    length = sim.make_interface("lift").observation_spec["observation.state"].shape[0]
    scored = Scored(Encoder(EncoderConfig(vectors={"observation.state": length})))
    scored.head[1].weight.data.zero_()
    scored.head[1].bias.data.fill_(9.0 if sure else -9.0)
    save_scored(path.with_suffix(".safetensors"), scored, KIND, {})
    save(path, KIND, ClassifierSettings(weights=path.with_suffix(".safetensors").name), {})
    return path


@pytest.mark.parametrize("sure", [True, False])
def test_a_classifier_says_when_the_task_is_done_in_place_of_the_scene(folder, short, assessed, tmp_path, sure):
    """The expert solves the task; a classifier that never sees that is believed all the same, and one that always does ends it at once."""
    success = classifier_of_state(tmp_path / "done.json", sure)
    improve.improve(args_of(folder, tmp_path / "run", success=success, steps=95, gate_on="none"))
    ended = [e for e in assessed if e["terminated"]]
    assert ({len(e["paid"]) for e in ended} == {2} and all(e["success"] for e in ended)) if sure else not ended


@pytest.mark.parametrize(("file", "words"), [("way.json", "is a reward of kind keypoint"), ("picture.json", "the policy only at")])
def test_what_cannot_say_that_it_is_done_is_refused(folder, tmp_path, file, words):
    classifier_of_pictures(folder / "picture.json")
    with pytest.raises(InputError, match=words):
        improve.improve(args_of(folder, tmp_path / "never", success=folder / file))
    assert not (tmp_path / "never").exists()


# ------------------------------------------------------------ models that take their time


class Slow(BaseHTTPRequestHandler):
    """Says how far a picture is, a second late; or nothing at all."""

    def do_POST(self):
        count = len(self.server.asked) + 1
        self.server.asked.append(threading.current_thread().name)
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.broken:
            self.send_error(503)
            return
        time.sleep(0.2)
        content = json.dumps({"percent": [50.0] * self.server.pictures(count)})
        body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def server():
    running = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    running.asked, running.broken, running.pictures = [], False, lambda count: 1
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def asked(path: Path, server: Any, **settings: Any) -> Path:
    told = {"base_url": f"http://127.0.0.1:{server.server_address[1]}/v1", "every": 100, "pictures": 2, **settings}
    path.write_text(json.dumps({"reward": "asked", "version": 1, "made": {}, "settings": told}))
    return path


def test_a_model_is_asked_between_episodes_about_what_the_robot_saw(folder, short, assessed, server, tmp_path):
    """No reward is worked out while an episode runs: no command comes late for it, however long the model takes."""
    reward = asked(tmp_path / "asked.json", server, every=30)
    made = improve.improve(args_of(folder, tmp_path / "run", method="dsrl", reward=str(reward), steps=100))
    questions = sum((len(e["paid"]) - e["success"]) // 30 for e in assessed)
    assert len(server.asked) >= questions >= 1
    assert made["report"]["holds"] == [] and made["reward"]["said"] == []
    first = assessed[0]["paid"]
    assert first[29] == pytest.approx(GAMMA * -0.5 + 1.0, abs=1e-5)  # half done, where nothing was known before
    pictures = assessed[0]["seen"]
    assert pictures[0].shown["front"].shape == (480, 480, 3) and (pictures[0].shown["front"] != pictures[25].shown["front"]).any()


def test_a_model_that_does_not_answer_leaves_success_alone_and_the_robot_goes_on(folder, short, assessed, server, tmp_path):
    server.broken = True
    reward = asked(tmp_path / "asked.json", server, every=10)
    made = improve.improve(args_of(folder, tmp_path / "run", method="dsrl", reward=str(reward), steps=100))
    assert made["steps"] >= 100 and len(made["reward"]["said"]) == 1 and "success alone is rewarded" in made["reward"]["said"][0]
    assert all(set(e["paid"][9:-1]) <= {0.0} for e in assessed)


def test_somebody_who_asks_to_stop_does_not_wait_for_a_model(monkeypatch):
    monkeypatch.setattr(improve_rewarded, "GRACE_S", 0.1)
    forever, asked_for = threading.Event(), threading.Event()
    threading.Timer(0.2, asked_for.set).start()
    assert improve_rewarded.beside(forever.wait, asked_for.is_set) is None
    forever.set()
    assert improve_rewarded.beside(lambda: 3, lambda: True) == 3
    with pytest.raises(ZeroDivisionError):
        improve_rewarded.beside(lambda: 1 // 0, lambda: False)


def test_what_is_remembered_is_bounded(monkeypatch):
    import torch

    from sinew.cli.improve_rewarded import Assessment, Seen

    class Env:
        arm = None

    class One:
        low = high = 1.0

        def reward(self, transition, context):
            return transition["next.x"][:, 0]

    obs = {"x": torch.zeros(1, 2)}
    monkeypatch.setattr(improve_rewarded, "HELD_BYTES", 10 * Seen(obs, obs, obs["x"], {}, {}).size)
    witness: Any = Env()
    assessment = Assessment(witness, One(), improve_rewarded.Shown(), lambda: False)
    for step in range(15):
        witness.newest = Seen(obs, {"x": torch.full((1, 2), float(step))}, obs["x"], {}, {})
        assessment.kept(step)
    assert assessment.assess(0, 8, False, False) is None
    assert assessment.assess(8, 7, False, False) == [float(step) for step in range(8, 15)]
    witness.newest = Seen(obs, {"x": torch.full((1, 2), float("nan"))}, obs["x"], {}, {})
    assessment.kept(15)
    with pytest.raises(InputError, match="step 1 of an episode is not finite"):
        assessment.assess(14, 2, False, False)
