"""Run a policy on a robot: the policy is made ready, the robot is found, and every command goes through the loop and its gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from robot_bridge.approach import Approach
from robot_bridge.cadence import quantiles_us
from robot_bridge.clock import Clock, MonotonicClock
from robot_bridge.dds_robot import EFFORT_MAX_NM
from robot_bridge.episode import EpisodeRunner, Judge, Look, Timing
from robot_bridge.gate import GateConfig, Operator, SafetyGate
from robot_bridge.interfaces import UNKNOWN_POSE, Decoder, Frame, Recorder, Tap, TaskInterface, needed_values
from robot_bridge.kinematics import Arms
from robot_bridge.loop import ControlLoop
from robot_bridge.readiness import Readiness, limit_answers, told, warm_up
from robot_bridge.report import DeployReport, EpisodeResult
from robot_bridge.robots.config import RobotConfig
from robot_bridge.safety.build import gate_for
from robot_bridge.safety.config import SINGULARITY_STOP
from robot_bridge.scene import Scene
from robot_bridge.standing import why_stopped
from robot_bridge.synchroniser import Synchroniser, budgets
from sinew.errors import InputError, SafetyStop
from sinew.progress import SILENT, Progress
from sinew.protocols import Executor, Policy, Robot
from sinew.specs import PolicySpec, check_action_join, check_observation_join

__all__ = [
    "UNKNOWN_POSE", "Decoder", "DeployConfig", "DeployReport", "Frame", "Recorder", "TaskInterface", "deploy", "make_gate",
]  # fmt: skip

SLOWEST_S = 0.045
"""A target is followed at most this much longer than the policy's period, so that a robot holds soon after its policy is gone."""


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """How a deployment runs."""

    controller_rate_hz: float = 100.0
    """Rate of the command stream to the robot."""
    blend_s: float | None = None
    """Time from one policy target to the next; None for one policy period."""
    command_ttl_s: float | None = None
    """A target is not followed longer than this after the measurement behind it; None for two policy periods, or 50 ms more than
    one where that is less."""
    workspace_slack_m: float = 0.01
    """The gate's box is this much larger than the task's, which actions are already clipped to."""
    connect_timeout_s: float = 10.0
    realtime: bool = True
    """Ask for SCHED_FIFO for the controller-rate loop."""
    max_steps: int | None = None
    """Policy ticks per episode; None for the task's own."""
    first_run: bool = False
    """Limit the tools to 0.25 m/s, where the robot's kinematics are known."""
    start_pose_rad: tuple[float, ...] = ()
    """Where the robot is brought to before each episode, through the gate; empty begins where it stands."""
    approach_speed: float = 0.1
    """Share of the joints' speed limits for that."""

    def __post_init__(self) -> None:
        if not 0.0 < self.approach_speed <= 1.0:
            raise InputError(f"approach_speed {self.approach_speed} must be above 0 and at most 1")

    def ttl_s(self, rate_hz: float) -> float:
        """Time to live of a target of a policy that decides `rate_hz` times a second."""
        return min(2.0 / rate_hz, 1.0 / rate_hz + SLOWEST_S) if self.command_ttl_s is None else self.command_ttl_s


def make_gate(
    interface: TaskInterface, config: DeployConfig | None = None, robot: RobotConfig | None = None, operator: Operator | None = None
) -> SafetyGate:
    """The gate for a task's robot: its limits at the controller's rate, the workspace checked through its kinematics.

    Args:
        interface: the task.
        config: rates and times.
        robot: the robot as data, with all of its limits, links and distances; None for the task's, as far as it tells them.
        operator: emergency stop and dead-man switch.
    """
    config = config or DeployConfig()
    spec = interface.robot_spec
    slack = config.workspace_slack_m
    changes: dict[str, Any] = {
        "workspace_low_m": tuple(v - slack for v in spec.workspace_low_m),
        "workspace_high_m": tuple(v + slack for v in spec.workspace_high_m),
        "command_ttl_max_s": max(GateConfig.command_ttl_max_s, config.ttl_s(interface.action_spec.rate_hz)),
        "first_run": config.first_run,
    }
    if robot is not None:
        if interface.action_spec.kind.startswith("ee_"):
            changes["singularity_stop"] = SINGULARITY_STOP
        return gate_for(robot, config.controller_rate_hz, operator=operator, **changes)
    changes["effort_max_nm"] = (EFFORT_MAX_NM,) * len(spec.joint_names)
    chains = getattr(interface, "chains", None)
    limits = GateConfig.of(spec, config.controller_rate_hz, **changes)
    return SafetyGate(limits, Arms.of(chains) if chains else None, operator=operator)


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
    contract: Any = None,
    confirm: Callable[[str], bool] | None = None,
    judge: Judge | None = None,
    look: Look | None = None,
    ended: Callable[[], str] = lambda: "",
    tell: Callable[[str], None] = lambda line: None,
) -> DeployReport:
    """Run episodes of a policy on a robot.

    The policy computes its first chunks, and how long they take is measured, before the robot is connected.

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
        contract: the robot's, whose sources tell how old each value may be; None for defaults.
        confirm: asked once before the robot is brought to its start pose, with what is going to happen; None goes ahead.
        judge: asked whether an episode was a success where nothing else tells.
        look: says what is wrong with what is measured before each episode, as `robot_bridge.camera_check.CameraCheck`; it is not begun.
        ended: asked after every tick whether somebody ends the episode, and how: "success", "failure" or another word; "stop" ends
            the deployment with it.
        tell: gets lines for the person beside the robot.

    Returns:
        The report; `stopped` says why when the gate was latched or the robot could not go on. The robot stands when this
        returns or raises.

    Raises:
        SpecError: policy and task do not fit.
        InputError: the robot does not answer, or does not measure what the policy needs.
    """
    config = config or DeployConfig()
    clock = clock or MonotonicClock()
    executor, spec = _executor(policy, interface.task_text if instruction is None else instruction)
    gate = gate or make_gate(interface, config)
    _check(spec, interface, robot, gate)
    ready = warm_up(executor)
    for line in (ready.slow, limit_answers(executor)):
        if line:
            tell(line)
    seeds = tuple(range(episodes) if seeds is None else (int(s) for s in seeds))
    timing, wanted = _timing(interface, config), interface.observation_spec if spec is None else spec.observation
    blend_s = timing.period_ns / 1e9 if config.blend_s is None else config.blend_s
    loop = ControlLoop(robot, gate, blend_s=blend_s, clock=clock, realtime=config.realtime)
    runner = EpisodeRunner(
        executor, interface, wanted, loop, Synchroniser(budgets(needed_values(interface, wanted), contract)), timing, clock,
        approach=_approach(loop, timing, config, clock, confirm), warm=ready.chunks > 0, watchers=() if on_frame is None else (on_frame,),
        record=record, judge=judge, look=look, ended=ended,
    )  # fmt: skip
    robot.connect(config.connect_timeout_s)
    results, stopped = _play(runner, seeds, scene, progress)
    return _report(interface, loop, runner, results, seeds, ready, stopped, why_stopped(gate, robot))


