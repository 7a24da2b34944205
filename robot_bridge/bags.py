"""Bags of ROS 2 become datasets, by the same contract and the same aligner that a living robot is read through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from demos.bags import Bag, is_bag
from demos.layout import INFO
from demos.writer import Writer
from robot_bridge import contract as contracts
from robot_bridge.alignment import Aligner, Frame, frames
from robot_bridge.contract import COMMANDED, Contract
from robot_bridge.dds import codec
from robot_bridge.markers import EPISODES, TEXT, TRUTH, Episode, Markers
from robot_bridge.recording import NOTE
from sinew import calibrations
from sinew.calibrations import Calibration
from sinew.config import from_json
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.rundir import write_json
from sinew.specs import ACTION, ActionSpec, ObservationSpec, TensorSpec

CONTRACT = "/sinew/contract"
"""std_msgs/String holding JSON, once in a bag: {"contract": …} and, of a dataset, {"specs": …}, what its keys mean, and
{"calibrations": …}, where its cameras were."""
SCENE_EPISODES, SCENE_SUCCESS = "/sinew/scene/episode", "/sinew/scene/success"
PLAIN_ACTION = f"{COMMANDED}extra.action"
"""Value that holds actions of any kind, as a dataset had them."""


@dataclass
class Converted:
    """What came of a conversion."""

    episodes: int = 0
    frames: int = 0
    dropped: int = 0
    """Messages that were damaged or out of order."""
    damage: list[str] = field(default_factory=list)
    """What of the bags could not be read, and what was odd, a line each."""


def bags_in(path: Path) -> list[Path]:
    """The bags at a path: itself, or those in it by name.

    Raises:
        DataError: there are none.
    """
    if path.is_dir() and not is_bag(path):
        found = sorted(p for p in path.iterdir() if not p.name.startswith(".") and is_bag(p))
        if found:
            return found
    Bag(path)  # says what is wrong
    return [path]


def to_dataset(
    bags: Sequence[Path],
    out: Path,
    *,
    contract: Contract | None = None,
    task: str | None = None,
    episodes: str | None = None,
    success: str | None = None,
    progress: Progress = SILENT,
) -> Converted:
    """Make a dataset of bags: one episode for each, or those that a topic of markers tells. Memory does not grow with them.

    Frame k of a bag is for the first time at which all that features and action need is there, plus k periods. Where one of
    these values stays away longer than the contract allows, the episode ends and what follows is another. Cameras that the
    contract does not require and the first bag does not have are left out.

    Args:
        bags: files and folders, in the order wanted.
        out: a new folder.
        contract: of the robot; None for the one that the first bag holds.
        task: what is done, in words; None for what the markers tell.
        episodes: topic of markers, see `Markers`; None for ours or our simulated scene's, where a bag holds it; "" for none.
        success: topic of std_msgs/Bool; None for our simulated scene's.
        progress: told of every bag.

    Raises:
        InputError: no contract, no task, or the folder is taken.
        DataError: a bag is none, lacks a topic, holds another type on one, or gives no frame.
    """
    specs: dict[str, Any] = {}
    if contract is None:
        contract, specs = embedded(bags[0])
    placed: list[Calibration] = []
    done = Converted()
    contract = _of_what_is_there(contract, Bag(bags[0]), done)
    observation, action = _specs(contract, specs)
    rate_hz = round(action.rate_hz)
    needed = {value for feature in contract.features for value in feature.values} | set(contract.action_values)
    for bag in bags:
        _check_topics(Bag(bag), contract, needed)
    conversion = _Conversion(contract, needed, out, observation, action, task, done)
    progress.start("convert", len(bags))
    try:
        for path in bags:
            bag = Bag(path)
            markers = _markers(bag, episodes, success)
            placed += [replace(c, from_episode=c.from_episode + done.episodes) for c in _calibrated(bag)]
            conversion.bag(bag, markers, rate_hz)
            done.damage += [f"{path.name}: {line}" if not line.startswith(path.name) else line for line in bag.damage]
            progress.advance(1)
    finally:
        conversion.close({"recorded_by": "bags", "sources": [p.name for p in bags], "contract": contract.hash()})
    for calibration in placed if done.episodes else ():
        calibrations.begin(out, calibration.from_episode, calibration)
    if not done.episodes:
        raise DataError(f"{bags[0]} gives no frame: {conversion.why or 'its messages cannot be used'}; nothing was written")
    return done


def embedded(path: Path) -> tuple[Contract, dict[str, Any]]:
    """The contract that a bag holds, with the specs of the dataset that it was made of, if any.

    Raises:
        InputError: it holds none.
        DataError: it is damaged.
    """
    from robot_bridge.robots import ROBOTS

    message = _told(Bag(path))
    if message is None:
        raise InputError(f"{path} holds no contract: give --contract with a robot ({', '.join(ROBOTS)}), a run, a dataset or a file")
    try:
        told = json.loads(codec.decode(message.data, TEXT).data)
        return from_json(Contract, told["contract"], f"the contract in {path}"), dict(told.get("specs") or {})
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DataError(f"the contract in {path} cannot be read ({e}); give --contract") from None


def _told(bag: Bag) -> Any:
    """The message that tells what a bag's topics mean; None where there is none."""
    return next(bag.messages([CONTRACT]), None) if CONTRACT in bag.topics else None


