"""Handover: one arm picks up a bar and gives it to the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.robots.arm import ArmPart, arm, home
from sim.tasks.base import TASKS, Phase, Task, View, beside, distance, pose, raised

HALF_M = (0.09, 0.012, 0.012)
GRIP_M = 0.055
MEETING_M = np.array([0.5 - GRIP_M, 0.0, 0.16])
_LEFT, _RIGHT = 0, 1


@TASKS.add("handover")
class Handover(Task):
    """Two arms face each other over a bar; solved when the right one alone holds it, 10 cm above the table."""

    text = "Pick up the bar with the left arm and hand it to the right arm."
    objects = ("bar",)
    max_episode_steps = 140
    hold_steps = 3
    camera_m = (0.5, -0.95, 0.5)
    camera_target_m = (0.5, 0.0, 0.15)

    def arms(self) -> tuple[ArmPart, ...]:
        """Left at the world's origin, right one metre away, turned to face it."""
        left = arm("left_", (0.0, 0.0, 0.0), 0.0, home(0.38, 0.0, 0.2), (0.25, -0.3, 0.012), (0.6, 0.3, 0.45), heels=True)
        right = arm("right_", (1.0, 0.0, 0.0), np.pi, home(0.38, 0.0, 0.25), (0.4, -0.3, 0.012), (0.75, 0.3, 0.45), heels=True)
        return (left, right)

    def fixtures(self) -> str:
        """The bar."""
        return f"""<body name="bar" pos=".42 0 {HALF_M[2]}"><freejoint name="bar"/>
          <geom type="box" size="{HALF_M[0]} {HALF_M[1]} {HALF_M[2]}" mass=".2" rgba=".6 .3 .7 1" class="object"/></body>"""

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The bar on the left arm's side, turned by up to 0.12 rad."""
        x, y = rng.uniform((0.4, -0.08), (0.46, 0.08))
        return {"bar": pose(x, y, HALF_M[2], rng.uniform(-0.12, 0.12))}

    def success(self, view: View) -> np.ndarray:
        """High enough, in the right hand, out of the left."""
        bar = view.positions["bar"]
        in_right = distance(bar, view.tools[_RIGHT]) < GRIP_M + 0.03
        out_of_left = (view.grippers[_LEFT] > 0.04) & (distance(bar, view.tools[_LEFT]) > 0.08)
        return (bar[:, 2] > 0.1) & in_right & out_of_left & (view.grippers[_RIGHT] < 0.04)

    def expert(self) -> tuple[Phase, ...]:
        """Left: over one end, down, close, to the meeting point. Right: the same at the other end. Left lets go and leaves."""
        return (
            Phase(name="approach", goal=beside("bar", -GRIP_M, 0, 0.09), tolerance_m=0.02),
            Phase(name="descend", goal=beside("bar", -GRIP_M, 0, 0), tolerance_m=0.008),
            Phase(name="grasp", goal=raised(0), opening_m=0.0, dwell_steps=6, aimed=False),
            Phase(name="carry", goal=lambda now, start: np.repeat(MEETING_M[None], len(now.tool), 0), opening_m=0.0, aimed=False),
            Phase(name="come", goal=beside("bar", GRIP_M, 0, 0.08), tolerance_m=0.02, arm=_RIGHT),
            Phase(name="meet", goal=beside("bar", GRIP_M, 0, 0), tolerance_m=0.008, arm=_RIGHT, aimed=False),
            Phase(name="take", goal=raised(0, _RIGHT), opening_m=0.0, dwell_steps=6, arm=_RIGHT, aimed=False),
            Phase(name="let go", goal=raised(0), opening_m=0.08, dwell_steps=4, aimed=False),
            Phase(name="leave", goal=raised(0.12), opening_m=0.08, aimed=False),
        )
