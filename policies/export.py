"""Policies as graphs for programs without Sinew or without Python: ONNX, or torch.export's .pt2, and a manifest beside them.

A denoising policy becomes `encode` (an observation to its embedding), `step` (one clean estimate D of noisy chunks) and
`sample` (both with all steps unrolled); export.json tells what goes in and out and the numbers of the loop between them.
An energy policy becomes `encode` and `step`, whose output is the gradient; its number of steps is each sample's own, so
there is no `sample`. Any other policy becomes `sample`, a correction `correct`. Before anything is called done, every
graph is run from the file and held against the policy.

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.base import PolicyModule
from policies.catalog import type_name
from policies.export_graphs import Graph, example, graphs_of, loop_of, newest
from policies.onnx_runner import FORMAT_VERSION, JSON_NAME, OnnxPolicy, read_manifest
from sinew.config import to_json
from sinew.errors import DataError, InputError, MissingDependency, unknown
from sinew.rundir import atomic_write

__all__ = ["FORMATS", "TOLERANCE", "Exported", "OnnxPolicy", "TorchPolicy", "export", "open_program"]

FORMATS = ("onnx", "torch")
TOLERANCE = 1e-4
"""Largest difference between a graph and the policy, in outputs of order one."""
LIMIT_BYTES = 2_000_000_000
"""Largest ONNX file: a protobuf holds 2 GB."""
LONGEST = 65536
"""Largest number of rows and of candidates."""
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
BATCH, CANDIDATES = "batch", "candidates"
Axes = tuple[int | str, int | str]
"""Length of the batch axis and of the candidates': 1 where it is fixed, else its name."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: dict[str, int]
    """Bytes by file name."""
    parity: dict[str, float]
    """Largest difference to the policy by graph; "chunk" is the loop over `step`."""


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
    graphs, folder = graphs_of(policy.eval(), steps), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described, lengths = {}, []
    for name, graph in graphs.items():
        data, axes = _write(graph, name, format)
        lengths.append(axes)
        file = name + SUFFIX[format]
        atomic_write(folder / file, data)
        described[name] = {"file": file, "sha256": hashlib.sha256(data).hexdigest(), **_signature(graph, axes)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "format": format,
        "policy": type_name(policy),
        "spec": to_json(policy.spec),
        "actions": "graphs give actions in [-1, 1]; in the robot's units they are low + (action + 1) / 2 * (high - low), by spec.action",
        "graphs": described,
        "loop": loop_of(policy, steps),
        "torch": torch.__version__,
    }
    atomic_write(folder / JSON_NAME, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    parity = _parity(policy, graphs, lengths, OnnxPolicy(folder) if format == "onnx" else TorchPolicy(folder), steps)
    atomic_write(folder / JSON_NAME, json.dumps({**manifest, "parity": parity}, indent=2, allow_nan=False) + "\n")
    return Exported(folder, {file.name: file.stat().st_size for file in _files(folder, described)}, parity)


def _files(folder: Path, described: Mapping[str, Any]) -> list[Path]:
    return [*(folder / graph["file"] for graph in described.values()), folder / JSON_NAME]


def _signature(graph: Graph, axes: Axes) -> dict[str, Any]:
    """Names, shapes and types of what goes in and out."""
    with torch.no_grad():
        outputs = dict(zip(graph.outputs, graph.module(graph.inputs), strict=True))

    def shape(name: str, value: Tensor) -> list[int | str]:
        free = axes if name in graph.wide else axes[:1]
        return [] if name in graph.scalars else [*free, *value.shape[len(free) :]]

    return {
        place: [{"name": n, "shape": shape(n, v), "dtype": str(v.dtype).removeprefix("torch.")} for n, v in tensors.items()]
        for place, tensors in (("inputs", graph.inputs), ("outputs", outputs))
    }


# ---------------------------------------------------------------- writing


def _write(graph: Graph, name: str, format: str) -> tuple[bytes, Axes]:
    """The file of one graph, and which of its axes are free."""
    if format == "onnx":
        _need_onnx()
    with _quiet(), torch.no_grad():
        program, axes = _trace(graph, name)
        return (_to_onnx(program, graph, name) if format == "onnx" else _to_zip(program)), axes


def _trace(graph: Graph, name: str) -> tuple[Any, Axes]:
    """The traced program with its free axes: a policy whose code depends on the length of one has it fixed at 1."""
    from torch._dynamo.exc import UserError

    try:
        module = _differentiated(graph) if graph.differentiates else graph.module
        for axes in ((BATCH, CANDIDATES), (1, CANDIDATES), (1, 1))[2 * graph.fixed :]:
            try:
                return torch.export.export(module, (_cut(graph, axes),), dynamic_shapes=(_free(graph, axes),)), axes
            except UserError:  # says that a length was used as a number
                if axes == (1, 1):
                    raise
    except Exception as e:  # whatever a tracer stumbles over, the user can only choose another policy
        raise InputError(f"{name!r} of this policy cannot be a graph: {_reason(e)}") from e
    raise AssertionError("unreachable")


def _cut(graph: Graph, axes: Axes) -> dict[str, Tensor]:
    """The graph's inputs, one row or one candidate of them where that axis is fixed."""
    rows, wide = (slice(1 if length == 1 else None) for length in axes)
    return {k: v if k in graph.scalars else v[rows, wide] if k in graph.wide else v[rows] for k, v in graph.inputs.items()}


def _free(graph: Graph, axes: Axes) -> dict[str, Any]:
    """The free axes of every input, as torch.export wants them."""
    rows, wide = (None if length == 1 else torch.export.Dim(str(length), min=1, max=LONGEST) for length in axes)
    return {k: None if k in graph.scalars else {0: rows, 1: wide} if k in graph.wide else {0: rows} for k in graph.inputs}


def _differentiated(graph: Graph) -> nn.Module:
    """The module with the gradient in it written out, since exporters do not differentiate."""
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    written_out: Any = core_aten_decompositions()
    trace = make_fx(graph.module, written_out, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    return trace(graph.inputs)


def _to_onnx(program: Any, graph: Graph, name: str) -> bytes:
    search = torch.ops.aten.searchsorted.Tensor
    try:
        if any(node.target is search for node in program.graph.nodes):
            program = program.run_decompositions({search: _searchsorted})
        made = torch.onnx.export(program, f=None, dynamo=True, verbose=False, input_names=list(graph.inputs), output_names=graph.outputs)
    except Exception as e:
        raise InputError(f"{name!r} of this policy has no ONNX form, try --format torch: {_reason(e)}") from e
    assert made is not None
    if sum(v.const_value.nbytes for v in made.model.graph.initializers.values() if v.const_value is not None) > LIMIT_BYTES:
        raise InputError(f"{name!r} is larger than the 2 GB that an ONNX file can hold: export with --format torch")
    return made.model_proto.SerializeToString()


def _searchsorted(table: Tensor, values: Tensor, **_: Any) -> Tensor:
    """Entries of a rising table (L,) below each value: what ONNX can say of torch.searchsorted."""
    return (table < values.unsqueeze(-1)).sum(-1)


def _reason(e: Exception) -> str:
    """The first line of the innermost cause."""
    while e.__cause__ is not None and isinstance(e.__cause__, Exception):
        e = e.__cause__
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


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


def _parity(policy: Any, graphs: Mapping[str, Graph], axes: list[Axes], made: OnnxPolicy, steps: int | None) -> dict[str, float]:
    """Largest difference of every graph to what it was traced from, and of the loop to the policy, on inputs not traced with.

    Raises:
        InputError: one is above the tolerance.
    """
    worst: dict[str, float] = {}

    def compare(name: str, found: np.ndarray, wanted: Tensor) -> None:
        worst[name] = max(worst.get(name, 0.0), float(np.abs(found - wanted.numpy()).max()))

    for rows, n in ((1, 1), (1 if 1 in [batch for batch, _ in axes] else 3, 1 if 1 in [candidates for _, candidates in axes] else 4)):
        obs = example(policy, rows, seed=rows + n)
        noise = torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(rows))
        arrays = {key: value.numpy() for key, value in obs.items()}
        with torch.no_grad():
            context = policy.encode(obs)
            actions = policy.sample(context, n=n, noise=noise, steps=steps).actions
            if "step" in graphs:
                compare("encode", made.encode(arrays)["embedding"], context.embedding)
                _compare_step(compare, graphs["step"], made, rows, n)
                compare("chunk", made.chunk(arrays, noise.numpy()), actions)
            if "sample" in graphs:
                compare("sample", made.run("sample", {**arrays, "noise": noise.numpy()})["actions"], actions)
            if "correct" in graphs:
                seen, planned = newest(obs), actions[:, 0, 0]
                found = made.correct({key: value.numpy() for key, value in seen.items()}, planned.numpy())
                compare("correct", found, policy.correct(seen, planned))
    for name, difference in worst.items():
        if not difference <= TOLERANCE:
            raise InputError(f"the exported {name!r} differs from the policy by {difference:.2g}, more than {TOLERANCE:g}: do not use it")
    return worst


def _compare_step(compare: Any, graph: Graph, made: OnnxPolicy, rows: int, n: int) -> None:
    """Hold one step, hidden units too, against the module, at every noise level of the loop."""
    generator = torch.Generator().manual_seed(rows)
    inputs = {}
    for key, value in graph.inputs.items():
        shape = () if key in graph.scalars else (rows, n, *value.shape[2:]) if key in graph.wide else (rows, *value.shape[1:])
        inputs[key] = torch.randn(shape, generator=generator)
    loop = made.manifest["loop"]
    for step in loop["steps"] if loop["kind"] == "denoising" else ({},):
        inputs |= {key: torch.tensor(step[key]) for key in graph.scalars}
        found = made.run("step", {key: value.numpy() for key, value in inputs.items()})
        for name, wanted in zip(graph.outputs, graph.module(inputs), strict=True):
            compare("step", found[name], wanted)


def _need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingDependency(f"export to ONNX needs {package}: pip install 'sinew[export]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporters warn about packages and classes that have nothing to do with the policy."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")]
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
