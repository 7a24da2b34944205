"""NOMINAL, HOLD, RAMP_DOWN, LATCHED: upwards only, for a reason that is kept, and back by an operator only."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from robot_bridge.clock import SteppedClock, sleep
from robot_bridge.gate import REASONS, GateConfig, Operator, SafetyGate, State
from robot_bridge.loop import ControlLoop
from robot_bridge.sim_robot import SimRobot
from sinew.protocols import Command, Observation

DT_NS = 10_000_000
ALONG = np.array([0.004, 0.0, 0.0])
"""A step that the first joint does in one period, rad."""


class Rig:
    """A gate, a robot that is where it was sent, and one command per period."""

    def __init__(self, spec, operator: Operator | None = None, **changes: Any) -> None:
        self.gate = SafetyGate(GateConfig.of(spec, 100.0, **changes), operator=operator)
        self.now_ns, self.seq, self.at = 0, 0, np.zeros(3)
        self.states: list[State] = []
        assert self.seed() == ""

    def seed(self) -> str:
        return self.gate.seed(self.seen(), self.now_ns)

    def seen(self, **values: Any) -> Observation:
        stamp_ns = values.pop("stamp_ns", self.now_ns)
        measured = {"joint_position": self.at, "joint_velocity": np.zeros(3), "gripper": np.array(0.04), **values}
        return Observation(stamp_ns, 0, {key: np.asarray(value) for key, value in measured.items()})

    def tick(self, target: Any = None, *, gripper: Any = None, **values: Any) -> Any:
        """One period towards `target`, or on at the same speed; `values` are measured instead of the truth."""
        self.now_ns += DT_NS
        self.seq += 1
        goal = self.at + ALONG if target is None else target
        command = Command(self.now_ns, self.seq, 0.1, {"joint_position": goal} | ({} if gripper is None else {"gripper": gripper}))
        verdict = self.gate.check(command, self.seen(**values), self.now_ns)
        self.states.append(self.gate.state)
        self.at = self.at if verdict.joint_position is None else verdict.joint_position
        return verdict

    def silent(self, **values: Any) -> Any:
        """One period without a command."""
        self.now_ns += DT_NS
        verdict = self.gate.step(None, None, self.seen(**values), self.now_ns)
        self.states.append(self.gate.state)
        self.at = verdict.joint_position
        return verdict

    def moving(self, ticks: int = 30) -> Rig:
        for _ in range(ticks):
            assert self.tick().outcome in ("pass", "clamp")
        return self


def test_an_incident_goes_up_through_all_states_and_ends_with_the_operator(spec):
    rig = Rig(spec).moving()
    while rig.gate.state is not State.LATCHED:
        rig.silent()
    climbed = list(dict.fromkeys(rig.states))
    assert climbed == [State.NOMINAL, State.HOLD, State.LATCHED]  # it stands long before it is latched
    assert rig.gate.latched == "expired" and rig.tick(rig.at).outcome == "latched"
    assert rig.gate.release(by="anna") == "" and rig.seed() == ""
    assert rig.gate.state is State.NOMINAL and rig.tick(rig.at).outcome == "pass"
    incident = rig.gate.incidents[-1]
    assert incident.reasons == ["expired"] and incident.state is State.LATCHED and incident.released_by == "anna"
    assert incident.ended_ns is not None and incident.ended_ns > incident.began_ns
    assert [(e.outcome, e.detail) for e in rig.gate.events][-1] == ("released", "by anna")


def test_a_latch_ramps_down_first_and_cannot_be_released_meanwhile(spec):
    rig = Rig(spec).moving()
    rig.tick([np.nan] * 3)
    assert rig.gate.state is State.RAMP_DOWN and rig.gate.release("bob") == "the robot still moves"
    for _ in range(25):
        rig.tick()
    after = rig.states[rig.states.index(State.RAMP_DOWN) :]
    assert after == sorted(after) and after[-1] is State.LATCHED and rig.gate.release("bob") == ""


def test_within_an_incident_the_state_only_goes_up(spec):
    """Random good and bad ticks: down goes only what ends in NOMINAL, from HOLD by a good command, from LATCHED by release."""
    rng, rig = np.random.default_rng(0), Rig(spec)
    for _ in range(3000):
        before = rig.gate.state
        if rng.random() < 0.03:
            rig.tick([np.nan] * 3) if rng.random() < 0.2 else rig.silent()
        else:
            rig.tick(rig.at + rng.normal(size=3) * 0.01)
        now = rig.gate.state
        assert now >= before or (before is State.HOLD and now is State.NOMINAL)
        if now is State.LATCHED:
            assert rig.gate.release("test") == "" and rig.seed() == ""
    assert all(list(i.reasons) and i.state >= State.HOLD for i in rig.gate.incidents)


def test_a_hold_begins_in_time_and_ends_in_time(spec):
    """The last valid command is 100 ms old when the hold begins at the latest; 250 ms later nothing moves."""
    rig = Rig(spec).moving()
    command = Command(rig.now_ns, 10_000, 1e9, {"joint_position": rig.at + 0.2})
    assert rig.gate.admit(command, rig.now_ns) == ""
    held_ns = next(ns for ns in range(rig.now_ns, rig.now_ns + 10**9, DT_NS) if rig.gate.expired(command, ns)) - rig.now_ns
    assert held_ns <= 100_000_000 + DT_NS
    rig.silent()
    for _ in range(24):
        rig.silent()
    assert rig.gate.speed == 0.0


# ---------------------------------------------------------------- one reason after the other


def expect(rig: Rig, reason: str, within: int, **values: Any) -> Any:
    """The reason comes within so many periods of measuring `values`; what follows is what the table says."""
    for _ in range(within):
        verdict = rig.tick(**values)
        if verdict.reason == reason:
            break
    assert verdict.reason == reason, rig.gate.counts
    answer = REASONS[reason].answer
    assert rig.gate.state is answer or (answer is State.RAMP_DOWN and rig.gate.state is State.LATCHED)
    return verdict


def test_frozen_joints_are_found_within_100_ms_of_moving(spec):
    rig = Rig(spec).moving()
    expect(rig, "frozen", 10, joint_position=rig.at)


def test_measurements_that_jump(spec):
    rig = Rig(spec).moving()
    expect(rig, "measured_jump", 1, joint_position=rig.at + np.array([0.0, 0.5, 0.0]))


@pytest.mark.parametrize("offset_ns", [-200_000_000, 200_000_000])
def test_measurements_that_go_back_in_time_or_come_from_the_future(spec, offset_ns):
    rig = Rig(spec).moving()
    expect(rig, "measurement_order", 1, stamp_ns=rig.now_ns + offset_ns)
    for _ in range(5):
        verdict = rig.tick()
    assert verdict.outcome in ("pass", "clamp")  # goes on when they are in order again


def test_a_robot_that_does_not_move_when_commanded(spec):
    """Its joints tremble, so they are not frozen; 0.1 rad of command within half a second without an answer are too much."""
    rig, rng, at = Rig(spec).moving(5), np.random.default_rng(0), np.array([0.02, 0.0, 0.0])
    for _ in range(110):
        verdict = rig.tick(joint_position=at + 1e-4 * rng.normal(size=3))
    assert verdict.reason == "not_following" and np.abs(rig.at - at).max() < 0.5
    assert "were commanded" in rig.gate.events[-1].detail


def test_a_robot_that_falls_behind(spec):
    rig = Rig(spec)
    for i in range(150):
        verdict = rig.tick(joint_position=0.2 * rig.at + 1e-5 * i)
    assert verdict.reason == "not_following" and "from the command" in rig.gate.events[-1].detail


def test_effort_beyond_its_limit_for_a_time(spec):
    rig = Rig(spec, effort_max_nm=(10.0, 10.0, 10.0)).moving(5)
    for _ in range(5):
        assert rig.tick(joint_effort=[0.0, -15.0, 0.0]).outcome in ("pass", "clamp")  # a bump
    assert rig.tick(joint_effort=[np.nan] * 3).outcome in ("pass", "clamp")  # drivers that do not measure it
    assert "joint 1" in rig.gate.events[-1].detail if expect(rig, "effort", 15, joint_effort=[0.0, -15.0, 0.0]) else False


def test_a_gripper_that_presses_hard_enough_closes_no_further(spec):
    rig = Rig(spec, gripper_force_max_n=20.0)
    assert rig.tick(rig.at, gripper=0.03).gripper == (0.03,)
    rig.tick(rig.at, gripper=0.03, gripper_effort=25.0)
    verdict = rig.tick(rig.at, gripper=0.0, gripper_effort=25.0)
    assert verdict.gripper == (0.03,) and verdict.outcome == "clamp" and verdict.reason == "gripper_force"
    assert rig.tick(rig.at, gripper=0.05, gripper_effort=25.0).gripper == (0.05,)  # it may always open


def test_every_reason_says_what_it_means_and_what_to_do():
    assert all(reason.meaning and reason.remedy for reason in REASONS.values())


# ---------------------------------------------------------------- the operator


def test_the_emergency_stop_latches_and_needs_two_releases(spec):
    operator = Operator()
    rig = Rig(spec, operator).moving()
    operator.press("key")
    assert rig.tick().reason == "e_stop" and rig.gate.state is State.RAMP_DOWN
    for _ in range(25):
        rig.tick()
    assert rig.gate.speed == 0.0 and "still pressed" in rig.gate.release("anna") and rig.seed() == "e_stop"
    operator.release("anna")
    assert rig.tick().outcome == "latched"  # not by itself
    assert rig.gate.release("anna") == "" and rig.seed() == "" and rig.tick(rig.at).outcome == "pass"
    assert [what for _, what in operator.log] == ["pressed: key", "released by anna"]


def test_a_gate_is_not_seeded_while_the_stop_is_pressed(spec):
    operator = Operator()
    operator.press()
    gate = SafetyGate(GateConfig.of(spec, 100.0), operator=operator)
    measured = {"joint_position": np.zeros(3), "gripper": np.array(0.04)}
    assert gate.seed(Observation(0, 0, measured), 0) == "e_stop" and gate.state is State.LATCHED


def test_the_dead_mans_switch_holds_at_once_goes_on_when_held_and_latches_in_the_end(spec):
    operator = Operator(dead_man_s=0.2)
    rig = Rig(spec, operator)
    assert rig.tick().reason == "dead_man"
    for _ in range(30):
        operator.beat(rig.now_ns)
        rig.tick()
    assert rig.gate.state is State.NOMINAL and rig.gate.speed > 0
    begun_ns = rig.now_ns
    while rig.gate.state is State.NOMINAL:
        rig.tick()
    assert rig.now_ns - begun_ns <= 200_000_000 + DT_NS
    operator.beat(rig.now_ns)
    assert rig.tick().outcome in ("pass", "clamp")
    operator.let_go()
    assert rig.tick().reason == "dead_man"
    for _ in range(110):
        rig.tick()
    assert rig.gate.latched == "dead_man"


def test_pressing_waits_for_no_lock_of_motion(spec, physics):
    """The loop's lock is held by another thread: the stop reaches the robot all the same, and the gate as soon as it ticks."""
    clock = SteppedClock()
    robot = SimRobot(physics, spec, clock=clock)
    robot.connect()
    operator = Operator(on_press=robot.stop)
    loop: Any = ControlLoop(robot, SafetyGate(GateConfig.of(spec, 100.0), operator=operator), blend_s=0.05, clock=clock)
    loop.start()
    assert loop.resume() == ""
    pressed = threading.Thread(target=operator.press, args=("page",))
    with loop._tick_lock:
        pressed.start()
        pressed.join(10.0)
        assert not pressed.is_alive() and operator.pressed == "page" and robot.stopped == "page"
    sleep(clock, 0.02)
    assert loop.gate.latched == "e_stop"


