"""Run a policy on a robot: observe, decide, decode, and hand every command to the control loop and its safety gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from demos.resized import fit
from robot_bridge.cadence import Cadence, next_deadline, quantiles_us
from robot_bridge.clock import Clock, MonotonicClock
from robot_bridge.gate import GateConfig, SafetyGate, Verdict
from robot_bridge.kinematics import Arms
from robot_bridge.loop import ControlLoop, openings
from robot_bridge.report import DeployReport, EpisodeResult
from robot_bridge.scene import Scene
from sinew.errors import InputError, SafetyStop
from sinew.progress import SILENT, Progress
from sinew.protocols import Command, Executor, Observation, Policy, Robot, RobotSpec
from sinew.specs import ENVIRONMENT_STATE, IMAGES, ActionSpec, ObservationSpec, PolicySpec, check_action_join, check_observation_join

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN_POSE = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])


class Decoder(Protocol):
    """Turns actions in physical units into targets of the robot."""

    def reset(self, joint_position: np.ndarray, gripper: np.ndarray | None = None, ids: Sequence[int] | None = None) -> None: ...

    def decode(self, action: np.ndarray, joint_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class TaskInterface(Protocol):
    """What a task tells about its observations and actions; `sim.make_interface` makes one."""

    objects: tuple[str, ...]
    task_text: str
    max_episode_steps: int

    @property
    def observation_spec(self) -> ObservationSpec: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    @property
    def robot_spec(self) -> RobotSpec: ...

    def observe(
        self, joint_position: np.ndarray, joint_velocity: np.ndarray, gripper: np.ndarray, poses: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]: ...

    def decoder(self, num: int) -> Decoder: ...


@dataclass(frozen=True)
class Frame:
    """One policy tick, for those who watch or record."""

    episode: int
    seed: int
    step: int
    observation: Mapping[str, np.ndarray]
    """{key: (...)} as the policy saw it, without a batch axis."""
    action: np.ndarray
    """(A,) in physical units."""
    measured: Observation
    command: Command | None = None
    """What was asked of the control loop: the action as targets of the joints."""
    verdict: Verdict | None = None
    """The gate's newest word when the command was handed over, which is about the command before; None before the first."""


class Recorder(Protocol):
    """Takes the frames of a deployment, for example into a dataset."""

    def frame(self, frame: Frame) -> None: ...

    def end_episode(self, result: EpisodeResult) -> None: ...


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """How a deployment runs."""

    controller_rate_hz: float = 100.0
    """Rate of the command stream to the robot."""
    blend_s: float | None = None
    """Time from one policy target to the next; None for one policy period."""
    command_ttl_s: float | None = None
    """A target is not followed longer than this after the measurement behind it; None for two policy periods."""
    workspace_slack_m: float = 0.01
    """The gate's box is this much larger than the task's, which actions are already clipped to."""
    connect_timeout_s: float = 10.0
    realtime: bool = True
    """Ask for SCHED_FIFO for the controller-rate loop."""
    max_steps: int | None = None
    """Policy ticks per episode; None for the task's own."""


def make_gate(interface: TaskInterface, config: DeployConfig | None = None) -> SafetyGate:
    """The gate for a task's robot: its limits at the controller's rate, the workspace checked through its kinematics."""
    config = config or DeployConfig()
    spec = interface.robot_spec
    slack = config.workspace_slack_m
    limits = GateConfig.of(
        spec,
        config.controller_rate_hz,
        workspace_low_m=tuple(v - slack for v in spec.workspace_low_m),
        workspace_high_m=tuple(v + slack for v in spec.workspace_high_m),
    )
    chains = getattr(interface, "chains", None)
    return SafetyGate(limits, Arms.of(chains) if chains else None)


