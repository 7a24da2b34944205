"""Improve a trained policy by reinforcement learning, in simulation or on a robot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli.scenes import first_scene
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from policies import PolicyModule
    from sim import GymnasiumTask, Randomisation, TaskInterface
    from sinew.cli.assembly import Source
    from sinew.cli.improve_methods import Chosen, Measure
    from sinew.protocols import VecEnv

RECORDED = ("iql", "td3-bc", "fql", "qc", "recap")
"""Methods that learn from recorded episodes (`sinew.cli.improve_offline`)."""
REMEMBERING = ("residual", "dsrl", "dsrl-grad", "decorator", "ibrl", "rlpd", "ppo-denoise", *RECORDED)
"""Methods that learn from demonstrations too, where there are some."""
COUNTED = ("steps", "act_steps", "sampling_steps", "num_envs", "evaluate_every", "updates", "rounds", "rollouts", "gate_episodes")
"""Options of which there must be one at least."""
GATE_EPISODES = 100
"""Scenes on which the gate decides; apart from training scenes and from the test scenes of `sinew eval`."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Improve a trained policy by reinforcement learning, in simulation or on a robot."""

    run: Annotated[str | Path, tyro.conf.Positional]
    """Run of the policy to improve, which is not changed, or hf:<folder or hub id> for a policy of LeRobot."""
    out: Path
    """Folder of the improved run; an interrupted one there goes on."""
    task: str | None = None
    """Task; the one the run was trained on if left out."""
    method: Literal[
        "residual", "decorator", "ibrl", "dsrl", "dsrl-grad", "dsrl-sac", "rlpd", "sac", "fasttd3", "ppo-denoise",
        "iql", "td3-bc", "fql", "qc", "recap",
    ] = "residual"  # fmt: skip
    """residual corrects every action, and decorator by soft actor-critic; ibrl learns actions of its own and executes those or the
    policy's, as its critics say; dsrl chooses the noise behind every chunk, judged by the actions that come of it, dsrl-grad
    the same with gradients through the policy, where it has them, and dsrl-sac judged as noise; rlpd starts from nothing but
    demonstrations and sac from nothing, for comparison, and fasttd3 from nothing in many worlds at once; ppo-denoise changes
    the policy's own weights, by policy gradients through its denoising. iql, td3-bc, fql (flow Q-learning) and qc (the same on
    chunks) learn a policy of their own from recorded episodes, without a step in the world unless --steps is given; recap teaches
    the policy itself which recorded steps went well, in rounds of rollouts."""
    steps: int | None = None
    """Environment steps at most, over all worlds; 10 000 for dsrl, 25 000 for residual, 100 000 for ppo-denoise, 40 000 for
    most others if left out."""
    demos: Path | None = None
    """Dataset whose episodes fill half of each batch, for residual, dsrl, dsrl-grad, decorator, ibrl and rlpd, or are what is learned
    from; if left out, the run's own, and none for decorator."""
    reward: str = "sparse"
    """sparse success; shaped, with a potential that draws the tool to the task's object; or a reward file (sinew reward)."""
    scale: float = 0.5
    """Largest correction of residual and decorator, in normalised action units."""
    base_noise: Literal["auto", "sample", "zero"] = "auto"
    """Noise from which residual and decorator let the policy plan: drawn, as alone, or zero, which leaves nothing to chance; auto
    takes what succeeds more often on the gate's scenes, and drawn noise on a robot."""
    relative: bool = True
    """Whether residual, decorator and ibrl also see how the positions named in the observation lie to each other, finely."""
    bound: float = 1.5
    """Largest element of the noise that dsrl chooses."""
    knots: int = 0
    """Vectors that the noise of dsrl is interpolated from; 1 repeats one over the chunk, 0 has one for each action."""
    act_steps: int | None = None
    """Actions of a chunk that are executed before the policy plans again, or dsrl chooses, for dsrl, residual and decorator; if left
    out, half of them or all, whichever succeeds more often on the gate's scenes, and half on a robot."""
    sampling_steps: int = 5
    """Steps in which the policy makes a chunk of the noise that dsrl chose."""
    num_envs: int = 4
    """Worlds stepped side by side."""
    backend: Literal["mujoco", "warp", "isaaclab", "isaacgym"] = "mujoco"
    """What steps them: MuJoCo on the CPU, MuJoCo Warp, thousands of them on the GPU of --device, or Isaac (docs/simulation.md)."""
    randomise: Path | None = None
    """What every episode draws anew, a file of ranges with units, which may grow while success holds; the gate measures with whole
    ranges; docs/simulation.md."""
    actors: int = 0
    """Processes that act while this one learns, each with --num-envs worlds; 0 for one process that does both in turns, and
    computes the same again with the same --seed."""
    address: str | None = None
    """Where Ray is, to have the actors on its machines: ray://host:port, or local for a Ray of this machine's own."""
    learners: int = 1
    """Processes that learn together on Ray, each with its share of the actors, the replay and every batch."""
    critic_head: Literal["scalar", "c51", "hl-gauss", "gaussian"] | None = None
    """What critics put out: a number, a distribution over bins (two ways), or mean and spread; c51 for fasttd3 and scalar for the
    others if left out."""
    engine: Literal["auto", "loop", "loop_bf16", "autograd", "compile", "graph"] = "auto"
    """How updates are computed: loop on a CPU (loop_bf16 for less exact products), autograd or compile anywhere, graph on a GPU;
    auto is loop on a CPU and autograd on a GPU."""
    evaluate_every: int = 2_500
    """Steps between two evaluations by the gate, which take time of their own; ppo-denoise, recap and learning from recorded episodes
    have evaluations of their own."""
    target: float = 0.99
    """Stop early when the gate's success rate reaches this twice; once for recap."""
    stages: tuple[Literal["offline", "online"], ...] = ("offline", "online")
    """Of ppo-denoise: offline follows critics of recorded and own episodes, behind a gate; online what the policy does then."""
    updates: int | None = None
    """Updates on recorded episodes: 20 000 for iql, td3-bc, fql and qc, 4 000 in each round for recap if left out."""
    candidates: int = 0
    """fql and qc: take the best of so many chunks of a flow, by the critics' values; 0 learns a policy in one step instead."""
    rounds: int = 2
    """Rounds of recap; a finished run goes on where more are asked for."""
    rollouts: int = 100
    """Episodes that recap rolls out in each round."""
    guidance: float = 1.0
    """recap: how far actions are drawn towards better ones; above 1 more than taught, for twice the cost."""
    robot: Literal["sim", "dds"] | None = None
    """Learn on one robot, in real time and through the safety gate, with residual or any dsrl: sim, one in this process; dds,
    one on the network, in ROS 2's wire format. Without it, in worlds stepped side by side."""
    intervene: Literal["keyboard", "gamepad", "spacemouse", "browser", "phone", "expert"] | None = None
    """Who may take over on the robot: a person, or the task's scripted expert in a person's place."""
    listen: str | None = None
    """Where the page of --intervene browser or phone is served; 127.0.0.1:8443 if left out."""
    frame: Literal["world", "tool"] = "world"
    """Axes that a person's motions are along."""
    reset: Literal["scene", "home", "policy", "person"] = "scene"
    """How a robot's scene comes back between episodes: scene sets a simulated one up anew; home moves the arm home; policy plays
    --reset-policy and goes home; person waits for one. Where it does not come back, the person is asked."""
    reset_policy: Path | None = None
    """Run of the policy that brings the scene back."""
    record: Path | None = None
    """Dataset that takes in every episode on the robot, with who chose each action, for recap; one there goes on."""
    calibration: tuple[str, ...] = ()
    """Results of sinew calibrate for cameras that a reward looks through on a robot, each PATH or NAME=PATH."""
    success: Path | None = None
    """Reward file of sinew reward classifier that says when a robot's task is done, in place of the scene."""
    scene: bool = True
    """Whether scenes are set up and judged over /sinew/scene; with --no-scene a person sets them up and says what was a success."""
    gate_on: Literal["sim", "robot", "none"] | None = None
    """Where a robot's policy is measured: in simulated worlds, on itself, or nowhere; sim for --robot sim, else robot."""
    gate_episodes: int = 20
    """Episodes of a measurement on the robot itself."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: str | None = None
    """LOCALHOST, SUBNET, or the network interface that DDS keeps to, as eth0; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if
    left out."""
    action: str = "ee_delta"
    """What the actions of a policy of LeRobot command."""
    with_parent: bool = False
    """End when the process that started this one ends, however it ends; Linux only."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights, exploration and training scenes."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Improve, and tell what the gate measured."""
    from sinew.cli.console_progress import ConsoleProgress
    from sinew.cli.robot import end_with_parent

    if args.with_parent:
        end_with_parent()
    with ConsoleProgress() as progress:
        return improve(args, progress)


def improve(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Learn on top of the run's frozen policy, and keep the best weights that the gate has seen.

    Raises:
        InputError: no such run, task or dataset, options that do not go together, or --out holds another run.
        SpecError: policy and task do not fit, or the policy lacks what the method needs.
    """
    _refuse_combinations(args)
    if args.robot is not None:
        from sinew.cli.improve_robot import improve_robot

        return improve_robot(args, progress)
    import policies
    from policies.parallel import own_device
    from sinew.cli import calibrated, improve_actors, reward_heard, reward_situation
    from sinew.cli.assembly import demonstrations, open_source
    from sinew.cli.best_so_far import keeping
    from sinew.cli.improve_methods import METHODS, with_best_plan
    from sinew.config import to_json
    from sinew.rundir import RunDir

    source = open_source(args.run, args.task, args.action)
    base, task = source.policy, args.task or source.task()
    interface = _interface(base, task)
    demos = (args.demos or _own_demos(source, args.method, progress.note)) if args.method in REMEMBERING else None
    if demos is not None:
        demonstrations(demos, base, f"policy {args.run}")  # refused before anything is measured if it does not fit
    elif args.method == "rlpd":
        raise InputError("--method rlpd learns from demonstrations beside its own steps, and there are none: give --demos DIR")
    heard = reward_heard.Heard(progress.note)
    args = reward_situation.chosen(args, interface, Path(demos) if demos else None, heard.say)
    device = own_device(args.device)
    (drawn, whole), apart = randomised(args), improve_actors.described(args)
    described = {"verb": "improve", "method": args.method, "task": task, "base": str(args.run), "demos": str(demos) if demos else None}
    RunDir(args.out).check_free(described)
    with ExitStack() as stack:
        stack.enter_context(improve_actors.reached(args))
        measure = _gate(interface, args, device, whole, stack)

        def make(chosen: Args) -> Chosen:
            return METHODS[args.method](base, interface, chosen, demos, device)

        args = with_best_plan(args, base, make, measure, progress)
        method = make(args)
        env = _practice(interface, args, method.config.gamma, heard.say, heard.log)
        stack.callback(env.close)
        described |= {} if drawn is None else {"randomise": to_json(drawn)}
        described |= {**reward_situation.described(args), "num_envs": args.num_envs, **apart, **method.described}
        _check_kept(method.policy)
        learn = method.prepare()
        # The folder comes into being when nothing can be wrong with the arguments any more, so that --out stays free.
        run = RunDir.create(args.out, described, seeds={"improve": args.seed}, inputs={"base": _base_hash(source)})
        stack.enter_context(run.held())
        heard.keep(run)
        calibrated.keep(source, args.out)
        worlds = stack.enter_context(improve_actors.worlds(args, env, run))
        measured = keeping(lambda: measure(method.policy, None, SILENT), method.so_far or (lambda: method.policy), args.out)
        result = learn(worlds, run, measured, progress)  # type: ignore[arg-type]  # a source stands for its worlds
        policies.save(method.policy, run)
        heard.end(run)
    best = result.best
    return {
        "run": str(args.out),
        "task": task,
        "method": args.method,
        "steps": result.steps,
        "updates": result.updates,
        "reason": result.reason,
        "gate": {"k": best.k, "n": best.n} if best else None,
        "curve": [[e.step, e.k / e.n, e.n] for e in result.history],
        "reward": {"name": args.reward, **reward_heard.told(run)},
    }


