"""The simulated robot's process, from outside: rates, its own watchdog, resets, images, signals, nonsense on its topics."""

from __future__ import annotations

import ast
import json
import signal
import time
from typing import Any

import numpy as np
import pytest

from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
from robot_bridge.dds.qos import SENSOR
from robot_bridge.serve_sim import camera_info
from sinew.errors import InputError


def until(done: Any, timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.005)
    raise AssertionError("did not happen in time")


@pytest.fixture
def client(domain):
    node = Node("client", domain=domain)
    yield node
    node.close()


def newest_state(subscription) -> Any:
    assert subscription.wait(60.0)
    return codec.decode_joint_state(subscription.take()[-1].data)


def test_speaks_like_a_ros2_control_arm(serve, client):
    states = client.subscription("/joint_states", "sensor_msgs/JointState")
    transforms = client.subscription("/tf", "tf2_msgs/TFMessage")
    success = client.subscription("/sinew/scene/success", "std_msgs/Bool")
    process = serve()
    state = newest_state(states)
    assert state.names == (*[f"joint{i}" for i in range(1, 8)], "gripper") and len(state.velocity) == 8
    assert abs(state.stamp_ns - time.time_ns()) < 5e9
    assert transforms.wait(60.0)
    (cube,) = codec.decode_transforms(transforms.take()[-1].data)
    assert (cube.parent, cube.child) == ("world", "cube") and np.linalg.norm(cube.pose[3:]) == pytest.approx(1.0)
    assert success.wait(60.0) and codec.decode(success.take()[-1].data, "std_msgs/Bool").data is False
    topics = client.topics()
    assert topics["/forward_position_controller/commands"] == "std_msgs/Float64MultiArray"
    assert topics["/joint_trajectory_controller/joint_trajectory"] == "trajectory_msgs/JointTrajectory"
    stamps = [state.stamp_ns]
    end = time.monotonic() + 60.0
    while len(stamps) <= 20 and time.monotonic() < end:
        states.wait(0.1)
        stamps += [codec.decode_joint_state(s.data).stamp_ns for s in states.take()]
    assert len(stamps) > 20 and (np.diff(stamps) > 0).all()  # a stream in order; how regular it is, the benchmark tells
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_follows_holds_and_resets(serve, client):
    states = client.subscription("/joint_states", "sensor_msgs/JointState")
    status = client.subscription("/sinew/scene/status", "std_msgs/String")
    episode = client.subscription("/sinew/scene/episode", "std_msgs/Int64")
    commands = client.publisher("/forward_position_controller/commands", "std_msgs/Float64MultiArray")
    reset = client.publisher("/sinew/scene/reset", "std_msgs/Int64")
    serve()
    until(lambda: commands.subscribers and reset.subscribers)
    start = np.array(newest_state(states).position)
    goal = start + 0.05
    goal[7] = 0.03
    for _ in range(60):
        commands.write(codec.encode_doubles(goal.tolist()))
        time.sleep(0.01)
    assert np.allclose(newest_state(states).position[:7], goal[:7], atol=0.01)
    assert newest_state(states).position[7] == pytest.approx(0.03, abs=0.005)
    until(lambda: any(codec.decode(s.data, "std_msgs/String").data == "holding" for s in status.take()))  # nobody commands any more
    held = np.array(newest_state(states).position)
    time.sleep(0.3)
    assert np.allclose(newest_state(states).position, held, atol=2e-3)
    for bad in ([float("nan")] * 8, [0.0] * 3, [], [float("inf")] + [0.0] * 7):
        commands.write(codec.encode_doubles(bad))
        time.sleep(0.03)
    with pytest.raises(InputError, match="DDS could not send"):  # what is no message does not even leave
        commands.write(b"\0\1\0\0" + b"\xff" * 8)
    time.sleep(0.1)
    assert np.allclose(newest_state(states).position, held, atol=2e-3)
    reset.send(make("std_msgs/Int64", data=12))
    assert episode.wait(60.0) and codec.decode(episode.take()[-1].data, "std_msgs/Int64").data == 12
    time.sleep(0.05)
    states.take()
    import sim

    assert np.allclose(newest_state(states).position[:7], sim.RobotSim("lift", 12).joint_position, atol=0.02)


def test_images_come_with_their_camera_info(serve, client):
    pytest.importorskip("sim.render")
    images = client.subscription("/front/image_raw", "sensor_msgs/Image", SENSOR)
    info = client.subscription("/front/camera_info", "sensor_msgs/CameraInfo", SENSOR)
    compressed = client.subscription("/front/image_raw/compressed", "sensor_msgs/CompressedImage", SENSOR)
    serve(cameras=("front",), image_size=(48, 64), compressed=True)
    assert images.wait(10.0) and info.wait(10.0) and compressed.wait(10.0)
    _, frame, image = codec.decode_image(images.take()[-1].data)
    assert image.shape == (48, 64, 3) and image.std() > 5 and frame == "front_optical_frame"
    assert codec.decode_compressed_image(compressed.take()[-1].data)[2].shape == (48, 64, 3)
    message = codec.decode(info.take()[-1].data, "sensor_msgs/CameraInfo")
    assert (message.width, message.height) == (64, 48) and message.k[2] == 31.5


def test_camera_info_is_a_pinhole():
    header = make("std_msgs/Header", stamp=make("builtin_interfaces/Time", sec=0, nanosec=0), frame_id="c")
    info = camera_info(header, 100, 200, np.pi / 2)
    assert np.allclose(np.reshape(info.k, (3, 3)), [[50, 0, 99.5], [0, 50, 49.5], [0, 0, 1]])  # 45 degrees up is half the height
    assert np.allclose(np.reshape(info.p, (3, 4))[:, :3], np.reshape(info.k, (3, 3))) and np.allclose(np.reshape(info.p, (3, 4))[:, 3], 0)
    assert bytes(codec.encode(info))


def test_an_unknown_task_is_told_by_name(spawn, domain):
    code = f"""
from robot_bridge import serve
from sinew.errors import InputError
try:
    serve("lifft", 0, {domain})
except InputError as e:
    print(e)
"""
    out, _ = spawn(code).communicate(timeout=30)
    assert "lifft" in out and "lift" in out


def test_what_came_is_counted_and_what_happened_is_written_down(spawn, client, domain, tmp_path):
    commands = client.publisher("/forward_position_controller/commands", "std_msgs/Float64MultiArray")
    trace = tmp_path / "trace.jsonl"
    process = spawn(f"from robot_bridge import serve; print(serve('lift', 0, {domain}, trace={str(trace)!r}))")
    assert process.stderr is not None and "ready" in process.stderr.readline()
    until(lambda: commands.subscribers)
    until(trace.exists)
    start = until(lambda: trace.read_text().splitlines()[:1])[0]
    home = json.loads(start)["joint_position"]

    def taken() -> int:
        lines = [line for line in trace.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        return json.loads(lines[-1])["taken"]

    def fine() -> bool:
        commands.write(codec.encode_doubles([*home, 0.04]))
        return taken() > 0

    until(fine)
    beyond = [*home, 0.04]
    beyond[0] = 10.0
    for _ in range(20):
        commands.write(codec.encode_doubles(beyond))
        commands.write(codec.encode_doubles([float("nan")] * 8))
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    told = ast.literal_eval(out)
    assert told["taken"] >= 1 and set(told["refused"]) <= {"position", "non_finite"} and sum(told["refused"].values()) > 0
