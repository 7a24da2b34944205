"""A peer of another vendor's DDS: topics meet, services and actions are refused at once, with the reason.

The peer is made of datagrams by hand, as Fast DDS announces itself (OMG DDSI-RTPS 2.3: simple participant and endpoint
discovery), because it is not to be had as a Python package.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from robot_bridge.dds.messages import blank, wire_name
from robot_bridge.dds.node import Node
from robot_bridge.transport import vendor
from sinew.errors import InputError

PREFIX = bytes.fromhex("010f4242424242424242424f")
SPDP, SUBSCRIPTIONS = ((0x000100C7, 0x000100C2), (0x000004C7, 0x000004C2))
"""Built-in readers and writers of participant and of subscription announcements."""


def parameter(number: int, value: bytes) -> bytes:
    value += bytes(-len(value) % 4)
    return struct.pack("<HH", number, len(value)) + value


def text(value: str) -> bytes:
    return struct.pack("<I", len(value) + 1) + value.encode() + b"\0"


def data(entities: tuple[int, int], number: int, parameters: bytes) -> bytes:
    body = struct.pack("<HH", 0, 16) + struct.pack(">II", *entities) + struct.pack("<iI", 0, number)
    body += b"\0\3\0\0" + parameters + parameter(1, b"")
    return struct.pack("<BBH", 0x15, 0x05, len(body)) + body


class FastPeer:
    """Announces a participant and readers on topics, over and over, until it is closed."""

    def __init__(self, domain: int, topics: dict[str, str]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        locator = struct.pack("<iI12x", 1, self._socket.getsockname()[1]) + socket.inet_aton("127.0.0.1")
        self._ports = [7400 + 250 * domain + 10 + 2 * i for i in range(10)]
        self._participant = b"".join(
            parameter(number, value)
            for number, value in (
                (0x15, bytes([2, 3, 0, 0])), (0x16, PREFIX[:2]), (0x50, PREFIX + b"\0\0\1\xc1"), (0x32, locator), (0x31, locator),
                (0x02, struct.pack("<iI", 20, 0)), (0x58, struct.pack("<I", 0x3F)),
            )
        )  # fmt: skip
        self._readers = [
            b"".join(
                parameter(number, value)
                for number, value in (
                    (0x5A, PREFIX + bytes([0, 0, i, 4])), (0x05, text(topic)), (0x07, text(kind)),
                    (0x1A, struct.pack("<IiI", 2, 0, 0)), (0x1D, struct.pack("<I", 0)),
                )
            )
            for i, (topic, kind) in enumerate(topics.items(), 1)
        ]  # fmt: skip
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._quit.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        count = 0
        while not self._quit.wait(0.05):
            count += 1
            head = b"RTPS" + bytes([2, 3]) + PREFIX[:2] + PREFIX
            heartbeat = struct.pack(">II", *SUBSCRIPTIONS) + struct.pack("<iIiIi", 0, 1, 0, len(self._readers), count)
            announced = [data(SUBSCRIPTIONS, i, each) for i, each in enumerate(self._readers, 1)]
            packets = [data(SPDP, 1, self._participant), struct.pack("<BBH", 0x07, 0x01, len(heartbeat)) + heartbeat, *announced]
            for port in self._ports:
                for packet in packets:
                    self._socket.sendto(head + packet, ("127.0.0.1", port))


@pytest.fixture
def node(domain: int) -> Iterator[Node]:
    made = Node("ours", domain=domain)
    yield made
    made.close()


@pytest.fixture
def peer(domain: int) -> Iterator[FastPeer]:
    made = FastPeer(
        domain,
        {
            "rq/reset_robotRequest": wire_name("std_srvs/Trigger_Request"),
            "rq/hand/_action/send_goalRequest": wire_name("control_msgs/GripperCommand_SendGoal_Request"),
            "rt/commands": wire_name("std_msgs/Float64MultiArray"),
        },
    )
    yield made
    made.close()


def until(done) -> None:
    end = time.monotonic() + 20.0
    while not done():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def test_vendors_by_their_ids():
    assert vendor(bytes.fromhex("010f" + "00" * 14)) == "Fast DDS" and vendor(bytes.fromhex("0110" + "00" * 14)) == "Cyclone DDS"
    assert vendor(bytes.fromhex("01ff" + "00" * 14)) == "DDS vendor 0x01ff"


def test_services_and_actions_of_fast_dds_are_refused_at_once_and_topics_are_not(node, peer):
    publisher = node.publisher("/commands", "std_msgs/Float64MultiArray")
    until(lambda: publisher.subscribers == 1)
    until(lambda: {"/reset_robot", "/hand/_action/send_goal"} <= node.services().keys())
    client, action = node.client("/reset_robot", "std_srvs/Trigger"), node.action_client("/hand", "control_msgs/GripperCommand")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"/reset_robot is served by Fast DDS, whose services cannot be reached.*RMW_IMPLEMENTATION"):
        client.call(blank("std_srvs/Trigger_Request"), timeout_s=600.0)
    with pytest.raises(InputError, match="Fast DDS"):
        client.submit(blank("std_srvs/Trigger_Request"))
    with pytest.raises(InputError, match="Fast DDS"):
        action.send_goal(blank("control_msgs/GripperCommand_Goal"), timeout_s=600.0)
    assert time.monotonic() - started < 60.0  # not the time that a server is waited for
    (endpoint,) = [each for each in node.endpoints() if each.name == "/commands"]
    assert endpoint.vendor == "Fast DDS" and endpoint.message == "std_msgs/Float64MultiArray"


def test_a_server_that_can_answer_is_used_beside_one_that_cannot(node, peer):
    until(lambda: "/reset_robot" in node.services())
    node.server("/reset_robot", "std_srvs/Trigger", lambda _: blank("std_srvs/Trigger_Response", success=True))
    assert node.client("/reset_robot", "std_srvs/Trigger").call(blank("std_srvs/Trigger_Request"), timeout_s=20.0).success
