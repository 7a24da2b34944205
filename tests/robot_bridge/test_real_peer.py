"""Our DDS transport and a real rclpy node with whatever middleware it has: `make ros` runs it, elsewhere it is skipped with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, make
from robot_bridge.transport import SENSOR, Transport, open_transport
from sinew.errors import InputError, MissingDependency

Pair = tuple[Transport, Transport]


def until(done: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.01)
    raise AssertionError("did not happen in time")


@pytest.fixture
def pair(domain: int) -> Iterator[Pair]:
    """Ours, and rclpy's."""
    try:
        theirs = open_transport("ros2", "theirs", domain=domain, reach="LOCALHOST")
    except MissingDependency as e:
        pytest.skip(f"no real rclpy here: {e}")
    ours = open_transport("dds", "ours", domain=domain, reach="LOCALHOST")
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("ours_sends", [True, False])
def test_joint_states_and_pictures_go_both_ways(pair, ours_sends):
    sender, receiver = pair if ours_sends else pair[::-1]
    states, heard = (
        sender.publisher("/joint_states", "sensor_msgs/JointState"),
        receiver.subscription("/joint_states", "sensor_msgs/JointState"),
    )
    images, seen = sender.publisher("/image", "sensor_msgs/Image"), receiver.subscription("/image", "sensor_msgs/Image", SENSOR)
    until(lambda: states.subscribers and images.subscribers and heard.publishers and seen.publishers)
    encoder = codec.JointStateEncoder(["a", "b"], effort=True)
    states.write(encoder.encode(123, [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]))
    sample = until(heard.take)[-1]
    state = codec.decode_joint_state(sample.data)
    assert state.names == ("a", "b") and state.position == (1.0, 2.0) and state.effort == (5.0, 6.0)
    assert abs(sample.source_ns - time.time_ns()) < 60e9
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)

    def came() -> Any:
        images.write(codec.encode_image(picture, 5, "camera"))
        return seen.newest()

    assert np.array_equal(codec.decode_image(until(came).data)[2], picture)


def test_each_is_in_the_others_graph(pair):
    ours, theirs = pair
    ours.publisher("/mine", "std_msgs/Int64")
    theirs.publisher("/yours", "std_msgs/Int64")
    until(lambda: "/theirs" in ours.nodes() and ours.topics().get("/yours") == "std_msgs/Int64")
    until(lambda: "/ours" in theirs.nodes() and theirs.topics().get("/mine") == "std_msgs/Int64")


def test_services_work_or_are_refused_at_once_with_the_reason(pair):
    ours, theirs = pair
    theirs.server("/reset", "std_srvs/Trigger", lambda _: blank("std_srvs/Trigger_Response", success=True))
    vendor = until(lambda: ours.nodes().get("/theirs"))
    until(lambda: "/reset" in ours.services())
    client, request = ours.client("/reset", "std_srvs/Trigger"), make("std_srvs/Trigger_Request")
    if vendor == "Cyclone DDS":
        assert client.call(request, timeout_s=30.0).success
        return
    began = time.monotonic()
    with pytest.raises(InputError, match=f"/reset is served by {vendor}, whose services cannot be reached"):
        client.call(request, timeout_s=600.0)
    assert time.monotonic() - began < 60.0
