"""Latent steering of a frozen VLA: what a frame takes in the replay, and an update from cached prefixes against encoding again.

The tiny backbone (64 x 64 pixels, one camera) with random weights. Both updates are the same code on the same transitions; the
peer's frames hold pictures and vectors, and its decoder runs the backbone on them before it samples. Times are CPU times on one
thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sinew.bench import Row

if TYPE_CHECKING:
    from torch import Tensor

    from rl.batch import Batch

BATCH, WORLDS, ACT_STEPS, STEPS = 64, 4, 8, 5
AGAIN = "the same update, pictures and instruction encoded again"
ONLY = "no peer: a size"
REPLAY = 50_000
"""Environment steps of the replay that sizes are told for."""
RAW = "raw."


def rows(quick: bool) -> list[Row]:
    """Sizes, and times of an update: with cached prefixes in single and in half precision, and without."""
    import torch

    from sinew.cli.benchmarks.rl import interleaved

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cached, sizes = updates(again=False)
        half, half_sizes = updates(again=False, half=True)
        again, _ = updates(again=True)
        cached_ms, half_ms, again_ms = interleaved((cached, half, again), 1, 2 if quick else 9)
        return [*size_rows(sizes, half_sizes), time_row("single", cached_ms, again_ms), time_row("half", half_ms, again_ms)]
    finally:
        torch.set_num_threads(threads)


def time_row(precision: str, ours_ms: float, again_ms: float) -> Row:
    """An update with its share of actor updates."""
    return Row(
        name=f"frozen VLA (tiny), DSRL-NA update from cached prefixes in {precision} precision, batch {BATCH}",
        unit="ms CPU",
        ours=ours_ms,
        peer=AGAIN,
        peer_value=again_ms,
        higher_is_better=False,
    )


def size_rows(single: int, half: int) -> list[Row]:
    """Bytes of a frame, and what they make of a replay: every tick stored, or where chunks begin."""
    every = {"single precision": single, "half precision": half, f"half precision, once per chunk of {ACT_STEPS}": half / ACT_STEPS}
    return [
        Row(
            name=f"frozen VLA (tiny), replay of {REPLAY:,} steps: {how}",
            unit="GiB",
            ours=size * REPLAY / 2**30,
            peer=ONLY,
            higher_is_better=False,
            detail={"bytes_per_step": size},
        )
        for how, size in every.items()
    ]


def updates(*, again: bool, half: bool = False) -> tuple[Callable[[], None], int]:
    """Two updates, one of them with the actor, as one function; and bytes of a frame."""
    import torch

    import policies
    from policies.executor import ChunkExecutor
    from policies.steered import Steering
    from rl.dsrl import DsrlConfig, DsrlMethod
    from sinew.cli.benchmarks.vla import PIXELS, TEXT, make, observation

    base = make("tiny", 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = policies.LatentSteered(base, steps=STEPS).eval()
    steering: Any = Steering(policy, ChunkExecutor(policy, BATCH, instruction=TEXT), ACT_STEPS, half=half)
    newest = {key: value[:, 0] for key, value in observation(BATCH, 1, PIXELS["tiny"]).items() if key != "task"}
    frames = steering.frames(newest)
    size = sum(value[0].numel() * value.dtype.itemsize for key, value in frames.items())
    if again:
        frames = {"features": frames["features"], **{RAW + key: value for key, value in newest.items()}}
        steering = EncodesAgain(steering, TEXT)
    method = DsrlMethod(steering, WORLDS, policy.spec.action_dim, DsrlConfig())
    frames["u"] = torch.randn(BATCH, policy.actor.size)
    learner, batch = method.make_learner(frames), transitions(frames, policy.spec.action_dim)

    def update() -> None:
        for _ in range(learner.config.actor_every):
            learner.update(method.prepare(copy.copy(batch)))

    return update, size


def transitions(frames: dict[str, Tensor], action_dim: int) -> Batch:
    """A batch of chunks that begin and end in these frames."""
    import torch

    from rl.batch import Batch

    flat = torch.zeros(BATCH, dtype=torch.int64)
    action, reward = torch.rand(BATCH, ACT_STEPS, action_dim) * 2 - 1, torch.zeros(BATCH)
    return Batch(frames, action, reward, torch.full((BATCH,), 0.9), frames, flat + ACT_STEPS, flat.to(torch.uint8), flat)


class EncodesAgain:
    """Steering whose frames hold observations: what is not cached is encoded whenever a chunk is wanted."""

    def __init__(self, steering: Any, text: str) -> None:
        self.policy, self.actor, self.act_steps, self.text = steering.policy, steering.actor, steering.act_steps, text

    def decode(self, frames: dict[str, Tensor], u: Tensor) -> Tensor:
        """Pictures, text and noise (B, U) → chunks (B, act_steps, A)."""
        import torch

        obs: dict[str, Any] = {k.removeprefix(RAW): v.unsqueeze(1) for k, v in frames.items() if k.startswith(RAW)}
        with torch.no_grad():
            context = self.policy.base.encode({**obs, "task": [self.text] * len(u)})
            chunk = self.policy.base.sample(context, noise=self.policy.noise(u).unsqueeze(1), steps=STEPS)
            return chunk.actions[:, 0, : self.act_steps].clamp(-1, 1)
