"""Sources of a person's wishes on real terminals and stand-ins of devices, and the frame that their motions are given in."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import sys
import termios
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import sim
from robot_bridge.given import ActionSpace
from robot_bridge.takeover import DeviceLost, Given, KeyboardTakeover, ScriptedTakeover, Together, open_takeover
from sinew.errors import InputError, MissingDependency


class Now:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


# ------------------------------------------------------------ keyboard


@pytest.fixture
def terminal():
    """(keys in, terminal of the program): a real pseudo-terminal."""
    master, slave = pty.openpty()
    yield master, slave
    for fd in (master, slave):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_keys_move_while_they_are_held_and_the_space_bar_gives_back(terminal):
    master, slave = terminal
    now = Now()
    keyboard = KeyboardTakeover(slave, now_s=now)
    assert keyboard.read() is None  # and it did not wait
    os.write(master, b"i")
    assert keyboard.read() == Given((0.4, 0, 0, 0, 0, 0), "world")
    os.write(master, b"+uj")
    assert keyboard.read() == Given((0.5, 0.5, 0.5, 0, 0, 0), "world")
    now.s += 0.2
    assert keyboard.read() == Given((0.0,) * 6, "world")  # let go of the keys, still in control
    os.write(master, b"g")
    assert keyboard.read() == Given((0.0,) * 6, "world", open=0.0)
    os.write(master, b" ")
    assert keyboard.read() is None
    os.write(master, b"k")
    assert keyboard.read() == Given((-0.5, 0, 0, 0, 0, 0), "world")
    now.s += 5.0
    assert keyboard.read() is None  # nobody is there any more


def test_words_come_one_at_a_time_in_order_and_take_nothing_over(terminal):
    master, slave = terminal
    keyboard = KeyboardTakeover(slave)
    os.write(master, b"pyXzrq")
    assert keyboard.read() is None
    words = [keyboard.request() for _ in range(7)]
    assert words == ["pause", "success", "last_failure", "undo", "reset", "stop", None]


def test_a_terminal_is_left_as_it_was_and_ctrl_c_stays_a_signal(terminal):
    _, slave = terminal
    before = termios.tcgetattr(slave)
    keyboard = KeyboardTakeover(slave)
    during = termios.tcgetattr(slave)
    assert not during[3] & termios.ICANON and not during[3] & termios.ECHO and during[3] & termios.ISIG
    keyboard.close()
    assert termios.tcgetattr(slave) == before


def test_a_closed_terminal_is_told_in_one_line_and_does_not_come_back(terminal):
    master, slave = terminal
    keyboard = KeyboardTakeover(slave)
    os.close(master)
    for _ in range(2):
        with pytest.raises(DeviceLost, match="the terminal is closed"):
            keyboard.read()
    assert not keyboard.reopen()
    keyboard.close()


def test_no_terminal_is_refused():
    read, write = os.pipe()
    with pytest.raises(InputError, match="standard input is none"):
        KeyboardTakeover(read)
    os.close(read)
    os.close(write)


def test_a_device_moves_and_a_keyboard_has_its_words():
    device = ScriptedTakeover([Given((1.0, 0, 0, 0, 0, 0))])
    both = Together(device, ScriptedTakeover([None], {0: "pause"}))
    assert both.read() == Given((1.0, 0, 0, 0, 0, 0)) and both.request() == "pause" and both.read() is None
    lost = Together(device, ScriptedTakeover([DeviceLost("gone")]))
    with pytest.raises(DeviceLost):
        lost.read()


# ------------------------------------------------------------ gamepad


class Pad:
    """A stand-in for pygame's controller."""

    def __init__(self, index: int = 0) -> None:
        self.axes: dict[str, int] = {}
        self.buttons: set[str] = set()
        self.there = True

    def attached(self) -> bool:
        return self.there

    def get_axis(self, name: str) -> int:
        return self.axes.get(name, 0)

    def get_button(self, name: str) -> bool:
        return name in self.buttons

    def quit(self) -> None:
        pass


@pytest.fixture
def pad(monkeypatch):
    """The pad that pygame finds, once it is imported."""
    pads = [Pad()]
    names = [f"CONTROLLER_AXIS_{n}" for n in ("LEFTX", "LEFTY", "RIGHTX", "RIGHTY", "TRIGGERLEFT", "TRIGGERRIGHT")]
    names += [f"CONTROLLER_BUTTON_{n}" for n in ("A", "B", "X", "Y", "START", "BACK", "LEFTSHOULDER", "RIGHTSHOULDER")]
    nothing = types.SimpleNamespace(init=lambda: None, quit=lambda: None, pump=lambda: None)
    controller = types.SimpleNamespace(
        init=lambda: None, quit=lambda: None, get_count=lambda: len(pads), is_controller=lambda i: True, Controller=lambda i: pads[i]
    )
    module: Any = types.ModuleType("pygame")
    module.__dict__.update({name: name.split("_", 2)[2] for name in names}, display=nothing, event=nothing)
    inner: Any = types.ModuleType("pygame._sdl2")
    inner.controller = controller
    monkeypatch.setitem(sys.modules, "pygame", module)
    monkeypatch.setitem(sys.modules, "pygame._sdl2", inner)
    return pads


