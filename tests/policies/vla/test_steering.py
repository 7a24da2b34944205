"""Latent steering of a frozen vision-language-action policy: its prefix is encoded when something is seen, and never to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policies.executor import ChunkExecutor
from policies.steered import CONTEXT, LatentSteered, Steering
from rl.dsrl import DsrlConfig, DsrlMethod
from rl.learner import Learner
from rl.runner import Runner
from sinew.progress import SILENT
from sinew.rundir import RunDir

TEXT, ACT_STEPS, WORLDS = "Touch the red button.", 3, 2
CONFIG = DsrlConfig(
    steps=60,
    random_steps=20,
    critic_only_updates=10,
    critic_hidden=(16,),
    batch_size=8,
    updates_per_step=0.3,
    evaluate_every=10**6,
    checkpoint_every=30,
)


class Pictures:
    """Worlds of random pictures and states, told by their seed; an episode ends by success or time after a few steps."""

    num_envs, max_episode_steps = WORLDS, 7

    def __init__(self, policy: Any) -> None:
        self.observation_spec, self.action_spec = policy.spec.observation, policy.spec.action
        self.seen: list[dict[str, Tensor]] = []
        """Every observation of a world that there was."""
        self.age, self.seeds = torch.zeros(WORLDS, dtype=torch.int64), [0] * WORLDS

    def _observe(self) -> dict[str, Tensor]:
        rows = [self._row(seed, int(age)) for seed, age in zip(self.seeds, self.age, strict=True)]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, seed: int, age: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed % 2**31 * 100 + age)
        row = {}
        for key, tensor in self.observation_spec.tensors.items():
            whole = tensor.dtype == "uint8"
            made = torch.randint(0, 256, tensor.shape, generator=g) if whole else torch.randn(tensor.shape, generator=g)
            row[key] = made.to(torch.uint8) if whole else made
        self.seen.append(row)
        return row

    def reset(self, seed=None, ids=None):
        for world, value in zip(range(WORLDS) if ids is None else ids, seed, strict=True):
            self.seeds[world], self.age[world] = value, 0
        return self._observe()

    def step(self, action):
        self.age += 1
        final = self._observe()
        truncated = self.age >= self.max_episode_steps
        success = (action[:, 0] > 0.9 * self.action_spec.high[0]) & ~truncated
        for world in torch.nonzero(success | truncated)[:, 0].tolist():
            self.seeds[world], self.age[world] = self.seeds[world] + 1, 0
        return self._observe(), success.float(), success, truncated, {"success": success, "final_observation": final}


def made(toys, tmp_path, *, half: bool = False, variant: str = "na"):
    """(base, steering, runner that has not begun)."""
    base, _ = toys.vla()
    policy = LatentSteered(base, hidden=(16,)).eval()
    executor = ChunkExecutor(policy, WORLDS, instruction=TEXT)
    steering, env = Steering(policy, executor, ACT_STEPS, half=half), Pictures(base)
    config = DsrlConfig(**{**CONFIG.__dict__, "variant": variant})
    method = DsrlMethod(steering, WORLDS, env.action_spec.dim, config)
    return base, steering, Runner(env, method, RunDir.create(tmp_path / "run", config), config, None, None, SILENT)


@pytest.mark.parametrize("variant", ["na", "sac"])
def test_an_update_never_encodes_pictures_or_language(toys, tmp_path, variant):
    base, _, runner = made(toys, tmp_path, variant=variant)
    calls = {"backbone": 0, "pictures": 0, "updates": 0, "while learning": 0}
    backbone, inside = base.encoder.backbone, [False]
    images = backbone.images

    def counted(name: str) -> None:
        calls[name] += 1
        calls["while learning"] += inside[0]

    backbone.register_forward_hook(lambda *_: counted("backbone"))
    backbone.images = lambda image: counted("pictures") or images(image)
    update = Learner.update

    def watched(self, batch, *, train_actor=True):
        inside[0] = True
        update(self, batch, train_actor=train_actor)
        inside[0] = False
        calls["updates"] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", watched)
        runner.run_to_end()
    assert calls["updates"] >= 10 and calls["while learning"] == 0
    assert calls["backbone"] == calls["pictures"] > 0


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-5), (True, 5e-3)], ids=["single", "half"])
def test_what_is_decoded_from_the_replay_is_what_the_policy_does_there(toys, tmp_path, half, tolerance):
    """Frames of the replay against the observations they came from, through the whole policy: pictures, text, sampling."""
    base, steering, runner = made(toys, tmp_path, half=half)
    runner.run_to_end()
    ring, env = runner.ring, runner.source.worlds.env
    batch = ring.gather(ring.starts(ACT_STEPS), stride=ACT_STEPS)
    assert len(batch.reward) > 10
    g = torch.Generator().manual_seed(0)
    u = torch.rand(len(batch.reward), steering.actor.size, generator=g) * 2 - 1
    # the state, which features begin with, tells which observation it was
    known = {base.observe(told({k: v[None] for k, v in row.items()}))[0, :4].numpy().round(3).tobytes(): row for row in env.seen}
    rows = [known[f[:4].numpy().round(3).tobytes()] for f in batch.frames["features"]]
    obs = told({key: torch.stack([row[key] for row in rows]).unsqueeze(1) for key in rows[0]})
    live = base.sample(base.encode(obs), noise=steering.policy.noise(u).unsqueeze(1)).actions[:, 0, :ACT_STEPS]
    torch.testing.assert_close(steering.decode(batch.frames, u), live.clamp(-1, 1), rtol=0, atol=tolerance)


def told(obs: dict[str, Any]) -> dict[str, Any]:
    """With the instruction."""
    return {**obs, "task": [TEXT] * len(next(iter(obs.values())))}


def test_a_frame_takes_what_keys_and_values_take_and_half_of_it_in_half_precision(toys, tmp_path):
    sizes = []
    for half in (False, True):
        base, _, runner = made(toys, tmp_path / str(half), half=half)
        frames = {k: v for k, v in runner.memory.rings[0].frame.items() if k.startswith(CONTEXT)}
        sizes.append(sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in frames.values()))
    layout = base.encoder.backbone.layout
    context = base.encode(one(base, runner))
    tokens = context.keys[0].shape[2]
    beside = context.state.shape[1] + context.embedding.shape[1]
    assert sizes[0] == 4 * (2 * layout.layers * layout.kv_heads * tokens * layout.head_dim + beside)
    assert sizes[1] == sizes[0] // 2


def one(base: Any, runner: Runner) -> dict[str, Any]:
    """An observation as the policy takes it."""
    return told({key: value.unsqueeze(1) for key, value in runner.source.worlds.env.reset([0, 1]).items()})
