"""Everything slow before the control loop: compile a policy's sample as a whole, and record it as a CUDA graph.

A sample is dozens of small operations; for one observation, starting them costs more than computing them. Compiled with fixed
shapes they become a few, and a CUDA graph starts all at once. Compilation takes seconds to minutes, so it happens in
`prepare` and never later: whatever has other shapes than those prepared runs as before.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, Wrapper, noise_for
from policies.export_graphs import example
from policies.language import instructions, to_device
from sinew.errors import unknown
from sinew.protocols import Chunk, Obs
from sinew.specs import TASK

DTYPES = {"float32": None, "bf16": torch.bfloat16}
TOLERANCE = {"float32": 1e-4, "bf16": 0.1}
"""Largest difference of actions to those of the policy as it was; above it, the policy is used as it was, in float32."""
WARM_UP = 3
"""Runs before a CUDA graph is recorded, as torch asks for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreparedConfig:
    """How a policy was prepared."""

    dtype: str
    compiled: bool
    """Whether the sample runs compiled."""
    recorded: bool
    """Whether it is replayed from a CUDA graph."""
    seconds: float
    """What it took."""
    difference: float
    """Largest difference of actions to those of the policy as it was."""


class Prepared(Wrapper):
    """A policy whose sample is compiled or recorded for one shape; `prepare` makes it. It is not saved: save its base."""

    Config = PreparedConfig

    def __init__(self, base: PolicyModule, context: Any, noise: Tensor, dtype: str, steps: int | None) -> None:
        config = PreparedConfig(dtype=dtype, compiled=False, recorded=False, seconds=0.0, difference=0.0)
        super().__init__(base.spec, config, base)
        self._context, self._noise, self._steps = _like(context), noise.clone(), steps
        self._run: Callable[[Any, Tensor], Tensor] | None = None

    def encode(self, obs: Mapping[str, Tensor]) -> Any:
        """The base's context, in the prepared precision."""
        with _precision(self.config.dtype, self._noise.device):
            return self.base.encode(obs)

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
        """The base's chunks (B, n, H, A); at once where batch, n and steps are those prepared, without guidance and features."""
        noise = noise_for(self.spec, ctx, n, noise, generator, self._noise.device)
        plain = not guidance and not features and steps in (None, self._steps) and noise.shape == self._noise.shape
        with torch.no_grad():
            if self._run is not None and plain and _copy(ctx, self._context):
                self._noise.copy_(noise)
                with torch.compiler.set_stance("eager_on_recompile"):
                    return Chunk(actions=self._run(self._context, self._noise).float().clone(), noise=noise)
        with _precision(self.config.dtype, noise.device):
            steps = self._steps if steps is None else steps
            return self.base.sample(ctx, n=n, noise=noise, steps=steps, guidance=guidance, features=features)

    @property
    def correct(self) -> Callable[[Obs, Tensor], Tensor]:
        """The base's correction; there where the base corrects."""
        return self.base.correct  # type: ignore[return-value]

    @property
    def energy(self) -> Callable[[Tensor, Any], Tensor]:
        """The base's energy; there where the base has one."""
        return self.base.energy  # type: ignore[return-value]


