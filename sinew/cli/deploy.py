"""Run a policy on a robot, through the safety gate.

The gate is no certified safety function: an emergency stop and the robot's own limits must be there besides.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from policies import ChunkExecutor, PolicyModule
    from robot_bridge.scene import Scene
    from sim import TaskInterface
    from sinew.protocols import Robot

STOPPED_FOR_SAFETY = 4


@dataclass(frozen=True, kw_only=True)
class Args:
    """Run a policy on a robot, through the safety gate."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    robot: Literal["dds", "sim"] = "dds"
    """dds: a robot on the network, in ROS 2's wire format; sim: one in this process."""
    task: str | None = None
    """Task; the one the run was trained on if left out."""
    episodes: int = 20
    """Episodes; the seeds are those of `sinew eval`."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: Literal["LOCALHOST", "SUBNET"] | None = None
    """Where to look; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if left out."""
    controller_rate: float = 100.0
    """Commands per second to the robot, Hz."""
    timeout: float = 10.0
    """Seconds to wait for the robot."""
    scene: bool = True
    """Whether scenes are set up and judged over /sinew/scene; with --no-scene episodes end by time and success is unknown."""
    instruction: str | None = None
    """What a language policy is told to do; the task's own text if left out."""
    executor: Literal["sync", "async", "rtc"] = "sync"
    """sync waits for every chunk; async and rtc compute the next one meanwhile, rtc as a continuation."""
    delay: int | None = None
    """Ticks that a chunk may take, for async and rtc; measured if left out."""
    act_steps: int | None = None
    """Actions executed of each chunk; the most that there can be if left out."""
    device: str = "cpu"
    """Where the policy runs: cpu, cuda, cuda:1."""
    compile: bool = False
    """Compile the policy's sample before the robot is connected, which takes up to minutes; on a GPU, record it as a CUDA graph too."""
    seed: int = 0
    """Moves the scenes as in `sinew eval`."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Deploy, write deploy/<task>-<robot>.json into the run, and tell the result."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return deploy(args, progress)


def deploy(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the episodes.

    Raises:
        InputError: no such run, or no robot answers within the time-out.
        SpecError: policy and task do not fit.
    """
    import policies
    from policies.live import LiveExecutor
    from policies.warmup import Prepared
    from robot_bridge.deploy import DeployConfig
    from robot_bridge.deploy import deploy as play
    from sinew.cli.eval import check_instruction, instruction_tag, interface_of, task_of, test_seeds
    from sinew.config import to_json
    from sinew.rundir import RunDir, write_json
    from sinew.stats import success_summary

    run = RunDir.open(args.run)
    policy = policies.load(run)
    check_instruction(policy, args.instruction)
    task = args.task or task_of(run)
    interface = interface_of(policy, task)
    if not interface.action_spec.rate_hz <= args.controller_rate <= 1000 or not args.timeout > 0:
        raise InputError(
            f"--controller-rate {args.controller_rate:g} must be between the policy's {interface.action_spec.rate_hz:g} and 1000 Hz, "
            f"--timeout {args.timeout:g} above 0 s"
        )
    config = DeployConfig(controller_rate_hz=args.controller_rate, connect_timeout_s=args.timeout)
    seeds = test_seeds(args.episodes, args.seed)
    executor = _executor(args, policy, interface.task_text)
    robot, scene = _robot(args, task, interface)
    try:
        report = play(executor, interface, robot, seeds=seeds, scene=scene, config=config, progress=progress)
    finally:
        robot.close()
        if isinstance(executor, LiveExecutor):
            executor.close()
    judged = [e for e in report.episodes if e.success is not None]
    success = None
    if judged:
        outcomes = [bool(e.success) for e in judged]
        success = {**success_summary(outcomes, [e.seed for e in judged]), "successes": outcomes}
    result = {
        "run": str(args.run),
        "task": task,
        "robot": args.robot,
        "instruction": args.instruction,
        "executor": _described(executor),
        "prepared": to_json(executor.policy.config) if isinstance(executor.policy, Prepared) else None,
        "success": success,
        "stopped": report.stopped,
        "report": report.summary(),
    }
    way = f"-{args.executor}" if args.executor != "sync" else ""
    write_json(run / f"deploy/{task}-{args.robot}{way}{instruction_tag(args.instruction)}.json", result)
    return result