def deploy(
    policy: Policy | Executor,
    interface: TaskInterface,
    robot: Robot,
    *,
    episodes: int = 1,
    seeds: Sequence[int] | None = None,
    scene: Scene | None = None,
    gate: SafetyGate | None = None,
    config: DeployConfig | None = None,
    clock: Clock | None = None,
    on_frame: Callable[[Frame], None] | None = None,
    record: Recorder | None = None,
    progress: Progress = SILENT,
    instruction: str | None = None,
) -> DeployReport:
    """Run episodes of a policy on a robot.

    Args:
        policy: a policy, run by a synchronous executor, or an executor for one world; where its `act` gives None the robot holds.
        interface: the task the policy was made for.
        robot: any robot; it is connected here and left connected.
        episodes: how many, where `seeds` is not given: seeds 0, 1, ….
        seeds: one per episode.
        scene: sets up episodes and tells success; None where neither can be done: episodes then end by time.
        gate: None for the task's limits (`make_gate`).
        config: rates and times.
        clock: `SteppedClock` together with a stepped `SimRobot` makes every run alike.
        on_frame: called after each command was handed over.
        record: takes every frame and outcome.
        progress: told of every episode.
        instruction: what a language policy shall do; None for the task's own text.

    Returns:
        The report; `stopped` says why when the gate was latched. The robot stands when this returns or raises.

    Raises:
        SpecError: policy and task do not fit.
        InputError: the robot does not answer, or does not measure what the policy needs.
    """
    config = config or DeployConfig()
    clock = clock or MonotonicClock()
    executor, spec = _executor(policy, interface.task_text if instruction is None else instruction)
    if spec is not None:
        check_observation_join("the task", interface.observation_spec, "the policy", spec.observation)
        check_action_join("the policy", spec.action, "the task", interface.action_spec)
    gate = gate or make_gate(interface, config)
    if len(gate.config.position_low_rad) != len(robot.spec.joint_names):
        raise InputError(f"the gate is for {len(gate.config.position_low_rad)} joints, {robot.spec.name} has {len(robot.spec.joint_names)}")
    robot.connect(config.connect_timeout_s)
    seeds = tuple(range(episodes) if seeds is None else (int(s) for s in seeds))
    blend_s = 1.0 / interface.action_spec.rate_hz if config.blend_s is None else config.blend_s
    loop = ControlLoop(robot, gate, blend_s=blend_s, clock=clock, realtime=config.realtime)
    runner = _Runner(executor, spec, interface, robot, loop, config, clock, on_frame, record)
    results: list[EpisodeResult] = []
    progress.start("deploy", len(seeds))
    loop.start()
    try:
        for episode, seed in enumerate(seeds):
            results.append(runner.episode(episode, seed, scene))
            progress.advance(success=float(bool(results[-1].success)))
            if loop.defect is not None:
                raise loop.defect
            if gate.latched:
                break
    finally:
        loop.close()
    events = [{"stamp_ns": e.stamp_ns, "outcome": e.outcome, "reason": e.reason, "detail": e.detail} for e in gate.events]
    return DeployReport(
        task=interface.task_text,
        robot=robot.spec.name,
        episodes=tuple(results),
        seeds=seeds,
        policy=runner.cadence.report(),
        controller=loop.report(),
        latency_us=quantiles_us(np.array(runner.latencies_ns)),
        gate={"counts": dict(gate.counts), "outcomes": dict(loop.outcomes), "events": events[-100:], "latched": gate.latched},
        stopped=gate.latched,
    )


def _executor(policy: Policy | Executor, instruction: str) -> tuple[Executor, PolicySpec | None]:
    if hasattr(policy, "act"):
        inner = getattr(policy, "policy", None)
        return cast(Executor, policy), getattr(inner, "spec", None) or getattr(policy, "spec", None)
    from policies import ChunkExecutor

    return ChunkExecutor(cast(Policy, policy), 1, instruction=instruction), cast(Policy, policy).spec


