"""The one door to Cyclone DDS: its types, QoS and entities as the rest of the bridge needs them."""

from __future__ import annotations

from functools import cache
from typing import Any

from robot_bridge.dds.messages import Kind, fields, full_name, wire_name
from sinew.errors import MissingDependency

try:
    from cyclonedds import _clayer  # type: ignore[attr-defined]  # compiled, without a stub
    from cyclonedds.builtin import (
        BuiltinDataReader,
        BuiltinTopicDcpsParticipant,
        BuiltinTopicDcpsPublication,
        BuiltinTopicDcpsSubscription,
    )
    from cyclonedds.core import DDSException, InstanceState, ReadCondition, SampleState, ViewState, WaitSet
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.idl import make_idl_struct, types
    from cyclonedds.idl.annotations import final
    from cyclonedds.pub import DataWriter
    from cyclonedds.qos import Policy, Qos
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration
except ImportError as e:
    raise MissingDependency(
        f"the DDS transport needs Cyclone DDS: pip install 'cyclonedds>=11' ({e}; there is no wheel for Linux on ARM)"
    ) from None

__all__ = [
    "ANY", "BuiltinDataReader", "BuiltinTopicDcpsParticipant", "BuiltinTopicDcpsPublication", "BuiltinTopicDcpsSubscription",
    "DDSException", "DataReader", "DataWriter", "Domain", "DomainParticipant", "Policy", "Qos", "ReadCondition", "Topic", "WaitSet",
    "dds_type", "duration", "take", "write",
]  # fmt: skip

ANY = SampleState.Any | ViewState.Any | InstanceState.Any

_BASIC: dict[str, Any] = {
    **{n: getattr(types, n) for n in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")},
    "bool": bool,
    "string": str,
    "char": types.uint8,
    "byte": types.uint8,
    "octet": types.uint8,
}


@cache
def dds_type(message: str, service: bool = False) -> Any:
    """The message as a DDS type: final, without keys, so that it is matched and sent as ROS 2 does (plain XCDR1).

    Args:
        message: its name.
        service: put the 16 bytes in front that tell who asked what; Cyclone DDS drops samples that are not laid out as declared.
    """
    annotations: dict[str, Any] = {"client_id": types.uint64, "sequence_number": types.int64} if service else {}
    annotations |= {name: _field(kind) for name, kind in fields(message)} or {"structure_needs_at_least_one_member": types.uint8}
    name = full_name(message).split("/")[-1]
    return final(make_idl_struct(f"{name}_", wire_name(message), annotations))


def _field(kind: Kind) -> Any:
    if kind[0] == "basic":
        return _BASIC[kind[1]]
    if kind[0] == "message":
        return dds_type(kind[1])
    element = _field(kind[1])
    if kind[0] == "array":
        return types.array[element, kind[2]]
    return types.sequence[element, kind[2]] if kind[2] else types.sequence[element]


def write(writer: Any, payload: bytes | bytearray | memoryview) -> int:
    """Send a whole CDR payload as it is, past Cyclone's own serialiser; its length must be a multiple of 4. 0, or an error code."""
    return _clayer.ddspy_write(writer._ref, payload)


def take(reader: Any, most: int) -> list[tuple[bytes, Any]]:
    """Take up to `most` samples as CDR payloads with their sample info, past Cyclone's own deserialiser."""
    taken = _clayer.ddspy_take(reader._ref, ANY, most)
    if isinstance(taken, int):
        raise DDSException(taken, "while taking samples")
    return taken
