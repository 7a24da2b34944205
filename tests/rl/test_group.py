"""Learners that average their gradients compute what one learner computes on the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import point_mass
import pytest
import torch
from safetensors.torch import load_file

from rl.batch import Batch
from rl.group import ALONE, Group, Ranks
from rl.learner import Learner, LearnerConfig
from rl.residual import ResidualConfig, make_learner
from sinew.errors import InputError

PLAIN = ResidualConfig(
    critic_hidden=(16,), critic_heads=2, learner=LearnerConfig(smoothing_std=0.0, target_heads=2, actor_every=2, actor_lr=1e-3)
)
UPDATES, ROWS = 6, 32


def batch(rows: slice) -> Batch:
    """Some rows of one batch of transitions."""
    g = torch.Generator().manual_seed(0)
    frames = {"features": torch.randn(ROWS, 4, generator=g), "base_action": torch.rand(ROWS, 2, generator=g)}
    after = {"features": torch.randn(ROWS, 4, generator=g), "base_action": torch.rand(ROWS, 2, generator=g)}
    action, reward = torch.rand(ROWS, 2, generator=g), torch.rand(ROWS, generator=g)
    span, source, slot = torch.ones(ROWS, dtype=torch.int64), torch.ones(ROWS, dtype=torch.uint8), torch.arange(ROWS)
    whole = Batch(frames, action, reward, torch.full((ROWS,), 0.9), after, span, source, slot)
    return whole.map(lambda x: x[rows].clone())


def learned(group: Group, seed: int = 0) -> Learner:
    """A learner after some updates on its share; only the leader starts from the seed that counts."""
    actor = point_mass.ToyActor(seed=seed)
    learner = make_learner(actor, 4, 2, ResidualConfig(**{**vars(PLAIN), "seed": seed}))
    group.attach(learner)
    share = group.share(ROWS)
    for _ in range(UPDATES):
        learner.update(batch(slice(group.rank * share, (group.rank + 1) * share)))
    return learner


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    modules = {"actor": learner.actor, "critic": learner.critic, "critic_target": learner.critic_target}
    return {f"{name}.{k}": v.clone() for name, module in modules.items() for k, v in module.state_dict().items()}


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
import test_group
group = test_group.Ranks(1, 2, sys.argv[1])
assert group.total([1.0, 2.0]) == [3.0, 12.0]
assert group.lead(lambda: 1 / 0) == {{"k": 3, "n": 4}}
save_file(test_group.weights(test_group.learned(group, seed=5)), sys.argv[2])
"""


def test_two_learners_with_half_a_batch_are_one_with_the_whole(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    script = SCRIPT.format(root=str(Path(__file__).parents[2]), tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, where, str(tmp_path / "other")]
    other = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    group = Ranks(0, 2, where)
    try:
        assert group.total([2.0, 10.0]) == [3.0, 12.0]
        assert group.lead(lambda: {"k": 3, "n": 4}) == {"k": 3, "n": 4}
        with pytest.raises(InputError, match="batch_size 33 is not a multiple of the 2 learners: use 32"):
            group.share(33)
        mine = weights(learned(group))
        assert other.wait() == 0, other.stderr.read().decode() if other.stderr else ""
        theirs, alone = load_file(tmp_path / "other"), weights(learned(ALONE))
        with pytest.raises(InputError, match="one of them ended; the last checkpoint is kept"):
            group.barrier()
    finally:
        group.close()
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), f"{key}: all have the same weights, bit for bit"
        torch.testing.assert_close(value, alone[key], atol=2e-6, rtol=1e-5)
    untrained = weights(make_learner(point_mass.ToyActor(), 4, 2, PLAIN))
    assert any(not torch.equal(untrained[k], v) for k, v in mine.items() if k.startswith("actor"))