class _Runner:
    """Episodes on one robot."""

    def __init__(
        self,
        executor: Executor,
        spec: PolicySpec | None,
        interface: TaskInterface,
        robot: Robot,
        loop: ControlLoop,
        config: DeployConfig,
        clock: Clock,
        on_frame: Callable[[Frame], None] | None,
        record: Recorder | None,
    ) -> None:
        self.executor, self.interface, self.robot, self.loop = executor, interface, robot, loop
        self.wanted = interface.observation_spec if spec is None else spec.observation
        self.config, self.clock, self.on_frame, self.record = config, clock, on_frame, record
        self.decoder = interface.decoder(1)
        self.period_ns = round(1e9 / interface.action_spec.rate_hz)
        self.ttl_s = 2 * self.period_ns / 1e9 if config.command_ttl_s is None else config.command_ttl_s
        self.cadence = Cadence(("read", "observe", "policy", "decode", "submit"), self.period_ns / 1e9)
        self.latencies_ns: list[int] = []
        self.seq = 0
        self.warm = False

    def episode(self, episode: int, seed: int, scene: Scene | None) -> EpisodeResult:
        loop, gate = self.loop, self.loop.gate
        loop.pause()
        if scene is not None:
            scene.reset(seed)
        measured = self._complete_measurement()
        if not self.warm:  # the first inference is slow; the robot does not wait for it
            self.executor.act(self._tensors(self._observe(measured)))
            self.warm = True
        self.executor.reset(seeds=[seed])
        measured = self.robot.read()
        self.decoder.reset(measured.values["joint_position"][None], np.atleast_1d(measured.values["gripper"])[None])
        started_ns = self.clock.now_ns()
        if loop.resume():
            return self._result(episode, seed, None, 0, started_ns)
        steps = self.config.max_steps or self.interface.max_episode_steps
        self.cadence.resume()
        deadline_ns = self.clock.now_ns()
        step, success = 0, None
        while True:
            self.clock.wait_until(deadline_ns)
            success = None if scene is None else scene.success()
            if success or step >= steps or gate.latched:
                break
            self._tick(episode, seed, step, deadline_ns)
            step += 1
            deadline_ns = next_deadline(deadline_ns, self.period_ns, self.clock.now_ns())
        loop.ramp_down()
        return self._result(episode, seed, success, step, started_ns)

    def _tick(self, episode: int, seed: int, step: int, deadline_ns: int) -> None:
        marks = [self.clock.now_ns()]
        measured = self.robot.read()
        marks.append(self.clock.now_ns())
        observation = self._observe(measured)
        marks.append(self.clock.now_ns())
        action = self._act(observation)
        marks.append(self.clock.now_ns())
        if action is None:
            return
        joints = np.asarray(measured.values["joint_position"], dtype=float)
        joint_target, gripper_target = self.decoder.decode(action[None], joints[None])
        marks.append(self.clock.now_ns())
        self.seq += 1
        values = {"joint_position": joint_target[0], "gripper": openings(tuple(np.atleast_1d(gripper_target[0]).tolist()))}
        command, before = Command(measured.stamp_ns, self.seq, self.ttl_s, values), self.loop.verdict
        self.loop.submit(command)
        marks.append(self.clock.now_ns())
        self.cadence.add(deadline_ns, marks)
        self.latencies_ns.append(marks[-1] - measured.stamp_ns)
        if self.on_frame or self.record:
            frame = Frame(episode, seed, step, {k: v[0] for k, v in observation.items()}, action, measured, command, before)
            if self.on_frame:
                self.on_frame(frame)
            if self.record:
                self.record.frame(frame)

    def _act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The next action (A,) in physical units.

        None when there is none: of an executor that still computes, and the robot holds as the last target expires; or of a
        policy that gave none that may be used, and the gate is latched.
        """
        gate, spec = self.loop.gate, self.interface.action_spec
        try:
            given = cast("Tensor | None", self.executor.act(self._tensors(observation)))
        except SafetyStop as e:
            gate.stop("non_finite", self.clock.now_ns(), str(e))
            return None
        if given is None:
            return None
        action = np.asarray(given.detach().cpu(), dtype=np.float64)
        if action.shape != (1, spec.dim):
            gate.stop("shape", self.clock.now_ns(), f"the policy gave actions of shape {action.shape}, expected (1, {spec.dim})")
            return None
        if not np.isfinite(action).all():
            gate.stop("non_finite", self.clock.now_ns(), f"the policy gave {action[0]!r:.200}")
            return None
        return spec.denormalize(action[0])

    def _observe(self, measured: Observation) -> dict[str, np.ndarray]:
        """{key: (1, ...)} of everything that the policy looks at."""
        values = measured.values
        poses = {name: np.asarray(values.get(f"pose.{name}", UNKNOWN_POSE), dtype=float)[None] for name in self.interface.objects}
        gripper = np.atleast_1d(values["gripper"])[None]
        observation = self.interface.observe(values["joint_position"][None], values["joint_velocity"][None], gripper, poses)
        observation = {key: value for key, value in observation.items() if key in self.wanted.tensors}
        for key in self.wanted.images:
            height, width, _ = self.wanted[key].shape
            observation[key] = fit(values["images." + key.removeprefix(IMAGES)], height, width)[None]
        return observation

    def _tensors(self, observation: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        import torch

        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in observation.items()}

    def _complete_measurement(self) -> Observation:
        """Wait until the robot measures everything that the policy needs."""
        needed = ["joint_position", "joint_velocity", "gripper"]
        if ENVIRONMENT_STATE in self.wanted.tensors:
            needed += [f"pose.{name}" for name in self.interface.objects]
        needed += ["images." + key.removeprefix(IMAGES) for key in self.wanted.images]
        deadline_ns = self.clock.now_ns() + int(self.config.connect_timeout_s * 1e9)
        while True:
            measured = self.robot.read()
            missing = [key for key in needed if key not in measured.values]
            if not missing:
                return measured
            if self.clock.now_ns() > deadline_ns:
                raise InputError(
                    f"robot {self.robot.spec.name} did not send {', '.join(missing)} within {self.config.connect_timeout_s:g} s; "
                    f"it sends {', '.join(measured.values)}"
                )
            self.clock.wait_until(self.clock.now_ns() + self.period_ns)

    def _result(self, episode: int, seed: int, success: bool | None, steps: int, started_ns: int) -> EpisodeResult:
        latched = self.loop.gate.latched
        duration_s = (self.clock.now_ns() - started_ns) / 1e9
        ended_by = "success" if success else latched or "time_limit"
        result = EpisodeResult(seed, False if latched and not success else success, steps, duration_s, ended_by)
        if self.record:
            self.record.end_episode(result)
        return result
