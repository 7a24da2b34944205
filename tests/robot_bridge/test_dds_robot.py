"""A robot in a process of its own on loopback DDS: deployment, time-outs, a second publisher, killed policies."""

from __future__ import annotations

import signal
import time
from typing import Any

import numpy as np
import pytest

import sim
from robot_bridge import DdsRobot, DdsScene
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
from robot_bridge.dds.topics import RobotTopics
from robot_bridge.deploy import DeployConfig, deploy
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Command

EXPERT = """
import numpy as np, torch, sim
class Expert:
    def __init__(self, interface, spoil_at=0, task="lift"):
        self.expert, self.interface, self.spoil_at, self.ticks = sim.make_expert(task, "clean", 1), interface, spoil_at, 0
    def reset(self, ids=None, seeds=None):
        self.expert.reset(seeds=seeds)
    def act(self, obs):
        self.ticks += 1
        action = self.interface.action_spec.normalize(torch.as_tensor(np.asarray(self.expert.act(obs)), dtype=torch.float32))
        return action * float("nan") if self.ticks == self.spoil_at else action
"""


def until(done: Any, timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.005)
    raise AssertionError("did not happen in time")


class Observer:
    """Watches a robot without being able to command it."""

    def __init__(self, domain: int) -> None:
        self.node = Node("observer", domain=domain)
        self.states = self.node.subscription("/joint_states", "sensor_msgs/JointState")
        self.status = self.node.subscription("/sinew/scene/status", "std_msgs/String")
        self.said = ""

    def state(self) -> codec.JointState:
        self.states.take()
        assert self.states.wait(60.0)
        return codec.decode_joint_state(self.states.take()[-1].data)

    def position(self) -> np.ndarray:
        return np.array(self.state().position)

    def still(self) -> bool:
        return max(abs(v) for v in self.state().velocity) < 0.05

    def holding(self) -> bool:
        for sample in self.status.take():
            self.said = codec.decode(sample.data, "std_msgs/String").data
        return self.said == "holding"


@pytest.fixture
def observer(domain):
    observer = Observer(domain)
    yield observer
    observer.node.close()


def moving_policy(spawn: Any, observer: Observer, domain: int) -> Any:
    """A deploying process that moves the arm at this moment; begun anew where the machine was too busy for it."""
    told = ""
    for _ in range(8):
        policy = spawn(EXPERT + DEPLOY.replace("DOMAIN", str(domain)))
        if any(line.strip() == "8" for line in policy.stdout) and not observer.holding() and not observer.still():
            return policy
        policy.kill()
        told = policy.communicate()[1]
    raise AssertionError(f"no policy moved the robot: {told}")


@pytest.fixture
def interface():
    return sim.make_interface("lift")


@pytest.fixture
def robot(interface, domain):
    robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=domain)
    yield robot
    robot.close()


def expert(interface, **options) -> Any:
    namespace: dict[str, Any] = {}
    exec(EXPERT, namespace)
    return namespace["Expert"](interface, **options)


def test_deploys_over_the_network(serve, robot, interface):
    server = serve()
    scene = DdsScene(robot)
    for _ in range(8):  # begun anew where the machine was too busy for the robot
        report = deploy(expert(interface), interface, robot, seeds=[2, 9], scene=scene)
        if report.stopped not in ("robot_fault", "stalled", "stale_observation"):
            break
    assert report.stopped == "" and [e.seed for e in report.episodes] == [2, 9]
    assert report.n == 2 and report.k == 2, report.episodes
    assert report.controller["ticks"] > 100 and report.latency_us is not None and robot.dropped == 0
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0


def test_two_arms_over_the_network(serve, domain):
    if "handover" not in sim.TASKS:
        pytest.skip("task handover is not registered")
    serve("handover")
    interface = sim.make_interface("handover")
    robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=domain)
    report = deploy(expert(interface, task="handover"), interface, robot, seeds=[1], scene=DdsScene(robot))
    assert report.k == 1 and robot.read().values["gripper"].shape == (2,)
    robot.close()


