"""Improve a policy on one robot, with a person beside it who may take over, label, pause and set the scene up."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.cli import robot_page
from sinew.cli.reward_on_robot import SIZE
from sinew.cli.scenes import first_scene
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from policies import PolicyModule
    from rl.interventions import Judged
    from rl.replay import Ring
    from rl.supervised import Assessor, SupervisedRunner
    from rl.worlds import Method
    from robot_bridge.attended import AttendedRobot, Help
    from robot_bridge.clock import Clock
    from robot_bridge.learning_env import LearningEnv
    from robot_bridge.scene import Scene
    from robot_bridge.takeover import Takeover
    from sim import TaskInterface
    from sinew.cli.improve import Args
    from sinew.cli.improve_methods import Chosen
    from sinew.cli.reward_heard import Heard
    from sinew.cli.reward_on_robot import Needs
    from sinew.protocols import Robot, VecEnv
    from sinew.rundir import RunDir
    from sinew.specs import ObservationSpec

METHODS = ("residual", "dsrl", "dsrl-grad", "dsrl-sac")
HELP_FILE = "interventions.jsonl"
"""Every step that a person chose, in the frame in which it was given and as it was executed."""
CHECKPOINT_STEPS = 500
"""Steps of a robot are dear: no more than about this many are ever lost."""
EXPERT_PATIENCE = 0.6
"""Share of an episode that the expert leaves the policy alone for."""
HELPED_LENGTH = 1.5
"""Episodes with somebody who takes over may last this much longer than the task's: help comes late."""


