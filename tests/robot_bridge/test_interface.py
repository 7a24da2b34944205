"""DDS that keeps to one network interface."""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ElementTree

import pytest

from robot_bridge.dds.discovery import INTERFACE, configurations, discovery_range
from sinew.errors import InputError

MEET = """
import sys, time
from robot_bridge.dds.node import Node
node, end = Node("meet_{who}", domain={domain}, reach="lo"), time.monotonic() + 60
node.publisher("/meet/{who}", "std_msgs/msg/String")
while not any(str(topic).endswith("/meet/{other}") for topic in node.topics()) and time.monotonic() < end:
    time.sleep(0.05)
print("met" if time.monotonic() < end else "alone", flush=True)
time.sleep(60)
node.close()
"""


def test_an_interface_is_one_that_is_there(monkeypatch):
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
    assert discovery_range() == "LOCALHOST" and discovery_range("subnet") == "SUBNET"
    for _, name in socket.if_nameindex():
        assert discovery_range(name) == discovery_range(INTERFACE + name) == INTERFACE + name
    for odd in ("wlan77", 'lo"/><NetworkInterface name="eth0', INTERFACE, "lo "):
        with pytest.raises(InputError, match=r"is not known; known are LOCALHOST, LOOPBACK, SUBNET and the network interfaces .*lo"):
            discovery_range(odd)


def test_its_configuration_names_that_interface_and_no_other(monkeypatch):
    monkeypatch.delenv("CYCLONEDDS_URI", raising=False)
    for realtime, count in ((False, 1), (True, 2)):
        texts = configurations(INTERFACE + "lo", realtime)
        assert len(texts) == count
        for text in texts:
            assert text is not None
            found = ElementTree.fromstring(text).findall("./Domain/General/Interfaces/NetworkInterface")
            assert [interface.attrib for interface in found] == [{"name": "lo"}]


def test_two_processes_on_one_interface_meet(spawn, domain):
    processes = [spawn(MEET.format(who=who, other=other, domain=domain)) for who, other in (("a", "b"), ("b", "a"))]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "met"
