"""Success as a classifier sees it: the chance that a state is one in which the task is done, and how far it can be believed.

Sources: rewards from a classifier of success, Luo et al. 2024, arXiv:2401.16013 (SERL); calibration by one temperature and the
expected calibration error, Guo et al. 2017, arXiv:1706.04599.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rewards.files import KINDS
from rewards.latent import Encoder, EncoderConfig
from rewards.measures import auc, auc_interval
from rewards.preference.episodes import Episodes
from rewards.preference.scored import Scored, ScoredSettings
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress

KIND = "classifier"
BINS = 15
"""Of the calibration curve, equally wide."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Settings of training."""

    dim: int = 32
    """Length of the latent."""
    hidden: int = 128
    """Width of the encoder."""
    updates: int = 600
    """Gradient steps."""
    batch_size: int = 256
    """Frames in a step."""
    tail: int = 3
    """Last frames of a success that count as done; as many before them are left out, being neither."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    seed: int = 0
    """Of weights and batches."""

    def __post_init__(self) -> None:
        if min(self.dim, self.hidden, self.updates, self.batch_size, self.tail) < 1 or self.learning_rate <= 0:
            raise InputError("dim, hidden, updates, batch_size and tail must be at least 1, learning_rate above 0")


@KINDS.add(KIND)
@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(ScoredSettings):
    """The chance of being done as a potential."""

    kind = KIND


def frames(episodes: Episodes, tail: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames that are surely done or surely not: their numbers (M,) and whether they are done (M,) bool."""
    rows, done = [], []
    for span, success in zip(episodes.spans, episodes.outcome, strict=True):
        if not success:
            rows.append(np.arange(span.start, span.stop))
            done.append(np.zeros(span.stop - span.start, bool))
            continue
        end = np.arange(max(span.start, span.stop - tail), span.stop)
        before = np.arange(span.start, max(span.start, span.stop - 2 * tail))
        rows += [before, end]
        done += [np.zeros(len(before), bool), np.ones(len(end), bool)]
    return np.concatenate(rows), np.concatenate(done)


def train(
    episodes: Episodes, encoder: EncoderConfig, stats: tuple[Any, Any], config: ClassifierConfig, progress: Progress = SILENT
) -> Scored:
    """A classifier of the frames of labelled episodes.

    Args:
        episodes: to learn from.
        encoder: what is seen.
        stats: mean and standard deviation of the vectors, `rewards.latent.statistics`.
        config: settings; the same on the same machine give the same weights.
        progress: told every update.

    Raises:
        DataError: the loss is not finite.
    """
    rows, done = frames(episodes, config.tail)
    wanted = torch.from_numpy(done.astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        scored = Scored(Encoder(encoder, *stats))
    optimizer = torch.optim.AdamW(scored.parameters(), config.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.updates)
    stream = np.random.default_rng(config.seed)
    progress.start(KIND, config.updates)
    for _ in range(config.updates):
        pick = stream.integers(len(rows), size=config.batch_size)
        loss = functional.binary_cross_entropy_with_logits(scored(episodes.at(rows[pick])), wanted[pick])
        if not torch.isfinite(loss):
            raise DataError("the classifier's loss is not finite: lower the learning rate, or look at the data")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.advance(1, loss=loss.item())
    return scored.eval()


def fit_temperature(logits: Tensor, done: Tensor) -> float:
    """The temperature that makes sigmoid(logits / T) likeliest for outcomes `done` (M,); found among 0.05 to 20."""
    candidates = torch.logspace(np.log10(0.05), np.log10(20.0), 400)
    losses = torch.stack([functional.binary_cross_entropy_with_logits(logits / t, done.float()) for t in candidates])
    return float(candidates[int(losses.argmin())])


def calibration_curve(chance: np.ndarray, done: np.ndarray) -> list[dict[str, float]]:
    """Of each bin that holds something: {"said", "was", "count"}, the mean chance that was said and the share that was done."""
    bins = np.minimum((chance * BINS).astype(int), BINS - 1)
    found = [(chance[bins == b], done[bins == b]) for b in range(BINS)]
    return [{"said": float(c.mean()), "was": float(d.mean()), "count": len(c)} for c, d in found if len(c)]


def calibration_error(chance: np.ndarray, done: np.ndarray) -> float:
    """Mean difference of what was said and what was, each bin weighted by its count."""
    curve = calibration_curve(chance, done)
    return sum(b["count"] * abs(b["said"] - b["was"]) for b in curve) / max(1, len(chance))


def measure(scored: Scored, episodes: Episodes, tail: int) -> dict[str, Any]:
    """How good a classifier is on episodes that it did not see.

    Returns:
        {"successes", "failures", "auc" of the highest chance along an episode, "auc95", "frame_auc", "calibration_error" and the same
        "_raw" without the temperature, "curve", "temperature", "accuracy" at one half over episodes}.
    """
    logits = scored.all(episodes.seen)
    highest = [float(logits[span].max()) for span in episodes.spans]
    good = [h for h, success in zip(highest, episodes.outcome, strict=True) if success]
    bad = [h for h, success in zip(highest, episodes.outcome, strict=True) if not success]
    rows, done = frames(episodes, tail)
    value, temperature = auc(good, bad), float(scored.temperature)
    chance = torch.sigmoid(logits[rows] / temperature).numpy()
    raw = torch.sigmoid(logits[rows]).numpy()
    told: Mapping[str, Any] = {
        "successes": len(good), "failures": len(bad), "auc": value, "auc95": list(auc_interval(value, len(good), len(bad))),
        "frame_auc": auc(logits[rows][done].tolist(), logits[rows][~done].tolist()),
        "accuracy": float(np.mean([(h > 0) == success for h, success in zip(highest, episodes.outcome, strict=True)])),
        "calibration_error": calibration_error(chance, done), "calibration_error_raw": calibration_error(raw, done),
        "temperature": temperature, "curve": calibration_curve(chance, done), "curve_raw": calibration_curve(raw, done),
    }  # fmt: skip
    return dict(told)
