"""One of two learners of `test_together.py`: takes its half of a rollout and updates together with the other, then writes what it has."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from ppo_toys import made_up, make_learner
from safetensors.torch import save_file

from rl.group import torchrun
from rl.ppo_update import PpoLearner
from rl.rollout import Rollout

ROUNDS = 3


def half(rollout: Rollout, rank: int, size: int) -> Rollout:
    """The worlds of one learner."""
    worlds = torch.arange(rollout.reward.shape[1]) % size == rank
    owner = worlds.expand_as(rollout.ended)[rollout.ended]
    return Rollout(
        {k: v[:, worlds] for k, v in rollout.frames.items()}, rollout.reward[:, worlds], rollout.terminated[:, worlds],
        rollout.ended[:, worlds], {k: v[worlds] for k, v in rollout.last.items()}, {k: v[owner] for k, v in rollout.final.items()},
    )  # fmt: skip


def learned(learner: PpoLearner, rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
    """Statistics of one rollout and updates on all of the next; what comes of it."""
    learner.config = replace(learner.config, epochs=ROUNDS, batches=1)
    order = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        for seed in (1, 2):
            learner.learn(half(made_up(make_learner(), seed=seed), rank, size), order)
    return {**learner.actor.state_dict(), "rate": learner.rate, **{f"value.{k}": v for k, v in learner.value.state_dict().items()}}


def main(out: Path) -> None:
    with torchrun("cpu") as group:
        learner = make_learner()
        with torch.no_grad():
            for p in learner.parameters:
                p.add_(0.1 * group.rank)  # the others begin as the first one is
        learner.group = group
        group.attach(learner)
        made = learned(learner, group.rank, group.size)
        save_file({k: v.detach().contiguous() for k, v in made.items()}, out / f"{group.rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
