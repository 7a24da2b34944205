"""Policies as graphs for programs without Sinew or without Python: ONNX, or torch.export's .pt2, and a manifest beside them.

A denoising policy becomes `encode` (an observation to its embedding), `step` (one clean estimate D of noisy chunks) and
`sample` (both with all steps unrolled); export.json tells what goes in and out and the numbers of the loop between them.
An energy policy becomes `encode` and `step`, whose output is the gradient; its number of steps is each sample's own, so
there is no `sample`. A best-of policy becomes `sample` with the noise of all its candidates as an input, any other policy
`sample`, a correction `correct`. Every graph is run from its file and held against the policy before the folder is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
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
from policies.onnx_runner import FORMAT_VERSION, JSON_NAME, OnnxPolicy
from policies.torch_runner import TorchPolicy, quiet, to_zip
from sinew.config import to_json
from sinew.errors import InputError, MissingDependency, SinewError, unknown
from sinew.rundir import atomic_write, write_json

__all__ = ["FORMATS", "TOLERANCE", "Exported", "OnnxPolicy", "TorchPolicy", "export"]

FORMATS = ("onnx", "torch")
TOLERANCE = 1e-4
"""Largest difference between a graph and the policy; relative to the largest output where that is above one."""
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
        folder: must be missing or empty; it appears when all is written and checked, and not at all if anything fails.
        format: "onnx" or "torch".
        steps: steps of a sample; None for the policy's own.

    Raises:
        InputError: unknown format, a folder that holds something, a policy that cannot be a graph, or a graph that differs
            from it: says which and why.
        MissingDependency: onnx, onnxscript or onnxruntime is not installed: pip install 'sinew[export]'.
    """
    if format not in FORMATS:
        raise unknown("export format", format, FORMATS)
    if format == "onnx":
        _need_onnx()
    folder = Path(folder)
    with _appearing(folder) as unfinished:
        files, parity = _write_all(policy, graphs_of(policy.eval(), steps), unfinished, format, steps)
    return Exported(folder, files, parity)


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder that becomes `folder` at the end, and is removed where something fails, with the folders above it that were made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: give another one, or remove it")
    final = folder.resolve()
    unfinished = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    above = [parent for parent in final.parents if not parent.exists()]
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(final)
    except OSError as e:
        raise InputError(f"cannot write {folder}: {e.strerror or e}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in above if not final.exists() else ():
            with contextlib.suppress(OSError):  # somebody else put something into it meanwhile
                parent.rmdir()


def _write_all(
    policy: PolicyModule, graphs: Mapping[str, Graph], folder: Path, format: str, steps: int | None
) -> tuple[dict[str, int], dict[str, float]]:
    """Write graphs and manifest; gives bytes by file name, and largest differences by graph."""
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
    write_json(folder / JSON_NAME, manifest)
    made = OnnxPolicy(folder) if format == "onnx" else TorchPolicy(folder)
    try:
        parity = _parity(policy, graphs, lengths, made, steps)
    except SinewError:
        raise
    except Exception as e:  # a runtime may stumble over what its exporter wrote
        raise InputError(f"the exported graphs do not run, nothing is kept: {_reason(e)}") from e
    write_json(folder / JSON_NAME, {**manifest, "parity": parity})
    files = [*(graph["file"] for graph in described.values()), JSON_NAME]
    return {file: (folder / file).stat().st_size for file in files}, parity


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
    with quiet(), torch.no_grad():
        program, axes = _trace(graph, name)
        return (_to_onnx(program, graph, name) if format == "onnx" else to_zip(program)), axes


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


# ---------------------------------------------------------------- checking


def _parity(policy: Any, graphs: Mapping[str, Graph], axes: list[Axes], made: OnnxPolicy, steps: int | None) -> dict[str, float]:
    """Largest difference of every graph to what it was traced from, and of the loop to the policy, on inputs not traced with.

    Raises:
        InputError: one is above the tolerance.
    """
    worst: dict[str, float] = {}

    def compare(name: str, found: np.ndarray, wanted: Tensor) -> None:
        difference = float(np.abs(found - wanted.numpy()).max()) / max(1.0, float(wanted.abs().max()))
        if not difference <= TOLERANCE:
            raise InputError(f"the exported {name!r} differs from the policy by {difference:.2g}, more than {TOLERANCE:g}: nothing is kept")
        worst[name] = max(worst.get(name, 0.0), difference)

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
                given = {**arrays, "noise": noise.numpy()}
                compare("sample", made.run("sample", given)["actions"] if "step" in graphs else made.chunk(arrays, noise.numpy()), actions)
            if "correct" in graphs:
                seen, planned = newest(obs), actions[:, 0, 0]
                found = made.correct({key: value.numpy() for key, value in seen.items()}, planned.numpy())
                compare("correct", found, policy.correct(seen, planned))
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
