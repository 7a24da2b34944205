"""Run a policy on a robot, through the safety gate.

The gate is no certified safety function: an emergency stop and the robot's own limits must be there besides.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from policies import ChunkExecutor, PolicyModule
    from robot_bridge.report import DeployReport
    from sinew.calibrations import Calibration
    from sinew.cli.assembly import Source

STOPPED_FOR_SAFETY = 4
SERVER_WARM_UP_S = 120.0
"""A policy server may have to compile before its first answer."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Run a policy on a robot, through the safety gate. In a terminal any key stops the robot."""

    run: Annotated[str | Path, tyro.conf.Positional]
    """Folder of a run, or https://host:port of a sinew serve."""
    robot: Literal["dds", "ros2", "sim"] = "dds"
    """dds: a robot on the network, in ROS 2's wire format; ros2: the same through rclpy; sim: one in this process."""
    robot_config: str | None = None
    """Which robot it is, by name (ur5e, fr3, xarm7, so101, vx300s, aloha, ros2_control) or by the file of sinew robot add; the
    simulated task's robot if left out."""
    task: str | None = None
    """Task; the one the run was trained on if left out."""
    episodes: int = 20
    """Episodes; the seeds are those of `sinew eval`."""
    max_steps: int | None = None
    """Policy ticks per episode; the task's own if left out."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: str | None = None
    """LOCALHOST, SUBNET, or the network interface that DDS keeps to, as eth0; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if
    left out."""
    controller_rate: float = 100.0
    """Commands per second to the robot, Hz."""
    timeout: float = 10.0
    """Seconds to wait for the robot."""
    scene: bool = True
    """Whether scenes are set up and judged over /sinew/scene; with --no-scene episodes end by time and success is unknown, or
    asked for in a terminal. Robots of --robot-config have no such scene."""
    controller: str = ""
    """Kind of controller of --robot-config that is active, as trajectory; the usual one of its contract if left out."""
    gripper_controller: str = ""
    """Kind of its gripper's controller, as gripper_position; likewise."""
    calibration: tuple[str, ...] = ()
    """Results of sinew calibrate that tell where the cameras are now: folders, or CAMERA=FOLDER. They are compared with where the
    cameras of the policy's data were."""
    allow_other_calibration: bool = False
    """Go on, with a warning, where a camera is elsewhere than in the policy's data; such a start is refused otherwise."""
    hold_on_drift: bool = False
    """Watch the cameras of --calibration meanwhile, in a process of its own, and stop when one has moved; a board or tag must be in
    view, as for sinew calibrate watch."""
    first_run: bool = False
    """Limit the tools to 0.25 m/s."""
    start_pose: Literal["home", "here"] | None = None
    """home: bring the robot to its home pose before each episode, slowly; here: begin where it stands. Robots of --robot-config
    go home if this is left out, others stay."""
    yes: bool = False
    """Move to the start pose without asking, as where there is no terminal to ask in."""
    dead_man: bool = False
    """The robot moves only while the space bar is held."""
    e_stop_topic: str = "/sinew/e_stop"
    """Topic (std_msgs/Bool) and service (std_srvs/Trigger) that stop the robot; empty for none."""
    record: Path | None = None
    """Dataset of what is done, in the folder given; goes on where there is one."""
    record_trouble: Literal["stop", "go_on"] = "stop"
    """What follows when the disk is full or away: stop ends the episode safely, go_on goes on without recording."""
    mcap: Path | None = None
    """Bag of every topic meanwhile, in the MCAP file given."""
    token_file: Path | None = None
    """File with the secret of a policy server; SINEW_TOKEN if left out."""
    ca: Path | None = None
    """Certificate of the authority that signed the policy server's, PEM."""
    trust_first_use: bool = False
    """Trust a policy server that was never seen, and remember its certificate."""
    out: Path | None = None
    """Folder for deploy/; the run if left out, and none for a policy server."""
    instruction: str | None = None
    """What a language policy is told to do; the task's own text if left out."""
    executor: Literal["sync", "async", "rtc"] = "sync"
    """sync waits for every chunk; async and rtc compute the next one meanwhile, rtc as a continuation."""
    delay: int | None = None
    """Ticks that a chunk may take, for async and rtc; measured all the time if left out."""
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
    from robot_bridge.deploy import deploy as play
    from sinew.cli.deploy_robot import check, open_cell
    from sinew.cli.eval import check_instruction, test_seeds

    check(args)
    seeds = test_seeds(args.episodes, args.seed)
    with ExitStack() as stack:
        source = _source(args)
        stack.callback(getattr(source.policy, "close", lambda: None))
        check_instruction(source.policy, args.instruction)
        calibration, compared = _calibration(args, source, progress)
        cell = open_cell(args, source, stack, progress, calibration)
        executor = _executor(args, source.policy, cell.interface.task_text)
        stack.callback(getattr(executor, "close", lambda: None))
        report = play(
            executor,
            cell.interface,
            cell.robot,
            seeds=seeds,
            scene=cell.scene,
            gate=cell.gate,
            config=cell.config,
            record=cell.record,
            progress=progress,
            contract=cell.contract,
            confirm=cell.confirm,
            judge=cell.judge,
            look=cell.look,
            tell=progress.note,
        )
        result = _result(args, source, cell.task, executor, report) | {"calibration": compared}
    folder = args.out or (source.run.path if source.run is not None else None)
    if folder is not None:
        try:
            _write(args, folder, cell.task, result)
        except InputError as e:  # what the robot did is told all the same
            progress.note(str(e))
    return result


