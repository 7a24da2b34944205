"""Keypoints asked for anew at the beginning of every episode, in every world, without the worlds waiting for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rewards.files import KINDS, CameraView, RewardUnavailable, Situation
from rewards.keypoint.followed import FollowedPoses
from rewards.keypoint.poses import ELEMENTS, Frames, Poses, StatePoses
from rewards.keypoint.propose import THING, Proposal, propose
from rewards.keypoint.reward import HAND, KeypointReward
from rewards.keypoint.settings import KeypointSettings
from rewards.keypoint.views import Scene, View
from rewards.shaping import After
from rewards.vlm import VLM, OpenAICompatible, RecordedVLM, SimOracleVLM
from sinew.errors import InputError, SinewError
from sinew.protocols import Reward
from sinew.specs import ENVIRONMENT_STATE

ORACLE, RECORDED = "oracle", "recorded:"
"""In place of an address: the truth of the simulation, or answers in a folder."""
AT_ONCE = 4
"""Questions under way at one time; more wait for their turn."""
FAILURES, REST_S = 3, 60.0
"""So many failures in a row, and nothing is asked for so long."""
LOG_EVERY = 20
"""Episodes between two lines of the training log."""


class Question:
    """One question, asked beside the worlds.

    Args:
        ask: the proposal; raises what it raises.
        turns: taken while it is asked.
    """

    def __init__(self, ask: Callable[[], Proposal], turns: threading.Semaphore) -> None:
        self._ask, self._turns = ask, turns
        self.answer: Proposal | None = None
        self.problem: BaseException | None = None
        self.dropped = False
        self.done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            with self._turns:
                if not self.dropped:
                    self.answer = self._ask()
        except BaseException as problem:  # whoever waits for it raises it
            self.problem = problem
        self.done.set()


class AskedReward:
    """The reward along a path that a model proposes for every episode.

    Until its answer is there, and where none comes, the potential of a world stays where episodes begin, so that success alone tells, and
    what critics learn keeps its scale: the sum of rewards is what it is with an answer. An answer that comes late is of the beginning, and
    what was walked meanwhile is paid at once. Where no answer can be had, the keypoints of the reward file stand in, if it has any.

    Args:
        settings: whom to ask.
        situation: where pictures come from, and the task.
    """

    def __init__(self, settings: AskedKeypoints, situation: Situation) -> None:
        self.settings, self.situation, self._look = settings, situation, situation.look
        self._vlm = settings.vlm(situation.folder)
        follow = settings.follow and situation.watch is not None
        poses: Poses = StatePoses(situation.observation, () if follow else _told(situation))
        if follow:
            poses = FollowedPoses(poses, situation)
        self.inner = KeypointReward(settings.common(), poses, situation.num_envs, situation.gamma)
        self.low, self.high = self.inner.low, self.inner.high
        self.counts = {"asked": 0, "answered": 0, "late": 0, "failed": 0}
        """Episodes so far."""
        self._guided = np.zeros(situation.num_envs, bool)
        self._questions: list[Question | None] = [None] * situation.num_envs
        self._began: list[tuple[Frames, Sequence[View]]] = [({}, ())] * situation.num_envs
        self._turns, self._said = threading.Semaphore(AT_ONCE), set[str]()
        self._in_a_row, self._rest_until = 0, 0.0
        if self._look is None:
            situation.say(
                f"no calibrated camera that stands still sees these episodes, and nobody can be asked about them: {self._instead}"
            )

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> None:
        """Ask about new episodes in worlds `ids`, and wait for answers, all together no longer than the settings say."""
        for world in map(int, ids):
            self._drop(world)
            row = np.array([world])
            self.inner.hold(row)
            self._guided[world] = False
            views = self.situation.watch(obs, world, True) if self._follows and self.situation.watch is not None else ()
            self._began[world] = (self.inner.poses.begin(obs, row, ()), views)
            if self._look is None or time.monotonic() < self._rest_until:
                self._stand_in(world)
                continue
            self.counts["asked"] += 1
            scene = self._look(obs, world)
            self._questions[world] = Question(lambda scene=scene: self._proposed(scene), self._turns)
            if self.counts["asked"] % LOG_EVERY == 0:
                self.situation.log({f"keypoints_{name}": count for name, count in self.counts.items()})
        wait_s = self.settings.timeout_s if self.situation.patient else self.settings.wait_s
        deadline, late = time.monotonic() + wait_s, False
        for world in map(int, ids):
            question = self._questions[world]
            if question is not None and question.done.wait(max(0.0, deadline - time.monotonic())):
                self._take(world, question)
            elif question is not None:
                late = True
                self.counts["late"] += 1
        if late:
            self._say_once(f"{self.settings.who} has not answered after {wait_s:g} s: success alone tells until it does, in each episode")

    def reward(self, transition: Mapping[str, Tensor], context: Mapping[str, Any]) -> Tensor:
        """See `KeypointReward.reward`; answers that have come meanwhile are taken up first."""
        for world, question in enumerate(self._questions):
            if question is not None and question.done.is_set():
                self._take(world, question)
        known = self.inner.sure(transition)
        sure = self._guided if known is None else self._guided & known
        return self.inner.paid(transition, self.inner.advance(After(transition), sure))

    @property
    def legend(self) -> str:
        """See `KeypointReward.legend`."""
        return self.inner.legend

    def overlay(self, image: np.ndarray, view: CameraView, obs: Mapping[str, Tensor], world: int) -> np.ndarray:
        """See `KeypointReward.overlay`; the picture itself where nobody has answered."""
        return self.inner.overlay(image, view, obs, world) if self._guided[world] else image

    @property
    def _follows(self) -> bool:
        return isinstance(self.inner.poses, FollowedPoses)

    def _proposed(self, scene: Scene) -> Proposal:
        settings, known = self.settings, set(self.inner.poses.names)
        poses = {name: T for name, T in scene.poses.items() if name in known}
        task = settings.task_text or self.situation.task_text
        vlm = self._vlm
        if vlm is None:
            if scene.truth is None:
                raise RewardUnavailable("the oracle knows simulated tasks alone; give the address of a model")
            vlm = settings.recorded(SimOracleVLM(scene.truth), self.situation.folder)
        return propose(
            vlm, task, scene.view, scene.second, poses=poses, seed=settings.seed, timeout_s=settings.timeout_s, follow=self._follows
        )

    def _take(self, world: int, question: Question) -> None:
        """Take up what came of a question."""
        self._questions[world] = None
        if question.answer is not None:
            self._in_a_row = 0
            self.counts["answered"] += 1
            self._guide(world, question.answer.settings, question.answer.points_m["path"][0])
            return
        if question.problem is not None and not isinstance(question.problem, SinewError):
            raise question.problem
        self.counts["failed"] += 1
        self._in_a_row += 1
        if self._in_a_row >= FAILURES:
            self._rest_until = time.monotonic() + REST_S
        self._say_once(f"{question.problem}; {self._instead} in such episodes, and learning goes on", "failed")
        self._stand_in(world)

    @property
    def _stands_in(self) -> bool:
        proposed = self.settings.proposed
        return proposed is not None and set(proposed.objects()) <= set(self.inner.poses.names)

    @property
    def _instead(self) -> str:
        return "the keypoints of the reward file stand in" if self._stands_in else "success alone tells"

    def _stand_in(self, world: int) -> None:
        if self._stands_in and self.settings.proposed is not None:
            self._guide(world, self.settings.proposed)

    def _guide(self, world: int, settings: KeypointSettings, start_m: np.ndarray | None = None) -> None:
        """Lay out the ways of an episode as they were when it began; the function point was at `start_m` (3,) then."""
        frames, views = self._began[world]
        poses = self.inner.poses
        if isinstance(poses, FollowedPoses):
            things = (
                {} if start_m is None or THING not in settings.objects() else {THING: np.array([*start_m, 1, 0, 0, 0, 1, 0], np.float32)}
            )
            poses.start(world, things, views)
            frames = {**frames, **{name: frame[:, None] for name, frame in things.items()}}
        self.inner.lay(frames, np.array([world]), settings)
        self._guided[world] = True

    def _drop(self, world: int) -> None:
        question = self._questions[world]
        if question is not None:
            question.dropped = True
            self._questions[world] = None

    def _say_once(self, text: str, about: str = "late") -> None:
        if about not in self._said:
            self._said.add(about)
            self.situation.say(text)


def _told(situation: Situation) -> tuple[str, ...]:
    """Objects whose poses are observed."""
    names = situation.observation[ENVIRONMENT_STATE].names if ENVIRONMENT_STATE in situation.observation else ()
    return tuple(name for name in situation.objects if all(f"{name}.{e}" in names for e in ELEMENTS))


@KINDS.add("keypoint-asked")
@dataclass(frozen=True, kw_only=True)
class AskedKeypoints:
    """A model is asked for keypoints at the beginning of every episode, in every world."""

    base_url: str
    """Server, for example http://localhost:8000/v1; oracle for a simulated task's own truth; recorded:NAME for answers in a folder beside
    the reward file."""
    model: str = "default"
    """Its name on the server."""
    api_key_env: str = "SINEW_VLM_API_KEY"
    """Environment variable of the key, where one is needed."""
    task_text: str = ""
    """What is to be done; the task's own sentence if left out."""
    proposed: KeypointSettings | None = None  # pyright: ignore[reportGeneralTypeIssues]
    """Stands in for episodes without an answer, and for recorded episodes that nobody can be asked about; success alone if left out."""
    wait_s: float = 5.0
    """As long may worlds wait for the answers as episodes begin; later ones are taken up when they come."""
    timeout_s: float = 60.0
    """For an answer, retries included."""
    max_calls: int = 5000
    """Questions sent in all, by each process that acts."""
    max_tokens: int = 20_000_000
    """Tokens used in all, likewise."""
    record: str = ""
    """Folder beside the reward file in which answers are kept and found again by their pictures; nothing for none."""
    follow: bool = False
    """Whether what is moved is followed in the pictures of two cameras, and poses of objects are not looked at."""
    stray: float = 0.5
    """See `KeypointSettings`, as the next two."""
    weight: float = 1.0
    """What the whole way is worth, where success is worth 1."""
    confidence: float = 0.3
    """Below this certainty of where things are, the potential is held."""
    seed: int = 0
    """Of the model's sampling."""

    def __post_init__(self) -> None:
        if not 0 <= self.wait_s <= 3600 or not 0 < self.timeout_s <= 3600 or min(self.max_calls, self.max_tokens) < 1:
            raise InputError("wait_s must lie in 0 to 3600, timeout_s above 0 up to 3600, and max_calls and max_tokens be at least 1")
        for folder in (self.record, self.base_url.removeprefix(RECORDED) if self.base_url.startswith(RECORDED) else ""):
            if folder and Path(folder).name != folder:
                raise InputError(f"folder {folder!r}: give the name of a folder beside the reward file")
        if self.base_url != ORACLE and not self.base_url.startswith(RECORDED):
            OpenAICompatible(self.base_url, self.model)
        self.common()

    def common(self) -> KeypointSettings:
        """What holds for all episodes; refuses what is out of its range."""
        return KeypointSettings(function=HAND, waypoints=(HAND,), stray=self.stray, weight=self.weight, confidence=self.confidence)

    @property
    def who(self) -> str:
        """Who is asked, for a line."""
        return self.base_url if self.base_url == ORACLE or self.base_url.startswith(RECORDED) else f"{self.model} at {self.base_url}"

    def returns(self, gamma: float, max_episode_steps: int) -> tuple[float, float]:
        """See `KeypointSettings.returns`."""
        return self.common().returns(gamma, max_episode_steps)

    def vlm(self, folder: Path) -> VLM | None:
        """Who answers; None for the oracle, who is another one in every scene."""
        if self.base_url == ORACLE:
            return None
        if self.base_url.startswith(RECORDED):
            return RecordedVLM(folder / self.base_url.removeprefix(RECORDED))
        told = {"max_calls": self.max_calls, "max_tokens_total": self.max_tokens}
        return self.recorded(OpenAICompatible(self.base_url, self.model, self.api_key_env, **told), folder)

    def recorded(self, vlm: VLM, folder: Path) -> VLM:
        """The same, with its answers kept where that is wanted."""
        return RecordedVLM(folder / self.record, vlm) if self.record else vlm

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`; nobody is asked about episodes that no calibrated camera sees, as recorded ones without pictures."""
        return AskedReward(self, situation)
