"""DDS processes of this machine, from the ports that they have open: also those that cannot be met.

Ports of a domain d begin at 7400 + 250 d: the first two are multicast, from the tenth on each participant has a pair of its own
(OMG DDSI-RTPS, section on default ports). Linux only.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

BASE, DOMAIN_GAIN, UNICAST = 7400, 250, 10
MAX_PORT = 32767
"""Above lie the ports that Linux hands out for other uses; domains beyond 101 are not told apart from them."""


class Process(NamedTuple):
    """A process with DDS ports open."""

    domain: int
    pid: int
    """0 where it belongs to somebody else."""
    command: str
    multicast: bool
    """It listens for announcements of the whole subnet."""
    addressed: bool
    """It has one of the ports that announcements to this machine alone are sent to."""


def processes(table: str = "/proc/net/udp") -> list[Process]:
    """All of this machine, this process left out; empty where the system does not tell."""
    owners = _owners()
    ports: dict[tuple[int, int], set[int]] = defaultdict(set)
    for port, inode in _bound(table):
        if BASE <= port <= MAX_PORT:
            domain, offset = divmod(port - BASE, DOMAIN_GAIN)
            ports[domain, owners.get(inode, 0)].add(offset)
    made = []
    for (domain, pid), offsets in sorted(ports.items()):
        multicast = 0 in offsets
        addressed = any(o >= UNICAST and o % 2 == 0 and o + 1 in offsets for o in offsets)
        if pid != os.getpid() and (multicast or addressed):
            made.append(Process(domain, pid, _command(pid), multicast, addressed))
    return made


def _bound(table: str) -> list[tuple[int, str]]:
    """Local ports of UDP sockets with their inodes."""
    try:
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
    except OSError:
        return []
    return [(int(row[1].rpartition(":")[2], 16), row[9]) for row in rows]


def _owners() -> dict[str, int]:
    """Socket inode to process, of the processes whose files this user may see."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            for link in folder.iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    found[target[8:-1]] = int(folder.parent.name)
        except OSError:  # of another user, or gone meanwhile
            continue
    return found


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return " ".join(words).strip()[:80]
