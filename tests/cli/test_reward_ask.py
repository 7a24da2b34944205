"""A model that is asked while a policy learns: the reward file that asks, against a real server, and through `sinew improve`."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from rewards import files
from sinew.cli import collect, improve, train
from sinew.cli.main import main
from sinew.progress import Progress
from sinew.rundir import RunDir, read_json

VECTORS = ("observation.state", "observation.environment_state")
SHORT = {"steps": 60, "num_envs": 2, "act_steps": 8, "base_noise": "zero", "evaluate_every": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Episodes of reach with pictures, and a policy that does not look at them."""
    folder = tmp_path_factory.mktemp("ask")
    collect.collect(collect.Args(task="reach", out=folder / "data", episodes=4, cameras=("front",), image_size=32))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=20, batch_size=32, keys=VECTORS))
    return folder


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(improve, "GATE_EPISODES", 2)


class Server(BaseHTTPRequestHandler):
    """Says that a picture is the further on the more it differs from the first; or what `wrong` says."""

    asked: int
    wrong: tuple[int, str] | None

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked += 1
        urls = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
        pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(u.split(",")[1]), np.uint8), cv2.IMREAD_COLOR).astype(float) for u in urls]
        apart = [min(100.0, 10 * float(np.abs(p - pictures[0]).mean())) for p in pictures[1:]]
        status, told = 200, {"choices": [{"message": {"content": json.dumps({"percent": apart})}}]}
        if self.wrong is not None:
            status, text = self.wrong
            told = {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": {"message": text}}
        answer = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"asked": 0, "wrong": None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1", handler
        http.shutdown()


class Heard(Progress):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def sinew(capsys, *words):
    """The result of a command, or its exit code and what it said last."""
    capsys.readouterr()
    code = main([str(word) for word in (*words, "--json")])
    out, err = capsys.readouterr()
    return json.loads(out) if code == 0 else (code, err.strip().splitlines()[-1])


def ask(capsys, *words):
    return sinew(capsys, "reward", "ask", *words)


def learn(folder, out, reward):
    heard = Heard()
    improve.improve(improve.Args(run=folder / "bc", out=out, reward=str(reward), **SHORT), heard)
    lines = [{k: v for k, v in line.items() if k not in ("wall_s", "time")} for line in RunDir.open(out).metrics()]
    return [line for line in heard.lines if "success alone" in line], lines


def test_a_file_is_written_tried_checked_and_learned_with_then_again_without_the_server(folder, server, few, tmp_path, capsys):
    url, handler = server
    out = tmp_path / "r.json"
    told = ask(capsys, "--vlm", url, "--model", "m", "--out", out, "--record", "answers", "--every", 8, "--data", folder / "data")
    assert told["because"] is None and len(told["tried"]["episodes"]) == 4 and handler.asked == 4
    assert told["tried"]["sees"] is (told["tried"]["rank_correlation"] >= 0.5)
    code = main(["reward", "check", str(out), "--data", str(folder / "data"), "--json"])
    found = {f["name"]: f["holds"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert code in (0, 2) and found["loops"] is True  # it is a potential, whatever the model says
    said, lines = learn(folder, tmp_path / "live", out)
    assert said == [] and read_json(tmp_path / "live" / "config.json")["reward"] == str(out)
    asked = handler.asked
    again = tmp_path / "again.json"
    ask(capsys, "--vlm", f"recorded:{tmp_path / 'answers'}", "--out", again, "--every", 8)
    assert learn(folder, tmp_path / "replayed", again) == ([], lines)
    assert handler.asked == asked


@pytest.mark.parametrize(
    ("wrong", "most", "words"),
    [
        ((429, "quota exceeded"), 1000, "HTTP 429: quota exceeded"),
        ((200, "The robot does well."), 1000, "no usable answer"),
        (None, 3, "the 3 questions that m may be asked are spent"),
    ],
)
def test_a_model_that_fails_while_learning_leaves_success_and_that_is_said(folder, server, few, tmp_path, capsys, wrong, most, words):
    url, handler = server
    ask(capsys, "--vlm", url, "--model", "m", "--out", tmp_path / "r.json", "--every", 4, "--max-calls", most)
    handler.wrong = wrong
    said, lines = learn(folder, tmp_path / "run", tmp_path / "r.json")
    assert len(said) == 1 and words in said[0]
    assert lines[-1]["step"] == 60
    assert "recorded episodes: " in capsys.readouterr().err  # all of them by success alone, not some and some
    assert sum("success alone" in str(line.get("note", "")) for line in lines) == 1  # the run's own record tells it as well


def test_nobody_there_is_said_when_trying_and_learned_without(folder, few, tmp_path, capsys):
    told = ask(capsys, "--vlm", "http://127.0.0.1:9/v1", "--out", tmp_path / "r.json", "--data", folder / "data", "--every", 4)
    assert "127.0.0.1:9" in told["because"] and told["tried"] is None
    said, lines = learn(folder, tmp_path / "run", tmp_path / "r.json")
    assert len(said) == 1 and "127.0.0.1:9" in said[0] and lines[-1]["step"] == 60


def test_what_cannot_be_asked_is_refused_before_anything_is_written(folder, server, tmp_path, capsys):
    url, _ = server
    (tmp_path / "there.json").write_text("{}")
    cases = [
        (("--vlm", "htp://x", "--out", tmp_path / "r.json"), "no address of a model"),
        (("--vlm", url, "--out", tmp_path / "r"), "ends in .json"),
        (("--vlm", url, "--out", tmp_path / "there.json"), "is there already"),
        (("--vlm", url, "--out", tmp_path / "r.json", "--pictures", 1), "pictures at least 2"),
        (("--vlm", url, "--out", tmp_path / "r.json", "--record", "../kept"), "beside the reward file"),
        (("--vlm", url, "--out", tmp_path / "r.json", "--camera", "rear", "--data", folder / "data"), "its cameras: front"),
        (("--vlm", f"recorded:{tmp_path / 'none'}", "--out", tmp_path / "r.json"), "holds no recorded answers"),
        (("--vlm", "recorded:/elsewhere/kept", "--out", tmp_path / "r.json"), "lies beside --out"),
        (("--vlm", f"recorded:{tmp_path / 'none'}", "--record", "k", "--out", tmp_path / "r.json"), "asks nobody"),
    ]
    for words, said in cases:
        code, line = ask(capsys, *words)
        assert code == 2 and said in line, (words, line)
    assert not (tmp_path / "r.json").exists()
    (tmp_path / "r.json").write_text('{"reward": "asked", "version": 1, "made": {}, "settings": {}}')
    with pytest.raises(files.InputError, match="give base_url"):
        files.load(tmp_path / "r.json")
