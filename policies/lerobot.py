"""A policy of LeRobot (ACT, Diffusion, VQ-BeT, SmolVLA, π0, π0.5, …) as ours, with its own pre- and post-processors.

The one module that imports `lerobot`. Tested against lerobot 0.4.4; reaching into a policy beyond its public methods is done
for DiffusionPolicy only, whose condition is computed once per observation and shared by all candidates.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, noise_for
from policies.catalog import register
from policies.lerobot_families import family
from policies.lerobot_files import PROCESSORS, action_spec, check_files, folder_of, missing, one_line, put_back, record
from sinew.errors import DataError, InputError, MissingDependency, SinewError, SpecError, unknown
from sinew.protocols import Chunk, Loss, Obs
from sinew.rundir import read_json
from sinew.specs import ACTION, TASK, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

__all__ = ["LeRobotConfig", "LeRobotContext", "LeRobotPolicy", "action_spec", "load"]

LANGUAGE = ("smolvla", "pi0", "pi05", "pi0_fast", "xvla", "groot", "wall_x")
"""Types that read an instruction."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig:
    """Where the policy came from."""

    source: str
    """Folder or hub id."""
    kind: str = ""
    """LeRobot's name of its type."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Our keys to the policy's, where they differ."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Its config and processors as LeRobot wrote them, so that a run that builds on it needs its folder no more."""


@dataclass(frozen=True)
class LeRobotContext:
    """What was computed once for each observation."""

    encoded: Mapping[str, Any]
    """Tensors (B, ...) and lists of B texts."""
    rows: int
    candidates: int = 1

    @property
    def batch(self) -> int:
        """Rows that the context stands for: observations times candidates."""
        return self.rows * self.candidates

    def expand(self, n: int) -> LeRobotContext:
        """The same for n candidates each; nothing is copied."""
        return replace(self, candidates=self.candidates * n)


def load(
    source: str,
    observation: ObservationSpec,
    action: ActionSpec,
    *,
    device: torch.device | str = "cpu",
    rename: Mapping[str, str] | None = None,
) -> LeRobotPolicy:
    """A policy from a folder that LeRobot's `save_pretrained` wrote with its processors, or from the hub.

    A chunk has as many actions as LeRobot itself executes of one (`n_action_steps`; all of them where it would ensemble:
    then use the executor's mode "ensemble"). A diffusion policy that samples by DDPM is sampled by DDIM in as many steps,
    so that its noise determines its actions. Actions beyond the bounds of `action` are clipped.

    Args:
        source: folder, or OWNER/NAME on the hub, with @REVISION if need be; only JSON and safetensors are ever downloaded.
        observation: everything there is to give, with all cameras; the policy's own spec asks only for what it looks at, and
            for images of the size it was made for.
        action: the meaning of its actions, which a checkpoint does not tell; `action_spec` derives bounds from its statistics.
        device: where it shall run.
        rename: our keys to the policy's, where they differ: {"observation.images.front": "observation.images.top"}.

    Raises:
        InputError: no such folder or hub id, or a type that is unknown or cannot act in chunks.
        DataError: files are missing, damaged, or hold pickles or foreign code.
        SpecError: the policy looks at something that is not given, or acts in another number of elements.
        MissingDependency: lerobot, or what this policy needs besides it, is not installed.
    """
    _lerobot("policies.factory")
    folder = folder_of(source)
    check_files(folder, source)
    policy, processors = _opened(folder, source, str(device), weights=True)
    spec = _spec(policy, observation, action, rename or {})
    settings = LeRobotConfig(source=source, kind=policy.config.type, rename=dict(rename or {}), files=record(folder))
    return LeRobotPolicy(spec, settings, policy, processors)


