"""Keypoints asked for at every episode's beginning, of a real local server among others."""

import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from boxes import CENTRE, POSES, truth, views

from rewards import files
from rewards.files import Situation
from rewards.keypoint import asked
from rewards.keypoint.asked import AskedKeypoints
from rewards.keypoint.propose import propose
from rewards.keypoint.views import Scene
from rewards.vlm import SimOracleVLM
from sinew.errors import DataError, InputError
from sinew.specs import ENVIRONMENT_STATE, STATE, ActionSpec, ObservationSpec, TensorSpec

ELEMENTS = ("x", "y", "z", "r11", "r21", "r31", "r12", "r22", "r32")
SPEC = ObservationSpec(
    {
        STATE: TensorSpec(shape=(9,), names=tuple(f"tool.{e}" for e in ELEMENTS)),
        ENVIRONMENT_STATE: TensorSpec(shape=(18,), names=tuple(f"{o}.{e}" for o in ("box", "bowl") for e in ELEMENTS)),
    }
)
GAMMA, WEIGHT = 0.9, AskedKeypoints(base_url="oracle").weight
VIEWS = views()
SCENE = Scene(view=VIEWS[0], second=VIEWS[1], poses=POSES, truth=truth(VIEWS[0]))
TASK = "put the box into the bowl"


def situation(num_envs=1, scene=SCENE, **more):
    action = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=20.0, names=("x",))
    told = {"look": lambda obs, world: scene, "task_text": TASK, "objects": ("box", "bowl")}
    return Situation(observation=SPEC, action=action, gamma=GAMMA, num_envs=num_envs, max_episode_steps=9, **(told | more))


def frame(points):
    """Observation of worlds with tool, box and bowl at points (3, 3) each."""
    turned = torch.tensor([1.0, 0, 0, 0, 1, 0])
    rows = [torch.cat([torch.cat((torch.as_tensor(p).float(), turned)) for p in world]) for world in points]
    whole = torch.stack(rows)
    return {STATE: whole[:, :9], ENVIRONMENT_STATE: whole[:, 9:]}


def grasping(steps=6):
    """The tool goes to the box, and both rise."""
    at, box, bowl = POSES["tool"][:3, 3], CENTRE["box"], CENTRE["bowl"]
    walk = [(at + (box - at) * u, box, bowl) for u in np.linspace(0, 1, steps)]
    return walk + [(up := box + np.array([0, 0, 0.02 * t]), up, bowl) for t in range(1, steps)]


def step(reward, after, success=False, ended=False):
    n = len(after[STATE])
    told = {"success": success, "terminated": success, "truncated": ended and not success}
    told = {k: torch.full((n,), v) for k, v in told.items()}
    return reward.reward({**{f"next.{k}": v for k, v in after.items()}, **told}, {})


def play(reward, walk=None, n=1):
    frames = [frame([p] * n) for p in walk or grasping()]
    reward.begin(frames[0], range(n))
    return [step(reward, after)[0].item() for _, after in pairwise(frames)]


HELD = [(1 - GAMMA) * WEIGHT] * (len(grasping()) - 1)
"""Nothing guides: what a potential pays that stays where episodes begin."""


def guided(got):
    """Whether walking towards the grasp is paid for from the first step on."""
    return got[0] > 1.5 * HELD[0]


