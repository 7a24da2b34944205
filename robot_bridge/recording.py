"""Records a deployment as a LeRobotDataset v3: what the policy saw and asked for, what the gate made of it, how episodes ended.

The policy's thread only hands frames over; a thread of the recorder's own encodes and writes them. Each frame waits for the one
after it, which knows what the gate said: a killed process loses that frame and those still in the queue, nothing before.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from demos.layout import INFO
from demos.writer import Writer
from robot_bridge import contract as contracts
from robot_bridge.contract import Contract
from robot_bridge.gate import Verdict
from robot_bridge.interfaces import Frame, TaskInterface
from robot_bridge.report import EpisodeResult
from robot_bridge.safety.states import Outcome
from sinew import calibrations
from sinew.calibrations import Calibration
from sinew.errors import InputError, SinewError, SpecError
from sinew.rundir import read_json, write_json
from sinew.specs import ACTION, ObservationSpec, TensorSpec, check_action_join, check_observation_join

NOTE = "meta/sinew_collection.json"
"""What a dataset was recorded with."""
ASKED, SENT, OUTCOME = "asked.", "sent.", "gate.outcome"
OUTCOMES: tuple[str, ...] = get_args(Outcome)
"""What the numbers of column "gate.outcome" mean; UNKNOWN for an episode's last frame, which the gate had no word on yet."""
UNKNOWN = -1
BEHIND = 64
"""Frames that may wait to be written."""
ORDINARY_ENDS = ("success", "failure", "time_limit", "stop")
DISCARDED = "discarded"
"""How an episode ends that nobody wants to keep."""

log = logging.getLogger("robot_bridge")


