"""What lies between a command and the servos, and between a state and what is observed of it: delay, lag, play.

One piece of arithmetic for arrays of NumPy and for tensors on a device. Time is counted in control steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.arrays import namespace


class Drive:
    """From one command a step to a target of every servo in every physics step, in N worlds.

    Commands are joined by straight lines, as robot drivers interpolate: the one given at step k is reached at its end. What the servos
    get is that line `delay` steps late, any fraction of one, behind a first-order lag with a constant input over each physics step, and
    within a play of which the target moves one side only after the other was reached (Prandtl-Ishlinskii's play operator).

    Args:
        command: (N, nu) what holds at first; array or tensor, as everything that follows.
        substeps: physics steps in a control step.
        timestep_s: length of a physics step.
        delay_max: largest delay, steps.
    """

    def __init__(self, command: Any, substeps: int, timestep_s: float, delay_max: float = 0.0) -> None:
        xp = namespace(command)
        self.substeps, self.timestep_s = substeps, timestep_s
        self._kept = int(-(-delay_max // 1)) + 2
        """Commands that are remembered: the newest, and as many before as the longest delay reaches back."""
        self.history = xp.stack([command] * self._kept)
        """(K, N, nu) the newest command first."""
        self.lagged = self.target = command + 0.0
        """(N, nu) behind the lag; and what the servos got last."""
        self.delay_steps = self.lag_s = xp.zeros_like(command[:, 0])
        """(N,) control steps, and (N,) seconds."""
        self.play = xp.zeros_like(command)
        """(N, nu) from one side to the other, rad or m."""
        self.ideal = True
        """Whether nothing but the straight line is between command and servos: set it to False where a delay, a lag or a play is not 0."""

    def begin(self, which: Any, command: Any) -> None:
        """Worlds where `which` (N,) is true stand still at commands (N, nu)."""
        xp = namespace(command)
        self.history = xp.where(which[None, :, None], command[None], self.history)
        self.lagged, self.target = xp.where(which[:, None], command, self.lagged), xp.where(which[:, None], command, self.target)

    def targets(self, command: Any) -> Any:
        """Targets (substeps, N, nu) of the step in which these commands (N, nu) are given."""
        xp = namespace(command)
        self.history = xp.concatenate((command[None], self.history[:-1]))
        lines = [self._line((k + 1) / self.substeps) for k in range(self.substeps)]
        if self.ideal:
            self.lagged = self.target = lines[-1]
        else:
            lines = [self._followed(line) for line in lines]
        return xp.stack(lines)

    def _line(self, share: float) -> Any:
        """(N, nu) the commands' line, `delay_steps` before the moment `share` of this step has passed."""
        if self.ideal:
            return self.history[1] + share * (self.history[0] - self.history[1])
        xp = namespace(self.history)
        back = xp.clip(1.0 - share + self.delay_steps, 0.0, self._kept - 1.0)  # steps before the newest command is reached
        knot = xp.clip(xp.floor(back), 0.0, self._kept - 2.0)
        line = xp.zeros_like(self.target)
        for k in range(self._kept - 1):
            between = self.history[k] + (back - knot)[:, None] * (self.history[k + 1] - self.history[k])
            line = xp.where((knot == k)[:, None], between, line)
        return line

    def _followed(self, wanted: Any) -> Any:
        """(N, nu) one physics step later, behind lag and play."""
        xp = namespace(wanted)
        lags = self.lag_s > 0
        share = 1.0 - xp.exp(-self.timestep_s / xp.where(lags, self.lag_s, 1.0))
        self.lagged = xp.where(lags[:, None], self.lagged + share[:, None] * (wanted - self.lagged), wanted)
        half = 0.5 * self.play
        self.target = xp.clip(self.target, self.lagged - half, self.lagged + half)
        return self.target


class Late:
    """Observations that arrive late: what N worlds were `delay_steps` control steps ago.

    What is late by a part of a step has missed its tick, and the one before is seen; at the beginning nothing is older than the first.

    Args:
        observation: {key: (N, ...)} tensors to remember.
        delay_max: largest delay, steps.
    """

    def __init__(self, observation: Mapping[str, Any], delay_max: float) -> None:
        self._kept = int(-(-delay_max // 1)) + 1
        some = next(iter(observation.values()))
        self.history = {key: [value] * self._kept for key, value in observation.items()}
        """{key: [(N, ...)]} the newest first."""
        self.delay_steps = namespace(some).zeros_like(some.reshape(len(some), -1)[:, 0] * 1.0)
        """(N,) control steps."""

    def begin(self, which: Any, observation: Mapping[str, Any]) -> None:
        """Worlds where `which` (N,) is true have seen nothing but these."""
        for key, value in observation.items():
            rows = which.reshape((-1,) + (1,) * (value.ndim - 1))
            self.history[key] = [namespace(value).where(rows, value, old) for old in self.history[key]]

    def seen(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Take what worlds are now, and give what is seen."""
        found = {}
        for key, value in observation.items():
            xp, self.history[key] = namespace(value), [value, *self.history[key][:-1]]
            age = xp.ceil(self.delay_steps).reshape((-1,) + (1,) * (value.ndim - 1))
            late = value
            for k in range(1, self._kept):
                late = xp.where(age == k, self.history[key][k], late)
            found[key] = late
        return found
