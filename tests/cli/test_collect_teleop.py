import json
from typing import Any

import numpy as np
import pytest

from robot_bridge.interfaces import Frame
from robot_bridge.recording import DatasetRecorder
from robot_bridge.report import EpisodeResult
from robot_bridge.takeover import ScriptedTakeover
from sinew.cli import collect_teleop
from sinew.cli.benchmarks.recording_rig import Rig, RigInterface, RigRobot
from sinew.cli.main import main
from sinew.protocols import Observation
from sinew.specs import STATE


def test_a_person_records_with_the_keyboard(in_a_terminal, until_not_stopped, capsys):
    steps = [
        ("", " "), ("recording begins", "u"), ("recording", "y"), ("1 of 3 kept", "j"), ("recording", "r"), ("thrown away", "x"),
        ("nothing is recorded yet", "k"), ("recording", "x"), ("2 of 3 kept", "R"), ("record it again", "u"), ("recording", "R"),
        ("throw that one away first", "x"), ("episode 1: ", " "), ("2 of 3 kept", "q"), ("2 of 3 kept", ""),
    ]  # fmt: skip
    argv = ["collect", "--task", "lift", "--teleop", "keyboard", "--robot", "sim", "--episodes", "3", "--out"]
    out = until_not_stopped(lambda out: in_a_terminal([*argv, out], [(text, lambda: None, key) for text, key in steps]))
    assert main(["data", "info", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["outcomes"] == {"success": 1, "failure": 1} and told["frames"] >= 2
    assert {"joint_position", "sent.joint_position"} <= told["beside"]["streams"].keys() and told["beside"]["episodes"] == 2


@pytest.mark.parametrize(("words", "left"), [({0: "again"}, 0), ({}, 1), ({0: "stop"}, 1)])
def test_the_last_episode_of_all_can_be_recorded_again(tmp_path, monkeypatch, words, left):
    interface: Any = RigInterface(RigRobot(Rig(out="", cameras=0)))
    measured = Observation(1, 1, {"joint_position": np.zeros(6), "gripper": np.array(0.04)})
    frame = Frame(0, 0, 0, {STATE: np.zeros(6, np.float32)}, np.zeros(7), measured)
    said: list[str] = []
    monkeypatch.setattr(collect_teleop, "LAST_CHANCE_S", 0.2)
    with DatasetRecorder(tmp_path / "d", interface) as recorder:
        recorder.frame(frame)
        recorder.end_episode(EpisodeResult(0, True, 1, 1.0, "success"))
        assert collect_teleop._again(ScriptedTakeover((), words), recorder, said.append) is (left == 0)
        assert recorder.episodes == left and "all 1 episodes are recorded; R within" in said[0]


WRONG = [
    (["--teleop", "keyboard"], "terminal"),
    (["--teleop", "keyboard", "--quality", "human"], "--quality"),
    (["--teleop", "keyboard", "--episode-s", "0"], "--episode-s"),
    (["--robot", "sim"], "--teleop"),
    (["--robot-config", "ur5e"], "--teleop"),
    (["--teleop", "keyboard", "--robot-config", "ur5"], "did you mean 'ur5e'"),
    (["--teleop", "keyboard", "--robot-config", "ur5e", "--cameras", "top"], "unknown camera"),
]


@pytest.mark.parametrize(("argv", "said"), WRONG)
def test_what_does_not_belong_together_is_said_in_one_line(argv, said, refused, tmp_path):
    assert said in refused(["collect", "--task", "lift", "--out", tmp_path / "x", *argv])
    assert not (tmp_path / "x").exists()
