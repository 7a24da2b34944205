"""`sinew improve --robot … --record DIR`: episodes of learning on a robot as a dataset that tells who chose each action."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from demos import Writer
from rl.replay import HUMAN
from robot_bridge.learning_env import LearningEnv
from sinew.cli.improve_offline import HUMAN_COLUMN
from sinew.specs import ObservationSpec, TensorSpec

if TYPE_CHECKING:
    from robot_bridge.deploy import TaskInterface


class RecordedEnv(LearningEnv):
    """A robot to learn on, whose finished episodes a writer takes in; what is begun anew before its end is dropped.

    Args:
        writer: with the extra column `HUMAN_COLUMN`; closed by the caller.
        others: see `LearningEnv`.
    """

    def __init__(self, *others: Any, writer: Writer, **more: Any) -> None:
        super().__init__(*others, **more)
        self.writer = writer
        self._seen: dict[str, Tensor] = {}

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """See `LearningEnv.reset`."""
        self._seen = super().reset(seed, ids)
        if not self.arm.step and self.writer.episode_length:
            self.writer.discard_episode()
        return self._seen

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """See `LearningEnv.step`."""
        made = super().step(action)
        info, writer = made[4], self.writer
        frame = {key: self._seen[key][0].numpy() for key in writer.observation_spec.tensors}
        frame["action"] = info["executed_action"][0].numpy()
        frame[HUMAN_COLUMN] = np.array([bool(info["source"][0] & HUMAN)])
        writer.add_frame(frame)
        if bool(made[2] | made[3]):
            writer.save_episode(success=bool(info["success"]))
        self._seen = made[0]
        return made


def open_writer(root: Path, interface: TaskInterface, keys: Sequence[str]) -> Writer:
    """A dataset for `RecordedEnv`, new or gone on with.

    Args:
        root: folder.
        interface: task.
        keys: observations that are recorded.

    Raises:
        InputError: the folder holds something else.
    """
    if (root / "meta/info.json").exists():
        return Writer.resume(root, task=interface.task_text, keep_interrupted=False)
    return Writer.create(
        root,
        fps=round(interface.action_spec.rate_hz),
        observation_spec=ObservationSpec({key: interface.observation_spec[key] for key in keys}),
        action_spec=interface.action_spec,
        robot_type=interface.robot_spec.name,
        task=interface.task_text,
        extra={HUMAN_COLUMN: TensorSpec(shape=(1,), dtype="bool")},
    )
