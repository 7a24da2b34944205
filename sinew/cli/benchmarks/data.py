"""Datasets: reading and recording, beside the real lerobot on the same frames in the same run.

Both read one epoch of the same folder, in batches; the files are in the system's page cache for both. "first epoch"
decodes every picture; in "later epochs" our decoded pictures are in memory, which lerobot has nothing like; with "no picture
kept" every window is decoded anew, item by item, as lerobot does and as it is for a dataset far larger than memory. Ours gives uint8
pictures in batches of 64; the rows "as float32" include the conversion to the (channel, height, width) float32 that lerobot gives.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import sinew
from sinew.bench import Row
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

FPS = 30
CAMERAS = ("observation.images.front", "observation.images.wrist")
BATCH = 64
TARGET = ">= 2x peer"


def vectors(at: int) -> dict[str, np.ndarray]:
    """State and action of frame `at`."""
    rng = np.random.default_rng(at)
    return {"observation.state": rng.random(14, dtype=np.float32), "action": rng.random(7, dtype=np.float32)}


def picture(at: int, camera: int, height: int, width: int) -> np.ndarray:
    """A gradient with a moving block and a little sensor noise, uint8 (height, width, 3)."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([columns * 180 / width + at, rows * 180 / height, (rows + columns) * 90 / (height + width) + 60 * camera], -1)
    left = (at * width // 40) % (width - width // 5)
    image[height // 3 : height // 2, left : left + width // 6] = (210, 60, 40)
    image += np.random.default_rng([at, camera]).integers(0, 4, image.shape)
    return (image % 256).clip(0, 255).astype(np.uint8)


def rows(quick: bool) -> list[Row]:
    """Measure.

    Args:
        quick: fewer and shorter episodes, under a minute.
    """
    found: list[Row] = []
    sizes = (((96, 96), 4, 80), ((480, 640), 2, 20)) if quick else (((96, 96), 10, 150), ((480, 640), 3, 150))
    with tempfile.TemporaryDirectory(prefix="sinew-bench-") as folder:
        for (height, width), episodes, length in sizes:
            root = Path(folder) / f"{height}"
            label = f"{len(CAMERAS)}x{height}x{width}"
            recorded = _record(root, episodes, length, height, width)
            peer = _peer("record", Path(folder) / f"peer{height}", height, width, length)
            found += _recording_rows(label, recorded, peer, length)
            found += _reading_rows(label, root, _peer("read", root))
    return found


def _record(root: Path, episodes: int, length: int, height: int, width: int) -> dict[str, float]:
    import demos

    observation = ObservationSpec(
        {"observation.state": TensorSpec(shape=(14,)), **{c: TensorSpec(shape=(height, width, 3), dtype="uint8") for c in CAMERAS}}
    )
    action = ActionSpec(kind="joint_position", low=(-1.0,) * 7, high=(1.0,) * 7, rate_hz=FPS, names=tuple("abcdefg"))
    pictures = [[picture(at, n, height, width) for n in range(len(CAMERAS))] for at in range(length)]
    adding = saving = 0.0
    with demos.Writer.create(root, fps=FPS, observation_spec=observation, action_spec=action, task="bench") as writer:
        for _ in range(episodes):
            begin = time.perf_counter()
            for at in range(length):
                values = {**vectors(at), **dict(zip(CAMERAS, pictures[at], strict=True))}
                writer.add_frame(values, stamp_ns=round(at * 1e9 / FPS))
            added = time.perf_counter()
            writer.save_episode(success=True)
            adding, saving = adding + added - begin, saving + time.perf_counter() - added
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    dataset = demos.Dataset(root)
    error = [np.mean((dataset[at][c].astype(float) - pictures[at][n]) ** 2) for at in range(0, length, 10) for n, c in enumerate(CAMERAS)]
    return {
        "add": episodes * length / adding,
        "save": saving / episodes,
        "bytes": size / episodes,
        "psnr": 10 * np.log10(255**2 / np.mean(error)),
    }


def _recording_rows(label: str, ours: dict[str, float], peer: dict[str, Any], length: int) -> list[Row]:
    who = peer.get("why") or "lerobot 0.4.4, streaming h264, nothing safe until finalize"
    per_minute = 60 * FPS / length / 1e6
    size = peer["bytes"] * per_minute if "bytes" in peer else None
    save, lower = f"save an episode of {length} frames {label}", False
    return [
        Row(name=f"record {label}", unit="frames/s", ours=ours["add"], peer=who, peer_value=peer.get("add")),
        Row(name=save, unit="s", ours=ours["save"], peer=who, peer_value=peer.get("save"), higher_is_better=lower),
        Row(name=f"size {label}", unit="MB/min", ours=ours["bytes"] * per_minute, peer=who, peer_value=size, higher_is_better=lower),
        Row(
            name=f"picture quality {label}", unit="dB PSNR", ours=ours["psnr"], peer="not measured: lerobot's crf 30 is smaller and coarser"
        ),
    ]


def _reading_rows(label: str, root: Path, peer: dict[str, Any]) -> list[Row]:
    import demos

    who = peer.get("why") or f"lerobot 0.4.4 with {peer['decoder']}"
    if peer.get("decoder") == "pyav":
        who += " (its torchcodec does not load here: no system FFmpeg)"
    length = len(demos.Dataset(root))
    deltas = {"action": [i / FPS for i in range(16)], **{k: [-1 / FPS, 0.0] for k in ("observation.state", *CAMERAS)}}
    plain = {k: [0.0] for k in deltas}
    orders = {"random": np.random.default_rng(0).permutation(length), "sequential": np.arange(length)}
    found = []
    for kind, offsets in (("plain", plain), ("delta", deltas)):
        for order, indices in orders.items():
            figures = _epochs(demos.Dataset(root), indices, offsets)
            if kind == "delta":
                small = demos.Dataset(root, cache_bytes=0)
                figures["one item at a time, no picture kept"] = _epochs(small, indices, offsets, batch=1)["first epoch"]
            peer_value = peer.get(f"{kind} {order}")
            for epoch, ours in figures.items():
                holds = ours >= 2 * peer_value if peer_value and kind == "delta" else None
                what = "with 2 observations and 16 actions" if kind == "delta" else "one frame"
                found.append(
                    Row(name=f"read {label} {what}, {order}, {epoch}", unit="items/s", ours=ours, peer=who, peer_value=peer_value,
                        target=TARGET if kind == "delta" else "", holds=holds)
                )  # fmt: skip
    return found


def _epochs(dataset: Any, indices: np.ndarray, offsets: dict[str, list[float]], batch: int = BATCH) -> dict[str, float]:
    """Items per second of a first epoch, of a later one, and of one with lerobot's own output format."""
    figures = {}
    for epoch in ("first epoch", "later epochs", "later epochs as float32"):
        begin = time.perf_counter()
        for at in range(0, len(indices), batch):
            found = dataset.at(indices[at : at + batch], offsets)
            if epoch.endswith("float32"):
                for camera in CAMERAS:
                    np.multiply(np.moveaxis(found[camera], -1, -3), np.float32(1 / 255), dtype=np.float32)
        figures[epoch] = len(indices) / (time.perf_counter() - begin)
        if dataset.cache_bytes == 0:
            break
    return figures


def _peer(*given: object) -> dict[str, Any]:
    """What lerobot measures of itself, or {"why": …} where there is none."""
    root = Path(sinew.__file__).resolve().parent.parent
    python = Path(os.environ.get("SINEW_LEROBOT_PYTHON") or root / ".venv-lerobot/bin/python")
    if not python.exists():
        return {"why": "lerobot is not installed beside us: make conformance, or set SINEW_LEROBOT_PYTHON"}
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SVT_LOG": "1"}
    script = Path(__file__).with_name("data_peer.py")
    done = subprocess.run([str(python), str(script), *map(str, given)], capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"why": f"lerobot failed: {(done.stderr.strip().splitlines() or ['no output'])[-1][:120]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])
