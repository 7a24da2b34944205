"""A node of a sourced ROS 2: the transport interface over rclpy, with an executor thread that the control thread never waits for."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from robot_bridge.actions import ActionClient, ActionServer
from robot_bridge.dds.discovery import domain_id
from robot_bridge.dds.messages import full_name
from robot_bridge.ros import door
from robot_bridge.ros.services import Client, Server
from robot_bridge.ros.topics import Publisher, Subscription
from robot_bridge.transport import DEFAULT, Endpoint, Execute, Handler, Profile, vendor
from sinew.errors import InputError

RANGES = ("LOCALHOST", "SUBNET", "OFF", "SYSTEM_DEFAULT")
SYSTEM_TOPICS = ("/rosout", "/parameter_events")
"""Topics that every node of ROS 2 publishes on, from which its vendor is read."""


class Node:
    """A node of rclpy in a context and an executor of its own; a `robot_bridge.transport.Transport`.

    Args:
        name: node name.
        namespace: node namespace; relative topic names are resolved in it.
        domain: None for ROS_DOMAIN_ID.
        reach: a value of ROS_AUTOMATIC_DISCOVERY_RANGE for this process; None leaves it as ROS 2 has it, where the default is SUBNET.
        kind: rclpy's class of node; called with (name, namespace=, context=).
        arguments: a ROS 2 command line, "--ros-args -p name:=value -r from:=to".

    Raises:
        InputError: a range that ROS 2 does not know, or a name that it does not take.
    """

    def __init__(
        self,
        name: str,
        *,
        namespace: str = "/",
        domain: int | None = None,
        reach: str | None = None,
        kind: Any = door.Node,
        arguments: Sequence[str] = (),
    ) -> None:
        self.name, self.namespace = name, "/" + namespace.strip("/")
        self.domain, self.reach = domain_id(domain), _range(reach)
        self._context = door.rclpy.Context()
        no_signals = door.SignalHandlerOptions.NO
        door.rclpy.init(args=[name, *arguments], context=self._context, domain_id=self.domain, signal_handler_options=no_signals)
        try:
            self.ros = kind(name, namespace=self.namespace, context=self._context)
        except Exception as e:  # rclpy's own classes for names that it does not take
            door.rclpy.try_shutdown(context=self._context)
            raise InputError(f"ROS 2 does not take node {name!r} in namespace {namespace!r}: {str(e).splitlines()[0]}") from None
        self.group = door.ReentrantCallbackGroup()
        self.executor = door.SingleThreadedExecutor(context=self._context)
        self.executor.add_node(self.ros)
        self._mine: Counter[tuple[str, bool]] = Counter()
        self._served: set[str] = set()
        self._subscriptions: list[Subscription] = []
        self._closed = False
        self._thread = threading.Thread(target=self._spin, name=f"ros2 {name}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ endpoints

    def publisher(self, topic: str, message: str, profile: Profile = DEFAULT) -> Publisher:
        """Publish `message` on a topic."""
        name = self.resolve(topic)
        made = self.ros.create_publisher(door.topic_class(full_name(message)), name, door.qos(profile, writer=True))
        self._mine[name, True] += 1
        return Publisher(made, name)

    def subscription(self, topic: str, message: str, profile: Profile = DEFAULT) -> Subscription:
        """Subscribe to a topic; payloads come as they were sent."""
        made = Subscription(self.resolve(topic), profile.depth)
        kind = door.topic_class(full_name(message))
        made.subscription = self.ros.create_subscription(
            kind,
            made.topic,
            made.put if door.STAMPED else made.put_plain,
            door.qos(profile, writer=False),
            callback_group=self.group,
            raw=True,
        )
        self._mine[made.topic, False] += 1
        self._subscriptions.append(made)
        return made

    def client(self, service: str, kind: str) -> Client:
        """Ask a service."""
        return Client(self, self.resolve(service), kind)

    def server(self, service: str, kind: str, handler: Handler) -> Server:
        """Answer a service."""
        self._served.add(self.resolve(service))
        return Server(self, self.resolve(service), kind, handler)

    def action_client(self, action: str, kind: str) -> ActionClient:
        """Send goals; see `robot_bridge.actions`."""
        return ActionClient(self, self.resolve(action), kind)

    def action_server(self, action: str, kind: str, execute: Execute, accept: Callable[[Any], bool] | None = None) -> ActionServer:
        """Execute goals."""
        return ActionServer(self, self.resolve(action), kind, execute, accept)

    def drop(self, server: Any) -> None:
        """Take a service off the network; by the executor, which may be waiting for it."""
        if not self._closed:
            self.executor.create_task(self.ros.destroy_service, server)

    def resolve(self, topic: str) -> str:
        """A topic name as an absolute one."""
        return topic if topic.startswith("/") else f"{self.namespace.rstrip('/')}/{topic}"

    # ------------------------------------------------------------ graph

    def endpoints(self) -> list[Endpoint]:
        """Publishers and subscriptions of all other nodes; of those with this node's name as many as are not ours."""
        made = []
        for topic, _ in self.ros.get_topic_names_and_types():
            for publishes, infos in (
                (True, self.ros.get_publishers_info_by_topic(topic)),
                (False, self.ros.get_subscriptions_info_by_topic(topic)),
            ):
                ours = self._mine[topic, publishes] + (publishes and topic in SYSTEM_TOPICS)
                for info in infos:
                    if ours and (info.node_name, info.node_namespace) == (self.name, self.namespace):
                        ours -= 1
                        continue
                    made.append(_endpoint(topic, publishes, info))
        return made

    def topics(self) -> dict[str, str]:
        """Topics of other nodes: name to message type."""
        return {endpoint.name: endpoint.message for endpoint in self.endpoints()}

    def services(self) -> dict[str, str]:
        """Services of other nodes: name to type."""
        own = f"{self.namespace.rstrip('/')}/{self.name}/"
        found = {name: _short(types[0]) for name, types in self.ros.get_service_names_and_types()}
        return {name: kind for name, kind in found.items() if not name.startswith(own) and name not in self._served}

    def nodes(self) -> dict[str, str]:
        """Other nodes, "/ns/name", with the vendor of their DDS."""
        vendors = {each.node: each.vendor for each in self.endpoints()}
        found = [f"{namespace.rstrip('/')}/{name}" for name, namespace in self.ros.get_node_names_and_namespaces()]
        found.remove(f"{self.namespace.rstrip('/')}/{self.name}")
        return {name: vendors.get(name, "") for name in found if name}

    def other_publishers(self, topic: str) -> int:
        """Publishers of a topic besides this node's."""
        name = self.resolve(topic)
        return max(self.ros.count_publishers(name) - self._mine[name, True], 0)

    def other_subscribers(self, topic: str) -> int:
        """Subscriptions of a topic besides this node's."""
        name = self.resolve(topic)
        return max(self.ros.count_subscribers(name) - self._mine[name, False], 0)

    def refusal(self, service: str) -> str:
        """Why a service that is there cannot be used; empty when it can: vendors of DDS do not understand each other's services."""
        vendors = {each.node: each.vendor for each in self.endpoints() if each.name in SYSTEM_TOPICS and each.publishes}
        own = {vendor(bytes(i.endpoint_gid)) for i in self.ros.get_publishers_info_by_topic("/rosout") if i.node_name == self.name}
        theirs = set()
        for name, namespace in self.ros.get_node_names_and_namespaces():
            node = f"{namespace.rstrip('/')}/{name}"
            if node in vendors and service in dict(self.ros.get_service_names_and_types_by_node(name, namespace)):
                theirs.add(vendors[node])
        if not own or not theirs or own & theirs:
            return ""
        return (
            f"service {service} is served over {' and '.join(sorted(theirs))} while this node speaks {' and '.join(sorted(own))}, "
            "and their services do not understand each other (topics do): set the same RMW_IMPLEMENTATION on both"
        )

    def close(self) -> None:
        """Leave the graph, with all endpoints."""
        if self._closed:
            return
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
        self.executor.shutdown(timeout_sec=2.0)
        self._thread.join(5.0)
        self.ros.destroy_node()
        door.rclpy.try_shutdown(context=self._context)

    def _spin(self) -> None:
        while not self._closed and self._context.ok():
            try:
                self.executor.spin_once(timeout_sec=0.5)
            except Exception:
                if self._closed or not self._context.ok():
                    return
                raise


def _endpoint(topic: str, publishes: bool, info: Any) -> Endpoint:
    return Endpoint(
        name=topic,
        message=_short(info.topic_type),
        publishes=publishes,
        node=f"{info.node_namespace.rstrip('/')}/{info.node_name}",
        vendor=vendor(bytes(info.endpoint_gid)),
        profile=door.profile_of(info.qos_profile),
    )


def _short(name: str) -> str:
    package, *_, message = name.split("/")
    return f"{package}/{message}"


def _range(given: str | None) -> str:
    """Set the discovery range of this process where one is given."""
    if given is not None:
        if given.upper() not in RANGES:
            raise InputError(f"ROS 2 knows no discovery range {given!r}; known are {', '.join(RANGES)}")
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = given.upper()
    return os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET").upper()
