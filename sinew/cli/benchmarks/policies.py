"""Policies: latency of a sample and cost of a training step, beside bare PyTorch code, LeRobot, and our own slower ways."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.specs import ACTION, ENVIRONMENT_STATE, IMAGES, STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

HORIZON, STEPS, BATCH, HIDDEN = 8, 10, 256, (256, 256, 256)
BARE = "bare PyTorch"
UNMATCHED = "no peer of equal size"
"""The peer is the same MLP as one would write it in a notebook, see `Bare`; for the other networks none is kept."""


def rows(quick: bool) -> list[Row]:
    """Measure on one thread; ours and the peer take turns, so that both see the same load."""
    import torch

    from sinew.cli.benchmarks import policies_gpu, policies_versus, vla

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = 150 if quick else 2000
        own = [*latency_rows(calls), *other_latency_rows(calls // 8), *training_rows(80 if quick else 600)]
        return [*policies_versus.rows(quick), *one_step_rows(10 if quick else 100), *own, *vla.rows(quick), *policies_gpu.rows(quick)]
    finally:
        torch.set_num_threads(threads)


def latency_rows(calls: int) -> list[Row]:
    """One observation in, one chunk out: encode and sample."""
    import torch

    import policies

    policy = policies.make("flow", spec(), Demonstrations(64).stats(), policies.FlowConfig(hidden=HIDDEN, steps=STEPS), seed=0).eval()
    obs = observation(1)
    bare = Bare()
    noise = torch.randn(1, 1, *policy.spec.noise_shape)
    many = torch.randn(1, 16, *policy.spec.noise_shape)

    def ours() -> None:
        policy.sample(policy.encode(obs), noise=noise)

    def ours_16() -> None:
        policy.sample(policy.encode(obs), n=16, noise=many)

    def peer() -> None:
        bare.sample(obs, noise[:, 0])

    def peer_16() -> None:
        bare.sample(obs, many[0])

    with torch.inference_mode():
        one, one_peer = timed(calls, ours, peer)
        sixteen, sixteen_peer = timed(calls // 2, ours_16, peer_16)
    return [
        versus(f"flow MLP, batch 1, {STEPS} steps, p50", "ms", one, one_peer, 50),
        versus(f"flow MLP, batch 1, {STEPS} steps, p99", "ms", one, one_peer, 99),
        versus("flow MLP, 16 candidates of one observation, p50", "ms", sixteen, sixteen_peer, 50),
    ]


def other_latency_rows(calls: int) -> list[Row]:
    """The U-Net, images, the executor for many worlds: no peer of equal size in this environment."""
    import torch

    import policies

    stats = Demonstrations(64).stats()
    unet = policies.make("flow", spec(), stats, policies.FlowConfig(backbone="unet", steps=STEPS), seed=0).eval()
    sight = policies.make("flow", spec(image=96), stats, policies.FlowConfig(hidden=HIDDEN, steps=STEPS), seed=0).eval()
    plain = policies.make("flow", spec(), stats, policies.FlowConfig(hidden=HIDDEN, steps=STEPS), seed=0).eval()
    executor = policies.ChunkExecutor(plain, 50, seed=0)
    executor.reset(seeds=list(range(50)))
    crowd = {k: v[:, 0] for k, v in observation(50).items()}
    alone, seen = observation(1), observation(1, image=96)
    with torch.inference_mode():
        (unet_ms,) = timed(calls, lambda: unet.sample(unet.encode(alone)))
        (sight_ms,) = timed(calls, lambda: sight.sample(sight.encode(seen)))
        (crowd_ms,) = timed(calls, lambda: executor.act(crowd))
    return [
        Row(
            name=f"flow 1-D U-Net, batch 1, {STEPS} steps, p50",
            unit="ms",
            ours=quantile(unet_ms, 50),
            peer=UNMATCHED,
            higher_is_better=False,
        ),
        Row(
            name=f"flow 1-D U-Net, batch 1, {STEPS} steps, p99",
            unit="ms",
            ours=quantile(unet_ms, 99),
            peer=UNMATCHED,
            higher_is_better=False,
        ),
        Row(
            name="flow MLP with one 96 × 96 camera, batch 1, p50",
            unit="ms",
            ours=quantile(sight_ms, 50),
            peer=UNMATCHED,
            higher_is_better=False,
        ),
        Row(
            name="chunk executor, one tick of 50 worlds, mean",
            unit="ms",
            ours=float(np.mean(crowd_ms)),
            peer=UNMATCHED,
            higher_is_better=False,
        ),
    ]


def one_step_rows(calls: int) -> list[Row]:
    """One-step policies beside the 10-step teachers whose networks they have, CPU time; their weights do not matter here."""
    import torch

    import policies
    from sinew.cli.benchmarks import policies_versus, vla

    stats, obs, found = Demonstrations(64).stats(), observation(1), []
    large = policies_versus.EQUALS[policies_versus.MIDDLE_DIMS]
    chosen = {f"{name}, default size": {"backbone": backbone} for name, backbone in (("U-Net", "unet"), ("transformer", "transformer"))}
    for name, settings in {**chosen, **{f"{name}, 17 M parameters": large[name] for name in ("U-Net", "transformer")}}.items():
        teacher: Any = policies.make("flow", spec(), stats, policies.FlowConfig(steps=STEPS, **settings), seed=0).eval()
        single = policies.ConsistencyPolicy(teacher).eval()
        ways = [lambda p=policy: p.sample(p.encode(obs)) for policy in (single, teacher)]
        with torch.inference_mode():
            one, ten = (quantile(times, 50) for times in vla.timed(calls, *ways))
        found.append(
            Row(
                name=f"consistency {name}, 1 step, batch 1, p50",
                unit="CPU ms",
                ours=one,
                peer=f"its teacher, {STEPS} steps",
                peer_value=ten,
                target=">= 8x the teacher's speed",
                holds=ten >= 8 * one,
                higher_is_better=False,
            )
        )
    return found


def training_rows(iterations: int) -> list[Row]:
    """Whole training steps in CPU time: batch, forward, backward, optimiser, EMA, log; the bare loop has neither EMA nor log."""
    import policies
    from policies.train import TrainConfig, train
    from sinew.rundir import RunDir

    data = Demonstrations(5000)

    def ours(iterations: int) -> float:
        policy = policies.make("flow", spec(), data.stats(), policies.FlowConfig(hidden=HIDDEN, steps=STEPS), seed=0)
        with tempfile.TemporaryDirectory() as folder:
            run = RunDir.create(Path(folder) / "run", {"verb": "bench"})
            started = time.process_time()
            train(policy, data, run, TrainConfig(steps=iterations, batch_size=BATCH, checkpoint_every=iterations))
            return (time.process_time() - started) / iterations * 1e3

    bare = Bare()
    for warm_up in (ours, lambda n: bare.train(data, n)):
        warm_up(10)  # the first optimiser of a process imports for a second
    cost, peer = ours(iterations), bare.train(data, iterations)
    return [
        Row(name=f"training step, flow MLP, batch {BATCH}", unit="CPU ms", ours=cost, peer=BARE, peer_value=peer, higher_is_better=False),
        Row(name="training throughput, flow MLP", unit="samples/CPU s", ours=BATCH / cost * 1e3, peer=BARE, peer_value=BATCH / peer * 1e3),
    ]


# ---------------------------------------------------------------- the peer and what both are fed


class Bare:
    """The flow policy as one would write it in a notebook: one MLP on chunk, time and observation side by side."""

    def __init__(self) -> None:
        from torch import nn

        width = HORIZON * 4 + 24 + 16 + 32
        layers: list[nn.Module] = [nn.Linear(width, HIDDEN[0]), nn.SiLU()]
        for a, b in pairwise(HIDDEN):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], HORIZON * 4))

    def velocity(self, x: Any, t: Any, condition: Any) -> Any:
        """Velocity (B, H * A) of a flat chunk (B, H * A) at times (B,)."""
        import math

        import torch

        angle = t[:, None] * (2 * math.pi * 2.0 ** torch.linspace(-2, 5, 16))
        return self.net(torch.cat([x, angle.sin(), angle.cos(), condition], 1))

    def sample(self, obs: Mapping[str, Any], noise: Any) -> Any:
        """Chunks (B, H, A) by Euler steps."""
        import torch

        x = noise.flatten(1)
        condition = torch.cat([obs[STATE][:, 0], obs[ENVIRONMENT_STATE][:, 0]], 1).expand(len(x), -1)
        for k in range(STEPS):
            x = x - self.velocity(x, x.new_full((len(x),), 1 - k / STEPS), condition) / STEPS
        return x.clamp(-1, 1).unflatten(1, noise.shape[1:])

    def train(self, data: Demonstrations, iterations: int) -> float:
        """CPU milliseconds of a training step on batches made by the same dataset."""
        import torch

        optimiser = torch.optim.AdamW(self.net.parameters(), lr=1e-3)
        rng = np.random.default_rng(0)
        started = time.process_time()
        for _ in range(iterations):
            batch = data.window(rng.integers(len(data), size=BATCH), 1, HORIZON)
            action = torch.from_numpy(batch[ACTION]).flatten(1)
            condition = torch.cat([torch.from_numpy(batch[STATE][:, 0]), torch.from_numpy(batch[ENVIRONMENT_STATE][:, 0])], 1)
            t, noise = torch.rand(BATCH), torch.randn_like(action)
            x = t[:, None] * noise + (1 - t[:, None]) * action
            loss = (self.velocity(x, t, condition) - (noise - action)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return (time.process_time() - started) / iterations * 1e3


class Demonstrations:
    """Random demonstrations in memory, as `EpisodeData`: reading costs next to nothing, so the step itself is measured.

    Args:
        frames: length; one episode.
    """

    num_episodes = 1

    def __init__(self, frames: int) -> None:
        rng = np.random.default_rng(0)
        self.observation_spec, self.action_spec = spec().observation, spec().action
        self._vectors = {
            STATE: rng.normal(size=(frames, 24)).astype(np.float32),
            ENVIRONMENT_STATE: rng.normal(size=(frames, 16)).astype(np.float32),
        }
        self._action = rng.uniform(-1, 1, size=(frames, 4)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._action)

    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean, deviation and range of every vector."""
        tables = {**self._vectors, ACTION: self._action}
        return {k: {f: np.asarray(getattr(v, f)(0), dtype=np.float64) for f in ("mean", "std", "min", "max")} for k, v in tables.items()}

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """See `sinew.protocols.EpisodeData`."""
        steps = np.minimum(indices[:, None] + np.arange(horizon), len(self) - 1)
        past = np.maximum(indices[:, None] + np.arange(1 - n_obs_steps, 1), 0)
        batch = {k: v[past] for k, v in self._vectors.items() if keys is None or k in keys}
        return {**batch, ACTION: self._action[steps], "action_is_pad": indices[:, None] + np.arange(horizon) >= len(self)}


