"""Touch blue: the scene of `touch_red` with the other instruction."""

from __future__ import annotations

from sim.tasks.base import TASKS
from sim.tasks.touch_red import Touch


@TASKS.add("touch_blue")
class TouchBlue(Touch):
    """The blue one."""

    text = "Touch the blue button."
    target = "blue"
