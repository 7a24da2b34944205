"""From chunks to one action per tick, for N worlds: owns time, observation history and the noise of every episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from policies.base import require
from policies.goals import GOAL, PREFIX
from policies.language import instructions
from policies.randomness import mix, normal
from policies.realtime import RealTimeGuidance, check_delay, continuing
from sinew.errors import InputError, SafetyStop, SpecError
from sinew.protocols import Obs, Policy
from sinew.specs import TASK

MODES = ("sync", "ensemble", "async", "rtc")
ENSEMBLE_DECAY = 0.01
"""Weight of the i-th oldest prediction in the ensemble is exp(-ENSEMBLE_DECAY * i)."""


class ChunkExecutor:
    """Executes a chunked policy in N worlds.

    The noise of a world's q-th chunk is a function of its episode's seed and q alone: what a world does depends
    neither on how many others there are nor on what they do (actions agree to 1e-5 across batch sizes).

    Modes:
        sync: a chunk's first `act_steps` actions are executed, then the next chunk is sampled from the newest
            observation. All worlds that need a chunk at a tick share one call of the policy.
        ensemble: a chunk is sampled at every tick; the executed action is the weighted mean of all predictions made
            for this tick, weights exp(-0.01 i) with i = 0 for the oldest (Zhao et al. 2023, arXiv:2304.13705).
        async: a chunk that is asked for at one tick is there `delay` ticks later; until then the old one goes on, and then
            the new one is entered where time has come to. The next is asked for `act_steps` ticks after the last. An
            episode's first chunk is waited for before time begins.
        rtc: as async, and the new chunk is sampled as a continuation of the old one (`policies.realtime`).
    Without delay, async is sync. The delay is counted in ticks, so that an evaluation does not depend on the machine; on a
    robot, `policies.live` computes chunks while the old one is executed.

    Args:
        policy: a policy; its `correct` is applied by `act` where it has the capability.
        num_envs: N.
        mode: one of `MODES`.
        act_steps: actions executed of each chunk, 1..H, with a delay d between d and H - d; None for the most. Ensemble
            samples at every tick.
        seed: noise of episodes that are reset without a seed.
        noise: None draws N(0, I); "stream" draws it for all worlds at once, where the policy is, which makes what a world does depend
            on the others, and is for learning in thousands of them; "zero" is the zero vector; a tensor (*noise_shape) is used for
            every chunk.
        steps: sampling steps; None for the policy's own.
        device: where the policy is; observations are moved there, actions come back on the observations' device.
        instruction: what a language policy shall do, one text or one per world; for other policies it has no effect.
        delay: ticks d from an observation to its chunk, for async and rtc.
        jacobian: how rtc is guided, "vjp" or "identity"; see `RealTimeGuidance`.

    Raises:
        InputError: a mode, act_steps, delay or noise that does not exist for this policy, or a language policy without
            instruction.
        SpecError: rtc with a policy that gives no denoiser.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int,
        *,
        mode: Literal["sync", "ensemble", "async", "rtc"] = "sync",
        act_steps: int | None = None,
        seed: int = 0,
        noise: Literal["zero", "stream"] | Tensor | None = None,
        steps: int | None = None,
        device: torch.device | str = "cpu",
        instruction: str | Sequence[str] | None = None,
        delay: int = 0,
        jacobian: Literal["vjp", "identity"] = "vjp",
    ) -> None:
        spec = policy.spec
        act_steps = _act_steps(mode, spec.horizon, act_steps, delay)
        if mode == "rtc":
            require(policy, "denoise", "executor rtc")
        self.policy, self.num_envs, self.mode, self.act_steps = policy, num_envs, mode, act_steps
        self.delay = delay
        self.jacobian: Literal["vjp", "identity"] = jacobian
        self.seed, self.steps, self.device = seed, steps, torch.device(device)
        self.instructions = instructions(instruction, num_envs, spec)
        streams = isinstance(noise, str) and noise == "stream"
        self._fixed_noise = None if streams else _fixed_noise(noise, spec.noise_shape)
        self._stream = torch.Generator(self.device).manual_seed(seed) if streams else None
        self._corrects = "correct" in spec.capabilities
        # Chunks of every world, the newest first: the current one and, while a delayed one is under way, that before it;
        # ensemble keeps one per tick of the horizon.
        kept = {"sync": 1, "ensemble": spec.horizon}.get(mode, 2)
        self._chunks = torch.zeros(num_envs, kept, spec.horizon, spec.action_dim, device=self.device)
        self._held = np.zeros(num_envs, dtype=np.int64)  # chunks that are filled
        self._used = np.full(num_envs, act_steps)  # ticks since the newest chunk was asked for
        self._queries = np.zeros(num_envs, dtype=np.int64)  # chunks drawn in this episode
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        self._seeds = [mix(seed, world, 0) for world in range(num_envs)]
        self._history: dict[str, Tensor] = {}
        self._goals: dict[str, Tensor] = {}
        self._started = np.zeros(num_envs, dtype=bool)

    def reset(
        self,
        ids: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        goals: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Forget chunks and history of worlds `ids` (None for all), at the end of every episode, however it ended.

        Args:
            ids: worlds whose next observation is the first of an episode.
            seeds: one seed per world of `ids`; fixes the noise of its episode. Left out: the next of the world's own.
            goals: {observation key: (len(ids), D)} that is to be reached in these worlds, and in the others what they had;
                None for no goals in any world.

        Raises:
            InputError: the numbers of seeds, goals and worlds differ, or some worlds would have a goal and others none.
            SpecError: goals for a policy that takes none.
        """
        ids = self._ids(ids)
        self._take_goals(ids, goals)
        if seeds is not None and len(seeds) != len(ids):
            raise InputError(f"{len(seeds)} seeds given for {len(ids)} worlds")
        if self._stream is None:
            for place, world in enumerate(ids):
                self._episodes[world] += 1
                self._seeds[world] = mix(self.seed, world, int(self._episodes[world])) if seeds is None else mix(int(seeds[place]))
        elif seeds is not None and len(ids) == self.num_envs:
            self._stream.manual_seed(mix(*seeds))
        self._chunks[ids] = 0.0  # what was not finite must not reach the guidance of the next chunks
        self._held[ids], self._used[ids], self._queries[ids] = 0, self.act_steps, 0
        self._started[ids] = False

    def plan(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor:
        """Next planned actions (N, A) in [-1, 1], before any correction; advances the chunk.

        Args:
            obs: {key: (N, ...)}, or (len(ids), ...) with `ids`.
            ids: worlds to plan for; the others are left as they are.

        Raises:
            SpecError: an observation is missing or has another shape.
            SafetyStop: a planned action is not finite.
        """
        ids = self._ids(ids)
        device = self._check(obs, ids)
        window = self._window(obs, ids)
        chunks, used, held, asked = self._ready(window, ids)
        self._remember(window, ids)
        self._chunks[ids], self._used[ids], self._held[ids] = chunks, used + 1, held
        self._queries[asked] += 1
        return self._finite(self._read(chunks, used, held), obs, ids).to(device)

    def act(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor:
        """Next actions (N, A) in [-1, 1], corrected where the policy corrects; arguments and errors as `plan`."""
        return self.corrected(obs, self.plan(obs, ids), ids)

    def corrected(self, obs: Obs, planned: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """Planned actions (N, A) in [-1, 1] as the policy corrects them; as they are where it has no correction.

        Args:
            obs: {key: (N, ...)}, the observations that were planned from.
            planned: what `plan` or `peek` gave for them.
            ids: their worlds.

        Raises:
            SafetyStop: a corrected action is not finite.
        """
        if not self._corrects:
            return planned
        with torch.no_grad():
            on_device = {key: obs[key].to(self.device) for key in self.policy.spec.observation}
            on_device = self._told(on_device, self._ids(ids))
            corrected = self.policy.correct(on_device, planned.to(self.device))  # type: ignore[attr-defined]
        return self._finite(corrected.clamp(-1, 1), obs, self._ids(ids)).to(planned.device)

    def context(self, obs: Obs, ids: Sequence[int] | None = None, *, remember: bool = True) -> Any:
        """The policy's context of the newest observations with their history, for a caller that samples by itself.

        Args:
            obs: {key: (len(ids), ...)}.
            ids: the worlds; None for all.
            remember: whether the observations become part of the history.
        """
        ids = self._ids(ids)
        self._check(obs, ids)
        window = self._window(obs, ids)
        if remember:
            self._remember(window, ids)
        with torch.no_grad():
            return self.policy.encode(self._told(window, ids))

    def peek(self, obs: Obs, ids: Sequence[int]) -> Tensor:
        """Actions (len(ids), A) that `plan` would give for worlds `ids`; neither queue, history nor noise moves on.

        Args:
            obs: {key: (len(ids), ...)}.
            ids: the worlds.
        """
        ids = self._ids(ids)
        device = self._check(obs, ids)
        drawn = None if self._stream is None else self._stream.get_state()
        chunks, used, held, _ = self._ready(self._window(obs, ids), ids)
        if self._stream is not None and drawn is not None:
            self._stream.set_state(drawn)
        return self._finite(self._read(chunks, used, held), obs, ids).to(device)

    # ------------------------------------------------------------ chunks

    def _ready(self, window: Mapping[str, Tensor], ids: list[int]) -> tuple[Tensor, np.ndarray, np.ndarray, list[int]]:
        """Chunks (n, K, H, A), actions used and chunks held of worlds `ids` with new chunks where they are due.

        The last part names the worlds that got one; nothing of the executor is changed.
        """
        chunks, used, held = self._chunks[ids], self._used[ids], self._held[ids]
        due = np.flatnonzero(used >= self.act_steps)
        if len(due) == 0:
            return chunks, used, held, []
        worlds = [ids[place] for place in due]
        window = window if len(due) == len(ids) else {key: value[due] for key, value in window.items()}
        guidance = self._guidance(chunks[due, 0, self.act_steps :], held[due] > 0)
        fresh = self._query(self._told(window, worlds), self._noise(worlds), guidance)
        chunks[due] = torch.cat([fresh.unsqueeze(1), chunks[due, :-1]], dim=1)
        used[due], held[due] = 0, np.minimum(held[due] + 1, chunks.shape[1])
        return chunks, used, held, worlds

    def _guidance(self, left: Tensor, started: np.ndarray) -> tuple[RealTimeGuidance, ...]:
        """What holds new chunks to what is left (n, L, A) of the current ones, in worlds that have `started` (n,)."""
        if self.mode != "rtc" or not left.shape[1] or not started.any():
            return ()
        return (continuing(left, self.policy.spec.horizon, self.delay, torch.from_numpy(started), self.jacobian),)

    def _noise(self, worlds: Sequence[int]) -> Tensor:
        """The noise (len(worlds), *noise_shape) of the next chunks."""
        if self._fixed_noise is not None:
            return self._fixed_noise.expand(len(worlds), *self._fixed_noise.shape)
        shape = self.policy.spec.noise_shape
        if self._stream is not None:
            return torch.randn(len(worlds), *shape, generator=self._stream, device=self.device)
        return torch.stack([normal(shape, self._seeds[world], int(self._queries[world])) for world in worlds])

    def _query(self, window: Mapping[str, Any], noise: Tensor, guidance: Sequence[Any] = ()) -> Tensor:
        """New chunks (n, H, A) of observations and noise, from one call of the policy."""
        with torch.no_grad():
            context = self.policy.encode(window)
            noise = noise.unsqueeze(1).to(self.device)
            return self.policy.sample(context, noise=noise, steps=self.steps, guidance=guidance).actions[:, 0]

    def _read(self, chunks: Tensor, used: np.ndarray, held: np.ndarray) -> Tensor:
        """The actions (n, A) for this tick out of chunks (n, K, H, A), the newest first."""
        if self.mode != "ensemble":
            waits = (used < self.delay) & (held > 1)  # the newest is under way; the one before it was asked for act_steps earlier
            return chunks[np.arange(len(used)), waits.astype(np.int64), used + waits * self.act_steps]
        age = np.arange(chunks.shape[1])
        weight = np.exp(-ENSEMBLE_DECAY * (held[:, None] - 1 - age)) * (age < held[:, None])
        weight = torch.from_numpy(weight / weight.sum(-1, keepdims=True)).to(chunks)
        return (weight.unsqueeze(-1) * chunks[:, age, age]).sum(1)

    # ------------------------------------------------------------ observations

    def _window(self, obs: Obs, ids: list[int]) -> dict[str, Tensor]:
        """The To observations (len(ids), To, ...) that end with `obs`; an episode's first one is repeated."""
        window, n_obs_steps = {}, self.policy.spec.n_obs_steps
        for key in self.policy.spec.observation:
            newest = obs[key].to(self.device).unsqueeze(1)
            if n_obs_steps > 1:
                repeated = newest.expand(-1, n_obs_steps - 1, *newest.shape[2:])
                if key in self._history:
                    started = torch.from_numpy(self._started[ids]).to(self.device).view(-1, *[1] * (newest.ndim - 1))
                    repeated = torch.where(started, self._history[key][ids], repeated)
                newest = torch.cat([repeated, newest], dim=1)
            window[key] = newest
        return window

    def _remember(self, window: Mapping[str, Tensor], ids: list[int]) -> None:
        for key, value in window.items():
            if value.shape[1] > 1:
                if key not in self._history:
                    self._history[key] = value.new_zeros((self.num_envs, value.shape[1] - 1, *value.shape[2:]))
                self._history[key][ids] = value[:, 1:]
        self._started[ids] = True

    def _told(self, obs: Mapping[str, Tensor], worlds: Sequence[int]) -> dict[str, Any]:
        """Observations of `worlds` with their instructions and goals, where the policy was given any."""
        told: dict[str, Any] = {**obs, **{key: goal[list(worlds)] for key, goal in self._goals.items()}}
        return {**told, TASK: [self.instructions[world] for world in worlds]} if self.instructions else told

    def _take_goals(self, ids: Sequence[int], goals: Mapping[str, Tensor] | None) -> None:
        if goals is None:
            self._goals = {}
            return
        require(self.policy, GOAL, "an executor with goals")
        for key, goal in goals.items():
            if len(goal) != len(ids):
                raise InputError(f"{len(goal)} goals {key!r} given for {len(ids)} worlds")
            kept = self._goals.get(PREFIX + key)
            if kept is None and len(ids) != self.num_envs:
                raise InputError(f"goals for {len(ids)} of {self.num_envs} worlds: give every world one first")
            kept = goal.new_zeros(self.num_envs, *goal.shape[1:]).to(self.device) if kept is None else kept
            kept[ids] = goal.to(self.device)
            self._goals[PREFIX + key] = kept

    # ------------------------------------------------------------ checks

    def _ids(self, ids: Sequence[int] | None) -> list[int]:
        return list(range(self.num_envs)) if ids is None else [int(i) for i in ids]

    def _check(self, obs: Obs, ids: Sequence[int]) -> torch.device:
        """Compare observations with the policy's spec; gives the device that they are on."""
        device = torch.device("cpu")
        for key, want in self.policy.spec.observation.tensors.items():
            if key not in obs:
                raise SpecError(f"the policy needs observation {key!r}; given are {', '.join(obs)}")
            if tuple(obs[key].shape) != (len(ids), *want.shape):
                raise SpecError(f"observation {key!r} has shape {tuple(obs[key].shape)}, expected {(len(ids), *want.shape)}")
            device = obs[key].device
        return device

    def _finite(self, actions: Tensor, obs: Obs, ids: Sequence[int]) -> Tensor:
        """`actions`, or a stop that names the world and the cause when one is not finite."""
        good = torch.isfinite(actions).all(-1)
        if bool(good.all()):
            return actions
        place = int((~good).nonzero()[0, 0])
        keys = [key for key in self.policy.spec.observation if obs[key].is_floating_point() and not torch.isfinite(obs[key][place]).all()]
        cause = f"its observation {keys[0]!r} is not finite" if keys else "its observation is finite, so weights or noise are at fault"
        self.reset([ids[place]])
        raise SafetyStop(f"the policy gave a non-finite action in world {ids[place]}: {cause}")


class CorrectedPlans:
    """An executor whose plans are already corrected where its policy corrects.

    A correction that is learned on top of a policy with a correction of its own needs it: it sees, stores and executes
    what that policy would do, not what it would have done without its correction. For other policies nothing changes.

    Args:
        executor: of the policy that is built upon.
    """

    def __init__(self, executor: ChunkExecutor) -> None:
        self.executor = executor

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """See `ChunkExecutor.reset`."""
        self.executor.reset(ids, seeds)

    def plan(self, obs: Obs) -> Tensor:
        """Corrected actions (N, A) in [-1, 1]; advances the chunk."""
        return self.executor.act(obs)

    act = plan

    def peek(self, obs: Obs, ids: Sequence[int]) -> Tensor:
        """Corrected actions (len(ids), A) that `plan` would give for worlds `ids`; nothing moves on."""
        return self.executor.corrected(obs, self.executor.peek(obs, ids), ids)


def _act_steps(mode: str, horizon: int, act_steps: int | None, delay: int) -> int:
    """Ticks between two chunks, after a check of everything that it depends on.

    Raises:
        InputError: an unknown mode, or numbers that do not fit it.
    """
    if mode not in MODES:
        raise InputError(f"unknown executor mode {mode!r}: known are {', '.join(MODES)}")
    if mode in ("async", "rtc"):
        return check_delay(horizon, delay, act_steps)
    if delay:
        raise InputError(f"executor {mode} waits for its chunks and knows no delay, given {delay}: use async or rtc")
    if mode == "ensemble" and act_steps not in (None, 1):
        raise InputError(f"ensemble samples a chunk at every tick: act_steps must be 1 or left out, not {act_steps}")
    chosen = (1 if mode == "ensemble" else horizon) if act_steps is None else act_steps
    if not 1 <= chosen <= horizon:
        raise InputError(f"act_steps {chosen} is not within 1..{horizon}, the policy's horizon")
    return chosen


def _fixed_noise(noise: Any, shape: tuple[int, ...]) -> Tensor | None:
    """The noise used for every chunk, or None when it is drawn."""
    if noise is None:
        return None
    if isinstance(noise, str):
        if noise != "zero":
            raise InputError(f'unknown noise {noise!r}: give None, "zero", "stream" or a tensor of shape {shape}')
        return torch.zeros(shape)
    fixed = torch.as_tensor(noise, dtype=torch.float32).cpu()
    if tuple(fixed.shape) != shape:
        raise InputError(f"fixed noise has shape {tuple(fixed.shape)}, the policy's noise_shape is {shape}")
    return fixed
