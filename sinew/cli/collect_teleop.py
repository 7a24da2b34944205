"""Demonstrations of a person: a device moves a robot through the control loop and its gate, and what is done is recorded."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from sinew.cli import robot_page, teleop_device
from sinew.cli.prompts import Prompts
from sinew.cli.recording_watch import before, shown
from sinew.cli.scenes import first_scene
from sinew.errors import InputError, SafetyStop, unknown
from sinew.progress import Progress
from sinew.specs import IMAGES, ActionSpec, ObservationSpec

if TYPE_CHECKING:
    from robot_bridge.interfaces import TaskInterface
    from robot_bridge.recording import DatasetRecorder
    from robot_bridge.report import DeployReport
    from robot_bridge.robots.config import RobotConfig
    from robot_bridge.scene import Scene
    from robot_bridge.takeover import Takeover
    from robot_bridge.teleop.executor import TeleopExecutor
    from sinew.calibrations import Calibration
    from sinew.cli.collect import Args
    from sinew.protocols import Executor, Robot

LAST_CHANCE_S, AGAIN_S = 3.0, 30.0
"""To throw the last episode away after all, and for that to be done."""
RATE_HZ = 20.0
"""Of demonstrations on a robot that no simulated task describes."""
NO_CAMERAS = ("none",)
"""What --cameras says to record none of a robot's."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Who and what takes part in demonstrations."""

    interface: TaskInterface
    config: RobotConfig | None
    """The robot as data, if it was named."""
    robot: Robot
    scene: Scene | None
    takeover: Takeover
    recorder: DatasetRecorder
    calibration: Calibration | None
    """Where the cameras are; None where nobody tells."""


def interface_of(args: Args) -> tuple[Any, RobotConfig | None]:
    """What is recorded: a simulated task, or whatever the contract of a robot says; and the robot as data, if it was named.

    Raises:
        InputError: no such task or robot, or the robot's frames are not known.
    """
    if args.robot_config is None:
        import sim

        return sim.make_interface(args.task, teleop_device.action_of(args), args.cameras, args.image_size), None
    from robot_bridge.robot_interface import RobotInterface
    from robot_bridge.robots import load_robot

    config = load_robot(args.robot_config).with_controller(args.controller, args.gripper_controller)
    steps = round(args.episode_s * RATE_HZ)
    told = config.contract.observation_spec()
    cameras = [key.removeprefix(IMAGES) for key in told.images]
    for name in args.cameras if args.cameras != NO_CAMERAS else ():
        if name not in cameras:
            raise unknown("camera", name, [*cameras, *NO_CAMERAS])
    chosen = cameras if not args.cameras else args.cameras
    wanted = ObservationSpec({k: v for k, v in told.tensors.items() if k not in told.images or k.removeprefix(IMAGES) in chosen})
    by_tool = teleop_device.action_of(args) == "ee_delta"
    action = tool_action(config) if by_tool else teleop_device.joint_action(config, RATE_HZ)
    return RobotInterface(config, task_text=args.task, wanted=wanted, action=action, max_episode_steps=steps), config


def tool_action(config: RobotConfig) -> ActionSpec:
    """Displacements of each tool along the world's axes, a turn about the vertical, and an opening."""
    from robot_bridge.robot_interface import SPEED_M_S, TURN_RAD_S

    spec, step, turn = config.spec, SPEED_M_S / RATE_HZ, TURN_RAD_S / RATE_HZ
    low: list[float] = []
    high: list[float] = []
    names: list[str] = []
    for i in range(config.arms):
        prefix = f"arm{i}_" if config.arms > 1 else ""
        names += [prefix + name for name in ("dx", "dy", "dz", "dyaw")]
        low += [-step] * 3 + [-turn]
        high += [step] * 3 + [turn]
        if spec.gripper_name is not None:
            names.append(f"{prefix}gripper")
            low.append(spec.gripper_low_m)
            high.append(spec.gripper_high_m)
    return ActionSpec(kind="ee_delta", low=tuple(low), high=tuple(high), rate_hz=RATE_HZ, names=tuple(names))


