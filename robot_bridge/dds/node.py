"""A node in the ROS 2 graph: publishers, subscriptions and what `ros2 node list` reads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from robot_bridge.actions import ActionClient, ActionServer
from robot_bridge.cadence import realtime_allowed
from robot_bridge.dds import codec, wire
from robot_bridge.dds.discovery import configurations, discovery_range, domain_id
from robot_bridge.dds.graph import GRAPH_TOPIC, GRAPH_TYPE, PUBLICATIONS, SUBSCRIPTIONS, Graph, graph_message, user_data
from robot_bridge.dds.messages import full_name
from robot_bridge.dds.qos import qos
from robot_bridge.dds.services import Client, Pump, Server
from robot_bridge.transport import DEFAULT, LATCHED, Endpoint, Execute, Handler, Profile, Sample
from sinew.errors import InputError

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
    """A participant with one node, visible in the ROS 2 graph; a `robot_bridge.transport.Transport`.

    Args:
        name: node name, as `ros2 node list` shows it.
        namespace: node namespace; relative topic names are resolved in it.
        domain: None for ROS_DOMAIN_ID.
        reach: "LOCALHOST", "LOOPBACK", "SUBNET" or the name of a network interface; None for ROS_AUTOMATIC_DISCOVERY_RANGE, else LOCALHOST.

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
        self._closed = False
        self.graph = Graph(self._participant, self._topic(GRAPH_TOPIC, GRAPH_TYPE))
        self.pump = Pump(self._participant)
        """Thread that hands out what comes for services."""
        self._info = wire.DataWriter(
            self._participant, self._topic(GRAPH_TOPIC, GRAPH_TYPE), qos=qos(LATCHED, user_data(GRAPH_TYPE), writer=True)
        )
        self._tell_graph()

    # ------------------------------------------------------------ endpoints

    def publisher(self, topic: str, message: str, profile: Profile = DEFAULT) -> Publisher:
        """Publish `message` on a ROS topic, for example "/joint_states", "sensor_msgs/JointState"."""
        writer = self._writer("rt" + self.resolve(topic), message, qos(profile, user_data(message), writer=True))
        return Publisher(writer, self.resolve(topic))

    def subscription(self, topic: str, message: str, profile: Profile = DEFAULT) -> Subscription:
        """Subscribe to a ROS topic."""
        reader = self._reader("rt" + self.resolve(topic), message, qos(profile, user_data(message), writer=False))
        return Subscription(reader, self.resolve(topic), self._participant)

    def client(self, service: str, kind: str) -> Client:
        """Ask a service, for example "/reset", "std_srvs/Trigger"; see `robot_bridge.transport.Client`."""
        return Client(self, self.resolve(service), kind)

    def server(self, service: str, kind: str, handler: Handler) -> Server:
        """Answer a service."""
        return Server(self, self.resolve(service), kind, handler)

    def action_client(self, action: str, kind: str) -> ActionClient:
        """Send goals; see `robot_bridge.actions`."""
        return ActionClient(self, self.resolve(action), kind)

    def action_server(self, action: str, kind: str, execute: Execute, accept: Callable[[Any], bool] | None = None) -> ActionServer:
        """Execute goals."""
        return ActionServer(self, self.resolve(action), kind, execute, accept)

    def service_writer(self, name: str, message: str, user: str) -> Any:
        """DDS writer of a service's request or reply topic; `user` tells which client or server it is of."""
        return self._writer(name, message, qos(DEFAULT, user + user_data(message), writer=True))

    def service_reader(self, name: str, message: str, user: str) -> Any:
        """DDS reader of a service's request or reply topic."""
        return self._reader(name, message, qos(DEFAULT, user + user_data(message), writer=False))

    def remove(self, *entities: Any) -> None:
        """Take readers and writers of this node off the network."""
        with self._lock:
            self._readers = [each for each in self._readers if each not in entities]
            self._writers = [each for each in self._writers if each not in entities]
            for each in entities if not self._closed else ():
                each.__del__()  # deletes now, not when Python gets to it
        self._tell_graph()

    def resolve(self, topic: str) -> str:
        """A topic name as an absolute one."""
        return topic if topic.startswith("/") else f"{self.namespace.rstrip('/')}/{topic}"

    # ------------------------------------------------------------ graph

    def endpoints(self) -> list[Endpoint]:
        """Publishers and subscriptions of all other participants on ROS topics."""
        return self.graph.endpoints()

    def nodes(self) -> dict[str, str]:
        """Nodes of other participants, "/ns/name", with the vendor of their DDS."""
        return self.graph.nodes()

    def topics(self) -> dict[str, str]:
        """ROS topics that any other process publishes or subscribes on this domain: name → message type."""
        return {endpoint.name: endpoint.message for endpoint in self.endpoints()}

    def services(self) -> dict[str, str]:
        """Services of other participants: name → type."""
        return self.graph.services()

    def other_publishers(self, topic: str) -> int:
        """Publishers of a topic besides this node's."""
        return self.graph.count(PUBLICATIONS, self.resolve(topic))

    def other_subscribers(self, topic: str) -> int:
        """Subscriptions of a topic besides this node's."""
        return self.graph.count(SUBSCRIPTIONS, self.resolve(topic))

    def close(self) -> None:
        """Leave the graph, with all endpoints; other nodes of this process keep theirs."""
        self.pump.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._readers, self._writers = [], []
            self._participant.__del__()  # deletes now, not when Python gets to it

    def _topic(self, name: str, message: str) -> Any:
        if name not in self._topics:
            self._topics[name] = wire.Topic(self._participant, name, wire.dds_type(full_name(message), name.startswith(("rq/", "rr/"))))
        return self._topics[name]

    def _writer(self, name: str, message: str, policies: Any) -> Any:
        writer = wire.DataWriter(self._participant, self._topic(name, message), qos=policies)
        with self._lock:
            self._writers.append(writer)
        self._tell_graph()
        return writer

    def _reader(self, name: str, message: str, policies: Any) -> Any:
        reader = wire.DataReader(self._participant, self._topic(name, message), qos=policies)
        with self._lock:
            self._readers.append(reader)
        self._tell_graph()
        return reader

    def _tell_graph(self) -> None:
        """Write ros_discovery_info anew: which endpoints belong to this node."""
        with self._lock:
            if self._closed:
                return
            payload = graph_message(self._participant, self.namespace, self.name, self._readers, self._writers)
            wire.write(self._info, payload + bytes(-len(payload) % 4))


def _enter_domain(number: int, reach: str) -> None:
    """Configure a domain once per process."""
    with _domains_lock:
        if number in _domains:
            if _domains[number][1] != reach:
                raise InputError(f"DDS domain {number} is {_domains[number][1]} in this process already; {reach} needs another process")
            return
        _domains[number] = (_open_domain(number, configurations(reach, realtime_allowed()), reach), reach)


def _open_domain(number: int, choices: list[str | None], reach: str) -> Any:
    """Configure a domain with the first configuration that is accepted; None leaves it to Cyclone DDS."""
    problem: Exception | None = None
    for config in choices:
        if config is None:
            return None
        try:
            return wire.Domain(number, config)
        except wire.DDSException as e:
            problem = e
    raise InputError(f"DDS cannot start on domain {number} ({reach}): {problem}")
