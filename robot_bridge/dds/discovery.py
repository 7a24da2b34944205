"""Who is talked to: the DDS domain and how far discovery reaches, from ROS 2's own environment variables."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal, get_args

from sinew.errors import InputError

Range = Literal["LOCALHOST", "LOOPBACK", "SUBNET"]
INTERFACE = "INTERFACE:"
"""Begins a range that is one network interface: INTERFACE:eth0."""
MAX_DOMAIN = 232
MAX_PARTICIPANT_INDEX = 99
"""Processes per domain that find each other on one machine without multicast."""

LEASE_S = 3
"""A process that was killed counts as gone after this long; Cyclone's own value is 10 s."""

ANNOUNCE_S = 2
"""How often we tell of ourselves: whoever was cut off is found again this soon; Cyclone's own value is 30 s."""

# What rmw_cyclonedds does for LOCALHOST: no multicast, the possible ports of this machine asked one by one. Bound to
# 127.0.0.1 alone it would not meet ROS 2 processes, which announce the address of the network card; LOOPBACK is bound to it.
# Bound to the network card alone, Cyclone DDS 11 drops what ROS 2 processes send to 127.0.0.1, so it needs both.
# What stays on one machine travels in datagrams as large as they come: an image is 15 of them instead of 700.
_CONFIGURATION = f"""<CycloneDDS><Domain id="any"><General>{{interfaces}}<AllowMulticast>false</AllowMulticast>
<MaxMessageSize>65500B</MaxMessageSize><FragmentSize>65000B</FragmentSize></General>
<Discovery><LeaseDuration>{LEASE_S} s</LeaseDuration><SPDPInterval>{ANNOUNCE_S} s</SPDPInterval>
<ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>{MAX_PARTICIPANT_INDEX}</MaxAutoParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers></Discovery>{{threads}}</Domain></CycloneDDS>"""
_LOOPBACK = '<NetworkInterface address="127.0.0.1"/>'
_INTERFACES = {"LOOPBACK": _LOOPBACK, "LOCALHOST": '<NetworkInterface autodetermine="true"/>' + _LOOPBACK}

# What SUBNET does, on one network only: a robot's own cable is not the office's wireless network.
_NAMED = f"""<CycloneDDS><Domain id="any"><General><Interfaces><NetworkInterface name="{{name}}"/></Interfaces></General>
<Discovery><LeaseDuration>{LEASE_S} s</LeaseDuration><SPDPInterval>{ANNOUNCE_S} s</SPDPInterval></Discovery>
{{threads}}</Domain></CycloneDDS>"""

# Its receiver hands samples to our readers: a control loop that waits for them is only as regular as this thread.
_REALTIME = """<Threads><Thread name="recv"><Scheduling><Class>Realtime</Class><Priority>48</Priority></Scheduling></Thread></Threads>"""


def domain_id(given: int | None = None) -> int:
    """The DDS domain: `given`, else ROS_DOMAIN_ID, else 0.

    Raises:
        InputError: not a number from 0 to 232.
    """
    text = os.environ.get("ROS_DOMAIN_ID", "") if given is None else str(given)
    try:
        number = int(text or 0)
    except ValueError:
        number = -1
    if not 0 <= number <= MAX_DOMAIN:
        raise InputError(f"DDS domain {text!r} is not a number from 0 to {MAX_DOMAIN}; set ROS_DOMAIN_ID or --domain")
    return number


def discovery_range(given: str | None = None) -> str:
    """How far discovery reaches: `given`, else ROS_AUTOMATIC_DISCOVERY_RANGE, else LOCALHOST.

    LOCALHOST and SUBNET mean what they mean to ROS 2, whose own default is SUBNET; here a network is spoken to only when
    asked for, as nothing is authenticated. LOOPBACK is ours: sockets on 127.0.0.1 alone, which ROS 2 nodes cannot join. So is
    the name of a network interface: what is connected to that one is spoken to, as with SUBNET, and nobody else.

    Raises:
        InputError: a range that is not known, or an interface that is not there.
    """
    value = given or os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") or "LOCALHOST"
    if value.upper() in get_args(Range):
        return value.upper()
    name, there = value.removeprefix(INTERFACE), [name for _, name in socket.if_nameindex()]
    if name in there:
        return INTERFACE + name
    raise InputError(
        f"discovery range {value!r} is not known; known are {', '.join(get_args(Range))} and the network interfaces {', '.join(there)}"
    )


def _networked() -> bool:
    """Whether any interface besides the loopback one has an IPv4 address."""
    try:
        routes = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:  # not Linux
        return True
    return any(not route.startswith("lo\t") for route in routes)


def configurations(reach: str, realtime: bool = False) -> list[str | None]:
    """Cyclone DDS configurations for a range, the best first: one that a machine or library does not take is passed over.

    Args:
        reach: how far discovery goes.
        realtime: put the receiving thread under SCHED_FIFO; the system must allow it.

    Returns:
        XML texts; None for Cyclone's defaults, or where CYCLONEDDS_URI configures it.
    """
    if reach == "SUBNET" or os.environ.get("CYCLONEDDS_URI"):
        return [None]
    threaded = (_REALTIME, "") if realtime else ("",)
    if reach.startswith(INTERFACE):
        return [_NAMED.format(name=reach.removeprefix(INTERFACE), threads=threads) for threads in threaded]
    # the loopback interface may not be named twice, and is all that there is on a machine without a network
    interfaces = [_INTERFACES[reach], _LOOPBACK] if _networked() and reach == "LOCALHOST" else [_LOOPBACK]
    return [
        _CONFIGURATION.format(interfaces=f"<Interfaces>{chosen}</Interfaces>", threads=threads)
        for chosen in interfaces
        for threads in threaded
    ]
