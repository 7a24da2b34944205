"""Conversions: memory of a process that converts a dataset and one four times as long, in both directions, and frames per second.

Each conversion runs in a process of its own, whose largest resident size is taken; what grows with the dataset shows in the difference.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.data import picture
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

FPS, TIMES = 30, 4
GROWTH_MB = 60.0
"""What a process may be larger by for a dataset that is `TIMES` as long."""
ROUTES = {"hdf5": (".hdf5", "hdf5"), "foxglove": (".mcap", "foxglove"), "bag": (".mcap", "mcap")}
"""Format → (ending, what --to says)."""
_RUN = """
import json, re, sys, time
from sinew.cli.main import main
begin = time.monotonic()
code = main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss would begin with the parent's
print(json.dumps({"code": code, "s": time.monotonic() - begin, "mb": peak / 1024}))
"""


def rows(quick: bool) -> list[Row]:
    """Measure every route there and back.

    Args:
        quick: smaller pictures and fewer frames, under a minute.
    """
    size, episodes, length = ((96, 96), 2, 60) if quick else ((240, 320), 4, 150)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sinew-bench-") as folder:
        sets = {times: make(Path(folder) / f"data{times}", times * episodes, length, size) for times in (1, TIMES)}
        frames = TIMES * episodes * length
        more_mb = (TIMES - 1) * episodes * length * size[0] * size[1] * 3 / 2**20
        for name, (ending, to) in ROUTES.items():
            there: dict[int, dict[str, float]] = {}
            back: dict[int, dict[str, float]] = {}
            for times, data in sets.items():
                made = Path(folder) / f"{name}{times}{ending}"
                there[times] = convert(data, made, "--to", to)
                options = ("--action-kind", "joint_position", "--task", "bench", "--state", "state") if name == "hdf5" else ()
                back[times] = convert(made, Path(folder) / f"{name}{times}-back", *options)
            found += _rows(f"to {name}", there, frames, more_mb) + _rows(f"from {name}", back, frames, more_mb)
    return found


def make(root: Path, episodes: int, length: int, size: tuple[int, int]) -> Path:
    """A dataset of one camera and two vectors."""
    import demos

    image = TensorSpec(shape=(*size, 3), dtype="uint8")
    observation = ObservationSpec({"observation.state": TensorSpec(shape=(7,)), "observation.images.front": image})
    action = ActionSpec(kind="joint_position", low=(-1.0,) * 7, high=(1.0,) * 7, rate_hz=FPS, names=tuple("abcdefg"))
    pictures = [picture(at, 0, *size) for at in range(length)]
    with demos.Writer.create(root, fps=FPS, observation_spec=observation, action_spec=action, task="bench") as writer:
        for episode in range(episodes):
            for at, shown in enumerate(pictures):
                vector = np.sin(np.arange(7) + at / 10 + episode).astype(np.float32)
                values = {"observation.state": vector, "action": vector, "observation.images.front": shown}
                writer.add_frame(values, stamp_ns=round(at * 1e9 / FPS))
            writer.save_episode(success=True)
    return root


def convert(source: Path, out: Path, *options: str) -> dict[str, float]:
    """Convert in a process of its own.

    Returns:
        {"s": seconds, "mb": largest resident size in MiB}.

    Raises:
        RuntimeError: it failed.
    """
    arguments = [sys.executable, "-c", _RUN, "data", "convert", str(source), "--out", str(out), *options]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {"code": done.returncode}
    if told["code"]:
        raise RuntimeError(f"converting {source.name} failed: {done.stderr[-300:]}")
    return told


def _rows(name: str, found: dict[int, dict[str, float]], frames: int, more_mb: float) -> list[Row]:
    """`more_mb`: what the further pictures take decoded; where that is no more than what is allowed, the figure decides nothing."""
    growth = found[TIMES]["mb"] - found[1]["mb"]
    detail = {"mb": [found[times]["mb"] for times in (1, TIMES)], "frames": frames, "decoded_mb": more_mb}
    target = f"< {GROWTH_MB:g} MiB"
    memory = Row(name=f"{name}: memory for {TIMES}x the data", unit="MiB more", ours=growth, target=target,
                 holds=growth < GROWTH_MB if more_mb > 2 * GROWTH_MB else None, higher_is_better=False, detail=detail)  # fmt: skip
    return [memory, Row(name=f"{name}: speed", unit="frames/s", ours=frames / found[TIMES]["s"])]
