"""A node in the ROS 2 graph: publishers, subscriptions and what `ros2 node list` reads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from robot_bridge.cadence import realtime_allowed
from robot_bridge.dds import codec, wire
from robot_bridge.dds.discovery import Range, configuration, discovery_range, domain_id
from robot_bridge.dds.messages import fields, full_name, make, type_hash
from robot_bridge.dds.qos import qos
from robot_bridge.transport import DEFAULT, LATCHED, Profile, Sample
from sinew.errors import InputError

GRAPH_TOPIC = "ros_discovery_info"
GRAPH_TYPE = "rmw_dds_common/ParticipantEntitiesInfo"

_domains: dict[int, tuple[Any, str]] = {}
_domains_lock = threading.Lock()


class Publisher:
    """Writes CDR payloads to a topic."""

    def __init__(self, writer: Any, topic: str) -> None:
        self._writer, self.topic = writer, topic

    def write(self, payload: bytes | bytearray | memoryview) -> None:
        """Send a CDR payload; a buffer may be used again after the return.

        Raises:
            InputError: DDS refused it.
        """
        padding = -len(payload) % 4
        code = wire.write(self._writer, bytes(payload) + bytes(padding) if padding else payload)
        if code < 0:
            raise InputError(f"DDS could not send on {self.topic}: {wire.DDSException(code)}")

    def send(self, message: Any) -> None:
        """Send a message of rosbags' types."""
        self.write(codec.encode(message))

    @property
    def subscribers(self) -> int:
        """Matched subscriptions."""
        return len(self._writer.get_matched_subscriptions())


class Subscription:
    """Takes CDR payloads from a topic."""

    def __init__(self, reader: Any, topic: str, participant: Any) -> None:
        self._reader, self.topic = reader, topic
        self._waitset = wire.WaitSet(participant)
        self._condition = wire.ReadCondition(reader, wire.ANY)
        self._waitset.attach(self._condition)

    def take(self, most: int = 100) -> list[Sample]:
        """Everything that has arrived, oldest first; never blocks. Disposals and the like are left out."""
        return [Sample(data, info.source_timestamp) for data, info in wire.take(self._reader, most) if info.valid_data]

    def newest(self) -> Sample | None:
        """The newest of what has arrived; the rest is thrown away."""
        samples = self.take()
        return samples[-1] if samples else None

    def wait(self, timeout_s: float) -> bool:
        """Block until something can be taken; whether it can."""
        return bool(self._waitset.wait(int(timeout_s * 1e9)))

    @property
    def publishers(self) -> int:
        """Matched publishers."""
        return len(self._reader.get_matched_publications())


