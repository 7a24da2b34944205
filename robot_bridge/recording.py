"""Records a deployment as a LeRobotDataset v3: what the policy saw and asked for, what the gate made of it, how episodes ended.

The policy's thread only hands frames over; a thread of the recorder's own encodes and writes them, another one what is measured and sent
at its own rate. A killed process loses the frame that is being encoded and those that wait, usually none, and nothing before.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from demos.dataset import Dataset
from demos.forecast import Forecast
from demos.layout import INFO
from demos.native import FRAMES, line
from demos.writer import Writer
from robot_bridge import contract as contracts
from robot_bridge import synchroniser as alignment
from robot_bridge.contract import Contract
from robot_bridge.gate import Verdict
from robot_bridge.interfaces import Frame, TaskInterface, needed_values
from robot_bridge.liveness import CameraWatch
from robot_bridge.pace import Pace, Room
from robot_bridge.report import EpisodeResult
from robot_bridge.safety.states import Outcome
from robot_bridge.samples import SampleKeeper
from sinew import calibrations
from sinew.calibrations import Calibration
from sinew.errors import DataError, InputError, SinewError, SpecError
from sinew.protocols import Observation
from sinew.rundir import read_json, write_json
from sinew.specs import ACTION, IMAGES, ObservationSpec, TensorSpec, check_action_join, check_observation_join

NOTE = "meta/sinew_collection.json"
"""What a dataset was recorded with."""
ASKED, SENT, OUTCOME = "asked.", "sent.", "gate.outcome"
OUTCOMES: tuple[str, ...] = get_args(Outcome)
"""What the numbers of column "gate.outcome" mean; UNKNOWN for an episode's last frame, which the gate had no word on yet."""
UNKNOWN = -1
BEHIND = 64
"""Frames that may wait to be written."""
JUMP_S = 0.5
"""The wall clock must go by itself that much to have been set."""
ORDINARY_ENDS = ("success", "failure", "time_limit", "stop")
DISCARDED = "discarded"
"""How an episode ends that nobody wants to keep."""

log = logging.getLogger("robot_bridge")


