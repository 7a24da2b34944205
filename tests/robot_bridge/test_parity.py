"""The same recorded messages, played by another process over DDS and converted from a bag, give the same frames."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from robot_bridge.alignment import frames
from robot_bridge.contract import Contract, Source
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.robots import load_robot
from robot_bridge.ros_robot import RosRobot
from robot_bridge.transport import open_transport

HERE = Path(__file__).parent
SECOND = 1_000_000_000
JOINTS = ("a", "b")
LENGTH_S = 1.5
# nothing may be lost or late for a busy machine: deep queues, a wide clock, and frames that wait for everything
COMMON = {"qos": "tf", "tolerance_s": 0.1, "age_max_s": 0.3}
STATES = {"topic": "/joint_states", "message": "sensor_msgs/JointState", "names": JOINTS, **COMMON}
SOURCES = (
    Source(key="joint_position", field="position", alignment="interpolate", **STATES),
    Source(key="joint_velocity", field="velocity", alignment="newest", unit="deg/s", **STATES),
    Source(key="images.front", topic="/front", message="sensor_msgs/Image", field="image", alignment="nearest", **COMMON),
    Source(key="wrench", topic="/wrench", message="geometry_msgs/WrenchStamped", field="wrench", alignment="nearest", **COMMON),
    Source(
        key="pose.cube", topic="/tf", message="tf2_msgs/TFMessage", field="transform", frame="world", child="cube",
        alignment="interpolate", **COMMON,
    ),
)  # fmt: skip
CONTRACT = Contract(robot="test", rate_hz=12.0, sources=SOURCES, delay_s=4.0, clock_tolerance_s=30.0)


def recorded(begin_ns: int) -> list[tuple[str, str, bytes, int]]:
    """Topic, message, payload and time of everything that was recorded from a time on, in its order."""
    rng = np.random.default_rng(5)
    said: list[tuple[str, str, bytes, int]] = []

    def times(rate_hz: float, jitter_s: float) -> list[int]:
        at_s = np.arange(0.0, LENGTH_S, 1.0 / rate_hz)
        return [begin_ns + round(1e9 * (t + j)) for t, j in zip(at_s, rng.uniform(0, jitter_s, len(at_s)), strict=True)]

    encoder = codec.JointStateEncoder((*reversed(JOINTS), "other"))
    for at_ns in times(50.0, 0.005):
        said.append(
            ("/joint_states", "sensor_msgs/JointState", bytes(encoder.encode(at_ns, rng.normal(size=3), rng.normal(size=3))), at_ns)
        )
    for at_ns in times(15.0, 0.02):
        image = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        said.append(("/front", "sensor_msgs/Image", bytes(codec.encode_image(image, at_ns, "lens")), at_ns))
    for at_ns in times(30.0, 0.01):
        stamp = make("builtin_interfaces/Time", sec=at_ns // SECOND, nanosec=at_ns % SECOND)
        force, torque = (make("geometry_msgs/Vector3", x=x, y=y, z=z) for x, y, z in rng.normal(size=(2, 3)))
        header = make("std_msgs/Header", stamp=stamp, frame_id="tool")
        wrench = make("geometry_msgs/WrenchStamped", header=header, wrench=make("geometry_msgs/Wrench", force=force, torque=torque))
        said.append(("/wrench", "geometry_msgs/WrenchStamped", bytes(codec.encode(wrench)), at_ns))
    for at_ns in times(40.0, 0.005):
        turn = rng.normal(size=4)
        pose = (*rng.normal(size=3), *(turn / np.linalg.norm(turn)))
        said.append(("/tf", "tf2_msgs/TFMessage", bytes(codec.encode_transforms([codec.Transform(at_ns, "table", "cube", pose)])), at_ns))
    said.sort(key=lambda one: one[3])
    table = codec.Transform(begin_ns, "world", "table", (1.0, 2.0, 3.0, np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)))
    return [("/tf_static", "tf2_msgs/TFMessage", bytes(codec.encode_transforms([table])), begin_ns), *said]


PLAYER = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
from test_parity import recorded
from robot_bridge.dds.node import Node
from robot_bridge.transport import DEFAULT, LATCHED, TF
node = Node("player", domain=DOMAIN)
messages = {{topic: message for topic, message, _, _ in recorded(0)}}
topics = {{t: node.publisher(t, m, LATCHED if t == "/tf_static" else TF) for t, m in messages.items()}}
while not all(topic.subscribers for topic in topics.values()):
    time.sleep(0.01)
time.sleep(0.3)  # the other side matches at about the same time
begin_ns = time.time_ns()
for topic, _, payload, at_ns in recorded(begin_ns):
    time.sleep(max(0.0, (at_ns - time.time_ns()) / 1e9))
    topics[topic].write(payload)
print(begin_ns, flush=True)
time.sleep(60)
"""


def test_live_and_offline_frames_are_the_same(spawn, domain):
    template = load_robot("ros2_control")
    config = template.__class__(**{
        **template.__dict__,
        "spec": template.spec.__class__(**{
            **template.spec.__dict__, "joint_names": JOINTS,
            **{name: getattr(template.spec, name)[:2] for name in template.spec.__dict__ if name.endswith(("_rad", "_rad_s", "_rad_s2"))},
        }),
        "jerk_max_rad_s3": (1.0,) * 2, "effort_max_nm": (1.0,) * 2, "contract": CONTRACT,
    })  # fmt: skip
    robot = RosRobot(config, open_transport("dds", "live", domain=domain))
    player = spawn(PLAYER.replace("DOMAIN", str(domain)))
    robot.connect(60.0)
    deadline = time.monotonic() + 60.0

    def played() -> bool:
        """Whether the last message of every topic has come: nothing has for a while, and everything did once."""
        before = dict(robot.source_ns)
        time.sleep(0.6)
        robot.read()
        return len(before) == 5 and before == robot.source_ns

    while not played():
        assert time.monotonic() < deadline, robot.source_ns
    begin_ns = int(player.stdout.readline())
    offset_ns = robot.offset_ns
    offline = list(
        frames(
            CONTRACT, [(t, payload, at_ns, 0) for t, _, payload, at_ns in recorded(begin_ns)] + [("/end", b"", begin_ns + 9 * SECOND, 0)]
        )
    )
    inside = [frame for frame in offline if frame.at_ns < begin_ns + (LENGTH_S - 0.3) * SECOND]
    assert len(inside) >= 10 and robot.dropped == robot.aligner.late == 0, robot.aligner.problem
    for frame in inside:
        live = robot.aligned(frame.at_ns + offset_ns)
        assert set(live.values) == set(frame.values) == {s.key for s in SOURCES}
        for key, value in frame.values.items():
            assert np.array_equal(live.values[key], value), (key, frame.at_ns - begin_ns)
            assert live.stamps_ns[key] == frame.stamps_ns[key] + offset_ns
    robot.close()