def _source(args: Args) -> Source:
    """The policy, here or behind a server.

    Raises:
        InputError: there is none, or a server's options are given for a run.
    """
    from sinew.cli.assembly import SERVERS, Source, open_source

    text = str(args.run)
    if text.startswith(SERVERS):
        from policies.remote import connect, read_token

        return Source(
            text,
            connect(
                text,
                read_token(args.token_file),
                warmup_s=SERVER_WARM_UP_S,
                ca=str(args.ca) if args.ca else None,
                trust_first_use=args.trust_first_use,
            ),
        )
    if args.ca is not None:
        raise InputError(f"--ca {args.ca} is for a policy behind a server, https://host:port; {text} is none")
    return open_source(args.run, args.task, token_file=args.token_file)


def _calibration(args: Args, source: Source, progress: Progress) -> tuple[Calibration | None, dict[str, Any] | None]:
    """Where the cameras are, and how that compares with the policy's data.

    Raises:
        InputError: a camera is elsewhere, and that was not allowed; or no such camera.
    """
    from sinew.cli import calibrated

    observation = source.policy.spec.observation
    now = calibrated.given(args.calibration, calibrated.cameras_of(observation))
    run = None if source.run is None else source.run.path
    return now, calibrated.compare(now, run, observation, args.allow_other_calibration, progress.note)


def _result(args: Args, source: Source, task: str, executor: ChunkExecutor, report: DeployReport) -> dict[str, Any]:
    from policies.warmup import Prepared
    from sinew.config import to_json
    from sinew.stats import success_summary

    judged = [e for e in report.episodes if e.success is not None]
    success = None
    if judged:
        outcomes = [bool(e.success) for e in judged]
        success = {**success_summary(outcomes, [e.seed for e in judged]), "successes": outcomes}
    return {
        "run": str(args.run),
        "task": task,
        "robot": args.robot,
        "robot_config": args.robot_config,
        "instruction": args.instruction,
        "executor": _described(executor),
        "prepared": to_json(executor.policy.config) if isinstance(executor.policy, Prepared) else None,
        "recorded": str(args.record) if args.record else None,
        "success": success,
        "stopped": report.stopped,
        "report": report.summary(),
    }


def _write(args: Args, folder: Path, task: str, result: dict[str, Any]) -> None:
    from sinew.cli.eval import instruction_tag
    from sinew.rundir import write_json

    way = f"-{args.executor}" if args.executor != "sync" else ""
    which = "" if args.robot_config is None else f"-{Path(args.robot_config).stem}"
    write_json(folder / f"deploy/{task}-{args.robot}{which}{way}{instruction_tag(args.instruction)}.json", result)


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
        told |= {"latency_p95_ms": latency_ms, **executor.report()}
    return told


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
    """4 when the robot was stopped for safety, else 0."""
    return STOPPED_FOR_SAFETY if result["stopped"] else 0


def show(result: dict[str, Any], console: Console) -> None:
    """Print success, cadence, latency, and what stopped the robot."""
    from sinew.cli.deploy_report import lines

    for line in lines(result):
        console.print(line)