def test_a_gamepad_acts_while_the_dead_mans_button_is_held(pad, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    gamepad = open_takeover("gamepad", arms=2)
    pad[0].axes = {"LEFTY": -32767, "LEFTX": 16384, "RIGHTY": 3000, "TRIGGERRIGHT": 32767}
    assert gamepad.read() is None
    pad[0].buttons = {"LEFTSHOULDER"}
    given = gamepad.read()
    assert given is not None and given.frame == "world" and given.open == 0.0 and given.arm == 0
    np.testing.assert_allclose(given.values, (1.0, -0.5, 0, 0, 0, 0), atol=1e-3)  # small deflections are none
    pad[0].buttons = {"LEFTSHOULDER", "RIGHTSHOULDER", "A", "START"}
    assert gamepad.read().arm == 1  # type: ignore[union-attr]
    assert [gamepad.request() for _ in range(3)] == ["success", "pause", None]  # held buttons count once
    pad[0].buttons = set()
    assert gamepad.request() is None


def test_an_unplugged_gamepad_is_lost_and_found_again(pad, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    gamepad = open_takeover("gamepad")
    pad.pop().there = False
    with pytest.raises(DeviceLost, match="the gamepad is gone"):
        gamepad.request()
    assert not gamepad.reopen()
    pad.append(Pad())
    assert gamepad.reopen() and gamepad.read() is None
    gamepad.close()
    pad.clear()
    with pytest.raises(InputError, match="no gamepad is there"):
        open_takeover("gamepad")


# ------------------------------------------------------------ SpaceMouse


@dataclass
class Cap:
    t: float = -1.0
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    roll: float = 0.0
    pitch: float = 0.0
    yaw: float = 0.0
    buttons: list[int] = field(default_factory=lambda: [0, 0])


class Mouse:
    """A stand-in for a SpaceMouse: reports wait in a queue, as they do in the system's."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.state, self.there = Cap(), True

    def read(self) -> Cap:
        if not self.there:
            raise OSError("read error")
        if self.reports:
            for name, value in self.reports.pop(0).items():
                setattr(self.state, name, value)
            self.state.t += 1.0
        return self.state

    def close(self) -> None:
        pass


@pytest.fixture
def mouse(monkeypatch):
    mice = [Mouse()]

    def find(**options: Any) -> Mouse:
        assert options == {"axis_convention": "ros"}
        if not mice:
            raise RuntimeError("no device was found")
        return mice[0]

    module: Any = types.ModuleType("pyspacemouse")
    module.open = find
    monkeypatch.setitem(sys.modules, "pyspacemouse", module)
    return mice


def test_a_spacemouse_is_read_to_its_newest_report(mouse):
    from robot_bridge.spacemouse import SpaceMouseTakeover

    now = Now()
    cap = SpaceMouseTakeover(frame="tool", now_s=now)
    assert cap.read() is None
    mouse[0].reports = [{"x": 0.1 * i} for i in range(1, 9)] + [{"z": -0.03}]
    given = cap.read()
    assert given is not None and given.frame == "tool"
    np.testing.assert_allclose(given.values, (0.8, 0, 0, 0, 0, 0))  # the newest, not the oldest; a tremble is none
    mouse[0].reports = [{"x": 0.0}]
    assert cap.read() == Given((0.0,) * 6, "tool")  # a moment's rest gives nothing back
    now.s += 1.0
    assert cap.read() is None
    mouse[0].reports = [{"buttons": [1, 0]}]
    assert cap.read() == Given((0.0,) * 6, "tool", open=0.0)
    mouse[0].reports = [{"buttons": [1, 1]}]
    assert cap.read() == Given((0.0,) * 6, "tool") and cap.request() == "pause" and cap.read() and cap.request() is None


def test_an_unplugged_spacemouse_is_lost_and_found_again(mouse):
    from robot_bridge.spacemouse import SpaceMouseTakeover

    cap = SpaceMouseTakeover()
    old = mouse.pop()
    old.there = False
    for _ in range(2):
        with pytest.raises(DeviceLost, match="the SpaceMouse is gone"):
            cap.read()
    assert not cap.reopen()
    mouse.append(Mouse())
    assert cap.reopen() and cap.read() is None
    with pytest.raises(InputError, match="one arm and the task has 2"):
        SpaceMouseTakeover(arms=2)


@pytest.mark.parametrize(("kind", "package"), [("gamepad", "pygame"), ("spacemouse", "pyspacemouse")])
def test_a_missing_package_names_the_extra(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"{package}: pip install 'sinew\[teleop\]'"):
        open_takeover(kind)


# ------------------------------------------------------------ the frame


def test_a_motion_along_the_tools_axes_becomes_the_action_along_the_worlds():
    """Against the kinematics: the tool moves along its own axis where the action is executed."""
    interface = sim.make_interface("lift")
    space, joints = ActionSpace(interface), np.array(interface.robot_spec.home_rad) + np.array([0.3, -0.1, 0.2, 0.1, -0.2, 0.1, 0.4])
    space.reset(np.array([0.05]))
    R_world_tool = interface.chains[0].forward(joints[None]).rotation[..., 0]
    high = np.array(interface.action_spec.high)
    for axis in range(3):
        values = tuple(0.6 * float(i == axis) for i in range(6))
        action = space.action(Given(values, "tool"), joints)
        np.testing.assert_allclose(action[:3], 0.6 * high[0] * R_world_tool[:, axis], atol=1e-12)
        assert action[3] == pytest.approx(0.05)  # the gripper stays as it was commanded last
        world = space.action(Given(values, "world"), joints)
        assert np.abs(world[:3] - action[:3]).max() > 0.003  # taking one for the other would be seen here
    assert (np.abs(R_world_tool - np.eye(3)).max(0) > 0.2).all()


def test_turns_and_grippers_of_each_arm():
    interface = sim.make_interface("handover")
    space, joints = ActionSpace(interface), np.array(interface.robot_spec.home_rad)
    space.reset(np.array([0.02, 0.03]))
    names, high = list(interface.action_spec.names), np.array(interface.action_spec.high)
    action = space.action(Given((0, 1.0, 0, 0, 0, 0), open=1.0, arm=1), joints)
    width = len(names) // 2
    wanted = np.zeros(len(names))
    grippers = [i for i, name in enumerate(names) if name.endswith("gripper")]
    wanted[grippers] = 0.02, high[grippers[1]]
    wanted[width + 1] = high[width + 1]
    np.testing.assert_allclose(action, wanted)
    turning = sim.make_interface("peg")
    if "dyaw" in turning.action_spec.names:
        space = ActionSpace(turning)
        at = turning.action_spec.names.index("dyaw")
        action = space.action(Given((0, 0, 0, 0, 0, -0.5)), np.array(turning.robot_spec.home_rad))
        assert action[at] == pytest.approx(-0.5 * turning.action_spec.high[at])


def test_for_a_policy_of_joint_targets_a_motion_becomes_joint_targets():
    """The same motion through both action spaces ends with the tool in the same place."""
    by_tool, by_joints = sim.make_interface("lift"), sim.make_interface("lift", action="joint_position")
    joints = np.array(by_joints.robot_spec.home_rad)
    given = Given((1.0, 0.5, -0.5, 0, 0, 0), "world")
    space, decoder = ActionSpace(by_joints), by_tool.decoder(1)
    space.reset(np.array([0.08]))
    decoder.reset(joints[None])
    measured = by_decoder = joints
    for _ in range(4):
        action = space.action(given, measured)
        assert action.shape == (by_joints.action_spec.dim,)
        space.executed(action, by_person=True)
        wanted, _ = decoder.decode(ActionSpace(by_tool).action(given, by_decoder)[None], by_decoder[None])
        measured, by_decoder = action[:-1], wanted[0]
    ends = [by_tool.chains[0].forward(q[None]).position[:, 0] for q in (measured, by_decoder)]
    np.testing.assert_allclose(ends[0], ends[1], atol=0.005)
    moved = by_tool.chains[0].forward(measured[None]).position[:, 0] - by_tool.chains[0].forward(joints[None]).position[:, 0]
    np.testing.assert_allclose(moved, 4 * 0.025 * np.array([1.0, 0.5, -0.5]), atol=0.01)
    hold = space.hold(measured)
    assert np.abs(hold[:-1] - measured).max() < 0.02 and hold[-1] == pytest.approx(0.08)


def test_an_action_as_it_is_stays_within_bounds_and_nonsense_is_refused():
    space = ActionSpace(sim.make_interface("lift"))
    joints = np.zeros(7)
    assert space.action(Given((9.0, -9.0, 0.0, 0.01), kind="action"), joints).tolist() == [0.025, -0.025, 0.0, 0.01]
    for bad in (Given((0.0,) * 3, kind="action"), Given((0.0,) * 5), Given((float("nan"),) + (0.0,) * 5)):
        with pytest.raises(InputError, match="finite values"):
            space.action(bad, joints)


def test_actions_that_no_person_can_give_are_refused():
    interface = types.SimpleNamespace(action_spec=types.SimpleNamespace(kind="joint_delta"), chains=())
    with pytest.raises(InputError, match="joint_delta"):
        ActionSpace(interface)
