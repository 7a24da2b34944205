"""Learning from recorded steps alone: the same learners, replay and gate as learning by doing, without any environment.

A method here is one of `rl.runner` as well, so what was learned from the data goes on in the world with the same critics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from safetensors.torch import save
from torch import Tensor, nn

from rl.batch import Batch, FrameSpec, Sampler, Way
from rl.checkpoint import read_state, write_state
from rl.gate import Evaluation, Gate
from rl.learner import Frames, Learner
from rl.loop_config import LoopConfig, LoopResult
from rl.replay import Ring
from rl.runner import ACTOR_FILE, Runner
from sinew.config import to_json
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import Obs, VecEnv
from sinew.rundir import RunDir, atomic_write

STATE_FILE = "offline_state.safetensors"
FOLDER = "offline"
"""Folder, inside a run that goes on in the world, of what was learned from the data before."""
TOGETHER = 50
"""Updates whose batches are gathered at once."""


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(LoopConfig):
    """Settings of learning from data; `steps` and what belongs to it count only where learning goes on in the world."""

    offline_updates: int = 20_000
    """Updates on the data."""
    evaluate_updates: int = 5_000
    """Updates between evaluations and checkpoints."""
    exploration_std: float = 0.1
    """Noise on the action while learning in the world, for actors that are not random by themselves."""
    random_steps: int = 1_000
    critic_only_updates: int = 0
    n_step: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offline_updates < 1 or self.evaluate_updates < 1:
            raise InputError(f"offline_updates {self.offline_updates} and evaluate_updates {self.evaluate_updates} must be at least 1")
        if self.critic_head != "scalar" or self.reward_weights:
            raise InputError(f"critic_head {self.critic_head!r}: methods that learn from data have critics of their own, with one number")


class OfflineMethod:
    """What the methods of this kind share: features are all that is kept, and the actor chooses `stride` actions at a time.

    Args:
        actor: features (N, D) → action (N, stride * A).
        observe: observations → features (N, D).
        action_dim: A.
        config: settings.
        num_envs: worlds, where learning goes on in some.
        stride: actions that are chosen together.
    """

    anchor = None

    def __init__(
        self,
        actor: nn.Module,
        observe: Callable[[Obs], Tensor],
        action_dim: int,
        config: OfflineConfig,
        *,
        num_envs: int = 1,
        stride: int = 1,
    ) -> None:
        self.actor, self.observe, self.action_dim, self.config, self.stride = actor, observe, action_dim, config, stride
        self.learner: Learner | None = None
        self._queue = torch.zeros(num_envs, stride, action_dim)
        self._used = torch.full((num_envs,), stride)

    def build(self, frames: Frames) -> Learner:
        """A fresh learner for such frames."""
        raise NotImplementedError

    def make_learner(self, frames: Frames) -> Learner:
        """The learner, made once: what was learned from the data is gone on with."""
        self.learner = self.learner or self.build(frames)
        return self.learner

    def choose(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Actions (N, stride * A) to try in the world."""
        u = self.actor(features)
        return u + self.config.exploration_std * torch.randn(u.shape, generator=generator).to(u)

    def reset(self, ids: Sequence[int] | None, seeds: Sequence[int]) -> None:
        """New actions are due."""
        self._used[slice(None) if ids is None else list(ids)] = self.stride

    def look(self, obs: Obs, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Features, and the action of this tick."""
        features = self.observe(obs)
        due = torch.nonzero(self._used >= self.stride)[:, 0]
        if len(due):
            with torch.no_grad():
                chosen = self.choose(features[due], generator).clamp(-1, 1)
            self._queue[due], self._used[due] = chosen.view(len(due), self.stride, -1).cpu(), 0
        action = self._queue[torch.arange(len(self._used)), self._used]
        self._used += 1
        return {"features": features, "action": action.to(features)}

    def look_last(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """Features."""
        return {"features": self.observe(obs)}

    def act(self, frames: Frames, step: int, generator: torch.Generator) -> Tensor:
        """The action of this tick."""
        return frames["action"]

    def layout(self, frames: Frames) -> FrameSpec:
        """Features are kept."""
        return {"features": (tuple(frames["features"].shape[1:]), frames["features"].dtype)}

    def prepare(self, batch: Batch) -> Batch:
        """As it is."""
        return batch


class Overlapping:
    """A ring whose chunks may start at any step of an episode, not only where its own plans did."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._known: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        """Frames that are held."""
        return len(self.ring)

    def sample(self, batch_size: int, *, updates: int = 1, generator: torch.Generator | None = None, **way: Unpack[Way]) -> list[Batch]:
        """As `Ring.sample`; a chunk that the episode's end cuts short keeps its true `span`."""
        window = way.get("n_step", 1) * way.get("stride", 1)
        pool = self._starts(window)
        if not len(pool):
            raise InputError(f"the replay holds no {window} steps in a row; add more before sampling")
        start = pool[torch.randint(len(pool), (batch_size * updates,), generator=generator, device=pool.device)]
        batch = self.ring.gather(start, **way)
        return [batch.map(lambda x, i=i: x[i * batch_size : (i + 1) * batch_size]) for i in range(updates)]

    def _starts(self, window: int) -> Tensor:
        """Steps whose next `window` steps, or all until their episode's end, are there."""
        ring, key = self.ring, (self.ring.count, window)
        if self._known is None or self._known[0] != key:
            pool, N = ring.starts(), ring.num_envs
            first = max(ring.count - window, ring.count - len(ring) // N)
            times = torch.arange(first, ring.count, device=ring.device)
            ended = (ring.terminated | ring.truncated).view(-1, N)
            ended = ended[times % len(ended)]
            ends_later = ended.flip(0).cumsum(0).flip(0) > 0
            time, world = pool // N, pool % N
            self._known = key, pool[(time < first) | ends_later[(time - first).clamp(min=0), world]]
        return self._known[1]


def train_offline(
    method: OfflineMethod,
    data: Ring,
    run: RunDir,
    config: OfflineConfig,
    *,
    env: VecEnv | None = None,
    base: Evaluation | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> LoopResult:
    """Learn from recorded episodes, then, where there are worlds, go on in them; the actor ends with its best weights.

    Args:
        method: what is learned; its actor is changed in place.
        data: recorded episodes (`rl.episodes.add_episode`).
        run: folder for the training state, the actor and metrics; interrupted learning there goes on.
        config: settings.
        env: worlds to go on in for `config.steps` steps, half of each batch from the data; None for the data alone.
        base: what stands before this learning, to be reported.
        evaluate: as for `rl.residual.train_residual`.
        progress: told updates with q and loss, then steps.

    Raises:
        InputError: no data, or the run was made with another config.
        DataError: the training state of the run is damaged or does not fit.
    """
    if not len(data):
        raise InputError("the data hold no step to learn from; record or collect episodes first")
    sampler = Overlapping(data) if method.stride > 1 else data
    folder = run if env is None else RunDir(run / FOLDER)
    folder.path.mkdir(parents=True, exist_ok=True)
    result = _Offline(method, data, sampler, folder, config, base, evaluate, progress).run_to_end()
    if env is None:
        return result
    runner = Runner(env, method, run, config, data, evaluate, progress)
    if method.stride > 1:
        runner.draw_through(Overlapping)
    return runner.run_to_end()


class _Offline:
    """Updates on data, and their state."""

    def __init__(
        self,
        method: OfflineMethod,
        data: Ring,
        sampler: Sampler,
        run: RunDir,
        config: OfflineConfig,
        base: Evaluation | None,
        evaluate: Callable[[], Mapping[str, Any]] | None,
        progress: Progress,
    ) -> None:
        self.method, self.sampler, self.run, self.config = method, sampler, run, config
        self.base, self.evaluate, self.progress = base, evaluate, progress
        self.learner = method.make_learner({k: data.frames(k)[0] for k in data.frame})
        self.rng = torch.Generator(data.device).manual_seed(config.seed + 2)
        self.gate = Gate(method.actor)
        self.finished = False
        self.described = {**to_json(config), "frames": len(data), "actions": float(data.action.double().sum())}

    def run_to_end(self) -> LoopResult:
        config, learner = self.config, self.learner
        if (self.run / STATE_FILE).exists():
            self._load()
        self.progress.start("learn from data", config.offline_updates, learner.updates)
        while learner.updates < config.offline_updates:
            before = learner.updates
            self._update(min(TOGETHER, config.offline_updates - before))
            self.progress.advance(learner.updates - before)
            if learner.updates // config.evaluate_updates != before // config.evaluate_updates and learner.updates < config.offline_updates:
                self._report()
                self._save()
        if not self.finished:
            self._report()
            self.finished = True
            self._save()
        if self.evaluate is not None:
            self.gate.restore()
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in self.method.actor.state_dict().items()}
        atomic_write(self.run / ACTOR_FILE, save(weights))
        return LoopResult(0, learner.updates, self.base, self.gate.best, tuple(self.gate.history), 0, f"all {learner.updates} updates done")

    def _update(self, number: int) -> None:
        config = self.config
        options: dict[str, Any] = {"n_step": config.n_step, "gamma": config.gamma, "stride": self.method.stride, "generator": self.rng}
        for batch in self.sampler.sample(config.batch_size, updates=number, **options):
            self.learner.update(self.method.prepare(batch))

    def _report(self) -> None:
        metrics = self.learner.read_metrics()
        row: dict[str, Any] = {"step": 0, "updates": self.learner.updates, **metrics}
        if self.evaluate is not None:
            evaluation = Evaluation.of(self.evaluate(), self.learner.updates)
            kept = self.gate.consider(evaluation)
            row |= {"k": evaluation.k, "n": evaluation.n, "success": evaluation.rate, "kept": kept}
        self.run.log(**row)
        self.progress.advance(0, **{k: row[k] for k in ("q", "loss", "success") if k in row})

    def _save(self) -> None:
        (tensors, numbers), (best, measured) = self.learner.state(), self.gate.state()
        tensors |= {"replay_rng": self.rng.get_state()} | best
        state = {"learner": numbers, "described": self.described, "finished": self.finished} | measured
        write_state(self.run / STATE_FILE, tensors, state)

    def _load(self) -> None:
        tensors, state = read_state(self.run / STATE_FILE)
        if "described" not in state:
            raise DataError(f"{self.run / STATE_FILE} is no state of learning from data; choose another --out")
        self.run.check_same(state["described"], self.described)
        self.learner.load_state(tensors, state["learner"])
        self.rng.set_state(tensors["replay_rng"])
        self.gate.load_state(tensors, state)
        self.finished = state["finished"]