def test_a_reset_is_the_same_episode_as_in_this_process(serve, robot, interface):
    serve()
    robot.connect(60.0)
    scene = DdsScene(robot)
    for seed in (5, 6, 5):
        scene.reset(seed)
        until(lambda: "pose.cube" in robot.read().values)
        values, local = robot.read().values, sim.RobotSim("lift", seed)
        assert np.allclose(values["joint_position"], local.joint_position, atol=0.02)
        assert np.allclose(values["pose.cube"][:2], local.poses["cube"][:2], atol=2e-3)
        assert until(lambda: scene.success() is False)
    with pytest.raises(InputError, match=r"did not start episode -3 within 0\.5 s"):
        scene.reset(-3, timeout_s=0.5)


def test_no_robot_is_said_in_seconds(robot, domain):
    with pytest.raises(InputError, match=rf"no robot answered within 0\.5 s on DDS domain {domain}, range LOCALHOST.*topics seen: none"):
        robot.connect(0.5)


def test_a_robot_with_other_joints_is_named(robot, domain):
    node = Node("other", domain=domain)
    states = node.publisher("/joint_states", "sensor_msgs/JointState")
    encoder = codec.JointStateEncoder(["joint1", "elbow"])
    until(lambda: states.subscribers)
    states.write(encoder.encode(time.time_ns(), [0.0, 0.0], [0.0, 0.0]))
    with pytest.raises(InputError, match=r"joint2, .*are not among those on DDS domain .*: joint1, elbow"):
        robot.connect(0.5)
    node.close()


def test_a_robot_that_takes_no_commands_is_told(robot, interface, domain):
    node = Node("mute", domain=domain)
    states = node.publisher("/joint_states", "sensor_msgs/JointState")
    names = interface.robot_spec.joint_names
    until(lambda: states.subscribers)
    states.write(codec.JointStateEncoder(names).encode(time.time_ns(), [0.0] * 7, [0.0] * 7))
    with pytest.raises(InputError, match=r"nothing took commands on /forward_position_controller/commands within 0\.5 s"):
        robot.connect(0.5)
    node.close()


def test_a_second_publisher_of_commands_is_refused(serve, robot, interface, domain):
    serve()
    robot.connect(60.0)
    rival = Node("rival", domain=domain)
    rival.publisher("/forward_position_controller/commands", "std_msgs/Float64MultiArray")
    until(lambda: robot.fault)
    with pytest.raises(SafetyStop, match="1 other publisher on /forward_position_controller/commands"):
        robot.write(Command(time.monotonic_ns(), 1, 0.1, {"joint_position": np.zeros(7)}))
    late = DdsRobot(interface.robot_spec, domain=domain, name="late")
    with pytest.raises(InputError, match="two would fight over the robot"):
        late.connect(20.0)
    late.close()
    rival.close()


def test_nothing_that_is_not_finite_is_ever_sent(robot):
    for bad in (np.full(7, np.nan), np.zeros(3)):
        with pytest.raises(SafetyStop, match="refused to send"):
            robot.write(Command(0, 1, 0.1, {"joint_position": bad}))


def test_joint_states_out_of_order_or_damaged_do_not_count_as_fresh(robot, interface, domain):
    node = Node("states", domain=domain)
    states = node.publisher("/joint_states", "sensor_msgs/JointState")
    until(lambda: states.subscribers)
    encoder = codec.JointStateEncoder([*reversed(interface.robot_spec.joint_names), "gripper"])
    now_ns = time.time_ns()
    states.write(encoder.encode(now_ns, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.04], [0.0] * 8))
    first = until(lambda: (o := robot.read()).seq and o)
    assert np.array_equal(first.values["joint_position"], np.arange(7.0)) and first.values["gripper"] == 0.04  # by name, not by place
    states.write(encoder.encode(now_ns - 100, [9.0] * 8, [0.0] * 8))
    empty = np.zeros(0)
    header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=now_ns // 10**9 + 1, nanosec=0), frame_id="")
    states.send(make("sensor_msgs/JointState", header=header, name=["a", "b"], position=np.zeros(1), velocity=empty, effort=empty))
    until(lambda: robot.read() and robot.dropped == 2)
    assert robot.read().seq == first.seq and robot.read().stamp_ns == first.stamp_ns
    node.close()


DEPLOY = """
from robot_bridge import DdsRobot, DdsScene
from robot_bridge.deploy import deploy
interface = sim.make_interface("lift")
robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=DOMAIN)
report = deploy(Expert(interface), interface, robot, seeds=[0, 1], scene=DdsScene(robot), on_frame=lambda f: print(f.step, flush=True))
print("stopped:", report.stopped, flush=True)
robot.close()
"""


