"""A training process for the tests: python train_worker.py FOLDER CASE '{"steps": ..., "weights": [...] or left out}' [KILL_AT_STEP].

Under torchrun every process takes its share. With KILL_AT_STEP the process kills itself after that step, by SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import toys  # noqa: E402

from policies.train import TrainConfig, train  # noqa: E402
from sinew.progress import Progress  # noqa: E402
from sinew.rundir import RunDir  # noqa: E402


class KillAt(Progress):
    """Ends the process without warning after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, stage: str, total: int, done: int = 0) -> None:
        self.done = done

    def advance(self, n: int = 1, **values: float) -> None:
        self.done += n
        if self.done == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, case, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    policy, data = toys.make(case)
    weights = settings.pop("weights", None)
    train(
        policy, data, RunDir(folder), TrainConfig(**settings), KillAt(int(sys.argv[4]) if len(sys.argv) > 4 else -1),
        weights=None if weights is None else np.array(weights),
    )  # fmt: skip
