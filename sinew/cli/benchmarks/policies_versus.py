"""Policies beside LeRobot's DiffusionPolicy of equal parameter count, on the same dataset: latency of a sample, cost of training.

The peer runs in its own environment and process (`policies_peer`), with its own version of torch. The two take turns, sample
by sample and step by step, one thread each, and times are CPU times, so other work on the machine hits both and counts little.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.peer import Peer
from sinew.cli.benchmarks.policies import STEPS, observation, spec
from sinew.errors import DataError
from sinew.progress import Progress
from sinew.specs import ACTION, ENVIRONMENT_STATE, STATE

HORIZON, N_OBS_STEPS, FPS = 16, 2, 20
BATCH = 64
TOLERANCE = 0.02
"""Parameter counts differ by no more than this."""
DEFAULT_DIMS, MIDDLE_DIMS = (512, 1024, 2048), (128, 256, 512)
"""Widths of the peer's U-Net: LeRobot's default (250 M parameters), and a quarter of it (17 M)."""
EQUALS: dict[tuple[int, ...], dict[str, dict[str, Any]]] = {
    DEFAULT_DIMS: {"U-Net": {"backbone": "unet", "channels": (736, 1472, 2944), "embedding_dim": 128}},
    MIDDLE_DIMS: {
        "U-Net": {"backbone": "unet", "channels": (184, 368, 736), "embedding_dim": 192},
        "MLP": {"backbone": "mlp", "hidden": (2850, 2850, 2850)},
        "transformer": {"backbone": "transformer", "embedding_dim": 472, "layers": 4, "heads": 8},
    },
}
"""Settings of ours with as many parameters as the peer of these widths."""
FASTER, SAMPLES = "<= 0.6x the peer's time", ">= 1.3x peer"


def rows(quick: bool) -> list[Row]:
    """Latency at equal size, and training on the same dataset."""
    with tempfile.TemporaryDirectory(prefix="sinew-bench-") as folder, Peer() as peer:
        root = Path(folder) / "data"
        record(root, episodes=4 if quick else 20, length=150)
        found = latency_rows(root, peer, MIDDLE_DIMS, 3 if quick else 25)
        found += training_rows(root, peer, 2 if quick else 15)
        return found if quick else [*found, *latency_rows(root, peer, DEFAULT_DIMS, 4)]


def latency_rows(root: Path, peer: Peer, dims: tuple[int, ...], calls: int) -> list[Row]:
    """One observation in, one chunk out; the first call of each is warm-up."""
    import torch

    made = peer.ask(do="make", folder=str(root), dims=dims, batch=0, steps=STEPS)
    given = ours(root, EQUALS[dims])
    times: dict[str, list[float]] = {name: [] for name in (*given, "peer")}
    obs = {key: value.expand(-1, N_OBS_STEPS, -1).contiguous() for key, value in observation(1).items()}
    with torch.inference_mode():
        for call in range(calls + 1):
            for name, policy in given.items():
                started = time.process_time_ns()
                policy.sample(policy.encode(obs))
                times[name] += [(time.process_time_ns() - started) / 1e6] if call else []
            taken = peer.ask(do="sample", calls=1).get("ms", [])
            times["peer"] += taken if call else []
    found = []
    for name, policy in given.items():
        who, value = opponent(peer, made, dims, f"DDIM-{STEPS}", times["peer"]), float(np.median(times[name]))
        other = float(np.median(times["peer"])) if times["peer"] else None
        title = f"flow {name}, batch 1, {STEPS} steps, {size(policy, made)}, p50"
        holds = value <= 0.6 * other if other else None
        found.append(
            Row(name=title, unit="CPU ms", ours=value, peer=who, peer_value=other, target=FASTER, holds=holds, higher_is_better=False)
        )
    return found


def training_rows(root: Path, peer: Peer, iterations: int) -> list[Row]:
    """The whole of our training loop, beside the peer's step alone and beside the peer's step with its data loader."""
    import demos
    from policies.train import TrainConfig, train
    from sinew.rundir import RunDir

    made = peer.ask(do="make", folder=str(root), dims=MIDDLE_DIMS, batch=BATCH, steps=STEPS)
    policy, turns = ours(root, EQUALS[MIDDLE_DIMS], only="U-Net")["U-Net"], Turns(peer)
    with tempfile.TemporaryDirectory(prefix="sinew-bench-") as folder:
        run = RunDir.create(Path(folder) / "run", {"verb": "bench"})
        config = TrainConfig(steps=iterations + 1, batch_size=BATCH, checkpoint_every=iterations + 1)
        train(policy, demos.Dataset(root), run, config, turns)
    title = f"training, flow U-Net, batch {BATCH}, {size(policy, made)}"
    speed, found = BATCH * 1e3 / float(np.median(turns.ours)), []
    for what, taken in (("the step alone", turns.alone), ("with its data loader", turns.loading)):
        other = BATCH * 1e3 / float(np.median(taken)) if taken else None
        who, holds = opponent(peer, made, MIDDLE_DIMS, what, taken), speed >= 1.3 * other if other else None
        name = f"{title}, beside {what}"
        found.append(Row(name=name, unit="samples/CPU s", ours=speed, peer=who, peer_value=other, target=SAMPLES, holds=holds))
    return found


class Turns(Progress):
    """Watches our training; after each of our steps the peer makes one of each kind. The first of all is warm-up.

    Args:
        peer: who is asked.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.ours: list[float] = []
        self.alone: list[float] = []
        self.loading: list[float] = []
        self.steps, self.mark = 0, 0

    def advance(self, n: int = 1, **values: float) -> None:
        """A step of ours is done if there is a loss."""
        if "loss" not in values:
            return
        now = time.process_time_ns()
        taken = [(now - self.mark) / 1e6], *(self.peer.ask(do="train", iterations=1, loader=way).get("ms", []) for way in (False, True))
        self.steps += 1
        if self.steps > 1:
            for kept, more in zip((self.ours, self.alone, self.loading), taken, strict=True):
                kept += more
        self.mark = time.process_time_ns()