def prepare(
    policy: PolicyModule,
    device: torch.device | str = "cpu",
    *,
    dtype: Literal["float32", "bf16"] = "float32",
    compile: bool = True,
    graphs: bool = True,
    batch: int = 1,
    n: int = 1,
    steps: int | None = None,
    instruction: str | None = None,
) -> Prepared:
    """A policy that is ready to act at full speed; to be called before the control loop.

    What cannot be compiled or recorded, for want of a C++ compiler for example, runs as it was, and a warning says why.

    Args:
        policy: moved to `device` and put into evaluation mode.
        device: where it shall act.
        dtype: "bf16" computes products in bfloat16 and keeps weights, observations and actions in float32.
        compile: compile the sample with torch.compile.
        graphs: record it as a CUDA graph; on a CPU there is nothing to record.
        batch: observations of a sample.
        n: candidates of an observation.
        steps: steps of a sample; None for the policy's own.
        instruction: what a language policy shall do; with texts of another length it runs as it was.

    Raises:
        InputError: unknown dtype, or a language policy without an instruction.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    told = instructions(instruction, batch, policy.spec)
    started, policy = time.perf_counter(), policy.to(device).eval()
    given = to_device({**example(policy, batch, seed=0), **({} if told is None else {TASK: told})}, device)
    noise = torch.randn(batch, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        wanted = policy.sample(policy.encode(given), n=n, noise=noise, steps=steps).actions
        with _precision(dtype, noise.device):
            context = policy.encode(given)
    made = Prepared(policy, context, noise, dtype, steps)

    def sample(context: Any, noise: Tensor) -> Tensor:
        with _precision(dtype, noise.device):
            return policy.sample(context, n=n, noise=noise, steps=steps).actions

    done = {"compiled": False, "recorded": False}
    with torch.no_grad():
        for name, wish, build in (("compiled", compile, _compiled), ("recorded", graphs and noise.is_cuda, _recorded)):
            if wish and (built := _attempt(name, build, made._run or sample, made._context, made._noise)) is not None:
                made._run, done[name] = built, True
        seconds = time.perf_counter() - started
        difference = float((made.sample(context, n=n, noise=noise).actions - wanted).abs().max())
    if not difference <= TOLERANCE[dtype]:
        _log.warning("prepared actions differ from the policy's by %.2g: the policy is used as it was", difference)
        made._run, done, dtype, difference = None, {"compiled": False, "recorded": False}, "float32", 0.0
    made.config = replace(made.config, dtype=dtype, seconds=seconds, difference=difference, **done)
    return made


def in_words(prepared: Mapping[str, Any]) -> str:
    """A `PreparedConfig` as one line."""
    done = [word for word in ("compiled", "recorded") if prepared[word]]
    if not done:
        return "the sample runs as it was, neither compiled nor recorded"
    return f"sample {' and '.join(done)} in {prepared['seconds']:.1f} s, actions differ by at most {prepared['difference']:.1e}"


def _attempt(name: str, build: Callable[..., Any], run: Callable[..., Tensor], context: Any, noise: Tensor) -> Any:
    """What `build` makes, or None and a warning."""
    try:
        return build(run, context, noise)
    except Exception as e:  # compilers fail in their own ways; acting slowly is better than not at all
        _log.warning("the sample is not %s, it runs as it was: %s", name, (str(e).strip().splitlines() or [type(e).__name__])[0])
        return None


def _compiled(run: Callable[[Any, Tensor], Tensor], context: Any, noise: Tensor) -> Callable[[Any, Tensor], Tensor]:
    fast = torch.compile(run, dynamic=False, fullgraph=True)
    fast(context, noise)
    return fast


def _recorded(run: Callable[[Any, Tensor], Tensor], context: Any, noise: Tensor) -> Callable[[Any, Tensor], Tensor]:
    """Replays on the very tensors it was recorded with, so callers copy into them. Not run so far: no GPU was at hand."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run(context, noise)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actions = run(context, noise)

    def replay(context: Any, noise: Tensor) -> Tensor:
        graph.replay()
        return actions

    return replay


@contextlib.contextmanager
def _precision(dtype: str, device: torch.device) -> Iterator[None]:
    """Products in the given precision."""
    if DTYPES[dtype] is None:
        yield
        return
    with torch.autocast(device.type, dtype=DTYPES[dtype]):
        yield


# ---------------------------------------------------------------- contexts, whatever they are made of


def _like(value: Any) -> Any:
    """A copy with tensors of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _like(getattr(value, f.name)) for f in fields(value) if f.init})
    if isinstance(value, Mapping):
        return {key: _like(item) for key, item in value.items()}
    return type(value)(_like(item) for item in value) if isinstance(value, list | tuple) else value


def _copy(source: Any, target: Any) -> bool:
    """Copy the tensors of one context into those of another; False where they are not alike."""
    if isinstance(target, Tensor):
        if not isinstance(source, Tensor) or source.shape != target.shape or source.dtype != target.dtype:
            return False
        target.copy_(source)
        return True
    if type(source) is not type(target):
        return False
    if is_dataclass(target):
        return all(_copy(getattr(source, f.name), getattr(target, f.name)) for f in fields(target))
    if isinstance(target, Mapping):
        return source.keys() == target.keys() and all(_copy(source[key], target[key]) for key in target)
    if isinstance(target, list | tuple):
        return len(source) == len(target) and all(map(_copy, source, target))
    return source == target
