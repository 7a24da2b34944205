"""Has a model write rewards, tries each on recorded episodes, and tells the model how they did: the best one is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewards.generated.fields import Field, described, fields_of, widths
from rewards.generated.judge import Judgement, Recorded, judge
from rewards.generated.prompt import code_in, corrected, question
from rewards.generated.sandbox import CodeRefused, Sandbox, WorkerLost
from rewards.vlm.protocol import VLM, VLMUnavailable
from sinew.errors import InputError
from sinew.progress import SILENT, Progress
from sinew.specs import ActionSpec, ObservationSpec

MAX_TOKENS = 2000


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How much a model is asked."""

    candidates: int = 4
    """Answers in each round, each with its own seed."""
    rounds: int = 2
    """Rounds; from the second on the model sees the best code so far and how it did."""
    mends: int = 1
    """Times that an answer which cannot be used is sent back with the reason."""
    form: str = "potential"
    """potential or reward."""
    seed: int = 0
    """Of the model's sampling."""
    timeout_s: float = 180.0
    """For each answer."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.rounds < 1 or self.mends < 0:
            raise InputError("at least one candidate, one round, and no fewer than 0 mends are needed")
        if self.form not in ("potential", "reward"):
            raise InputError(f"the form is potential or reward, not {self.form!r}")


@dataclass(frozen=True)
class Candidate:
    """One answer."""

    source: str
    judgement: Judgement | None
    """None where it could not be evaluated."""
    problem: str
    """Why not; empty where it was."""
    round: int

    @property
    def score(self) -> float:
        """For choosing; higher is better."""
        return -np.inf if self.judgement is None else self.judgement.score


@dataclass(frozen=True)
class Request:
    """What is wanted, and what is known of earlier attempts."""

    task_text: str
    observation: ObservationSpec
    action: ActionSpec
    earlier: str = ""
    """Code to be improved."""
    feedback: tuple[str, ...] = ()
    """A person's words about it."""
    training: str = ""
    """What it did in training."""
    images: tuple[np.ndarray, ...] = ()
    """Pictures of the scene for a model that sees, (H, W, 3) uint8."""


def generate(model: VLM, request: Request, recorded: Recorded, config: GenerateConfig, progress: Progress = SILENT) -> list[Candidate]:
    """Candidates from the best to the worst.

    Raises:
        RewardUnavailable: no answer can be had at all, or this machine does not confine a process.
    """
    fields = fields_of(request.observation)
    made: list[Candidate] = []
    progress.start("candidates", config.rounds * config.candidates)
    for number in range(config.rounds):
        asked = _asked(request, fields, recorded, made, config.form)
        for i in range(config.candidates):
            try:
                made.append(_candidate(model, asked, request, fields, recorded, config, number, number * config.candidates + i))
            except VLMUnavailable:
                if not made:
                    raise
                return _ranked(made)  # what was had so far is of use
            progress.advance(1)
    return _ranked(made)


def try_code(source: str, fields: Mapping[str, Field], action: ActionSpec, recorded: Recorded) -> Judgement:
    """Run code on recorded episodes.

    Raises:
        CodeRefused: it says what it may not, does not work out, or brings its process down.
    """
    try:
        with Sandbox(source, widths(fields.values()), action.dim) as sandbox:
            return judge(sandbox, fields, recorded)
    except WorkerLost as e:
        raise CodeRefused(str(e)) from None


def _candidate(
    model: VLM,
    asked: str,
    request: Request,
    fields: Mapping[str, Field],
    recorded: Recorded,
    config: GenerateConfig,
    number: int,
    index: int,
) -> Candidate:
    text, source, problem = asked, "", ""
    for _ in range(config.mends + 1):
        reply = model.chat(text, request.images, seed=config.seed + index, max_tokens=MAX_TOKENS, timeout_s=config.timeout_s)
        source = code_in(reply.text)
        try:
            return Candidate(source, try_code(source, fields, request.action, recorded), "", number)
        except CodeRefused as e:
            problem = str(e)
            text = corrected(asked, source[:4000], problem)
    return Candidate(source, None, problem, number)


def _asked(request: Request, fields: Mapping[str, Field], recorded: Recorded, made: Sequence[Candidate], form: str) -> str:
    """The question of a round: of the first one about what was there before, later about the best so far."""
    best = _ranked(made)[0] if made else None
    if best is not None and best.judgement is not None:
        request = replace(request, earlier=best.source, training="")
    figures = best.judgement.told() if best is not None and best.judgement is not None else ""
    environment = described(fields, request.action, recorded.ranges(fields))
    return question(
        request.task_text, environment, form, earlier=request.earlier, feedback=request.feedback, figures=figures,
        training=request.training,
    )  # fmt: skip


def _ranked(made: Sequence[Candidate]) -> list[Candidate]:
    return sorted(made, key=lambda c: -c.score)
