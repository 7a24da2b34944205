"""Small data, worlds and policies with known answers, shared by the tests of this folder and the processes they start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import policies
from policies.advantage import AdvantageConditioned
from policies.base import EmbeddingContext, PolicyModule
from policies.best_of import BestOfN
from policies.bootstrapped import Bootstrapped
from policies.composed import Composed
from policies.consistency import ConsistencyPolicy
from policies.counts import CountConfig, make_counts
from policies.decorated import Decorated
from policies.denoising import DenoisingPolicy
from policies.encoders import ImageConfig
from policies.flow_q import FlowQ
from policies.goals import GoalSettings
from policies.guided import Guided
from policies.planned import Planned
from policies.relative import Relative
from policies.residual import Residual
from policies.steered import LatentSteered
from policies.vla.policy import VlaConfig
from policies.vla.tiny import TinyConfig
from sinew.protocols import Chunk
from sinew.specs import ENVIRONMENT_STATE, STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

CAMERA = "observation.images.front"
ACTION_SPEC = ActionSpec(kind="ee_delta", low=(-0.5, -2.0, 0.0), high=(0.5, 2.0, 1.0), rate_hz=20.0, names=("x", "y", "gripper"))
VIT = ImageConfig(kind="vit", patch_px=4, width=16, layers=1, heads=2, feature_dim=8, shift_px=2)
IMAGE = ImageConfig(channels=(8, 16), keypoints=8, feature_dim=8, groups=4, shift_px=2)


def policy_spec(*, camera: bool = False, horizon: int = 6, n_obs_steps: int = 1) -> PolicySpec:
    """A spec with two vectors and perhaps a camera of 16 x 20 pixels."""
    state = TensorSpec(shape=(4,), unit="m", names=("tool.x", "tool.y", "tool.z", "opening"))
    tensors = {STATE: state, ENVIRONMENT_STATE: TensorSpec(shape=(3,), unit="m", names=("block.x", "block.y", "block.z"))}
    if camera:
        tensors[CAMERA] = TensorSpec(shape=(16, 20, 3), dtype="uint8")
    return PolicySpec(observation=ObservationSpec(tensors), action=ACTION_SPEC, horizon=horizon, n_obs_steps=n_obs_steps)


class ToyData:
    """Episodes of random observations whose action is a smooth function of the state; every other one is told to turn left."""

    action_spec = ACTION_SPEC
    tasks = ("turn right", "turn left")

    def __init__(self, episodes: int = 6, length: int = 20, *, camera: bool = False, seed: int = 0) -> None:
        stream = np.random.default_rng(seed)
        frames = episodes * length
        self.length, self.num_episodes = length, episodes
        self.observation_spec = policy_spec(camera=camera).observation
        self.frames: dict[str, np.ndarray] = {
            STATE: stream.normal(1.0, 2.0, (frames, 4)).astype(np.float32),
            ENVIRONMENT_STATE: stream.normal(-1.0, 0.5, (frames, 3)).astype(np.float32),
        }
        if camera:
            self.frames[CAMERA] = stream.integers(0, 256, (frames, 16, 20, 3), dtype=np.uint8)
        self.actions = ACTION_SPEC.denormalize(np.tanh(self.frames[STATE][:, :3] - 1)).astype(np.float32)

    def __len__(self) -> int:
        return self.num_episodes * self.length

    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        return {key: {"mean": v.mean(0), "std": v.std(0)} for key, v in self.frames.items() if v.dtype != np.uint8}

    def column(self, key: str) -> np.ndarray:
        index = np.arange(len(self))
        made = {"task_index": index // self.length % 2, "frame_index": index % self.length}
        return made[key] if key in made else self.frames[key]

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        first = indices // self.length * self.length
        past = np.maximum(indices[:, None] - np.arange(n_obs_steps - 1, -1, -1), first[:, None])
        ahead = indices[:, None] + np.arange(horizon)
        last = first[:, None] + self.length - 1
        window = {key: self.frames[key][past] for key in (keys or self.frames)}
        return {**window, "action": self.actions[np.minimum(ahead, last)], "action_is_pad": ahead > last}


def batch(data: ToyData, spec: PolicySpec, rows: int = 8) -> dict[str, Any]:
    """A training batch with actions in [-1, 1], and with instructions where the policy takes them."""
    frames = np.arange(rows) * 5 % len(data)
    window = data.window(frames, spec.n_obs_steps, spec.horizon)
    tensors = {key: torch.from_numpy(value) for key, value in window.items()}
    told = {"task": [data.tasks[i] for i in data.column("task_index")[frames]]} if "language" in spec.capabilities else {}
    return {**tensors, **told, "action": ACTION_SPEC.normalize(tensors["action"])}


DENOISERS: dict[str, dict[str, Any]] = {
    "flow-mlp": {"backbone": "mlp"},
    "flow-unet": {"backbone": "unet"},
    "flow-transformer": {"backbone": "transformer"},
    "flow-mlp-camera": {"backbone": "mlp", "camera": True, "n_obs_steps": 2},
    "flow-unet-camera": {"backbone": "unet", "camera": True, "time_sampling": "beta"},
    "flow-mlp-vit": {"backbone": "mlp", "camera": True, "image": VIT},
    "diffusion-mlp": {"backbone": "mlp"},
    "diffusion-unet": {"backbone": "unet", "clip_sample": False},
    "edm-mlp": {"backbone": "mlp"},
    "edm-transformer": {"backbone": "transformer", "goal": GoalSettings(keys=(ENVIRONMENT_STATE,), scale=2.0)},
}
"""Settings of every denoising family, by "<type>-<variant>"."""
TINY_ACT = {"width": 32, "feedforward": 64, "style_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "energy-mlp": {"backbone": "mlp", "camera": True, "n_obs_steps": 2},
    "energy-transformer": {"backbone": "transformer"},
    "direct-camera": {"camera": True, "n_obs_steps": 2},
    "act-state": {**TINY_ACT},
    "act-camera": {**TINY_ACT, "camera": True, "latent_dim": 8, "latent_scale": 1.0},
}
"""Settings of the families that do not denoise."""
VLAS: dict[str, dict[str, Any]] = {"vla-bidirectional": {}, "vla-causal": {"attention": "causal", "n_obs_steps": 2}}
"""Settings of vision-language-action policies that know one instruction."""
CASES = (
    *DENOISERS,
    *OTHERS,
    *VLAS,
    *(f"residual-{name}" for name in ("flow-mlp", "flow-unet-camera", "edm-mlp")),
    "residual-residual-flow-mlp",
    *(f"consistency-{name}" for name in ("flow-mlp", "flow-unet-camera", "diffusion-unet", "edm-transformer", "vla-bidirectional")),
    "residual-consistency-flow-mlp",
    "composed-flow-mlp+diffusion-mlp",
    "composed-edm-mlp+flow-mlp-camera",
    "residual-composed-diffusion-mlp+residual-edm-mlp",
    "best_of-flow-mlp",
    "residual-best_of-composed-flow-mlp+edm-mlp",
    "guided-edm-transformer",
    "steered-flow-mlp",
    "steered-edm-transformer",
    "residual-steered-flow-unet-camera",
    "composed-guided-edm-transformer+flow-mlp",
    "bootstrapped-flow-unet-camera",
    "decorated-flow-mlp",
    "flow_q-flow-mlp-vit",
    "flow_q-flow-transformer",
    "advantage-flow-mlp",
    "advantage-edm-transformer",
    "advantage-vla-causal",
    "residual-advantage-diffusion-unet",
    "relative-flow-mlp",
    "planned-diffusion-mlp",
    "residual-relative-planned-edm-transformer",
    "steered-relative-flow-unet-camera",
)
"""Every registered policy, in its variants; the contract suite checks that none is left out."""


PLAIN = ("relative-", "planned-")
WRAPPERS = (*PLAIN, "composed-", "best_of-", "guided-", "steered-", "bootstrapped-", "decorated-", "flow_q-", "advantage-")


def wrapped(case: str) -> tuple[PolicyModule, ToyData]:
    """A wrapper around the policy that the rest of its name says; a composition around those that "+" joins."""
    kind, _, inner = case.partition("-")
    if kind == "composed":
        (one, data), (two, more) = (make(name) for name in inner.split("+"))
        data = more if two.spec.observation.images else data
        return Composed([one, two], (0.6, 0.4)).eval(), data
    base, data = make(inner)
    if kind in ("relative", "planned"):
        return (Relative(base) if kind == "relative" else Planned(base, zero_noise=True)).eval(), data
    if kind == "best_of":
        return BestOfN(base, 4, make_counts(base.spec.feature_dim, CountConfig(hidden=16))).eval(), data
    if kind == "steered":
        policy = LatentSteered(base, knots=2, hidden=(16,))
        policy.actor.active.fill_(True)
        return policy.eval(), data
    if kind in ("bootstrapped", "decorated"):
        return learned(kind, base), data
    if kind == "flow_q":
        return choosing(base) if inner == "flow-transformer" else FlowQ(base, (16,)).eval(), data
    if kind == "advantage":
        return told(base), data
    return Guided(base, goal_scale=1.5, reach=1.0).eval(), data


def learned(kind: str, base: PolicyModule) -> PolicyModule:
    """A base that is corrected by something that is not zero."""
    policy = Bootstrapped(base, (16,), (16,)) if kind == "bootstrapped" else Decorated(base, 0.3, (16,))
    part: Any = policy.chooser if isinstance(policy, Bootstrapped) else policy.actor
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.5)
    part.active.fill_(True)
    return policy.eval()


def choosing(base: PolicyModule) -> PolicyModule:
    """The best of three chunks of a flow, by critics that tell them apart."""
    policy = FlowQ(base, candidates=3, critic_hidden=(16,))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in policy.critic.weight:
            nn.init.normal_(weight)
    return policy.eval()


def told(base: PolicyModule) -> PolicyModule:
    """A policy that prefers better actions, more than it was taught."""
    policy = AdvantageConditioned(base, guidance=1.0 if base.assets() else 1.5)
    policy.active.fill_(True)
    if not policy.speaks:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            nn.init.normal_(policy.words, std=0.5)
    return policy.eval()


def make(case: str) -> tuple[PolicyModule, ToyData]:
    """The policy of a case, small and with a correction that is not zero, and data for it."""
    if case.startswith("residual-"):
        base, data = make(case.removeprefix("residual-"))
        policy = Residual(base, scale=0.4, hidden=(16,))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in policy.actor.parameters():
                nn.init.normal_(parameter, std=0.5)
        return policy.eval(), data
    if case.startswith("consistency-"):
        return jumping(case.removeprefix("consistency-"))
    if case.startswith(WRAPPERS):
        return wrapped(case)
    if case in VLAS:
        return vla(**VLAS[case])
    settings = dict((DENOISERS | OTHERS)[case])
    camera, n_obs_steps = settings.pop("camera", False), settings.pop("n_obs_steps", 1)
    data = ToyData(camera=camera)
    kind = case.partition("-")[0]
    small: dict[str, Any] = {"hidden": (64, 64), "channels": (16, 32), "embedding_dim": 32, "kernel": 3, "groups": 4}
    small |= {"layers": 2, "heads": 2, "steps": 4}
    cls = policies.registry.get(kind).Config
    known = {f.name for f in fields(cls)}
    config = cls(**{**{k: v for k, v in small.items() if k in known}, "image": IMAGE, **settings})
    spec = policy_spec(camera=camera, n_obs_steps=n_obs_steps, horizon=5)
    return policies.make(kind, spec, data.stats(), config, seed=3).eval(), data


def jumping(case: str) -> tuple[PolicyModule, ToyData]:
    """A policy of one step with the network of a denoiser, and an embedding of where to jump that is not zero."""
    base, data = make(case)
    assert isinstance(base, DenoisingPolicy)
    policy = ConsistencyPolicy(base)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nn.init.normal_(policy.jump.layers[-1].weight, std=0.1)
    return policy.eval(), data


def vla(
    *, n_obs_steps: int = 1, instructions: tuple[str, ...] = ("Touch the red button.",), **settings: Any
) -> tuple[PolicyModule, ToyData]:
    """A vision-language-action policy with a backbone of a few thousand weights."""
    data = ToyData(camera=True)
    tiny = TinyConfig(patch_px=10, width=32, heads=2, kv_heads=1, vision_layers=1, text_layers=2)
    config = VlaConfig(backbone="tiny", tiny=tiny, instructions=instructions, steps=4, expert_width=1.5, **settings)
    spec = policy_spec(camera=True, n_obs_steps=n_obs_steps, horizon=5)
    return policies.make("vla", spec, data.stats(), config, seed=3).eval(), data


class ScriptedPolicy:
    """A policy whose chunks are known: action[h] = 0.1 * first state element + 0.01 * h + 0.001 * noise, all axes alike."""

    def __init__(self, horizon: int = 4, n_obs_steps: int = 1) -> None:
        self.spec = PolicySpec(
            observation=ObservationSpec({STATE: TensorSpec(shape=(2,))}),
            action=ACTION_SPEC,
            horizon=horizon,
            n_obs_steps=n_obs_steps,
            noise_shape=(1,),
            capabilities=("noise",),
        )
        self.windows: list[Tensor] = []

    def encode(self, obs: Any) -> Any:
        self.windows.append(obs[STATE].clone())
        return EmbeddingContext(obs[STATE][:, -1, :1])

    def loss(self, batch: Any, *, t: Any = None, noise: Any = None) -> Any:
        raise NotImplementedError

    def sample(self, ctx: Any, *, n: int = 1, noise: Tensor | None = None, steps: int | None = None, **_: Any) -> Chunk:
        assert n == 1 and noise is not None
        ramp = 0.01 * torch.arange(self.spec.horizon, dtype=torch.float32)
        value = 0.1 * ctx.embedding[:, None] + ramp[None, None] + 0.001 * noise
        return Chunk(actions=value.unsqueeze(-1).expand(-1, -1, -1, 3).clone(), noise=noise)


class PointEnv:
    """Points on a plane that must reach the origin; start and wind are functions of the episode's seed.

    The state is (x, y), the action the motion of the first two axes; within 0.2 of the origin is success.
    """

    max_episode_steps = 12
    action_spec = ACTION_SPEC
    observation_spec = ObservationSpec({STATE: TensorSpec(shape=(2,))})

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.seeds = list(range(num_envs))
        self.position = torch.zeros(num_envs, 2, dtype=torch.float64)
        self.wind = torch.zeros(num_envs, 2, dtype=torch.float64)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)

    def _start(self, world: int, seed: int) -> None:
        stream = np.random.default_rng(seed)
        self.seeds[world], self.steps[world] = seed, 0
        self.position[world] = torch.from_numpy(stream.uniform(-2, 2, 2))
        self.wind[world] = torch.from_numpy(stream.uniform(-0.1, 0.1, 2))

    def _observe(self) -> dict[str, Tensor]:
        return {STATE: self.position.float()}

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        ids = range(self.num_envs) if ids is None else ids
        seeds = [seed + i for i in range(len(ids))] if isinstance(seed, int) else [0] * len(ids) if seed is None else seed
        for world, s in zip(ids, seeds, strict=True):
            self._start(world, s)
        return self._observe()

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        self.position += action[:, :2].double() + self.wind
        self.steps += 1
        success = self.position.norm(dim=-1) < 0.2
        truncated = (self.steps >= self.max_episode_steps) & ~success
        final, lengths = self._observe(), self.steps.clone()
        for world in (success | truncated).nonzero()[:, 0].tolist():
            self._start(world, self.seeds[world] + 1000)
        info = {"success": success, "final_observation": final, "episode_length": lengths}
        return self._observe(), success.float(), success, truncated, info

    def close(self) -> None:
        pass
