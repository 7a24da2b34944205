"""While a person moves a board before a camera: which pictures to keep, and what is still missing for the lens.

A lens is told by corners all over the picture, near and far, and by boards that are tilted to all four sides (Zhang 2000: boards that
are only shifted, or turned in their own plane, add nothing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.boards import Board
from calibration.camera import Camera
from calibration.detection import Detection
from calibration.views import View, board_poses, pack
from sinew.se3 import Array

CELLS = (4, 3)
"""Columns and rows of the picture, in each of which corners must have been."""
TILT_RAD, LARGE, SMALL = float(np.deg2rad(18.0)), 0.45, 0.35
"""A board is tilted from here on; near and far is a board that takes more and less than these parts of the picture's diagonal."""
STILL_PX, STILL_PART = 1.0, 0.002
"""Corners that moved no more than this since the picture before, or this part of its width, stand still."""
NEW_PART, NEW_RAD = 0.06, float(np.deg2rad(8.0))
"""A picture is new where the board is this part of the width from where it was, or is tilted this much otherwise."""
COLUMNS, ROWS = ("left", "middle left", "middle right", "right"), ("top", "middle", "bottom")
EDGES = {"left": (1, 1.0), "right": (1, -1.0), "upper": (0, -1.0), "lower": (0, 1.0)}
"""Edge of the board that is farther away, and the component of its tilt, with the sign, that tells so."""


@dataclass(frozen=True)
class Sighting:
    """One board in a picture."""

    view: View
    middle: Array
    """(2,) px."""
    part: float
    """Of the picture's diagonal that it takes."""
    tilt: Array
    """How far its normal leans from the line of sight, about the picture's x and y (2,) rad."""


class Guide:
    """Keeps the pictures that tell something new.

    Args:
        board: what is looked at.
        size: (width, height) of the pictures.
        wanted: pictures that are enough once nothing is missing.
    """

    def __init__(self, board: Board, size: tuple[int, int], wanted: int = 18) -> None:
        self.board, self.size, self.wanted = board, size, wanted
        self.kept: list[Sighting] = []
        self._last: Detection | None = None
        # good enough to tell tilts: most lenses see about as far to either side
        focal = float(max(size))
        self._about = Camera(*size, (focal, focal), ((size[0] - 1) / 2, (size[1] - 1) / 2))

    def offer(self, found: Detection, name: str) -> str:
        """Look at what was found in the next picture; why it is not kept, empty where it is."""
        before, self._last = self._last, found
        if found.refused:
            return found.refused
        if before is None or before.refused or _moved(before, found) > max(STILL_PX, STILL_PART * self.size[0]):
            return "hold it still"
        sighting = self._sighting(found, name)
        if sighting is None:
            return "its corners fit no flat board"
        if not all(self._new(sighting, other) for other in self.kept):
            return "as one before"
        before_it = self.missing()
        self.kept.append(sighting)
        if len(self.kept) > self.wanted and self.missing() == before_it:
            self.kept.pop()
            return "of this there is enough"
        return ""

    def missing(self) -> list[str]:
        """What to do next, the most important first; empty where nothing is missing."""
        told = []
        cells = self.cells()
        empty = [(row, column) for row, column in np.ndindex(CELLS[1], CELLS[0]) if not cells[row, column]]
        if empty:
            told.append("hold it at the " + ", ".join(f"{ROWS[row]} {COLUMNS[column]}" for row, column in empty[:3]) + " of the picture")
        edges = [edge for edge, (axis, sign) in EDGES.items() if not any(sign * s.tilt[axis] > TILT_RAD for s in self.kept)]
        if edges:
            told.append(f"turn its {', '.join(edges)} edge away by 30 degrees")
        if not any(s.part > LARGE for s in self.kept):
            told.append("bring it nearer")
        if not any(s.part < SMALL for s in self.kept):
            told.append("hold it farther away")
        if len(self.kept) < self.wanted:
            told.append(f"{self.wanted - len(self.kept)} more pictures")
        return told

    def cells(self) -> np.ndarray:
        """Parts of the picture (rows, columns) where corners were seen, bool."""
        seen = np.zeros((CELLS[1], CELLS[0]), dtype=bool)
        for s in self.kept:
            at = np.clip((s.view.pixels / np.array(self.size) * np.array(CELLS)).astype(int), 0, np.array(CELLS) - 1)
            seen[at[:, 1], at[:, 0]] = True
        return seen

    def _sighting(self, found: Detection, name: str) -> Sighting | None:
        points = self.board.points[found.ids]
        view = View(robot=np.eye(4), points=points, pixels=found.pixels, sigma=found.sigma, name=name)
        pose = board_poses(pack([view]), [self._about])[0][0]
        if not np.isfinite(pose).all():
            return None
        normal = pose[:3, 2] * np.sign(pose[2, 2])
        across = float(np.linalg.norm(np.ptp(found.pixels, axis=0)) / np.linalg.norm(self.size))
        return Sighting(view, found.pixels.mean(0), across, np.arcsin(np.clip(np.array([-normal[1], normal[0]]), -1, 1)))

    def _new(self, a: Sighting, b: Sighting) -> bool:
        apart = float(np.linalg.norm(a.middle - b.middle)) > NEW_PART * self.size[0]
        return apart or float(np.linalg.norm(a.tilt - b.tilt)) > NEW_RAD or abs(a.part - b.part) > NEW_PART


def _moved(before: Detection, now: Detection) -> float:
    """How far corners that both pictures show have moved, px."""
    _, i, j = np.intersect1d(before.ids, now.ids, return_indices=True)
    return float(np.median(np.linalg.norm(before.pixels[i] - now.pixels[j], axis=1))) if len(i) else np.inf
