"""Every kind of controller: the messages it sends, what it does when nothing comes, and stand-in robots that obey over DDS."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_bridge.contract import Sink
from robot_bridge.controllers import inactive, make_controllers
from robot_bridge.dds import codec
from robot_bridge.robots import load_robot
from robot_bridge.robots.kinematics import jacobians
from robot_bridge.robots.served import serve_robot
from robot_bridge.ros_robot import RosRobot
from robot_bridge.streams import SILENCE_S, TRACKING_PER_S
from robot_bridge.transport import open_transport
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Command

UR5E = load_robot("ur5e")
HOME = np.array(UR5E.spec.home_rad)
MS = 1_000_000


class Network:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.goals: list[Any] = []
        self.problem = ""

    def publisher(self, topic, message, profile):
        def write(payload):
            self.sent.append((topic, codec.decode(bytes(payload), message)))

        return SimpleNamespace(topic=topic, subscribers=1, write=write, send=lambda m: self.sent.append((topic, m)))

    def action_client(self, action, kind):
        def send_goal(goal, **_):
            if self.problem:
                raise InputError(self.problem)
            self.goals.append(goal)
            return SimpleNamespace(done=True, cancel=lambda: True)

        return SimpleNamespace(action=action, ready=True, send_goal=send_goal)

    @property
    def last(self):
        return self.sent[-1][1]


def until(done, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def command(joints, at_ms=0, seq=1, **values) -> Command:
    return Command(at_ms * MS, seq, 0.1, {"joint_position": np.asarray(joints, dtype=float), **values})


def controllers(arm="", gripper="", name="ur5e"):
    network = Network()
    return network, make_controllers(load_robot(name).with_controller(arm, gripper), network)  # type: ignore[arg-type]


def test_positions_go_out_in_the_controllers_order_and_units():
    network, (arm, grip) = controllers("position", "gripper_position")
    arm.write(command(HOME), None)
    assert np.allclose(network.last.data, HOME) and network.sent[-1][0] == "/forward_position_controller/commands"
    grip.write(command(HOME, gripper=np.float64(0.085)), None)
    assert np.allclose(network.last.data, [0.0])  # open: the knuckle at 0
    grip.write(command(HOME, gripper=np.float64(0.0)), None)
    assert np.allclose(network.last.data, [0.8])
    count = len(network.sent)
    grip.write(command(HOME), None)
    assert len(network.sent) == count  # no word on the gripper, no message
    arm.stop(HOME + 0.1, None)
    assert np.allclose(network.last.data, HOME + 0.1)


def test_sinks_of_one_topic_are_one_message_and_degrees_are_sent_as_degrees():
    joints = UR5E.spec.joint_names
    sinks = [
        Sink(value="joint_position", kind="position", topic="/all", joints=joints, unit="deg"),
        Sink(value="gripper", kind="position", topic="/all", joints=("finger",), unit="mm"),
    ]
    network = Network()
    (both,) = make_controllers(UR5E, network, sinks)  # type: ignore[arg-type]
    both.write(command(HOME, gripper=np.float64(0.05)), None)
    assert np.allclose(network.last.data, [*np.rad2deg(HOME), 50.0])


def test_two_arms_are_sent_to_two_controllers():
    network, made = controllers(name="aloha")
    joints, openings = np.arange(12) * 0.01, np.array([0.05, 0.1])
    for controller in made:
        controller.write(command(joints, gripper=openings), None)
    by_topic = {topic: message for topic, message in network.sent}
    assert np.allclose(by_topic["/follower_right/arm_controller/joint_trajectory"].points[0].positions, joints[6:])
    assert np.allclose(by_topic["/follower_left/gripper_controller/joint_trajectory"].points[0].positions, [0.025])


def test_a_single_target_is_a_point_due_when_the_next_one_comes():
    network, (arm, _) = controllers("trajectory")
    for at_ms in (1000, 1020):
        arm.write(command(HOME, at_ms), None)
    (point,) = network.last.points
    assert point.time_from_start.nanosec == 20 * MS and not len(point.velocities)  # a point with a speed would not end at rest
    assert tuple(network.last.joint_names) == UR5E.spec.joint_names and network.last.header.stamp.sec == 0


def test_a_path_carries_velocities_and_times_and_ends_at_rest():
    network, (arm, _) = controllers("trajectory")
    times = np.linspace(0.01, 0.5, 50)
    path = HOME + np.outer(np.sqrt(times), np.ones(6))
    speed = np.vstack((np.ones((49, 6)), np.zeros((1, 6))))
    arm.write(command(HOME, joint_path=path, joint_path_velocity=speed, path_times_s=times), None)
    points = network.last.points
    told = [p.time_from_start.sec + 1e-9 * p.time_from_start.nanosec for p in points]
    assert len(points) == 20 and told[0] == pytest.approx(0.01) and told[-1] == pytest.approx(0.5) and (np.diff(told) > 0).all()
    assert (
        np.allclose(points[0].velocities, 1.0) and np.allclose(points[-1].velocities, 0.0) and np.allclose(points[-1].positions, path[-1])
    )


def test_velocities_follow_the_stream_and_what_the_arm_lags_behind():
    network, (arm, _) = controllers("velocity")
    arm.write(command(HOME + 0.01, joint_velocity=np.full(6, 0.2)), HOME)
    assert np.allclose(network.last.data, 0.2 + TRACKING_PER_S * 0.01)
    arm.write(command(HOME, joint_velocity=np.full(6, 100.0)), HOME)
    assert np.allclose(network.last.data, UR5E.spec.velocity_max_rad_s)
    arm.write(command(HOME, 1000), HOME)
    arm.write(command(HOME + 0.001, 1010), HOME + 0.001)
    assert np.allclose(network.last.data, 0.1)  # by differences where no velocity is told
    arm.stop(HOME, None)
    assert not network.last.data.any()


@pytest.mark.parametrize("kind", ["velocity", "twist"])
def test_silence_is_broken_by_zeros_once(kind):
    network, (arm, _) = controllers(kind)
    arm.write(command(HOME + 0.01, joint_velocity=np.full(6, 0.2)), HOME)
    count, now_ns = len(network.sent), time.monotonic_ns()
    arm.watch(now_ns - round(1e9 * SILENCE_S))
    assert len(network.sent) == count
    arm.watch(now_ns + round(2e9 * SILENCE_S))
    arm.watch(now_ns + round(4e9 * SILENCE_S))
    assert len(network.sent) == count + 1
    told = network.last.data if kind == "velocity" else network.last.twist.linear.x
    assert not np.any(told)


@pytest.mark.parametrize("name", ["ur5e", "aloha"])
def test_a_twist_is_the_jacobian_times_the_velocities_in_the_frame_of_the_base(name):
    config = load_robot(name)
    network, made = controllers("twist", name=name)
    home = np.array(config.spec.home_rad)
    speed = np.linspace(-0.1, 0.2, len(home))
    for controller in made[: config.arms]:
        controller.write(command(home, joint_velocity=speed), home)
    for i, (_, message) in enumerate(network.sent[-config.arms :]):
        world = jacobians(config, home.tolist())[i] @ speed
        sign = -1.0 if (name, i) == ("aloha", 1) else 1.0  # the right base is turned by half a turn about z
        told = [getattr(v, axis) for v in (message.twist.linear, message.twist.angular) for axis in "xyz"]
        assert np.allclose(told, world * [sign, sign, 1.0, sign, sign, 1.0])


def test_grippers_get_a_goal_when_the_opening_changes():
    network, (_, grip) = controllers(gripper="gripper_action")
    for opening in (0.085, 0.0849, 0.0845, 0.02):
        count = len(network.goals)
        grip.write(command(HOME, gripper=np.float64(opening)), None)
        if opening in (0.085, 0.02):
            until(lambda n=count: len(network.goals) == n + 1)
    assert [round(g.command.position, 6) for g in network.goals] == [0.0, round(0.8 * (1 - 0.02 / 0.085), 6)]
    assert network.goals[0].command.max_effort == 50.0
    grip.close()
    network, (_, grip) = controllers(gripper="parallel_gripper_action")
    grip.write(command(HOME, gripper=np.float64(0.0)), None)
    until(lambda: network.goals)
    assert list(network.goals[0].command.name) == list(grip.sinks[0].joints) and network.goals[0].command.position[0] == 0.8
    grip.close()


def test_goals_that_cannot_be_sent_are_told_and_control_goes_on():
    network, (arm, _) = controllers("trajectory_action")
    network.problem = "action /x is served by Fast DDS, whose actions cannot be reached; use a topic"
    arm.write(command(HOME), None)
    until(lambda: arm.problem == network.problem)
    arm.write(command(HOME + 0.1), None)
    arm.stop(HOME, None)
    arm.close()


# ---------------------------------------------------------------- over DDS


@pytest.fixture
def stand_in(domain):
    """Serve a robot on `domain` in a thread; gives a connected robot."""
    ends: list[Any] = []

    def start(config, served=None, connect=True):
        quit_event, up = threading.Event(), threading.Event()
        options: dict[str, Any] = {"domain": domain, "quit_event": quit_event, "ready": lambda line: up.set()}
        thread = threading.Thread(target=lambda: serve_robot(served or config, **options))
        thread.start()
        assert up.wait(30)
        robot = RosRobot(config, open_transport("dds", "tester", domain=domain), cameras=())
        ends.append((robot, quit_event, thread))
        if connect:
            robot.connect(60.0)
        return robot

    yield start
    for robot, quit_event, thread in ends:
        robot.close()
        quit_event.set()
        thread.join()


@pytest.mark.parametrize(
    ("name", "arm", "gripper"),
    [
        ("ur5e", "position", "gripper_action"),
        ("ur5e", "twist", "gripper_position"),
        ("so101", "velocity", "parallel_gripper_action"),
        ("xarm7", "trajectory_action", "gripper_trajectory"),
        ("aloha", "trajectory", "gripper_trajectory"),
    ],
)
def test_a_stand_in_robot_obeys_each_kind(stand_in, name, arm, gripper):
    config = load_robot(name).with_controller(arm, gripper)
    robot = stand_in(config)
    values = robot.read().values
    start, opening = values["joint_position"], np.atleast_1d(values["gripper"])
    goal, grip = start + 0.05, opening * 0 + config.spec.gripper_low_m + 0.01
    share, seq = 0.0, 0

    def there() -> bool:
        nonlocal share, seq
        share, seq = min(share + 0.02, 1.0), seq + 1
        reference = {"gripper": grip if len(grip) > 1 else grip[0]}
        robot.write(command(start + share * (goal - start), time.monotonic_ns() // MS, seq, **reference))
        time.sleep(0.01)
        now = robot.read().values
        near = np.abs(now["joint_position"] - goal).max() < 0.012
        return bool(near and np.abs(np.atleast_1d(now["gripper"]) - grip).max() < 2e-3)

    until(there, 60.0)
    assert robot.fault == ""
    robot.stop("test")


def test_an_inactive_controller_is_named_with_the_remedy(stand_in):
    served = load_robot("ur5e")
    robot = stand_in(served.with_controller("trajectory"), served=served, connect=False)
    until(lambda: "/controller_manager/list_controllers" in robot.node.services())
    with pytest.raises(InputError, match=r"controller scaled_joint_trajectory_controller is inactive in /controller_manager \(active: "):
        robot.connect(1.0)
    assert "--activate scaled_joint_trajectory_controller" in robot.why_still()
    assert inactive(robot.node, served.contract.sinks) == ""


def test_a_second_commander_holds_the_robot(stand_in, domain):
    robot = stand_in(load_robot("so101"))
    rival = open_transport("dds", "rival", domain=domain)
    rival.publisher("/forward_gripper_position_controller/commands", "std_msgs/Float64MultiArray")
    until(lambda: robot.fault)
    with pytest.raises(SafetyStop, match="1 other publisher on /forward_gripper_position_controller/commands"):
        robot.write(command(load_robot("so101").spec.home_rad))
    rival.close()
