"""The peer of `sinew bench data`: run by the Python of a venv with lerobot, it reads and records there and prints one JSON line.

Usage: python data_peer.py read FOLDER | record FOLDER HEIGHT WIDTH FRAMES
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def decoder() -> str:
    """The faster decoder that works here: torchcodec needs a system FFmpeg."""
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, OSError):
        return "pyav"
    return "torchcodec"


def read(root: Path) -> dict[str, Any]:
    """Items per second over one epoch: plain and with time offsets, in random order and in a row."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    plain = LeRobotDataset("local/bench", root=root, video_backend=decoder())
    fps = plain.fps
    deltas = {"action": [i / fps for i in range(16)], **{k: [-1 / fps, 0.0] for k in ("observation.state", *plain.meta.camera_keys)}}
    offset = LeRobotDataset("local/bench", root=root, video_backend=decoder(), delta_timestamps=deltas)
    result: dict[str, Any] = {"decoder": decoder()}
    for name, dataset in (("plain", plain), ("delta", offset)):
        for order, indices in (("random", np.random.default_rng(0).permutation(len(dataset))), ("sequential", np.arange(len(dataset)))):
            begin = time.perf_counter()
            for index in indices:
                dataset[int(index)]
            result[f"{name} {order}"] = len(dataset) / (time.perf_counter() - begin)
    return result


def record(root: Path, height: int, width: int, frames: int) -> dict[str, Any]:
    """Frames per second, seconds per save and bytes, with LeRobot's streaming H.264 encoder."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

    from sinew.cli.benchmarks.data import CAMERAS, FPS, picture, vectors

    names = ["height", "width", "channels"]
    features: dict[str, Any] = {k: {"dtype": "video", "shape": (height, width, 3), "names": names} for k in CAMERAS}
    features |= {k: {"dtype": "float32", "shape": v.shape, "names": None} for k, v in vectors(0).items()}
    dataset = LeRobotDataset.create("local/bench", fps=FPS, features=features, root=root, vcodec="h264", streaming_encoding=True)
    pictures = [[picture(at, n, height, width) for n in range(len(CAMERAS))] for at in range(frames)]
    begin = time.perf_counter()
    for at in range(frames):
        dataset.add_frame({**vectors(at), **dict(zip(CAMERAS, pictures[at], strict=True)), "task": "bench"})
    added = time.perf_counter()
    dataset.save_episode()
    saved = time.perf_counter()
    dataset.finalize()
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    return {"add": frames / (added - begin), "save": saved - added, "bytes": size}


if __name__ == "__main__":
    given = sys.argv[1:]
    answer = read(Path(given[1])) if given[0] == "read" else record(Path(given[1]), *map(int, given[2:]))
    sys.stdout.write(json.dumps(answer) + "\n")
