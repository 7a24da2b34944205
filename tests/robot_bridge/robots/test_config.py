"""A robot driven through any of its controllers: what is sent is what a recording of that controller's topics is read as."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_bridge.controllers import make_controllers
from robot_bridge.dds import codec
from robot_bridge.readers import reader
from robot_bridge.robots import ROBOTS, RobotConfig, load_robot
from sinew.protocols import Command

READ_BACK = ("position", "trajectory", "gripper_position", "gripper_trajectory")
"""Kinds that send positions on a topic."""


def kinds(config: RobotConfig, value: str) -> list[str]:
    sinks = (*config.contract.sinks, *config.alternatives)
    return list(dict.fromkeys(sink.kind for sink in sinks if sink.value == value))


TABLE = [
    (name, arm, gripper)
    for name in ROBOTS
    for arm in kinds(load_robot(name), "joint_position")
    for gripper in kinds(load_robot(name), "gripper") or [""]
    if arm != "twist" or load_robot(name).tools  # refused, which test_controllers.py shows
]


class Network:
    """A transport that keeps what is sent on each topic."""

    def __init__(self) -> None:
        self.sent: dict[str, bytes] = {}

    def publisher(self, topic: str, message: str, profile: Any) -> Any:
        def write(payload: Any) -> None:
            self.sent[topic] = bytes(payload)

        return SimpleNamespace(topic=topic, subscribers=1, write=write, send=lambda m: write(codec.encode(m)))

    def action_client(self, action: str, kind: str) -> Any:
        return SimpleNamespace(action=action, ready=True, send_goal=lambda goal, **_: SimpleNamespace(done=True, cancel=lambda: True))


@pytest.mark.parametrize(("name", "arm", "gripper"), TABLE)
def test_what_a_controller_is_sent_is_what_its_recording_holds(name, arm, gripper):
    config = load_robot(name).with_controller(arm, gripper)
    contract, spec = config.contract, config.spec
    assert {s.kind for s in contract.sinks if s.value == "joint_position"} == {arm}
    assert {s.kind for s in contract.sinks if s.value == "gripper"} == ({gripper} if gripper else set())
    rng = np.random.default_rng(0)
    joints = rng.uniform(spec.position_low_rad, spec.position_high_rad)
    openings = rng.uniform(spec.gripper_low_m, spec.gripper_high_m, sum(s.value == "gripper" for s in contract.sinks))
    network: Any = Network()
    made = make_controllers(config, network)
    values = {"joint_position": joints} | ({"gripper": openings if len(openings) > 1 else openings[0]} if gripper else {})
    for controller in made:
        controller.write(Command(1, 1, 0.1, values), joints)
        controller.close()
    # what the robot is measured to do stands for what is on no topic
    recorded: dict[str, np.ndarray] = {"joint_position": joints, "gripper": openings}
    for key in ("command.joint_position", "command.gripper"):
        parts = [source for source in contract.sources if source.key == key]
        kind = arm if key.endswith("joint_position") else gripper
        assert bool(parts) == (kind in READ_BACK)
        if parts:
            found = [reader(s.message, [s])(network.sent[s.topic])[1][0][1] for s in parts]
            recorded[key] = np.concatenate([np.atleast_1d(value) for value in found])
    if contract.action is not None:
        assert np.allclose(contract.recorded_action(recorded), [*joints, *openings], atol=1e-6)
        names = [
            label.removesuffix(".position")
            for value in contract.action_values
            for s in contract.sources
            if s.key == value
            for label in s.labels
        ]
        assert names[: len(joints)] == list(contract.action.names[: len(joints)])


@pytest.mark.parametrize("name", list(ROBOTS))
def test_the_usual_controllers_chosen_by_name_change_nothing(name):
    config = load_robot(name)
    grippers = [s.kind for s in config.contract.sinks if s.value == "gripper"]
    assert config.with_controller(config.contract.sinks[0].kind, *grippers[:1]) == config
    away = config.with_controller("velocity")
    assert away.with_controller(config.contract.sinks[0].kind).contract.hash() == config.contract.hash() != away.contract.hash()
