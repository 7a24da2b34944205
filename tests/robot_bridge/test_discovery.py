"""Domain and range from ROS 2's environment variables."""

from __future__ import annotations

import pytest

from robot_bridge.dds.discovery import configurations, discovery_range, domain_id
from sinew.errors import InputError


def test_domain(monkeypatch):
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    assert domain_id() == 0 and domain_id(5) == 5
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert domain_id() == 42 and domain_id(7) == 7
    for bad in ("x", "233", "-1", "1.5"):
        monkeypatch.setenv("ROS_DOMAIN_ID", bad)
        with pytest.raises(InputError, match="0 to 232"):
            domain_id()


def test_range(monkeypatch):
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
    monkeypatch.delenv("CYCLONEDDS_URI", raising=False)
    assert discovery_range() == "LOCALHOST"  # a network only when asked for
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "subnet")
    assert discovery_range() == "SUBNET" and discovery_range("LOOPBACK") == "LOOPBACK"
    with pytest.raises(InputError, match="known are LOCALHOST, LOOPBACK, SUBNET"):
        discovery_range("OFF")
    assert configurations("SUBNET") == [None]
    for reach in ("LOCALHOST", "LOOPBACK"):
        best, *others = configurations(reach)
        assert best and "<AllowMulticast>false" in best and 'address="127.0.0.1"/></Interfaces>' in best
        assert all('<Interfaces><NetworkInterface address="127.0.0.1"/></Interfaces>' in (other or "") for other in others)
    assert [("Realtime" in (text or "")) for text in configurations("LOOPBACK", realtime=True)] == [True, False]
    monkeypatch.setenv("CYCLONEDDS_URI", "file:///somewhere.xml")
    assert configurations("LOCALHOST") == [None]  # the user's own configuration counts
