"""Touch red: bring the tool to the red button of two. `touch_blue` is the same scene with the other instruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from sim.tasks.base import TASKS, Phase, Task, View, beside, distance

RADIUS_M = 0.03
HEIGHT_M = 0.02
APART_M = 0.12
LOW_M, HIGH_M = (0.4, -0.16), (0.6, 0.16)


class Touch(Task):
    """Two coloured buttons stand on the table, fixed there; solved when the tool stays within 3 cm of the middle of the named one.

    They are 12 cm apart at least, so that one is never taken for the other. What they look like and where they stand does not
    depend on which of them is named: only the instruction tells.
    """

    target: ClassVar[str]
    """The button to touch."""
    objects = ("red", "blue")
    max_episode_steps = 40
    hold_steps = 3

    def fixtures(self) -> str:
        """The buttons; nothing collides with them, so that both can be reached from everywhere."""
        colours = {"red": ".85 .1 .1 1", "blue": ".1 .2 .9 1"}
        return "".join(
            f'<body name="{name}" pos="{LOW_M[0]} 0 {HEIGHT_M / 2}" gravcomp="1">'
            f'<joint name="{name}_x" type="slide" axis="1 0 0" damping="1e4"/>'
            f'<joint name="{name}_y" type="slide" axis="0 1 0" damping="1e4"/>'
            f'<geom type="cylinder" size="{RADIUS_M} {HEIGHT_M / 2}" mass=".05" rgba="{rgba}"/></body>'
            for name, rgba in colours.items()
        )

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Anywhere in a rectangle of 20 x 32 cm, not too near each other."""
        while True:
            red, blue = rng.uniform(LOW_M, HIGH_M, (2, 2))
            if np.linalg.norm(red - blue) > APART_M:
                break
        places = {"red_x": red[0] - LOW_M[0], "red_y": red[1], "blue_x": blue[0] - LOW_M[0], "blue_y": blue[1]}
        return {joint: np.array([place]) for joint, place in places.items()}

    def success(self, view: View) -> np.ndarray:
        """Close enough to the named one."""
        return distance(view.positions[self.target], view.tool) < 0.03

    def expert(self) -> tuple[Phase, ...]:
        """Over it, then down to it."""
        return (
            Phase(name="approach", goal=beside(self.target, 0, 0, 0.08), tolerance_m=0.02),
            Phase(name="touch", goal=beside(self.target, 0, 0, 0.005)),
        )


@TASKS.add("touch_red")
class TouchRed(Touch):
    """The red one."""

    text = "Touch the red button."
    target = "red"
