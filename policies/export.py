"""Policies as graphs for programs without Sinew or without Python: ONNX, or torch.export's .pt2, and a manifest beside them.

A denoising policy becomes `encode` (an observation to its embedding), `step` (one clean estimate D of noisy chunks) and
`sample` (both with all steps unrolled); export.json says what goes in and out and the numbers of the loop between them.
Any other policy becomes `sample`, and a correction `correct`. Before anything is called done, every graph is run
from the file and held against the policy.

A .pt2 is a zip of JSON and raw tensors, but torch adds the inputs that it traced with as a pickle. They are left out here,
and `open_program` refuses files that hold any.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.base import EmbeddingContext, PolicyModule
from policies.catalog import type_name
from policies.denoising import DenoisingPolicy
from policies.goals import PREFIX, GoalContext
from policies.onnx_runner import FORMAT_VERSION, JSON_NAME, OnnxPolicy, read_manifest
from policies.residual import Residual
from sinew.config import to_json
from sinew.errors import DataError, InputError, MissingDependency, SinewError, SpecError, unknown
from sinew.rundir import atomic_write

__all__ = ["FORMATS", "TOLERANCE", "Exported", "OnnxPolicy", "TorchPolicy", "export", "open_program"]

FORMATS = ("onnx", "torch")
TOLERANCE = 1e-4
"""Largest difference between a graph and the policy, in outputs of order one."""
LIMIT_BYTES = 2_000_000_000
"""Largest ONNX file: a protobuf holds 2 GB."""
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: dict[str, int]
    """Bytes by file name."""
    parity: dict[str, float]
    """Largest difference to the policy by graph; "chunk" is the loop over `step`."""


@dataclass(frozen=True)
class _Graph:
    """A module from named tensors to named tensors, and inputs to trace it with."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    """Inputs whose second axis counts candidates."""
    scalars: tuple[str, ...] = ()
    """Inputs without axes."""


def export(policy: PolicyModule, folder: Path | str, *, format: str = "onnx", steps: int | None = None) -> Exported:
    """Write a policy as graphs with a manifest; batch and candidates stay free wherever the policy lets them.

    Args:
        policy: in evaluation mode, on the CPU.
        folder: made if it is missing; files of an earlier export are replaced.
        format: "onnx" or "torch".
        steps: steps of a sample; None for the policy's own.

    Raises:
        InputError: unknown format, a policy that cannot be a graph, or a graph that differs from it: says which and why.
        MissingDependency: onnx, onnxscript or onnxruntime is not installed: pip install 'sinew[export]'.
    """
    if format not in FORMATS:
        raise unknown("export format", format, FORMATS)
    if "language" in policy.spec.capabilities:
        raise InputError(f"{type(policy).__name__} takes language, which no graph does: serve it with sinew serve instead")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    graphs = _graphs(policy.eval(), steps)
    described = {}
    for name, graph in graphs.items():
        data, batch = _write(graph, name, format)
        file = name + SUFFIX[format]
        atomic_write(folder / file, data)
        described[name] = {"file": file, "sha256": hashlib.sha256(data).hexdigest(), **_signature(graph, batch)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "format": format,
        "policy": type_name(policy),
        "spec": to_json(policy.spec),
        "actions": "graphs give actions in [-1, 1]; in the robot's units they are low + (action + 1) / 2 * (high - low), by spec.action",
        "graphs": described,
        "loop": _loop(policy, steps),
        "torch": torch.__version__,
    }
    atomic_write(folder / JSON_NAME, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    parity = _parity(policy, graphs, OnnxPolicy(folder) if format == "onnx" else TorchPolicy(folder), steps)
    atomic_write(folder / JSON_NAME, json.dumps({**manifest, "parity": parity}, indent=2, allow_nan=False) + "\n")
    return Exported(folder, {file.name: file.stat().st_size for file in _files(folder, described)}, parity)


def _files(folder: Path, described: Mapping[str, Any]) -> list[Path]:
    return [*(folder / graph["file"] for graph in described.values()), folder / JSON_NAME]


# ---------------------------------------------------------------- what becomes a graph


class _Encode(nn.Module):
    """Observations to the embedding, and the goal-free one where the goal is followed more than taught."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """{key: (B, To, ...)} → (B, E)."""
        context = self.policy.encode(inputs)
        free = getattr(context, "free", None)
        return (context.embedding,) if free is None else (context.embedding, free)


class _Step(nn.Module):
    """One clean estimate of a denoising policy."""

    def __init__(self, policy: DenoisingPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Noisy y (B, n, H, A), numbers of the step, embeddings → D (B, n, H, A), hidden units (B, n, F)."""
        y, embedding = inputs["y"], inputs["embedding"]
        context = GoalContext(embedding, free=inputs["free"]) if "free" in inputs else EmbeddingContext(embedding)
        raw, hidden = self.policy._predict(y, self.policy.net.embed_time(inputs["level"]), context)
        return self.policy._clean(y, raw, inputs["skip"], inputs["out"]), hidden


