"""What stands around a policy in `sinew deploy`: the robot, its task, its gate, the switches, and what is recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError
from sinew.progress import Progress

if TYPE_CHECKING:
    from robot_bridge.deploy import DeployConfig
    from robot_bridge.gate import Operator, SafetyGate
    from robot_bridge.interfaces import TaskInterface
    from robot_bridge.recording import DatasetRecorder
    from robot_bridge.report import EpisodeResult
    from robot_bridge.robots import RobotConfig
    from robot_bridge.scene import Scene
    from robot_bridge.switches import TerminalKeys
    from sinew.calibrations import Calibration
    from sinew.cli.assembly import Source
    from sinew.cli.deploy import Args
    from sinew.protocols import Observation, Robot

MAX_RATE_HZ = 1000.0
DEAD_MAN_S = 0.19
"""A terminal repeats a key that is held about 30 times a second."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A robot and everything around it."""

    task: str
    interface: TaskInterface
    robot: Robot
    scene: Scene | None
    gate: SafetyGate
    config: DeployConfig
    contract: Any
    record: DatasetRecorder | None
    confirm: Callable[[str], bool] | None
    judge: Callable[[EpisodeResult], bool | None] | None
    look: Callable[[Observation], str] | None
    """What looks at the cameras before each episode."""


def check(args: Args) -> None:
    """Refuse options that cannot be, or do not go together, before anything is loaded.

    Raises:
        InputError: names them.
    """
    if not 0 < args.controller_rate <= MAX_RATE_HZ or not args.timeout > 0:
        raise InputError(
            f"--controller-rate {args.controller_rate:g} must be between the policy's rate and {MAX_RATE_HZ:g} Hz, "
            f"--timeout {args.timeout:g} above 0 s"
        )
    if args.robot == "sim":
        for given, option in ((args.robot_config, "--robot-config"), (args.mcap, "--mcap")):
            if given is not None:
                raise InputError(f"{option} {given} is for a robot on the network: use --robot dds or ros2; sim is in this process")
        if args.hold_on_drift:
            raise InputError("--hold-on-drift is for a robot on the network: use --robot dds or ros2; sim is in this process")
    if args.hold_on_drift and not args.calibration:
        raise InputError("--hold-on-drift needs to know where the cameras are: give --calibration")
    if args.max_steps is not None and args.max_steps < 1:
        raise InputError(f"--max-steps {args.max_steps}: at least 1 is needed")
    if args.dead_man and not sys.stdin.isatty():
        raise InputError("--dead-man needs a terminal with somebody who holds the space bar, and standard input is none")
    if args.e_stop_topic and not args.e_stop_topic.startswith("/"):
        raise InputError(f"--e-stop-topic {args.e_stop_topic}: give an absolute name, as /sinew/e_stop, or '' for none")
    _robot_config(args)  # an unknown robot is told of before anything else about it
    if _home(args) and not args.yes and args.robot != "sim" and not sys.stdin.isatty():
        raise InputError("the robot is to go to its home pose first and there is no terminal to ask in: give --yes, or --start-pose here")


def open_cell(args: Args, source: Source, stack: ExitStack, progress: Progress, calibration: Calibration | None = None) -> Cell:
    """Everything that a deployment needs besides the policy; `stack` closes it. The calibration is kept with what is recorded.

    Raises:
        InputError: no such robot, task or file, or a rate that the policy does not fit.
        SpecError: policy and robot do not fit.
    """
    from robot_bridge.deploy import DeployConfig, make_gate
    from robot_bridge.gate import Operator
    from sinew.cli.calibrated import look, watching
    from sinew.cli.recording_watch import before

    robot_config = _robot_config(args)
    task, interface = _task(args, source, robot_config)
    if not interface.action_spec.rate_hz <= args.controller_rate:
        raise InputError(
            f"--controller-rate {args.controller_rate:g} must be between the policy's {interface.action_spec.rate_hz:g} and "
            f"{MAX_RATE_HZ:g} Hz"
        )
    spec = interface.robot_spec
    if _home(args) and not spec.home_rad:
        raise InputError(f"robot {spec.name} has no home pose: give home_rad in its config, or --start-pose here")
    config = DeployConfig(
        controller_rate_hz=args.controller_rate,
        connect_timeout_s=args.timeout,
        max_steps=args.max_steps,
        first_run=args.first_run,
        start_pose_rad=spec.home_rad if _home(args) else (),
    )
    operator = Operator(DEAD_MAN_S if args.dead_man else None)
    gate = make_gate(interface, config, robot_config, operator)
    robot, scene = _robot(args, task, interface, robot_config)
    stack.callback(robot.close)
    keys = _switches(args, operator, stack, progress)
    if args.hold_on_drift:
        stack.enter_context(watching(args, calibration, operator, progress.note))
    record = _recorder(args, source, task, interface, robot_config, calibration, stack, progress)
    cameras = look(args.calibration, calibration, interface, robot, robot_config)
    if record is not None and args.record_trouble == "stop":
        longest_s = (args.max_steps or interface.max_episode_steps) / interface.action_spec.rate_hz
        seen = before(record, longest_s, cameras)
    else:
        seen = cameras
    if args.mcap is not None:
        from robot_bridge.bag_recorder import recorded

        stack.enter_context(recorded(args.mcap, backend=args.robot, domain=args.domain, reach=args.reach, contract=args.robot_config or ""))
    return Cell(
        task=task,
        interface=interface,
        robot=robot,
        scene=scene,
        gate=gate,
        config=config,
        contract=None if robot_config is None else robot_config.contract,
        record=record,
        confirm=_confirm(args, keys),
        judge=_judge(keys) if scene is None and keys is not None else None,
        look=seen,
    )