class Node:
    """A participant with one node, visible in the ROS 2 graph.

    Args:
        name: node name, as `ros2 node list` shows it.
        namespace: node namespace; relative topic names are resolved in it.
        domain: None for ROS_DOMAIN_ID.
        reach: "LOCALHOST", "LOOPBACK" or "SUBNET"; None for ROS_AUTOMATIC_DISCOVERY_RANGE, else LOCALHOST.

    Raises:
        InputError: this process uses the domain with another range already, or DDS cannot start.
    """

    def __init__(self, name: str, *, namespace: str = "/", domain: int | None = None, reach: str | None = None) -> None:
        self.name, self.namespace = name, "/" + namespace.strip("/")
        self.domain, self.reach = domain_id(domain), discovery_range(reach)
        _enter_domain(self.domain, self.reach)
        try:
            participant_qos = wire.Qos(wire.Policy.Userdata(data=b"enclave=/;"))
            self._participant = wire.DomainParticipant(self.domain, qos=participant_qos)
        except wire.DDSException as e:
            raise InputError(f"DDS cannot start on domain {self.domain} ({self.reach}): {e}") from None
        self._lock = threading.Lock()
        self._topics: dict[str, Any] = {}
        self._readers: list[Any] = []
        self._writers: list[Any] = []
        self._seen: dict[Any, dict[Any, Any]] = {}
        self._watchers = {
            kind: wire.BuiltinDataReader(self._participant, kind)
            for kind in (wire.BuiltinTopicDcpsPublication, wire.BuiltinTopicDcpsSubscription)
        }
        self._graph = self._writer(GRAPH_TOPIC, GRAPH_TYPE, LATCHED)
        self._tell_graph()

    # ------------------------------------------------------------ endpoints

    def publisher(self, topic: str, message: str, profile: Profile = DEFAULT) -> Publisher:
        """Publish `message` on a ROS topic, for example "/joint_states", "sensor_msgs/JointState"."""
        writer = self._writer("rt" + self.resolve(topic), message, profile)
        with self._lock:
            self._writers.append(writer)
        self._tell_graph()
        return Publisher(writer, self.resolve(topic))

    def subscription(self, topic: str, message: str, profile: Profile = DEFAULT) -> Subscription:
        """Subscribe to a ROS topic."""
        name = "rt" + self.resolve(topic)
        reader = wire.DataReader(self._participant, self._topic(name, message), qos=qos(profile, _user_data(message), writer=False))
        with self._lock:
            self._readers.append(reader)
        self._tell_graph()
        return Subscription(reader, self.resolve(topic), self._participant)

    def resolve(self, topic: str) -> str:
        """A topic name as an absolute one."""
        return topic if topic.startswith("/") else f"{self.namespace.rstrip('/')}/{topic}"

    # ------------------------------------------------------------ graph

    def topics(self) -> dict[str, str]:
        """ROS topics that any other process publishes or subscribes on this domain: name → message type."""
        found = {}
        for kind in self._watchers:
            for endpoint in self._endpoints(kind).values():
                if endpoint.topic_name.startswith("rt/") and endpoint.participant_key != self._participant.guid:
                    found[endpoint.topic_name[2:]] = endpoint.type_name.replace("::msg::dds_::", "/").rstrip("_")
        return found

    def other_publishers(self, topic: str) -> int:
        """Publishers of a topic besides this node's."""
        return self._others(wire.BuiltinTopicDcpsPublication, topic)

    def other_subscribers(self, topic: str) -> int:
        """Subscriptions of a topic besides this node's."""
        return self._others(wire.BuiltinTopicDcpsSubscription, topic)

    def close(self) -> None:
        """Leave the graph, with all endpoints; other nodes of this process keep theirs."""
        with self._lock:
            self._readers, self._writers = [], []
            self._participant.__del__()  # deletes now, not when Python gets to it

    def _others(self, kind: Any, topic: str) -> int:
        name = "rt" + self.resolve(topic)
        endpoints = self._endpoints(kind).values()
        return sum(e.topic_name == name and e.participant_key != self._participant.guid for e in endpoints)

    def _endpoints(self, kind: Any) -> dict[Any, Any]:
        """Living endpoints of all participants, kept up to date from the built-in topic."""
        with self._lock:
            known = self._seen.setdefault(kind, {})
            while samples := self._watchers[kind].take(N=100):
                for sample in samples:
                    if sample.sample_info.valid_data and sample.sample_info.instance_state == ALIVE:
                        known[sample.key] = sample
                    else:
                        known.pop(sample.key, None)
            return dict(known)

    def _topic(self, name: str, message: str) -> Any:
        if name not in self._topics:
            self._topics[name] = wire.Topic(self._participant, name, wire.dds_type(full_name(message)))
        return self._topics[name]

    def _writer(self, name: str, message: str, profile: Profile) -> Any:
        return wire.DataWriter(self._participant, self._topic(name, message), qos=qos(profile, _user_data(message), writer=True))

    def _tell_graph(self) -> None:
        """Write ros_discovery_info anew: which endpoints belong to this node."""
        with self._lock:
            node = make(
                "rmw_dds_common/NodeEntitiesInfo",
                node_namespace=self.namespace,
                node_name=self.name,
                reader_gid_seq=[_gid(r.guid) for r in self._readers],
                writer_gid_seq=[_gid(w.guid) for w in self._writers],
            )
            info = make(GRAPH_TYPE, gid=_gid(self._participant.guid), node_entities_info_seq=[node])
            payload = bytes(codec.encode(info))
            wire.write(self._graph, payload + bytes(-len(payload) % 4))


ALIVE = 16
"""DDS_ALIVE_INSTANCE_STATE."""


def _user_data(message: str) -> str:
    return f"typehash={type_hash(message)};"


def _gid(guid: Any) -> Any:
    """A GUID as the distribution's Gid: 16 bytes from Iron on, 24 before."""
    length = fields("rmw_dds_common/Gid")[0][1][2]
    return make("rmw_dds_common/Gid", data=np.frombuffer(guid.bytes.ljust(length, b"\0"), dtype=np.uint8))


def _enter_domain(number: int, reach: Range) -> None:
    """Configure a domain once per process."""
    with _domains_lock:
        if number in _domains:
            if _domains[number][1] != reach:
                raise InputError(f"DDS domain {number} is {_domains[number][1]} in this process already; {reach} needs another process")
            return
        attempts = [configuration(reach, realtime=True)] if realtime_allowed() else []
        _domains[number] = (_open_domain(number, [*attempts, configuration(reach)], reach), reach)


def _open_domain(number: int, configurations: list[str | None], reach: Range) -> Any:
    """Configure a domain with the first configuration that is accepted; None leaves it to Cyclone DDS."""
    problem: Exception | None = None
    for config in configurations:
        if config is None:
            return None
        try:
            return wire.Domain(number, config)
        except wire.DDSException as e:
            problem = e
    raise InputError(f"DDS cannot start on domain {number} ({reach}): {problem}")
