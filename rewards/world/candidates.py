"""Candidate plans ranked by what a world model sees at their end, and the pairs for preference training that come of it.

Source: post-training of NORA-1.5, Hung et al. 2025, arXiv:2511.14659: cost of a plan = distance of the predicted latent to the goal
+ 0.1 times the mean absolute deviation from the demonstrated actions; the best and the worst of a few make a pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rewards.files import KINDS, Situation
from rewards.learned import LearnedSettings, SeenPotential, ShapedBySight, check_seen
from rewards.preference.episodes import Episodes
from rewards.world.model import KIND, WorldModel, load_world
from sinew.errors import InputError
from sinew.protocols import Reward
from sinew.stats import wilson

By = Literal["outcome", "goal"]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How plans are scored."""

    by: By = "outcome"
    """outcome: the success that is predicted to lie ahead of a plan's end; goal: the predicted distance to what was seen at that time in a
    demonstration that succeeded, and the outcome where there is none."""
    deviation: float = 0.1
    """Weight of the mean absolute deviation from the demonstrated actions, in [-1, 1] units."""

    def __post_init__(self) -> None:
        if self.deviation < 0:
            raise InputError(f"the weight of the deviation is at least 0, not {self.deviation:g}")


@torch.no_grad()
def scores(
    model: WorldModel, seen: Mapping[str, Tensor], plans: Tensor, ranking: Ranking, demonstrated: Tensor | None = None,
    goal: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Scores of candidate plans, higher is better.

    Args:
        model: of the world.
        seen: {key: (B, ...)} observations from which they start.
        plans: (B, n, H, A) in [-1, 1].
        ranking: how.
        demonstrated: (B, H, A) in [-1, 1], NaN in rows where nothing was demonstrated; None for no deviation.
        goal: (B, L) latents that shall be seen after the plans, NaN in rows without; needed to rank by goal.

    Returns:
        (B, n).
    """
    rows, n = plans.shape[:2]
    latents = model.encoder(seen).repeat_interleave(n, dim=0)
    end = model.roll(latents, plans.flatten(0, 1))[:, -1]
    end = end.reshape(rows, n, -1)
    found = model.ahead(end)
    if ranking.by == "goal" and goal is not None:
        near = -(end - goal[:, None]).abs().mean(2)
        found = torch.where(torch.isfinite(near), near, found)
    if demonstrated is not None and ranking.deviation:
        away = (plans - demonstrated[:, None]).abs().mean((2, 3))
        found = found - ranking.deviation * torch.nan_to_num(away)
    return found


def choose(plans: Tensor, found: Tensor) -> dict[str, Tensor]:
    """The best and the worst plan of each row as `policies.preference` reads them.

    Args:
        plans: (B, n, H, A).
        found: (B, n) scores.

    Returns:
        "winner", "loser" (B, H, A) and "gap" (B,).
    """
    each, best, worst = torch.arange(len(plans)), found.argmax(1), found.argmin(1)
    return {"winner": plans[each, best], "loser": plans[each, worst], "gap": (found[each, best] - found[each, worst]).float()}


def ranking_of_recorded(
    model: WorldModel, episodes: Episodes, actions: Tensor, ranking: Ranking, horizon: int, others: int = 4, seed: int = 0
) -> dict[str, Any]:
    """How often the actions that were recorded in a success rank above actions taken from elsewhere, by the model alone.

    Args:
        model: of the world.
        episodes: that it did not learn from.
        actions: (F, A) of theirs.
        ranking: how; the deviation is left out, since it would tell.
        horizon: actions of a plan.
        others: plans from other places of the data beside the recorded one.
        seed: of the choice.

    Returns:
        {"trials", "first", "share", "wilson95", "chance"}.
    """
    stream = np.random.default_rng(seed)
    spans = [span for span in episodes.spans if span.stop - span.start > horizon]
    good = [s for s, ok in zip(episodes.spans, episodes.outcome, strict=True) if ok and s.stop - s.start > horizon]
    if not good:
        raise InputError(f"no success that was held out is longer than the horizon of {horizon}")
    starts = np.concatenate([np.arange(s.start, s.stop - horizon) for s in good])
    anywhere = np.concatenate([np.arange(s.start, s.stop - horizon) for s in spans])
    take = np.concatenate([starts[:, None], stream.choice(anywhere, (len(starts), others))], axis=1)
    plans = actions[take[:, :, None] + np.arange(horizon)]
    goal = model.all(episodes.at(starts + horizon))
    found = scores(model, episodes.at(starts), plans, Ranking(by=ranking.by, deviation=0.0), goal=goal)
    first = (found[:, :1] > found[:, 1:]).all(1)
    episode = np.concatenate([np.full(s.stop - horizon - s.start, i) for i, s in enumerate(good)])
    one = np.array([first[episode == i].numpy().mean() for i in range(len(good))])  # frames of an episode are no independent trials
    boots = stream.choice(one, (2000, len(one))).mean(1)
    k = int(first.sum())
    return {
        "trials": len(starts), "first": k, "share": k / len(starts), "wilson95": list(wilson(k, len(starts))), "episodes": len(good),
        "bootstrap95_over_episodes": [float(q) for q in np.quantile(boots, [0.025, 0.975])], "chance": 1 / (1 + others),
    }  # fmt: skip


# ---------------------------------------------------------------- as a reward


@KINDS.add(KIND)
@dataclass(frozen=True, kw_only=True)
class WorldSettings(LearnedSettings):
    """The discounted success that a world model sees ahead, as a potential."""

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`."""
        model = load_world(situation.folder / self.weights)
        check_seen(model.encoder.config, situation)
        return ShapedBySight(SeenPotential(model.encoder, model.ahead, self.low, self.high), situation.gamma, self.weight)
