"""Episodes when something is wrong, in exact simulated time: stalled cameras, start poses, emergency stops, lost servers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import sim
from policies.wire import LinkError
from robot_bridge import SimRobot, SimScene, SteppedClock
from robot_bridge.deploy import DeployConfig, deploy, make_gate
from robot_bridge.gate import Operator
from sinew.errors import InputError
from sinew.protocols import Observation
from sinew.specs import PolicySpec

MS = 1_000_000


class Still:
    """An executor that asks the arm to stay, and counts what it is shown."""

    def __init__(self, interface, clock) -> None:
        self.spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=1)
        self.interface, self.clock = interface, clock
        self.seen: list[int] = []
        self.resets = 0

    def reset(self, ids=None, seeds: Any = ()) -> None:
        self.resets += 1

    def act(self, obs):
        self.seen.append(self.clock.now_ns())
        low, high = np.array(self.interface.action_spec.low), np.array(self.interface.action_spec.high)
        still = np.zeros(len(low))
        still[-1] = high[-1]  # the gripper's absolute opening
        return self.interface.action_spec.normalize(torch.as_tensor(np.clip(still, low, high)[None], dtype=torch.float32))


class Circling(Still):
    """Moves the tool all the time."""

    def act(self, obs):
        action = super().act(obs)
        phase = len(self.seen) * 0.2
        action[0, 0], action[0, 1] = 0.6 * np.cos(phase), 0.6 * np.sin(phase)
        return action


class Camera:
    """Puts a camera beside a simulated robot whose pictures stop coming between two times."""

    def __init__(self, robot: SimRobot, clock: SteppedClock, stall_ms: tuple[float, float]) -> None:
        self.clock, self.stall, self._read = clock, stall_ms, robot.read
        self.stamp_ns = 0
        robot.read = self.read  # type: ignore[method-assign]

    def read(self) -> Observation:
        measured = self._read()
        now_ns = self.clock.now_ns()
        if not self.stall[0] * MS <= now_ns < self.stall[1] * MS:
            self.stamp_ns = now_ns // (50 * MS) * 50 * MS
        picture = np.full((84, 84, 3), 50 + now_ns // (50 * MS) % 100, dtype=np.uint8)
        return replace(
            measured,
            values={**measured.values, "images.front": picture},
            stamps_ns={**measured.stamps_ns, "images.front": self.stamp_ns},
        )


@pytest.fixture
def clock():
    return SteppedClock()


@pytest.fixture
def interface():
    return sim.make_interface("lift")


@pytest.fixture
def robot(interface, clock):
    robot: Any = SimRobot(sim.RobotSim("lift"), interface.robot_spec, clock=clock)
    robot.sent = []
    write = robot.write
    robot.write = lambda command: (robot.sent.append((clock.now_ns(), command.values["joint_position"])), write(command))[1]
    return robot


def with_camera(clock, robot, stall_ms):
    interface: Any = sim.make_interface("lift", cameras=("front",))
    return interface, Camera(robot, clock, stall_ms)


def speeds(robot) -> np.ndarray:
    """(N,) largest joint speed of every command, rad/s."""
    return np.abs(np.diff(np.array([position for _, position in robot.sent]), axis=0)).max(1) / 0.01


@pytest.mark.parametrize(("stall_ms", "held", "late"), [(100, 0, True), (300, 2, True)])
def test_a_camera_that_stalls_for_a_while_is_skipped_or_held_for(clock, robot, stall_ms, held, late):
    interface, _ = with_camera(clock, robot, (1000, 1000 + stall_ms))
    executor = Circling(interface, clock)
    report = deploy(executor, interface, robot, episodes=1, clock=clock, config=DeployConfig(max_steps=60))
    assert report.episodes[0].ended_by == "time_limit" and report.stopped == "" and report.episodes[0].steps == 60
    told = report.policy["observations"]["images.front"]
    assert (told.get("held", 0) >= held) == bool(held) or held == told.get("held", 0) == 0
    assert bool(told.get("late")) == late and told["oldest_ms"] <= 200.0
    assert report.policy["holds"] == ({"images.front": told["held"]} if held else {})
    assert executor.resets == 1


def test_a_camera_that_stays_away_ends_the_episode_which_is_kept_and_then_the_deployment(clock, robot):
    interface, _ = with_camera(clock, robot, (1000, 1e9))
    ends = []

    class Recorder:
        def frame(self, frame):
            pass

        def end_episode(self, result):
            ends.append(result)

    executor = Circling(interface, clock)
    config = DeployConfig(max_steps=200, connect_timeout_s=1.0)
    report = deploy(executor, interface, robot, episodes=3, clock=clock, config=config, record=Recorder())
    assert [e.ended_by for e in report.episodes] == ["no images.front"] == [e.ended_by for e in ends]
    assert report.stopped.endswith("sent nothing new of images.front within 1 s")
    assert max(executor.seen) <= 1200 * MS  # nothing older than its budget was shown
    times = np.array([time for time, _ in robot.sent])[1:]
    assert speeds(robot)[times > 1500 * MS].max() == 0.0  # stands within 250 ms of the hold


def test_after_a_long_hold_the_policy_plans_anew(clock, robot):
    interface, _ = with_camera(clock, robot, (1000, 1600))
    executor = Circling(interface, clock)
    report = deploy(executor, interface, robot, episodes=1, clock=clock, config=DeployConfig(max_steps=60))
    assert executor.resets == 2 and report.episodes[0].steps == 60 and report.stopped == ""


def test_a_server_that_is_lost_holds_the_robot_and_latches_when_it_stays_away(interface, clock, robot):
    class Lost(Circling):
        def act(self, obs):
            action = super().act(obs)
            if len(self.seen) > 30:
                raise LinkError("the server went away")
            return action

    executor = Lost(interface, clock)
    report = deploy(executor, interface, robot, episodes=1, clock=clock, config=DeployConfig(max_steps=200))
    assert report.stopped == "expired" and report.policy["holds"]["link"] >= 10
    assert report.controller["stops"]["last_target_to_hold_ms"] <= 110.0
    assert report.controller["stops"]["command_to_standstill_ms"] <= 250.0


# ---------------------------------------------------------------- emergency stop


def test_an_emergency_stop_brakes_at_the_next_tick_and_stands_in_time(interface, clock, robot):
    operator = Operator()
    gate = make_gate(interface, operator=operator)
    executor = Circling(interface, clock)
    pressed = clock.every(1503 * MS, lambda: operator.press("key 'x'"))
    report = deploy(executor, interface, robot, episodes=2, clock=clock, gate=gate, config=DeployConfig(max_steps=200))
    pressed()
    stops = report.controller["stops"]
    assert report.stopped == "e_stop" and [e.ended_by for e in report.episodes] == ["e_stop"]
    assert 0.0 < stops["e_stop_to_command_ms"] <= 10.0 and stops["command_to_standstill_ms"] <= 250.0
    times = np.array([time for time, _ in robot.sent])[1:]
    assert speeds(robot)[times < 1500 * MS].max() > 0.1 and speeds(robot)[-1] == 0.0 and times[-1] <= 1760 * MS
    assert not operator.on_press  # nobody is told any more when the loop is closed


def test_nothing_moves_while_the_emergency_stop_is_pressed(interface, clock, robot):
    operator = Operator()
    operator.press("before")
    report = deploy(Circling(interface, clock), interface, robot, episodes=2, clock=clock, gate=make_gate(interface, operator=operator))
    assert report.stopped == "e_stop" and not robot.sent and report.episodes[0].steps == 0


# ---------------------------------------------------------------- start pose


def moved_away(interface, clock, robot):
    return tuple(np.array(interface.robot_spec.home_rad) + np.array([0.3, 0.0, -0.1, 0.0, 0.0, 0.0, -0.3]))


def test_the_robot_is_brought_to_its_start_pose_slowly_and_asks_once(interface, clock, robot):
    start, asked = moved_away(interface, clock, robot), []
    config = DeployConfig(max_steps=3, start_pose_rad=start)
    gate = make_gate(interface, config)
    report = deploy(
        Still(interface, clock), interface, robot, episodes=2, clock=clock, config=config, gate=gate,
        confirm=lambda what: (asked.append(what), True)[1],
    )  # fmt: skip
    path = np.array([position for _, position in robot.sent])
    assert len(asked) == 1 and "start pose" in asked[0] and [e.ended_by for e in report.episodes] == ["time_limit"] * 2
    arrived = int(np.abs(path - start).max(1).argmin())
    assert np.abs(path[arrived] - start).max() < 1e-6
    path = path[: arrived + 1]
    assert np.all(np.abs(np.diff(path, axis=0)).max(0) / 0.01 <= 0.1 * np.array(gate.velocity_cap) + 1e-9)
    for order, most in ((2, gate.config.acceleration_max_rad_s2), (3, gate.config.jerk_max_rad_s3)):
        assert np.all(np.abs(np.diff(path, order, axis=0)).max(0) / 0.01**order <= np.array(most) + 1e-6)
    assert set(report.gate["outcomes"]) <= {"pass", "hold"} and not report.gate["counts"].get("velocity")


def test_nobody_agrees_and_nothing_moves(interface, clock, robot):
    config = DeployConfig(start_pose_rad=moved_away(interface, clock, robot))
    report = deploy(Still(interface, clock), interface, robot, clock=clock, config=config, confirm=lambda what: False)
    assert "was not allowed to move to its start pose" in report.stopped and not robot.sent and not report.episodes


def test_a_robot_that_does_not_come_to_its_start_pose_is_told_of(interface, clock, robot):
    robot.write = lambda command: None
    config = DeployConfig(start_pose_rad=moved_away(interface, clock, robot), approach_speed=0.5)
    report = deploy(Still(interface, clock), interface, robot, clock=clock, config=config)
    assert report.stopped in ("frozen", "not_following") or "did not reach its start pose" in report.stopped


def test_start_poses_that_cannot_be_are_refused_before_anything_moves(interface, clock, robot):
    for pose in ((0.0, 0.0), (9.0,) * len(interface.robot_spec.joint_names)):
        with pytest.raises(InputError, match="start pose"):
            deploy(Still(interface, clock), interface, robot, clock=clock, config=DeployConfig(start_pose_rad=pose))
    with pytest.raises(InputError, match="approach_speed"):
        DeployConfig(approach_speed=0.0)
    assert not robot.sent


# ---------------------------------------------------------------- order and judgement


def test_a_chunked_policy_is_warm_before_the_robot_is_connected(interface, clock, robot):
    import policies

    spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=4)
    stats = {key: {"mean": np.zeros(t.shape), "std": np.ones(t.shape)} for key, t in interface.observation_spec.tensors.items()}
    policy: Any = policies.make("flow", spec, stats)
    order: list[str] = []
    sample, connect = policy.sample, robot.connect
    policy.sample = lambda *a, **k: (order.append("sample"), sample(*a, **k))[1]
    robot.connect = lambda timeout_s=10.0: (order.append("connect"), connect(timeout_s))[1]
    report = deploy(policy, interface, robot, scene=SimScene(robot), clock=clock, config=DeployConfig(max_steps=4))
    assert order.index("connect") >= 5 and order[: order.index("connect")] == ["sample"] * order.index("connect")
    assert report.readiness["chunks"] >= 3 and report.readiness["p95_ms"] > 0 and report.readiness["budget_ms"] == 50.0
    json.dumps(report.summary(), allow_nan=False)


def test_a_policy_whose_server_is_gone_is_told_before_the_robot_is_connected(interface, clock, robot):
    import policies

    robot.connect = lambda timeout_s=10.0: pytest.fail("the robot was connected")

    class Policy:
        spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=4)

        def encode(self, obs):
            raise LinkError("ws://gpu:1 cannot be reached")

    made: Any = policies.ChunkExecutor(Policy(), 1)  # type: ignore[arg-type]
    with pytest.raises(LinkError, match="cannot be reached"):
        deploy(made, interface, robot, clock=clock)


def test_without_a_scene_a_person_may_judge(interface, clock, robot):
    said = iter((True, False, None))
    report = deploy(
        Still(interface, clock), interface, robot, episodes=3, clock=clock, config=DeployConfig(max_steps=3),
        judge=lambda result: next(said),
    )  # fmt: skip
    assert [e.success for e in report.episodes] == [True, False, None] and (report.k, report.n) == (1, 2)
