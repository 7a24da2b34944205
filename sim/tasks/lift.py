"""Lift: grasp a cube and hold it above the table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.tasks.base import TASKS, Phase, Task, View, beside, distance, pose, raised

HALF_M = 0.02
HEIGHT_M = 0.08


@TASKS.add("lift")
class Lift(Task):
    """A 4 cm cube lies somewhere in an 18 cm square; solved when it is held 8 cm above where it lay."""

    text = "Pick up the cube and hold it above the table."
    objects = ("cube",)
    max_episode_steps = 60
    hold_steps = 2

    def fixtures(self) -> str:
        """The cube."""
        return f"""<body name="cube" pos=".5 0 {HALF_M}"><freejoint name="cube"/>
          <geom type="box" size="{HALF_M} {HALF_M} {HALF_M}" mass=".2" rgba=".85 .25 .2 1" class="object"/></body>"""

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Anywhere in the square, turned by up to 0.3 rad."""
        x, y = rng.uniform(-0.09, 0.09, 2)
        return {"cube": pose(0.5 + x, y, HALF_M, rng.uniform(-0.3, 0.3))}

    def success(self, view: View) -> np.ndarray:
        """High enough, and in the hand."""
        cube = view.positions["cube"]
        in_hand = distance(cube, view.tool) < 0.04
        return (cube[:, 2] > HALF_M + HEIGHT_M) & in_hand

    def expert(self) -> tuple[Phase, ...]:
        """Over the cube, down, close, up."""
        return (
            Phase(name="approach", goal=beside("cube", 0, 0, 0.09), tolerance_m=0.025),
            Phase(name="descend", goal=beside("cube", 0, 0, 0), tolerance_m=0.008),
            Phase(name="grasp", goal=raised(0), opening_m=0.0, dwell_steps=5, aimed=False),
            Phase(name="lift", goal=raised(0.14), opening_m=0.0, aimed=False),
        )