def _gate(interface: TaskInterface | GymnasiumTask, args: Args, device: torch.device, ranges: Any, stack: ExitStack) -> Measure:
    """What measures on the gate's scenes, in worlds that are closed with the stack."""
    import sim
    from policies.evaluate import evaluate
    from sinew.cli.eval import WORLDS

    env = sim.worlds(interface, WORLDS, backend=args.backend, device=args.device, randomisation=ranges)
    stack.callback(env.close)
    first, told = first_scene("gate"), {"device": device, "instruction": interface.task_text}

    def measure(policy: PolicyModule, steps: int | None, progress: Progress) -> dict[str, int]:
        scenes = range(first, first + GATE_EPISODES)
        outcome = evaluate(policy.to(device), env, scenes, executor_kwargs={"steps": steps, **told}, progress=progress)
        return {"k": outcome.k, "n": outcome.n}

    return measure


def randomised(args: Args) -> tuple[Randomisation | None, Randomisation | None]:
    """What practice draws, and what the gate does, whose ranges are whole from the beginning.

    Raises:
        InputError: the file cannot be, or its ranges would have to grow in several processes at once.
    """
    from sim import load_randomisation

    if args.randomise is None:
        return None, None
    found = load_randomisation(args.randomise)
    if found.curriculum is not None and args.actors:
        raise InputError(f"--randomise {args.randomise} has a curriculum, which is of one process: leave out --actors, or the curriculum")
    return found, replace(found, curriculum=None)


