"""What the parts promise each other. Concrete classes live in the folders above; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from sinew.specs import ActionSpec, ObservationSpec, PolicySpec

if TYPE_CHECKING:
    from torch import Generator, Tensor

Obs = Mapping[str, "Tensor"]
"""{key: (N, ...)}: one observation per world; images uint8 (N, height, width, 3), vectors float32 (N, D)."""


# ---------------------------------------------------------------- policies


@runtime_checkable
class Context(Protocol):
    """What `Policy.encode` made of an observation: opaque and immutable."""

    @property
    def batch(self) -> int:
        """Number of observations B."""
        ...

    def expand(self, n: int) -> Context:
        """The same context for n candidates each, (B * n) with candidates of one observation adjacent."""
        ...


@dataclass(frozen=True)
class Chunk:
    """A sampled chunk of actions, with what it was made from."""

    actions: Tensor
    """(B, n, H, A) float32 in [-1, 1]."""
    noise: Tensor
    """(B, n, *noise_shape) float32, N(0, I)."""
    features: Tensor | None = None
    """(B, n, F) float32."""
    energy: Tensor | None = None
    """(B, n) float32, lower is better."""


@dataclass(frozen=True)
class Loss:
    """A training loss."""

    scalar: Tensor
    """() float32, to be minimised."""
    per_sample: Tensor
    """(B,) float32."""
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class Policy(Protocol):
    """A chunked policy. It keeps no queue and no clock."""

    @property
    def spec(self) -> PolicySpec: ...

    def encode(self, obs: Mapping[str, Tensor]) -> Context:
        """Encode observations {key: (B, To, ...)}, vectors in physical units, images uint8."""
        ...

    def sample(
        self,
        ctx: Context,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """Sample n chunks per observation; the same noise gives the same actions."""
        ...

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Training loss of {key: (B, To, ...)}, "action" (B, H, A) in [-1, 1] and "action_is_pad" (B, H) bool."""
        ...


@runtime_checkable
class HasDenoiser(Protocol):
    """Capability "denoise"."""

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Context) -> Tensor:
        """Variance-exploding denoiser: x (B, H, A) = a + sigma (B,) * eps → estimate of a (B, H, A)."""
        ...


@runtime_checkable
class HasEnergy(Protocol):
    """Capability "energy"."""

    def energy(self, x: Tensor, ctx: Context) -> Tensor:
        """Energy (B,) of chunks x (B, H, A)."""
        ...


@runtime_checkable
class HasLogProb(Protocol):
    """A sampler whose every step is random and has a density; `policies.chain.DenoisingChain` makes one of every denoiser."""

    def chain(self, ctx: Context, noise: Tensor) -> Tensor:
        """Noise (B, K + 1, H, A), N(0, I) → chunks (B, K + 1, H, A) before the first random step and after each."""
        ...

    def step_logp(self, ctx: Context, x: Tensor, following: Tensor, k: int) -> Tensor:
        """Logarithm of the density (B,) of step k from chunks x (B, H, A) to `following` (B, H, A)."""
        ...


@runtime_checkable
class HasFeatures(Protocol):
    """Capability "observe": the frozen observation features that a critic or residual actor sees."""

    def observe(self, obs: Obs) -> Tensor:
        """Normalised features (N, D) float32 of one observation per world."""
        ...


@runtime_checkable
class HasCorrection(Protocol):
    """Capability "correct": the planned action is corrected at every tick from the newest observation."""

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """Planned actions (N, A) in [-1, 1] → executed actions (N, A) in [-1, 1]."""
        ...


