"""What a deployment needs from the scene around the robot: a new episode, and whether it succeeded."""

from __future__ import annotations

from typing import Protocol


class Scene(Protocol):
    """A scene that can be set up again, simulated or by a person."""

    def reset(self, seed: int, timeout_s: float = 10.0) -> None:
        """Start the episode that `seed` fixes; returns when measurements are of the new episode.

        Raises:
            InputError: the scene did not answer in time.
        """
        ...

    def success(self) -> bool | None:
        """Whether the task of this episode is solved; None when it cannot be told. Never blocks."""
        ...
