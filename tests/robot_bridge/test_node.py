"""The node on the wire: types, QoS, graph and liveliness, seen by an independent participant."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from robot_bridge.dds import codec, wire
from robot_bridge.dds.graph import GRAPH_TOPIC, GRAPH_TYPE
from robot_bridge.dds.messages import make, type_hash
from robot_bridge.dds.node import Node
from robot_bridge.dds.qos import DEFAULT, LATCHED, SENSOR, Profile, qos
from sinew.errors import InputError


def until(done: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.01)
    raise AssertionError("did not happen in time")


@pytest.fixture
def pair(domain):
    nodes = Node("first", domain=domain), Node("second", namespace="/arm", domain=domain)
    yield nodes
    for node in nodes:
        node.close()


def test_messages_arrive_as_they_were_sent(pair):
    first, second = pair
    publisher = first.publisher("/text", "std_msgs/String")
    subscription = second.subscription("/text", "std_msgs/String")
    until(lambda: publisher.subscribers and subscription.publishers)
    for i in range(5):
        publisher.send(make("std_msgs/String", data="x" * i))
    assert subscription.wait(60.0)
    samples = until(lambda: (got := subscription.take()) and got)
    assert [codec.decode(s.data, "std_msgs/String").data for s in samples] == ["x" * i for i in range(len(samples))]
    assert abs(samples[0].source_ns - time.time_ns()) < 10e9


def test_names_resolve_in_the_namespace(pair):
    _, second = pair
    assert second.resolve("state") == "/arm/state" and second.resolve("/state") == "/state"


def test_qos_and_user_data_on_the_wire(pair):
    """What another participant discovers of our endpoints."""
    first, second = pair
    first.publisher("/q/default", "sensor_msgs/JointState", DEFAULT)
    first.publisher("/q/sensor", "sensor_msgs/Image", SENSOR)
    first.publisher("/q/latched", "std_msgs/Int64", LATCHED)
    kind = wire.BuiltinTopicDcpsPublication

    def three():
        named = {e.topic_name: e for e in second.graph.found(kind).values() if "/q/" in e.topic_name}
        return named if len(named) == 3 else None

    found = until(three)
    joint, image, latched = (found[f"rt/q/{n}"] for n in ("default", "sensor", "latched"))
    assert joint.type_name == "sensor_msgs::msg::dds_::JointState_"
    policy = wire.Policy
    assert isinstance(joint.qos[policy.Reliability], policy.Reliability.Reliable)
    assert joint.qos[policy.Durability] == policy.Durability.Volatile
    assert image.qos[policy.Reliability] == policy.Reliability.BestEffort
    assert latched.qos[policy.Durability] == policy.Durability.TransientLocal
    assert latched.qos[policy.DurabilityService].history == policy.History.KeepLast(1)
    assert joint.qos[policy.Userdata].data == f"typehash={type_hash('sensor_msgs/JointState')};".encode()
    representation = joint.qos[policy.DataRepresentation]
    assert representation.use_cdrv0_representation and not representation.use_xcdrv2_representation


def test_best_effort_publisher_does_not_match_a_reliable_subscription_but_the_reverse_does(pair):
    first, second = pair
    reliable, best = first.publisher("/r", "std_msgs/Int64", DEFAULT), first.publisher("/b", "std_msgs/Int64", SENSOR)
    second.subscription("/r", "std_msgs/Int64", SENSOR)
    second.subscription("/b", "std_msgs/Int64", DEFAULT)
    until(lambda: reliable.subscribers)
    assert best.subscribers == 0


def test_latched_messages_reach_who_comes_later(pair):
    first, second = pair
    first.publisher("/late", "std_msgs/Int64", LATCHED).send(make("std_msgs/Int64", data=5))
    subscription = second.subscription("/late", "std_msgs/Int64", LATCHED)
    assert subscription.wait(60.0) and codec.decode(subscription.take()[0].data, "std_msgs/Int64").data == 5


def test_the_graph_names_node_and_endpoints(pair):
    """ros_discovery_info, read by rosbags: what `ros2 node list` and `ros2 topic info -v` are made of."""
    first, second = pair
    first.publisher("/a", "std_msgs/Int64")
    first.subscription("/b", "std_msgs/Int64")
    topic = second._topic(GRAPH_TOPIC, GRAPH_TYPE)
    # a topic without keys: a reader that kept one sample would keep that of one participant only
    reader = wire.DataReader(second._participant, topic, qos=qos(Profile(depth=100, latched=True), "", writer=False))

    def entry():
        for data, info in wire.take(reader, 50):
            if info.valid_data:
                message = codec.decode(data, GRAPH_TYPE)
                node = message.node_entities_info_seq[0]
                if node.node_name == "first" and len(node.writer_gid_seq) == 1 and len(node.reader_gid_seq) == 1:
                    return message
        return None

    message = until(entry)
    node = message.node_entities_info_seq[0]
    assert node.node_namespace == "/"
    assert bytes(message.gid.data) == first._participant.guid.bytes
    endpoints = second.graph.found(wire.BuiltinTopicDcpsPublication).values()
    (writer,) = [e for e in endpoints if e.topic_name == "rt/a"]
    assert bytes(node.writer_gid_seq[0].data) == writer.key.bytes and writer.participant_key == first._participant.guid


def test_other_publishers_are_counted_and_forgotten_when_they_leave(pair, domain):
    first, _ = pair
    first.publisher("/cmd", "std_msgs/Float64MultiArray")
    assert first.other_publishers("/cmd") == 0
    third = Node("third", domain=domain)
    third.publisher("/cmd", "std_msgs/Float64MultiArray")
    until(lambda: first.other_publishers("/cmd") == 1)
    assert first.topics()["/cmd"] == "std_msgs/Float64MultiArray"
    third.close()
    until(lambda: first.other_publishers("/cmd") == 0)


def test_one_process_cannot_reach_two_ways_on_one_domain(pair, domain):
    with pytest.raises(InputError, match="LOCALHOST in this process already"):
        Node("other", domain=domain, reach="SUBNET")


def test_closing_leaves_disposals_that_readers_pass_over(pair, domain):
    first, _ = pair
    subscription = first.subscription("/gone", "std_msgs/Int64")
    third = Node("third", domain=domain)
    publisher = third.publisher("/gone", "std_msgs/Int64")
    until(lambda: publisher.subscribers)
    publisher.send(make("std_msgs/Int64", data=1))
    until(lambda: subscription.publishers and subscription.wait(0.1))
    third.close()
    until(lambda: subscription.publishers == 0)
    assert [codec.decode(s.data, "std_msgs/Int64").data for s in subscription.take()] == [1]


def test_a_participant_with_types_of_its_own_understands_us(spawn, domain):
    """A plain Cyclone DDS program with IDL classes and codec of its own, in another process, as another project would write it."""
    process = spawn(
        f"""