class _Sample(nn.Module):
    """Everything between an observation and its chunks."""

    def __init__(self, policy: PolicyModule, steps: int | None) -> None:
        super().__init__()
        self.policy, self.steps = policy, steps

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor]:
        """{key: (B, To, ...)} and "noise" (B, n, *noise_shape) → (B, n, H, A)."""
        noise = inputs["noise"]
        obs = {key: value for key, value in inputs.items() if key != "noise"}
        return (self.policy.sample(self.policy.encode(obs), n=noise.shape[1], noise=noise, steps=self.steps).actions,)


class _Correct(nn.Module):
    """The correction of planned actions."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor]:
        """{key: (N, ...)} and "action" (N, A) → (N, A)."""
        return (self.policy.correct({k: v for k, v in inputs.items() if k != "action"}, inputs["action"]),)


def _graphs(policy: PolicyModule, steps: int | None) -> dict[str, _Graph]:
    """The graphs of a policy with inputs to trace them."""
    obs = example(policy, 2, seed=0)
    noise = torch.randn(2, 3, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(1))
    graphs = {}
    core = planner(policy)
    if isinstance(core, DenoisingPolicy):
        core._plan(steps)  # numbers, not to be traced
        encode = _Encode(policy)
        with torch.no_grad():
            names = ("embedding", "free")[: len(encoded := encode(obs))]
        context = dict(zip(names, encoded, strict=True))
        graphs["encode"] = _Graph(encode, obs, names)
        inputs = {"y": noise, **{name: torch.tensor(0.5) for name in ("level", "skip", "out")}, **context}  # one tensor would be one input
        graphs["step"] = _Graph(_Step(core), inputs, ("clean", "hidden"), ("y",), ("level", "skip", "out"))
    graphs["sample"] = _Graph(_Sample(policy, steps), {**obs, "noise": noise}, ("actions",), ("noise",))
    if "correct" in policy.spec.capabilities:
        newest = {key: value[:, -1] for key, value in obs.items() if not key.startswith(PREFIX)}
        action = torch.rand(2, policy.spec.action_dim, generator=torch.Generator().manual_seed(2)) * 2 - 1
        graphs["correct"] = _Graph(_Correct(policy), {**newest, "action": action}, ("corrected",))
    return graphs


def planner(policy: PolicyModule) -> PolicyModule:
    """The policy that plans the chunks of one that corrects them."""
    while isinstance(policy, Residual):
        policy = policy.base
    return policy


def example(policy: PolicyModule, rows: int, seed: int) -> dict[str, Tensor]:
    """Observations {key: (rows, To, ...)} about where the policy's normaliser expects them, and goals where it takes any."""
    generator = torch.Generator().manual_seed(seed)
    spec = policy.spec
    obs, normalizer = {}, getattr(getattr(planner(policy), "encoder", None), "normalizer", None)
    for key, tensor in spec.observation.tensors.items():
        shape = (rows, spec.n_obs_steps, *tensor.shape)
        if key in spec.observation.images:
            obs[key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            continue
        obs[key] = torch.randn(shape, generator=generator)
        if normalizer is not None and key in normalizer.keys:
            first = sum(normalizer.sizes[: normalizer.keys.index(key)])
            mean, scale = (v[first : first + obs[key][0, 0].numel()].reshape(tensor.shape) for v in (normalizer.mean, normalizer.scale))
            obs[key] = mean + scale * obs[key]
    goal = getattr(planner(policy), "goal", None)
    return obs if goal is None else {**obs, **{PREFIX + key: obs[key][:, -1].flip(0).clone() for key in goal.settings.keys}}


def _signature(graph: _Graph, batch: int | str) -> dict[str, Any]:
    """Names, shapes and types of what goes in and out."""
    with torch.no_grad():
        outputs = dict(zip(graph.outputs, graph.module(graph.inputs), strict=True))

    def shape(name: str, value: Tensor) -> list[int | str]:
        free: list[int | str] = [batch, "candidates"] if name in (*graph.candidates, "clean", "hidden", "actions") else [batch]
        return [] if name in graph.scalars else [*free, *value.shape[len(free) :]]

    return {
        place: [{"name": n, "shape": shape(n, v), "dtype": str(v.dtype).removeprefix("torch.")} for n, v in tensors.items()]
        for place, tensors in (("inputs", graph.inputs), ("outputs", outputs))
    }


def _loop(policy: PolicyModule, steps: int | None) -> dict[str, Any] | None:
    """The numbers between `encode` and the chunk, and in words what to do with them."""
    core = planner(policy)
    if not isinstance(core, DenoisingPolicy):
        return None
    plan, levels = core._plan(steps)
    numbers = [{**step._asdict(), "level": float(level)} for step, level in zip(plan, levels.tolist(), strict=True)]
    return {
        "in_words": [
            "context = encode(observation): once for any number of candidates",
            "y = start * noise, where noise (batch, candidates, horizon, action) is drawn from N(0, I)",
            "for each of steps: D = step(y, level, skip, out, context); y = keep * y + pull * D",
            "actions = y limited to [-1, 1]",
            "guidance: x = y / scale is the chunk with noise of deviation sigma added, D the estimate of it without; change D before y moves",
        ],
        "start": plan[0].scale * plan[0].sigma,
        "steps": numbers,
    }


# ---------------------------------------------------------------- writing


def _write(graph: _Graph, name: str, format: str) -> tuple[bytes, int | str]:
    """The file of one graph, and the length of its batch axis: a number where the policy fixes it, else a name."""
    if format == "onnx":
        _need_onnx()
    with _quiet(), torch.no_grad():
        program, batch = _trace(graph, name)
        return (_to_onnx(program, graph, name) if format == "onnx" else _to_zip(program)), batch


def _trace(graph: _Graph, name: str) -> tuple[Any, int | str]:
    """The traced program: with a free batch, or with a batch of 1 where the policy's code depends on its length."""
    rows, wide = torch.export.Dim("batch", min=1, max=65536), torch.export.Dim("candidates", min=1, max=65536)
    axes = {key: None if key in graph.scalars else {0: rows, 1: wide} if key in graph.candidates else {0: rows} for key in graph.inputs}
    try:
        return torch.export.export(graph.module, (graph.inputs,), dynamic_shapes=(axes,)), "batch"
    except torch._dynamo.exc.UserError:
        single = {key: value if key in graph.scalars else value[:1] for key, value in graph.inputs.items()}
        axes = {key: {1: wide} if key in graph.candidates else None for key in graph.inputs}
    try:
        return torch.export.export(graph.module, (single,), dynamic_shapes=(axes,)), 1
    except Exception as e:  # whatever a tracer stumbles over, the user can only choose another policy or format
        raise InputError(f"{name!r} of this policy cannot be a graph: {str(e).strip().splitlines()[0]}") from e


def _to_onnx(program: Any, graph: _Graph, name: str) -> bytes:
    try:
        made = torch.onnx.export(program, f=None, dynamo=True, verbose=False, input_names=list(graph.inputs), output_names=graph.outputs)
    except Exception as e:
        reason = str(e.__cause__ or e).strip().splitlines()[0]
        raise InputError(f"{name!r} of this policy has no ONNX form, try --format torch: {reason}") from e
    assert made is not None
    if sum(v.const_value.nbytes for v in made.model.graph.initializers.values() if v.const_value is not None) > LIMIT_BYTES:
        raise InputError(f"{name!r} is larger than the 2 GB that an ONNX file can hold: export with --format torch")
    return made.model_proto.SerializeToString()


def _to_zip(program: Any) -> bytes:
    program._example_inputs = None  # torch would pickle them
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def open_program(path: Path | str) -> nn.Module:
    """The module in a .pt2 file; nothing is unpickled.

    Raises:
        DataError: it is not a .pt2 file, or holds a pickle.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                config = archive.read(item) if item.filename.endswith("_config.json") else b""
                pickled = item.filename.endswith((".pt", ".pkl")) and item.file_size
                if pickled or b'"use_pickle": true' in config or "/custom_obj_" in item.filename or "/opaque_obj_" in item.filename:
                    raise DataError(f"{path} holds a pickle ({item.filename}), which can run any code when it is opened: export it again")
            if not any("/models/" in name for name in archive.namelist()):
                raise DataError(f"{path} holds no program: export it again")
    except (OSError, zipfile.BadZipFile) as e:
        raise DataError(f"{path} is not a .pt2 file: {e}") from None
    with _quiet():
        return torch.export.load(str(path)).module()


class TorchPolicy(OnnxPolicy):
    """An export for torch behind the same calls as `OnnxPolicy`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, "torch")
        self.spec = self.manifest["spec"]
        self._sessions = {}

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = _Session(open_program(self.folder / self.manifest["graphs"][graph]["file"]))
        return self._sessions[graph]


