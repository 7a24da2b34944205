"""Methods of `sinew improve` that learn from recorded episodes: value-based ones, and improvement by experience."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.cli import reward_situation
from sinew.cli.improve_methods import READ_TOGETHER, Chosen, Learn, _learner, _shared
from sinew.cli.scenes import first_scene
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from demos import Concat, Dataset
    from policies import PolicyModule
    from policies.advantage import AdvantageConditioned
    from rl.gate import Evaluation
    from rl.offline import OfflineConfig, OfflineMethod
    from rl.recap_value import Experience
    from rl.replay import Ring
    from sim import GymnasiumTask, TaskInterface
    from sinew.cli.improve import Args
    from sinew.rundir import RunDir

    Interface = TaskInterface | GymnasiumTask

HUMAN_COLUMN = "intervention"
"""Column of a dataset that says of each frame whether a human who intervened chose the action."""


def from_data(base: PolicyModule, interface: Interface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """iql, td3-bc, fql, qc: a policy of its own from what was recorded; with --steps it goes on in the world.

    With a reward of another kind than success every recorded step is rewarded by it, as steps in the world are afterwards.

    Raises:
        InputError: no data are named.
        SpecError: the base has no observation encoder of its own.
    """
    import torch

    if demos is None:
        raise InputError(f"--method {args.method} learns from recorded episodes, and {args.run} names none that is there: give --demos DIR")
    if args.candidates and args.method not in ("fql", "qc"):
        raise InputError(f"--candidates {args.candidates}: chunks to choose from are drawn by fql and qc, not by {args.method}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        own: dict[str, Any] = {"steps": args.steps} if args.steps else {}
        own |= {"candidates": args.candidates} if args.method in ("fql", "qc") else {}
        if args.reward != "sparse":
            own["learner"] = _learner(_config_of(args.method), args)
        policy, make = offline_method(args.method, base, args.updates, **_shared(args), **own)
    policy = policy.to(device)
    method = make(args.num_envs)

    def prepare() -> Learn:
        from rl.offline import train_offline
        from sinew.cli.assembly import demonstrations

        rewards = reward_situation.recorded(args, interface, method.config.gamma)
        ring = remembered(demonstrations(demos, base, f"policy {args.run}"), policy, rewards(demos))
        before = _measure(base, interface, args, device)

        def learn(env: Any, run: RunDir, gate: Any, progress: Progress) -> Any:
            from dataclasses import replace

            result = train_offline(
                method, ring, run, method.config, env=env if args.steps else None, base=before, evaluate=gate, progress=progress
            )
            if result.best is not None and result.best.rate < before.rate:
                told = f"{result.reason}; {args.run} itself succeeds in {before.k}/{before.n} of the gate's scenes, so keep that"
                return replace(result, reason=told)
            return result

        return learn

    return Chosen(policy, method.config, {args.method: method.config}, prepare)


def offline_method(
    name: str, base: PolicyModule, updates: int | None = None, **settings: Any
) -> tuple[Any, Callable[[int], OfflineMethod]]:
    """An untrained policy that sees as `base` does, and its method for a number of worlds.

    Args:
        name: iql, td3-bc, fql or qc.
        base: gives encoder and, for qc, the length of a chunk.
        updates: on the data; the method's own number if None.
        settings: further fields of the method's config.
    """
    import policies
    from policies.flow_q import FlowQ
    from rl.flow_q import FlowQConfig, FlowQMethod
    from rl.iql import IqlMethod
    from rl.td3_bc import Td3BcMethod

    settings |= {} if updates is None else {"offline_updates": updates}
    width = base.spec.action_dim
    if name in ("iql", "td3-bc"):
        direct = policies.Direct.seeing_as(base)
        kind: Any = IqlMethod if name == "iql" else Td3BcMethod
        config = _config_of(name)(**settings)
        return direct, lambda worlds: kind(direct.actor, direct.observe, width, config, num_envs=worlds)
    chosen, stride = FlowQConfig(**settings), base.spec.horizon if name == "qc" else 1
    critics = {"critic_hidden": chosen.critic_hidden, "critic_heads": chosen.critic_heads}
    flow = FlowQ.seeing_as(base, stride, candidates=chosen.candidates, **critics)
    return flow, lambda worlds: FlowQMethod(flow.actor(), flow.observe, width, chosen, num_envs=worlds, stride=stride)


def _config_of(name: str) -> type[OfflineConfig]:
    """The settings of a method."""
    from rl.flow_q import FlowQConfig
    from rl.iql import IqlConfig
    from rl.td3_bc import Td3BcConfig

    return {"iql": IqlConfig, "td3-bc": Td3BcConfig}.get(name, FlowQConfig)


def remembered(data: Dataset, policy: Any, rewards: list[torch.Tensor] | None = None) -> Ring:
    """Recorded episodes as replay: what the policy sees, what was done, and the rewards of every episode; success alone if left out."""
    import torch

    from rl.episodes import add_episode
    from rl.replay import Ring

    features = features_of(policy, data, policy.device)
    action = policy.spec.action.normalize(torch.from_numpy(np.array(data.column("action")))).float()
    layout = {"features": (tuple(features.shape[1:]), torch.float32)}
    ring = Ring(max(2, len(data)), 1, layout, policy.spec.action_dim, device=policy.device)
    earned = rewards or [None] * data.num_episodes
    for info, paid in zip((data.episode(i) for i in range(data.num_episodes)), earned, strict=True):
        span = slice(info.start, info.start + info.length)
        add_episode(ring, features[span], action[span], success=bool(info.success), reward=paid)
    return ring


def _measure(policy: PolicyModule, interface: Interface, args: Args, device: torch.device) -> Evaluation:
    """A policy on the gate's scenes."""
    from rl.gate import Evaluation
    from sinew.cli.improve import _gate, randomised

    with ExitStack() as stack:
        return Evaluation.of(_gate(interface, args, device, randomised(args)[1], stack)(policy, None, SILENT), 0)


