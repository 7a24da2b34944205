"""What every transport promises: one suite, run against each that can be had here.

Two nodes talk over real sockets. `ros2` needs a sourced ROS 2 and is skipped, with the reason, where there is none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, make
from robot_bridge.transport import (
    ABORTED,
    BACKENDS,
    CANCELED,
    DEFAULT,
    LATCHED,
    SENSOR,
    SUCCEEDED,
    Profile,
    Transport,
    open_transport,
)
from sinew.errors import InputError, MissingDependency

Pair = tuple[Transport, Transport]
GRIPPER = "control_msgs/GripperCommand"


def until(done: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.01)
    raise AssertionError("did not happen in time")


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def opened(backend: str, domain: int) -> Iterator[Callable[..., Transport]]:
    """Open a node; all are closed at the end."""
    made: list[Transport] = []

    def start(name: str, **options: Any) -> Transport:
        try:
            made.append(open_transport(backend, name, domain=domain, reach="LOCALHOST", **options))
        except MissingDependency as e:
            pytest.skip(f"{backend} cannot be had here: {e}")
        return made[-1]

    yield start
    for node in made:
        node.close()


@pytest.fixture
def pair(opened: Callable[..., Transport]) -> Pair:
    return opened("first"), opened("second", namespace="/arm")


@pytest.fixture
def gripper(pair: Pair) -> Pair:
    """The pair, where it has the messages of ros2_control."""
    try:
        pair[0].action_client("/probe", GRIPPER)
    except InputError as e:
        pytest.skip(str(e))
    return pair


def text(value: str) -> Any:
    return make("std_msgs/String", data=value)


# ---------------------------------------------------------------- topics


def test_messages_arrive_whole_in_order_and_stamped(pair):
    first, second = pair
    publisher, subscription = first.publisher("/text", "std_msgs/String"), second.subscription("/text", "std_msgs/String")
    until(lambda: publisher.subscribers and subscription.publishers)
    before_ns = time.time_ns()
    for i in range(5):
        publisher.send(text("x" * i))
    got: list[Any] = []
    until(lambda: got.extend(subscription.take()) or len(got) == 5)
    assert [codec.decode(s.data, "std_msgs/String").data for s in got] == ["x" * i for i in range(5)]
    assert all(before_ns - 1e9 < s.source_ns < time.time_ns() + 1e9 for s in got)
    assert subscription.take() == [] and subscription.newest() is None and not subscription.wait(0.01)


def test_images_pass_as_bytes(pair):
    first, second = pair
    publisher, subscription = first.publisher("/image", "sensor_msgs/Image"), second.subscription("/image", "sensor_msgs/Image")
    until(lambda: publisher.subscribers and subscription.publishers)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    payload = codec.encode_image(image, 123, "camera")
    publisher.write(payload)
    payload[-4:] = b"\0\0\0\0"  # the buffer is the caller's again
    assert subscription.wait(20.0)
    stamp, frame, seen = codec.decode_image(subscription.take()[0].data)
    assert stamp == 123 and frame == "camera" and np.array_equal(seen, image)


def test_only_as_many_samples_wait_as_the_profile_says_and_the_newest_wins(pair):
    first, second = pair
    publisher = first.publisher("/n", "std_msgs/Int64")
    subscription = second.subscription("/n", "std_msgs/Int64", Profile(depth=3))
    until(lambda: publisher.subscribers and subscription.publishers)
    for i in range(10):
        publisher.send(make("std_msgs/Int64", data=i))
    time.sleep(1.0)  # let all of them come
    assert [codec.decode(s.data, "std_msgs/Int64").data for s in subscription.take()] == [7, 8, 9]
    publisher.send(make("std_msgs/Int64", data=10))
    publisher.send(make("std_msgs/Int64", data=11))
    seen: list[int] = []
    until(lambda: seen.extend(codec.decode(s.data, "std_msgs/Int64").data for s in [subscription.newest()] if s) or 11 in seen)


def test_latched_messages_reach_who_comes_later(pair):
    first, second = pair
    first.publisher("/late", "std_msgs/Int64", LATCHED).send(make("std_msgs/Int64", data=5))
    subscription = second.subscription("/late", "std_msgs/Int64", LATCHED)
    assert subscription.wait(20.0) and codec.decode(subscription.take()[0].data, "std_msgs/Int64").data == 5


def test_a_best_effort_publisher_does_not_match_a_reliable_subscription_but_the_reverse_does(pair):
    first, second = pair
    reliable, best = first.publisher("/r", "std_msgs/Int64", DEFAULT), first.publisher("/b", "std_msgs/Int64", SENSOR)
    second.subscription("/r", "std_msgs/Int64", SENSOR)
    second.subscription("/b", "std_msgs/Int64", DEFAULT)
    until(lambda: reliable.subscribers)
    assert best.subscribers == 0


def test_a_lifespan_is_taken(pair):
    first, second = pair
    publisher = first.publisher("/brief", "std_msgs/Int64", Profile(lifespan_s=5.0))
    subscription = second.subscription("/brief", "std_msgs/Int64")
    until(lambda: publisher.subscribers and subscription.publishers)
    publisher.send(make("std_msgs/Int64", data=1))
    assert subscription.wait(20.0)


def test_names_resolve_in_the_namespace(pair):
    _, second = pair
    assert second.resolve("state") == "/arm/state" and second.resolve("/state") == "/state"
    assert second.publisher("state", "std_msgs/Int64").topic == "/arm/state"


# ---------------------------------------------------------------- graph


def test_endpoints_tell_who_publishes_what_and_how(pair):
    first, second = pair
    first.publisher("/a", "sensor_msgs/JointState", SENSOR)
    first.subscription("/b", "std_msgs/Int64", LATCHED)

    def known():
        found = {each.name: each for each in second.endpoints() if each.node == "/first"}
        return found if {"/a", "/b"} <= found.keys() else None

    found = until(known)
    assert found["/a"].publishes and found["/a"].message == "sensor_msgs/JointState" and not found["/a"].profile.reliable
    assert not found["/b"].publishes and found["/b"].profile.latched and found["/b"].vendor
    assert second.topics()["/b"] == "std_msgs/Int64"
    assert "/arm/second" not in {each.node for each in second.endpoints()}


def test_other_publishers_are_counted_even_of_the_same_name_and_forgotten_when_they_leave(pair, opened):
    first, _ = pair
    first.publisher("/cmd", "std_msgs/Float64MultiArray")
    assert first.other_publishers("/cmd") == 0
    twin = opened("first")
    twin.publisher("/cmd", "std_msgs/Float64MultiArray")
    twin.subscription("/cmd", "std_msgs/Float64MultiArray")
    until(lambda: first.other_publishers("/cmd") == 1 and first.other_subscribers("/cmd") == 1)
    twin.close()
    until(lambda: first.other_publishers("/cmd") == 0 and first.other_subscribers("/cmd") == 0)


def test_closing_wakes_who_waits_and_may_be_repeated(opened):
    node = opened("brief")
    subscription = node.subscription("/nothing", "std_msgs/Int64")
    node.close()
    node.close()
    started = time.monotonic()
    try:
        assert not subscription.wait(0.2)
    except Exception as e:  # a transport may refuse instead
        assert "Traceback" not in str(e)
    assert time.monotonic() - started < 10


# ---------------------------------------------------------------- services


def test_services_answer_and_several_questions_may_be_open(pair):
    first, second = pair
    first.server("/add", "std_srvs/SetBool", lambda r: make("std_srvs/SetBool_Response", success=not r.data, message=str(r.data)))
    client = second.client("/add", "std_srvs/SetBool")
    assert client.call(make("std_srvs/SetBool_Request", data=False), 20.0).success
    asked = [client.submit(make("std_srvs/SetBool_Request", data=bool(i % 2))) for i in range(8)]
    assert [future.result(20.0).message for future in asked] == [str(bool(i % 2)) for i in range(8)]
    until(lambda: second.services().get("/add") == "std_srvs/SetBool")


def test_empty_messages_pass(pair):
    first, second = pair
    first.server("arm_me", "std_srvs/Trigger", lambda _: make("std_srvs/Trigger_Response", success=True, message="äöü"))
    response = second.client("/arm_me", "std_srvs/Trigger").call(blank("std_srvs/Trigger_Request"), 20.0)
    assert response.success and response.message == "äöü"


def test_a_slow_service_delays_no_other(pair):
    first, second = pair
    gate = threading.Event()

    def slow(_: Any) -> Any:
        gate.wait(20.0)
        return make("std_srvs/Trigger_Response", success=True, message="slow")

    first.server("/slow", "std_srvs/Trigger", slow)
    first.server("/stop", "std_srvs/Trigger", lambda _: make("std_srvs/Trigger_Response", success=True, message="stopped"))
    slow_client, stop_client = second.client("/slow", "std_srvs/Trigger"), second.client("/stop", "std_srvs/Trigger")
    until(lambda: slow_client.ready)
    waiting = slow_client.submit(blank("std_srvs/Trigger_Request"))
    assert stop_client.call(blank("std_srvs/Trigger_Request"), 20.0).message == "stopped" and not waiting.done()
    gate.set()
    assert waiting.result(20.0).message == "slow"


def test_an_answer_may_come_later_than_its_handler(pair):
    first, second = pair
    later: Future[Any] = Future()
    first.server("/later", "std_srvs/Trigger", lambda _: later)
    client = second.client("/later", "std_srvs/Trigger")
    until(lambda: client.ready)
    asked = client.submit(blank("std_srvs/Trigger_Request"))
    time.sleep(0.1)
    assert not asked.done()
    later.set_result(make("std_srvs/Trigger_Response", success=True, message="now"))
    assert asked.result(20.0).message == "now"


def test_a_service_that_nobody_serves_is_told_of_in_time(pair):
    client = pair[0].client("/nobody", "std_srvs/Trigger")
    assert not client.ready
    with pytest.raises(InputError, match=r"nobody answers service /nobody after 0\.2 s"):
        client.call(blank("std_srvs/Trigger_Request"), 0.2)


def test_a_closed_server_is_gone(pair):
    first, second = pair
    server = first.server("/gone", "std_srvs/Trigger", lambda _: blank("std_srvs/Trigger_Response"))
    client = second.client("/gone", "std_srvs/Trigger")
    until(lambda: client.ready)
    server.close()
    until(lambda: not client.ready)


# ---------------------------------------------------------------- actions


def grip(goal: Any) -> tuple[int, Any]:
    """Close in steps of 1 cm; a negative width cannot be reached, a huge one never ends."""
    if goal.request.command.position < 0:
        raise ValueError("no such width")
    for i in range(int(goal.request.command.position * 100)):
        if goal.cancel_requested:
            return CANCELED, blank(f"{GRIPPER}_Result", position=0.01 * i)
        goal.feedback(blank(f"{GRIPPER}_Feedback", position=0.01 * i))
        time.sleep(0.02)
    return SUCCEEDED, blank(f"{GRIPPER}_Result", position=goal.request.command.position, reached_goal=True)


def width(position: float) -> Any:
    return make(f"{GRIPPER}_Goal", command=make("control_msgs/GripperCommand", position=position, max_effort=1.0))


def test_actions_are_executed_with_feedback(gripper):
    first, second = gripper
    first.action_server("/hand", GRIPPER, grip)
    seen: list[float] = []
    goal = second.action_client("/hand", GRIPPER).send_goal(width(0.05), feedback=lambda f: seen.append(f.position), timeout_s=20.0)
    status, result = goal.result(20.0)
    assert status == SUCCEEDED == goal.status and result.reached_goal and goal.done
    until(lambda: seen and seen == sorted(seen) and set(seen) <= {0.01 * i for i in range(5)})


def test_goals_are_cancelled_rejected_and_aborted(gripper):
    first, second = gripper
    first.action_server("/hand", GRIPPER, grip, accept=lambda goal: goal.command.max_effort < 10)
    client = second.action_client("/hand", GRIPPER)
    goal = client.send_goal(width(1e6), timeout_s=20.0)
    with pytest.raises(InputError, match="did not end within"):
        goal.result(0.1)
    assert goal.cancel(20.0)
    assert goal.result(20.0)[0] == CANCELED and not goal.cancel(20.0)
    aborted = client.send_goal(width(-1.0), timeout_s=20.0)
    assert aborted.result(20.0)[0] == ABORTED
    strong = width(0.0)
    strong.command.max_effort = 100.0
    with pytest.raises(InputError, match="rejected the goal"):
        client.send_goal(strong, timeout_s=20.0)


def test_an_action_that_nobody_serves_is_told_of_in_time(gripper):
    client = gripper[0].action_client("/nobody", GRIPPER)
    assert not client.ready
    with pytest.raises(InputError, match="nobody answers"):
        client.send_goal(width(0.0), timeout_s=0.2)


# ---------------------------------------------------------------- what is refused


def test_unknown_types_are_refused(pair):
    first, _ = pair
    for make_one in (
        lambda: first.publisher("/x", "sensor_msgs/JointStat"),
        lambda: first.subscription("/x", "nonsense/Type"),
        lambda: first.client("/x", "std_srvs/Nonsense"),
    ):
        with pytest.raises(InputError, match="unknown ROS 2 message"):
            make_one()


def test_an_unknown_transport_is_refused():
    with pytest.raises(InputError, match="known are dds, ros2"):
        open_transport("carrier_pigeon", "n")
