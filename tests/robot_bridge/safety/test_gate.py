"""The gate never emits what a robot must not get, and says why it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.kinematics import Arm, Arms, CallableTool
from sinew.errors import InputError
from sinew.protocols import Command, Observation, RobotSpec

DT_NS = 10_000_000


def observation(q, now_ns: int, velocity=None) -> Observation:
    q = np.asarray(q, dtype=float)
    velocity = np.zeros(len(q)) if velocity is None else velocity
    return Observation(now_ns, 0, {"joint_position": q, "joint_velocity": velocity, "gripper": np.array(0.04)})


def command(q: Any, now_ns: int, seq: int, gripper: Any = 0.04, ttl_s: float = 0.1) -> Command:
    return Command(now_ns, seq, ttl_s, {"joint_position": q, "gripper": gripper})


def gate_of(spec: RobotSpec, tool: Any = None, **changes: Any) -> SafetyGate:
    gate = SafetyGate(GateConfig.of(spec, 100.0, **changes), tool)
    assert gate.seed(observation(np.zeros(3), 0), 0) == ""
    return gate


class Feed:
    """Gives a gate one command per period and keeps what it emits."""

    def __init__(self, gate: SafetyGate) -> None:
        self.gate, self.now_ns, self.seq = gate, 0, 0
        self.emitted: list[Any] = [np.zeros(3)]

    def __call__(self, q: Any, **options: Any) -> Any:
        self.now_ns += DT_NS
        self.seq += 1
        verdict = self.gate.check(command(q, self.now_ns, self.seq, **options), observation(self.emitted[-1], self.now_ns), self.now_ns)
        self.emitted.append(verdict.joint_position)
        return verdict


def test_a_command_within_limits_passes_unchanged(spec):
    feed = Feed(gate_of(spec))
    for i in range(20):
        target = np.array([0.0005, 0.001, 0.0015]) * (i + 1)
        verdict = feed(target, gripper=0.05)
        assert verdict.outcome == "pass" and verdict.reason == ""
        assert np.array_equal(verdict.joint_position, target) and verdict.gripper == (0.05,)
    assert not feed.gate.counts


def test_nothing_is_emitted_before_the_gate_is_seeded(spec):
    gate = SafetyGate(GateConfig.of(spec, 100.0))
    verdict = gate.check(command(np.zeros(3), 0, 1), observation(np.zeros(3), 0), 0)
    assert verdict.joint_position is None and verdict.outcome == "closed" and verdict.reason == "not_seeded"


@pytest.mark.parametrize(
    ("target", "gripper", "reason"),
    [
        ([0.0, np.nan, 0.0], 0.04, "non_finite"),
        ([np.inf, 0.0, 0.0], 0.04, "non_finite"),
        ([0.0, 0.0, 0.0], np.nan, "non_finite"),
        ([0.0, 0.0], 0.04, "shape"),
        ([0.0] * 4, 0.04, "shape"),
        ([[0.0, 0.0, 0.0]], 0.04, "shape"),
        (["x", 0.0, 0.0], 0.04, "shape"),
        ([0.0, 0.0, 0.0], [0.04, 0.04], "shape"),
        (None, 0.04, "shape"),
        (np.array([1j, 0, 0]), 0.04, "shape"),
    ],
)
def test_a_broken_frame_is_dropped_whole_and_latches(spec, target, gripper, reason):
    feed = Feed(gate_of(spec))
    for i in range(10):
        feed(np.array([0.004, 0.0, 0.0]) * (i + 1))
    before = feed.gate.speed
    verdict = feed(target, gripper=gripper)
    assert verdict.outcome == "latched" and verdict.reason == reason and feed.gate.latched == reason
    assert before > 0 and feed.gate.speed < before  # ramps down, does not jump
    for _ in range(30):
        assert feed(np.zeros(3)).outcome == "latched"
    assert feed.gate.speed == 0.0
    assert [e.reason for e in feed.gate.events][-1] == reason
    feed.gate.release()
    assert feed(np.zeros(3)).joint_position is None  # released, but nothing moves before a new seed
    feed.emitted[-1] = feed.emitted[-2]
    assert feed.gate.seed(observation(feed.emitted[-1], feed.now_ns), feed.now_ns) == ""
    assert feed(feed.emitted[-1]).outcome == "pass"


def test_commands_that_are_late_old_or_from_the_future_hold(spec):
    gate = gate_of(spec)
    now = 900_000_000
    fresh = observation(np.zeros(3), now)
    assert gate.check(command(np.zeros(3), now - 200_000_000, 1), fresh, now).reason == "expired"
    assert gate.check(command(np.zeros(3), now + 50_000_000, 2), fresh, now).reason == "expired"
    # nobody may claim to live for ever
    assert gate.check(command(np.zeros(3), now - 600_000_000, 3, ttl_s=1e9), fresh, now).reason == "expired"
    assert gate.check(command(np.zeros(3), now, 4), fresh, now).outcome == "pass"
    verdict: Any = gate.check(command(np.full(3, 0.001), now, 4), fresh, now)
    assert verdict.reason == "out_of_order" and np.array_equal(verdict.joint_position, np.zeros(3))


def test_a_stale_measurement_holds_then_latches(spec):
    gate = gate_of(spec)
    seen = []
    for tick in range(1, 150):
        now = tick * DT_NS
        seen.append(gate.check(command(np.zeros(3), now, tick), observation(np.zeros(3), 0), now).outcome)
    assert seen[:10] == ["pass"] * 10 and seen[10] == "hold" and seen[-1] == "latched"
    assert gate.latched == "stale_observation" and 100 <= seen.index("latched") <= 115


def test_a_gate_that_was_not_asked_for_long_latches(spec):
    """As after SIGSTOP and SIGCONT: everything is fresh again, but motion does not go on by itself."""
    feed = Feed(gate_of(spec))
    assert feed(np.zeros(3)).outcome == "pass"
    feed.now_ns += 500_000_000
    assert feed(np.zeros(3)).outcome == "pass"
    feed.now_ns += 2_000_000_000
    verdict = feed(np.zeros(3))
    assert verdict.outcome == "latched" and verdict.reason == "stalled"


def test_a_measurement_that_is_not_finite_latches(spec):
    gate = gate_of(spec)
    verdict: Any = gate.check(command(np.zeros(3), DT_NS, 1), observation([0.0, np.nan, 0.0], DT_NS), DT_NS)
    assert verdict.outcome == "latched" and verdict.reason == "bad_measurement" and np.isfinite(verdict.joint_position).all()


def test_first_command_must_be_near_the_robot(spec):
    feed = Feed(gate_of(spec, first_step_max_rad=0.1))
    verdict = feed([0.2, 0.0, 0.0])
    assert verdict.outcome == "latched" and verdict.reason == "first_step" and np.array_equal(verdict.joint_position, np.zeros(3))


def test_a_far_target_is_a_jump_and_holds(spec):
    feed = Feed(gate_of(spec))
    feed(np.zeros(3))
    verdict = feed([1e9, 0.0, 0.0])
    assert verdict.outcome == "hold" and verdict.reason == "jump" and np.array_equal(verdict.joint_position, np.zeros(3))
    assert feed(np.zeros(3)).outcome == "pass"


def test_start_pose(spec):
    gate = SafetyGate(GateConfig.of(spec, 100.0, start_pose_rad=(0.5, 0.0, 0.0)))
    assert gate.seed(observation(np.zeros(3), 0), 0) == "start_pose" and gate.latched == "start_pose"
    gate.release()
    assert gate.seed(observation([0.5, 0.05, 0.0], 0), 0) == ""
    for measured, velocity in (([1.6, 0, 0], None), ([0, 0, 0], np.array([0.5, 0, 0]))):
        gate = SafetyGate(GateConfig.of(spec, 100.0))
        assert gate.seed(observation(measured, 0, velocity), 0) == "start_pose"


def test_reject_holds_where_clamp_follows(spec):
    for setting, outcome in (("clamp", "clamp"), ("reject", "hold")):
        feed = Feed(gate_of(spec, on_velocity=setting))
        assert feed([0.2, 0.0, 0.0]).outcome == outcome
        feed = Feed(gate_of(spec, on_position=setting, jump_max_rad=5.0, first_step_max_rad=5.0))
        assert feed([1.7, 0.0, 0.0]).outcome == outcome


def test_a_clamped_step_arrives_without_running_past(spec):
    feed = Feed(gate_of(spec))
    for _ in range(80):
        feed([0.2, -0.2, 0.2])
    path = np.array(feed.emitted)
    assert np.allclose(path[-1], [0.2, -0.2, 0.2], atol=1e-9)
    assert path[:, 0].max() <= 0.2 + 1e-9 and path[:, 1].min() >= -0.2 - 1e-9


def test_a_moving_target_is_caught_up_with(spec):
    """A target that starts at full speed is behind reach at first, since the joint must accelerate; the lag must vanish."""
    feed = Feed(gate_of(spec))
    lags = []
    for i in range(100):
        target = np.array([0.006, 0.0, 0.0]) * (i + 1)
        lags.append(abs(feed(target).joint_position[0] - target[0]))
    assert max(lags) > 0.005 and max(lags[50:]) < 1e-9


def test_stops_within_its_time_from_full_speed(spec):
    """Joint speed is limited so that a stop takes at most stop_time_s, here below what the velocity limit alone allows."""
    gate = gate_of(spec, velocity_max_rad_s=(10.0, 10.0, 10.0), jump_max_rad=5.0, first_step_max_rad=5.0, stop_time_s=0.1)
    assert np.allclose(gate.velocity_cap, (1.0, 2.0, 3.0))  # 10 periods at the acceleration limit, which jerk allows at once
    feed = Feed(gate)
    for _ in range(40):
        feed([1.4, 1.4, 1.4])
    assert gate.speed > 0.9  # a joint at full speed
    gate.stop("operator", feed.now_ns)
    for _ in range(10):
        feed([1.4, 1.4, 1.4])
    assert gate.speed == 0.0 and gate.latched == "operator"


def test_the_tool_stays_in_the_box(spec):
    reach = Arm(anchors=((0, 0, 0), (0.4, 0, 0), (0.7, 0, 0)), axes=((0, 0, 1), (0, 0, 1), (0, 0, 1)), tool=(0.9, 0.0, 0.0))
    tools = Arms([reach])
    gate = gate_of(spec, tools, workspace_low_m=(0.5, -0.2, -0.1), workspace_high_m=(1.0, 0.2, 0.1))
    feed = Feed(gate)
    for i in range(200):
        verdict = feed([min(0.005 * i, 0.45), 0.0, 0.0])
        assert abs(tools.positions(verdict.joint_position)[0][1]) <= 0.2
    assert gate.counts["workspace"] and tools.positions(feed.emitted[-1])[0][1] > 0.15  # goes to the wall, not through it
    gate = SafetyGate(GateConfig.of(spec, 100.0, workspace_low_m=(2, 2, 2), workspace_high_m=(3, 3, 3)), tools)
    assert gate.seed(observation(np.zeros(3), 0), 0) == "start_pose"


def test_a_tool_that_cannot_be_computed_latches(spec):
    gate = gate_of(spec, CallableTool(lambda q: [0.0, 0.0, 0.0 if q[0] < 0.003 else np.nan], 3))
    feed = Feed(gate)
    for i in range(10):
        verdict = feed([0.001 * i, 0.0, 0.0])
    assert verdict.reason == "bad_measurement" and verdict.outcome == "latched"


def test_config_refuses_what_cannot_be(spec):
    with pytest.raises(InputError, match="differ in length"):
        GateConfig.of(spec, velocity_max_rad_s=(1.0,))
    with pytest.raises(InputError, match="not below"):
        GateConfig.of(spec, position_low_rad=(2.0, 2.0, 2.0))
    with pytest.raises(InputError, match="finite and above 0"):
        GateConfig.of(spec, acceleration_max_rad_s2=(np.inf, 1.0, 1.0))
    with pytest.raises(InputError, match="stop_time_s"):
        GateConfig.of(spec, 100.0, stop_time_s=0.01)