def collect(args: Args, settings: Mapping[str, Any], progress: Progress, calibration: Calibration | None) -> None:
    """Record the episodes that are still missing.

    Args:
        args: of `sinew collect`.
        settings: kept with the dataset.
        progress: told of every episode.
        calibration: where the cameras are; None where nobody tells.

    Raises:
        InputError: no device, no robot, or the dataset cannot be written.
        SpecError: the folder holds another collection.
        SafetyStop: the gate stopped the robot; what was recorded is kept.
    """
    from robot_bridge.recording import DatasetRecorder
    from robot_bridge.takeover import KEYS

    assert args.teleop is not None
    interface, config = interface_of(args)
    with ExitStack() as stack:
        takeover = _device(args, interface, progress)
        stack.callback(takeover.close)
        contract, new = None if config is None else config.contract, not args.out.exists()
        prompts = stack.enter_context(Prompts(args.sounds))

        say = getattr(takeover, "say", lambda line: None)

        def urgent(line: str) -> None:
            progress.note(line)
            say(line)
            if not line.startswith("episode"):  # how one went is said when it ends
                prompts.say(line, urgent=True)

        recorder = DatasetRecorder(args.out, interface, about=settings, contract=contract, calibration=calibration, tell=urgent)
        stack.callback(lambda: shutil.rmtree(args.out) if new and not recorder.episodes else None)  # nothing recorded leaves nothing
        stack.callback(recorder.close)
        if recorder.episodes > args.episodes:
            raise InputError(f"{args.out} holds {recorder.episodes} episodes, more than --episodes {args.episodes}; take another --out")
        robot, scene = _robot(args, interface, config)
        stack.callback(robot.close)  # type: ignore[attr-defined]  # every robot of ours has it
        cell = Cell(
            interface=interface, config=config, robot=robot, scene=scene, takeover=takeover, recorder=recorder, calibration=calibration
        )
        if sys.stdin.isatty() and args.teleop not in robot_page.PAGES:
            progress.note(f"keys: {KEYS}")
        progress.note("recording begins with your first motion; y or x ends the episode, r throws it away, R the one before, q stops")
        progress.start("episodes", args.episodes, done=recorder.episodes)
        with shown(recorder, progress):
            play(args, cell, progress, prompts)


def _device(args: Args, interface: TaskInterface, progress: Progress) -> Takeover:
    assert args.teleop is not None
    arms = teleop_device.arms_of(interface)
    if args.teleop in robot_page.PAGES:
        return robot_page.open_page(args.teleop, args.listen, progress.note, interface, frame=args.frame, arms=arms)
    return teleop_device.open_device(args, interface, progress.note)


def play(args: Args, cell: Cell, progress: Progress, prompts: Prompts) -> None:
    """Episodes until all are recorded or the person stops.

    Raises:
        SafetyStop: the gate stopped the robot; what was recorded is kept.
    """
    from robot_bridge.deploy import DeployConfig, deploy, make_gate
    from robot_bridge.given import ActionSpace
    from robot_bridge.teleop.executor import Attentive, TeleopExecutor
    from sinew.cli.calibrated import look

    def tell(line: str) -> None:
        progress.note(line)
        prompts.say(line)

    interface, config, robot, recorder = cell.interface, cell.config, cell.robot, cell.recorder
    space, desk = ActionSpace(interface), robot_page.Desk(cell.takeover, tell)
    executor = TeleopExecutor(cell.takeover, space, interface.observation_spec, interface.action_spec, robot.read, desk.tell)
    executor.again = recorder.again

    def state() -> dict[str, Any]:
        return {"recording": executor.recording, "paused": executor.paused, "kept": recorder.episodes, "episodes": args.episodes}

    desk.watch(robot, state)
    steps = round(args.episode_s * interface.action_spec.rate_hz)
    timing = DeployConfig(max_steps=steps, first_run=config is not None)  # it begins where it stands: nothing moves unasked
    while recorder.episodes < args.episodes:
        first, kept = first_scene("demonstrations", args.seed), recorder.episodes
        cameras = look(args.calibration, cell.calibration, interface, robot, config)
        desk.gate = make_gate(interface, timing, config, desk.operator)
        report = deploy(
            cast("Executor", executor), interface, robot, seeds=[first + recorder.episodes], scene=cell.scene,
            gate=desk.gate, config=timing, record=Attentive(recorder, executor),
            ended=lambda: executor.ended() or recorder.changed, contract=None if config is None else config.contract,
            look=before(recorder, args.episode_s, cameras), tell=desk.tell,
        )  # fmt: skip
        _tell(report, recorder, executor, desk.tell, args.episodes)
        progress.advance(recorder.episodes - kept)
        if report.stopped:
            left = f"{recorder.episodes} of {args.episodes} episodes are kept"
            raise SafetyStop(f"the robot was stopped ({report.why}); {left}, and the same command goes on")
        if report.episodes and report.episodes[-1].ended_by == "stop":
            return
        if recorder.episodes >= args.episodes and _again(cell.takeover, recorder, desk.tell):
            progress.advance(-1)