def improve_robot(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Learn on a robot; what comes of it is a run like any other.

    Raises:
        InputError: no such run, task, robot or device, or options that do not go together.
        SafetyStop: the robot holds and nobody lets it go on; the run can be gone on with.
    """
    import policies
    from policies.parallel import own_device
    from sinew.cli import calibrated, reward_heard, reward_on_robot, reward_situation
    from sinew.cli.assembly import demonstrations, open_source
    from sinew.cli.eval import interface_of
    from sinew.cli.improve_methods import METHODS as MAKERS
    from sinew.cli.resetting import make_reset
    from sinew.cli.reward_detector import Detector
    from sinew.rundir import RunDir

    _check(args)
    source = open_source(args.run, args.task, args.action)
    task = args.task or source.task()
    if task.startswith("gym:"):
        raise InputError(f"--robot {args.robot}: {task} is a world of Gymnasium and no robot's task")
    interface, device = interface_of(source.policy, task), own_device(args.device)
    args = replace(args, num_envs=1, base_noise="sample" if args.base_noise == "auto" else args.base_noise)
    demos, heard = _demos(args, source, progress.note), reward_heard.Heard(progress.note)
    if demos is not None:
        demonstrations(demos, source.policy, f"policy {args.run}")
    args, needs = reward_on_robot.asked(args, interface, tuple(source.policy.spec.observation), demos, heard.say)
    wanted = _wanted(args, interface, tuple(source.policy.spec.observation), needs)
    detector = None if args.success is None else Detector(args.success, wanted)
    chosen = MAKERS[args.method](source.policy, interface, args, demos, device)
    chosen = replace(chosen, config=replace(chosen.config, checkpoint_every=CHECKPOINT_STEPS))
    described = {"verb": "improve", "method": args.method, "task": task, "base": str(args.run), "robot": args.robot}
    described |= {"demos": str(demos) if demos else None, "intervene": args.intervene}
    described |= {**reward_situation.described(args), "success": None if args.success is None else str(args.success)}
    described |= {"reset": args.reset, "reset_policy": str(args.reset_policy) if args.reset_policy else None}
    described |= {"gate_on": _gate_on(args), "gate_episodes": args.gate_episodes}
    RunDir(args.out).check_free(described)
    with ExitStack() as stack:
        stopping = stack.enter_context(asked_to_stop(progress))
        arm, scene = _robot(args, task, interface, progress, stopping, wanted, () if needs is None else needs.pictures)
        stack.callback(arm.robot.close)
        stack.callback(arm.close)
        unattended = args.intervene in (None, "expert")
        reset = make_reset(args.reset, args.reset_policy, arm, scene, interface, unattended=unattended)
        longer = None if args.intervene is None else round(HELPED_LENGTH * interface.max_episode_steps)
        env = _environment(args, stack, chosen, arm, scene, restore=reset, max_steps=longer, detect=detector)
        if chosen.make_method is None:
            raise RuntimeError(f"{args.method} learns on robots, and has no method to do so")
        seen, assessor = _rewarded(args, env, interface, chosen, needs, heard)
        method, ring = chosen.make_method()
        run = RunDir.create(args.out, described | chosen.described, seeds={"improve": args.seed})
        stack.enter_context(run.held())
        heard.keep(run)
        calibrated.keep(source, args.out)
        arm.on_help = _help_writer(run)
        runner, gate = _runner(args, env, seen, chosen, method, ring, run, interface, device, progress, assessor)
        stack.callback(gate.close)
        arm.on_label = runner.label
        result = runner.run_to_end()
        policies.save(chosen.policy, run)
        heard.end(run)
        told = {**arm.report(), "reset": vars(reset.counts) if reset is not None else None}
    best = result.best
    return {
        "run": str(args.out),
        "task": task,
        "method": args.method,
        "robot": args.robot,
        "steps": result.steps,
        "updates": result.updates,
        "reason": result.reason,
        "gate": {"k": best.k, "n": best.n} if best else None,
        "curve": [[e.step, e.k / e.n, e.n] for e in result.history],
        "human_steps": _human_steps(run),
        "reward": {"name": args.reward, **reward_heard.told(run)},
        "report": told,
    }


def _environment(args: Args, stack: ExitStack, chosen: Chosen, arm: AttendedRobot, *others: Any, **more: Any) -> LearningEnv:
    """The robot to learn on; with --record, its episodes are kept."""
    from robot_bridge.learning_env import LearningEnv

    if args.record is None:
        return LearningEnv(arm, *others, **more)
    from sinew.cli.improve_recording import RecordedEnv, open_writer

    writer = stack.enter_context(open_writer(args.record, arm.interface, tuple(chosen.policy.spec.observation)))
    return RecordedEnv(arm, *others, writer=writer, **more)


def _wanted(args: Args, interface: TaskInterface, policy: tuple[str, ...], needs: Needs | None) -> ObservationSpec:
    """What has to be observed; poses of objects only where somebody looks at them, since few robots tell them."""
    from sinew.specs import ENVIRONMENT_STATE, ObservationSpec

    looks = args.intervene == "expert" or args.reset_policy is not None or ENVIRONMENT_STATE in policy
    if looks or (needs is not None and ENVIRONMENT_STATE in needs.observation):
        return interface.observation_spec
    return ObservationSpec({k: spec for k, spec in interface.observation_spec.tensors.items() if k != ENVIRONMENT_STATE})


def _rewarded(
    args: Args, env: LearningEnv, interface: TaskInterface, chosen: Chosen, needs: Needs | None, heard: Heard
) -> tuple[VecEnv, Assessor | None]:
    """What the learner acts in, and what rewards whole episodes; the robot itself and None where success is all that is rewarded.

    Raises:
        InputError: the robot does not send what the reward looks at.
    """
    if needs is None:
        return env, None
    from sinew.cli.improve_rewarded import Assessment, Witness
    from sinew.cli.reward_on_robot import check_sent
    from sinew.cli.reward_situation import reward_of

    shown = check_sent(args, needs, env.arm)
    situation = needs.situation(args, interface, chosen.config.gamma, shown, heard.say, heard.log)
    witness = Witness(env, needs.pictures)
    return witness, Assessment(witness, reward_of(args, interface, situation), shown, lambda: env.arm.stopped)


def _check(args: Args) -> None:
    if args.method not in METHODS:
        raise InputError(f"--method {args.method} does not learn on a robot yet: {', '.join(METHODS)} do")
    if args.calibration and args.reward == "sparse":
        raise InputError(f"--calibration {args.calibration[0]} is for a reward that looks through cameras: give --reward FILE")
    if not args.scene and args.success is None and args.intervene in (None, "expert"):
        raise InputError("--no-scene: somebody must say what was a success: give --intervene keyboard, gamepad or spacemouse, or --success")
    if args.robot == "sim" and not args.scene:
        raise InputError("--no-scene is for --robot dds: the robot in this process always has its scene")


def _demos(args: Args, source: Any, say: Callable[[str], None]) -> Path | None:
    from sinew.cli.improve import _own_demos

    if args.method != "residual":
        if args.demos is not None:
            raise InputError(f"--demos {args.demos}: {args.method} learns from what is done here; leave it out, or use --method residual")
        return None
    return args.demos or _own_demos(source, args.method, say)


def _gate_on(args: Args) -> str:
    """Where the policy is measured."""
    return args.gate_on or ("sim" if args.robot == "sim" else "robot")


@contextmanager
def asked_to_stop(progress: Progress) -> Iterator[Callable[[], bool]]:
    """Ctrl-C, a closed terminal and SIGTERM ask to stop, which the robot and the loop see to; a second Ctrl-C does not wait."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()
        progress.note("stopping: the robot comes to rest and the run is saved; Ctrl-C again does not wait for it")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _robot(
    args: Args, task: str, interface: TaskInterface, progress: Progress, stopping: Callable[[], bool], wanted: ObservationSpec,
    cameras: Sequence[str],
) -> tuple[AttendedRobot, Scene | None]:  # fmt: skip
    """The robot, which observes what is wanted and has cameras that a reward looks through, with whoever stands beside it.

    In this process it runs in real time for a person, else as fast as it can.
    """
    import robot_bridge
    from robot_bridge.attended import AttendedRobot, LearningConfig
    from robot_bridge.deploy import make_gate
    from robot_bridge.takeover import KEYS

    takeover = _takeover(args, task, interface, progress)
    desk = robot_page.Desk(takeover, progress.note)
    if args.intervene not in (None, "expert", *robot_page.PAGES) and sys.stdin.isatty():
        progress.note(f"keys: {KEYS}")
    clock: Clock = robot_bridge.MonotonicClock()
    opened = tuple(dict.fromkeys((*interface.cameras, *cameras)))
    robot: Robot
    if args.robot == "sim":
        import sim

        if args.intervene in (None, "expert"):
            clock = robot_bridge.SteppedClock()
        size: Any = {"image_size": SIZE} if cameras else {}
        robot = simulated = robot_bridge.SimRobot(sim.RobotSim(task), interface.robot_spec, cameras=opened, clock=clock, **size)
        scene: Scene | None = robot_bridge.SimScene(simulated)
    else:
        robot = remote = robot_bridge.DdsRobot(
            interface.robot_spec, objects=interface.objects, cameras=opened, domain=args.domain, reach=args.reach
        )
        scene = robot_bridge.DdsScene(remote) if args.scene else None
    attended = args.intervene not in (None, "expert")
    config = LearningConfig(patience_s=LearningConfig.patience_s if attended else 5.0)
    try:
        desk.gate = make_gate(interface, config, None, desk.operator)
        arm = AttendedRobot(
            robot, interface, takeover=takeover, gate=desk.gate, config=config, clock=clock, tell=desk.tell,
            stopping=lambda: stopping() or desk.stopped, wanted=wanted,
        )  # fmt: skip
    except BaseException:
        robot.close()
        if takeover is not None:
            takeover.close()
        raise
    desk.watch(robot, dict)
    return arm, scene


def _takeover(args: Args, task: str, interface: TaskInterface, progress: Progress) -> Takeover | None:
    robot_page.checked(args.intervene, args.listen)
    if args.intervene is None:
        return None
    if args.intervene == "expert":
        from sinew.cli.stand_in import ExpertTakeover

        return ExpertTakeover(task, interface, patience=round(EXPERT_PATIENCE * interface.max_episode_steps))
    if args.intervene in robot_page.PAGES:
        arms = len(interface.chains)
        return robot_page.open_page(args.intervene, args.listen, progress.note, interface, frame=args.frame, arms=arms, watched=True)
    from robot_bridge.takeover import open_takeover

    return open_takeover(args.intervene, frame=args.frame, arms=len(interface.chains))


@dataclass(frozen=True)
class Gate:
    """Measures the policy as it is now, and where."""

    measure: Callable[[], Mapping[str, Any]] | None
    here: bool
    """Whether it is measured on the robot that learns."""
    close: Callable[[], None] = lambda: None


def _gate(args: Args, env: LearningEnv, policy: PolicyModule, interface: TaskInterface, device: Any) -> Gate:
    where = _gate_on(args)
    if where == "none":
        return Gate(None, False)
    first, told = first_scene("gate"), {"device": device, "instruction": interface.task_text}
    if where == "sim":
        import sim
        from policies.evaluate import evaluate
        from sinew.cli.eval import WORLDS
        from sinew.cli.improve import GATE_EPISODES

        worlds = sim.MujocoVecEnv(interface, WORLDS)

        def in_worlds() -> Mapping[str, Any]:
            outcome = evaluate(policy, worlds, range(first, first + GATE_EPISODES), executor_kwargs=told)
            return {"k": outcome.k, "n": outcome.n}

        return Gate(in_worlds, False, worlds.close)

    def on_robot() -> Mapping[str, Any]:
        return play_episodes(env, policy, range(first, first + args.gate_episodes), told)

    return Gate(on_robot, True)


def play_episodes(env: LearningEnv, policy: PolicyModule, seeds: range, told: Mapping[str, Any]) -> dict[str, int]:
    """Episodes of a policy on the robot; one that a person had to help in counts as a failure.

    Raises:
        Interrupted: the run shall stop.
    """
    import torch

    from policies import ChunkExecutor
    from rl.replay import HUMAN
    from rl.supervised import Interrupted

    executor, successes = ChunkExecutor(policy, 1, **told), 0
    for seed in seeds:
        obs, alone, over = env.reset([seed]), True, False
        executor.reset(seeds=[seed])
        while not over:
            with torch.no_grad():
                action = env.action_spec.denormalize(executor.act(obs))
            obs, _, terminated, truncated, info = env.step(action)
            if env.control() is not None:
                raise Interrupted("the measurement was stopped")
            helped = bool(info["source"][0] & HUMAN)
            alone, over = alone and not helped, bool(terminated | truncated)
            if helped or bool(info["interrupted"]):
                executor.reset(seeds=[seed])
            successes += int(over and alone and bool(info["success"]))
    return {"k": successes, "n": len(seeds)}


def _runner(
    args: Args, env: LearningEnv, seen: VecEnv, chosen: Chosen, method: Method, ring: Ring | None, run: RunDir,
    interface: TaskInterface, device: Any, progress: Progress, assessor: Assessor | None,
) -> tuple[SupervisedRunner, Gate]:  # fmt: skip
    from rl.supervised import SupervisedRunner
    from sinew.cli.best_so_far import keeping

    gate = _gate(args, env, chosen.policy, interface, device)
    judged: Judged = "choices" if args.method == "dsrl-sac" else "actions"
    measure = None if gate.measure is None else keeping(gate.measure, lambda: chosen.policy, run.path)
    runner = SupervisedRunner(
        seen, method, run, chosen.config, ring, measure, progress, judged=judged, evaluates_here=gate.here, assessor=assessor
    )
    return runner, gate


def _help_writer(run: RunDir) -> Callable[[Help], None]:
    """Appends what a person did to the run's file."""

    def write(help_: Help) -> None:
        given = help_.given
        line = {"episode": help_.episode, "step": help_.step, "kind": given.kind, "frame": given.frame, "given": list(given.values)}
        line |= {"open": given.open, "arm": given.arm, "action": help_.action.tolist()}
        with open(run / HELP_FILE, "ab") as f:
            f.write(json.dumps(line).encode() + b"\n")

    return write


def _human_steps(run: RunDir) -> int:
    path = run / HELP_FILE
    return len(path.read_bytes().splitlines()) if path.exists() else 0
