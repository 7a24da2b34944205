"""Where RTPS participants say that they can be reached, found in and replaced in their announcements.

Source: OMG DDSI-RTPS 2.5, sections 9.4 (messages), 9.6.3 (parameter lists) and 8.5 (discovery).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

Address = tuple[str, int]
"""IPv4 address and UDP port."""

HEADER_BYTES = 20
DATA = 0x15
PARTICIPANTS = 0x000100C2
"""Entity id of the writer of participant announcements (SPDP)."""
ANNOUNCEMENTS = (PARTICIPANTS, 0x000003C2, 0x000004C2)
"""The same, and of those of publications and subscriptions (SEDP)."""
METATRAFFIC = 0x32
"""Parameter: where a participant takes announcements."""
LOCATORS = (0x2F, 0x31, METATRAFFIC)
"""Parameters that hold unicast locators."""
SENTINEL = 0x01
UDP_V4 = 1
LOCATOR_BYTES = 24


class Locator(NamedTuple):
    """A place in a packet that says where its sender can be reached."""

    at: int
    """Offset of the locator's kind, port and address in the packet."""
    order: str
    """Byte order of that part: "<" or ">"."""
    parameter: int
    participant: bool
    """Whether it stands in a participant's announcement."""
    address: Address


def locators(packet: bytes) -> Iterator[Locator]:
    """Every unicast UDP locator in the announcements of an RTPS packet; none of anything that is no such packet."""
    if len(packet) < HEADER_BYTES or packet[:4] != b"RTPS":
        return
    at = HEADER_BYTES
    while at + 4 <= len(packet):
        kind, flags = packet[at], packet[at + 1]
        order = "<" if flags & 1 else ">"
        (length,) = struct.unpack_from(order + "H", packet, at + 2)
        end = len(packet) if length == 0 else min(at + 4 + length, len(packet))
        if kind == DATA and flags & 4 and at + 24 <= end:
            (writer,) = struct.unpack_from(">I", packet, at + 12)
            if writer in ANNOUNCEMENTS:
                yield from _in_data(packet, at, end, order, flags, writer == PARTICIPANTS)
        at = end


def _in_data(packet: bytes, at: int, end: int, order: str, flags: int, participant: bool) -> Iterator[Locator]:
    """The locators of one DATA submessage."""
    (to_quality,) = struct.unpack_from(order + "H", packet, at + 6)
    begin = at + 8 + to_quality
    if flags & 2:  # inline quality of service stands before the payload
        for _, value, size in _parameters(packet, begin, end, order):
            begin = value + size
        begin += 4
    if begin + 4 > end or packet[begin] != 0 or packet[begin + 1] not in (2, 3):
        return
    order = "<" if packet[begin + 1] == 3 else ">"
    for parameter, value, size in _parameters(packet, begin + 4, end, order):
        if parameter in LOCATORS and size == LOCATOR_BYTES:
            kind, port = struct.unpack_from(order + "II", packet, value)
            if kind == UDP_V4:
                address = socket.inet_ntoa(packet[value + 20 : value + 24])
                yield Locator(value, order, parameter, participant, (address, port))


def _parameters(packet: bytes, at: int, end: int, order: str) -> Iterator[tuple[int, int, int]]:
    """(parameter, offset, size) until the sentinel."""
    while at + 4 <= end:
        parameter, size = struct.unpack_from(order + "HH", packet, at)
        if parameter == SENTINEL or at + 4 + size > end:
            return
        yield parameter & 0x3FFF, at + 4, size
        at += 4 + size


def relocated(packet: bytes, where: Callable[[Address], Address]) -> tuple[bytes, list[Locator]]:
    """The packet with `where(address)` in place of every address, and what stood there before."""
    found = list(locators(packet))
    if not found:
        return packet, found
    changed = bytearray(packet)
    for locator in found:
        host, port = where(locator.address)
        struct.pack_into(locator.order + "I", changed, locator.at + 4, port)
        changed[locator.at + 8 : locator.at + 24] = bytes(12) + socket.inet_aton(host)
    return bytes(changed), found