# ---------------------------------------------------------------- what both are fed


def record(root: Path, episodes: int, length: int) -> None:
    """A LeRobot dataset of smooth random motions: 24 + 16 elements of state, 4 of action."""
    import demos

    given, rng = spec(), np.random.default_rng(0)
    sizes = {STATE: 24, ENVIRONMENT_STATE: 16, ACTION: 4}
    with demos.Writer.create(root, fps=FPS, observation_spec=given.observation, action_spec=given.action, task="bench") as writer:
        for _ in range(episodes):
            waves = {key: (rng.uniform(0.02, 0.2, count), rng.uniform(0, 6, count)) for key, count in sizes.items()}
            for at in range(length):
                frame = {key: np.sin(rate * at + phase).astype(np.float32) for key, (rate, phase) in waves.items()}
                writer.add_frame(frame, stamp_ns=round(at * 1e9 / FPS))
            writer.save_episode(success=True)


def ours(root: Path, settings: dict[str, dict[str, Any]], only: str = "") -> dict[str, Any]:
    """Our policies by name, for the dataset in `root`."""
    import demos
    import policies

    given, stats = replace(spec(), horizon=HORIZON, n_obs_steps=N_OBS_STEPS), demos.Dataset(root).stats()
    configs = {name: policies.FlowConfig(steps=STEPS, **chosen) for name, chosen in settings.items() if only in ("", name)}
    return {name: policies.make("flow", given, stats, config, seed=0).eval() for name, config in configs.items()}


def size(policy: Any, made: dict[str, Any]) -> str:
    """Our number of parameters in words.

    Raises:
        DataError: it is not the peer's, within `TOLERANCE`.
    """
    count = sum(p.numel() for p in policy.parameters())
    if made and abs(count / made["parameters"] - 1) > TOLERANCE:
        raise DataError(f"ours has {count} parameters, the peer {made['parameters']}: change EQUALS in {Path(__file__).name}")
    return f"{count / 1e6:.3g} M parameters"


def opponent(peer: Peer, made: dict[str, Any], dims: Sequence[int], what: str, times: list[float]) -> str:
    """The peer's name, or why nothing was measured."""
    if not times:
        return f"not run: {peer.why}"
    millions, of = made["parameters"] / 1e6, "/".join(map(str, dims))
    return f"lerobot {made['lerobot']} DiffusionPolicy {of}, {millions:.3g} M, {what}, torch {made['torch']}"
