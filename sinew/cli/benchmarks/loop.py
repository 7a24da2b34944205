"""The control loop and its transport: latency between two processes, regularity, cost of a gate check, codecs."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.loop_latency import JOINTS, latency_rows, native


def rows(quick: bool) -> list[Row]:
    """Measure everything; `quick` ends within a minute."""
    seconds = 3.0 if quick else 10.0
    from sinew.cli.benchmarks.loop_images import images

    return [
        *latency_rows(seconds),
        *images(seconds),
        *_regularity(2.0 if quick else 10.0),
        *_stops(3 if quick else 15),
        *_interpolation(100 if quick else 1000),
        _gate(2_000 if quick else 20_000),
        *_codecs(3 if quick else 10),
    ]


# ---------------------------------------------------------------- loop and gate


def _regularity(seconds: float) -> list[Row]:
    """Lateness of the control loop with a robot that costs nothing, with and without SCHED_FIFO."""
    made = []
    for rate_hz in (100.0, 500.0):
        fifo, other = _loop(rate_hz, seconds, True), _loop(rate_hz, seconds, False)
        ours, peer = fifo["lateness_us"]["p99"], other["lateness_us"]["p99"]
        name = f"control loop at {rate_hz:g} Hz"
        peer_name = f"the same loop under {other['scheduler'].split(' (')[0]}"
        lateness = Row(
            name=f"{name}, lateness p99, {fifo['scheduler']}", unit="us", ours=ours, peer=peer_name, peer_value=peer, higher_is_better=False
        )
        late, late_other = (100.0 * report["late_ticks"] / report["ticks"] for report in (fifo, other))
        missed = Row(
            name=f"{name}, ticks late by a period",
            unit="%",
            ours=late,
            peer=peer_name,
            peer_value=late_other,
            target="< 0.1 %",
            holds=late < 0.1,
            higher_is_better=False,
        )
        made += [lateness, missed]
    return made


def _stops(times: int) -> list[Row]:
    """The slowest of some stops of a loop at 500 Hz that moves: after an emergency stop, and after the last target."""
    from robot_bridge.deploy import DeployConfig
    from robot_bridge.gate import GateConfig, Operator, SafetyGate
    from robot_bridge.loop import ControlLoop

    slowest: dict[str, float] = {}
    ttl_s = DeployConfig().ttl_s(20.0)
    for i in range(2 * times):
        robot, operator = _Echo(), Operator()
        gate = SafetyGate(GateConfig.of(robot.spec, 500.0), operator=operator)
        loop = ControlLoop(robot, gate, blend_s=0.05)
        loop.start()
        loop.resume()
        _move(loop, 0.5 + 0.003 * i, ttl_s)
        if i % 2:
            operator.press("bench")
        time.sleep(0.6)
        loop.close()
        for key, value in loop.stop_times.report().items():
            if value is not None:
                slowest[key] = max(slowest.get(key, 0.0), float(value))
    named = (
        ("e_stop_to_command_ms", "from an emergency stop to the first braking command sent", 50.0),
        ("last_target_to_hold_ms", "from the last target to the first holding command sent", 100.0),
        ("command_to_standstill_ms", "from there to zero velocity", 250.0),
    )
    return [
        Row(
            name=f"{name}, slowest of {times}", unit="ms", ours=slowest[key], peer="none: no stack that was looked at tells",
            target=f"<= {target:g} ms", holds=slowest[key] <= target, higher_is_better=False,
        )
        for key, name, target in named
    ]  # fmt: skip


def _move(loop: Any, seconds: float, ttl_s: float) -> None:
    """Targets of a policy at 20 Hz."""
    from sinew.protocols import Command

    end, seq = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        seq += 1
        loop.submit(Command(time.monotonic_ns(), seq, ttl_s, {"joint_position": np.full(7, 0.2 * np.sin(0.1 * seq))}))
        time.sleep(0.05)


def _interpolation(targets: int) -> list[Row]:
    """CPU time of the command stream of 7 joints: a new target, and a tick at 500 Hz."""
    from robot_bridge.gate import GateConfig
    from robot_bridge.interpolation import Interpolator, MotionLimits

    made = Interpolator(MotionLimits.of(GateConfig.of(_Echo().spec, 500.0)), 0.002, 0.05)
    wave = 0.2 * np.sin(0.1 * np.arange(targets))
    rough = 0.02 * np.random.default_rng(0).normal(size=(targets, 7)).cumsum(0)
    rows = []
    for name, path in (("a smooth motion", np.repeat(wave[:, None], 7, axis=1)), ("a random walk at its limits", rough)):
        aimed, ticked = [], []
        made.start(path[0])
        for target in path:
            before = time.thread_time_ns()
            made.aim(target)
            after = time.thread_time_ns()
            for _ in range(25):
                made.advance()
            aimed.append(after - before)
            ticked.append((time.thread_time_ns() - after) / 25)
        for what, taken in (("new target", aimed), ("tick", ticked)):
            peer = "Ruckig is C++; its durations are those of `robot_bridge.profile`"
            value = median(taken) / 1e3
            rows.append(Row(name=f"interpolation, {name}: {what}", unit="us", ours=value, peer=peer, higher_is_better=False))
    return rows


def _loop(rate_hz: float, seconds: float, realtime: bool) -> dict[str, Any]:
    from robot_bridge.gate import GateConfig, SafetyGate
    from robot_bridge.loop import ControlLoop
    from sinew.protocols import Command

    robot = _Echo()
    loop = ControlLoop(robot, SafetyGate(GateConfig.of(robot.spec, rate_hz)), blend_s=0.05, realtime=realtime)
    loop.start()
    loop.resume()
    end, seq = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        seq += 1
        loop.submit(Command(time.monotonic_ns(), seq, 0.1, {"joint_position": np.full(7, 0.1 * np.sin(0.05 * seq))}))
        time.sleep(0.05)
    loop.close()
    return loop.report()


class _Echo:
    """A robot that is always where it was sent."""

    def __init__(self) -> None:
        from sinew.protocols import RobotSpec

        self.spec = RobotSpec(
            name="echo",
            joint_names=tuple(JOINTS[:7]),
            gripper_name=None,
            position_low_rad=(-3.0,) * 7,
            position_high_rad=(3.0,) * 7,
            velocity_max_rad_s=(1.0,) * 7,
            acceleration_max_rad_s2=(10.0,) * 7,
            gripper_low_m=0.0,
            gripper_high_m=0.08,
            workspace_low_m=(-2.0, -2.0, -2.0),
            workspace_high_m=(2.0, 2.0, 2.0),
            rate_hz=20.0,
        )
        self._position = np.zeros(7)

    def connect(self, timeout_s: float = 10.0) -> None:
        pass

    def read(self) -> Any:
        from sinew.protocols import Observation

        values = {"joint_position": self._position, "joint_velocity": np.zeros(7), "gripper": np.array(0.0)}
        return Observation(time.monotonic_ns(), 0, values)

    def write(self, command: Any) -> None:
        self._position = command.values["joint_position"]

    def stop(self, reason: str) -> None:
        pass

    def close(self) -> None:
        pass


def _gate(checks: int) -> Row:
    """One check of a 7-joint arm with the workspace checked through its kinematics."""
    from robot_bridge.deploy import make_gate
    from sim import make_interface
    from sinew.protocols import Command, Observation

    interface = make_interface("lift")
    gate, home = make_gate(interface), np.array(interface.robot_spec.home_rad)
    step_ns = round(gate.config.dt_s * 1e9)
    still = np.zeros(7)
    gate.seed(Observation(0, 0, {"joint_position": home, "joint_velocity": still, "gripper": np.array(0.08)}), 0)
    took, outcomes, at = [], set(), home
    for i in range(1, checks + 1):
        now_ns = i * step_ns
        command = Command(now_ns, i, 0.1, {"joint_position": home + 0.05 * np.sin(0.01 * i + np.arange(7)) - 0.05 * np.sin(np.arange(7))})
        seen = Observation(now_ns, i, {"joint_position": at, "joint_velocity": still})
        before = time.perf_counter_ns()
        verdict = gate.check(command, seen, now_ns)
        took.append(time.perf_counter_ns() - before)
        outcomes.add(verdict.outcome)
        at = at if verdict.joint_position is None else verdict.joint_position
    value = median(took) / 1e3
    return Row(
        name=f"gate check, 7 joints with workspace ({'/'.join(sorted(outcomes))})",
        unit="us",
        ours=value,
        peer="none: no stack that was looked at has one",
        target="< 100 us",
        holds=value < 100.0,
        higher_is_better=False,
    )


# ---------------------------------------------------------------- codecs


def _codecs(repeats: int) -> list[Row]:
    """Microseconds per message: a 640 x 480 image against Cyclone's codec, joint states against rosbags'."""
    from robot_bridge.dds import codec
    from robot_bridge.dds.messages import make

    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    payload = bytes(codec.encode_image(image, 1, "camera"))
    message = native(payload, "sensor_msgs/Image")
    stamp = make("builtin_interfaces/Time", sec=1, nanosec=2)
    header = make("std_msgs/Header", stamp=stamp, frame_id="")
    values, listed = np.linspace(0, 1, len(JOINTS)), [0.1] * len(JOINTS)
    encoder, decoder = codec.JointStateEncoder(JOINTS), codec.JointStateDecoder()
    state = bytes(encoder.encode(1, listed, listed))

    def rosbags_state() -> Any:
        return codec.encode(make("sensor_msgs/JointState", header=header, name=JOINTS, position=values, velocity=values, effort=values[:0]))

    cases: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        ("Image 640x480 write", lambda: codec.encode_image(image, 1, "camera"), lambda: message.serialize(use_version_2=False)),
        ("Image 640x480 read", lambda: codec.decode_image(payload), lambda: native(payload, "sensor_msgs/Image")),
        ("JointState write", lambda: encoder.encode(1, listed, listed), rosbags_state),
        ("JointState read", lambda: decoder.decode(state), lambda: codec.decode(state, "sensor_msgs/JointState")),
    ]
    made = []
    for name, ours, theirs in cases:
        slow = name.startswith("Image")
        count = repeats if slow else 300 * repeats
        peer = "Cyclone DDS's own Python codec" if slow else "rosbags' codec"
        value, other = _microseconds(ours, 20 * count), _microseconds(theirs, count)
        made.append(Row(name=name, unit="us", ours=value, peer=peer, peer_value=other, higher_is_better=False))
    return made


def _microseconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call."""
    call()
    took = []
    for _ in range(repeats):
        before = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - before)
    return median(took) / 1e3

