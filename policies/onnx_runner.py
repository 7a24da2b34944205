"""Runs an exported policy with NumPy and onnxruntime alone: the loop that a program in another language would write.

Nothing of torch is imported here. `sinew export RUN --out DIR --format onnx` makes the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinew.errors import DataError, MissingDependency, SpecError

JSON_NAME = "export.json"
FORMAT_VERSION = 1


class OnnxPolicy:
    """An exported policy: observations and noise in, chunks in [-1, 1] out.

    Args:
        folder: what `sinew export` wrote.
        threads: threads that a graph may use.

    Raises:
        DataError: the folder holds no ONNX export, one of another version, or files that do not belong together.
        MissingDependency: onnxruntime is not installed: pip install 'sinew[export]'.
    """

    format = "onnx"

    def __init__(self, folder: Path | str, threads: int = 1) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, self.format)
        self.spec: Mapping[str, Any] = self.manifest["spec"]
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    def chunk(self, obs: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        """Chunks (B, n, H, A) in [-1, 1].

        Args:
            obs: {key: (B, To, ...)}, and {"goal.<key>": (B, ...)} for a policy with goals.
            noise: (B, n, *noise_shape) float32, N(0, I).
        """
        if "step" in self.manifest["graphs"]:
            return self.sample(self.encode(obs), noise)
        if self.manifest["loop"] is not None:
            noise = candidates(noise, self.manifest["loop"]["candidates"])
        return self.run("sample", {**obs, "noise": noise})["actions"]

    def encode(self, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `sample` needs to know of an observation, for any number of candidates."""
        return self.run("encode", obs)

    def sample(self, context: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        """Chunks (B, n, H, A) in [-1, 1] by the loop of the manifest, which is told there in words too.

        Raises:
            SpecError: the export is one graph from observation to chunk.
        """
        if "step" not in self.manifest["graphs"]:
            raise SpecError(f"{self.folder} holds no graph 'step': use chunk(obs, noise)")
        loop, noise = self.manifest["loop"], noise.astype(np.float32)
        found = self._denoise(loop, context, noise) if loop["kind"] == "denoising" else self._descend(loop, context, noise)
        return found.clip(-1, 1)

    def _denoise(self, loop: Mapping[str, Any], context: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        y = np.float32(loop["start"]) * noise
        for step in loop["steps"]:
            numbers = {name: np.asarray(step[name], dtype=np.float32) for name in ("level", "skip", "out")}
            clean = self.run("step", {"y": y, **numbers, **context})["clean"]
            y = np.float32(step["keep"]) * y + np.float32(step["pull"]) * clean
        return y

    def _descend(self, loop: Mapping[str, Any], context: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        x = noise.reshape(-1, *noise.shape[2:]).copy()
        embedding, active = context["embedding"].repeat(noise.shape[1], axis=0), np.arange(len(x))
        for _ in range(loop["steps"]):
            gradient = self.run("step", {"x": x[active], "embedding": embedding[active]})["gradient"]
            moving = np.sqrt(np.square(gradient).mean((1, 2))) >= loop["tolerance"]
            active = active[moving]
            if not len(active):
                break
            x[active] -= np.float32(loop["step_size"]) * gradient[moving]
        return x.reshape(noise.shape)

    def correct(self, obs: Mapping[str, np.ndarray], action: np.ndarray) -> np.ndarray:
        """Planned actions (N, A) in [-1, 1] → corrected ones, from the newest observation {key: (N, ...)}."""
        return self.run("correct", {**obs, "action": action})["corrected"]

    def denormalize(self, action: np.ndarray) -> np.ndarray:
        """Actions (..., A) in [-1, 1] → the robot's units."""
        low, high = (np.asarray(self.spec["action"][name], dtype=action.dtype) for name in ("low", "high"))
        return low + (action.clip(-1, 1) + 1) / 2 * (high - low)

    def run(self, graph: str, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of one graph by name.

        Raises:
            SpecError: the export has no such graph, or an input is missing or of another shape or kind.
        """
        graphs = self.manifest["graphs"]
        if graph not in graphs:
            raise SpecError(f"{self.folder} holds no graph {graph!r}: there are {', '.join(graphs)}")
        wanted = graphs[graph]
        feed = {item["name"]: _fit(item, given, graph) for item in wanted["inputs"]}
        names = [item["name"] for item in wanted["outputs"]]
        return dict(zip(names, self._session(graph).run(names, feed), strict=True))

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = self._open(self.folder / self.manifest["graphs"][graph]["file"])
        return self._sessions[graph]

    def _open(self, path: Path) -> Any:
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def candidates(noise: np.ndarray, n: int) -> np.ndarray:
    """Noise (B, m, *shape) of best-of chunks → (B, m, n, *shape): itself first, then what the policy draws from it.

    Another program may take any N(0, I) for the others; these make the very chunks of the policy in Sinew.
    """
    noise = np.ascontiguousarray(noise, dtype=np.float32)
    made = np.empty((*noise.shape[:2], n, *noise.shape[2:]), dtype=np.float32)
    for place in np.ndindex(noise.shape[:2]):
        seed = int.from_bytes(hashlib.blake2b(noise[place].tobytes(), digest_size=8).digest(), "little")
        stream = np.random.Generator(np.random.Philox(key=np.array([seed, 0], dtype=np.uint64)))
        made[place][0] = noise[place]
        made[place][1:] = stream.standard_normal((n - 1, *noise.shape[2:]), dtype=np.float32)
    return made


def read_manifest(folder: Path, format: str) -> dict[str, Any]:
    """The manifest of an export, after its files were found to be those that it was written with.

    Raises:
        DataError: it is missing, of another version or format, or a file was changed.
    """
    path = folder / JSON_NAME
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: sinew export RUN --out {folder} writes it") from None
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read: {str(e).splitlines()[0]}") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format version {version!r}, this Sinew reads {FORMAT_VERSION}: export again")
    try:
        made_for, graphs = manifest["format"], {name: (graph["file"], graph["sha256"]) for name, graph in manifest["graphs"].items()}
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path} does not describe an export: export again") from None
    if made_for != format:
        raise DataError(f"{folder} holds an export for {made_for!r}, not {format!r}: export again with --format {format}")
    for name, (file, digest) in graphs.items():
        if not (folder / file).exists() or hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
            raise DataError(f"{folder / file}, graph {name!r}, is missing or was changed after the export: export again")
    return manifest


def _fit(item: Mapping[str, Any], given: Mapping[str, np.ndarray], graph: str) -> np.ndarray:
    """One input in the type that the graph takes; axes named by a text may have any length."""
    name, shape = item["name"], item["shape"]
    if name not in given:
        raise SpecError(f"graph {graph!r} needs {name!r}; given are {', '.join(given)}")
    value = np.asarray(given[name])
    if not np.can_cast(value.dtype, item["dtype"], casting="same_kind"):
        raise SpecError(f"graph {graph!r}: {name!r} is {value.dtype}, expected {item['dtype']}")
    value = np.ascontiguousarray(value, dtype=item["dtype"]).reshape(value.shape)
    if len(shape) != value.ndim or any(isinstance(want, int) and want != have for want, have in zip(shape, value.shape, strict=True)):
        raise SpecError(f"graph {graph!r}: {name!r} has shape {value.shape}, expected ({', '.join(map(str, shape))})")
    if not math.prod(value.shape):
        raise SpecError(f"graph {graph!r}: {name!r} is empty")
    return value


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependency("running an ONNX export needs onnxruntime: pip install 'sinew[export]'") from None
    return onnxruntime
