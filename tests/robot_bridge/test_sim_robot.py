"""The simulated robot in this process: measurements, watchdog, reset."""

from __future__ import annotations

import time

import numpy as np
import pytest

from robot_bridge.clock import SteppedClock, sleep
from robot_bridge.sim_robot import SimRobot, SimScene
from sinew.errors import InputError
from sinew.protocols import Command


@pytest.fixture
def robot(spec, physics):
    robot = SimRobot(physics, spec, clock=SteppedClock(), cameras=("front",), camera_rate_hz=20.0)
    robot.connect()
    return robot


def command(robot, target, ttl_s=0.1):
    return Command(robot._clock.now_ns(), 1, ttl_s, {"joint_position": np.asarray(target, dtype=float), "gripper": np.array(0.01)})


def test_measures_every_period(robot):
    first = robot.read()
    sleep(robot._clock, 0.1)
    second = robot.read()
    assert second.seq - first.seq == 10 and second.stamp_ns == 100_000_000
    assert set(second.values) == {"joint_position", "joint_velocity", "gripper", "pose.cube", "images.front"}
    assert second.values["images.front"].shape == (84, 84, 3) and second.values["pose.cube"].shape == (7,)
    second.values["joint_position"][:] = 9.0
    sleep(robot._clock, 0.01)
    assert (robot.read().values["joint_position"] != 9.0).all()  # a measurement is the reader's own


def test_follows_commands_until_they_are_too_old(robot, physics):
    robot.write(command(robot, [0.1, 0.1, 0.1]))
    sleep(robot._clock, 0.05)
    assert not robot.holding and np.allclose(physics.targets[-1], 0.1)
    sleep(robot._clock, 0.2)
    assert robot.holding and np.allclose(physics.joint_position, 0.1, atol=1e-4)
    robot.write(command(robot, [0.5, 0.5, 0.5], ttl_s=-1.0))
    sleep(robot._clock, 0.1)
    assert np.allclose(physics.targets[-1], 0.1)  # a command that is dead on arrival is not followed


def test_stop_holds_where_it_measures(robot, physics):
    robot.write(command(robot, [1.0, 1.0, 1.0]))
    sleep(robot._clock, 0.02)
    robot.stop("test")
    here = physics.joint_position.copy()
    sleep(robot._clock, 0.1)
    assert np.allclose(physics.joint_position, here, atol=1e-12) and robot.stopped == "test"


def test_refuses_what_is_not_a_command(robot):
    for bad in ([np.nan, 0, 0], [0.0, 0.0]):
        with pytest.raises(InputError, match="3 finite joint targets"):
            robot.write(command(robot, bad))


def test_reset_starts_the_episode_of_a_seed(robot, physics):
    scene = SimScene(robot)
    robot.write(command(robot, [0.4, 0.0, 0.0]))
    sleep(robot._clock, 0.2)
    assert scene.success() is True
    scene.reset(7)
    first = robot.read().values["joint_position"]
    assert scene.success() is False and physics.seed == 7
    sleep(robot._clock, 0.05)
    assert np.array_equal(robot.read().values["joint_position"], first)  # the old command is forgotten


def test_broken_physics_are_told_to_the_reader(spec, physics):
    robot = SimRobot(physics, spec)
    physics.step = None
    robot.connect()
    with pytest.raises(TypeError):
        for _ in range(500):
            robot.read()
            time.sleep(0.01)
    robot.close()
