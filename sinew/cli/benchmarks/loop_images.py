"""Three cameras between two processes: how much of a core putting images into messages and reading them takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from sinew.bench import Row

CAMERAS, RATE_HZ, HEIGHT, WIDTH = 3, 30.0, 480, 640
MESSAGE = "sensor_msgs/Image"


def images(seconds: float) -> list[Row]:
    """Percent of a core for 640x480 RGB at 30 Hz from three cameras, here and in the sender, beside rosbags' codec."""
    ours, theirs = (_received(codec, seconds) for codec in ("ours", "rosbags"))
    target = "< 25 % of a core"
    made = []
    for name, key in (("serialised and read", "codec_percent"), ("with sending and receiving", "all_percent")):
        value = ours[key]
        made.append(
            Row(
                name=f"3 cameras 640x480 RGB at 30 Hz, {name}",
                unit="% of a core",
                ours=value,
                peer="rosbags' codec over the same transport; Cyclone DDS's own takes 0.1 s an image",
                peer_value=theirs[key],
                target=target if key == "codec_percent" else "",
                holds=value < 25.0 if key == "codec_percent" else None,
                higher_is_better=False,
                detail={"arrived": ours["arrived"], "sent": ours["sent"], "p50_us": ours["p50_us"], "p99_us": ours["p99_us"]},
            )
        )
    return made


def _topics() -> list[str]:
    return [f"/sinew/bench/camera{i}" for i in range(CAMERAS)]


def _received(codec_name: str, seconds: float) -> dict[str, Any]:
    """Take and decode what a sender process writes; processor times of both processes add up."""
    from robot_bridge.dds import codec
    from robot_bridge.dds.node import Node
    from robot_bridge.transport import SENSOR

    domain = 1 + os.getpid() % 99
    node = Node("bench_receiver", domain=domain)
    cameras = [node.subscription(topic, MESSAGE, SENSOR) for topic in _topics()]
    command = [sys.executable, "-m", "sinew.cli.benchmarks.loop_images", codec_name, str(domain), str(seconds)]
    sender = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    reading_s, latencies, first_s = 0.0, [], 0.0
    while sender.poll() is None:
        cameras[0].wait(0.01)
        for camera in cameras:
            for sample in camera.take():
                first_s = first_s or time.process_time()
                before_s = time.thread_time()
                if codec_name == "ours":
                    stamp_ns = codec.decode_image(sample.data)[0]
                else:
                    message = codec.decode(sample.data, MESSAGE)
                    stamp = message.header.stamp
                    stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
                reading_s += time.thread_time() - before_s
                latencies.append(time.monotonic_ns() - stamp_ns)
    all_s = time.process_time() - first_s
    told = json.loads(sender.stdout.read()) if sender.stdout else {}
    node.close()
    if not latencies:
        raise RuntimeError(f"the sender process ended with {sender.returncode} and sent nothing")
    return {
        "codec_percent": 100.0 * (reading_s + told["codec_s"]) / told["wall_s"],
        "all_percent": 100.0 * (all_s + told["all_s"]) / told["wall_s"],
        "arrived": len(latencies),
        "sent": told["sent"],
        "p50_us": round(float(np.percentile(latencies, 50)) / 1e3),
        "p99_us": round(float(np.percentile(latencies, 99)) / 1e3),
    }


def _send(codec_name: str, domain: int, seconds: float) -> None:
    """What the sender process does; it prints what it took."""
    from robot_bridge.cadence import next_deadline
    from robot_bridge.clock import MonotonicClock
    from robot_bridge.dds import codec
    from robot_bridge.dds.messages import blank
    from robot_bridge.dds.node import Node
    from robot_bridge.transport import SENSOR

    node = Node("bench_sender", domain=domain)
    cameras = [node.publisher(topic, MESSAGE, SENSOR) for topic in _topics()]
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    encoder = codec.ImageEncoder(HEIGHT, WIDTH, "camera")
    message = blank(MESSAGE, height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
    while not all(camera.subscribers for camera in cameras):
        time.sleep(0.01)
    clock, period_ns, codec_s, sent = MonotonicClock(), round(1e9 / RATE_HZ), 0.0, 0
    began_s, deadline_ns = time.process_time(), clock.now_ns()
    end_ns = deadline_ns + int(seconds * 1e9)
    while deadline_ns < end_ns:
        for camera in cameras:
            before_s, stamp_ns = time.thread_time(), clock.now_ns()
            if codec_name == "ours":
                payload = encoder.encode(stamp_ns, image)
            else:
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
                message.data = image.reshape(-1)
                payload = memoryview(codec.encode(message))
            codec_s += time.thread_time() - before_s
            camera.write(payload)
            sent += 1
        deadline_ns = next_deadline(deadline_ns, period_ns, clock.now_ns())
        clock.wait_until(deadline_ns)
    print(json.dumps({"codec_s": codec_s, "all_s": time.process_time() - began_s, "wall_s": seconds, "sent": sent}))
    time.sleep(0.2)
    node.close()


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