class Executor(Protocol):
    """Turns chunks into one action per tick for N worlds; owns time, noise seeds and observation history."""

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forget chunks and history of worlds `ids` (None for all); `seeds` fixes the noise of their episodes."""
        ...

    def plan(self, obs: Obs) -> Tensor:
        """Next planned actions (N, A) in [-1, 1], before any correction; advances the chunk."""
        ...

    def act(self, obs: Obs) -> Tensor:
        """Next actions (N, A) in [-1, 1], corrected where the policy corrects; advances the chunk."""
        ...

    def peek(self, obs: Obs, ids: Sequence[int]) -> Tensor:
        """Actions (len(ids), A) that `plan` would give for worlds `ids`, changing nothing. obs: {key: (len(ids), ...)}."""
        ...


class Steering(Protocol):
    """A frozen policy whose noise is chosen, as learning sees it; `policies.steered.Steering` is one."""

    actor: Any
    """Features → noise, with `draw(features, normal) → (u, log probability)`, `size`, `bound` and the buffer `active`."""
    act_steps: int

    def reset(self, ids: Sequence[int] | None) -> None:
        """Worlds `ids` (None for all) begin new episodes."""
        ...

    def frames(self, obs: Obs, ids: Sequence[int] | None = None, *, remember: bool = True) -> dict[str, Tensor]:
        """What is seen, as tensors: "features" (N, D) and whatever `decode` needs."""
        ...

    def decode(self, frames: Mapping[str, Tensor], u: Tensor) -> Tensor:
        """Frames and noise (B, U) → executed actions (B, act_steps, A)."""
        ...


# ---------------------------------------------------------------- environments and rewards


class VecEnv(Protocol):
    """N worlds stepped together, on torch tensors of one device."""

    num_envs: int
    max_episode_steps: int

    @property
    def observation_spec(self) -> ObservationSpec: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Start new episodes in worlds `ids` (None for all).

        Args:
            seed: one seed per world of `ids`, or one integer s for seeds s, s + 1, …; the seed alone fixes the episode.
            ids: worlds that start anew.

        Returns:
            Observations of ALL N worlds.
        """
        ...

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all worlds with actions (N, A) in PHYSICAL units of `action_spec`.

        Returns:
            obs: {key: (N, ...)}; of the new episode where one ended (auto-reset, next seed of that world's stream).
            reward (N,) float32; terminated (N,) bool; truncated (N,) bool (never both).
            info: "success" (N,) bool; "final_observation" {key: (N, ...)}, the last observation before any reset
            (equal to obs where no episode ended); "episode_length" (N,) int64 steps taken in the episode that this
            step belongs to.
        """
        ...

    def close(self) -> None: ...


class Reward(Protocol):
    """Reward of a batch of transitions."""

    low: float
    high: float

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """(N,) float32 in [low, high]; raises on non-finite input."""
        ...


# ---------------------------------------------------------------- data


class EpisodeData(Protocol):
    """A dataset as training needs it; `demos.Dataset` is one."""

    @property
    def observation_spec(self) -> ObservationSpec: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    @property
    def num_episodes(self) -> int: ...

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def stats(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """{key: {"mean", "std", "min", "max": (D,) float64}} of every vector."""
        ...

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Training windows at global frame indices (B,).

        Returns:
            {observation key: (B, To, ...)} of the To frames that end at the index (the episode's first frame repeated
            before its start), "action": (B, H, A) physical units from the index on (the last one repeated after the
            end), "action_is_pad": (B, H) bool, True past the end.
        """
        ...


@runtime_checkable
class HasColumns(Protocol):
    """A dataset that also tells the instruction of every frame and whole columns: for language policies and sample weights."""

    @property
    def tasks(self) -> Sequence[str]:
        """Instructions; column "task_index" holds which one each frame follows."""
        ...

    def column(self, key: str) -> np.ndarray:
        """Every value of a column, (frames, *shape).

        Raises:
            DataError: there is no such column; names those that exist.
        """
        ...


# ---------------------------------------------------------------- robots


@dataclass(frozen=True)
class RobotSpec:
    """What a robot measures and can be commanded."""

    name: str
    joint_names: tuple[str, ...]
    """Arm joints in command order; the gripper is separate."""
    gripper_name: str | None
    position_low_rad: tuple[float, ...]
    position_high_rad: tuple[float, ...]
    velocity_max_rad_s: tuple[float, ...]
    acceleration_max_rad_s2: tuple[float, ...]
    gripper_low_m: float
    gripper_high_m: float
    workspace_low_m: tuple[float, float, float]
    """Corner of the box the tool may be in, world frame."""
    workspace_high_m: tuple[float, float, float]
    rate_hz: float
    """Commands per second that the robot expects."""
    home_rad: tuple[float, ...] = ()


@dataclass(frozen=True)
class Observation:
    """What a robot measured."""

    stamp_ns: int
    """Monotonic receipt time of the newest joint state, nanoseconds."""
    seq: int
    values: Mapping[str, np.ndarray]
    """"joint_position" (J,) rad, "joint_velocity" (J,) rad/s, "gripper" () m, "pose.<object>" (7,) xyz + quaternion wxyz
    in the world frame, "images.<camera>" (H, W, 3) uint8; only what has arrived."""
    stamps_ns: Mapping[str, int] = field(default_factory=dict)
    """Monotonic receipt time of each value, nanoseconds; `stamp_ns` for those that are left out."""


@dataclass(frozen=True)
class Command:
    """What a robot shall do."""

    stamp_ns: int
    seq: int
    ttl_s: float
    """The command is not executed later than this after its stamp."""
    values: Mapping[str, np.ndarray]
    """"joint_position" (J,) rad targets, "gripper" () m target opening; from a control loop also "joint_velocity" (J,) rad/s, and
    for trajectory controllers "joint_path" (K, J) rad and "joint_path_velocity" (K, J) rad/s at "path_times_s" (K,) from now."""
    session: str = ""
    """Nonce of the sender's session, new each time that it begins to send: nothing of an earlier session is executed any more."""


class Robot(Protocol):
    """A robot arm, simulated or real, in this process or on the network."""

    @property
    def spec(self) -> RobotSpec: ...

    def connect(self, timeout_s: float = 10.0) -> None:
        """Find the robot and wait for its first joint state.

        Raises:
            InputError: nothing answered within `timeout_s`.
        """
        ...

    def read(self) -> Observation:
        """The newest measurement; never blocks."""
        ...

    def write(self, command: Command) -> None:
        """Send a command; never blocks."""
        ...

    def stop(self, reason: str) -> None:
        """Hold at the measured position and say why; callable from any thread."""
        ...

    def close(self) -> None: ...