def _refuse_combinations(args: Args) -> None:
    """Refuse options that cannot be, or do not go together.

    Raises:
        InputError: names them.
    """
    for name in COUNTED:
        if (value := getattr(args, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    if args.robot is None:
        _refuse_robot_options(args)
    elif args.actors or args.address:
        raise InputError("--actors and --address are for worlds in processes of their own; leave them out with --robot")
    elif args.randomise is not None:
        raise InputError(f"--randomise {args.randomise}: a robot is as it is; leave it out with --robot")
    if args.demos and args.method not in REMEMBERING:
        raise InputError(f"--demos {args.demos}: {args.method} learns from what it does itself; leave it out, or use --method residual")
    if (args.critic_head or args.engine != "auto") and args.method in (*RECORDED, "ppo-denoise"):
        raise InputError(f"--critic-head and --engine are for methods that learn by doing; leave them out for {args.method}")
    if args.engine == "graph" and args.device == "cpu":
        raise InputError("--engine graph records CUDA graphs: give --device cuda, or choose loop or compile")


def _refuse_robot_options(args: Args) -> None:
    """Refuse what only a robot has.

    Raises:
        InputError: names the option.
    """
    for name in ("intervene", "record", "success", "reset_policy", "gate_on", "domain", "reach"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(args, name)} is for learning on a robot: give --robot sim or --robot dds"
            )
    if args.calibration:
        raise InputError(f"--calibration {args.calibration[0]} is for learning on a robot: simulated cameras are known")
    if args.reset != "scene" or not args.scene:
        raise InputError("--reset and --no-scene are for learning on a robot: give --robot sim or --robot dds")


def _interface(base: PolicyModule, task: str) -> TaskInterface | GymnasiumTask:
    """The task as the policy sees it.

    Raises:
        InputError: no such task.
        SpecError: policy and task do not fit.
    """
    import sim
    from sinew.cli.eval import interface_of
    from sinew.specs import check_action_join, check_observation_join

    if not task.startswith("gym:"):
        return interface_of(base, task)
    world = sim.GymnasiumTask(task)
    check_observation_join(f"task {task}", world.observation_spec, "the policy", base.spec.observation)
    check_action_join("the policy", base.spec.action, f"task {task}", world.action_spec)
    return world


def _practice(
    interface: TaskInterface | GymnasiumTask,
    args: Args,
    gamma: float,
    say: Callable[[str], None] = lambda text: None,
    log: Callable[[Mapping[str, Any]], None] = lambda values: None,
) -> VecEnv:
    """The worlds to learn in, with the reward that was asked for."""
    import sim
    from sinew.cli import reward_situation
    from sinew.cli.room import fitting

    first, drawn = first_scene("practice", args.seed), randomised(args)[0]
    env = fitting(lambda n: sim.worlds(interface, n, first, args.backend, args.device, drawn), args.num_envs, args.device)
    return reward_situation.rewarded(env, interface, args, gamma, say, log)


def _own_demos(source: Source, method: str, say: Callable[[str], None] = lambda text: None) -> Path | None:
    """The dataset that a run was trained on, or improved with, where it is there; the decorator's own method has none.

    Nor has steering a policy that reads: what it sees of every frame is too large to be kept unasked.
    """
    from policies.language import LANGUAGE
    from sinew.cli.assembly import named_data

    reads = method.startswith("dsrl") and LANGUAGE in source.policy.spec.capabilities
    if source.run is None or method == "decorator" or reads:
        return None
    name, place = named_data(source)
    if name is not None and place is None:
        say(f"{source.name} was trained on {name}, which is not there; --demos DIR would say where it is")
    return place


def _check_kept(policy: PolicyModule) -> None:
    """Refuse, before anything is learned, a policy that could not be saved.

    Raises:
        InputError: it, or one inside it, is of a type that is not registered.
    """
    from policies.catalog import type_name

    type_name(policy)
    for base in policy.bases():
        _check_kept(base)


def _base_hash(source: Source) -> str:
    """Of the weights of a run; of another policy, of its tensors as they were loaded."""
    import torch

    if source.run is not None:
        return hashlib.sha256((source.run / "policy.safetensors").read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for name, tensor in sorted(source.policy.state_dict().items()):
        whole.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def show(result: dict[str, Any], console: Console) -> None:
    """Print what came of it, and what the reward had to say."""
    console.print(f"{result['run']}: {result['steps']} steps, {result['updates']} updates; {result['reason']}")
    if result["gate"]:
        console.print(f"on the gate's own scenes {result['gate']['k']}/{result['gate']['n']}; measure it with: sinew eval {result['run']}")
    from sinew.cli import reward_heard

    reward_heard.show(result.get("reward") or {}, console)
