"""Push: slide a block to a marked place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sim.tasks.base import TASKS, Phase, Task, View, beside, distance, pose

HALF_M = (0.025, 0.045, 0.02)
OPENING_M = 0.05
HEIGHT_M = 0.024


@TASKS.add("push")
class Push(Task):
    """A block lies in front of a marked place; solved when it rests within 2 cm of it. The open fingers do the pushing."""

    text = "Push the block onto the marked place."
    objects = ("block", "target")
    max_episode_steps = 70
    hold_steps = 3

    def fixtures(self) -> str:
        """The block and the mark on the table."""
        return f"""<body name="block" pos=".45 0 {HALF_M[2]}"><freejoint name="block"/>
          <geom type="box" size="{HALF_M[0]} {HALF_M[1]} {HALF_M[2]}" mass=".2"
            rgba=".2 .4 .8 1" class="object" friction=".4 .02 .0001"/></body>
        <body name="target" pos=".58 0 0" gravcomp="1">
          <joint name="target_x" type="slide" axis="1 0 0" damping="1e4"/><joint name="target_y" type="slide" axis="0 1 0" damping="1e4"/>
          <geom type="cylinder" size=".03 .001" mass=".05" rgba=".9 .8 .2 1"/></body>"""

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The block near the base, the mark 9 to 14 cm further out and up to 3 cm to a side."""
        x, y = rng.uniform((0.42, -0.08), (0.48, 0.08))
        dx, dy = rng.uniform((0.09, -0.03), (0.14, 0.03))
        block = pose(x, y, HALF_M[2], rng.uniform(-0.2, 0.2))
        return {"block": block, "target_x": np.array([x + dx - 0.58]), "target_y": np.array([y + dy])}

    def success(self, view: View) -> np.ndarray:
        """Near the mark in the plane of the table."""
        return distance(view.positions["block"][:, :2], view.positions["target"][:, :2]) < 0.02

    def expert(self) -> tuple[Phase, ...]:
        """Behind the block, down, forward to it, and then as far as the block still has to go."""
        return (
            Phase(name="behind", goal=beside("block", -0.08, 0, 0.07), opening_m=OPENING_M, tolerance_m=0.02),
            Phase(name="down", goal=_at_height(-0.085), opening_m=OPENING_M),
            Phase(name="touch", goal=_at_height(-0.043), opening_m=OPENING_M, tolerance_m=0.005),
            Phase(name="push", goal=_remaining, opening_m=OPENING_M, aimed=False),
        )


def _at_height(x_m: float) -> Callable[[View, View], np.ndarray]:
    """Goal: `x_m` from the block's centre, at the height where it is pushed."""

    def goal(now: View, start: View) -> np.ndarray:
        behind = now.positions["block"] + np.array([x_m, 0.0, 0.0])
        behind[:, 2] = HEIGHT_M
        return behind

    return goal


def _remaining(now: View, start: View) -> np.ndarray:
    """The tool, moved by what the block is away from the mark; at one height."""
    goal = now.tool + now.positions["target"] - now.positions["block"]
    goal[:, 2] = HEIGHT_M
    return goal
