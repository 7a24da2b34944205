"""Progress as a model that sees says it: pictures in shuffled order (GVL), or how likely it holds the task to be done (TOPReward).

A model that is shown an episode in order says that it advances because episodes do. Shown in shuffled order it has to look; whether it
did is told by the rank correlation of its answers with time (`rewards.measures.rank_correlation`).

Sources: Ma et al. 2024, arXiv:2411.04549 (GVL); TOPReward's question for the probability of one word, where a server tells those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rewards.files import KINDS, RewardUnavailable, Situation
from rewards.learned import check_beside
from rewards.shaping import ShapedByHistory
from rewards.vlm.http import OpenAICompatible
from rewards.vlm.protocol import VLM, VLMReply, VLMUnavailable
from rewards.vlm.recorded import RecordedVLM
from sinew.errors import InputError, SinewError
from sinew.protocols import Reward
from sinew.specs import IMAGES

CERTAIN = 10.0
"""A logarithm of a probability of minus this counts as impossible."""
ALTERNATIVES = 20
"""Likeliest words that are asked for."""


def shuffled_progress(vlm: VLM, pictures: Sequence[np.ndarray], task: str, seed: int = 0) -> np.ndarray:
    """(T,) progress in [0, 1] of pictures in the order of time; the first one is told as the beginning and counts as 0.

    Args:
        vlm: the model, asked once.
        pictures: (H, W, 3) uint8 each, at least two.
        task: what is to be done.
        seed: of the shuffle and of the model's sampling.

    Raises:
        VLMUnavailable: there is no usable answer.
    """
    count = len(pictures) - 1
    order = np.random.default_rng(seed).permutation(count)
    schema = {
        "type": "object", "required": ["percent"], "additionalProperties": False,
        "properties": {"percent": {"type": "array", "minItems": count, "maxItems": count,
                                   "items": {"type": "number", "minimum": 0, "maximum": 100}}},
    }  # fmt: skip
    text = (
        f"A robot is to do this: {task}. The first picture shows the beginning, where 0 percent of the task is done. "
        f"The {count} pictures after it are of the same attempt in random order. Look at each and say how much of the task is done in it, "
        'in percent, in the order in which the pictures are shown, as {"percent": [...]}.'
    )
    reply = vlm.chat(text, [pictures[0], *(pictures[1 + i] for i in order)], schema=schema, seed=seed)
    answer = np.empty(count)
    answer[order] = np.asarray(reply.json["percent"], dtype=float) / 100
    return np.concatenate(([0.0], answer))


def likelihood(vlm: VLM, pictures: Sequence[np.ndarray], task: str, seed: int = 0) -> float:
    """Logarithm of the probability that a model gives to the task being done at the end of pictures in the order of time, at most 0.

    Raises:
        VLMUnavailable: the server tells no probabilities, or there is no answer.
    """
    text = (
        f"The pictures show a robot's attempt in the order of time. Its task: {task}. "
        "Is the task done in the last picture? Decide whether that is True or False, and answer with this one word. The answer is:"
    )
    return log_true(vlm.chat(text, pictures, seed=seed, max_tokens=1, top_logprobs=ALTERNATIVES))


def log_true(reply: VLMReply) -> float:
    """Logarithm of the probability of "True" as the first word of an answer; of the least likely word told, where it is not among them.

    Raises:
        VLMUnavailable: no probabilities were told.
    """
    if not reply.logprobs:
        raise VLMUnavailable("the server tells no probabilities of words: use the question about shuffled pictures instead")
    first = reply.logprobs[0]
    told = {**first.top, first.token: first.logprob}
    said = [p for word, p in told.items() if word.strip().lower() == "true"]
    return min(0.0, math.log(sum(map(math.exp, said))) if said else min(told.values()))


class AskedPotential:
    """What a model says at every so many steps of an episode, held in between: -1 at the beginning, 0 where the task is done.

    Args:
        vlm: the model.
        settings: what it is asked.
        situation: where pictures come from, and the task.

    Raises:
        RewardUnavailable: there are no pictures of that camera.
    """

    low, high = -1.0, 0.0

    def __init__(self, vlm: VLM, settings: Asked, situation: Situation) -> None:
        self.vlm, self.settings, self.situation = vlm, settings, situation
        self.key = IMAGES + settings.camera
        if self.key not in situation.observation:
            self._drawn(0)
        self.pictures: list[list[np.ndarray]] = [[] for _ in range(situation.num_envs)]
        self.steps = [0] * situation.num_envs
        self.value = torch.full((situation.num_envs,), -1.0)

    def begin(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
        """See `rewards.shaping.HistoryPotential`."""
        for world in ids:
            self.pictures[world], self.steps[world] = [self._picture(obs, world)], 0
            self.value[world] = -1.0
        return self.value[list(ids)]

    def advance(self, obs: Mapping[str, Tensor]) -> Tensor:
        """See `rewards.shaping.HistoryPotential`."""
        self.value = self.value.clone()
        for world in range(len(self.pictures)):
            self.steps[world] += 1
            # The picture of a world that has ended may be of its next episode by now; an observation is always the last one's own.
            last = self.key not in self.situation.observation and self.steps[world] >= self.situation.max_episode_steps
            if self.steps[world] % self.settings.every == 0 and not last:
                self.pictures[world].append(self._picture(obs, world))
                self.value[world] = self._ask(self.pictures[world])
        return self.value

    def _ask(self, pictures: Sequence[np.ndarray]) -> float:
        most, settings = self.settings.pictures, self.settings
        shown = [pictures[int(i)] for i in np.unique(np.linspace(0, len(pictures) - 1, most).round())]
        task = self.situation.task_text
        if settings.question == "likelihood":
            return max(-CERTAIN, likelihood(self.vlm, shown, task, settings.seed)) / CERTAIN
        return float(shuffled_progress(self.vlm, shown, task, settings.seed)[-1]) - 1.0

    def _picture(self, obs: Mapping[str, Tensor], world: int) -> np.ndarray:
        return obs[self.key][world].cpu().numpy() if self.key in self.situation.observation else self._drawn(world)

    def _drawn(self, world: int) -> np.ndarray:
        """A picture that is no observation.

        Raises:
            RewardUnavailable: there is none of that camera, or this machine draws none.
        """
        missing = f"there are no pictures of camera {self.settings.camera!r} to ask about"
        if self.situation.pictures is None:
            raise RewardUnavailable(f"{missing}; record them with sinew collect --cameras {self.settings.camera}")
        try:
            return self.situation.pictures(self.settings.camera, world)
        except SinewError as problem:
            raise RewardUnavailable(f"{missing}: {problem}") from None


@KINDS.add("asked")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """Settings: success, and what a model says of the progress as a potential."""

    base_url: str = ""
    """Server, for example http://localhost:8000/v1; nothing to find answers in `record` alone."""
    model: str = "default"
    """Its name on the server."""
    camera: str = "front"
    """Whose pictures are shown."""
    question: Literal["shuffled", "likelihood"] = "shuffled"
    """shuffled: percent of each picture, in shuffled order; likelihood: the probability of "True", where the server tells it."""
    every: int = 15
    """Steps between two questions about an episode."""
    pictures: int = 8
    """Most pictures in a question."""
    max_calls: int = 1000
    """Questions sent in all, by the worlds and about recorded episodes each; when they are spent success alone is rewarded."""
    record: str = ""
    """Folder beside the reward file in which answers are kept and found again; nothing for none."""
    weight: float = 1.0
    """Factor on the potential."""
    seed: int = 0
    """Of the shuffle and of the model's sampling."""

    def __post_init__(self) -> None:
        if min(self.every, self.max_calls) < 1 or self.pictures < 2 or not self.weight > 0:
            raise InputError("every and max_calls must be at least 1, pictures at least 2, weight above 0")
        if self.record:
            check_beside(self.record)
        elif not self.base_url:
            raise InputError("give base_url, a server, or record, a folder of recorded answers")

    def returns(self, gamma: float, max_episode_steps: int) -> tuple[float, float]:
        """Lowest and highest return: those of success, moved by the potential."""
        return 0.0, 1.0 + self.weight

    def vlm(self, folder: Path) -> VLM:
        """Who is asked, where the reward file lies in `folder`.

        Raises:
            InputError: the address is none, or there are no recorded answers and nobody to ask.
        """
        if not self.base_url:
            return RecordedVLM(folder / self.record)
        server = OpenAICompatible(self.base_url, self.model, max_calls=self.max_calls)
        return RecordedVLM(folder / self.record, server) if self.record else server

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`."""
        potential = AskedPotential(self.vlm(situation.folder), self, situation)
        return ShapedByHistory(potential, situation.gamma, situation.num_envs, self.weight)