class DatasetRecorder:
    """Takes the frames, samples and outcomes of a deployment; a `robot_bridge.interfaces.Recorder` and `Tap`, and a context manager.

    Columns beside the observations and the action, which is what the policy asked for in its own space: "asked.joint_position",
    "asked.gripper" (the same as targets), "sent.joint_position", "sent.gripper" (what the gate let through at the newest
    controller tick before the next action), "gate.outcome" (index in `OUTCOMES`) and "timestamp_ns" (when it was measured).
    Beside the frames, under native/: every measurement and every command at its own rate, and an account of all that was lost.

    Where encoding or the disk is too slow, up to `BEHIND` frames wait. Those that come then are dropped whole, the row with all of its
    pictures, and counted; after as many as may wait the recorder gives up.

    Args:
        root: new folder, or a dataset recorded before with the same keys and contract, which goes on.
        interface: the task.
        observation: what the policy looks at; None for all that the task observes.
        contract: the robot's, kept as meta/contract.json.
        about: anything that JSON holds, kept in meta/sinew_collection.json: task, run, seed.
        on_trouble: when a frame cannot be recorded, "stop" raises it in the deployment, which brings the robot to a stand;
            "go_on" tells it once and records no more. What was recorded is kept either way.
        calibration: where the cameras are, kept as meta/calibrations.json from the next episode on; None where nobody tells.
        tell: gets lines for the person beside the robot, at once, on another thread.

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
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.root, self.on_trouble = Path(root), on_trouble
        self.trouble = ""
        """Why nothing is recorded any more; empty while all is well."""
        self.changed = ""
        """What happened to a camera that spoils the episode in progress; empty while all is well."""
        self.account: Mapping[str, Any] = {}
        """What came and what was lost in the newest saved episode: see `demos.native.account`."""
        self._observation = observation or interface.observation_spec
        self._writer = _open(self.root, interface, self._observation, contract, dict(about or {}))
        calibrations.begin(self.root, self._writer.num_episodes, calibration)
        self._targets = {k.removeprefix(ASKED): v.shape[0] for k, v in _extra(interface).items() if k.startswith(ASKED)}
        self._alignment = alignment.policy(needed_values(interface, self._observation), interface.action_spec.rate_hz, contract)
        self._wall_ns = time.time_ns() - time.monotonic_ns()
        self._tell, self._jumped = tell, False
        self._room = Room(self._writer)
        self._pace = Pace(1.0 / interface.action_spec.rate_hz)
        self._watch = CameraWatch(_last_pictures(self._writer, self.root))
        self._keeper = SampleKeeper(self._writer, self._wall_ns, self._fail)
        self._queue: queue.Queue[tuple[Frame, bool] | EpisodeResult | Literal["again"] | None] = queue.Queue(BEHIND)
        self._dropped, self._follows, self._ages = 0, False, list[str]()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()
        for episode in self._writer.recovered:
            state = "was interrupted and is kept, its outcome unknown" if episode.interrupted else "had not been saved and is now"
            tell(f"episode {episode.index} of {episode.length} frames {state}")

    @property
    def episodes(self) -> int:
        """Episodes that the dataset holds."""
        return self._writer.num_episodes

    @property
    def kept(self) -> int:
        """Frames of the episode in progress that survive the end of this process."""
        return self._writer.episode_length

    def frame(self, frame: Frame) -> None:
        """Take a frame; returns at once.

        Raises:
            InputError: an earlier frame could not be recorded, or too many were dropped, and the recorder is to stop then.
        """
        if self.trouble:
            self._refuse()
            return
        if not self._keeper.open:
            self._begin(frame)
        for reason, n in frame.passed.items():
            self._keeper.note("skipped", reason, n)
        self._pace.add(frame)
        try:
            self._queue.put_nowait((frame, self._follows))
            self._follows = True
        except queue.Full:
            self._drop()

    def sample(self, stream: str, stamp_ns: int, receipt_ns: int, value: np.ndarray | None = None, sequence: int | None = None) -> None:
        """See `robot_bridge.interfaces.Tap`; kept from an episode's first frame on."""
        self._keeper.sample(stream, stamp_ns, receipt_ns, value, sequence)

    def happened(self, what: str, of: str, n: int = 1) -> None:
        """See `robot_bridge.interfaces.Tap`."""
        if self._keeper.open and what == "clock_jump":
            self._tell(f"the clock behind {of} was set anew; stamps follow it")
        self._keeper.note(what, of, n)

    def cut(self) -> None:
        """A pause begins: what is missing until the next frame is not lost."""
        self._follows = False
        self._keeper.cut()
        self._pace.cut()

    def end_episode(self, result: EpisodeResult) -> None:
        """Save the episode; waits until it is on disk, while the robot stands.

        Raises:
            InputError: it could not be saved, and the recorder is to stop then.
        """
        for reason, n in result.passed.items():
            self._keeper.note("skipped", reason, n)
        self._keeper.open = False
        self._queue.put(result)
        self._queue.join()
        if self.trouble:
            self._refuse()

    def again(self) -> None:
        """Throw away the episode that was saved last, so that it is recorded again; returns at once, and tells what it did."""
        try:
            self._queue.put_nowait("again")
        except queue.Full:
            self._tell("again: the recorder is behind, say it once more")

    def look(self, measured: Observation) -> str:
        """One line on what is wrong with a camera before an episode; empty where nothing is."""
        return self._watch.before(_pictures(measured))

    def room(self) -> Forecast:
        """How long the disk lasts."""
        return self._room.forecast()

    def live(self) -> dict[str, float]:
        """What is worth showing: frames per second, lateness and ages in ms, minutes of disk; waiting frames and losses if any."""
        told, left = self._pace.look(), self.room().minutes_left
        told |= {} if left is None else {"disk_min": left}
        wrong = {"waiting": float(self._queue.qsize()), "lost": float(sum(self._keeper.lost.values()))}
        return told | {name: n for name, n in wrong.items() if n}

    def close(self) -> None:
        """Write what waits. An episode that was not ended is kept, its outcome unknown."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._keeper.close()
        if self._writer.episode_length:
            with suppress(SinewError):  # it stays in recording/, for `sinew data repair`
                self._writer.save_episode(None, [self.trouble or "interrupted"])
        self._writer.finalize()

    def __enter__(self) -> DatasetRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ on the thread of the policy

    def _begin(self, frame: Frame) -> None:
        """An episode begins with its first frame."""
        self._dropped, self._follows, self.changed = 0, False, ""
        self._ages = [key for key in frame.measured.values if key in frame.measured.stamps_ns]
        self._keeper.begin()
        self._keeper.note("ages", FRAMES, names=self._ages)
        self._keeper.note("alignment", FRAMES, policy=self._alignment)

    def _drop(self) -> None:
        """Too many frames wait: this one is left out, with all that belongs to it."""
        self._dropped, self._follows = self._dropped + 1, False
        self._keeper.note("dropped", "queue_full")
        if self._dropped == 1:
            self._tell(f"recording is {BEHIND} frames behind: frames are dropped and counted until it has caught up")
        if self._dropped > BEHIND:
            advice = "use a faster disk, fewer cameras or smaller pictures"
            self._fail(f"recording into {self.root} is {BEHIND} frames behind and {self._dropped} were dropped: {advice}")
            self._refuse()

    # ------------------------------------------------------------ the recorder's thread

    def _work(self) -> None:
        while True:
            item = self._queue.get()
            try:
                if not self.trouble or isinstance(item, tuple):  # frames that waited before there was trouble are kept
                    self._take(item)
            except SinewError as e:
                self._fail(str(e))
            except Exception as e:  # a defect must not leave the deployment waiting for a thread that is gone
                self._fail(f"the recorder failed: {type(e).__name__}: {e}")
            finally:
                self._queue.task_done()
            if item is None:
                return

    def _take(self, item: tuple[Frame, bool] | EpisodeResult | Literal["again"] | None) -> None:
        if isinstance(item, tuple):
            frame, follows = item
            if follows and frame.verdict is not None and frame.verdict.joint_position is not None:
                sent = {"joint_position": frame.verdict.joint_position, "gripper": frame.verdict.gripper}
                self._writer.amend(self._elements(SENT, sent) | _outcome(frame.verdict))
            elif follows and frame.verdict is not None:
                self._writer.amend(_outcome(frame.verdict))
            self._write(frame)
        elif item == "again":
            self._retract()
        elif item is not None:
            self._end(item)

    def _write(self, frame: Frame) -> None:
        measured, tensors = frame.measured, self._observation.tensors
        values = {key: np.asarray(frame.observation[key]).astype(spec.dtype, copy=False) for key, spec in tensors.items()}
        values[ACTION] = np.asarray(frame.action, dtype=np.float32)
        asked = {k: measured.values[k] for k in self._targets} | dict(frame.command.values if frame.command is not None else {})
        # What was sent, and what the gate said, is known with the next frame; until then it is what was asked.
        values |= self._elements(ASKED, asked) | self._elements(SENT, asked) | _outcome(None)
        self._writer.add_frame(values, stamp_ns=measured.stamp_ns + self._wall_ns)
        ages = np.array([measured.stamp_ns - measured.stamps_ns.get(key, measured.stamp_ns) for key in self._ages]) / 1e9
        self._keeper.kept(FRAMES, measured.stamp_ns, ages)
        self._look(frame)

    def _elements(self, prefix: str, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {prefix + k: np.atleast_1d(np.asarray(given[k], dtype=np.float32))[:n] for k, n in self._targets.items()}

    def _look(self, frame: Frame) -> None:
        """Tell at once what is odd about cameras and clocks."""
        for news in self._writer.news():
            self._tell(news)
        if not self.changed:
            self.changed = self._watch.see(_pictures(frame.measured))
            if self.changed:
                self._tell(self.changed)
        off_s = (time.time_ns() - time.monotonic_ns() - self._wall_ns) / 1e9
        if abs(off_s) > JUMP_S and not self._jumped:
            self._jumped = True
            self._keeper.note("clock_jump", "this machine")
            self._tell(f"this machine's clock was set by {off_s:+.1f} s; stamps go on as they were")

    def _end(self, result: EpisodeResult) -> None:
        self._keeper.end()
        if result.ended_by == DISCARDED or not self._writer.episode_length:
            self._writer.discard_episode()
            return
        stopped = result.ended_by not in ORDINARY_ENDS
        self._room.add()
        self._writer.save_episode(result.success, [f"stopped for safety: {result.ended_by}"] if stopped else [])
        self.account = self._writer.account()
        self._tell(f"episode {self._writer.num_episodes - 1}: {line(self.account)}")

    def _retract(self) -> None:
        try:
            episode = self._writer.retract_episode()
        except DataError as e:
            self._tell(f"again: {e}")
            return
        self._tell(f"episode {episode.index} of {episode.length} frames is thrown away; record it again")

    def _fail(self, why: str) -> None:
        if not self.trouble:
            self.trouble = why
            if self.on_trouble == "go_on":
                log.warning("%s; going on without recording", why)

    def _refuse(self) -> None:
        if self.on_trouble == "stop":
            raise InputError(self.trouble)


def _outcome(verdict: Verdict | None) -> dict[str, np.ndarray]:
    return {OUTCOME: np.array([UNKNOWN if verdict is None else OUTCOMES.index(verdict.outcome)], dtype=np.int64)}


def _pictures(measured: Observation) -> dict[str, np.ndarray]:
    """{camera: (H, W, 3)} as they came."""
    return {k.removeprefix("images."): np.asarray(v) for k, v in measured.values.items() if k.startswith("images.")}


def _last_pictures(writer: Writer, root: Path) -> dict[str, np.ndarray]:
    """What the cameras of a dataset showed last; nothing where that cannot be read."""
    if not writer.num_frames:
        return {}
    try:
        data = Dataset(root, cache_bytes=0)
        last = data[len(data) - 1]
    except DataError:
        return {}
    return {key.removeprefix(IMAGES): last[key] for key in data.cameras}


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