def _again(takeover: Takeover, recorder: DatasetRecorder, tell: Callable[[str], None]) -> bool:
    """All episodes are recorded: a moment to throw the last one away and record it again; whether that was wanted."""
    from robot_bridge.takeover import DeviceLost

    wanted, asked, end_s = recorder.episodes, False, time.monotonic() + LAST_CHANCE_S
    tell(f"all {wanted} episodes are recorded; R within {LAST_CHANCE_S:g} s throws the last one away")
    while time.monotonic() < end_s:
        try:
            word = takeover.request()
        except DeviceLost:
            return False
        if word == "again" and not asked:
            recorder.again()
            asked, end_s = True, time.monotonic() + AGAIN_S
        if recorder.episodes < wanted or word == "stop":
            return recorder.episodes < wanted
        time.sleep(0.02)
    return False


def _tell(report: DeployReport, recorder: DatasetRecorder, executor: TeleopExecutor, tell: Callable[[str], None], wanted: int) -> None:
    from robot_bridge.recording import ORDINARY_ENDS

    words = {True: "success", False: "failure", None: "outcome unknown"}
    for result in report.episodes:
        kept = "thrown away" if result.ended_by == "discarded" else words[result.success]
        kept += "" if result.ended_by in ORDINARY_ENDS or result.ended_by == "discarded" else f", ended by: {result.ended_by}"
        late = report.policy.get("late_actions", 0)
        tell(f"episode of {result.duration_s:.1f} s: {kept}; {recorder.episodes} of {wanted} kept, {late} late actions")


def _robot(args: Args, interface: Any, config: RobotConfig | None) -> tuple[Any, Scene | None]:
    import robot_bridge

    if args.robot == "sim":
        import sim

        if config is not None:
            raise InputError("--robot sim is the task's own arm; for another one start sinew robot --robot-config and use --robot dds")
        size = (args.image_size, args.image_size)
        simulated = robot_bridge.SimRobot(sim.RobotSim(args.task), interface.robot_spec, cameras=interface.cameras, image_size=size)
        return simulated, robot_bridge.SimScene(simulated)
    if config is not None:
        from robot_bridge.ros_robot import RosRobot
        from robot_bridge.transport import open_transport

        node = open_transport(cast(str, args.robot), "sinew_collect", domain=args.domain, reach=args.reach)
        cameras = [key.removeprefix(IMAGES) for key in interface.observation_spec.images]
        return RosRobot(config, node, objects=interface.objects, cameras=cameras), None
    remote = robot_bridge.DdsRobot(
        interface.robot_spec, objects=interface.objects, cameras=interface.cameras, domain=args.domain, reach=args.reach,
        transport=cast(str, args.robot),
    )  # fmt: skip
    return remote, robot_bridge.DdsScene(remote)


def checked(args: Args) -> Args:
    """The arguments, with what goes without saying.

    Raises:
        InputError: options that do not belong together.
    """
    teleop_device.checked(args, robot_page.PAGES)
    robot_page.checked(args.teleop, args.listen)
    if args.teleop is None:
        for name in ("robot_config", "controller", "gripper_controller"):
            if getattr(args, name):
                raise InputError(f"--{name.replace('_', '-')} is for a person's demonstrations: give --teleop")
        if args.robot == "sim":
            raise InputError("--robot sim is for a person's demonstrations: give --teleop, or leave it out for the expert")
        return args
    if not args.episode_s > 0:
        raise InputError(f"--episode-s {args.episode_s:g}: above 0 s is needed")
    if args.quality != "clean":
        raise InputError(f"--quality {args.quality} is how the scripted expert acts; leave it out with --teleop")
    if args.task.startswith("gym:"):
        raise InputError(f"--teleop moves robots, and {args.task} is a world of Gymnasium")
    return replace(args, robot=args.robot or "sim")
