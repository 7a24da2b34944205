"""Rewards that are learned or written by a model, through the command line: what a user types and what comes of it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from demos import Writer
from sinew.cli.main import main
from sinew.specs import ActionSpec, ObservationSpec, PolicySpec, TensorSpec

OBSERVATION = ObservationSpec({"observation.state": TensorSpec(shape=(2,), unit="m", names=("height", "side"))})
ACTION = ActionSpec(kind="ee_delta", low=(-1.0, -1.0), high=(1.0, 1.0), rate_hz=20.0, names=("dz", "dy"))
EPISODES, LENGTH = 24, 10
GOOD = "```python\ndef potential(now):\n    h = clip(now.height, 0, 1)\n    return h, {'height': h}\n```"
EVIL = "```python\nimport os\ndef potential(now):\n    return now.height\n```"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A height that rises to 1 in every other episode, and to 0.3 in the others."""
    root, stream = tmp_path_factory.mktemp("reward") / "data", np.random.default_rng(0)
    with Writer.create(root, fps=20, observation_spec=OBSERVATION, action_spec=ACTION, robot_type="toy", task="lift it") as writer:
        for i in range(EPISODES):
            top = 1.0 if i % 2 == 0 else 0.3
            for t in range(LENGTH):
                state = np.array([top * t / (LENGTH - 1), stream.normal()], np.float32)
                action = np.array([top, 0.3 * stream.normal()], np.float32).clip(-1, 1)
                writer.add_frame({"observation.state": state, "action": action}, stamp_ns=round(t / 20 * 1e9))
            writer.save_episode(success=i % 2 == 0)
    return root


@pytest.fixture(scope="module")
def server():
    """A server that speaks chat completions; it gives `answers` in turn and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        answers: ClassVar[list[str]] = []
        asked: ClassVar[list[str]] = []

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.asked.append(body["messages"][0]["content"][0]["text"])
            text = self.answers.pop(0) if self.answers else "I do not know."
            made = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(made)))
            self.end_headers()
            self.wfile.write(made)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}/v1", Handler
        http.shutdown()


def sinew(capsys, *words):
    """The result of a command, or its exit code and what it said."""
    code = main([str(word) for word in (*words, "--json")])
    out, err = capsys.readouterr()
    return json.loads(out) if code == 0 else (code, err.strip().splitlines()[-1])


def test_a_model_writes_a_reward_and_improves_it(data, server, tmp_path, capsys):
    url, handler = server
    handler.answers[:] = [EVIL, GOOD, "no code here", "none again"]
    ask = ("reward", "generate", "--data", data, "--candidates", 2, "--rounds", 1)
    told = sinew(capsys, *ask, "--vlm", url, "--record", tmp_path / "kept", "--out", tmp_path / "r.json")
    assert told["passed"] == 1 and told["check"]["auc"] == 1.0 and len(told["refused"]) == 1
    assert "lift it" in handler.asked[0] and "Import is refused" in handler.asked[1]
    again = sinew(capsys, *ask, "--vlm", f"recorded:{tmp_path / 'kept'}", "--out", tmp_path / "again.json")
    assert again["source"] == told["source"] and len(handler.asked) == 4
    made = json.loads((tmp_path / "r.json").read_text())
    assert made["reward"] == "code" and made["made"]["check"]["successes"] == 12
    handler.answers[:] = [GOOD]
    refine = ("--refine", tmp_path / "r.json", "--feedback", "too slow", "--candidates", 1)
    sinew(capsys, *ask[:4], "--rounds", 1, *refine, "--vlm", url, "--out", tmp_path / "better.json")
    assert "too slow" in handler.asked[-1] and "h = clip(now.height, 0, 1)" in handler.asked[-1]


def test_what_goes_wrong_with_a_model_is_said_in_one_line(data, server, tmp_path, capsys):
    url, handler = server
    handler.answers.clear()
    ask = ("reward", "generate", "--data", data, "--out", tmp_path / "r.json", "--candidates", 1, "--rounds", 1)
    code, said = sinew(capsys, *ask, "--vlm", url)
    assert code == 2 and "none of 1 candidates passed" in said and not (tmp_path / "r.json").exists()
    code, said = sinew(capsys, *ask, "--vlm", "http://127.0.0.1:9/v1")
    assert code == 2 and said.startswith("sinew: ")
    code, said = sinew(capsys, *ask, "--vlm", f"recorded:{tmp_path}")
    assert code == 2 and "no recorded answers" in said
    code, said = sinew(capsys, *ask, "--vlm", url, "--refine", tmp_path / "none.json")
    assert code == 2 and "is not there" in said


def test_rewards_are_learned_and_their_plans_ranked(data, tmp_path, capsys):
    import policies
    from demos import Dataset

    told = sinew(capsys, "reward", "classifier", "--data", data, "--out", tmp_path / "done.json", "--updates", 100)
    assert told["auc"] >= 0.95 and {"calibration_error", "calibration_error_raw", "curve"} <= told.keys()
    (tmp_path / "said.jsonl").write_text('{"a": [0, 6, 10], "b": [1, 6, 10], "better": "a"}\n')
    learn = ("reward", "preference", "--data", data, "--preferences", tmp_path / "said.jsonl")
    told = sinew(capsys, *learn, "--out", tmp_path / "liked.json", "--updates", 100)
    assert told["implied"]["agreement"] > 0.8
    told = sinew(capsys, "reward", "world", "--data", data, "--out", tmp_path / "world.json", "--updates", 60, "--horizon", 4)
    assert told["error"]["steps"] == [1, 2, 3, 4] and set(told["ranking"]) == {"outcome", "goal"}
    spec = PolicySpec(observation=OBSERVATION, action=ACTION, horizon=4)
    policy = policies.make("flow", spec, Dataset(data).stats(), {"backbone": "mlp", "hidden": (16, 16), "steps": 2}, seed=0)
    policies.save(policy, tmp_path / "run")
    pair = (
        "reward",
        "pairs",
        tmp_path / "run",
        "--world",
        tmp_path / "world.json",
        "--data",
        data,
        "--out",
        tmp_path / "dpo",
        "--pairs",
        40,
    )
    told = sinew(capsys, *pair)
    assert told["pairs"] == 40 and told["gap"]["least"] >= 0
    kept = (tmp_path / "dpo" / "pairs.safetensors").read_bytes()
    told = sinew(capsys, *pair, "--steps", 60, "--learning-rate", "1e-3")
    assert (tmp_path / "dpo" / "pairs.safetensors").read_bytes() == kept
    assert told["curve"][-1][1] < np.log(2) and policies.load(tmp_path / "dpo").spec.horizon == 4


def test_what_does_not_fit_is_said(data, tmp_path, capsys):
    code, said = sinew(capsys, "reward", "classifier", "--data", data, "--out", tmp_path / "r.txt")
    assert code == 2 and "ends in .json" in said
    code, said = sinew(capsys, "reward", "world", "--data", data, "--out", tmp_path / "r.json", "--keys", "observation.sate")
    assert code == 2 and "observation.sate" in said
    code, said = sinew(capsys, "reward", "world", "--data", data, "--out", tmp_path / "r.json", "--horizon", 400, "--updates", 1)
    assert code == 2 and "longer than the horizon of 400" in said