def _opened(folder: Path, source: str, device: str, *, weights: bool) -> tuple[Any, tuple[Any, Any]]:
    """A policy of LeRobot with its processors, with the checkpoint's weights or fresh ones.

    Raises:
        DataError: LeRobot cannot load it.
        MissingDependency: what it needs is not installed.
    """
    factory = _lerobot("policies.factory")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            config = _config(folder, source, device)
            kind = factory.get_policy_class(config.type)
            policy = kind.from_pretrained(folder, config=config, strict=True) if weights else kind(config)
            return policy, factory.make_pre_post_processors(
                config, pretrained_path=str(folder), preprocessor_overrides=_move(folder, device)
            )
        except SinewError:
            raise
        except ImportError as e:
            raise MissingDependency(f"{source} needs more than lerobot ({one_line(e)}): pip install 'lerobot[all]'") from e
        except Exception as e:  # whatever a foreign checkpoint makes a foreign library raise
            raise DataError(f"LeRobot cannot load {source}: {one_line(e)}") from e


@register("lerobot")
class LeRobotPolicy(PolicyModule):
    """A policy of LeRobot between its processors; see `load`."""

    Config = LeRobotConfig

    def __init__(self, spec: PolicySpec, config: LeRobotConfig, policy: Any, processors: tuple[Any, Any]) -> None:
        super().__init__(spec, config)
        self.inner: Any = policy.eval()
        self._before, self._after = processors
        self._theirs = {key: config.rename.get(key, key) for key in spec.observation}
        self._family = family(policy)
        vectors = spec.observation.vectors
        has = [("noise", bool(self._family.noise_shape) and not self._family.seeded), ("features", self._family.probe is not None),
               ("observe", bool(vectors)), ("language", config.kind in LANGUAGE)]  # fmt: skip
        capabilities = tuple(name for name, there in has if there)
        self.spec = replace(spec, noise_shape=self._family.noise_shape, feature_dim=self._family.feature_dim, capabilities=capabilities)
        self.observation_dim = 0
        if vectors:
            empty = {key: torch.zeros(1, *t.shape, dtype=getattr(torch, t.dtype)) for key, t in spec.observation.tensors.items()}
            self.observation_dim = self.observe(empty).shape[1]

    @classmethod
    def build(cls, spec: PolicySpec, stats: Any, config: Any) -> LeRobotPolicy:
        """Refused."""
        raise InputError("a policy of LeRobot is trained with lerobot-train; sinew takes it as hf:<folder or hub id>")

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> LeRobotPolicy:
        """See `PolicyModule.rebuild`; made of the recorded files, on the CPU.

        Raises:
            DataError: they are missing, or name what is not LeRobot's.
        """
        with tempfile.TemporaryDirectory() as folder:
            put_back(config.files, Path(folder), config.source)
            policy, processors = _opened(Path(folder), config.source, "cpu", weights=False)
        return cls(spec, config, policy, processors)

    def encode(self, obs: Mapping[str, Any]) -> LeRobotContext:
        """{key: (B, To, ...)}, with a language policy "task" (B texts) → what the candidates of an observation share.

        Raises:
            SpecError: an observation or the instruction is missing.
        """
        missing = [key for key in self.spec.observation if key not in obs]
        if missing:
            raise SpecError(f"the policy needs observation {missing[0]!r}; given are {', '.join(obs)}")
        rows = obs[next(iter(self.spec.observation))].shape[0]
        with torch.no_grad(), self._probed() as seen:
            batch = self._preprocess({key: obs[key] for key in self.spec.observation}, self._texts(obs, rows), self.spec.n_obs_steps)
            encoded = self._family.encode(batch)
        if seen:
            encoded["features"] = seen[-1]
        return LeRobotContext(_with_rows(encoded, rows), rows)

    def sample(
        self,
        ctx: Any,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """See `sinew.protocols.Policy.sample`.

        Raises:
            SpecError: guidance, which LeRobot's samplers cannot take; or steps, for a policy that does not denoise.
        """
        if guidance:
            raise SpecError("a policy of LeRobot takes no guidance: its sampler is its own")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        wide = {key: _repeat(value, ctx.candidates * n) for key, value in ctx.encoded.items()}
        flat = noise.flatten(0, 1)
        with torch.no_grad(), self._probed() as seen, self._stepping(steps):
            if self._family.seeded:
                actions = torch.cat([self._drawn(wide, flat, row) for row in range(len(flat))])
            else:
                actions = self._family.chunk(wide, flat)
            physical = self._postprocess(actions[:, : self.spec.horizon])
        normalized = self.spec.action.normalize(physical.float()).clamp(-1, 1).to(noise.device)
        told = (seen[-1] if seen else wide.get("features")) if features else None
        return Chunk(
            actions=normalized.reshape(ctx.batch, n, self.spec.horizon, self.spec.action_dim),
            noise=noise,
            features=None if told is None else told.reshape(ctx.batch, n, -1),
        )

    def observe(self, obs: Obs) -> Tensor:
        """Normalised vectors (N, observation_dim) of one observation per world; of a diffusion policy its image features too."""
        whole = self.config.kind == "diffusion"
        keys = list(self.spec.observation) if whole else list(self.spec.observation.vectors)
        rows = obs[keys[0]].shape[0]
        with torch.no_grad():
            batch = self._preprocess({key: obs[key].unsqueeze(1) for key in keys}, [""] * rows, 1)
            if whole:
                return self._family.encode({k: v.unsqueeze(1) if isinstance(v, Tensor) else v for k, v in batch.items()})["condition"]
            return torch.cat([batch[self._theirs[key]].float() for key in keys], dim=-1)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Refused."""
        raise SpecError("a policy of LeRobot is trained with lerobot-train, whose optimiser and processors it was made for")

    # ------------------------------------------------------------ inside

    def _texts(self, obs: Mapping[str, Any], rows: int) -> list[str]:
        if "language" not in self.spec.capabilities:
            return [""] * rows
        if TASK not in obs:
            raise SpecError("this policy reads an instruction: give obs['task'], one text per observation")
        return list(obs[TASK])

    def _preprocess(self, obs: Mapping[str, Tensor], texts: list[str], n_obs_steps: int) -> dict[str, Any]:
        """Ours {key: (B, To, ...)} → the policy's batch, (B, To, ...) where it looks at several steps and (B, ...) otherwise."""
        batch: dict[str, Any] = {}
        for key, value in obs.items():
            flat = value.flatten(0, 1)
            batch[self._theirs[key]] = flat.movedim(-1, 1).float() / 255 if key in self.spec.observation.images else flat.float()
        rows = len(texts) * n_obs_steps
        done = self._before({**batch, TASK: [text for text in texts for _ in range(n_obs_steps)]})
        kept = _with_rows(done, rows)
        if n_obs_steps == 1:
            return kept
        return {k: v.unflatten(0, (-1, n_obs_steps)) for k, v in kept.items() if isinstance(v, Tensor)}

    def _postprocess(self, actions: Tensor) -> Tensor:
        """The policy's actions (rows, H, A) → physical units."""
        return self._after(actions.flatten(0, 1)).reshape(actions.shape)

    def _drawn(self, wide: Mapping[str, Any], noise: Tensor, row: int) -> Tensor:
        """One row of a policy that draws by itself, from a generator that its noise seeds."""
        seed = int.from_bytes(hashlib.sha256(noise[row].cpu().numpy().tobytes()).digest()[:7], "little")
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return self._family.chunk({key: value[row : row + 1] for key, value in wide.items()}, noise[row : row + 1])

    @contextlib.contextmanager
    def _probed(self) -> Iterator[list[Tensor]]:
        """Collects the feature vectors (rows, F) of every pass through the probed layer."""
        seen: list[Tensor] = []
        probe, (time, _) = self._family.probe, self._family.probe_axes
        if probe is None:
            yield seen
            return
        hook = probe.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().mean(time)))
        try:
            yield seen
        finally:
            hook.remove()

    @contextlib.contextmanager
    def _stepping(self, steps: int | None) -> Iterator[None]:
        """Another number of sampling steps for a while."""
        if steps is None:
            yield
            return
        if self._family.steps is None:
            raise SpecError(f"a {self.config.kind} policy of LeRobot does not sample in steps that can be chosen")
        if steps < 1:
            raise SpecError(f"a policy samples in at least 1 step, not {steps}")
        owner, name = self._family.steps
        before = getattr(owner, name)
        setattr(owner, name, steps)
        try:
            yield
        finally:
            setattr(owner, name, before)


