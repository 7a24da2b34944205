"""The proxy between two DDS processes: nothing goes past it, and what it is told to do happens."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from robot_bridge.faults.link import LinkFaults
from robot_bridge.faults.rtps import locators, relocated
from robot_bridge.faults.rtps_proxy import RtpsProxy

PEER = """
import sys, time
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
node = Node("peer", domain=DOMAIN, reach="LOOPBACK")
heard = node.subscription("/to_SELF", "std_msgs/Int64")
say = node.publisher("/to_OTHER", "std_msgs/Int64")
print("up", flush=True)
number = 0
while True:
    for sample in heard.take():
        print(codec.decode(sample.data, "std_msgs/Int64").data, flush=True)
    number += 1
    say.send(make("std_msgs/Int64", data=number))
    time.sleep(0.02)
"""


@pytest.fixture
def proxy() -> Iterator[RtpsProxy]:
    with RtpsProxy(seed=3) as proxy:
        yield proxy


@pytest.fixture
def peers(spawn, proxy, domain) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Two processes that count aloud to one another; what a process hears it prints."""

    def start(side: str, own: str, other: str) -> subprocess.Popen[str]:
        code = PEER.replace("DOMAIN", str(domain)).replace("SELF", own).replace("OTHER", other)
        return spawn(code, **proxy.environment(side))

    return start("robot", "a", "b"), start("policy", "b", "a")


def numbers(process: subprocess.Popen[str], count: int) -> list[int]:
    """The next numbers that a process hears."""
    heard: list[int] = []
    assert process.stdout is not None
    while len(heard) < count:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        heard += [int(line)] if line.strip().isdigit() else []
    return heard


def test_processes_that_start_apart_meet_through_the_proxy_alone(proxy, peers):
    a, b = peers
    assert numbers(a, 20) and numbers(b, 20)
    assert proxy.to_policy.given > 20 and proxy.to_robot.given > 20


def test_a_partition_silences_both_and_its_end_lets_new_messages_through(proxy, peers, until):
    a, b = peers
    numbers(a, 5)
    heard = numbers(b, 5)
    proxy.set(LinkFaults(partition=True))
    lost = proxy.to_policy.lost
    given = proxy.to_policy.given
    until(lambda: proxy.to_policy.lost > lost + 100)
    assert proxy.to_policy.given == given
    proxy.set()
    while heard[-1] < heard[-2] + 10:  # what it heard before, then a hole: ten messages are kept for those who come late
        heard += numbers(b, 1)
    heard += numbers(b, 20)
    assert heard == sorted(set(heard))  # nothing twice, nothing late


def test_loss_delay_duplication_and_reordering_never_give_anything_twice_or_out_of_order(proxy, peers):
    a, b = peers
    proxy.set(LinkFaults(loss=0.2, delay_s=0.05, jitter_s=0.03, duplicate=0.2, reorder=0.2))
    for process in (a, b):
        heard = numbers(process, 60)
        assert heard == sorted(set(heard))
    assert proxy.to_policy.lost and proxy.to_policy.doubled


def test_without_the_proxy_they_do_not_meet(spawn, domain, until):
    """The configuration alone connects nobody: what arrives in the other tests came through the proxy."""
    with RtpsProxy() as first, RtpsProxy() as second:
        code = PEER.replace("DOMAIN", str(domain))
        a = spawn(code.replace("SELF", "a").replace("OTHER", "b"), **first.environment("robot"))
        b = spawn(code.replace("SELF", "b").replace("OTHER", "a"), **second.environment("policy"))
        for process in (a, b):
            assert process.stdout is not None and process.stdout.readline() == "up\n"
        until(lambda: first.participants["robot"] == 1 and second.participants["policy"] == 1)
        assert a.poll() is None and b.poll() is None
        assert first.participants["policy"] == 0 and second.participants["robot"] == 0


# ---------------------------------------------------------------- packets


def announcement(order: str, address: tuple[str, int]) -> bytes:
    """An SPDP packet with one metatraffic locator, laid out by hand from the RTPS specification."""
    locator = struct.pack(order + "II", 1, address[1]) + bytes(12) + socket.inet_aton(address[0])
    parameters = struct.pack(order + "HH", 0x15, 4) + b"\2\1\0\0" + struct.pack(order + "HH", 0x32, 24) + locator
    parameters += struct.pack(order + "HH", 1, 0)
    payload = (b"\0\3" if order == "<" else b"\0\2") + b"\0\0" + parameters
    flags = 4 | (order == "<")
    body = struct.pack(order + "HH", 0, 16) + bytes(4) + b"\x00\x01\x00\xc2" + bytes(8) + payload
    return b"RTPS\2\1\1\x10" + bytes(12) + bytes([0x15, flags]) + struct.pack(order + "H", len(body)) + body


@pytest.mark.parametrize("order", ["<", ">"])
def test_addresses_in_announcements_are_found_and_replaced_in_both_byte_orders(order):
    packet = announcement(order, ("10.1.2.3", 7411))
    (found,) = locators(packet)
    assert found.address == ("10.1.2.3", 7411) and found.participant and found.parameter == 0x32
    changed, _ = relocated(packet, lambda address: ("127.0.0.1", address[1] + 1))
    assert len(changed) == len(packet) and next(iter(locators(changed))).address == ("127.0.0.1", 7412)
    assert sum(x != y for x, y in zip(packet, changed, strict=True)) <= 6  # port and address alone


def test_what_is_no_announcement_is_left_as_it_is():
    packet = announcement("<", ("10.1.2.3", 7411))
    rng = np_random()
    for _ in range(2000):
        spoiled = bytearray(packet[: rng(len(packet))])
        for _ in range(rng(4)):
            if spoiled:
                spoiled[rng(len(spoiled))] = rng(256)
        changed, _ = relocated(bytes(spoiled), lambda address: address)
        assert len(changed) == len(spoiled)
    assert relocated(b"hello", lambda address: address) == (b"hello", [])


def np_random() -> Callable[[int], int]:
    import numpy as np

    generator = np.random.default_rng(0)
    return lambda high: int(generator.integers(high)) if high else 0


def test_the_environment_is_one_that_processes_take(proxy):
    code = "from robot_bridge.dds.node import Node; Node('x', domain=7).close(); print('fine')"
    environment = {**os.environ, **proxy.environment("robot")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout == "fine\n"