import time
from dataclasses import dataclass
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.annotations import final
from cyclonedds.idl.types import float64, int32, sequence, uint32
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

@final
@dataclass
class Stamp(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32

@final
@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Stamp
    frame_id: str

@final
@dataclass
class JointState(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]

domain = Domain({domain}, '<CycloneDDS><Domain id="any"><General><AllowMulticast>false</AllowMulticast></General><Discovery>'
    '<ParticipantIndex>auto</ParticipantIndex><Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain></CycloneDDS>')
participant = DomainParticipant({domain})
reader = DataReader(participant, Topic(participant, "rt/joint_states", JointState), qos=Qos(
    Policy.Reliability.BestEffort, Policy.DataRepresentation(use_cdrv0_representation=True)))
end = time.monotonic() + 20
while time.monotonic() < end:
    for sample in reader.take(N=10):
        if sample.sample_info.valid_data:
            print(sample.name, sample.position, sample.header.frame_id)
            raise SystemExit
    time.sleep(0.01)
"""
    )
    node = Node("ours", domain=domain)
    publisher = node.publisher("/joint_states", "sensor_msgs/JointState")
    encoder = codec.JointStateEncoder(["a", "b"], "base")
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        publisher.write(encoder.encode(time.time_ns(), [1.0, 2.0], [0.0, 0.0]))
        time.sleep(0.02)
    out, err = process.communicate(timeout=60)
    node.close()
    assert out.strip() == "['a', 'b'] [1.0, 2.0] base", err
