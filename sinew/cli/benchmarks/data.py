"""Datasets: reading, recording, size and conversion, beside the real lerobot on the same frames in the same run.

The two take turns, case by case, several times; figures are medians. Beside the time that passed stands the CPU time of each
process, because other work on a busy machine lengthens the one and hardly the other. The peer decodes with torchcodec, which is
its fastest way; where the system has no FFmpeg, torchcodec is given the one that lies in the peer's own PyAV.

An item is one training sample: two observations of two cameras and state, and 16 actions. Ours come as a batch of 64, pictures
uint8, as training takes them; lerobot's one by one, pictures float32, as it gives them. "nothing kept" decodes every item anew.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.peer import Peer, interpreter
from sinew.errors import unknown
from sinew.rundir import read_json, write_json
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

FPS = 30
CAMERAS = ("observation.images.front", "observation.images.wrist")
SIZES = ((96, 96), (480, 640))
BATCH, REPEATS = 64, 3
TURN = 64
"""Frames after which a textured surface begins again."""
STORAGES = {"ours": "h264, as Sinew records", "peer": "av1, as lerobot records"}
PARTS = ("reading", "writing", "size", "conversion", "sessions", "quality")
ELSEWHERE = {"conversion": "data_convert", "sessions": "data_recording", "quality": "data_quality"}
"""Parts that have a module of their own."""


def rows(quick: bool, tasks: Sequence[str] = (), out: Path | None = None) -> list[Row]:
    """Measure.

    Args:
        quick: fewer and shorter cases, under a minute.
        tasks: only these parts: reading, writing, size, conversion, sessions (of the recorder), quality; all if empty.
        out: folder of finished parts; those that are there and not asked for by name are taken from it.

    Raises:
        InputError: no such part.
    """
    for name in tasks:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sinew-bench-") as folder, peer_process(Path(folder)) as peer:
        for name in PARTS:
            kept = None if out is None else out / f"{name}.json"
            if kept is not None and kept.exists() and name not in tasks:
                found += [Row(**row) for row in read_json(kept)]
            elif not tasks or name in tasks:
                made = _part(name, quick, Path(folder), peer)
                if kept is not None:
                    write_json(kept, [vars(row) for row in made])
                found += made
    return found


def _part(name: str, quick: bool, folder: Path, peer: Peer) -> list[Row]:
    """Rows of one part, the load of the machine told with each."""
    if name in ELSEWHERE:
        module = f"sinew.cli.benchmarks.{ELSEWHERE[name]}"
        return import_module(module).rows(quick) if find_spec(module) else []
    module = import_module(f"sinew.cli.benchmarks.data_{name}")
    before = os.getloadavg()[0]
    made: list[Row] = module.rows(quick, folder, peer)
    load = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    first = made[0]
    made[0] = Row(**{**vars(first), "detail": {**(first.detail or {}), "load": load}})
    return [*made, Row(name=f"{name}: load average, of {os.cpu_count()} cores", unit="", ours=round((before + os.getloadavg()[0]) / 2, 1))]


# ---------------------------------------------------------------- the peer


def peer_process(folder: Path) -> Peer:
    """The peer in its own process, with an FFmpeg for torchcodec."""
    links = folder / "ffmpeg"
    links.mkdir()
    bundled = sorted(interpreter().parent.parent.glob("lib/python*/site-packages/av.libs"))
    for library in (path for place in bundled[:1] for path in (*place.glob("libav*"), *place.glob("libsw*"))):
        name, _, version = library.name.partition(".so.")
        (links / f"{name.split('-')[0]}.so.{version.split('.')[0]}").symlink_to(library)
    paths = [str(links), *map(str, bundled[:1]), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return Peer(script="data_peer.py", more={"LD_LIBRARY_PATH": ":".join(paths), "SVT_LOG": "1"})


def taking_turns(cases: Mapping[str, Callable[[], Mapping[str, float]]], repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """Medians of what each case measures, case after case and all over again; {} for one that measures nothing."""
    measured: dict[str, list[Mapping[str, float]]] = {name: [] for name in cases}
    for turn in range(repeats):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            measured[name].append(cases[name]())
    return {name: {key: float(np.median([m[key] for m in found])) for key in found[0]} if all(found) else {}
            for name, found in measured.items()}  # fmt: skip


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Things per second that passed and per second of CPU of this process, of work that gives their number."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = work()
    return {"per_s": count / (time.perf_counter() - wall), "per_cpu_s": count / (time.process_time() - cpu)}


def against(
    name: str, unit: str, ours: float, peer: Peer, peer_value: float | None, who: str, least: float | None = None, **more: Any
) -> Row:
    """A row; `least` is the ratio that is the target."""
    target = "" if least is None else f">= {least:g}x peer"
    row = Row(name=name, unit=unit, ours=ours, peer=who if peer_value else peer.why, peer_value=peer_value, target=target, **more)
    return Row(**{**vars(row), "holds": None if least is None or row.ratio is None else row.ratio >= least})


# ---------------------------------------------------------------- what is shown and recorded


def vectors(at: int) -> dict[str, np.ndarray]:
    """State and action of frame `at`."""
    rng = np.random.default_rng(at)
    return {"observation.state": rng.random(14, dtype=np.float32), "action": rng.random(7, dtype=np.float32)}


def picture(at: int, camera: int, height: int, width: int, look: str = "smooth") -> np.ndarray:
    """What a camera sees, uint8 (height, width, 3), with a little sensor noise.

    "smooth": a gradient with a moving block. "textured": a camera that moves along a surface whose detail falls with its frequency,
    as it does in photographs.
    """
    if look == "textured":
        down, right = 3 * (at % TURN), 4 * (at % TURN)
        image = _surface(camera, height, width)[down : down + height, right : right + width].copy()
    else:
        rows, columns = np.mgrid[0:height, 0:width]
        parts = [columns * 150 / width + at % 60, rows * 180 / height, (rows + columns) * 90 / (height + width) + 60 * camera]
        image = np.stack(parts, -1)
        left = (at * width // 40) % (width - width // 5)
        image[height // 3 : height // 2, left : left + width // 6] = (210, 60, 40)
    image += np.random.default_rng([at, camera]).integers(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


@lru_cache(2)
def _surface(camera: int, height: int, width: int) -> np.ndarray:
    """A surface whose amplitudes fall as 1 / f^1.25, (height + 3 TURN, width + 4 TURN, 3) in 0 to 250.

    Source: those of photographs fall as 1 / f to 1 / f^1.5, Field 1987, J. Opt. Soc. Am. A 4(12).
    """
    rows, columns = height + 3 * TURN, width + 4 * TURN
    grey = np.random.default_rng(camera).normal(size=(rows, columns, 1)) + 0.3 * np.random.default_rng(9).normal(size=(rows, columns, 3))
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None])
    spectrum = np.fft.fft2(grey, axes=(0, 1)) / np.maximum(frequency, 1 / columns)[..., None] ** 1.25
    image = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return np.clip(125 + 40 * (image - image.mean()) / image.std(), 0, 250)


def shown(frames: int, height: int, width: int, look: str = "smooth") -> list[dict[str, np.ndarray]]:
    """Frames of both cameras, state and action."""
    return [{**vectors(at), **{camera: picture(at, n, height, width, look) for n, camera in enumerate(CAMERAS)}} for at in range(frames)]


def record(root: Path, frames: Sequence[Mapping[str, np.ndarray]], episodes: int = 1) -> dict[str, float]:
    """Record the same frames so many times; what adding and saving took."""
    import demos

    height, width, _ = frames[0][CAMERAS[0]].shape
    observation = ObservationSpec(
        {"observation.state": TensorSpec(shape=(14,)), **{c: TensorSpec(shape=(height, width, 3), dtype="uint8") for c in CAMERAS}}
    )
    action = ActionSpec(kind="joint_position", low=(-1.0,) * 7, high=(1.0,) * 7, rate_hz=FPS, names=tuple("abcdefg"))
    spent = {"add_s": 0.0, "save_s": 0.0, "add_cpu_s": 0.0, "save_cpu_s": 0.0}
    with demos.Writer.create(root, fps=FPS, observation_spec=observation, action_spec=action, task="bench") as writer:
        for _ in range(episodes):
            for part in ("add", "save"):
                wall, cpu = time.perf_counter(), time.process_time()
                if part == "add":
                    for at, frame in enumerate(frames):
                        writer.add_frame(frame, stamp_ns=round(at * 1e9 / FPS))
                else:
                    writer.save_episode(success=True)
                spent[f"{part}_s"] += time.perf_counter() - wall
                spent[f"{part}_cpu_s"] += time.process_time() - cpu
    return {name: seconds / episodes for name, seconds in spent.items()}


def video_bytes(root: Path) -> int:
    """Bytes of a dataset's videos."""
    return sum(p.stat().st_size for p in (root / "videos").rglob("*.mp4"))