def _home(args: Args) -> bool:
    """Whether the robot is brought to its home pose."""
    return args.start_pose == "home" or (args.start_pose is None and args.robot_config is not None)


def _robot_config(args: Args) -> RobotConfig | None:
    if args.robot_config is None:
        if args.controller or args.gripper_controller:
            raise InputError("--controller and --gripper-controller are for robots of --robot-config: give it, or leave them out")
        return None
    from robot_bridge.robots import load_robot

    return load_robot(args.robot_config).with_controller(args.controller, args.gripper_controller)


def _task(args: Args, source: Source, robot_config: RobotConfig | None) -> tuple[str, TaskInterface]:
    """Name and interface of what is done: a task of ours, or whatever a robot's contract lets a policy see and do."""
    from sinew.cli.eval import interface_of, task_of

    if robot_config is None:
        if args.task is None and source.run is None:
            raise InputError(f"{args.run} does not say which task it is for; name it with --task")
        task = args.task or source.task()
        return task, interface_of(source.policy, task)
    from robot_bridge.robot_interface import RobotInterface

    task = args.task or (task_of(source.run) if source.run is not None and _says_task(source) else robot_config.spec.name)
    text, spec = args.instruction or task, source.policy.spec
    return task, RobotInterface(robot_config, task_text=text, wanted=spec.observation, action=spec.action)


def _says_task(source: Source) -> bool:
    try:
        return bool(source.task())
    except InputError:
        return False


def _robot(args: Args, task: str, interface: TaskInterface, robot_config: RobotConfig | None) -> tuple[Robot, Scene | None]:
    import robot_bridge

    if args.robot == "sim":
        import sim

        cameras = tuple(getattr(interface, "cameras", ()))
        simulated = robot_bridge.SimRobot(sim.RobotSim(task), interface.robot_spec, cameras=cameras)
        return simulated, robot_bridge.SimScene(simulated) if args.scene else None
    cameras = tuple(key.rsplit(".", 1)[-1] for key in interface.observation_spec.images)
    if robot_config is not None:
        from robot_bridge.ros_robot import RosRobot
        from robot_bridge.transport import open_transport

        node = open_transport(args.robot, "sinew_deploy", domain=args.domain, reach=args.reach)
        return RosRobot(robot_config, node, objects=interface.objects, cameras=cameras), None
    robot = robot_bridge.DdsRobot(
        interface.robot_spec, objects=interface.objects, cameras=cameras, domain=args.domain, reach=args.reach, transport=args.robot
    )
    return robot, robot_bridge.DdsScene(robot) if args.scene else None


def _switches(args: Args, operator: Operator, stack: ExitStack, progress: Progress) -> TerminalKeys | None:
    """Everything that stops the robot; gives the terminal's keys where there is one."""
    from robot_bridge.switches import StopTopic, TerminalKeys, stop_signals

    stack.enter_context(stop_signals(operator))
    if args.robot != "sim" and args.e_stop_topic:
        topic = StopTopic(operator, args.e_stop_topic, backend=args.robot, domain=args.domain, reach=args.reach)
        stack.callback(topic.close)
    if not sys.stdin.isatty():
        return None
    keys = TerminalKeys(operator, dead_man=args.dead_man, tell=progress.note)
    stack.callback(keys.close)
    progress.note("hold the space bar to let the robot move; any other key stops it" if args.dead_man else "any key stops the robot")
    return keys


def _confirm(args: Args, keys: TerminalKeys | None) -> Callable[[str], bool] | None:
    if args.yes or keys is None:
        return None

    def confirm(what: str) -> bool:
        return keys.ask(f"{what}: is the way free? y goes on") == "y"

    return confirm


def _judge(keys: TerminalKeys) -> Callable[[EpisodeResult], bool | None]:
    def judge(result: EpisodeResult) -> bool | None:
        answer = keys.ask(f"the episode of seed {result.seed} ended ({result.ended_by}): a success? y, n, any other key leaves it open")
        return {"y": True, "n": False}.get(answer)

    return judge


def _recorder(
    args: Args,
    source: Source,
    task: str,
    interface: TaskInterface,
    robot_config: RobotConfig | None,
    calibration: Calibration | None,
    stack: ExitStack,
    progress: Progress,
) -> DatasetRecorder | None:
    if args.record is None:
        return None
    from robot_bridge.recording import DatasetRecorder

    contract = None if robot_config is None else robot_config.contract
    about = {"task": task, "run": source.name, "seed": args.seed}
    recorder = DatasetRecorder(
        args.record,
        interface,
        observation=source.policy.spec.observation,
        contract=contract,
        about=about,
        on_trouble=args.record_trouble,
        calibration=calibration,
        tell=progress.note,
    )
    stack.callback(recorder.close)
    return recorder
