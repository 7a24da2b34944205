"""Progress rewards on episodes that they have not seen: do they grow with time on successes, do they tell failures from them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.bench import Row

if TYPE_CHECKING:
    from torch import Tensor

TASKS = ("lift", "peg", "drawer")
EPISODES = 80
ENVS = 256
LEAST_CORRELATION, LEAST_AUC, MOST_SHARE = 0.9, 0.95, 0.05
STATES, PICTURES = "states", "pictures"
CLUSTERED = "SRPO as published: its DBSCAN (0.5, 2) on standardised vectors finds no cluster, so that the mean of all successes counts"


@dataclass(frozen=True)
class Found:
    """Of one dataset."""

    correlation: float
    auc: float
    transport: float
    mean_of_successes: float
    clusters: int
    episodes: int


def rows(quick: bool, tasks: Sequence[str] = (), seeds: Sequence[int] = (), out: Path | None = None) -> list[Row]:
    """Trained on the episodes of one collection, measured on another one's; episodes by `sinew collect --quality human`.

    Args:
        quick: one task and seed, and fewer episodes.
        tasks: all three if empty.
        seeds: 0, 1 and 2 if empty.
        out: folder where collections are kept.
    """
    tasks, seeds = tuple(tasks) or (TASKS[:1] if quick else TASKS), tuple(seeds) or ((0,) if quick else (0, 1, 2))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(out or folder)
        made = [row for task in tasks for row in _task_rows(task, seeds, root, 40 if quick else EPISODES, pictures=False)]
        if not quick:
            made += [row for task in tasks[:2] for row in _task_rows(task, seeds, root, 60, pictures=True)]
        weights = root / f"{tasks[0]}-{seeds[0]}-{STATES}-{40 if quick else EPISODES}.safetensors"
        return [*made, *(_cost(kind, tasks[0], weights) for kind in ("progress", "transport"))]


def _task_rows(task: str, seeds: Sequence[int], root: Path, episodes: int, *, pictures: bool) -> list[Row]:
    found = [measure(task, seed, root, episodes, pictures) for seed in seeds]
    seen = PICTURES if pictures else STATES
    detail = {"seeds": list(seeds), "runs": [vars(f) for f in found]}
    least = {name: min(getattr(f, name) for f in found) for name in ("correlation", "auc", "transport")}
    where = f"{task}, {seen}, worst of {len(seeds)} seeds"
    others = float(np.mean([f.mean_of_successes for f in found]))
    return [
        Row(
            name=f"progress with time on held-out successes: {where}", unit="", ours=least["correlation"],
            peer="none", target=f">= {LEAST_CORRELATION:g}", holds=least["correlation"] >= LEAST_CORRELATION, detail=detail,
        ),
        Row(
            name=f"AUC success against failure: {where}", unit="", ours=least["auc"], peer=CLUSTERED, peer_value=others,
            target=f">= {LEAST_AUC:g}", holds=least["auc"] >= LEAST_AUC,
        ),
        Row(
            name=f"AUC by optimal transport of whole episodes: {where}", unit="", ours=least["transport"],
            peer=CLUSTERED, peer_value=others, target=f">= {LEAST_AUC:g}", holds=least["transport"] >= LEAST_AUC,
        ),
    ]  # fmt: skip


def collected(task: str, seed: int, root: Path, episodes: int, pictures: bool) -> Path:
    """A collection of a task, made if it is not there."""
    from sinew.cli.collect import Args, collect

    path = root / f"{task}-{seed}-{PICTURES if pictures else STATES}-{episodes}"
    cameras: dict[str, Any] = {"cameras": ("front",), "image_size": 64} if pictures else {}
    collect(Args(task=task, out=path, episodes=episodes, quality="human", seed=seed, **cameras))
    return path


def measure(task: str, seed: int, root: Path, episodes: int, pictures: bool) -> Found:
    """Train on the collection of one seed, measure on the next one's."""
    import torch

    from demos import Dataset
    from rewards.measures import auc
    from rewards.progress import nearest, predictive
    from sinew.cli import reward_progress as verb

    learned = collected(task, seed, root, episodes, pictures)
    file = root / f"{learned.name}.json"
    keys = ("observation.state", "observation.images.front") if pictures else ()
    verb.make(verb.Args(data=learned, out=file, keys=keys, seed=seed))
    encoder, successes = nearest.load(file.with_suffix(".safetensors"))
    data = Dataset(collected(task, seed + 1, root, episodes, pictures))
    seen, spans = verb.frames(data, (*encoder.config.vectors, *encoder.config.pictures), range(data.num_episodes))
    latents = predictive.encode(encoder, seen)
    outcome = [bool(data.episode(i).success) for i in range(data.num_episodes)]
    held = [latents[s] for s in spans]
    progress, transport = (verb.measure(kind, successes, held, outcome) for kind in ("progress", "transport"))
    whole = torch.stack([e.mean(0) for e in held])
    known = [successes.latents[successes.episode == i].mean(0) for i in successes.episode.unique()]
    middle, clusters = clustered(known)
    closeness = (-torch.cdist(whole, torch.stack(middle)).amin(1)).tolist()
    good, bad = ([c for c, ok in zip(closeness, outcome, strict=True) if ok == which] for which in (True, False))
    return Found(
        correlation=progress["rank_correlation"],
        auc=progress["auc"],
        transport=transport["auc"],
        mean_of_successes=auc(good, bad),
        clusters=clusters,
        episodes=len(spans),
    )


