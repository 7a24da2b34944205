"""What a robot on the network may do wrong, told in one line: other types, other clocks, controllers that nobody runs."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from robot_bridge.dds import codec
from robot_bridge.robots import load_robot
from robot_bridge.ros_robot import RosRobot
from robot_bridge.transport import open_transport
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Command

CONFIG = load_robot("ros2_control")
NAMES = CONFIG.spec.joint_names


@pytest.fixture
def network(domain):
    node = open_transport("dds", "driver", domain=domain)
    robots = []

    def robot(config=CONFIG, **options):
        while robots:  # two would be rivals
            robots.pop().close()
        robots.append(RosRobot(config, open_transport("dds", "tester", domain=domain), **options))
        return robots[-1]

    yield node, robot
    for one in robots:
        one.close()
    node.close()


def driver(node, robot, ahead_s=0.0, names=NAMES, takes=True):
    """A thread's worth of a driver: a function that publishes one joint state now."""
    states = node.publisher("/joint_states", "sensor_msgs/JointState")
    if takes:
        node.subscription(CONFIG.contract.sinks[0].topic, "std_msgs/Float64MultiArray")
    encoder = codec.JointStateEncoder(names)

    def tick():
        states.write(encoder.encode(time.time_ns() + round(1e9 * ahead_s), [0.1] * len(names), [0.0] * len(names)))
        time.sleep(0.01)
        return robot.read()

    return tick


def connected(robot, tick, timeout_s=30.0):
    """Connect while joint states keep coming."""
    import threading

    done = threading.Event()

    def play():
        while not done.is_set():
            tick()

    thread = threading.Thread(target=play)
    thread.start()
    try:
        robot.connect(timeout_s)
    finally:
        done.set()
        thread.join()


def test_a_robot_is_read_and_commanded_by_its_contract(network):
    node, make = network
    robot = make()
    heard = node.subscription(CONFIG.contract.sinks[0].topic, "std_msgs/Float64MultiArray")
    tick = driver(node, robot, takes=False)
    connected(robot, tick)
    while (seen := tick()).seq < 3:
        pass
    assert np.allclose(seen.values["joint_position"], 0.1) and seen.stamps_ns["joint_position"] == seen.stamp_ns
    assert abs(time.monotonic_ns() - seen.stamp_ns) < 30e9 and robot.path_points == 0
    robot.write(Command(time.monotonic_ns(), 1, 0.1, {"joint_position": np.full(6, 0.2)}))
    assert heard.wait(20.0) and np.allclose(codec.decode_doubles(heard.take()[-1].data), 0.2)
    for bad in (np.full(6, np.nan), np.zeros(5)):
        with pytest.raises(SafetyStop, match="refused to send"):
            robot.write(Command(time.monotonic_ns(), 2, 0.1, {"joint_position": bad}))
    with pytest.raises(SafetyStop, match="refused to send"):
        robot.write(Command(time.monotonic_ns(), 3, 0.1, {"joint_position": np.zeros(6), "joint_velocity": np.full(6, np.inf)}))


def test_another_type_on_a_topic_is_named(network):
    node, make = network
    robot = make()
    node.publisher("/joint_states", "std_msgs/Float64MultiArray")
    with pytest.raises(
        InputError,
        match="topic /joint_states carries std_msgs/Float64MultiArray, the contract of ros2_control expects sensor_msgs/JointState",
    ):
        robot.connect(2.0)


@pytest.mark.parametrize(("ahead_s", "way"), [(3600.0, "ahead of"), (-3600.0, "behind")])
def test_clocks_that_disagree_are_told_unless_the_contract_goes_by_receipt(network, ahead_s, way):
    node, make = network
    robot = make()
    with pytest.raises(InputError, match=rf"the clock behind /joint_states is 36\d\d\.\d s {way} this machine's: synchronise them"):
        connected(robot, driver(node, robot, ahead_s))
    by_receipt = tuple(replace(source, stamp="receipt") for source in CONFIG.contract.sources)
    patient = make(replace(CONFIG, contract=replace(CONFIG.contract, sources=by_receipt)))
    connected(patient, driver(node, patient, ahead_s, takes=False))
    assert np.allclose(patient.read().values["joint_position"], 0.1)


def test_joints_that_are_not_there_and_cameras_that_are_not_known_are_named(network):
    node, make = network
    robot = make()
    with pytest.raises(InputError, match="joints joint5, joint6 of robot ros2_control are not among those"):
        connected(robot, driver(node, robot, names=(*NAMES[:4], "tail")), 2.0)
    with pytest.raises(InputError, match="robot 'ros2_control' has no camera 'front'; its contract has none"):
        make(cameras=("front",))


def test_a_controller_that_leaves_is_told_and_nothing_is_sent(network, domain):
    node, make = network
    robot = make()
    taker = open_transport("dds", "controller", domain=domain)
    taker.subscription(CONFIG.contract.sinks[0].topic, "std_msgs/Float64MultiArray")
    tick = driver(node, robot, takes=False)
    connected(robot, tick)
    taker.close()
    end = time.monotonic() + 30.0
    while not robot.fault:
        assert time.monotonic() < end
        tick()
    with pytest.raises(SafetyStop, match="nothing takes commands on /forward_position_controller/commands any more"):
        robot.write(Command(time.monotonic_ns(), 1, 0.1, {"joint_position": np.zeros(6)}))
    assert "nothing takes commands on /forward_position_controller/commands any more" in robot.why_still()
