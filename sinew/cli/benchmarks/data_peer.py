"""The peer of `sinew bench data`: run by the Python of a venv with lerobot, it reads and records there.

It reads one JSON object a line, {"do": "open" | "read" | "record", ...}, and answers each with one line, so that ours and the peer
can take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def decoder() -> str:
    """The faster decoder that works here: torchcodec needs an FFmpeg."""
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, OSError):
        return "pyav"
    return "torchcodec"


class Peer:
    """A dataset of lerobot that is read."""

    def __init__(self) -> None:
        self.data: Any = None

    def open(self, root: str) -> dict[str, Any]:
        """The dataset in `root`, with two observations and 16 actions to an item.

        Returns:
            {"decoder"}.
        """
        import torch
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)
        meta = LeRobotDatasetMetadata("local/bench", root=root)
        observed = ("observation.state", *meta.camera_keys)
        deltas = {"action": [i / meta.fps for i in range(16)], **{k: [-1 / meta.fps, 0.0] for k in observed}}
        self.data = LeRobotDataset("local/bench", root=root, video_backend=decoder(), delta_timestamps=deltas)
        self.data[0]
        return {"decoder": decoder()}

    def read(self, indices: list[int]) -> dict[str, Any]:
        """Items per second that passed and per second of CPU."""
        wall, cpu = time.perf_counter(), time.process_time()
        for index in indices:
            self.data[index]
        return {"per_s": len(indices) / (time.perf_counter() - wall), "per_cpu_s": len(indices) / (time.process_time() - cpu)}

    def record(
        self,
        root: str,
        height: int,
        width: int,
        frames: int,
        episodes: int,
        streaming: bool,
        look: str = "smooth",
        quality: bool = False,
    ) -> dict[str, Any]:
        """What adding the frames of an episode and saving it take, and with `quality` how well its pictures are kept.

        Returns:
            {"add_s", "add_cpu_s", "save_s", "save_cpu_s", "psnr"}; CPU with that of the processes that encode.
        """
        from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

        from sinew.cli.benchmarks.data import CAMERAS, FPS, shown, vectors

        names = ["height", "width", "channels"]
        features: dict[str, Any] = {k: {"dtype": "video", "shape": (height, width, 3), "names": names} for k in CAMERAS}
        features |= {k: {"dtype": "float32", "shape": v.shape, "names": None} for k, v in vectors(0).items()}
        dataset = LeRobotDataset.create("local/bench", fps=FPS, features=features, root=root, streaming_encoding=streaming)
        given, marks = shown(frames, height, width, look), [_now()]
        spent = np.zeros((2, 2))
        for _ in range(episodes):
            marks = [_now()]
            for frame in given:
                dataset.add_frame({**frame, "task": "bench"})
            marks.append(_now())
            dataset.save_episode()
            marks.append(_now())
            spent += np.diff(marks, axis=0)
        dataset.finalize()
        (add_s, add_cpu_s), (save_s, save_cpu_s) = (spent / episodes).tolist()
        told = {"add_s": add_s, "add_cpu_s": add_cpu_s, "save_s": save_s, "save_cpu_s": save_cpu_s}
        return told | ({"psnr": _psnr(Path(root), given)} if quality else {})


def _now() -> tuple[float, float]:
    """Seconds that passed, and of CPU of this process and the children that ended."""
    times = os.times()
    return time.perf_counter(), time.process_time() + times.children_user + times.children_system


def _psnr(root: Path, given: list[dict[str, Any]]) -> float:
    """Quality of the recorded pictures, as lerobot reads them."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

    data, errors = LeRobotDataset("local/bench", root=root, video_backend=decoder()), []
    for at, frame in enumerate(given):
        item = data[at]
        for camera in data.meta.camera_keys:
            seen = np.moveaxis(item[camera].numpy(), 0, -1) * 255
            errors.append(float(np.mean((seen - frame[camera].astype(np.float32)) ** 2)))
    return float(10 * np.log10(255**2 / np.mean(errors)))


def main() -> None:
    """Answer until the input ends."""
    out, peer = sys.stdout, Peer()
    sys.stdout = sys.stderr  # lerobot and its encoders print
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(peer, asked.pop("do"))(**asked)
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