def spec(image: int = 0) -> PolicySpec:
    """Specs of a one-armed task: 24 + 16 elements of state, 4 of action, with one camera if `image` pixels are wanted."""
    tensors = {STATE: TensorSpec(shape=(24,)), ENVIRONMENT_STATE: TensorSpec(shape=(16,))}
    if image:
        tensors[f"{IMAGES}front"] = TensorSpec(shape=(image, image, 3), dtype="uint8")
    action = ActionSpec(kind="ee_delta", low=(-1,) * 4, high=(1,) * 4, rate_hz=20.0, names=("dx", "dy", "dz", "gripper"))
    return PolicySpec(observation=ObservationSpec(tensors), action=action, horizon=HORIZON)


def observation(batch: int, image: int = 0) -> dict[str, Any]:
    """{key: (B, 1, ...)} random tensors."""
    import torch

    generator = torch.Generator().manual_seed(0)
    obs = {STATE: torch.randn(batch, 1, 24, generator=generator), ENVIRONMENT_STATE: torch.randn(batch, 1, 16, generator=generator)}
    if image:
        obs[f"{IMAGES}front"] = torch.randint(0, 256, (batch, 1, image, image, 3), dtype=torch.uint8, generator=generator)
    return obs


# ---------------------------------------------------------------- measuring


def timed(calls: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Milliseconds of each call, the functions taking turns; the first tenth is warm-up and left out."""
    times: list[list[float]] = [[] for _ in functions]
    for i in range(calls + calls // 10):
        for function, kept in zip(functions, times, strict=True):
            started = time.perf_counter_ns()
            function()
            if i >= calls // 10:
                kept.append((time.perf_counter_ns() - started) / 1e6)
    return times


def quantile(values: Sequence[float], percent: float) -> float:
    """Percentile of the values."""
    return float(np.percentile(values, percent))


def versus(name: str, unit: str, ours: Sequence[float], peer: Sequence[float], percent: float) -> Row:
    """A latency row."""
    value, other = quantile(ours, percent), quantile(peer, percent)
    return Row(name=name, unit=unit, ours=value, peer=BARE, peer_value=other, higher_is_better=False)