def _with_rows(batch: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The entries that have one row per observation."""
    return {k: v for k, v in batch.items() if (isinstance(v, list) or (isinstance(v, Tensor) and v.ndim > 0)) and len(v) == rows}


def _repeat(value: Any, times: int) -> Any:
    """Rows, each `times` times, adjacent."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, 0) if times > 1 else value
    return [item for item in value for _ in range(times)]


def _config(folder: Path, source: str, device: str) -> Any:
    """LeRobot's config of a checkpoint, for `device`, with nothing left to download for weights that the checkpoint holds."""
    told = read_json(folder / "config.json")
    if not isinstance(told, dict) or not isinstance(told.get("type"), str):
        raise DataError(f"{source}/config.json is not that of a policy: it names no type")
    if told.get("use_peft"):
        raise InputError(f"{source} holds adapters only (use_peft): merge them into their base policy first")
    configs = _lerobot("configs.policies").PreTrainedConfig
    if told["type"] not in configs.get_known_choices():
        _lerobot("utils.import_utils").register_third_party_plugins()
    if told["type"] not in configs.get_known_choices():
        raise unknown("LeRobot policy type", told["type"], configs.get_known_choices())
    config = configs.from_pretrained(folder, cli_overrides=[f"--device={device}"])
    if getattr(config, "pretrained_backbone_weights", None):
        config.pretrained_backbone_weights = None
    if getattr(config, "noise_scheduler_type", None) == "DDPM":
        _log.info("%s samples by DDPM in LeRobot; here by DDIM, so that noise determines actions", source)
        config.noise_scheduler_type = "DDIM"
    return config


def _move(folder: Path, device: torch.device | str) -> dict[str, Any]:
    """Override of the preprocessor's device, where it has such a step."""
    steps = read_json(folder / PROCESSORS[0]).get("steps", ())
    return {"device_processor": {"device": str(device)}} if any(s.get("registry_name") == "device_processor" for s in steps) else {}


def _spec(policy: Any, observation: ObservationSpec, action: ActionSpec, rename: Mapping[str, str]) -> PolicySpec:
    """What a policy of LeRobot takes and gives, in our words, checked against what there is."""
    config = policy.config
    ours = {rename.get(key, key): key for key in observation.tensors}
    tensors: dict[str, TensorSpec] = {}
    for theirs, feature in config.input_features.items():
        if ".empty_camera" in theirs:  # a place that the policy fills by itself
            continue
        key, shape = ours.get(theirs), tuple(feature.shape)
        if key is None:
            have = ", ".join(observation.tensors)
            what = "camera" if feature.type.value == "VISUAL" else "observation"
            raise SpecError(f"the policy looks at {what} {theirs!r}, which is not given: there are {have}; map a name with rename")
        if feature.type.value == "VISUAL":
            tensors[key] = TensorSpec(shape=(*shape[1:], shape[0]), dtype="uint8")
        elif observation[key].shape != shape:
            raise SpecError(f"the policy looks at {theirs!r} of shape {shape}, given is {observation[key].shape}")
        else:
            tensors[key] = observation[key]
    dim = config.output_features[ACTION].shape[0]
    if dim != action.dim:
        raise SpecError(f"the policy acts in {dim} elements, the action has {action.dim}: {', '.join(action.names)}")
    whole = getattr(config, "temporal_ensemble_coeff", None) is not None
    horizon = config.chunk_size if whole else getattr(config, "n_action_steps", None) or config.action_chunk_size
    return PolicySpec(observation=ObservationSpec(tensors), action=action, horizon=horizon, n_obs_steps=getattr(config, "n_obs_steps", 1))


def _lerobot(part: str) -> Any:
    try:
        return import_module(f"lerobot.{part}")
    except ImportError as e:
        if (e.name or "").partition(".")[0] not in ("", "lerobot"):
            raise MissingDependency(f"lerobot lacks {e.name}: pip install 'sinew[lerobot]'") from None
        raise missing() from None
