"""What `sinew train-rl` learns with: policy, algorithm and reward put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError

if TYPE_CHECKING:
    from policies import Direct
    from rl.group import Group
    from rl.loop_config import LoopConfig, LoopResult
    from rl.running_norm import NormalisedActor
    from sim import TaskInterface
    from sinew.cli.train_rl import Args
    from sinew.progress import Progress
    from sinew.protocols import VecEnv
    from sinew.rundir import RunDir

DENSE = ("reach", "lift", "peg")
"""Tasks that have a dense reward."""
STEPS = {"fasttd3": 400_000, "ppo": 2_000_000}
RETURNS = {"dense": (-1.0, 2.0), "sparse": (0.0, 1.0)}
"""Least and largest return of each reward. The potential lies in [-1, 0], so what is left to be gained or lost of it is at most 1."""
GAMMA = {"dense": 0.9, "sparse": 0.99}
"""Discount per step: what comes nearer is paid at once, and a short horizon tells best which step it was."""
UPDATES_PER_ROUND = 2
"""Of fasttd3, for every step of all worlds."""
USUAL_WORLDS = 64
"""Worlds that steps are meant for; with more of them there are more steps, as many of each."""
REMEMBERED = 5_000_000
"""Steps that fasttd3 remembers at most, where there are many worlds."""


@dataclass(frozen=True)
class Method:
    """An algorithm, ready to learn."""

    config: LoopConfig
    learn: Callable[[VecEnv, RunDir, Callable[[], Mapping[str, Any]], Progress, Group], LoopResult]
    """(worlds, run, gate, progress, group) → result."""
    product: Callable[[], Direct]
    """The policy as it is now."""


def fresh_policy(interface: TaskInterface, hidden: tuple[int, ...], seed: int) -> Direct:
    """A policy of one action at a time that has learned nothing."""
    import numpy as np

    import policies
    from sinew.specs import ObservationSpec, PolicySpec

    observation = ObservationSpec({key: interface.observation_spec[key] for key in interface.observation_spec.vectors})
    spec = PolicySpec(observation=observation, action=interface.action_spec, horizon=1)
    sizes = {key: observation[key].shape for key in observation}
    stats = {key: {"mean": np.zeros(size), "std": np.ones(size)} for key, size in sizes.items()}
    return policies.make("direct", spec, stats, {"hidden": list(hidden)}, seed=seed)  # type: ignore[return-value]


def handed_over(actor: NormalisedActor, policy: Direct) -> Direct:
    """The policy whose actor was trained, with the statistics that were gathered in its own normaliser."""
    normalizer = policy.encoder.normalizer
    normalizer.mean.copy_(actor.norm.mean)
    normalizer.scale.copy_(1 / actor.norm.scale())
    return policy


def taken_up(policy: Direct, seen: int) -> NormalisedActor:
    """The policy's actor, to learn on with: its normaliser's statistics count as those of `seen` steps."""
    from rl.running_norm import NormalisedActor

    normalizer, actor = policy.encoder.normalizer, NormalisedActor(policy.actor, policy.encoder.normalizer.dim)
    actor.norm.mean.copy_(normalizer.mean)
    actor.norm.variance.copy_(normalizer.scale.square() - actor.norm.FLOOR)
    actor.norm.count.fill_(seen)
    return actor


def _parts(policy: Direct) -> tuple[NormalisedActor, Callable[[Any], Any]]:
    """The policy's actor behind running statistics, and observations as the vector that it sees, in physical units."""
    import torch

    from rl.running_norm import NormalisedActor

    keys, device = policy.spec.observation.vectors, policy.device
    actor = NormalisedActor(policy.actor, policy.encoder.normalizer.dim)
    return actor, lambda obs: torch.cat([obs[key] for key in keys], 1).to(device)


def _configured(cls: type[Any], usual: dict[str, Any], given: Mapping[str, Any]) -> Any:
    """A config of usual settings, changed by those that were given.

    Raises:
        DataError: a setting that does not exist, or is of another type.
    """
    from sinew.config import from_json, to_json

    def merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
        both = {k: merged(below[k], v) if isinstance(v, Mapping) and isinstance(below.get(k), dict) else v for k, v in above.items()}
        return {**below, **both}

    return from_json(cls, merged(to_json(cls(**usual)), given), "--set")


