"""ROS 2 message definitions: names, fields and hashes. rosbags is imported here only."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np

from robot_bridge.dds.definitions import DIFFERENT, definitions
from sinew.errors import InputError, MissingDependency

Kind = tuple[Any, ...]

ROS_DISTRO = "jazzy"
"""Definitions used where ROS_DISTRO is not set; those of our messages are alike from Humble to Lyrical."""


@cache
def store() -> Any:
    """Type store of rosbags for the ROS 2 distribution in ROS_DISTRO, with services, actions and ros2_control's messages added.

    Raises:
        MissingDependency: rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise MissingDependency("ROS 2 messages need rosbags: pip install 'rosbags>=0.11'") from None
    distro = os.environ.get("ROS_DISTRO", ROS_DISTRO)
    made = get_typestore(getattr(Stores, f"ROS2_{distro.upper()}", Stores.ROS2_JAZZY))
    # ROS 2 lays a char out, and hashes it, as uint8
    made.fielddefs.update(
        {name: (constants, [(n, _char_as_uint8(kind)) for n, kind in f]) for name, (constants, f) in made.fielddefs.items()}
    )
    ours = {**dict(definitions()), **DIFFERENT.get({"iron": "humble"}.get(distro, distro), {})}
    made.register({name: ([], _parse(text, name)) for name, text in ours.items() if name not in made.fielddefs})
    return made


@cache
def variant(message: str, distro: str) -> Any:
    """A store with one message, and what it is made of, as another distribution lays it out.

    Args:
        message: its long name.
        distro: a key of `definitions.DIFFERENT`.
    """
    from rosbags.typesys import Stores, get_typestore

    different = {name: ([], _parse(text, name)) for name, text in DIFFERENT[distro].items()}
    known = {**store().fielddefs, **different}
    wanted, open_names = {}, [message]
    while open_names:
        name = open_names.pop()
        if name not in wanted:
            wanted[name] = known[name]
            open_names += [kind[1] for _, field in known[name][1] if (kind := _innermost(_kind(field)))[0] == "message"]
    made = get_typestore(Stores.EMPTY)
    made.register(wanted)
    return made


def _innermost(kind: Kind) -> Kind:
    return _innermost(kind[1]) if kind[0] in ("array", "sequence") else kind


def _char_as_uint8(kind: Any) -> Any:
    node, argument = kind
    if argument == ("char", 0):
        return node, ("uint8", 0)
    return (node, (_char_as_uint8(argument[0]), argument[1])) if isinstance(argument[0], tuple) else kind


def _parse(text: str, owner: str) -> list[tuple[str, Any]]:
    """Fields of our own definitions in rosbags' form; a name without a package is of the owner's."""
    from rosbags.interfaces import Nodetype

    fields = []
    for line in filter(None, (part.strip() for part in text.split(";"))):
        kind, name = line.split()
        element, bracket, count = kind.rstrip("]").partition("[")
        if element[0].islower() and "/" not in element:
            node = (Nodetype.BASE, (element, 0))
        else:
            node = (Nodetype.NAME, _long_name(element if "/" in element else f"{owner.split('/')[0]}/{element}"))
        if bracket:
            node = (Nodetype.ARRAY if count else Nodetype.SEQUENCE, (node, int(count or 0)))
        fields.append((name, node))
    return fields


def _long_name(message: str) -> str:
    return message if message.count("/") == 2 else message.replace("/", "/msg/")


def full_name(message: str) -> str:
    """The long form, "sensor_msgs/msg/JointState", of a message named in either form; services and actions have messages too.

    Raises:
        InputError: no such message.
    """
    known, parts = store().fielddefs, message.split("/")
    for kind in ("msg", "srv", "action") if len(parts) < 3 else (parts[1],):
        if (name := f"{parts[0]}/{kind}/{parts[-1]}") in known:
            return name
    package = [n for n in known if n.startswith(parts[0] + "/")]
    raise InputError(f"unknown ROS 2 message {message!r}; {parts[0]} has {', '.join(package) or 'none that is known'}")


def parts(kind: str) -> tuple[str, str]:
    """Request and response of a service, in the long form.

    Raises:
        InputError: no such service.
    """
    return full_name(f"{kind}_Request"), full_name(f"{kind}_Response")


def wire_name(message: str) -> str:
    """DDS type name of a message: "sensor_msgs::msg::dds_::JointState_"."""
    package, kind, name = full_name(message).split("/")
    return f"{package}::{kind}::dds_::{name}_"


def ros_name(type_name: str) -> str:
    """The short ROS name, "sensor_msgs/JointState", of a DDS type; what is no ROS type stays as it is."""
    package, *rest = type_name.split("::")
    return f"{package}/{rest[-1].removesuffix('_')}" if len(rest) == 3 and rest[1] == "dds_" else type_name


def type_hash(message: str) -> str:
    """RIHS01 hash of a message, REP 2016."""
    return store().hash_rihs01(full_name(message))


def definition(message: str) -> str:
    """Text of a message and of all that it is made of, as MCAP keeps it under the name ros2msg."""
    return store().generate_msgdef(full_name(message), ros_version=2)[0]


def make(message: str, /, **values: Any) -> Any:
    """An instance of rosbags' class of a message."""
    return store().types[full_name(message)](**values)


def blank(message: str, /, **values: Any) -> Any:
    """An instance with `values`, and zeros, empty texts and empty sequences for all else."""
    return make(message, **{name: values[name] if name in values else _zero(kind) for name, kind in fields(message)})


def _zero(kind: Kind) -> Any:
    if kind[0] == "message":
        return blank(kind[1])
    if kind[0] == "basic":
        return {"string": "", "bool": False}.get(kind[1], 0.0 if kind[1].startswith("float") else 0)
    element, count = kind[1], kind[2] if kind[0] == "array" else 0
    if element[0] == "basic" and element[1] not in ("string", "wstring"):
        return np.zeros(count, dtype=element[1] if element[1] not in ("byte", "char", "octet") else "uint8")
    return [_zero(element) for _ in range(count)]


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