def test_a_killed_policy_leaves_a_robot_that_holds(serve, spawn, observer, interface, domain):
    """kill -9 while the arm moves: the robot's own watchdog brings it to rest, and the next client can go on."""
    serve()
    policy = moving_policy(spawn, observer, domain)
    policy.send_signal(signal.SIGKILL)
    policy.wait()
    until(observer.holding)
    until(observer.still)
    rest = observer.position()
    time.sleep(0.5)
    assert np.abs(observer.position() - rest).max() < 0.02
    robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=domain)
    report = deploy(expert(interface), interface, robot, seeds=[0], scene=DdsScene(robot))
    robot.close()
    assert report.k == 1


def test_a_policy_process_that_was_frozen_does_not_go_on_by_itself(serve, spawn, observer, domain):
    """SIGSTOP for 2 s while the arm moves: the robot holds; after SIGCONT the gate is latched and the process ends."""
    serve()
    policy = moving_policy(spawn, observer, domain)
    policy.send_signal(signal.SIGSTOP)
    until(observer.holding)
    until(observer.still)
    rest = observer.position()
    time.sleep(1.5)
    policy.send_signal(signal.SIGCONT)
    out, err = policy.communicate(timeout=120)
    assert "stopped: stalled" in out, out + err
    assert np.abs(observer.position() - rest).max() < 0.02


def test_nan_over_the_network_holds(serve, robot, interface):
    serve()
    report = deploy(expert(interface, spoil_at=9), interface, robot, seeds=[0, 1], scene=DdsScene(robot))
    assert report.stopped == "non_finite" and len(report.episodes) == 1
    until(lambda: np.abs(robot.read().values["joint_velocity"]).max() < 0.05)
    assert np.isfinite(robot.read().values["joint_position"]).all()


def test_a_robot_that_disappears_stops_the_deployment(serve, robot, interface):
    server = serve()
    killed = []

    def kill(frame):
        if frame.step == 8:
            server.send_signal(signal.SIGKILL)
            killed.append(True)

    report = deploy(expert(interface), interface, robot, seeds=[0, 1], scene=DdsScene(robot), on_frame=kill)
    assert killed and report.stopped == "stale_observation" and report.gate["counts"]["stale_observation"] > 0


def test_trajectory_commands_move_the_robot_too(serve, interface, domain):
    serve()
    robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=domain, topics=RobotTopics(command="trajectory"))
    report = deploy(expert(interface), interface, robot, seeds=[1], scene=DdsScene(robot), config=DeployConfig(controller_rate_hz=50.0))
    robot.close()
    assert report.k == 1


def test_compressed_and_raw_images_arrive(domain, interface):
    node = Node("camera", domain=domain)
    raw = node.publisher("/front/image_raw", "sensor_msgs/Image")
    jpeg = node.publisher("/front/image_raw/compressed", "sensor_msgs/CompressedImage")
    states = node.publisher("/joint_states", "sensor_msgs/JointState")
    node.subscription("/forward_position_controller/commands", "std_msgs/Float64MultiArray")
    encoder = codec.JointStateEncoder(interface.robot_spec.joint_names)
    image = np.zeros((480, 640, 3), dtype=np.uint8)
    image[..., 0] = 180
    from robot_bridge.images import encode_jpeg

    header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=0, nanosec=1), frame_id="")
    small = make("sensor_msgs/CompressedImage", header=header, format="jpeg", data=np.frombuffer(encode_jpeg(image), dtype=np.uint8))
    for compressed in (False, True):
        robot = DdsRobot(interface.robot_spec, cameras=["front"], topics=RobotTopics(compressed=compressed), domain=domain, name="eye")

        def publish(robot: DdsRobot) -> int:
            states.write(encoder.encode(time.time_ns(), [0.0] * 7, [0.0] * 7))
            raw.write(codec.encode_image(image, 1, ""))
            jpeg.send(small)
            return robot.read().seq

        while not publish(robot):
            time.sleep(0.01)
        robot.connect(60.0)
        while publish(robot) and "images.front" not in robot.read().values:
            time.sleep(0.01)
        seen = robot.read().values["images.front"]
        assert seen.shape == image.shape and np.abs(seen.astype(int) - image).max() < 10
        robot.close()
    node.close()
