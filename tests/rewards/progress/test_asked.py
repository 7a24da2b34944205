"""A real server answers: it sees how bright a picture is, which stands for how far the task has come."""

import base64
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch

from rewards import files
from rewards.files import Situation
from rewards.measures import rank_correlation
from rewards.progress.asked import Asked, likelihood, log_true, shuffled_progress
from rewards.vlm import OpenAICompatible, TokenLogprob, VLMReply, VLMUnavailable
from sinew.errors import InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

KEY = "observation.images.front"
SPEC = ObservationSpec({KEY: TensorSpec(shape=(16, 16, 3), dtype="uint8")})


class Seeing(BaseHTTPRequestHandler):
    asked: list
    tells = True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(u.split(",")[1]), np.uint8), cv2.IMREAD_COLOR) for u in urls]
        bright = [float(p.mean()) / 2.55 for p in pictures]
        self.asked.append(bright)
        choice = {"message": {"role": "assistant", "content": json.dumps({"percent": bright[1:]})}}
        if body.get("logprobs"):
            done = min(max(bright[-1] / 100, 1e-4), 1 - 1e-4)
            top = [{"token": t, "logprob": p} for t, p in ((" True", math.log(done)), (" False", math.log(1 - done)))]
            best = max(top, key=lambda t: t["logprob"])
            choice["message"]["content"] = best["token"]
            if self.tells:
                choice["logprobs"] = {"content": [{**best, "top_logprobs": top}]}
        answer = json.dumps({"choices": [choice], "usage": {"total_tokens": 10}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Seeing,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1", handler
        http.shutdown()


def grey(share: float) -> np.ndarray:
    return np.full((16, 16, 3), round(255 * share), np.uint8)


def test_answers_about_shuffled_pictures_come_back_in_the_order_of_time(server):
    url, handler = server
    pictures = [grey(i / 10) for i in range(11)]
    progress = shuffled_progress(OpenAICompatible(url, "m"), pictures, "make it bright", seed=3)
    assert rank_correlation(progress) == pytest.approx(1.0)
    np.testing.assert_allclose(progress, np.arange(11) / 10, atol=0.01)
    assert rank_correlation(handler.asked[0][1:]) < 0.9  # what was shown was not in the order of time
    assert handler.asked[0][0] == pytest.approx(0.0)  # the beginning comes first


def test_likelihood_is_what_the_server_tells_of_true(server):
    url, _ = server
    vlm = OpenAICompatible(url, "m")
    for share in (0.2, 0.6):
        assert likelihood(vlm, [grey(0), grey(share)], "make it bright") == pytest.approx(math.log(share), abs=0.02)


def test_a_server_that_tells_no_probabilities_is_no_reward(server):
    url, handler = server
    handler.tells = False
    with pytest.raises(VLMUnavailable, match="no probabilities"):
        likelihood(OpenAICompatible(url, "m"), [grey(0), grey(1)], "make it bright")


def test_words_count_however_they_are_spelled_and_a_missing_one_is_as_unlikely_as_the_last():
    def reply(**top):
        first = next(iter(top))
        return VLMReply("", logprobs=(TokenLogprob(first, top[first], top),))

    assert log_true(reply(**{"True": math.log(0.5), " true": math.log(0.25), "no": math.log(0.2)})) == pytest.approx(math.log(0.75))
    assert log_true(reply(no=math.log(0.9), maybe=math.log(0.05))) == pytest.approx(math.log(0.05))


def situation(spec=SPEC, say=print, worlds=2):
    action = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=10.0, names=("x",))
    told = {
        "observation": spec,
        "action": action,
        "gamma": 1.0,
        "num_envs": worlds,
        "max_episode_steps": 100,
        "task_text": "make it bright",
    }
    return Situation(**told, say=say)


def run(reward, steps=12):
    """Two worlds: one gets bright, one stays dark."""

    def seen(i):
        return torch.from_numpy(np.stack([grey(i / steps), grey(0.0)]))

    reward.begin({KEY: seen(0)}, [0, 1])
    never = torch.zeros(2, dtype=torch.bool)
    return torch.stack([reward.reward({f"next.{KEY}": seen(i), "success": never, "terminated": never}, {}) for i in range(1, steps + 1)])


@pytest.mark.parametrize("question", ["shuffled", "likelihood"])
def test_a_reward_file_asks_now_and_then_and_holds_in_between(server, tmp_path, question):
    url, handler = server
    files.save(tmp_path / "r.json", "asked", Asked(base_url=url, model="m", question=question, every=4, pictures=3), {})
    paid = run(files.build(tmp_path / "r.json", situation()))
    assert len(handler.asked) == 6  # three times for each of two worlds
    assert max(map(len, handler.asked)) == 3
    assert paid[[0, 1, 2, 4, 5, 6, 8, 9, 10]].abs().max() == 0.0
    assert float(paid[:, 0].sum()) == pytest.approx(1.0, abs=0.02)
    assert float(paid[:, 1].sum()) < 0.2


def test_answers_are_kept_and_found_again_without_a_server(server, tmp_path):
    url, handler = server
    settings = Asked(base_url=url, model="m", every=6, record="answers")
    files.save(tmp_path / "r.json", "asked", settings, {})
    first = run(files.build(tmp_path / "r.json", situation()))
    before = len(handler.asked)
    torch.testing.assert_close(run(files.build(tmp_path / "r.json", situation())), first)
    assert len(handler.asked) == before


def test_nobody_there_and_a_spent_budget_leave_sparse_success_said_once(server, tmp_path):
    url, _ = server
    for settings, word in ((Asked(base_url="http://127.0.0.1:9/v1", model="m", every=3), "127.0.0.1:9"),
                           (Asked(base_url=url, model="m", every=3, max_calls=3), "3")):  # fmt: skip
        said = []
        files.save(tmp_path / "r.json", "asked", settings, {})
        paid = run(files.build(tmp_path / "r.json", situation(say=said.append)))
        assert bool(torch.isfinite(paid).all())
        assert len(said) == 1
        assert word in said[0]


def test_without_pictures_there_is_nothing_to_ask_about(tmp_path):
    said = []
    files.save(tmp_path / "r.json", "asked", Asked(base_url="http://localhost:1/v1", model="m"), {})
    reward = files.build(tmp_path / "r.json", situation(ObservationSpec({}), said.append))
    assert type(reward).__name__ == "Sparse"
    assert "camera 'front'" in said[0]
    with pytest.raises(InputError, match="at least 2"):
        Asked(base_url="http://localhost:1/v1", model="m", pictures=1)