def _play(runner: EpisodeRunner, seeds: Sequence[int], scene: Scene | None, progress: Progress) -> tuple[list[EpisodeResult], str]:
    """Episodes until all are played, the gate is latched or somebody stops; and why the robot could not go on, if so."""
    loop, results, stopped = runner.loop, list[EpisodeResult](), ""
    tap = cast(Tap, runner.record) if hasattr(runner.record, "sample") else None
    loop.tap = tap
    if hasattr(loop.robot, "tap"):
        loop.robot.tap = tap  # type: ignore[attr-defined]  # robots that can tell what they measure at its own rate
    progress.start("deploy", len(seeds))
    loop.start()
    try:
        for episode, seed in enumerate(seeds):
            results.append(runner.play(episode, seed, scene))
            progress.advance(success=float(bool(results[-1].success)))
            if loop.defect is not None:
                raise loop.defect
            if loop.gate.latched or results[-1].ended_by == "stop":
                break
    except SafetyStop as e:
        stopped = str(e)
    finally:
        loop.close()
    return results, stopped


def _check(spec: PolicySpec | None, interface: TaskInterface, robot: Robot, gate: SafetyGate) -> None:
    if spec is not None:
        check_observation_join("the task", interface.observation_spec, "the policy", spec.observation)
        check_action_join("the policy", spec.action, "the task", interface.action_spec)
    if len(gate.config.position_low_rad) != len(robot.spec.joint_names):
        raise InputError(f"the gate is for {len(gate.config.position_low_rad)} joints, {robot.spec.name} has {len(robot.spec.joint_names)}")


def _timing(interface: TaskInterface, config: DeployConfig) -> Timing:
    rate_hz = interface.action_spec.rate_hz
    steps = config.max_steps or interface.max_episode_steps
    return Timing(period_ns=round(1e9 / rate_hz), ttl_s=config.ttl_s(rate_hz), steps=steps, patience_s=config.connect_timeout_s)


def _approach(
    loop: ControlLoop, timing: Timing, config: DeployConfig, clock: Clock, confirm: Callable[[str], bool] | None
) -> Approach | None:
    """What brings the robot to its start pose; None where it begins as it stands."""
    if not config.start_pose_rad:
        return None
    period_s, speed = timing.period_ns / 1e9, config.approach_speed
    return Approach(loop, config.start_pose_rad, speed=speed, period_s=period_s, ttl_s=timing.ttl_s, clock=clock, confirm=confirm)


def _report(
    interface: TaskInterface, loop: ControlLoop, runner: EpisodeRunner, results: Sequence[EpisodeResult], seeds: tuple[int, ...],
    ready: Readiness, stopped: str, why: str,
) -> DeployReport:  # fmt: skip
    gate = loop.gate
    events = [{"stamp_ns": e.stamp_ns, "outcome": e.outcome, "reason": e.reason, "detail": e.detail} for e in gate.events]
    return DeployReport(
        task=interface.task_text,
        robot=loop.robot.spec.name,
        episodes=tuple(results),
        seeds=seeds,
        readiness=told(ready),
        policy=runner.report(),
        controller=loop.report(),
        latency_us=quantiles_us(np.array(runner.latencies_ns)),
        gate={"counts": dict(gate.counts), "outcomes": dict(loop.outcomes), "events": events[-100:], "latched": gate.latched},
        stopped=gate.latched or stopped,
        why=why or stopped,
    )


def _executor(policy: Policy | Executor, instruction: str) -> tuple[Executor, PolicySpec | None]:
    if hasattr(policy, "act"):
        inner = getattr(policy, "policy", None)
        return cast(Executor, policy), getattr(inner, "spec", None) or getattr(policy, "spec", None)
    from policies import ChunkExecutor

    return ChunkExecutor(cast(Policy, policy), 1, instruction=instruction), cast(Policy, policy).spec