def _calibrated(bag: Bag) -> tuple[Calibration, ...]:
    """Where the cameras were, as a bag that was made of a dataset tells; one that tells nothing where it does not."""
    message = _told(bag)
    try:
        told = {} if message is None else json.loads(codec.decode(message.data, TEXT).data)
    except (ValueError, RecursionError):
        told = {}
    kept = told.get("calibrations") if isinstance(told, dict) else None
    return (Calibration(),) if kept is None else calibrations.read(kept, f"the calibration in {bag.path}")


class _Conversion:
    """Frames and markers in, episodes out."""

    def __init__(
        self,
        contract: Contract,
        needed: set[str],
        out: Path,
        observation: ObservationSpec,
        action: ActionSpec,
        task: str | None,
        done: Converted,
    ) -> None:
        self.contract, self.needed, self.out, self.done = contract, needed, out, done
        self.observation, self.action, self.task = observation, action, task
        self.why = ""
        """Why there was no frame, as far as known."""
        self._writer: Writer | None = None
        self._gap = ""

    def bag(self, bag: Bag, markers: Markers, rate_hz: float) -> None:
        """Convert one bag."""
        aligner = Aligner(self.contract)
        wanted = {topic.name for topic in aligner.topics} | {markers.topic, markers.success}
        messages = markers.watch(bag.messages(wanted))
        self._gap = ""
        frame = None
        for frame in frames(self.contract, messages, rate_hz, self.needed, aligner):
            while True:
                ended, episode = markers.at(frame.at_ns)
                if ended is None:
                    break
                self._save(ended)
            if episode is not None:
                self._frame(frame, episode)
        while (ended := markers.at(1 << 62)[0]) is not None:
            self._save(ended)
        if (left := markers.finish()) is not None:
            self._save(left)
        self.done.dropped += aligner.dropped
        if frame is None:
            missing = sorted(self.needed & set(aligner.newest(1 << 62).missing))
            self.why = f"{', '.join(missing)} never came" + (f" ({aligner.problem})" if aligner.problem else "")

    def close(self, note: dict[str, Any]) -> None:
        """End the dataset; an episode that was begun is not lost."""
        if self._writer is not None:
            if self._writer.episode_length:
                self._save(Episode(0))
            self._writer.finalize()
            write_json(self.out / NOTE, note)
            contracts.store(self.contract, self.out / "meta")

    def _frame(self, frame: Frame, episode: Episode) -> None:
        missing = sorted(self.needed & set(frame.missing))
        if missing:
            if self._writer is not None and self._writer.episode_length:
                self._gap = f"{missing[0]} stayed away"
            return
        task = self.task or episode.task or _no_task()
        writer = self._writer = self._writer or self._create()
        if self._gap and writer.episode_length:
            self.done.damage.append(f"episode {writer.num_episodes} was cut in two: {self._gap}")
            self._save(Episode(0), [f"cut: {self._gap}"])
        self._gap = ""
        values = contract_frame(self.contract, frame.values)
        tensors = {**self.observation.tensors, ACTION: TensorSpec(shape=(self.action.dim,))}
        made = {key: np.ascontiguousarray(values[key]).astype(spec.dtype, copy=False) for key, spec in tensors.items()}
        writer.add_frame(made, task=task, stamp_ns=frame.at_ns)

    def _save(self, episode: Episode, notes: Sequence[str] = ()) -> None:
        if self._writer is not None and self._writer.episode_length:
            self.done.frames += self._writer.episode_length
            self._writer.save_episode(episode.success, notes)
            self.done.episodes += 1

    def _create(self) -> Writer:
        if (self.out / INFO).exists():
            raise InputError(f"{self.out} holds a dataset; convert into another folder")
        rate_hz = round(self.action.rate_hz)
        robot = self.contract.robot
        return Writer.create(self.out, fps=rate_hz, observation_spec=self.observation, action_spec=self.action, robot_type=robot)


