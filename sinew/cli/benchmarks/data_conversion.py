"""Memory of a conversion: the largest resident size of `sinew data convert` for a dataset, and for one four times as long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sinew
from sinew.bench import Row
from sinew.cli.benchmarks.data import Peer, record, shown

HEIGHT, WIDTH, LENGTH = 240, 320, 25
TIMES = 4
MOST_GROWTH = 0.15
"""Of the added data's bytes: what memory may grow by and still be called constant."""
MEASURED = """
import atexit, sys
atexit.register(lambda: print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr))
from sinew.cli.main import main
sys.exit(main())
"""
"""The command line, which tells its largest resident size in the end. What the system tells of a child holds its parent's size."""


def rows(quick: bool, folder: Path, peer: Peer) -> list[Row]:
    """Measure.

    Args:
        quick: fewer episodes.
        folder: for datasets.
        peer: not measured; its converters are for other formats.
    """
    episodes, found = 2 if quick else 6, []
    frame = 2 * HEIGHT * WIDTH * 3
    used: dict[str, list[float]] = {"to HDF5": [], "from HDF5": []}
    for count in (episodes, TIMES * episodes):
        data, file, back = (folder / f"convert-{count}{end}" for end in ("", ".hdf5", "-back"))
        record(data, shown(LENGTH, HEIGHT, WIDTH), count)
        used["to HDF5"].append(_peak_mb(str(data), "--to", "hdf5", "--out", str(file)))
        used["from HDF5"].append(_peak_mb(str(file), "--task", "bench", "--out", str(back), "--fps", "30"))
    added = (TIMES - 1) * episodes * LENGTH * frame / 1e6
    for way, (less, more) in used.items():
        name = f"memory that a conversion {way} takes more for {added:.0f} MB more of pictures"
        who = f"{less:.0f} MB for {episodes} episodes, {more:.0f} MB for {TIMES * episodes}; lerobot is not measured"
        found.append(Row(name=name, unit="MB", ours=max(more - less, 0.1), peer=who, target="constant: < 15 % of what was added",
                         holds=more - less < MOST_GROWTH * added, higher_is_better=False))  # fmt: skip
    return found


def _peak_mb(*given: str) -> float:
    """Largest resident size of a conversion, in megabytes."""
    root = Path(sinew.__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", MEASURED, "data", "convert", *given]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    told = done.stderr.strip().splitlines() or ["no output"]
    if done.returncode or not told[-1].startswith("VmHWM"):
        raise RuntimeError(f"sinew data convert {' '.join(given)} failed: {told[-1]}")
    return float(told[-1].split()[1]) / 1024
