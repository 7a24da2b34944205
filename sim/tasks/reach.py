"""Reach: bring the tool to a point in the air."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.tasks.base import TASKS, Phase, Task, View, beside, distance, pose


@TASKS.add("reach")
class Reach(Task):
    """A marker floats somewhere over the table; solved when the tool is within 1.5 cm of it."""

    text = "Move the tool to the marker."
    objects = ("target",)
    max_episode_steps = 40
    hold_steps = 2

    def fixtures(self) -> str:
        """The marker: a sphere that neither falls nor touches anything."""
        return """<body name="target" pos=".5 0 .2" gravcomp="1"><freejoint name="target"/>
          <geom type="sphere" size=".015" mass=".05" rgba=".2 .7 .3 .8"/></body>"""

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Anywhere in a box of 30 x 40 x 25 cm."""
        return {"target": pose(*rng.uniform((0.37, -0.2, 0.05), (0.65, 0.2, 0.3)))}

    def success(self, view: View) -> np.ndarray:
        """Close enough."""
        return distance(view.positions["target"], view.tool) < 0.015

    def expert(self) -> tuple[Phase, ...]:
        """Straight there."""
        return (Phase(name="approach", goal=beside("target", 0, 0, 0)), Phase(name="arrive", goal=beside("target", 0, 0, 0), aimed=False))