def test_a_broken_way_of_telling_does_not_keep_the_stop_from_others():
    told: list[str] = []

    def broken(reason: str) -> None:
        raise OSError(reason)

    operator = Operator(on_press=broken)
    operator.on_press.append(told.append)
    operator.press("topic")
    assert operator.pressed == "topic" and told == ["topic"]


class Meddling(Operator):
    """An operator who releases the gate in the middle of a tick, when the tick looks at the switches."""

    gate: SafetyGate | None = None

    @property
    def pressed(self) -> str:
        gate, self.gate = self.gate, None
        if gate is not None:
            assert gate.release("meddler") == ""
        return ""

    @pressed.setter
    def pressed(self, value: str) -> None:
        pass


def test_a_release_in_the_middle_of_a_tick_moves_nothing_before_the_next_seed(spec):
    rig = Rig(spec, Meddling())
    rig.gate.stop("shape", 0)
    stood = rig.at
    rig.gate.operator.gate = rig.gate  # type: ignore[attr-defined]
    verdict = rig.gate.step(stood + ALONG, None, rig.seen(), rig.now_ns)
    assert rig.gate.latched == "" and verdict.outcome == "latched" and np.array_equal(verdict.joint_position, stood)
    for _ in range(3):  # commands go on, and nobody has seeded
        verdict = rig.tick(stood + ALONG)
        assert verdict.outcome == "closed" and verdict.joint_position is None and rig.gate.last_command is None
    assert rig.seed() == "" and rig.tick(stood + ALONG).outcome in ("pass", "clamp")


@pytest.mark.parametrize("where", ["read", "write"])
def test_a_release_while_the_loop_ticks_is_no_defect(spec, physics, where):
    clock = SteppedClock()
    robot: Any = SimRobot(physics, spec, clock=clock)
    robot.connect()
    gate = SafetyGate(GateConfig.of(spec, 100.0))
    loop = ControlLoop(robot, gate, blend_s=0.05, clock=clock)
    loop.start()
    assert loop.resume() == ""
    plain, sent = getattr(robot, where), []

    def meddled(*given: Any) -> Any:
        gate.release("meddler")
        return plain(*given)

    for seq in range(1, 40):
        if seq % 10 == 5:
            gate.stop("shape", clock.now_ns())
            setattr(robot, where, meddled)
        loop.submit(Command(clock.now_ns(), seq, 0.1, {"joint_position": physics.joint_position + ALONG, "gripper": 0.04}))
        sleep(clock, 0.01)
        setattr(robot, where, plain)
        if not gate.latched and gate.last_command is None:
            sent.append(loop.verdict.outcome if loop.verdict else "")
            assert loop.resume() == ""
    assert loop.defect is None and sent
    loop.close()
    robot.close()
