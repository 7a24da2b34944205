"""What the bridge asks of a network of ROS 2 nodes, whichever library speaks to it.

Hot messages travel as CDR payloads (`robot_bridge.dds.codec` reads and writes them); services and actions, which are not
hot, carry messages of rosbags' types. Nothing here blocks unless it takes a timeout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from sinew.errors import InputError, unknown

POLL_S = 0.005
"""Between two looks for a server."""

BACKENDS = {"dds": "robot_bridge.dds.node", "ros2": "robot_bridge.ros.node"}
"""Module per way of speaking; each has a class `Node` that is a `Transport`."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a topic promises or wants."""

    reliable: bool = True
    depth: int = 10
    latched: bool = False
    """Transient local: who comes later gets the last samples."""
    lifespan_s: float | None = None
    """A sample older than this is not delivered any more, however late the network lets it through; None: it never grows old."""


DEFAULT = Profile()
"""rmw_qos_profile_default."""
SENSOR = Profile(reliable=False, depth=5)
"""rmw_qos_profile_sensor_data; as a subscription it matches every publisher."""
NEWEST = Profile(depth=1, lifespan_s=0.2)
"""Commands: reliable, only the newest counts, and none is sent again after a partition that was longer than its lifespan."""
TF = Profile(depth=100)
LATCHED = Profile(depth=1, latched=True)
"""/tf_static, /robot_description and ros_discovery_info."""


class Sample(NamedTuple):
    """A received message."""

    data: bytes
    """CDR payload with its header."""
    source_ns: int
    """Sender's wall clock when it was written."""


CYCLONE = "Cyclone DDS"
VENDORS = {0x0101: "RTI Connext", 0x0102: "OpenSplice", 0x0103: "OpenDDS", 0x010F: "Fast DDS", 0x0110: CYCLONE}
"""Whose DDS it is, by the vendor id that GUIDs begin with (OMG DDSI-RTPS, table of vendor ids)."""


def vendor(guid: bytes) -> str:
    """Whose DDS a participant or endpoint speaks, from its GUID."""
    number = int.from_bytes(guid[:2], "big")
    return VENDORS.get(number, f"DDS vendor {number:#06x}")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A publisher or subscription of another participant, as the graph shows it."""

    name: str
    """Topic, for example "/joint_states"."""
    message: str
    """Its type, "sensor_msgs/JointState"."""
    publishes: bool
    """Publisher or subscription."""
    node: str = ""
    """Node it belongs to, "/ns/name"; empty where that is not known (yet)."""
    vendor: str = ""
    """Whose DDS it speaks, "Cyclone DDS"; empty where that is not known."""
    profile: Profile = DEFAULT


# ---------------------------------------------------------------- topics


class Publisher(Protocol):
    """Writes CDR payloads to a topic."""

    topic: str

    def write(self, payload: bytes | bytearray | memoryview) -> None:
        """Send a CDR payload; a buffer may be used again after the return.

        Raises:
            InputError: the transport refused it.
        """
        ...

    def send(self, message: Any) -> None:
        """Send a message of rosbags' types."""
        ...

    @property
    def subscribers(self) -> int:
        """Matched subscriptions."""
        ...


class Subscription(Protocol):
    """Takes CDR payloads from a topic."""

    topic: str

    def take(self, most: int = 100) -> list[Sample]:
        """Everything that has arrived, oldest first; never blocks."""
        ...

    def newest(self) -> Sample | None:
        """The newest of what has arrived; the rest is thrown away."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Block until something can be taken; whether it can."""
        ...

    @property
    def publishers(self) -> int:
        """Matched publishers."""
        ...


# ---------------------------------------------------------------- services


class Client(Protocol):
    """Asks a service."""

    service: str

    @property
    def ready(self) -> bool:
        """Whether a server that can answer is there.

        Raises:
            InputError: there is one, but it speaks a DDS whose services cannot be reached from here.
        """
        ...

    def submit(self, request: Any) -> Future[Any]:
        """Send a request, a message of rosbags' types; the future holds the response, or never ends.

        Raises:
            InputError: as `ready`; never waits for anybody.
        """
        ...

    def call(self, request: Any, timeout_s: float = 5.0) -> Any:
        """Wait for the server, ask it, wait for its response. Not for the control thread.

        Raises:
            InputError: no server or no response in time, or as `ready`, at once.
        """
        ...


def answer_in_time(client: Client, request: Any, timeout_s: float, where: str, check: Callable[[], None] = lambda: None) -> Any:
    """`Client.call` of any transport.

    Args:
        client: who asks.
        request: a message.
        timeout_s: for the server to be there and to answer.
        where: the domain, for the message.
        check: called while nobody is there; raises where nobody ever will be.
    """
    deadline = time.monotonic() + timeout_s
    while not client.ready:
        check()
        if time.monotonic() > deadline:
            raise InputError(f"nobody answers service {client.service} after {timeout_s:g} s on {where}")
        time.sleep(POLL_S)
    future = client.submit(request)
    try:
        return future.result(max(deadline - time.monotonic(), 0.0))
    except FutureTimeoutError:
        future.cancel()
        raise InputError(f"service {client.service} did not answer within {timeout_s:g} s") from None


Handler = Callable[[Any], Any]
"""Service request to response, both messages of rosbags' types, or to a future of it; runs in a thread of that service's own."""


