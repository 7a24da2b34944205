"""A score learned from which of two pieces of recording was better.

Source: the Bradley-Terry model of rewards, Christiano et al. 2017, arXiv:1706.03741; here of the mean score along a piece, so that
pieces of different length can be compared, and of states, so that it makes a potential.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rewards.files import KINDS
from rewards.latent import Encoder, EncoderConfig
from rewards.preference.episodes import Episodes
from rewards.preference.scored import Scored, ScoredSettings
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import EpisodeData
from sinew.stats import wilson

KIND = "preference"
SEGMENT = 10
"""Frames of a piece, as a rule."""


@dataclass(frozen=True)
class Pair:
    """Two pieces, the first of which was held to be better."""

    better: tuple[int, int]
    """First and last frame + 1."""
    worse: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PairwiseConfig:
    """Settings of training."""

    dim: int = 32
    """Length of the latent."""
    hidden: int = 128
    """Width of the encoder."""
    updates: int = 600
    """Gradient steps."""
    batch_size: int = 64
    """Pairs in a step."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    decay: float = 1e-2
    """Weight decay."""
    seed: int = 0
    """Of weights and batches."""

    def __post_init__(self) -> None:
        if min(self.dim, self.hidden, self.updates, self.batch_size) < 1 or self.learning_rate <= 0:
            raise InputError("dim, hidden, updates and batch_size must be at least 1, learning_rate above 0")


@KINDS.add(KIND)
@dataclass(frozen=True, kw_only=True)
class PairwiseSettings(ScoredSettings):
    """How well liked what is seen is, as a potential."""

    kind = KIND


def read_pairs(path: Path, data: EpisodeData) -> list[Pair]:
    """What a person preferred: lines {"a": [episode, first, last + 1], "b": [...], "better": "a" or "b"}; "same" lines are left out.

    Returns:
        Pairs with frames of the whole dataset.

    Raises:
        InputError: there is no such file.
        DataError: a line is no preference, or about frames that are not there.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there; a file of preferences has one JSON object a line")
    made = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            first, second, better = _piece(told["a"], data), _piece(told["b"], data), told["better"]
            if better not in ("a", "b", "same"):
                raise ValueError("better is a, b or same")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            form = '{"a": [0, 5, 15], "b": [3, 5, 15], "better": "a"}'
            raise DataError(
                f"{path}, line {number} is no preference ({str(e)[:80]}); write {form} with episode, first and last + 1"
            ) from None
        if better != "same":
            made.append(Pair(first, second) if better == "a" else Pair(second, first))
    return made


def _piece(told: Any, data: EpisodeData) -> tuple[int, int]:
    given: Any = data
    episode, first, last = told
    if not all(type(v) is int for v in (episode, first, last)) or not 0 <= episode < data.num_episodes:
        raise ValueError(f"there is no episode {episode!r}")
    info = given.episode(episode)
    if not 0 <= first < last <= info.length:
        raise ValueError(f"episode {episode} has no frames {first} to {last}")
    return info.start + first, info.start + last


def from_outcomes(episodes: Episodes, count: int, seed: int) -> list[Pair]:
    """Preferences that outcomes imply: the end of a success over the end of a failure, and in a success later over earlier.

    Raises:
        InputError: there is no success.
    """
    good = [s for s, success in zip(episodes.spans, episodes.outcome, strict=True) if success]
    bad = [s for s, success in zip(episodes.spans, episodes.outcome, strict=True) if not success]
    if not good:
        raise InputError("no success among the episodes: nothing is known to be better than anything else")
    stream, made = np.random.default_rng(seed), []
    for i in range(count):
        span = good[int(stream.integers(len(good)))]
        if bad and i % 2:
            other = bad[int(stream.integers(len(bad)))]
            first = int(stream.integers(other.start, max(other.start + 1, other.stop - SEGMENT + 1)))
            made.append(Pair((max(span.start, span.stop - SEGMENT), span.stop), (first, min(first + SEGMENT, other.stop))))
            continue
        length = max(1, min(SEGMENT, (span.stop - span.start) // 2))
        early, late = sorted(int(v) for v in stream.choice(np.arange(span.start, span.stop - length + 1), 2, replace=False))
        made.append(Pair((late, late + length), (early, early + length)))
    return made


def train(
    episodes: Episodes, pairs: Sequence[Pair], encoder: EncoderConfig, stats: tuple[Any, Any], config: PairwiseConfig,
    progress: Progress = SILENT,
) -> Scored:  # fmt: skip
    """A score by which the better piece of each pair is higher.

    Raises:
        InputError: there are no pairs.
        DataError: the loss is not finite.
    """
    if not pairs:
        raise InputError("there are no preferences to learn from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        scored = Scored(Encoder(encoder, *stats))
    optimizer = torch.optim.AdamW(scored.parameters(), config.learning_rate, weight_decay=config.decay)
    stream = np.random.default_rng(config.seed)
    progress.start(KIND, config.updates)
    for _ in range(config.updates):
        batch = [pairs[i] for i in stream.integers(len(pairs), size=min(config.batch_size, len(pairs)))]
        loss = -functional.logsigmoid(margins(scored, episodes, batch)).mean()
        if not torch.isfinite(loss):
            raise DataError("the loss of the preferences is not finite: lower the learning rate, or look at the data")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress.advance(1, loss=loss.item())
    with torch.no_grad():
        scored.temperature.copy_(scored.all(episodes.seen).std().clamp(min=1e-3))
    return scored.eval()


def margins(scored: Scored, episodes: Episodes, pairs: Sequence[Pair]) -> Tensor:
    """How much higher the better piece of each pair scores (P,); the mean along a piece is what counts."""
    pieces = [piece for pair in pairs for piece in (pair.better, pair.worse)]
    rows = np.concatenate([np.arange(first, last) for first, last in pieces])
    which = torch.from_numpy(np.repeat(np.arange(len(pieces)), [last - first for first, last in pieces]))
    total = torch.zeros(len(pieces)).index_add(0, which, scored(episodes.at(rows)))
    mean = total / torch.bincount(which, minlength=len(pieces))
    return mean[0::2] - mean[1::2]


def measure(scored: Scored, episodes: Episodes, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Share of pairs that a score orders as they were, with its interval."""
    with torch.no_grad():
        right = int((margins(scored, episodes, pairs) > 0).sum()) if pairs else 0
    return {"pairs": len(pairs), "right": right, "agreement": right / max(1, len(pairs)), "wilson95": list(wilson(right, len(pairs)))}
