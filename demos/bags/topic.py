"""What a bag holds: topics with their types and promises, and messages as bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

MESSAGE_LIMIT = 256 << 20
"""Bytes that a message or a block of messages may have when it is read; more is taken for damage."""
FOREVER = {"sec": 9223372036, "nsec": 854775807}
"""A duration without end, as rosbag2 writes it."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic of a bag."""

    name: str
    """Absolute name, "/joint_states"."""
    type: str
    """Message type, "sensor_msgs/msg/JointState"."""
    definition: str = ""
    """Its text, with those of the messages in it, in the format that MCAP calls ros2msg."""
    type_hash: str = ""
    """RIHS01 hash of the type, where it is known."""
    encoding: str = "cdr"
    """Of the messages: ROS 2's cdr; in MCAP files of others also json, protobuf and more."""
    schema: bytes = b""
    """The definition in a format other than ros2msg, as an MCAP file holds it."""
    reliable: bool = True
    latched: bool = False
    """Transient local: who comes later gets the last samples."""
    depth: int = 10

    def qos(self) -> list[dict[str, Any]]:
        """What publishers of the topic offered, as rosbag2 keeps it from version 9 of its metadata on."""
        return [
            {
                "history": "keep_last",
                "depth": self.depth,
                "reliability": "reliable" if self.reliable else "best_effort",
                "durability": "transient_local" if self.latched else "volatile",
                "deadline": FOREVER,
                "lifespan": FOREVER,
                "liveliness": "automatic",
                "liveliness_lease_duration": FOREVER,
                "avoid_ros_namespace_conventions": False,
            }
        ]

    def qos_text(self) -> str:
        """The same as text: JSON, which YAML readers read."""
        return json.dumps(self.qos())


class BagMessage(NamedTuple):
    """A message of a bag."""

    topic: str
    log_ns: int
    """When it was received, wall clock."""
    publish_ns: int
    """When it was sent, wall clock; `log_ns` where the bag does not tell."""
    data: bytes
    """Of CDR the payload with its header."""


def promises(text: str) -> dict[str, bool]:
    """`reliable` and `latched` from the text of a QoS profile, words or rmw's numbers."""
    said: dict[str, bool] = {}
    reliability = re.search(r"[\"']?reliability[\"']?:\s*[\"']?(\w+)", text)
    durability = re.search(r"[\"']?durability[\"']?:\s*[\"']?(\w+)", text)
    if reliability:
        said["reliable"] = reliability[1].lower() not in ("best_effort", "2")
    if durability:
        said["latched"] = durability[1].lower() in ("transient_local", "1")
    return said


def in_one_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


Messages = Iterator[BagMessage]
