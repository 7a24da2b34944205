"""What the doctor finds on a robot's network: each problem is made, and told with its remedy."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from robot_bridge.dds import codec, local
from robot_bridge.dds.local import Process
from robot_bridge.dds.messages import blank, make
from robot_bridge.dds.node import Node
from robot_bridge.diagnosis import Survey, survey, unmatched
from robot_bridge.transport import DEFAULT, LATCHED, SENSOR, Endpoint, Sample
from sinew.cli import doctor

COMMANDS = "/forward_position_controller/commands"


@pytest.fixture
def nodes(domain: int) -> Iterator[tuple[Node, Node, Node]]:
    made = Node("robot", domain=domain), Node("rival", domain=domain), Node("doctor", domain=domain)
    yield made
    for node in made:
        node.close()


def look(node: Node, **options: Any) -> Survey:
    return survey(node, settle_s=0.5, watch_s=options.pop("watch_s", 0.2), **options)


def told(found: Survey, part: str) -> str:
    """The one problem that has `part` in it, with its remedy."""
    (problem,) = [each for each in found.problems if part in each.what]
    return f"{problem.what} -> {problem.remedy}"


def controllers(node: Node, **states: str) -> None:
    listed = [blank("controller_manager_msgs/ControllerState", name=name, state=state) for name, state in states.items()]
    response = make("controller_manager_msgs/ListControllers_Response", controller=listed)
    node.server("/controller_manager/list_controllers", "controller_manager_msgs/ListControllers", lambda _: response)


@contextmanager
def publishing(node: Node) -> Iterator[None]:
    """Joint states at 100 Hz."""
    publisher, encoder, done = node.publisher("/joint_states", "sensor_msgs/JointState"), codec.JointStateEncoder(["a"]), threading.Event()

    def publish() -> None:
        while not done.wait(0.01):
            publisher.write(encoder.encode(time.time_ns(), [0.0], [0.0]))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_robot_that_is_well(nodes):
    robot, _, own = nodes
    robot.subscription(COMMANDS, "std_msgs/Float64MultiArray")
    controllers(robot, joint_state_broadcaster="active", forward_position_controller="active", joint_trajectory_controller="inactive")
    with publishing(robot):
        found = look(own, watch_s=2.0)
    assert found.problems == [] and found.nodes["/robot"] == "Cyclone DDS"
    assert found.controllers and found.controllers["joint_trajectory_controller"] == "inactive"
    states = next(topic for topic in found.topics if topic.name == "/joint_states")
    assert states.publishers == ["/robot"] and states.rate_hz and states.behind_s is not None
    commands = next(topic for topic in found.topics if topic.name == COMMANDS)
    assert commands.publishers == [] and commands.subscribers == ["/robot"]
    assert json.loads(json.dumps(found.as_json()))["domain"] == own.domain


def test_types_and_qos_that_do_not_meet_and_rivals(nodes):
    robot, rival, own = nodes
    robot.publisher("/pose", "geometry_msgs/PoseStamped")
    rival.subscription("/pose", "geometry_msgs/Pose")
    robot.publisher("/wrench", "geometry_msgs/WrenchStamped", SENSOR)
    rival.subscription("/wrench", "geometry_msgs/WrenchStamped", DEFAULT)
    robot.publisher(COMMANDS, "std_msgs/Float64MultiArray")
    rival.publisher(COMMANDS, "std_msgs/Float64MultiArray")
    found = look(own)
    assert "geometry_msgs/Pose, geometry_msgs/PoseStamped" in told(found, "/pose")
    assert "/rival hears nothing of /robot on /wrench: the publisher is best effort" in told(found, "/wrench")
    rivals = told(found, "2 publishers on command topic")
    assert "/rival" in rivals and "/robot" in rivals and "stop all but one" in rivals
    assert "joint_state_broadcaster" in told(found, "nobody publishes sensor_msgs/JointState")


def test_controllers_that_take_no_commands(nodes):
    robot, _, own = nodes
    controllers(robot, joint_state_broadcaster="active", joint_trajectory_controller="inactive")
    line = told(look(own), "no controller takes commands")
    assert "joint_trajectory_controller is inactive" in line and "--activate joint_trajectory_controller" in line


def test_a_silent_joint_state_topic(nodes):
    robot, _, own = nodes
    robot.publisher("/joint_states", "sensor_msgs/JointState")
    assert "/joint_states has a publisher and is silent" in told(look(own), "silent")


class Skewed:
    """A transport whose samples were stamped by a clock that is off."""

    def __init__(self, node: Node, seconds: float) -> None:
        self._node, self._seconds = node, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def subscription(self, *arguments: Any) -> Any:
        inner, seconds = self._node.subscription(*arguments), self._seconds

        class Late:
            def take(self) -> list[Sample]:
                return [Sample(sample.data, sample.source_ns - int(seconds * 1e9)) for sample in inner.take()]

        return Late()


@pytest.mark.parametrize(("seconds", "way"), [(3600.0, "behind"), (-3600.0, "ahead of")])
def test_clocks_that_disagree(nodes, seconds, way):
    robot, _, own = nodes
    with publishing(robot):
        line = told(look(Skewed(own, seconds), watch_s=2.0), "this clock")  # type: ignore[arg-type]
    assert re.search(rf"stamps of /joint_states \(/robot\) are 3[56]\d\d\.\d\d s {way} this clock -> .*chronyc", line)


@pytest.mark.parametrize(
    ("reach", "process", "words"),
    [
        ("LOCALHOST", (5, 0, True, False), "driver .* uses multicast while we keep to LOCALHOST -> run with --reach SUBNET"),
        ("SUBNET", (5, 9, False, True), "driver .*9.* keeps to this machine while we use multicast -> run with --reach LOCALHOST"),
        ("LOCALHOST", (5, 9, False, True), "is on domain 5 and was not met -> is it up"),
        ("LOCALHOST", (42, 9, True, True), "nobody is on domain 5; .* are on 42 -> export ROS_DOMAIN_ID=42"),
        ("LOCALHOST", None, "nobody was met on domain 5, range LOCALHOST -> start the robot"),
    ],
)
def test_settings_of_discovery_that_cannot_meet(monkeypatch, reach, process, words):
    class Alone:
        domain = 5

        def __init__(self) -> None:
            self.reach = reach

        def topics(self) -> dict[str, str]:
            return {}

        services = nodes = topics

        def endpoints(self) -> list[Endpoint]:
            return []

    here = [Process(*process[:2], command="driver", multicast=process[2], addressed=process[3])] if process else []
    monkeypatch.setattr(local, "processes", lambda: here)
    found = survey(Alone(), settle_s=0.0, watch_s=0.0)  # type: ignore[arg-type]
    (problem,) = found.problems
    assert re.search(words, f"{problem.what} -> {problem.remedy}") and problem.blocks


def test_dds_processes_are_known_by_their_ports(tmp_path):
    def row(port: int, inode: int) -> str:
        return f"  1: 00000000:{port:04X} 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 {inode} 2 0 0"

    table = tmp_path / "udp"
    ports = [7400 + 250 * 3, 7400 + 250 * 3 + 12, 7400 + 250 * 3 + 13, 7400 + 250 * 9 + 10, 53, 40000]
    table.write_text("\n".join(["header", *(row(port, 900 + i) for i, port in enumerate(ports))]))
    assert local.processes(str(table)) == [Process(3, 0, "", True, True)]  # one port of domain 9 alone is not a participant
    assert local.processes(str(tmp_path / "none")) == []


def test_this_machines_processes_are_seen(spawn, domain):
    code = f"from robot_bridge.dds.node import Node; n = Node('x', domain={domain}); print(1, flush=True); __import__('time').sleep(60)"
    process = spawn(code)
    assert process.stdout.readline().strip() == "1"
    (found,) = [each for each in local.processes() if each.pid == process.pid]
    assert found.domain == domain and found.addressed and "robot_bridge" in found.command


def test_which_profiles_reach_each_other():
    publisher, subscription = (Endpoint(name="/x", message="m", publishes=p) for p in (True, False))
    assert unmatched(publisher, subscription) == ""
    assert unmatched(replace(publisher, profile=SENSOR), replace(subscription, profile=SENSOR)) == ""
    assert "best effort" in unmatched(replace(publisher, profile=SENSOR), subscription)
    assert "transient local" in unmatched(publisher, replace(subscription, profile=LATCHED))


def test_the_command_tells_and_exits_by_what_it_found(monkeypatch, capsys, domain):
    from sinew.cli.main import main

    monkeypatch.setattr(local, "processes", list)
    monkeypatch.setattr("robot_bridge.diagnosis.time.sleep", lambda seconds: None)
    monkeypatch.setenv("ROS_LOCALHOST_ONLY", "1")
    assert main(["doctor", "--robot", "--domain", str(domain), "--reach", "LOOPBACK"]) == 2
    out = capsys.readouterr().out
    assert f"domain {domain}, range LOOPBACK" in out and "-> start the robot's driver" in out and "unset ROS_LOCALHOST_ONLY" in out
    assert main(["doctor", "--robot", "--domain", str(domain), "--reach", "LOOPBACK", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["nodes"] == {}
    assert doctor.exit_code({"nodes": {"/a": ""}, "problems": [{"blocks": False}]}) == 0
    assert main(["doctor", "--robot", "--domain", "900"]) == 2
    assert "0 to 232" in capsys.readouterr().err