def clustered(vectors: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """Centres of clusters of successes as published, and how many there are; the mean of all where there is none.

    Two vectors, standardised, are neighbours within 0.5; any two neighbours begin a cluster (DBSCAN with two points at least).
    """
    import torch

    table = torch.stack(list(vectors))
    scaled = (table - table.mean(0)) / table.std(0, correction=0).clamp(min=1e-9)
    near = torch.cdist(scaled, scaled) <= 0.5
    label = torch.arange(len(table))
    for _ in range(len(table)):
        label = torch.where(near, label[None], len(table)).amin(1)
    groups = [table[label == i] for i in label.unique() if int((label == i).sum()) > 1]
    return ([g.mean(0) for g in groups] or [table.mean(0)]), len(groups)


class _Clocked:
    """A VecEnv whose steps are timed."""

    def __init__(self, env: Any) -> None:
        self.env, self.spent = env, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, action: Tensor) -> Any:
        started = time.process_time()
        stepped = self.env.step(action)
        self.spent += time.process_time() - started
        return stepped


def _cost(kind: str, task: str, weights: Path) -> Row:
    """CPU time of rewarding 256 worlds beside that of stepping them, over an episode with its end and what begins after it."""
    import torch

    import sim
    from rewards import files
    from rewards.environment import Rewarded
    from sinew.cli.reward_situation import situation

    env: Any = _Clocked(sim.MujocoVecEnv(sim.make_interface(task), ENVS))
    try:
        file = weights.with_name(f"{weights.stem}-{kind}.json")
        for module in files.MODULES:
            import_module(module)
        files.save(file, kind, files.KINDS.get(kind)(weights=weights.name), {})
        rewarded = Rewarded(env, files.build(file, situation(env.interface, 0.99, ENVS)))
        rewarded.reset(0)
        low, high = (torch.tensor(b) for b in (env.action_spec.low, env.action_spec.high))
        whole, steps = 0.0, env.max_episode_steps + 5
        for _ in range(steps):
            action = low + (high - low) * torch.rand(ENVS, env.action_spec.dim)
            started = time.process_time()
            rewarded.step(action)
            whole += time.process_time() - started
    finally:
        env.close()
    share = whole / env.spent - 1.0
    told = f"{1e3 * env.spent / steps:.1f} ms; rewarding: {1e3 * (whole - env.spent) / steps:.2f} ms"
    return Row(
        name=f"{kind} reward of {ENVS} worlds, CPU time as a share of their steps", unit="", ours=share,
        peer=f"stepping {task}, a whole episode and the start of the next: {told}",
        target=f"<= {MOST_SHARE:g}", holds=share <= MOST_SHARE, higher_is_better=False,
    )  # fmt: skip
