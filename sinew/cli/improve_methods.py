"""The methods of `sinew improve`: each puts a learnable part on a frozen policy and tells how it learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.cli import reward_situation
from sinew.errors import InputError
from sinew.progress import Progress
from sinew.rundir import read_json

if TYPE_CHECKING:
    import torch

    from policies import Direct, PolicyModule, Residual
    from rl.loop_config import LoopConfig, LoopResult
    from rl.replay import Ring
    from rl.worlds import Method
    from sim import TaskInterface
    from sinew.cli.improve import Args
    from sinew.cli.reward_situation import Recorded
    from sinew.protocols import Executor, VecEnv
    from sinew.rundir import RunDir

WORLDS_PLANNED = 8
"""Recorded episodes that the base plans along side by side."""
READ_TOGETHER = 1024
"""Recorded frames whose features are made at once."""
FEW, MANY = 4, 64
"""Worlds that usual settings are made for; above so many, settings count steps of all worlds (`for_many`)."""
REMEMBERED = 5_000_000
"""Steps that are remembered at most, where there are many worlds."""
LARGEST_BATCH = 16_384
"""Transitions in a batch at most, where there are many worlds."""
Learn = Callable[["VecEnv", "RunDir", Callable[[], Mapping[str, Any]], Progress], "LoopResult"]
"""(worlds, run, gate, progress) → result."""
Measure = Callable[["PolicyModule", "int | None", Progress], Mapping[str, int]]
"""(policy, sampling steps) → {"k": successes, "n": episodes}."""
MakeMethod = Callable[[], "tuple[Method, Ring | None]"]
"""→ what acts and learns, and recorded episodes."""


@dataclass(frozen=True)
class Chosen:
    """A method, ready to learn."""

    policy: PolicyModule
    """What is evaluated and saved."""
    config: LoopConfig
    described: dict[str, Any]
    """Its share of the run's config."""
    prepare: Callable[[], Learn]
    """Does what takes time before the run's folder is made."""
    make_method: MakeMethod | None = None
    """What acts and learns, and recorded episodes as replay, for methods that a loop of another kind may run."""
    so_far: Callable[[], PolicyModule] | None = None
    """The policy as it is now, where `policy` cannot be saved while it learns."""


def seen_finely(base: PolicyModule, args: Args) -> PolicyModule:
    """The base with relative positions among its features, where its observation names any."""
    from policies.relative import Relative, named_points

    if not args.relative or len(named_points(base.spec.observation)) < 2 or "observe" not in base.spec.capabilities:
        return base
    return Relative(base)


