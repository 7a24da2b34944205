"""One-way latency of joint states between two processes: waited for, looked for, with Cyclone's own codec, and a bare datagram."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sinew.bench import Row

JOINTS = [f"joint{i}" for i in range(1, 8)] + ["gripper"]
TOPIC = "/sinew/bench/joint_states"
RATE_HZ = 1000.0
NO_ROS = "rclpy needs a ROS 2 installation; 166 / 375 us p50 / p99 measured elsewhere"
BARE = "a UDP datagram of the same size between two such processes, nothing else"


def latency_rows(seconds: float) -> list[Row]:
    """JointState at 1 kHz from another process, stamped with the machine's monotonic clock, in microseconds."""
    idle = os.getloadavg()[0] < 1.0  # the target is for an idle machine; on a busy one it can be met but not missed
    measured = {way: np.array(_received(way, seconds)) / 1e3 for way in ("wait", "native", "look", "datagram")}
    made = []
    for name, quantile, target in (("p50", 50, 60.0), ("p99", 99, 130.0)):
        value, native, looked, bare = (float(np.percentile(each, quantile)) for each in measured.values())
        common: dict[str, Any] = {"unit": "us", "higher_is_better": False}
        peer = f"Cyclone DDS's own Python codec; {NO_ROS}"
        holds = True if value <= target else False if idle else None
        made += [
            Row(
                name=f"JointState at 1 kHz, two processes, {name}", ours=value, peer=peer, peer_value=native,
                target=f"<= {target:g} us on an idle machine", holds=holds, **common,
            ),
            Row(name=f"the same, {name}, beside what this machine allows", ours=value, peer=BARE, peer_value=bare, **common),
            Row(name=f"the same, {name}, seen by who looks all the time", ours=looked, peer=BARE, peer_value=bare, **common),
        ]  # fmt: skip
    return made


def native(payload: bytes, message: str) -> Any:
    """A message as Cyclone's own Python object."""
    from robot_bridge.dds import wire

    return wire.dds_type(message).deserialize(payload)


# ---------------------------------------------------------------- the receiving process


def _received(way: str, seconds: float) -> list[int]:
    """Latencies in ns of the messages that a sender process writes, the first tenth left out."""
    with _opened(way) as (address, take), _sender(way, address, seconds) as sender:
        latencies = []
        while sender.poll() is None:
            for stamp_ns in take():
                latencies.append(time.monotonic_ns() - stamp_ns)
    if not latencies:
        raise RuntimeError(f"the sender process ended with {sender.returncode} and sent nothing")
    return latencies[len(latencies) // 10 :]


@contextmanager
def _sender(way: str, address: int, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """The other process; this one's thread has real-time priority meanwhile."""
    from robot_bridge.cadence import raise_priority

    sender = subprocess.Popen([sys.executable, "-m", __name__, way, str(address), str(seconds)])
    scheduler = os.sched_getscheduler(0)
    raise_priority()
    try:
        yield sender
    finally:
        os.sched_setscheduler(0, scheduler, os.sched_param(0))
        sender.wait()


@contextmanager
def _opened(way: str) -> Iterator[tuple[int, Callable[[], list[int]]]]:
    """The domain or port to send to, and a call that gives the stamps of what has come."""
    if way == "datagram":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(0.1)
            yield receiver.getsockname()[1], lambda: _datagram(receiver)
        return
    from robot_bridge.dds import codec
    from robot_bridge.dds.node import Node

    domain = 1 + os.getpid() % 99
    node = Node("bench_receiver", domain=domain)
    subscription = node.subscription(TOPIC, "sensor_msgs/JointState")
    decoder = codec.JointStateDecoder()

    def take() -> list[int]:
        if way == "look" or subscription.wait(0.1):
            read = _native_stamp if way == "native" else lambda data: decoder.decode(data).stamp_ns
            return [read(sample.data) for sample in subscription.take()]
        return []

    try:
        yield domain, take
    finally:
        node.close()


def _native_stamp(data: bytes) -> int:
    stamp = native(data, "sensor_msgs/JointState").header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def _datagram(receiver: socket.socket) -> list[int]:
    try:
        return [int.from_bytes(receiver.recv(2048)[:8], "little")]
    except TimeoutError:
        return []


# ---------------------------------------------------------------- the sending process


def _send(way: str, address: int, seconds: float) -> None:
    """Send at 1 kHz for some seconds."""
    from robot_bridge.cadence import next_deadline, raise_priority
    from robot_bridge.clock import MonotonicClock

    with _writing(way, address) as write:
        raise_priority()
        clock, period_ns = MonotonicClock(), round(1e9 / RATE_HZ)
        deadline_ns = clock.now_ns() + period_ns
        end_ns = deadline_ns + int(seconds * 1e9)
        while deadline_ns < end_ns:
            clock.wait_until(deadline_ns)
            write(clock.now_ns())
            deadline_ns = next_deadline(deadline_ns, period_ns, clock.now_ns())
        time.sleep(0.2)


@contextmanager
def _writing(way: str, address: int) -> Iterator[Callable[[int], object]]:
    """A call that sends a message with a stamp, once somebody listens."""
    from robot_bridge.dds import codec

    encoder, values = codec.JointStateEncoder(JOINTS), [0.1] * len(JOINTS)
    payload = bytes(encoder.encode(0, values, values))
    if way == "datagram":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            yield lambda stamp_ns: out.sendto(stamp_ns.to_bytes(8, "little") + payload, ("127.0.0.1", address))
        return
    from robot_bridge.dds.node import Node

    node = Node("bench_sender", domain=address)
    publisher = node.publisher(TOPIC, "sensor_msgs/JointState")
    message = native(payload, "sensor_msgs/JointState")

    def write_native(stamp_ns: int) -> None:
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        publisher.write(message.serialize(use_version_2=False))

    while not publisher.subscribers:
        time.sleep(0.01)
    yield write_native if way == "native" else lambda stamp_ns: publisher.write(encoder.encode(stamp_ns, values, values))
    node.close()


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
