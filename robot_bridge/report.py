"""What a deployment leaves behind: outcomes, cadence, latency and what the gate did. All of it goes to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sinew.config import to_json


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode went."""

    seed: int
    success: bool | None
    """None where nothing tells."""
    steps: int
    """Policy ticks."""
    duration_s: float
    ended_by: str
    """"success", "time_limit", the reason for which the gate stopped it, or "no images.front" where a value stayed away."""
    passed: Mapping[str, int] = field(default_factory=dict)
    """Ticks after the last frame that have none, by reason."""


@dataclass(frozen=True, kw_only=True)
class DeployReport:
    """The outcome of `deploy`."""

    task: str
    robot: str
    episodes: tuple[EpisodeResult, ...]
    seeds: tuple[int, ...]
    """Seeds that were asked for; fewer `episodes` than that were run when it was stopped."""
    policy: Mapping[str, Any]
    """Cadence of the policy's loop (stages read, observe, policy, decode, submit), late actions, holds by reason, and what was
    wrong with the observations."""
    controller: Mapping[str, Any]
    """Cadence of the controller-rate loop (stages read, gate, write), and how fast it stopped."""
    latency_us: Mapping[str, float] | None
    """From the receipt of the measurement to the hand-over of the command made from it: p50, p99, max."""
    gate: Mapping[str, Any]
    """Counts per reason, newest events, ticks per outcome."""
    readiness: Mapping[str, Any] = field(default_factory=dict)
    """How the policy did before the robot was commanded."""
    stopped: str = ""
    """Reason for which the deployment ended early; empty when it ran to its end."""
    why: str = ""
    """The same in one line with what was seen and what to do."""

    @property
    def n(self) -> int:
        """Episodes whose outcome is known."""
        return sum(e.success is not None for e in self.episodes)

    @property
    def k(self) -> int:
        """Episodes that succeeded."""
        return sum(bool(e.success) for e in self.episodes)

    def summary(self) -> dict[str, Any]:
        """The whole report as what `json.dumps` takes, with k and n."""
        return {"k": self.k, "n": self.n, **to_json(self)}
