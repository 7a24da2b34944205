"""Leader arms on a bus of servos that is a real pseudo-terminal, through the makers' own libraries."""

import json
import math
import os
import time

import numpy as np
import pytest

from robot_bridge.takeover import DeviceLost
from robot_bridge.teleop.leader.config import LeaderConfig, LeaderGrip, LeaderJoint, load_leader
from robot_bridge.teleop.leader.device import LeaderTakeover
from robot_bridge.teleop.leader.servos import BusFault, ServoBus, maker_of
from sinew.config import to_json
from sinew.errors import DataError, InputError, MissingDependency

MODELS = {"dynamixel": ("xl330-m288", 1200), "feetech": ("sts3215", 777)}
PACKAGES = {"dynamixel": "dynamixel_sdk", "feetech": "scservo_sdk"}
JOINTS = ("pan", "lift", "elbow")
DEADLINE_S = 60.0


@pytest.fixture(params=sorted(MODELS))
def bus(request, servo_bus):
    pytest.importorskip(PACKAGES[request.param])
    return servo_bus(request.param, dict.fromkeys((1, 2, 3, 6), MODELS[request.param][1]))


def leader(bus, **changes):
    """An arm of three joints, the second turned round and with its zero at 1 rad, and a handle from 2 to 3 rad."""
    model = MODELS[bus.maker][0]
    place = {"pan": (1, 1, 0.0), "lift": (2, -1, 1.0), "elbow": (3, 1, math.pi)}
    joints = tuple(LeaderJoint(name=n, id=i, model=model, sign=s, zero_rad=z, low_rad=-2.0, high_rad=2.0) for n, (i, s, z) in place.items())
    grip = LeaderGrip(id=6, model=model, closed_rad=2.0, open_rad=3.0)
    return LeaderConfig(**{"robot": "test", "maker": bus.maker, "port": bus.port, "joints": joints, "grip": grip, **changes})


