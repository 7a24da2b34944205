"""What N worlds of a scene are played with, and what stands between them and a policy: the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.curriculum import Curriculum
from sim.latency import Drive
from sim.patterns import dressed
from sim.randomise import Randomisation
from sim.sampling import Draws, Sampler

if TYPE_CHECKING:
    from sim.interface import TaskInterface
    from sim.scene import Scene


class Randomiser:
    """Draws what episodes are played with, and learns from their outcomes how far ranges may grow, where the file wants that.

    Args:
        randomisation: what a file says.
        scene: of the task, as `sim.patterns.dressed` made it.

    Raises:
        InputError: a name does not exist in the scene, or a unit is wrong.
    """

    def __init__(self, randomisation: Randomisation, scene: Scene) -> None:
        self.sampler = Sampler(randomisation, scene)
        self.names = self.sampler.names
        """(P,) what the numbers are called."""
        self.curriculum = None if randomisation.curriculum is None else Curriculum(self.sampler, randomisation.curriculum)

    def draw(self, seeds: Sequence[int] | np.ndarray) -> Draws:
        """What the episodes of these seeds are played with."""
        if self.curriculum is not None:
            return self.curriculum.draw(seeds)
        return Draws(self.sampler.draw(seeds), np.full(len(seeds), -1, dtype=np.int64))

    def told(self, boundary: np.ndarray, success: np.ndarray) -> None:
        """Episodes (n,) have ended so."""
        if self.curriculum is not None:
            self.curriculum.told(boundary, success)

    def delay_max(self, what: str) -> float:
        """Largest delay that can be drawn, control steps."""
        return max((self.sampler.slots[i].high for i in self.sampler.columns(what)), default=0.0)

    def drive(self, command: Any) -> Drive:
        """What stands between commands (N, nu), arrays or tensors, and the servos."""
        scene = self.sampler.scene
        made = Drive(command, scene.substeps, scene.model.opt.timestep, ceil(self.delay_max("action_delay")))
        made.ideal = not any(self.sampler.columns(what) for what in ("action_delay", "servo_lag", "backlash"))
        return made

    def set_drive(self, drive: Drive, values: Any) -> None:
        """Give a drive the numbers (N, P) that its worlds are played with; arrays or tensors."""
        scene, zero = self.sampler.scene, drive.history[0, :, 0] * 0.0
        drive.delay_steps = self._column(values, "action_delay", zero)
        drive.lag_s = self._column(values, "servo_lag", zero)
        for i in self.sampler.columns("backlash"):
            for servo in np.flatnonzero(scene.model.actuator_trnid[:, 0] == self.sampler.slots[i].index):
                drive.play[:, int(servo)] = values[:, i]

    def _column(self, values: Any, what: str, usual: Any) -> Any:
        columns = self.sampler.columns(what)
        return values[:, columns[0]] if columns else usual

    def observation_delay(self, values: Any) -> Any:
        """(N,) control steps."""
        return self._column(values, "observation_delay", values[:, 0] * 0.0)


def randomiser_of(interface: TaskInterface, randomisation: Randomisation | None) -> tuple[TaskInterface, Randomiser | None]:
    """The task with what is drawn in its scene, and what draws it; the task itself where there is nothing to draw."""
    if randomisation is None:
        return interface, None
    interface = dressed(interface, randomisation)
    return interface, Randomiser(randomisation, interface.scene)