def contract_frame(contract: Contract, values: Any) -> dict[str, np.ndarray]:
    """Features and action of recorded values: what a dataset's frame holds.

    Raises:
        DataError: a value is missing.
    """
    made = contract.observe(values)
    plain = contract.action_values == (PLAIN_ACTION,)
    made[ACTION] = np.asarray(values[PLAIN_ACTION], dtype=np.float32) if plain else contract.recorded_action(values)
    return made


def _of_what_is_there(contract: Contract, bag: Bag, done: Converted) -> Contract:
    """The contract without the cameras that it does not require and that a bag does not have."""
    known, kept = bag.topics, []
    for feature in contract.features:
        sources = [s for s in contract.sources if s.key in feature.values]
        absent = [s.topic for s in sources if s.image and not s.required and s.topic not in known]
        if absent:
            done.damage.append(f"{bag.path.name}: no topic {absent[0]}, so {feature.key} is left out")
        else:
            kept.append(feature)
    return contract if len(kept) == len(contract.features) else contract.changed(features=tuple(kept))


def _specs(contract: Contract, told: dict[str, Any]) -> tuple[ObservationSpec, ActionSpec]:
    """Specs of the dataset: the contract's, or what the dataset said that a bag was made of, where it fits."""
    if contract.action is None or not contract.action_values:
        raise InputError(f"the contract of {contract.robot!r} tells no recorded action: give it action and action_values")
    if not contract.features:
        raise InputError(f"the contract of {contract.robot!r} has no features: nothing would be recorded")
    made = contract.observation_spec()
    if told:
        try:
            said = ObservationSpec({k: from_json(TensorSpec, v, k) for k, v in told["observation"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise DataError(f"the bag's specs cannot be read ({e}); give --contract") from None
        if {k: s.shape for k, s in said.tensors.items()} == {k: s.shape for k, s in made.tensors.items()}:
            made = said
    return made, contract.action


def _check_topics(bag: Bag, contract: Contract, needed: set[str]) -> None:
    """Refuse a bag that lacks what is needed, or holds something else on its topic."""
    known = bag.topics
    for source in contract.sources:
        topic = known.get(source.topic)
        if topic is None:
            if source.key in needed:
                holds = ", ".join(sorted(known)) or "no topics"
                raise DataError(f"{bag.path} has no topic {source.topic}, which {source.key} is read from; it holds {holds}")
        elif topic.encoding != "cdr":
            raise DataError(f"topic {source.topic} of {bag.path} holds {topic.encoding!r}, not ROS 2's 'cdr'; leave out --contract")
        elif topic.type.replace("/msg/", "/") != source.message:
            given, wanted = topic.type.replace("/msg/", "/"), source.message
            raise DataError(f"topic {source.topic} of {bag.path} is {given}, the contract expects {wanted}")


def _markers(bag: Bag, episodes: str | None, success: str | None) -> Markers:
    known = {name: topic.type.replace("/msg/", "/") for name, topic in bag.topics.items()}
    if episodes is None:
        episodes = next((name for name in (EPISODES, SCENE_EPISODES) if bag.counts.get(name)), "")
    if success is None:
        success = SCENE_SUCCESS if SCENE_SUCCESS in known and episodes != EPISODES else ""
    for option, name in (("--markers", episodes), ("--success", success)):
        if name and name not in known:
            raise DataError(f"{option} {name}: {bag.path} has no such topic; it holds {', '.join(sorted(known))}")
    if success and known[success] != TRUTH:
        raise DataError(f"--success {success} is {known[success]} in {bag.path}; {TRUTH} is needed")
    return Markers(episodes, known.get(episodes, ""), success)


def _no_task() -> str:
    raise InputError("the bag does not tell what is done: give --task in words, for example --task 'lift the cube'")