def _prepared(args: Args, policy: PolicyModule, instruction: str) -> PolicyModule:
    """The policy where it shall act, compiled if that was asked for.

    Raises:
        InputError: no such device, or an executor whose samples cannot be compiled.
    """
    from policies.warmup import prepare
    from sinew.cli.serve import device_of

    policy = policy.to(device_of(args.device))
    if not args.compile:
        return policy
    if args.executor == "rtc":
        raise InputError("--compile: executor rtc guides its samples, and only samples without guidance are compiled; use sync or async")
    return prepare(policy, args.device, instruction=instruction)


def _executor(args: Args, policy: PolicyModule, task_text: str) -> ChunkExecutor:
    """The executor that was asked for.

    Raises:
        InputError: a delay without use, or one that the policy's chunks are too short for.
    """
    from policies import ChunkExecutor
    from policies.live import LiveExecutor

    if args.executor == "sync" and args.delay is not None:
        raise InputError(f"--delay {args.delay}: executor sync waits for its chunks and knows no delay; use --executor async or rtc")
    instruction = task_text if args.instruction is None else args.instruction
    ready = _prepared(args, policy, instruction)
    settings: dict[str, Any] = {"act_steps": args.act_steps, "instruction": instruction, "device": args.device}
    if args.executor == "sync":
        return ChunkExecutor(ready, 1, **settings)
    return LiveExecutor(ready, mode=args.executor, delay=args.delay, **settings)


def _described(executor: ChunkExecutor) -> dict[str, Any]:
    """What the executor was and, where it computes meanwhile, how that went."""
    from policies.live import LiveExecutor

    told: dict[str, Any] = {"mode": executor.mode, "act_steps": executor.act_steps}
    if isinstance(executor, LiveExecutor):
        latency_ms = None if executor.latency_s is None else round(executor.latency_s * 1e3, 2)
        told |= {"delay": executor.delay, "latency_p95_ms": latency_ms, "held_ticks": executor.held_ticks}
    return told


def _robot(args: Args, task: str, interface: TaskInterface) -> tuple[Robot, Scene | None]:
    import robot_bridge

    if args.robot == "sim":
        import sim

        simulated = robot_bridge.SimRobot(sim.RobotSim(task), interface.robot_spec, cameras=interface.cameras)
        return simulated, robot_bridge.SimScene(simulated) if args.scene else None
    robot = robot_bridge.DdsRobot(
        interface.robot_spec, objects=interface.objects, cameras=interface.cameras, domain=args.domain, reach=args.reach
    )
    return robot, robot_bridge.DdsScene(robot) if args.scene else None


@contextlib.contextmanager
def simulated_robot(task: str) -> Iterator[int]:
    """`sinew robot` in a process of its own, on this machine only; gives its DDS domain and ends it afterwards."""
    domain = 20 + os.getpid() % 80
    command = [sys.executable, "-m", "sinew", "robot", "--task", task, "--domain", str(domain), "--reach", "LOCALHOST", "--with-parent"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield domain
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def exit_code(result: dict[str, Any]) -> int:
    """4 when the gate latched, else 0."""
    return STOPPED_FOR_SAFETY if result["stopped"] else 0


def show(result: dict[str, Any], console: Console) -> None:
    """Print success, cadence and what the gate did."""
    success, report = result["success"], result["report"]
    if success:
        low, high = success["wilson95"]
        console.print(
            f"{result['run']} on {result['task']} over {result['robot']}: {success['k']}/{success['n']}, 95 % in [{low:.1%}, {high:.1%}]"
        )
    executor = result["executor"]
    if executor["mode"] != "sync":
        latency = "" if executor["latency_p95_ms"] is None else f" (a chunk takes {executor['latency_p95_ms']:g} ms at p95)"
        console.print(f"executor {executor['mode']}, delay {executor['delay']} ticks{latency}, held for {executor['held_ticks']} ticks")
    if result["prepared"]:
        from policies.warmup import in_words

        console.print(in_words(result["prepared"]))
    console.print(f"policy {report['policy']['rate_hz']:.2f} Hz, controller {report['controller']['rate_hz']:.2f} Hz")
    if result["stopped"]:
        console.print(f"[bold]stopped for safety:[/bold] {result['stopped']}")
