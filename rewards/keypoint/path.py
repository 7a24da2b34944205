"""Paths that may only be walked forward, for many worlds at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sinew.errors import SpecError

SHORTEST_M = 1e-4


def arc_lengths(waypoints: Tensor) -> Tensor:
    """(N, M) metres from the first waypoint to each, for waypoints (N, M, 3)."""
    steps = (waypoints[:, 1:] - waypoints[:, :-1]).norm(dim=2)
    return torch.cat((steps.new_zeros(len(steps), 1), steps.cumsum(1)), 1)


def hold_path(p: Tensor, waypoints: Tensor, progress: Tensor, arc: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Project points on paths that may only be walked forward.

    Only the segment that the progress lies on and the one after it count, so that a path which comes back to a place that it passed
    gives nothing away.

    Args:
        p: (N, 3) metres.
        waypoints: (N, M, 3) metres, a path for each point.
        progress: (N,) metres along the path reached so far.
        arc: `arc_lengths(waypoints)`, where it is at hand.

    Returns:
        (N,) new progress in metres, never below `progress`; (N,) distance to that place of the path in metres.

    Raises:
        SpecError: a path has fewer than two waypoints.

    Source: the potential along a path of docs/rewards.md.
    """
    if waypoints.dim() != 3 or waypoints.shape[1] < 2:
        raise SpecError(f"waypoints have shape {tuple(waypoints.shape)}; a path has two or more, (N, M, 3)")
    arc = arc_lengths(waypoints) if arc is None else arc
    start, along = waypoints[:, :-1], waypoints[:, 1:] - waypoints[:, :-1]
    length = (arc[:, 1:] - arc[:, :-1]).clamp(min=SHORTEST_M)  # (N, S)
    away = p[:, None] - start
    reached = (progress[:, None] - arc[:, :-1]) / length
    share = torch.maximum(torch.linalg.vecdot(away, along) / length.square(), reached.clamp(min=0.0)).clamp(max=1.0)
    beside = away - share[..., None] * along
    squared = torch.linalg.vecdot(beside, beside)
    passed = reached[:, :-1] >= 1
    squared[:, :-1].masked_fill_(passed, torch.inf)
    squared[:, 2:].masked_fill_(~passed[:, :-1], torch.inf)
    nearest, near = squared.min(1, keepdim=True)
    walked = (arc[:, :-1] + share * length).gather(1, near)[:, 0]
    return torch.maximum(walked, progress), nearest[:, 0].sqrt()
