"""The whole way: a hand on the page, the server, the executor, the gate, a simulated robot, and the dataset that comes of it."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

import demos

START_S = 180.0


@pytest.fixture
def collecting(tmp_path, tab, until):
    """A running `sinew collect` with its page open in the browser."""
    command = [
        sys.executable, "-m", "sinew", "collect", "--task", "lift", "--teleop", "browser", "--listen", "127.0.0.1:0", "--cameras", "front",
        "--image-size", "32", "--episodes", "2", "--out", str(tmp_path / "data"), "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    link = until(lambda: next((line.strip() for line in lines if line.startswith("https://")), ""), "the link", START_S)
    tab.open(link)
    until(lambda: tab.run("document.body?.dataset.phase === 'there' && document.querySelectorAll('figure').length === 1"), "page", START_S)
    yield process, tab, lines
    process.kill()
    process.wait(30)


def test_a_person_records_an_episode_on_the_page_and_stops_the_next_one(collecting, tmp_path, until):
    process, tab, lines = collecting
    x, y = tab.centre("#height")

    def lift():  # a stutter of this machine lets go, so hold again and again
        tab.mouse("mousePressed", x, y)
        for i in range(15):
            tab.mouse("mouseMoved", x, y - 6 * i, held=True)
            tab.run("new Promise((done) => setTimeout(done, 50))")
        tab.mouse("mouseReleased", x, y)
        return "Recording" in tab.text("recording-text") and sum("recording" in line for line in lines) >= 2

    until(lift, "recording", START_S)
    lift()
    tab.click("[data-word=success]")
    until(lambda: tab.text("episode") == "1 of 2 kept", "saving", START_S)
    until(lambda: tab.text("recording-text") == "Not recording")
    tab.click("#stop")
    assert process.wait(START_S) == 4
    out = process.stdout.read()
    until(lambda: "stop button of the page" in " ".join(" ".join(lines).split()), "the reason")  # whatever the terminal's width
    assert tab.text("headline") == "The session is over" and "was stopped" in tab.text("explanation")
    assert out == "" or json.loads(out)
    data = demos.Dataset(tmp_path / "data")
    assert data.num_episodes == 1 and data.episode(0).success is True
    actions = data.column("action")
    assert actions[:, data.action_spec.names.index("dz")].max() > 0
    assert np.abs(actions[:, [data.action_spec.names.index(n) for n in ("dx", "dy")]]).max() < 0.02  # nothing else was asked
