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
    share = ((p[:, None] - start) * along).sum(2) / length**2
    reached = ((progress[:, None] - arc[:, :-1]) / length).clamp(0.0, 1.0)
    share = torch.maximum(share.clamp(0.0, 1.0), reached)
    distance = (start + share[..., None] * along - p[:, None]).norm(dim=2)
    current = (arc[:, 1:-1] <= progress[:, None]).sum(1, keepdim=True)  # inner waypoints that are passed
    number = torch.arange(length.shape[1], device=p.device)
    distance = torch.where((number < current) | (number > current + 1), torch.inf, distance)
    near = distance.argmin(1, keepdim=True)
    walked = (arc[:, :-1] + share * length).gather(1, near)[:, 0]
    return torch.maximum(walked, progress), distance.gather(1, near)[:, 0]
