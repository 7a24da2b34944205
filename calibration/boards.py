"""Calibration boards: what is printed, and where its corners are.

The board's frame has its origin at the middle of the corners that are used, x to the right of the picture of the board, y down and z
into it, so that a camera that sees the board upright has axes like it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sinew.errors import InputError
from sinew.se3 import Array

Kind = Literal["charuco", "apriltag", "checkerboard", "circles"]
KINDS = ("charuco", "apriltag", "checkerboard", "circles")
DEFAULT_DICTIONARY = {"charuco": "DICT_5X5_250", "apriltag": "DICT_APRILTAG_36h11"}


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board; `columns` and `rows` count what is printed: squares, tags or circles."""

    kind: Kind = "charuco"
    columns: int = 8
    rows: int = 6
    square_m: float = 0.03
    """Side of a square; distance between the middles of circles, or of tags."""
    marker_m: float = 0.022
    """Side of the markers of a ChArUco board or of the tags; diameter of the circles."""
    dictionary: str = ""
    """Name of the markers' dictionary in OpenCV; empty for the usual one of the kind."""
    legacy: bool = False
    """A ChArUco board whose first square is white though it has an even number of rows, as OpenCV drew them before 4.6."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"board {self.kind!r} is not known; known are {', '.join(KINDS)}")
        if self.columns < 2 or self.rows < 2 or self.columns * self.rows > 5000:
            raise InputError(f"a board of {self.columns} x {self.rows} cannot be used: at least 2 x 2, at most 5000 squares")
        if not 1e-4 <= self.square_m <= 2.0 or not 0 < self.marker_m <= self.square_m:
            raise InputError(
                f"squares of {self.square_m} m with markers of {self.marker_m} m cannot be: metres are expected, "
                "markers not larger than squares"
            )
        if self.dictionary:
            dictionary(self.dictionary)

    @property
    def dictionary_name(self) -> str:
        """Name of the markers' dictionary."""
        return self.dictionary or DEFAULT_DICTIONARY.get(self.kind, "")

    @property
    def count(self) -> int:
        """Corners that can be found."""
        if self.kind == "apriltag":
            return 4 * self.columns * self.rows
        if self.kind == "circles":
            return self.columns * self.rows
        return (self.columns - 1) * (self.rows - 1)

    @property
    def points(self) -> Array:
        """Corners (count, 3) in the board's frame, m; row by row, of tags clockwise from the upper left."""
        if self.kind == "apriltag":
            x, y = np.meshgrid(np.arange(self.columns), np.arange(self.rows))
            middle = np.stack([x.ravel(), y.ravel()], -1) * self.square_m
            corner = 0.5 * self.marker_m * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
            flat = (middle[:, None] + corner).reshape(-1, 2)
        else:
            inner = 0 if self.kind == "circles" else 1
            x, y = np.meshgrid(np.arange(self.columns - inner), np.arange(self.rows - inner))
            flat = np.stack([x.ravel(), y.ravel()], -1) * self.square_m
        flat = flat - 0.5 * (flat.min(0) + flat.max(0))
        return np.concatenate([flat, np.zeros((len(flat), 1))], 1)

    @property
    def size_m(self) -> tuple[float, float]:
        """Width and height of what is printed."""
        if self.kind == "apriltag":
            return (self.columns - 1) * self.square_m + self.marker_m, (self.rows - 1) * self.square_m + self.marker_m
        if self.kind == "circles":
            big = self.marker_m * BIG_CIRCLE
            return (self.columns - 1) * self.square_m + big, (self.rows - 1) * self.square_m + big
        return self.columns * self.square_m, self.rows * self.square_m

    def picture(self, pixels_per_m: float) -> np.ndarray:
        """The board as it is printed, uint8 (height, width), without a margin."""
        import cv2

        width, height = (max(1, round(s * pixels_per_m)) for s in self.size_m)
        if self.kind == "charuco":
            return charuco(self).generateImage((width, height), marginSize=0)
        image = np.full((height, width), 255, dtype=np.uint8)
        if self.kind == "checkerboard":
            rows = ((np.arange(height) + 0.5) / pixels_per_m / self.square_m).astype(int)[:, None]
            columns = ((np.arange(width) + 0.5) / pixels_per_m / self.square_m).astype(int)[None]
            return np.where((rows + columns) % 2 == 0, 0, 255).astype(np.uint8)
        if self.kind == "circles":
            fine = 4
            for i in range(self.count):
                row, column = divmod(i, self.columns)
                radius = 0.5 * self.marker_m * (BIG_CIRCLE if i == self.origin else 1.0)
                middle = np.array([column, row]) * self.square_m + 0.5 * self.marker_m * BIG_CIRCLE
                centre = tuple(int(v) for v in np.round((middle * pixels_per_m - 0.5) * 2**fine))
                cv2.circle(image, centre, round(radius * pixels_per_m * 2**fine), 0, -1, cv2.LINE_AA, fine)
            return image
        side = max(8, round(self.marker_m * pixels_per_m))
        for i in range(self.columns * self.rows):
            row, column = divmod(i, self.columns)
            tag = cv2.aruco.generateImageMarker(dictionary(self.dictionary_name), i, side)
            x, y = (round(v * self.square_m * pixels_per_m) for v in (column, row))
            tag = tag[: height - y, : width - x]
            image[y : y + tag.shape[0], x : x + tag.shape[1]] = tag
        return image

    @property
    def origin(self) -> int:
        """Number of the large circle, which tells which way round the board is: the lower left one."""
        return (self.rows - 1) * self.columns


BIG_CIRCLE = 1.5
"""Diameter of the large circle as a multiple of the others."""


def dictionary(name: str) -> Any:
    """OpenCV's dictionary of markers.

    Raises:
        InputError: no such dictionary.
    """
    import cv2

    number = getattr(cv2.aruco, name, None) if name.startswith("DICT_") else None
    if number is None:
        known = sorted(n for n in dir(cv2.aruco) if n.startswith("DICT_"))
        raise InputError(f"there is no dictionary {name!r}; there are {', '.join(known)}")
    return cv2.aruco.getPredefinedDictionary(number)


def charuco(board: Board) -> Any:
    """OpenCV's ChArUco board."""
    import cv2

    made = cv2.aruco.CharucoBoard((board.columns, board.rows), board.square_m, board.marker_m, dictionary(board.dictionary_name))
    if board.legacy:
        made.setLegacyPattern(True)
    return made
