"""Drawer: grasp a handle and pull a drawer open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.tasks.base import TASKS, Phase, Task, View, beside, raised

FRONT_M = 0.62
OPEN_M = 0.12


@TASKS.add("drawer")
class Drawer(Task):
    """A cabinet stands at the far side of the table; solved when its drawer is pulled out by 12 cm."""

    text = "Open the drawer."
    objects = ("handle", "drawer")
    max_episode_steps = 80
    camera_m = (0.45, -0.8, 0.5)
    camera_target_m = (0.55, 0.0, 0.1)

    def fixtures(self) -> str:
        """A cabinet on a very stiff slide that only `spawn` moves, and a drawer that runs in it with friction."""
        return f"""<body name="cabinet" pos="{FRONT_M} 0 0" gravcomp="1"><joint name="cabinet" type="slide" axis="0 1 0" damping="1e6"/>
          <geom type="box" pos=".11 .10 .06" size=".11 .008 .06" class="fixture" rgba=".5 .38 .28 1" mass="2"/>
          <geom type="box" pos=".11 -.10 .06" size=".11 .008 .06" class="fixture" rgba=".5 .38 .28 1" mass="2"/>
          <geom type="box" pos=".11 0 .128" size=".11 .108 .008" class="fixture" rgba=".55 .42 .3 1" mass="2"/>
          <body name="drawer" pos="0 0 .06" gravcomp="1">
            <joint name="drawer" type="slide" axis="-1 0 0" range="0 .2" damping="4" frictionloss="1.5"/>
            <geom type="box" pos=".005 0 0" size=".005 .088 .05" class="fixture" rgba=".7 .56 .4 1" mass=".4"/>
            <geom type="box" pos=".1 0 -.045" size=".09 .085 .004" rgba=".7 .56 .4 1" mass=".3"/>
            <body name="handle" pos="-.045 0 0" gravcomp="1">
              <geom type="box" size=".008 .012 .03" class="fixture" rgba=".8 .8 .82 1" mass=".05"/>
              <geom type="box" pos=".022 0 0" size=".02 .006 .008" rgba=".8 .8 .82 1" mass=".02"/></body>
          </body></body>"""

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The cabinet up to 12 cm to either side, the drawer up to 2 cm open."""
        return {"cabinet": rng.uniform(-0.12, 0.12, 1), "drawer": rng.uniform(0.0, 0.02, 1)}

    def success(self, view: View) -> np.ndarray:
        """Far enough out."""
        return FRONT_M - view.positions["drawer"][:, 0] > OPEN_M

    def expert(self) -> tuple[Phase, ...]:
        """Over the handle, down, close, pull."""
        return (
            Phase(name="approach", goal=beside("handle", 0, 0, 0.1), tolerance_m=0.02),
            Phase(name="descend", goal=beside("handle", 0, 0, 0.005), tolerance_m=0.008),
            Phase(name="grasp", goal=raised(0), opening_m=0.0, dwell_steps=5, aimed=False),
            Phase(name="pull", goal=lambda now, start: start.tool - np.array([0.18, 0, 0]), opening_m=0.0, aimed=False),
        )
