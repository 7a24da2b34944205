"""Peg: put a square peg into a square hole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sim.robots.arm import ArmPart, arm
from sim.tasks.base import TASKS, Phase, Task, View, beside, pose, raised

HALF_M = (0.012, 0.012, 0.04)
CLEARANCE_M = 0.003
BLOCK_HEIGHT_M = 0.04
_WALL_M = 0.012


@TASKS.add("peg")
class Peg(Task):
    """A peg stands on the table; solved when it is at least 2.5 cm deep in a hole that leaves it 3 mm on every side."""

    text = "Put the peg into the hole."
    objects = ("peg", "hole")
    max_episode_steps = 100
    hold_steps = 2

    def arms(self) -> tuple[ArmPart, ...]:
        """An arm whose fingers keep the peg upright."""
        return (arm(heels=True),)

    def fixtures(self) -> str:
        """The peg, and four walls around a hole on very stiff slides that only `spawn` moves."""
        inner, height = HALF_M[0] + CLEARANCE_M, BLOCK_HEIGHT_M / 2
        offset, outer = inner + _WALL_M, inner + 2 * _WALL_M
        walls = "".join(
            f'<geom type="box" pos="{x} {y} {height}" size="{sx} {sy} {height}" class="fixture" rgba=".35 .45 .4 1" mass=".3"/>'
            for x, y, sx, sy in (
                (offset, 0, _WALL_M, outer), (-offset, 0, _WALL_M, outer), (0, offset, inner, _WALL_M), (0, -offset, inner, _WALL_M),
            )
        )  # fmt: skip
        return f"""<body name="peg" pos=".45 -.1 {HALF_M[2]}"><freejoint name="peg"/>
          <geom type="box" size="{HALF_M[0]} {HALF_M[1]} {HALF_M[2]}" mass=".25" rgba=".85 .55 .2 1" class="object"/></body>
        <body name="hole" pos=".5 .1 0" gravcomp="1">
          <joint name="hole_x" type="slide" axis="1 0 0" damping="1e6"/><joint name="hole_y" type="slide" axis="0 1 0" damping="1e6"/>
          {walls}</body>"""

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The peg in a square on the right, the hole in one on the left."""
        x, y = rng.uniform((0.42, -0.15), (0.55, -0.04))
        peg = pose(x, y, HALF_M[2], rng.uniform(-0.15, 0.15))
        return {"peg": peg, "hole_x": rng.uniform(-0.05, 0.06, 1), "hole_y": rng.uniform(-0.02, 0.05, 1)}

    def success(self, view: View) -> np.ndarray:
        """The peg's foot deep enough and inside the walls."""
        offset = view.positions["peg"] - view.positions["hole"]
        inside = (abs(offset[:, :2]) < HALF_M[0]).all(axis=1)
        return inside & (offset[:, 2] - HALF_M[2] < BLOCK_HEIGHT_M - 0.025)

    def expert(self) -> tuple[Phase, ...]:
        """Grasp near the top, lift, over the hole, down."""
        return (
            Phase(name="approach", goal=beside("peg", 0, 0, 0.11), tolerance_m=0.02),
            Phase(name="descend", goal=beside("peg", 0, 0, 0.015), tolerance_m=0.006),
            Phase(name="grasp", goal=raised(0), opening_m=0.0, dwell_steps=6, aimed=False),
            Phase(name="lift", goal=raised(0.08), opening_m=0.0, tolerance_m=0.02, aimed=False),
            Phase(name="carry", goal=_over_hole(0.015), opening_m=0.0, tolerance_m=0.002, dwell_steps=1, aimed=False),
            Phase(name="insert", goal=_over_hole(-0.04), opening_m=0.0, aimed=False),
        )


def _over_hole(gap_m: float) -> Callable[[View, View], np.ndarray]:
    """Goal: the tool, moved by what the peg's foot is away from `gap_m` over the hole."""

    def goal(now: View, start: View) -> np.ndarray:
        foot = now.positions["peg"] - np.array([0, 0, HALF_M[2]])
        return now.tool + now.positions["hole"] + np.array([0, 0, BLOCK_HEIGHT_M + gap_m]) - foot

    return goal