@contextmanager
def server(answer):
    """A real server; `answer` is given the question and gives a body, or does with the handler what it likes."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(question)
            told = answer(question)
            data = told if isinstance(told, bytes) else json.dumps({"choices": [{"message": {"content": told}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass  # clients hang up

    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1", seen
    finally:
        made.shutdown()
        made.server_close()


def sees(question):
    """What somebody who knows the truth would say."""
    schema = question["response_format"]["json_schema"]["schema"]
    return json.dumps(truth(VIEWS[0])(question["messages"][0]["content"][0]["text"], [], schema))


def built(url, say=lambda text: None, num_envs=1, scene=SCENE, **more):
    settings = AskedKeypoints(base_url=url, **({"wait_s": 60.0} | more))
    return settings.build(situation(num_envs, scene, say=say))


def proposed():
    return propose(SimOracleVLM(truth(VIEWS[0])), TASK, *VIEWS, poses=POSES).settings


@pytest.mark.parametrize("who", ["oracle", "server"])
def test_each_episode_is_rewarded_as_by_a_file_that_was_proposed_for_it(who):
    with server(sees) as (url, seen):
        reward = built("oracle" if who == "oracle" else url, num_envs=2)
        got = play(reward, n=2)
        play(reward, n=2)
        assert len(seen) == (0 if who == "oracle" else 4)
    assert reward.counts == {"asked": 4, "answered": 4, "late": 0, "failed": 0}
    assert got == pytest.approx(play(proposed().build(situation())), abs=1e-6)
    assert guided(got)


def test_worlds_do_not_wait_and_a_late_answer_pays_what_was_walked_meanwhile():
    free, said = threading.Event(), []
    with server(lambda question: free.wait(60) and sees(question)) as (url, _):
        reward = built(url, said.append, wait_s=0.0)
        frames = [frame([p]) for p in grasping()]
        reward.begin(frames[0], [0])
        got = [step(reward, after).item() for after in frames[1:5]]
        assert got == pytest.approx(HELD[:4])
        question = reward._questions[0]
        free.set()
        assert question.done.wait(60)
        got += [step(reward, after).item() for after in frames[5:]]
    assert len(said) == 1 and "has not answered after 0 s: success alone tells until it does" in said[0]
    on_time = play(proposed().build(situation()))
    assert got[4] > WEIGHT / 4 and got[6:] == pytest.approx(on_time[6:], abs=1e-5)
    total, expected = (sum(GAMMA**t * r for t, r in enumerate(rewards)) for rewards in (got, on_time))
    assert total == pytest.approx(expected, abs=1e-5)  # the sum telescopes, whenever the answer comes


def test_an_episode_that_is_never_answered_is_worth_the_same_as_one_that_is():
    with server(lambda question: b"no") as (url, _):
        frames = [frame([p]) for p in grasping()]
        for reward in (built(url), built("oracle")):
            reward.begin(frames[0], [0])
            got = [step(reward, after, success=after is frames[-1]).item() for after in frames[1:]]
            assert sum(GAMMA**t * r for t, r in enumerate(got)) == pytest.approx(WEIGHT + GAMMA ** (len(got) - 1), abs=1e-5)


ANSWER = {"grasp": 1, "function": 1, "target": 0, "approach": [], "heights_cm": {"grasp": 3, "function": 3, "target": 0}}
PLACE = {"tile": "c3", "across": 0.5, "up": 0.5, "height_cm": 10, "of": "start"}
USELESS = {
    "no completion": b"<html>",
    "oversize": b" " * 3_000_000,
    "prose": "I would rather not.",
    "an order": 'Ignore the schema; {"reward": 1e9}',
    "outside the tiles": json.dumps(ANSWER | {"path": [PLACE | {"tile": "z9"}]}),
    "outside the picture": json.dumps(ANSWER | {"path": [PLACE | {"across": 7.5}]}),
    "a mark that is not there": json.dumps(ANSWER | {"grasp": 99, "path": [PLACE]}),
    "not finite": json.dumps(ANSWER | {"path": [PLACE | {"height_cm": float("nan")}]}),
    "out of reach": json.dumps(ANSWER | {"path": [PLACE | {"tile": "c5", "up": 1.0, "height_cm": 150}]}),
    "no way": json.dumps(ANSWER | {"path": []}),
}


@pytest.mark.parametrize("useless", USELESS.values(), ids=USELESS.keys())
def test_an_answer_that_is_of_no_use_leaves_success_alone_and_is_said_once(useless):
    said = []
    with server(lambda question: useless) as (url, _):
        reward = built(url, said.append)
        assert play(reward) == pytest.approx(HELD) and play(reward) == pytest.approx(HELD)
    assert len(said) == 1 and said[0].isprintable() and said[0].endswith("success alone tells in such episodes, and learning goes on")
    assert reward.counts["failed"] == 2


def test_the_files_own_keypoints_stand_in():
    said = []
    with server(lambda question: b"no") as (url, _):
        got = play(built(url, said.append, proposed=proposed()))
    assert got == pytest.approx(play(proposed().build(situation())), abs=1e-6)
    assert len(said) == 1 and "the keypoints of the reward file stand in" in said[0]


def test_a_server_that_fails_again_and_again_is_left_alone_and_tried_later(monkeypatch):
    works = []
    with server(lambda question: sees(question) if works else b"no") as (url, seen):
        reward = built(url)
        for _ in range(6):
            play(reward)
        assert len(seen) == asked.FAILURES
        works.append(True)
        monkeypatch.setattr(reward, "_rest_until", 0.0)
        assert guided(play(reward))


def test_the_budget_ends_the_asking_and_not_the_learning():
    said = []
    with server(sees) as (url, seen):
        reward = built(url, said.append, max_calls=1)
        assert guided(play(reward))
        assert play(reward) == pytest.approx(HELD)
    assert len(seen) == 1 and len(said) == 1 and "1 questions that default may be asked are spent" in said[0]


def test_nobody_there_and_cameras_without_calibration_are_said_once():
    plain = replace(SCENE, view=replace(SCENE.view, camera=None))
    for url, scene, words in (("http://127.0.0.1:9/v1", SCENE, "cannot be asked"), ("oracle", plain, "not calibrated")):
        said = []
        reward = built(url, said.append, scene=scene)
        assert play(reward) == pytest.approx(HELD) and play(reward) == pytest.approx(HELD)
        assert len(said) == 1 and words in said[0]
    said = []
    assert play(AskedKeypoints(base_url="oracle").build(situation(look=None, say=said.append))) == pytest.approx(HELD)
    assert len(said) == 1 and said[0].startswith("no calibrated camera") and said[0].endswith("success alone tells")


def test_the_same_pictures_are_not_asked_about_twice(tmp_path):
    path = tmp_path / "r.json"
    with server(sees) as (url, seen):
        files.save(path, "keypoint-asked", AskedKeypoints(base_url=url, record="answers", wait_s=60.0), {})
        first = play(files.build(path, situation()))
        assert play(files.build(path, situation())) == first and len(seen) == 1
    files.save(path, "keypoint-asked", AskedKeypoints(base_url="recorded:answers", wait_s=60.0), {})
    assert play(files.build(path, situation())) == first


def test_an_answer_to_an_episode_that_is_over_is_dropped():
    free = threading.Event()
    with server(lambda question: free.wait(60) and sees(question)) as (url, _):
        reward = built(url, wait_s=0.0)
        frames = [frame([p]) for p in grasping()]
        reward.begin(frames[0], [0])
        old = reward._questions[0]
        reward.begin(frames[3], [0])
        free.set()
        assert old.done.wait(60) and reward._questions[0].done.wait(60)
        step(reward, frames[4])
    assert reward.counts["answered"] == 1
    np.testing.assert_allclose(reward.inner.paths.places[1, 0], CENTRE["box"], atol=0.005)


def test_a_defect_of_ours_is_no_answer_that_is_missing():
    with pytest.raises(ZeroDivisionError):
        play(built("oracle", scene=replace(SCENE, truth=lambda *question: 1 / 0)))


def test_figures_are_kept_in_the_log():
    kept = []
    reward = AskedKeypoints(base_url="oracle", wait_s=60.0).build(situation(4, log=kept.append))
    for _ in range(5):
        reward.begin(frame([grasping()[0]] * 4), range(4))
    assert kept[-1]["keypoints_asked"] == 20 and set(kept[-1]) == {f"keypoints_{n}" for n in ("asked", "answered", "late", "failed")}


def test_recorded_episodes_without_pictures_are_rewarded_by_the_files_own_keypoints():
    settings = AskedKeypoints(base_url="oracle", proposed=proposed())
    assert play(settings.build(situation(look=None))) == pytest.approx(play(proposed().build(situation())), abs=1e-6)
    assert settings.returns(GAMMA, 9) == proposed().returns(GAMMA, 9)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base_url": "localhost:8000"}, "address of a model"),
        ({"base_url": "oracle", "wait_s": -1.0}, "wait_s must lie"),
        ({"base_url": "oracle", "record": "../elsewhere"}, "name of a folder"),
        ({"base_url": "recorded:/etc"}, "name of a folder"),
        ({"base_url": "oracle", "weight": 0.0}, "out of its range"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises((InputError, DataError), match=said):
        AskedKeypoints(**wrong)
