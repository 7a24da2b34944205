"""A robot on a network of ROS 2 nodes, over any transport: what its contract says is read, and commands go to its controllers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robot_bridge.alignment import Aligner
from robot_bridge.contract import Contract, Sink, Source
from robot_bridge.controllers import Controller, inactive, make_controllers
from robot_bridge.interfaces import Tap
from robot_bridge.robots.config import RobotConfig
from robot_bridge.standing import DriverStatus
from robot_bridge.streams import TRAJECTORY
from robot_bridge.transport import DEFAULT, LATCHED, NEWEST, SENSOR, TF, Profile, Subscription, Transport
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Command, Observation, RobotSpec

MONITOR_PERIOD_S = 0.2
WATCH_PERIOD_S = 0.02
POLL_S = 0.005
PROFILES: dict[str, Profile] = {"default": DEFAULT, "sensor": SENSOR, "newest": NEWEST, "tf": TF, "latched": LATCHED}


class RosRobot:
    """A robot behind ROS 2 topics.

    Args:
        config: limits, contract, controllers.
        transport: a node; it belongs to the robot and is closed with it.
        objects: frames whose pose in the world is wanted from /tf, besides the contract's.
        cameras: cameras whose pictures are wanted; None for all of the contract.
        world_frame: frame of the objects' poses.
    """

    def __init__(
        self,
        config: RobotConfig,
        transport: Transport,
        *,
        objects: Sequence[str] = (),
        cameras: Sequence[str] | None = None,
        world_frame: str = "world",
    ) -> None:
        self.config, self.node = config, transport
        self.contract = _watched(config.contract, objects, cameras, world_frame)
        self.offset_ns = time.monotonic_ns() - time.time_ns()
        """Monotonic minus wall-clock time, as it was when the robot was made."""
        self.aligner = Aligner(self.contract, sources=self.contract.live, offset_ns=self.offset_ns, eager=True)
        self._taken: list[tuple[str, Subscription]] = []
        self._seen: list[tuple[str, Subscription]] = []
        pictures = {s.topic for s in self.contract.live if s.image}
        for topic in self.aligner.topics:
            subscription = transport.subscription(topic.name, topic.message, PROFILES[topic.qos])
            (self._seen if topic.name in pictures else self._taken).append((topic.name, subscription))
        self._latched = {topic.name for topic in self.aligner.topics if topic.qos == "latched"}
        self.state_topics = {s.topic for s in self.contract.live if s.key == "joint_position"}
        self.controllers: list[Controller] = make_controllers(config, transport, self.contract.sinks)
        self.path_points = max((s.points for s in self.contract.sinks if s.kind.startswith("trajectory")), default=0)
        """Points of a path that the controllers take in one command; below 2 for single targets."""
        self._lock = threading.Lock()  # around taking samples; held for microseconds
        self._observation = Observation(-(1 << 62), 0, {})
        self._quit = threading.Event()
        self._status = DriverStatus(transport)
        self._threads: list[threading.Thread] = []
        self.source_ns: dict[str, int] = {}
        """Sender's clock of the newest sample taken, per topic."""
        self.fault = ""
        """Why nothing is sent any more; empty while all is well. It stays until an operator's release, which calls `clear`."""
        self._fault_lock = threading.Lock()  # around finding and forgetting faults; the control thread only looks

    @property
    def spec(self) -> RobotSpec:
        return self.config.spec

    @property
    def tap(self) -> Tap | None:
        """Takes every sample as it is read."""
        return self.aligner.tap

    @tap.setter
    def tap(self, tap: Tap | None) -> None:
        self.aligner.tap = tap

    @property
    def dropped(self) -> int:
        """Samples that were damaged, incomplete or older than one before."""
        return self.aligner.dropped

    # ------------------------------------------------------------ Robot

    def connect(self, timeout_s: float = 10.0) -> None:
        """Wait for all that the contract requires, and for controllers that take commands.

        Raises:
            InputError: something is missing, of another type, inactive or of another time; or another node commands the robot.
        """
        if self._threads:
            return
        deadline = time.monotonic() + timeout_s
        for name, subscription in self._seen:
            self._start(lambda n=name, s=subscription: self._watch_pictures(n, s), f"pictures {name}")
        self._refresh(newest_only=True)  # what has piled up since the robot was made is of the past
        try:
            while self._incomplete() or not all(controller.taken for controller in self.controllers):
                if time.monotonic() >= deadline:
                    raise InputError(self._explain(timeout_s))
                time.sleep(POLL_S)
            # a client that was killed is in the graph for a few seconds yet
            while self._rivals() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if problem := self._rivals() or self._clocks() or inactive(self.node, self.contract.sinks):
                raise InputError(problem)
        except InputError:
            self._end_threads()
            raise
        self._start(self._monitor, "monitor")
        if any(sink.kind in ("velocity", "twist") for sink in self.contract.sinks):
            self._start(self._watch_silence, "silence")

    def read(self) -> Observation:
        """The newest of everything; see `aligned` for values that belong together."""
        return self._refresh()

    def aligned(self, at_ns: int | None = None) -> Observation:
        """The values at one time, as recordings of this contract hold them.

        Args:
            at_ns: monotonic; None for now, less the contract's delay.

        Returns:
            Values without those that are missing or too old; stamps are when each was true.
        """
        newest = self.read()
        at_ns = time.monotonic_ns() - round(self.contract.delay_s * 1e9) if at_ns is None else at_ns
        frame = self.aligner.frame(at_ns)
        return Observation(newest.stamp_ns, newest.seq, self._completed(dict(frame.values)), stamps_ns=frame.stamps_ns)

    def write(self, command: Command) -> None:
        """Send a command.

        Raises:
            SafetyStop: another node commands the robot too, or a controller does not take commands any more.
        """
        if self.fault:
            raise SafetyStop(self.fault)
        joints = np.asarray(command.values["joint_position"], dtype=float)
        numbers = [np.ravel(np.asarray(v, dtype=float)) for v in command.values.values()]
        if joints.shape != (len(self.spec.joint_names),) or not np.isfinite(np.concatenate(numbers)).all():
            raise SafetyStop(f"refused to send {dict(command.values)!r:.200} to robot {self.spec.name}")
        measured = self._observation.values.get("joint_position")
        for controller in self.controllers:
            controller.write(command, measured)

    def stop(self, reason: str) -> None:
        values = self._observation.values
        for controller in self.controllers:
            controller.stop(values.get("joint_position"), values.get("gripper"))

    def clear(self) -> str:
        """An operator has seen to what was wrong: forget it, with everything that was to be sent before.

        Returns:
            Empty, or what is wrong still: then nothing is sent as before.
        """
        with self._fault_lock:
            for controller in self.controllers:
                controller.clear()
            self.fault = self._rivals() or self._deserted()
            return self.fault

    def close(self) -> None:
        """Stop what moves and leave the network."""
        self._end_threads()
        for controller in self.controllers:
            controller.close()
        self.node.close()

    def why_still(self) -> str:
        """What to look at when the robot does not move although it is commanded; asks the controller manager, so not for control."""
        told = self._rivals() or "; ".join(filter(None, (inactive(self.node, self.contract.sinks), self._status.problem)))
        told = told or self.fault or self._deserted()
        topics = ", ".join(sink.topic for sink in self.contract.sinks if sink.value == "joint_position")
        return told or (
            f"robot {self.spec.name} does not move although commands go to {topics}: look for a protective stop, a speed slider at 0, "
            "a program that is not running on the robot, or another controller that holds the joints ('ros2 control list_controllers')"
        )

    # ------------------------------------------------------------ reading

    def _refresh(self, newest_only: bool = False) -> Observation:
        with self._lock:
            if self._take(newest_only):
                now_ns = time.monotonic_ns()
                frame = self.aligner.newest(now_ns)
                values = dict(frame.values)
                if "joint_position" in values:
                    receipts = frame.receipts_ns
                    self._observation = Observation(
                        receipts["joint_position"], self._observation.seq + 1, self._completed(values), stamps_ns=receipts
                    )
            return self._observation

    def _take(self, newest_only: bool) -> bool:
        """Feed what has come; whether joints were among it."""
        fresh = False
        for name, subscription in self._taken:
            samples = subscription.take()
            for sample in samples[-1:] if newest_only and name not in self._latched else samples:
                if self.aligner.feed(name, sample.data, time.monotonic_ns(), sample.source_ns):
                    self.source_ns[name] = sample.source_ns
                    fresh |= name in self.state_topics
        return fresh

    def _completed(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Velocities of a driver that tells none are taken for zero."""
        if "joint_velocity" not in values and "joint_position" in values:
            values["joint_velocity"] = np.zeros(len(values["joint_position"]))
        return values

    def _watch_pictures(self, name: str, subscription: Subscription) -> None:
        """Decode pictures as they come, away from the control thread."""
        while not self._quit.is_set():
            if subscription.wait(0.1):
                for sample in subscription.take():
                    if self.aligner.feed(name, sample.data, time.monotonic_ns(), sample.source_ns):
                        self.source_ns[name] = sample.source_ns

    # ------------------------------------------------------------ watching

    def _monitor(self) -> None:
        while not self._quit.wait(MONITOR_PERIOD_S):
            self._status.look()
            with self._fault_lock:
                problems = [controller.problem for controller in self.controllers if controller.problem]
                self.fault = self.fault or (problems[0] if problems else self._rivals() or self._deserted())

    def _watch_silence(self) -> None:
        while not self._quit.wait(WATCH_PERIOD_S):
            for controller in self.controllers:
                controller.watch(time.monotonic_ns())

    def _rivals(self) -> str:
        """What is wrong when others command the robot too; empty when none does."""
        for sink in self.contract.sinks:
            others = 0 if sink.kind.endswith("action") else self.node.other_publishers(sink.topic)
            if others:
                return (
                    f"{others} other publisher{'s' * (others > 1)} on {sink.topic} (domain {self.node.domain}): "
                    "two would fight over the robot; stop the other one"
                )
        return ""

    def _deserted(self) -> str:
        """What is wrong when a controller that took commands is there no more; empty when all are."""
        idle = [controller.sinks[0].topic for controller in self.controllers if not controller.taken]
        return f"nothing takes commands on {', '.join(idle)} any more: is the controller still active, and the robot there?" if idle else ""

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _end_threads(self) -> None:
        self._quit.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._quit.clear()

    # ------------------------------------------------------------ explaining

    def _incomplete(self) -> list[Source]:
        """Required sources that have told nothing yet."""
        seen = self.read().values
        missing = {s.key for s in self.contract.live if s.required} - set(seen)
        return [s for s in self.contract.live if s.key in missing]

    def _clocks(self) -> str:
        """What is wrong when a sender's clock is not ours, where the contract goes by it."""
        ahead = self.aligner.ahead_s()
        for source in self.contract.live:
            if source.stamp == "header" and source.topic in ahead:
                way = "ahead of" if ahead[source.topic] > 0 else "behind"
                return (
                    f"the clock behind {source.topic} is {abs(ahead[source.topic]):.1f} s {way} this machine's: synchronise them "
                    "(chrony, or use_sim_time off), or set stamp to 'receipt' for it in the contract"
                )
        return ""

    def _explain(self, timeout_s: float) -> str:
        """Why the robot is not ready."""
        where = f"on DDS domain {self.node.domain}, range {self.node.reach}"
        topics = self.node.topics()
        seen = ", ".join(sorted(topics)) or "none"
        wanted = {s.topic: s.message for s in self.contract.live} | {s.topic: _message(s) for s in self.contract.sinks if _message(s)}
        for name, message in wanted.items():
            if topics.get(name, message) != message:
                return f"topic {name} carries {topics[name]}, the contract of {self.spec.name} expects {message}; mend the contract's file"
        missing = self._incomplete()
        if not missing:
            idle = [c.sinks[0] for c in self.controllers if not c.taken]
            told = inactive(self.node, self.contract.sinks)
            return told or (
                f"nothing took commands on {', '.join(s.topic for s in idle)} within {timeout_s:g} s {where}; topics seen: {seen}; "
                "is the controller active?"
            )
        for source in missing:
            named = self.aligner.seen(source.topic)
            absent = [name for name in source.names if name not in named]
            if named and absent:
                return f"joints {', '.join(absent)} of robot {self.spec.name} are not among those {where}: {', '.join(named)}"
        if clocks := self._clocks():
            return clocks
        silent = ", ".join(dict.fromkeys(s.topic for s in missing))
        problem = f" ({self.aligner.problem})" if self.aligner.problem else ""
        return (
            f"no robot answered within {timeout_s:g} s {where}: nothing usable came on {silent}{problem}; topics seen: {seen}; "
            f"start one with 'sinew robot', or set ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET as on the robot"
        )


def _message(sink: Sink) -> str:
    """Type of a sink's topic; empty for actions."""
    if sink.kind in ("position", "velocity", "gripper_position"):
        return "std_msgs/Float64MultiArray"
    if sink.kind in ("trajectory", "gripper_trajectory"):
        return TRAJECTORY
    return "geometry_msgs/TwistStamped" if sink.kind == "twist" else ""


def _watched(contract: Contract, objects: Sequence[str], cameras: Sequence[str] | None, world_frame: str) -> Contract:
    """A contract with the poses of objects, and without the cameras that nobody wants.

    Raises:
        InputError: a camera is not in the contract.
    """
    sources: list[Any] = list(contract.sources)
    if cameras is not None:
        unknown = [camera for camera in cameras if camera not in contract.cameras]
        if unknown:
            raise InputError(
                f"robot {contract.robot!r} has no camera {unknown[0]!r}; its contract has {', '.join(contract.cameras) or 'none'}: add a "
                f"source images.{unknown[0]}"
            )
        sources = [s for s in sources if not s.image or s.key.removeprefix("images.") in cameras]
    for name in objects:
        if f"pose.{name}" not in contract.keys:
            sources.append(
                Source(
                    key=f"pose.{name}", topic="/tf", message="tf2_msgs/TFMessage", field="transform", frame=world_frame, child=name,
                    required=False,
                )
            )  # fmt: skip
    kept = {s.key for s in sources}
    features = tuple(f for f in contract.features if set(f.values) <= kept)
    return replace(contract, sources=tuple(sources), features=features)