def until(what, does):
    """What a condition gives, as soon as it gives anything."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if (found := does()) is not None:
            return found
        time.sleep(0.005)
    raise AssertionError(f"{what} did not come to pass")


def test_angles_become_the_robots_joints_in_its_order_and_motors_are_switched_off(bus):
    bus.angles |= {1: 0.5, 2: 0.25, 3: math.pi - 0.75, 6: 2.25}
    device = LeaderTakeover(leader(bus), ("elbow", "pan", "lift"))
    try:
        given = until("an answer", device.read)
        assert given.kind == "joints" and given.arm == 0
        np.testing.assert_allclose(given.values, (-0.75, 0.5, 0.75), atol=0.001)
        assert given.open == pytest.approx(0.25, abs=0.002) and not any(bus.torque.values())
        bus.angles[1] = -1.0
        moved = until("the new angle", lambda: g if (g := device.read()) and g.values[1] < -0.99 else None)
        assert moved.seq > given.seq and moved.stamp_ns > given.stamp_ns and moved.hold == given.hold
    finally:
        device.close()


def test_a_servo_that_has_turned_through_its_zero_is_the_same_angle(bus):
    if bus.maker == "feetech":
        bus.angles |= {1: -0.3}
        wanted = -0.3
    else:
        bus.angles |= {1: 2 * math.tau + 0.4}  # Dynamixels count on over their turn
        wanted = 0.4
    device = LeaderTakeover(leader(bus), JOINTS)
    try:
        assert until("an answer", device.read).values[0] == pytest.approx(wanted, abs=0.001)
    finally:
        device.close()


def test_a_gap_is_nobody_in_control_then_a_lost_device_and_then_a_new_hold(bus):
    device = LeaderTakeover(leader(bus), JOINTS)
    try:
        hold = until("an answer", device.read).hold
        bus.mute.add(3)
        assert until("the gap", lambda: device.read() is None or None)

        def lost():
            try:
                device.read()
            except DeviceLost as e:
                return str(e)

        assert "servo 3" in until("the loss", lost) and not device.reopen()
        bus.mute.clear()
        until("the way back", lambda: device.reopen() or None)
        assert until("an answer", device.read).hold > hold
    finally:
        device.close()


def test_an_arm_that_is_unplugged_is_lost(bus):
    device = LeaderTakeover(leader(bus), JOINTS)
    try:
        until("an answer", device.read)
        bus.close()

        def lost():
            try:
                device.read()
            except DeviceLost as e:
                return str(e)

        assert "is gone" in until("the loss", lost) and not device.reopen()
    finally:
        device.close()


def test_noise_on_the_line_is_no_angle(bus):
    bus.noise = b"\xff\xff\x07\x30"
    bus.angles[1] = 0.5
    reader = ServoBus(maker_of(bus.maker), bus.port, 1_000_000)
    seen = []
    for _ in range(10):
        try:
            seen.append(reader.angles([1, 2, 3])[0])
        except BusFault:
            continue
    reader.close()
    assert all(abs(angle - 0.5) < 0.001 for angle in seen)


def test_what_is_wrong_with_an_arm_is_said_in_one_line(bus, tmp_path, monkeypatch):
    other = {"dynamixel": 1190, "feetech": 2825}[bus.maker]
    bus.servos[2] = other
    for config, said in (
        (leader(bus), "servo 2 on .* is (xl330-m077|sts3250), and .* is expected"),
        (leader(bus, port="/dev/nowhere"), "no port /dev/nowhere"),
        (leader(bus, baud=1234), "1234 baud is no rate"),
        (leader(bus, baud=57600), "servo 1 .* does not answer .*57600 baud"),
    ):
        with pytest.raises(InputError, match=said) as e:
            LeaderTakeover(config, JOINTS)
        assert "\n" not in str(e.value)
    bus.servos[2] = MODELS[bus.maker][1]
    with pytest.raises(InputError, match=r"unknown model of .* 'ax-12'"):
        LeaderTakeover(leader(bus, grip=LeaderGrip(id=6, model="ax-12", closed_rad=0.0, open_rad=1.0)), JOINTS)
    bus.mute.add(3)
    with pytest.raises(InputError, match=r"servo 3 .* does not answer \(servos 1, 2, 6 do\): check its id"):
        LeaderTakeover(leader(bus), JOINTS)
    with pytest.raises(InputError, match=r"leads joints pan, lift, elbow of robot test; arm 0 of this robot has a, b"):
        LeaderTakeover(leader(bus), ("a", "b"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, whom everything is allowed
    with pytest.raises(InputError, match=r"may not be used by you: .*dialout.*udev"):
        LeaderTakeover(leader(bus), JOINTS)


def test_a_port_that_another_program_has_is_refused(bus):
    first = LeaderTakeover(leader(bus), JOINTS)
    try:
        with pytest.raises(InputError, match="is another program using it"):
            LeaderTakeover(leader(bus), JOINTS)
    finally:
        first.close()


@pytest.mark.parametrize("maker", sorted(PACKAGES))
def test_a_missing_library_names_the_extra(maker, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, PACKAGES[maker], None)
    with pytest.raises(MissingDependency, match=r"pip install 'sinew\[teleop\]'"):
        maker_of(maker)


def test_a_file_is_read_strictly(tmp_path):
    part = {"name": "pan", "id": 1, "model": "sts3215", "sign": 1, "zero_rad": 0.0, "low_rad": -1.0, "high_rad": 1.0}
    good = {"robot": "test", "maker": "feetech", "port": "/dev/ttyACM0", "joints": [part]}
    file = tmp_path / "leader.json"
    file.write_text(json.dumps(good))
    read = load_leader(file)
    assert read.joints[0].name == "pan" and read.grip is None and to_json(read)["version"] == 1
    for change, said in (
        ({"version": 2}, "version 2"),
        ({"maker": "feetek"}, "did you mean 'feetech'"),
        ({"joints": []}, "at least one joint"),
        ({"joints": [part, part]}, "each servo once"),
        ({"joints": [{**part, "sign": 0}]}, "sign 0 must be"),
        ({"joints": [{**part, "id": 300}]}, "ids are 0 to 252"),
        ({"joints": [{**part, "low_rad": 2.0}]}, "cannot be"),
        ({"grip": {"id": 6, "model": "sts3215", "closed_rad": 1.0, "open_rad": 1.01}}, "too near"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises((DataError, InputError), match=said) as e:
            LeaderTakeover(load_leader(file), ("pan",))
        assert "\n" not in str(e.value)
    file.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_leader(file)
    with pytest.raises(InputError, match="sinew calibrate leader"):
        load_leader(tmp_path / "nowhere.json")