def planning(base: PolicyModule, args: Args) -> PolicyModule:
    """The base as it plans for a correction."""
    from policies.planned import Planned

    return Planned(base, args.act_steps or max(1, base.spec.horizon // 2), zero_noise=args.base_noise == "zero")


def with_best_plan(args: Args, base: PolicyModule, make: Callable[[Args], Chosen], measure: Measure, progress: Progress) -> Args:
    """`--base-noise auto` and `--act-steps`, where they are left open, as the base succeeds most often.

    A policy that plans anew more often reacts sooner, but may never get to the end of a motion; which of the two weighs more is tried,
    once: a run that goes on keeps what it began with.

    Args:
        args: of the command line.
        base: the policy.
        make: the method for arguments, asked once before anything is measured, so that it refuses what cannot be.
        measure: the successes of a policy, in so many sampling steps or its own, told as they come.
        progress: is told what was found.
    """
    plans = args.method in ("residual", "decorator")
    if not plans and not args.method.startswith("dsrl"):
        return replace(args, base_noise="sample") if args.base_noise == "auto" else args
    args, whole = _as_begun(args), base.spec.horizon
    lengths = (args.act_steps,) if args.act_steps else dict.fromkeys((max(1, whole // 2), whole))
    noises: Sequence[Any] = ("zero",)
    if plans:
        every = ("sample", "zero") if "noise" in base.spec.capabilities else ("sample",)
        noises = every if args.base_noise == "auto" else (args.base_noise,)
    open_ = [replace(args, act_steps=length, base_noise=noise) for length in lengths for noise in noises]
    if len(open_) == 1:
        return open_[0]
    make(open_[0])
    found = [measure(planning(base, each), None if plans else args.sampling_steps, progress) for each in open_]
    told = (f"{r['k']}/{r['n']} with {e.act_steps} steps of a chunk from {e.base_noise} noise" for e, r in zip(open_, found, strict=True))
    progress.note(f"the policy alone: {', '.join(told)}; the best is improved")
    return open_[max(range(len(open_)), key=lambda i: found[i]["k"])]


def _as_begun(args: Args) -> Args:
    """With what a run at --out has found for what is left open."""
    path = args.out / "config.json"
    begun = read_json(path) if path.exists() else {}
    if args.act_steps is None and isinstance(begun.get("act_steps"), int):
        args = replace(args, act_steps=begun["act_steps"])
    if args.base_noise == "auto" and begun.get("base_noise") in ("sample", "zero"):
        args = replace(args, base_noise=begun["base_noise"])
    return args


def for_many(config: Any, args: Args) -> Any:
    """Settings for thousands of worlds: as many steps of each, and as many updates between two of them, as for a few; batches grow.

    Args:
        config: a `LoopConfig` for a few worlds.
        args: of the command line; --steps counts as it is given.
    """
    if args.num_envs <= MANY:
        return config
    more = args.num_envs / FEW
    return replace(
        config,
        steps=args.steps or round(config.steps * more),
        random_steps=round(config.random_steps * more),
        updates_per_step=config.updates_per_step / more,
        batch_size=min(LARGEST_BATCH, round(config.batch_size * args.num_envs / MANY)),
        replay_steps=min(REMEMBERED, round(config.replay_steps * more)),
        evaluate_every=max(config.evaluate_every, 25 * args.num_envs),
        checkpoint_every=max(config.checkpoint_every, 25 * args.num_envs),
    )


def residual(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """A correction of every action."""
    import torch

    import policies
    from rl.residual import ResidualConfig, ResidualMethod

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        policy = policies.Residual(seen_finely(planning(base, args), args), scale=args.scale).to(device)
    config = for_many(
        ResidualConfig(steps=args.steps or ResidualConfig.steps, learner=_learner(ResidualConfig, args), **_shared(args)), args
    )
    make_method = _at_every_tick(policy, policy.actor, ResidualMethod, config, interface, args, demos, device)
    return Chosen(policy, config, {**_corrected(policy, args), "residual": config}, _learning(make_method, config), make_method)


def dsrl(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """A choice of the noise behind every chunk."""
    import torch

    import policies
    from policies.steered import Steering
    from rl.dsrl import DsrlConfig, DsrlMethod

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        act_steps = args.act_steps or max(1, base.spec.horizon // 2)
        policy = policies.LatentSteered(base, args.bound, args.knots, steps=args.sampling_steps, act_steps=act_steps).to(device)
    variant: Any = {"dsrl-grad": "grad", "dsrl-sac": "sac"}.get(args.method, "na")
    config = for_many(
        DsrlConfig(steps=args.steps or DsrlConfig.steps, variant=variant, learner=_learner(DsrlConfig, args), **_shared(args)), args
    )

    def steering(num_envs: int) -> Steering:
        told = {"device": device, "instruction": interface.task_text}
        executor = policies.ChunkExecutor(policy, num_envs, seed=args.seed, **told)
        return Steering(policy, executor, policy.spec.horizon, half="language" in base.spec.capabilities)

    def make_method() -> tuple[Method, Ring | None]:
        rewards = reward_situation.recorded(args, interface, config.gamma)
        ring = _steered_past(demos, policy, args, steering(WORLDS_PLANNED), rewards) if demos else None
        return DsrlMethod(steering(args.num_envs), args.num_envs, policy.spec.action_dim, config), ring

    shape = {"bound": args.bound, "knots": args.knots, "act_steps": act_steps, "sampling_steps": args.sampling_steps}
    return Chosen(policy, config, {**shape, "dsrl": config}, _learning(make_method, config), make_method)


def scratch(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """From nothing: an action from what the base sees."""
    import torch

    import policies
    from rl.rlpd import RlpdConfig, train_rlpd

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        policy = policies.Direct.seeing_as(base).to(device)
    config = RlpdConfig(steps=args.steps or RlpdConfig.steps, learner=_learner(RlpdConfig, args), **_shared(args))

    def prepare() -> Learn:
        ring = _remember(demos, policy, args, reward_situation.recorded(args, interface, config.gamma)) if demos else None
        return lambda env, run, gate, progress: train_rlpd(
            env, policy.actor, policy.observe, run, config, demos=ring, evaluate=gate, progress=progress
        )

    return Chosen(policy, config, {"rlpd" if demos else "sac": config}, prepare)


def ibrl(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """An actor of its own beside the base, and critics that choose."""
    import torch

    from policies.bootstrapped import Bootstrapped
    from rl.ibrl import IbrlConfig, IbrlMethod

    config = IbrlConfig(steps=args.steps or IbrlConfig.steps, learner=_learner(IbrlConfig, args), **_shared(args))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        policy = Bootstrapped(seen_finely(base, args), critic_hidden=config.critic_hidden, critic_heads=config.critic_heads).to(device)
    make_method = _at_every_tick(policy, policy.chooser, IbrlMethod, config, interface, args, demos, device)
    return Chosen(policy, config, {"ibrl": config}, _learning(make_method, config))


def fast_td3(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """From nothing, in many worlds: an action from what the base sees."""
    import torch

    import policies
    from rl.fast_td3 import FastTd3Config, train_fast_td3
    from rl.running_norm import NormalisedActor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        policy = policies.Direct.seeing_as(base).to(device)
    own: dict[str, Any] = {**_shared(args), "evaluate_every": 20_000, "checkpoint_every": 20_000, "updates_per_step": 2 / args.num_envs}
    if device.type != "cpu":
        own |= {"batch_size": 32_768, "critic_hidden": (1024, 512, 256)}
    config = FastTd3Config(steps=args.steps or FastTd3Config.steps, learner=_learner(FastTd3Config, args), **own)

    def learn(env: VecEnv, run: RunDir, gate: Callable[[], Mapping[str, Any]], progress: Progress) -> LoopResult:
        actor: Any = NormalisedActor(policy.actor, policy.observation_dim)
        policy.actor = actor  # the gate measures it behind its statistics
        result = train_fast_td3(env, actor, policy.observe, run, config, evaluate=gate, progress=progress)
        policy.actor = actor.fold()
        return result

    def so_far() -> PolicyModule:
        now = copy.deepcopy(policy)
        now.actor = now.actor.fold()  # type: ignore[attr-defined, operator]
        return now

    return Chosen(policy, config, {"fasttd3": config}, lambda: learn, so_far=so_far)


def decorator(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """A bounded correction by soft actor-critic, let in progressively."""
    import torch

    from policies.decorated import Decorated
    from rl.policy_decorator import DecoratorConfig, DecoratorMethod

    config = DecoratorConfig(steps=args.steps or DecoratorConfig.steps, learner=_learner(DecoratorConfig, args), **_shared(args))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        policy = Decorated(seen_finely(planning(base, args), args), scale=args.scale).to(device)
    make_method = _at_every_tick(policy, policy.actor, DecoratorMethod, config, interface, args, demos, device)
    return Chosen(policy, config, {**_corrected(policy, args), "decorator": config}, _learning(make_method, config))


def ppo_denoise(*arguments: Any) -> Chosen:
    """The base's own weights."""
    from sinew.cli import improve_denoising

    return improve_denoising.ppo_denoise(*arguments)


def recorded(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """From recorded episodes."""
    from sinew.cli.improve_offline import METHODS

    return METHODS[args.method](base, interface, args, demos, device)


METHODS: dict[str, Callable[..., Chosen]] = {
    "residual": residual,
    "decorator": decorator,
    "ibrl": ibrl,
    "dsrl": dsrl,
    "dsrl-grad": dsrl,
    "dsrl-sac": dsrl,
    "rlpd": scratch,
    "sac": scratch,
    "fasttd3": fast_td3,
    "ppo-denoise": ppo_denoise,
    "iql": recorded,
    "td3-bc": recorded,
    "fql": recorded,
    "qc": recorded,
    "recap": recorded,
}
"""How each method of the command line is made."""


def _corrected(policy: PolicyModule, args: Args) -> dict[str, Any]:
    """What a run's config says of a correction and of the plans that it is of."""
    return {"scale": args.scale, "act_steps": policy.spec.horizon, "base_noise": args.base_noise, "relative": args.relative}


def _shared(args: Args) -> dict[str, Any]:
    head: dict[str, Any] = {} if args.critic_head is None else {"critic_head": args.critic_head}
    bounds = reward_situation.returns(args)
    if bounds is not None:
        head |= {"critic_low": bounds[0], "critic_high": bounds[1]}
    elif args.critic_head in ("c51", "hl-gauss"):
        raise InputError(f"--critic-head {args.critic_head} needs to know how high returns get, and --reward {args.reward} does not say")
    return {"seed": args.seed, "stop_success": args.target, "evaluate_every": args.evaluate_every, **head}


def _learner(config: type[LoopConfig], args: Args) -> Any:
    """Settings of the updates: returns are clipped to where they can be, as sparse ones to [0, 1]."""
    low, high = reward_situation.returns(args) or (None, None)
    return replace(config().learner, engine=args.engine, target_low=low, target_high=high)


def _learning(make_method: MakeMethod, config: LoopConfig) -> Callable[[], Learn]:
    """What `Chosen.prepare` does for methods that the usual loop runs."""
    from rl.runner import Runner

    def prepare() -> Learn:
        method, ring = make_method()
        return lambda env, run, gate, progress: Runner(env, method, run, config, ring, gate, progress).run_to_end()

    return prepare


def _at_every_tick(
    policy: Any,
    learned: Any,
    kind: Callable[..., Method],
    config: LoopConfig,
    interface: TaskInterface,
    args: Args,
    demos: Path | None,
    device: torch.device,
) -> MakeMethod:
    """Methods of a kind that decides at every tick on a base's plans."""
    import policies
    from policies.executor import CorrectedPlans

    def make_method() -> tuple[Method, Ring | None]:
        told = {"device": device, "instruction": interface.task_text}
        noise: Any = "stream" if args.num_envs > MANY else None
        executor = CorrectedPlans(policies.ChunkExecutor(policy.base, args.num_envs, seed=args.seed, noise=noise, **told))
        ring = None
        if demos:
            planner = CorrectedPlans(policies.ChunkExecutor(policy.base, WORLDS_PLANNED, seed=args.seed, **told))
            ring = _remember(demos, policy, args, reward_situation.recorded(args, interface, config.gamma), planner)
        return kind(executor, learned, policy.observe, config), ring

    return make_method


def _remember(root: Path, policy: Residual | Direct, args: Args, rewards: Recorded, planner: Executor | None = None) -> Ring:
    """Demonstrations as replay, rewarded as the worlds are.

    With a planner of `WORLDS_PLANNED` worlds, each frame is kept beside what that would have planned there.
    """
    import torch

    from rl.episodes import add_episode, plan_along
    from rl.replay import Ring
    from sinew.cli.assembly import demonstrations

    data = demonstrations(root, policy, f"policy {args.run}")
    spec = policy.spec
    action, spans, episodes = _recorded(data, policy)
    planned: list[torch.Tensor] = [action[span] for span in spans]
    if planner is not None:
        planned = plan_along(planner, episodes, WORLDS_PLANNED)
    earned = rewards(root) or [None] * len(spans)
    layout = {"features": ((policy.observation_dim,), torch.float32), "base_action": ((spec.action_dim,), torch.float32)}
    ring = Ring(len(data), 1, layout, spec.action_dim)
    for i, (span, obs, base_action) in enumerate(zip(spans, episodes, planned, strict=True)):
        with torch.no_grad():
            features = policy.observe({k: v.to(policy.device) for k, v in obs.items()})
        won = bool(data.episode(i).success)
        add_episode(ring, features.cpu(), action[span], success=won, base_action=base_action, reward=earned[i])
    return ring


def _steered_past(root: Path, policy: Any, args: Args, steering: Any, rewards: Recorded) -> Ring:
    """Demonstrations as replay of what is steered: chunks that no known noise led to."""
    import torch

    from rl.episodes import add_frames, walk_along
    from rl.replay import Ring
    from sinew.cli.assembly import demonstrations

    data = demonstrations(root, policy, f"policy {args.run}")
    action, spans, episodes = _recorded(data, policy)

    def look(obs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        frames = steering.frames(obs)
        return {**frames, "u": frames["features"].new_zeros(len(frames["features"]), policy.actor.size)}

    with torch.no_grad():
        walked = walk_along(look, lambda: steering.reset(None), episodes, WORLDS_PLANNED)
    earned = rewards(root) or [None] * len(spans)
    layout = {key: (tuple(value.shape[1:]), value.dtype) for key, value in walked[0].items()}
    ring = Ring(len(data), 1, layout, policy.spec.action_dim)
    for i, (span, frames) in enumerate(zip(spans, walked, strict=True)):
        won = bool(data.episode(i).success)
        add_frames(ring, {k: v.cpu() for k, v in frames.items()}, action[span], success=won, reward=earned[i])
    return ring


def _recorded(data: Any, policy: Any) -> tuple[torch.Tensor, list[slice], list[dict[str, torch.Tensor]]]:
    """Normalised actions (F, A), and the span and observations of every episode."""
    import torch

    spec = policy.spec
    every = data.window(np.arange(len(data)), 1, 1, tuple(spec.observation))
    infos = [data.episode(i) for i in range(data.num_episodes)]
    spans = [slice(e.start, e.start + e.length) for e in infos]
    episodes = [{k: torch.from_numpy(every[k][s, 0]) for k in spec.observation} for s in spans]
    return torch.from_numpy(spec.action.normalize(every["action"][:, 0])), spans, episodes
