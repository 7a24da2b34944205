"""Files of faults: what they may say, what is refused and how, and when a fault acts."""

from __future__ import annotations

import json

import pytest

from robot_bridge.faults.injector import Injector
from robot_bridge.faults.schedule import KINDS, Fault, Schedule, load_schedule
from sinew.config import to_json
from sinew.errors import SinewError

S = 1_000_000_000


def test_every_kind_survives_its_file(tmp_path):
    schedule = Schedule(
        faults=tuple(
            Fault(what=what, after="motion", at_s=0.5, for_s=1.0, parameters=dict(kind.parameters)) for what, kind in KINDS.items()
        ),
        seed=7,
    )
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(to_json(schedule)))
    assert load_schedule(path) == schedule


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "not JSON"),
        ("[]", "expected an object"),
        ('{"fault": []}', "unknown field 'fault'"),
        ('{"faults": [{"at_s": 1.0}]}', "'what' is missing"),
        ('{"faults": [{"what": "camera_stal"}]}', "did you mean 'camera_stall'"),
        ('{"faults": [{"what": "camera_stall", "after": "lunch"}]}', "expected one of 'start', 'reset', 'command', 'motion'"),
        ('{"faults": [{"what": "camera_stall", "at_s": -1.0}]}', "at_s -1.0 must be 0 or more"),
        ('{"faults": [{"what": "camera_stall", "for_s": 0.0}]}', "for_s 0.0 above 0"),
        ('{"faults": [{"what": "camera_stall", "at_s": NaN}]}', "at_s nan"),
        ('{"faults": [{"what": "camera_stall", "at_s": "soon"}]}', "expected float, found 'soon'"),
        ('{"faults": [{"what": "camera_stall", "parameters": {"depth": 1}}]}', "no parameter 'depth'; it has camera"),
        ('{"faults": [{"what": "joint_states_jump", "parameters": {"size_rad": "big"}}]}', "expected something like 0.5"),
        ('{"faults": [{"what": "wrong_message_type", "parameters": {"topic": "tf"}}]}', "known are joint_states, commands"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path, text, told):
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(SinewError) as e:
        load_schedule(path)
    assert told in str(e.value) and "\n" not in str(e.value) and e.value.exit_code == 2
    with pytest.raises(SinewError, match=r"faults .*none cannot be read: No such file"):
        load_schedule(tmp_path / "none")


def test_faults_act_in_their_time_after_their_event():
    faults = (
        Fault(what="commands_ignored", at_s=1.0, for_s=0.5),
        Fault(what="camera_stall", after="motion", at_s=0.1),
        Fault(what="robot_estop", after="reset", for_s=0.2),
    )
    injector = Injector(Schedule(faults=faults), 10 * S)
    acts = lambda what, at_s: injector.active(what, 10 * S + int(at_s * S)) is not None  # noqa: E731
    assert [acts("commands_ignored", t) for t in (0.99, 1.0, 1.49, 1.5)] == [False, True, True, False]
    assert not acts("camera_stall", 5.0)  # nothing has moved
    injector.tell("motion", 15 * S)
    injector.tell("motion", 19 * S)  # only the first counts
    assert [acts("camera_stall", t) for t in (5.05, 5.1, 99.0)] == [False, True, True]
    injector.tell("reset", 110 * S)
    assert not acts("camera_stall", 100.5)  # motion of the last episode is over
    assert [acts("robot_estop", t) for t in (100.1, 100.3)] == [True, False]
    injector.tell("reset", 120 * S)
    assert acts("robot_estop", 110.1)
    assert [what for _, what in injector.acted] == ["commands_ignored", "camera_stall", "robot_estop", "robot_estop"]
    assert injector.elapsed_s(faults[0], 12 * S) == pytest.approx(1.0)
