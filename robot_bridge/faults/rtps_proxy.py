"""A bad network between two DDS processes, in user space.

Every packet goes through here, and what the processes announce about themselves is changed, so that neither ever learns
where the other really is.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass

from robot_bridge.faults.link import CLEAR, Link, LinkFaults
from robot_bridge.faults.rtps import METATRAFFIC, Address, relocated

HOST = "127.0.0.1"
IDLE_S = 0.2
BUFFER_BYTES = 4 * 2**20

_CONFIGURATION = """<CycloneDDS><Domain id="any"><General><Interfaces><NetworkInterface address="127.0.0.1"/></Interfaces>
<AllowMulticast>false</AllowMulticast></General><Discovery><LeaseDuration>{lease_s} s</LeaseDuration>
<SPDPInterval>1 s</SPDPInterval><ParticipantIndex>none</ParticipantIndex><Peers>{peers}</Peers></Discovery></Domain></CycloneDDS>"""


@dataclass(frozen=True)
class _Socket:
    """A socket of the proxy."""

    handle: socket.socket
    sender: int
    """Side (0 or 1) of those who send to it."""
    stands_for: Address | None
    """Whom packets are passed on to; None for the first contact of a side, which stands for everybody on the other."""


class RtpsProxy:
    """Relays DDS traffic between side "robot" and side "policy" from its making until `close`.

    Processes take part through the environment: `Popen(..., env={**os.environ, **proxy.environment("robot")})`. They must be
    on this machine. A side may hold several processes; those of one side do not hear each other through the proxy.

    Args:
        seed: of every chance.
        lease_s: after how long participants that are not heard of count as gone.
    """

    SIDES = ("robot", "policy")

    def __init__(self, seed: int = 0, lease_s: float = 3.0) -> None:
        self.lease_s = lease_s
        self.to_policy: Link[tuple[socket.socket, Address, bytes]] = Link(seed=2 * seed)
        self.to_robot: Link[tuple[socket.socket, Address, bytes]] = Link(seed=2 * seed + 1)
        self._links = (self.to_policy, self.to_robot)  # by the side that sends
        self._selector = selectors.DefaultSelector()
        self._places: dict[tuple[int, Address], socket.socket] = {}
        self._announced: tuple[dict[bytes, bytes], dict[bytes, bytes]] = ({}, {})
        self._meeting: tuple[list[Address], list[Address]] = ([], [])
        self._first = tuple(self._open(side, None) for side in (0, 1))
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rtps proxy", daemon=True)
        self._thread.start()

    def environment(self, side: str) -> dict[str, str]:
        """Variables for processes of a side; DDS ranges given to `Node` are passed over while they are set."""
        host, port = self._first[self.SIDES.index(side)].getsockname()
        return {"CYCLONEDDS_URI": _CONFIGURATION.format(lease_s=self.lease_s, peers=f'<Peer address="{host}:{port}"/>')}

    def set(self, faults: LinkFaults = CLEAR, *, back: LinkFaults | None = None) -> None:
        """Faults from now on: from the robot to the policy, and `back`, the same if left out."""
        self.to_policy.faults = faults
        self.to_robot.faults = faults if back is None else back

    @property
    def participants(self) -> dict[str, int]:
        """How many participants have announced themselves, per side."""
        return {side: len(announced) for side, announced in zip(self.SIDES, self._announced, strict=True)}

    def close(self) -> None:
        """Stop relaying."""
        self._quit.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def __enter__(self) -> RtpsProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ the proxy's thread

    def _run(self) -> None:
        while not self._quit.is_set():
            for key, _ in self._selector.select(self._patience_s()):
                self._receive(key.data)
            self._send()

    def _patience_s(self) -> float:
        due = [link.next_ns for link in self._links if link.next_ns is not None]
        return min(IDLE_S, max(0.0, (min(due) - time.monotonic_ns()) / 1e9)) if due else IDLE_S

    def _receive(self, place: _Socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # what was sent to a process that ended comes back as an error
            while True:
                self._pass_on(place, place.handle.recv(65536))

    def _pass_on(self, place: _Socket, packet: bytes) -> None:
        side, now_ns = place.sender, time.monotonic_ns()
        packet, found = relocated(packet, lambda address: self._place(1 - side, address))
        meeting = [locator.address for locator in found if locator.participant and locator.parameter == METATRAFFIC]
        if meeting:
            self._announced[side][packet[8:20]] = packet
        link = self._links[side]
        for destination in [place.stands_for] if place.stands_for else self._meeting[1 - side]:
            link.put((place.handle, destination, packet), now_ns)
        for address in set(meeting) - set(self._meeting[side]):
            self._meeting[side].append(address)
            for announcement in self._announced[1 - side].values():  # what came before there was anybody to tell it to
                self._links[1 - side].put((place.handle, address, announcement), now_ns)

    def _send(self) -> None:
        now_ns = time.monotonic_ns()
        for link in self._links:
            for handle, destination, packet in link.due(now_ns):
                with contextlib.suppress(OSError):  # nobody is there any more: lost, as on a real network
                    handle.sendto(packet, destination)

    def _place(self, sender: int, address: Address) -> Address:
        """Where those of side `sender` find `address`, which is of the other side."""
        if (sender, address) not in self._places:
            self._places[sender, address] = self._open(sender, address)
        return self._places[sender, address].getsockname()

    def _open(self, sender: int, stands_for: Address | None) -> socket.socket:
        handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        handle.setblocking(False)
        handle.bind((HOST, 0))
        self._selector.register(handle, selectors.EVENT_READ, _Socket(handle, sender, stands_for))
        return handle
