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
    command = [sys.executable, "-m", "sinew", "data", "convert", *given, "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"sinew data convert {' '.join(given)} failed: {said.strip().splitlines()[-1]}")
    return usage.ru_maxrss / 1e3