class Server(Protocol):
    """Answers a service until it or its node is closed."""

    service: str

    def close(self) -> None:
        """Stop answering."""
        ...


# ---------------------------------------------------------------- actions

UNKNOWN, ACCEPTED, EXECUTING, CANCELING, SUCCEEDED, CANCELED, ABORTED = range(7)
"""Status of a goal, action_msgs/GoalStatus."""


class Goal(Protocol):
    """An accepted goal, seen from the client."""

    goal_id: bytes

    @property
    def status(self) -> int:
        """ACCEPTED and so on, as the server last said."""
        ...

    @property
    def done(self) -> bool:
        """Whether the result is here."""
        ...

    def result(self, timeout_s: float) -> tuple[int, Any]:
        """Wait for the end: SUCCEEDED, CANCELED or ABORTED, and the result message.

        Raises:
            InputError: it does not come in time.
        """
        ...

    def cancel(self, timeout_s: float = 5.0) -> bool:
        """Ask that it be given up; whether the server agrees.

        Raises:
            InputError: no answer in time.
        """
        ...


class ActionClient(Protocol):
    """Sends goals to an action server."""

    action: str

    @property
    def ready(self) -> bool:
        """Whether a server that can answer is there.

        Raises:
            InputError: there is one, but it speaks a DDS whose services cannot be reached from here.
        """
        ...

    def send_goal(self, goal: Any, *, feedback: Callable[[Any], None] | None = None, timeout_s: float = 5.0) -> Goal:
        """Send a goal message, for example "control_msgs/FollowJointTrajectory_Goal", and wait until it is accepted.

        Args:
            goal: message of rosbags' types.
            feedback: called with each feedback message, in a thread of the transport's.
            timeout_s: for the server to appear and to accept.

        Raises:
            InputError: no server in time, it rejects the goal, or as `ready`, at once.
        """
        ...


class ServedGoal(Protocol):
    """A goal that is being executed, seen from the server."""

    goal_id: bytes
    request: Any

    @property
    def cancel_requested(self) -> bool:
        """Whether the execution should end with CANCELED."""
        ...

    def feedback(self, message: Any) -> None:
        """Tell the client how it goes."""
        ...


Execute = Callable[[ServedGoal], tuple[int, Any]]
"""Carries out a goal in a thread of its own: (SUCCEEDED, CANCELED or ABORTED, result message)."""


class ActionServer(Protocol):
    """Executes goals until it or its node is closed."""

    action: str

    def close(self) -> None:
        """Take no more goals; those that are executed see `cancel_requested`."""
        ...


# ---------------------------------------------------------------- node


class Transport(Protocol):
    """A node in the ROS 2 graph.

    A backend's `Node` takes (name, *, namespace="/", domain=None, reach=None): domain None is ROS_DOMAIN_ID, reach None is
    ROS_AUTOMATIC_DISCOVERY_RANGE.
    """

    name: str
    namespace: str
    domain: int
    reach: str

    def publisher(self, topic: str, message: str, profile: Profile = DEFAULT) -> Publisher:
        """Publish `message` on a topic, for example "/joint_states", "sensor_msgs/JointState"."""
        ...

    def subscription(self, topic: str, message: str, profile: Profile = DEFAULT) -> Subscription:
        """Subscribe to a topic."""
        ...

    def client(self, service: str, kind: str) -> Client:
        """Ask a service, for example "/reset", "std_srvs/Trigger"."""
        ...

    def server(self, service: str, kind: str, handler: Handler) -> Server:
        """Answer a service."""
        ...

    def action_client(self, action: str, kind: str) -> ActionClient:
        """Send goals, for example to "/arm_controller/follow_joint_trajectory", "control_msgs/FollowJointTrajectory"."""
        ...

    def action_server(self, action: str, kind: str, execute: Execute, accept: Callable[[Any], bool] | None = None) -> ActionServer:
        """Execute goals, those that `accept` agrees to (None: all)."""
        ...

    def resolve(self, topic: str) -> str:
        """A topic name as an absolute one."""
        ...

    def nodes(self) -> dict[str, str]:
        """Nodes of all other participants, "/ns/name", with the vendor of their DDS."""
        ...

    def endpoints(self) -> list[Endpoint]:
        """Publishers and subscriptions of all other participants."""
        ...

    def topics(self) -> dict[str, str]:
        """Topics that any other participant publishes or subscribes: name to message type."""
        ...

    def services(self) -> dict[str, str]:
        """Services that any other participant serves: name to type; those of actions among them."""
        ...

    def other_publishers(self, topic: str) -> int:
        """Publishers of a topic besides this node's."""
        ...

    def other_subscribers(self, topic: str) -> int:
        """Subscriptions of a topic besides this node's."""
        ...

    def close(self) -> None:
        """Leave the graph, with all endpoints."""
        ...


def open_transport(backend: str, name: str, *, namespace: str = "/", domain: int | None = None, reach: str | None = None) -> Transport:
    """A node of the backend called "dds" or "ros2".

    Raises:
        InputError: no such backend, or its settings cannot be used.
        MissingDependency: its library is not here.
    """
    if backend not in BACKENDS:
        raise unknown("transport", backend, BACKENDS)
    return import_module(BACKENDS[backend]).Node(name, namespace=namespace, domain=domain, reach=reach)