class _Session:
    """A module that is called as onnxruntime's sessions are."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [value.numpy() for value in self.module({key: torch.from_numpy(value) for key, value in feed.items()})]


# ---------------------------------------------------------------- checking


def _parity(policy: PolicyModule, graphs: Mapping[str, _Graph], made: OnnxPolicy, steps: int | None) -> dict[str, float]:
    """Largest difference of every graph to what it was traced from, and of the loop to the policy, on inputs not traced with.

    Raises:
        InputError: one is above the tolerance.
    """
    worst: dict[str, float] = {}
    free = all(item["shape"][:1] != [1] for graph in made.manifest["graphs"].values() for item in graph["inputs"])
    for rows, n in ((1, 1), (3, 4)) if free else ((1, 1), (1, 4)):
        obs = example(policy, rows, seed=rows)
        noise = torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(rows))
        arrays = {key: value.numpy() for key, value in obs.items()}
        with torch.no_grad():
            wanted = policy.sample(policy.encode(obs), n=n, noise=noise, steps=steps).actions
            found = {"sample": made.run("sample", {**arrays, "noise": noise.numpy()})["actions"] - wanted.numpy()}
            if "step" in graphs:
                found["encode"] = made.encode(arrays)["embedding"] - policy.encode(obs).embedding.numpy()  # type: ignore[attr-defined]
                found["chunk"] = made.chunk(arrays, noise.numpy()) - wanted.numpy()
            if "correct" in graphs:
                newest = {key: value[:, -1] for key, value in obs.items() if not key.startswith(PREFIX)}
                planned = wanted[:, 0, 0]
                corrected = made.correct({key: value.numpy() for key, value in newest.items()}, planned.numpy())
                found["correct"] = corrected - policy.correct(newest, planned).numpy()  # type: ignore[operator]
        for name, difference in found.items():
            worst[name] = max(worst.get(name, 0.0), float(np.abs(difference).max()))
    for name, difference in worst.items():
        if not difference <= TOLERANCE:
            raise InputError(f"the exported {name!r} differs from the policy by {difference:.2g}, more than {TOLERANCE:g}: do not use it")
    return worst


def _need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if not _installed(package):
            raise MissingDependency(f"export to ONNX needs {package}: pip install 'sinew[export]'")


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporters warn about packages and classes that have nothing to do with the policy."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
