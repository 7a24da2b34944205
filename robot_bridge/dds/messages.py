"""ROS 2 message definitions: names, fields and hashes. rosbags is imported here only."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from sinew.errors import InputError, MissingDependency

Kind = tuple[Any, ...]

ROS_DISTRO = "jazzy"
"""Definitions used where ROS_DISTRO is not set; those of our messages are alike from Humble to Lyrical."""


@lru_cache(maxsize=1)
def store() -> Any:
    """Type store of rosbags for the ROS 2 distribution in ROS_DISTRO.

    Raises:
        MissingDependency: rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise MissingDependency("ROS 2 messages need rosbags: pip install 'rosbags>=0.11'") from None
    name = f"ROS2_{os.environ.get('ROS_DISTRO', ROS_DISTRO).upper()}"
    return get_typestore(getattr(Stores, name, Stores.ROS2_JAZZY))


def full_name(message: str) -> str:
    """The long form, "sensor_msgs/msg/JointState", of a message named in either form.

    Raises:
        InputError: no such message.
    """
    parts = message.split("/")
    name = f"{parts[0]}/msg/{parts[-1]}"
    if name not in store().fielddefs:
        package = [n for n in store().fielddefs if n.startswith(parts[0] + "/")]
        raise InputError(f"unknown ROS 2 message {message!r}; {parts[0]} has {', '.join(package) or 'none that is known'}")
    return name


def wire_name(message: str) -> str:
    """DDS type name of a message: "sensor_msgs::msg::dds_::JointState_"."""
    package, _, name = full_name(message).split("/")
    return f"{package}::msg::dds_::{name}_"


def type_hash(message: str) -> str:
    """RIHS01 hash of a message, REP 2016."""
    return store().hash_rihs01(full_name(message))


def make(message: str, **values: Any) -> Any:
    """An instance of rosbags' class of a message."""
    return store().types[full_name(message)](**values)


def fields(message: str) -> list[tuple[str, Kind]]:
    """Fields of a message: name and ("basic", type), ("message", name), ("array", kind, n) or ("sequence", kind, bound or 0)."""
    return [(name, _kind(kind)) for name, kind in store().fielddefs[full_name(message)][1]]


def _kind(definition: Any) -> Kind:
    from rosbags.interfaces import Nodetype

    node, argument = definition
    if node == Nodetype.BASE:
        return ("basic", argument[0])
    if node == Nodetype.NAME:
        return ("message", argument)
    return ("array" if node == Nodetype.ARRAY else "sequence", _kind(argument[0]), argument[1])
