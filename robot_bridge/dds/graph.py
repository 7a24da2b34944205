"""Who else is on a DDS domain: endpoints from the built-in topics, node names from ros_discovery_info."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from robot_bridge.dds import codec, wire
from robot_bridge.dds.messages import blank, fields, make, ros_name, type_hash
from robot_bridge.dds.qos import qos
from robot_bridge.transport import Endpoint, Profile, vendor
from sinew.errors import DataError

GRAPH_TOPIC = "ros_discovery_info"
GRAPH_TYPE = "rmw_dds_common/ParticipantEntitiesInfo"
ALIVE = 16
"""DDS_ALIVE_INSTANCE_STATE."""
MANY = Profile(depth=1000, latched=True)
"""A topic without keys: a reader that kept one sample would keep that of one participant only."""

PARTICIPANTS = wire.BuiltinTopicDcpsParticipant
PUBLICATIONS = wire.BuiltinTopicDcpsPublication
SUBSCRIPTIONS = wire.BuiltinTopicDcpsSubscription


def gid(guid: Any) -> Any:
    """A GUID as the distribution's Gid: 16 bytes from Iron on, 24 before."""
    length = fields("rmw_dds_common/Gid")[0][1][2]
    return make("rmw_dds_common/Gid", data=np.frombuffer(guid.bytes.ljust(length, b"\0"), dtype=np.uint8))


def user_data(message: str) -> str:
    """USER_DATA of an endpoint: the hash of its type, without which ROS 2 warns."""
    return f"typehash={type_hash(message)};"


def user_text(endpoint: Any, key: str) -> str:
    """A value from an endpoint's USER_DATA, "key=value;"; empty where there is none."""
    data = endpoint.qos[wire.Policy.Userdata]
    for part in (data.data if data else b"").decode(errors="replace").split(";"):
        name, _, value = part.partition("=")
        if name == key:
            return value
    return ""


class Graph:
    """What a participant has discovered, kept up to date as it is asked.

    Args:
        participant: its own endpoints are left out of most answers.
        info_topic: DDS topic of ros_discovery_info.
    """

    def __init__(self, participant: Any, info_topic: Any) -> None:
        self._own, self._lock = participant.guid, threading.Lock()
        self._readers = {kind: wire.BuiltinDataReader(participant, kind) for kind in (PARTICIPANTS, PUBLICATIONS, SUBSCRIPTIONS)}
        self._found: dict[Any, dict[Any, Any]] = {kind: {} for kind in self._readers}
        self._info = wire.DataReader(participant, info_topic, qos=qos(MANY, user_data(GRAPH_TYPE), writer=False))
        self._named: dict[bytes, Any] = {}

    def found(self, kind: Any, *, others: bool = True) -> dict[Any, Any]:
        """Living participants, publications or subscriptions by GUID; this participant's own only without `others`."""
        with self._lock:
            known = self._found[kind]
            while samples := self._readers[kind].take(N=100):
                for sample in samples:
                    if sample.sample_info.valid_data and sample.sample_info.instance_state == ALIVE:
                        known[sample.key] = sample
                    else:
                        known.pop(sample.key, None)
            mine = "key" if kind is PARTICIPANTS else "participant_key"
            return {guid: each for guid, each in known.items() if not others or getattr(each, mine) != self._own}

    def nodes(self) -> dict[str, str]:
        """Nodes of all other participants, "/ns/name", with the vendor of their DDS."""
        living = {guid.bytes: vendor(guid.bytes) for guid in self.found(PARTICIPANTS)}
        self._learn()
        return {_name(node): living[who] for who, info in self._named.items() if who in living for node in info.node_entities_info_seq}

    def endpoints(self) -> list[Endpoint]:
        """Publishers and subscriptions of all other participants on ROS topics."""
        self._learn()
        owners = {
            bytes(each.data[:16]): _name(node)
            for info in self._named.values()
            for node in info.node_entities_info_seq
            for each in (*node.reader_gid_seq, *node.writer_gid_seq)
        }
        made = []
        for kind in (PUBLICATIONS, SUBSCRIPTIONS):
            for guid, each in self.found(kind).items():
                if each.topic_name.startswith("rt/"):
                    profile, node = _profile(each.qos), owners.get(guid.bytes, "")
                    name, message = each.topic_name[2:], ros_name(each.type_name)
                    publishes, who = kind is PUBLICATIONS, vendor(guid.bytes)
                    made.append(Endpoint(name=name, message=message, publishes=publishes, node=node, vendor=who, profile=profile))
        return made

    def services(self) -> dict[str, str]:
        """Services that other participants serve, with their types."""
        return {
            each.topic_name[2:].removesuffix("Request"): ros_name(each.type_name).removesuffix("_Request")
            for each in self.found(SUBSCRIPTIONS).values()
            if each.topic_name.startswith("rq/")
        }

    def server_vendors(self, service: str) -> set[str]:
        """Vendors of those who answer a service; this participant among them."""
        readers = self.found(SUBSCRIPTIONS, others=False)
        return {vendor(guid.bytes) for guid, each in readers.items() if each.topic_name == f"rq{service}Request"}

    def count(self, kind: Any, topic: str) -> int:
        """Endpoints of other participants on a ROS topic."""
        return sum(each.topic_name == "rt" + topic for each in self.found(kind).values())

    def _learn(self) -> None:
        """Take in what participants said of their nodes; the newest of each counts."""
        with self._lock:
            for data, info in wire.take(self._info, 1000):
                if not info.valid_data:
                    continue
                try:
                    message = codec.decode(data, GRAPH_TYPE)
                except DataError:
                    continue
                self._named[bytes(message.gid.data[:16])] = message
            self._named.pop(self._own.bytes, None)


def graph_message(participant: Any, namespace: str, name: str, readers: list[Any], writers: list[Any]) -> bytes:
    """ros_discovery_info of one node: which endpoints belong to it."""
    node = blank(
        "rmw_dds_common/NodeEntitiesInfo",
        node_namespace=namespace,
        node_name=name,
        reader_gid_seq=[gid(reader.guid) for reader in readers],
        writer_gid_seq=[gid(writer.guid) for writer in writers],
    )
    return bytes(codec.encode(make(GRAPH_TYPE, gid=gid(participant.guid), node_entities_info_seq=[node])))


def _name(node: Any) -> str:
    return f"{node.node_namespace.rstrip('/')}/{node.node_name}"


def _profile(policies: Any) -> Profile:
    """What an endpoint's QoS come to."""
    reliability, durability = policies[wire.Policy.Reliability], policies[wire.Policy.Durability]
    reliable = isinstance(reliability, wire.Policy.Reliability.Reliable)
    return Profile(reliable=reliable, latched=durability is not None and durability != wire.Policy.Durability.Volatile)