def fast_td3(policy: Direct, interface: TaskInterface, args: Args, given: Mapping[str, Any]) -> Method:
    """Off-policy, with distributional critics."""
    from dataclasses import replace

    from rl.fast_td3 import FastTd3Config, train_fast_td3

    low, high = RETURNS[args.reward]
    usual = _shared(args) | {"critic_low": low, "critic_high": high, "updates_per_step": UPDATES_PER_ROUND / args.num_envs}
    usual |= {"random_steps": max(FastTd3Config.random_steps, 10 * args.num_envs)}
    usual |= {"replay_steps": min(REMEMBERED, max(FastTd3Config.replay_steps, 500 * args.num_envs))}
    usual |= {"learner": replace(FastTd3Config().learner, target_low=low, target_high=high)}
    if policy.device.type != "cpu":
        usual |= {"batch_size": 32_768, "critic_hidden": (1024, 512, 256)}
    config = _configured(FastTd3Config, usual, given)
    actor, observe = _parts(policy)

    def learn(env: VecEnv, run: RunDir, gate: Callable[[], Mapping[str, Any]], progress: Progress, group: Group) -> LoopResult:
        return train_fast_td3(env, actor, observe, run, config, evaluate=gate, progress=progress, group=group)

    return Method(config, learn, lambda: handed_over(actor, policy))


def ppo(policy: Direct, interface: TaskInterface, args: Args, given: Mapping[str, Any]) -> Method:
    """On-policy, with generalised advantages."""
    from rl.ppo import GaussianActor, PpoConfig, train_ppo

    config = _configured(PpoConfig, _shared(args), given)
    actor, observe = _parts(policy)
    gaussian = GaussianActor(actor, interface.action_spec.dim, config.initial_std)

    def learn(env: VecEnv, run: RunDir, gate: Callable[[], Mapping[str, Any]], progress: Progress, group: Group) -> LoopResult:
        return train_ppo(env, gaussian, observe, run, config, evaluate=gate, progress=progress, group=group)

    return Method(config, learn, lambda: handed_over(actor, policy))


METHODS: dict[str, Callable[..., Method]] = {"fasttd3": fast_td3, "ppo": ppo}


def _shared(args: Args) -> dict[str, Any]:
    often = max(args.evaluate_every, 50 * args.num_envs)
    return {
        "steps": args.steps or round(STEPS[args.algorithm] * max(1.0, args.num_envs / USUAL_WORLDS)),
        "seed": args.seed,
        "gamma": GAMMA[args.reward],
        "stop_success": args.target,
        "evaluate_every": often,
        "checkpoint_every": often,
    }


def potential(interface: TaskInterface, task: str) -> Any:
    """How near a task is to being solved, for all worlds at once.

    Raises:
        InputError: nobody has written it for this task, or its scene has not what it needs.
    """
    from rewards.dense import Grasp, InsertPotential, LiftPotential, ReachPotential
    from sim.tasks import lift, peg

    spec = interface.observation_spec
    if task == "reach":
        return ReachPotential(spec, "target")
    if task == "lift":
        return LiftPotential(spec, Grasp(object="cube", width_m=2 * lift.HALF_M), lift.HALF_M, lift.HEIGHT_M + 0.01)
    if task == "peg":
        grasp = Grasp(object="peg", width_m=2 * peg.HALF_M[0], above_m=0.015)
        return InsertPotential(spec, grasp, "hole", half_m=peg.HALF_M[2], rim_m=peg.BLOCK_HEIGHT_M, within_m=peg.HALF_M[0], depth_m=0.01)
    raise InputError(f"there is no dense reward for {task}: there is one for {', '.join(DENSE)}; or give --reward sparse")


def rewarded(env: VecEnv, interface: TaskInterface, args: Args) -> VecEnv:
    """`env` with the reward that was asked for: dense is success, and how much nearer every step has come.

    Were the difference taken with the learner's discount, staying away would pay as much as coming nearer once the value function knows
    it, and success alone would be left to be found by chance. As it is, a return is that of success less a rent at every step until then,
    (1 - gamma) times how far it is.

    Raises:
        InputError: see `potential`.
    """
    import rewards
    from rewards.environment import Rewarded

    if args.reward == "sparse":
        return env
    return Rewarded(env, rewards.make("shaped", potential=potential(interface, args.task), gamma=1.0))