class DatasetRecorder:
    """Takes the frames and outcomes of a deployment; a `robot_bridge.deploy.Recorder` and a context manager.

    Columns beside the observations and the action, which is what the policy asked for in its own space: "asked.joint_position",
    "asked.gripper" (the same as targets), "sent.joint_position", "sent.gripper" (what the gate let through at the newest
    controller tick before the next action), "gate.outcome" (index in `OUTCOMES`) and "timestamp_ns" (when it was measured).

    Args:
        root: new folder, or a dataset recorded before with the same keys and contract, which goes on.
        interface: the task.
        observation: what the policy looks at; None for all that the task observes.
        contract: the robot's, kept as meta/contract.json.
        about: anything that JSON holds, kept in meta/sinew_collection.json: task, run, seed.
        on_trouble: when a frame cannot be recorded, "stop" raises it in the deployment, which brings the robot to a stand;
            "go_on" tells it once and records no more. What was recorded is kept either way.
        calibration: where the cameras are, kept as meta/calibrations.json from the next episode on; None where nobody tells.

    Raises:
        InputError: the folder cannot be written, or holds something else.
        SpecError: the dataset there has other keys or another contract.
    """

    def __init__(
        self,
        root: Path | str,
        interface: TaskInterface,
        *,
        observation: ObservationSpec | None = None,
        contract: Contract | None = None,
        about: Mapping[str, Any] | None = None,
        on_trouble: Literal["stop", "go_on"] = "stop",
        calibration: Calibration | None = None,
    ) -> None:
        self.root, self.on_trouble = Path(root), on_trouble
        self.trouble = ""
        """Why nothing is recorded any more; empty while all is well."""
        self._observation = observation or interface.observation_spec
        self._writer = _open(self.root, interface, self._observation, contract, dict(about or {}))
        calibrations.begin(self.root, self._writer.num_episodes, calibration)
        self._targets = {k.removeprefix(ASKED): v.shape[0] for k, v in _extra(interface).items() if k.startswith(ASKED)}
        self._wall_ns = time.time_ns() - time.monotonic_ns()
        self._queue: queue.Queue[Frame | EpisodeResult | None] = queue.Queue(BEHIND)
        self._last: Frame | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    @property
    def episodes(self) -> int:
        """Episodes that the dataset holds."""
        return self._writer.num_episodes

    def frame(self, frame: Frame) -> None:
        """Take a frame; returns at once.

        Raises:
            InputError: an earlier frame could not be recorded, or too many wait, and the recorder is to stop then.
        """
        if not self.trouble:
            try:
                self._queue.put_nowait(frame)
                return
            except queue.Full:
                self._fail(f"recording into {self.root} is {BEHIND} frames behind: use a faster disk, fewer cameras or smaller pictures")
        self._refuse()

    def end_episode(self, result: EpisodeResult) -> None:
        """Save the episode; waits until it is on disk, while the robot stands.

        Raises:
            InputError: it could not be saved, and the recorder is to stop then.
        """
        self._queue.put(result)
        self._queue.join()
        if self.trouble:
            self._refuse()

    def close(self) -> None:
        """Write what waits. An episode that was not ended is kept, its outcome unknown."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        if self._writer.episode_length:
            with suppress(SinewError):  # it stays in recording/, for `sinew data repair`
                self._writer.save_episode(None, [self.trouble or "interrupted"])
        self._writer.finalize()

    def __enter__(self) -> DatasetRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ the recorder's thread

    def _work(self) -> None:
        while True:
            item = self._queue.get()
            try:
                if not self.trouble:
                    self._take(item)
            except SinewError as e:
                self._fail(str(e))
            except Exception as e:  # a defect must not leave the deployment waiting for a thread that is gone
                self._fail(f"the recorder failed: {type(e).__name__}: {e}")
            finally:
                self._queue.task_done()
            if item is None:
                return

    def _take(self, item: Frame | EpisodeResult | None) -> None:
        before, self._last = self._last, item if isinstance(item, Frame) else None
        if before is not None:
            self._write(before, item.verdict if isinstance(item, Frame) else None)
        if isinstance(item, EpisodeResult) and item.ended_by == DISCARDED:
            self._writer.discard_episode()
        elif isinstance(item, EpisodeResult) and self._writer.episode_length:
            stopped = item.ended_by not in ORDINARY_ENDS
            self._writer.save_episode(item.success, [f"stopped for safety: {item.ended_by}"] if stopped else [])

    def _write(self, frame: Frame, verdict: Verdict | None) -> None:
        tensors = self._observation.tensors
        values = {key: np.asarray(frame.observation[key]).astype(spec.dtype, copy=False) for key, spec in tensors.items()}
        values[ACTION] = np.asarray(frame.action, dtype=np.float32)
        asked = frame.command.values if frame.command is not None else {}
        sent: Mapping[str, Any] = asked
        if verdict is not None and verdict.joint_position is not None:
            sent = {"joint_position": verdict.joint_position, "gripper": verdict.gripper}
        for prefix, given in ((ASKED, asked), (SENT, sent)):
            for name, length in self._targets.items():
                value = given[name] if name in given else frame.measured.values[name]
                values[prefix + name] = np.atleast_1d(np.asarray(value, dtype=np.float32))[:length]
        values[OUTCOME] = np.array([UNKNOWN if verdict is None else OUTCOMES.index(verdict.outcome)], dtype=np.int64)
        self._writer.add_frame(values, stamp_ns=frame.measured.stamp_ns + self._wall_ns)

    def _fail(self, why: str) -> None:
        if not self.trouble:
            self.trouble = why
            if self.on_trouble == "go_on":
                log.warning("%s; going on without recording", why)

    def _refuse(self) -> None:
        if self.on_trouble == "stop":
            raise InputError(self.trouble)


def _open(root: Path, interface: TaskInterface, observation: ObservationSpec, contract: Contract | None, about: dict[str, Any]) -> Writer:
    """A writer for a new dataset, or for one that goes on."""
    note = {"recorded_by": "deploy", "robot": interface.robot_spec.name, **about}
    note |= {"contract": contract.hash() if contract else None, "outcomes": list(OUTCOMES)}
    if not (root / INFO).exists():
        writer = Writer.create(
            root,
            fps=round(interface.action_spec.rate_hz),
            observation_spec=observation,
            action_spec=interface.action_spec,
            robot_type=interface.robot_spec.name,
            task=interface.task_text,
            extra=_extra(interface),
        )
        write_json(root / NOTE, note)
        if contract is not None:
            contracts.store(contract, root / "meta")
        return writer
    found = read_json(root / NOTE) if (root / NOTE).exists() else {}
    for key in ("recorded_by", "robot", "contract"):
        if found.get(key) != note[key]:
            raise SpecError(f"{root} was recorded with {key} {found.get(key)!r}, not {note[key]!r}; record into another folder")
    writer = Writer.resume(root, task=interface.task_text)
    try:
        check_observation_join("the deployment", observation, str(root), writer.observation_spec)
        check_action_join("the deployment", interface.action_spec, str(root), writer.action_spec)
    except SpecError:
        writer.finalize()
        raise
    return writer


def _extra(interface: TaskInterface) -> dict[str, TensorSpec]:
    """Columns that tell what was asked and what was sent."""
    joints = TensorSpec(shape=(len(interface.robot_spec.joint_names),), unit="rad", names=interface.robot_spec.joint_names)
    grippers = sum(name.endswith("gripper") for name in interface.action_spec.names)
    columns = {f"{prefix}joint_position": joints for prefix in (ASKED, SENT)}
    if grippers:
        columns |= {f"{prefix}gripper": TensorSpec(shape=(grippers,), unit="m") for prefix in (ASKED, SENT)}
    return {**columns, OUTCOME: TensorSpec(shape=(1,), dtype="int64")}
