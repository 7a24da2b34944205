"""From chunks to one action per tick, for N worlds: owns time, observation history and the noise of every episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from policies.randomness import mix, normal
from sinew.errors import InputError, SafetyStop, SpecError
from sinew.protocols import Obs, Policy

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

    Args:
        policy: a policy; its `correct` is applied by `act` where it has the capability.
        num_envs: N.
        mode: "sync" or "ensemble".
        act_steps: actions executed of each chunk, 1..H; None for all H. Ensemble samples at every tick.
        seed: noise of episodes that are reset without a seed.
        noise: None draws N(0, I); "zero" is the zero vector; a tensor (*noise_shape) is used for every chunk.
        steps: sampling steps; None for the policy's own.
        device: where the policy is; observations are moved there, actions come back on the observations' device.

    Raises:
        InputError: a mode, act_steps or noise that does not exist for this policy.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int,
        *,
        mode: Literal["sync", "ensemble"] = "sync",
        act_steps: int | None = None,
        seed: int = 0,
        noise: Literal["zero"] | Tensor | None = None,
        steps: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        spec = policy.spec
        if mode not in ("sync", "ensemble"):
            raise InputError(f"unknown executor mode {mode!r}: known are sync, ensemble")
        if mode == "ensemble" and act_steps not in (None, 1):
            raise InputError(f"ensemble samples a chunk at every tick: act_steps must be 1 or left out, not {act_steps}")
        act_steps = (1 if mode == "ensemble" else spec.horizon) if act_steps is None else act_steps
        if not 1 <= act_steps <= spec.horizon:
            raise InputError(f"act_steps {act_steps} is not within 1..{spec.horizon}, the policy's horizon")
        self.policy, self.num_envs, self.mode, self.act_steps = policy, num_envs, mode, act_steps
        self.seed, self.steps, self.device = seed, steps, torch.device(device)
        self._fixed_noise = _fixed_noise(noise, spec.noise_shape)
        self._corrects = "correct" in spec.capabilities
        # Chunks of every world, the newest first; sync keeps one, ensemble one per tick of the horizon.
        kept = spec.horizon if mode == "ensemble" else 1
        self._chunks = torch.zeros(num_envs, kept, spec.horizon, spec.action_dim, device=self.device)
        self._held = [0] * num_envs
        self._used = [act_steps] * num_envs
        self._queries = [0] * num_envs
        self._episodes = [0] * num_envs
        self._seeds = [mix(seed, world, 0) for world in range(num_envs)]
        self._history: dict[str, Tensor] = {}
        self._started = [False] * num_envs

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forget chunks and history of worlds `ids` (None for all), at the end of every episode, however it ended.

        Args:
            ids: worlds whose next observation is the first of an episode.
            seeds: one seed per world of `ids`; fixes the noise of its episode. Left out: the next of the world's own.
        """
        ids = range(self.num_envs) if ids is None else [int(i) for i in ids]
        if seeds is not None and len(seeds) != len(ids):
            raise InputError(f"{len(seeds)} seeds given for {len(ids)} worlds")
        for place, world in enumerate(ids):
            self._episodes[world] += 1
            self._seeds[world] = mix(self.seed, world, self._episodes[world]) if seeds is None else mix(int(seeds[place]))
            self._held[world], self._used[world], self._queries[world] = 0, self.act_steps, 0
            self._started[world] = False

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
        self._history_store(window, ids)
        needy = [place for place, world in enumerate(ids) if self._used[world] >= self.act_steps]
        if needy:
            fresh = self._query(window, ids, needy)
            for place, chunk in zip(needy, fresh, strict=True):
                self._push(ids[place], chunk)
        actions = torch.stack([self._read(world, self._chunks[world], self._used[world], self._held[world]) for world in ids])
        for world in ids:
            self._used[world] += 1
        return self._finite(actions, obs, ids).to(device)

    def act(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor:
        """Next actions (N, A) in [-1, 1], corrected where the policy corrects; arguments and errors as `plan`."""
        planned = self.plan(obs, ids)
        if not self._corrects:
            return planned
        with torch.no_grad():
            on_device = {key: obs[key].to(self.device) for key in self.policy.spec.observation}
            corrected = self.policy.correct(on_device, planned.to(self.device))  # type: ignore[attr-defined]
        return self._finite(corrected.clamp(-1, 1), obs, self._ids(ids)).to(planned.device)

    def peek(self, obs: Obs, ids: Sequence[int]) -> Tensor:
        """Actions (len(ids), A) that `plan` would give for worlds `ids`; neither queue, history nor noise moves on.

        Args:
            obs: {key: (len(ids), ...)}.
            ids: the worlds.
        """
        ids = self._ids(ids)
        device = self._check(obs, ids)
        needy = [place for place, world in enumerate(ids) if self._used[world] >= self.act_steps]
        fresh = dict(zip(needy, self._query(self._window(obs, ids), ids, needy, keep=True), strict=True)) if needy else {}
        actions = []
        for place, world in enumerate(ids):
            chunks, used, held = self._chunks[world], self._used[world], self._held[world]
            if place in fresh:
                chunks, used = torch.cat([fresh[place][None], chunks[:-1]]), 0
                held = min(held + 1, len(chunks))
            actions.append(self._read(world, chunks, used, held))
        return self._finite(torch.stack(actions), obs, ids).to(device)

    # ------------------------------------------------------------ chunks

    def _query(self, window: Mapping[str, Tensor], ids: Sequence[int], places: Sequence[int], keep: bool = False) -> Tensor:
        """New chunks (len(places), H, A) for worlds ids[place], from one call of the policy."""
        worlds = [ids[place] for place in places]
        if self._fixed_noise is None:
            noise = torch.stack([normal(self.policy.spec.noise_shape, self._seeds[w], self._queries[w]) for w in worlds])
        else:
            noise = self._fixed_noise.expand(len(worlds), *self._fixed_noise.shape)
        if not keep:
            for world in worlds:
                self._queries[world] += 1
        chosen = window if len(places) == len(ids) else {key: value[list(places)] for key, value in window.items()}
        with torch.no_grad():
            context = self.policy.encode(chosen)
            return self.policy.sample(context, noise=noise.unsqueeze(1).to(self.device), steps=self.steps).actions[:, 0]

    def _push(self, world: int, chunk: Tensor) -> None:
        kept = self._chunks.shape[1]
        if kept > 1:
            self._chunks[world, 1:] = self._chunks[world, :-1].clone()
        self._chunks[world, 0] = chunk
        self._held[world] = min(self._held[world] + 1, kept)
        self._used[world] = 0

    def _read(self, world: int, chunks: Tensor, used: int, held: int) -> Tensor:
        """The action (A,) for this tick out of chunks (K, H, A), the newest first."""
        if self.mode == "sync":
            return chunks[0, used]
        age = torch.arange(held, device=chunks.device)
        weight = torch.exp(-ENSEMBLE_DECAY * (held - 1 - age))
        return (weight[:, None] * chunks[age, age]).sum(0) / weight.sum()

    # ------------------------------------------------------------ observations

    def _window(self, obs: Obs, ids: Sequence[int]) -> dict[str, Tensor]:
        """The To observations (len(ids), To, ...) that end with `obs`; an episode's first one is repeated."""
        window, n_obs_steps = {}, self.policy.spec.n_obs_steps
        for key in self.policy.spec.observation:
            newest = obs[key].to(self.device).unsqueeze(1)
            if n_obs_steps > 1:
                repeated = newest.expand(-1, n_obs_steps - 1, *newest.shape[2:])
                if key in self._history:
                    started = torch.tensor([self._started[w] for w in ids], device=self.device)
                    started = started.view(-1, *[1] * (newest.ndim - 1))
                    repeated = torch.where(started, self._history[key][list(ids)], repeated)
                newest = torch.cat([repeated, newest], dim=1)
            window[key] = newest
        return window

    def _history_store(self, window: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        for key, value in window.items():
            if value.shape[1] > 1:
                if key not in self._history:
                    self._history[key] = value.new_zeros((self.num_envs, value.shape[1] - 1, *value.shape[2:]))
                self._history[key][list(ids)] = value[:, 1:]
        for world in ids:
            self._started[world] = True

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
        cause = f"its observation {keys[0]!r} is not finite" if keys else "its observation is finite, so the policy's weights or noise are at fault"
        self.reset([ids[place]])
        raise SafetyStop(f"the policy gave a non-finite action in world {ids[place]}: {cause}")


def _fixed_noise(noise: Any, shape: tuple[int, ...]) -> Tensor | None:
    """The noise used for every chunk, or None when it is drawn."""
    if noise is None:
        return None
    if isinstance(noise, str):
        if noise != "zero":
            raise InputError(f"unknown noise {noise!r}: give None, \"zero\" or a tensor of shape {shape}")
        return torch.zeros(shape)
    fixed = torch.as_tensor(noise, dtype=torch.float32).cpu()
    if tuple(fixed.shape) != shape:
        raise InputError(f"fixed noise has shape {tuple(fixed.shape)}, the policy's noise_shape is {shape}")
    return fixed