# ---------------------------------------------------------------- improvement by experience


def recap(base: PolicyModule, interface: Interface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """The base itself, taught to prefer what went better than usual, in rounds of rolling out and learning.

    Raises:
        InputError: steps are given, or a reward.
        SpecError: the base is no flow, diffusion, edm or vla policy.
    """
    import policies
    from policies.advantage import AdvantageConditioned
    from rl.recap import RecapConfig, improve_by_experience

    if args.reward != "sparse":
        raise InputError(f"--reward {args.reward}: recap tells better from worse by success alone; leave it out, or choose iql, fql or qc")
    if args.steps:
        raise InputError(f"--steps {args.steps}: recap counts --rounds and --rollouts; give these instead")
    policy = AdvantageConditioned(base, guidance=args.guidance).to(device)
    config = RecapConfig(rounds=args.rounds, episodes=args.rollouts, seed=args.seed, stop_success=args.target)
    training = policies.TrainConfig(steps=args.updates or 4_000, seed=args.seed)
    described = {k: v for k, v in _plain(config).items() if k != "rounds"}  # more rounds may follow

    def prepare() -> Learn:
        def learn(env: Any, run: RunDir, gate: Any, progress: Progress) -> Any:
            parts = Rounds(policy, interface, args, demos, run.path, config, training, device, progress)
            return improve_by_experience(parts, run, config, evaluate=gate, progress=progress)

        return learn

    chosen = {"recap": described, "training": training, "guidance": args.guidance}
    return Chosen(policy, config, chosen, prepare)  # type: ignore[arg-type]


def _plain(config: Any) -> dict[str, Any]:
    from sinew.config import to_json

    return to_json(config)


class Rounds:
    """What `rl.recap.improve_by_experience` asks for, with the policies, worlds and datasets at hand."""

    def __init__(
        self,
        policy: AdvantageConditioned,
        interface: Interface,
        args: Args,
        demos: Path | None,
        folder: Path,
        config: Any,
        training: Any,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.policy, self.interface, self.args, self.demos, self.folder = policy, interface, args, demos, folder
        self.config, self.training, self.device, self.progress = config, training, device, progress
        self._first = {k: v.detach().clone() for k, v in policy.state_dict().items()}

    def collect(self, round: int) -> tuple[int, int]:
        """Rollouts of a round, as a dataset of its own."""
        import sim
        from demos import Dataset
        from policies.executor import ChunkExecutor
        from sinew.cli.improve import randomised
        from sinew.cli.recorded import PolicyPlayer, record

        first = first_scene("practice", self.config.seed) + (round - 1) * self.config.episodes
        told = {"device": self.device, "instruction": self.interface.task_text}
        args, root = self.args, self._rollouts(round)
        record(
            root,
            self.interface,
            tuple(self.policy.spec.observation),
            range(first, first + self.config.episodes),
            lambda n: sim.worlds(self.interface, n, backend=args.backend, device=args.device, randomisation=randomised(args)[1]),
            lambda n: PolicyPlayer(ChunkExecutor(self.policy, n, **told), self.interface),
            self.progress,
        )
        data = Dataset(root)
        return len(data), sum(bool(data.episode(i).success) for i in range(data.num_episodes))

    def experience(self, round: int) -> Experience:
        """Demonstrations and the rollouts up to this round, seen as the first policy sees."""
        from rl.recap_value import Experience

        self.policy.load_state_dict(self._first)
        parts = self._parts(round)
        infos = [part.episode(i) for part in parts for i in range(part.num_episodes)]
        data = self._data(parts)
        human = [part.column(HUMAN_COLUMN).reshape(-1) > 0 if HUMAN_COLUMN in part.info["features"] else np.zeros(len(part), bool)
                 for part in parts]  # fmt: skip
        return Experience(
            features_of(self.policy, data, self.device),
            np.array([e.length for e in infos]),
            np.array([bool(e.success) for e in infos]),
            np.asarray(data.column("task_index")).reshape(-1).astype(np.int64),
            np.concatenate(human),
        )

    def teach(self, round: int, good: np.ndarray) -> int:
        """The first policy, trained on everything up to this round."""
        from policies.advantage import AdvantageTraining, Labelled
        from policies.train import train
        from sinew.rundir import RunDir

        self.policy.load_state_dict(self._first)
        run = RunDir.create(self.folder / f"round-{round}", {"verb": "recap round", "round": round})
        data = Labelled(self._data(self._parts(round)), good)
        train(AdvantageTraining(self.policy), data, run, self.training, self.progress, self.device)
        self.policy.to(self.device)
        return self.training.steps

    def _rollouts(self, round: int) -> Path:
        return self.folder / f"rollouts-{round}"

    def _parts(self, round: int) -> list[Dataset]:
        from demos import Dataset
        from sinew.cli.assembly import demonstrations

        recorded = [demonstrations(self.demos, self.policy, "the policy")] if self.demos else []
        return [*recorded, *(Dataset(self._rollouts(r)) for r in range(1, round + 1))]

    def _data(self, parts: Sequence[Dataset]) -> Concat:
        from demos import Concat

        return Concat(parts, tuple(self.policy.spec.observation))


def features_of(policy: Any, data: Any, device: torch.device) -> torch.Tensor:
    """What a policy observes in every frame of a dataset, (F, D) float32 on the CPU."""
    import torch

    from policies.language import LANGUAGE
    from sinew.specs import TASK

    keys, speaks = tuple(policy.spec.observation), LANGUAGE in policy.spec.capabilities
    which = data.column("task_index").reshape(-1) if speaks else None
    seen = []
    for first in range(0, len(data), READ_TOGETHER):
        rows = np.arange(first, min(first + READ_TOGETHER, len(data)))
        window = data.window(rows, 1, 1, keys)
        obs: dict[str, Any] = {k: torch.from_numpy(np.ascontiguousarray(window[k][:, 0])).to(device) for k in keys}
        if which is not None:
            obs[TASK] = [data.tasks[int(i)] for i in which[rows]]
        with torch.no_grad():
            seen.append(policy.observe(obs).float().cpu())
    return torch.cat(seen)


METHODS: dict[str, Callable[..., Chosen]] = {"iql": from_data, "td3-bc": from_data, "fql": from_data, "qc": from_data, "recap": recap}
"""How each of these methods of the command line is made."""
