"""The method ppo-denoise of `sinew improve`: the policy's own weights, by policy gradients through its denoising chain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.cli import reward_situation

if TYPE_CHECKING:
    import torch

    from policies import PolicyModule
    from policies.chain import ChainActor
    from rl.decisions import Decisions
    from sim import TaskInterface
    from sinew.cli.improve import Args
    from sinew.cli.improve_methods import Chosen, Learn
    from sinew.cli.reward_situation import Recorded


def ppo_denoise(base: PolicyModule, interface: TaskInterface, args: Args, demos: Path | None, device: torch.device) -> Chosen:
    """The base's weights, in stages: from data behind a gate, then by doing."""
    from policies.chain import ChainActor, ChainConfig
    from rl.chunk_critics import CriticConfig
    from rl.denoising_offline import OfflineConfig
    from rl.rl100 import train_rl100
    from rl.rl100_config import Rl100Config
    from sinew.cli.improve_methods import Chosen

    chain = ChainConfig()
    actor = ChainActor(base.to(device), args.num_envs, chain, interface.task_text)
    offline = OfflineConfig()
    if args.reward != "sparse":
        low, high = reward_situation.returns(args) or (None, None)
        offline = replace(offline, critics=CriticConfig(low=low, high=high))
    steps = args.steps or Rl100Config.steps
    config: Any = Rl100Config(
        stages=args.stages,
        steps=steps,
        rollout_steps=min(Rl100Config.rollout_steps, steps // 5 if "online" in args.stages else steps),
        seed=args.seed,
        stop_success=args.target,
        offline=offline,
    )

    def prepare() -> Learn:
        rewards = reward_situation.recorded(args, interface, config.gamma)
        recorded = recorded_decisions(demos, actor, config.gamma, rewards) if demos and "offline" in args.stages else None
        return lambda env, run, gate, progress: train_rl100(env, actor, run, config, demos=recorded, evaluate=gate, progress=progress)

    return Chosen(base, config, {"chain": chain, "ppo-denoise": config}, prepare)


def recorded_decisions(root: Path, actor: ChainActor, gamma: float, rewards: Recorded | None = None) -> Decisions:
    """Every chunk of recorded episodes that lies within its episode, or ends it with success.

    The reward is 1 on the last step of a success, which is terminal, unless `rewards` knows others. An episode without success
    ended by time: its last chunks are left out, since nothing is known of the states after them.

    Raises:
        DataError: the dataset is damaged, or no chunk fits into any of its episodes.
    """
    import torch

    from rl.decisions import Decisions
    from sinew.cli.assembly import demonstrations
    from sinew.cli.improve_methods import READ_TOGETHER
    from sinew.errors import DataError

    data, spec = demonstrations(root, actor.policy, "the policy"), actor.policy.spec
    H = spec.horizon
    start, after, left, episode = [], [], [], []
    for index in range(data.num_episodes):
        info = data.episode(index)
        last = info.length if info.success else info.length - H
        for t in range(max(0, last)):
            start.append(info.start + t)
            after.append(info.start + min(t + H, info.length - 1))
            left.append(info.length - t)
            episode.append(index)
    if not start:
        raise DataError(f"{root} has no episode with success, and none longer than the policy's chunks of {H} steps: record more")
    rows = torch.from_numpy(np.asarray(start))
    seen, done = [], []
    for first in range(0, len(data), READ_TOGETHER):
        piece = np.arange(first, min(first + READ_TOGETHER, len(data)))
        window = data.window(piece, spec.n_obs_steps, H, tuple(spec.observation))
        seen.append(actor.frames({key: torch.from_numpy(window[key]) for key in spec.observation}))
        done.append(window["action"])
    frames = {key: torch.cat([part[key] for part in seen]) for key in seen[0]}
    where, remaining = frames["features"].device, torch.tensor(left, dtype=torch.float32)
    ends = remaining <= H  # of a success: of the others these were left out
    action = torch.from_numpy(spec.action.normalize(np.concatenate(done))).float().clamp(-1, 1)
    reward = torch.where(ends, gamma ** (remaining - 1), torch.zeros(()))
    if rewards is not None and (earned := rewards(root)) is not None:
        reward = _over_chunks(torch.cat(earned), rows, remaining, H, gamma)
    none = torch.zeros(len(rows), 0, *actor.shape, device=where)
    return Decisions(
        frames={key: value[rows] for key, value in frames.items()},
        action=action[rows].to(where),
        reward=reward.to(where),
        discount=torch.where(ends, torch.zeros(()), torch.tensor(gamma**H)).to(where),
        next_features=frames["features"][torch.from_numpy(np.asarray(after))],
        follows=torch.zeros(len(rows), dtype=torch.bool, device=where),
        episode=torch.tensor(episode, device=where),
        chain=none,
        means=none,
        own=torch.zeros(len(rows), dtype=torch.bool, device=where),
    )


def _over_chunks(earned: torch.Tensor, rows: torch.Tensor, remaining: torch.Tensor, horizon: int, gamma: float) -> torch.Tensor:
    """Discounted sums (B,) of rewards (frames,) over the steps of chunks that begin at rows (B,) and end with their episodes."""
    import torch

    ahead = torch.arange(horizon)
    inside = ahead < remaining[:, None]
    found = earned[(rows[:, None] + ahead).clamp(max=len(earned) - 1)]
    return (found * inside * gamma**ahead).sum(1)
