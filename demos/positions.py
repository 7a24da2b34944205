"""Which elements of a state or an action are places of the robot, by their names and units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FINGERS = ("gripper", "finger", "jaw")
NO_PLACES = ("velocity", ".vel", "effort", "torque", "current", "force")


def places(names: Sequence[str], unit: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Elements that tell where the robot is, and those that tell where its fingers are.

    Args:
        names: of the elements; may be empty.
        unit: one for all, or a comma-separated list; empty where it is not known.
        size: number of elements.

    Returns:
        Two (size,) bool; velocities and efforts are in neither.
    """
    units = [u.strip() for u in unit.split(",")]
    units = units if len(units) == size else units * size if len(units) == 1 else [""] * size
    names = [name.lower() for name in names] or [""] * size
    fingers = np.array([any(word in name for word in FINGERS) for name in names])
    placed = [u in ("", "1", "m", "rad") and not any(word in n for word in NO_PLACES) for n, u in zip(names, units, strict=True)]
    return np.array(placed) & ~fingers, fingers
