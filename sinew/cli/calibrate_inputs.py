"""What the verbs of calibration read: the board, a lens, poses from a drawing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.errors import InputError

if TYPE_CHECKING:
    from calibration.boards import Board as BoardSpec
    from calibration.camera import Camera


@dataclass(frozen=True, kw_only=True)
class BoardArgs:
    """What is printed; a session's own board.json is used where this is left alone."""

    kind: Literal["charuco", "apriltag", "checkerboard", "circles"] = "charuco"
    """ChArUco boards may be seen in part and tell which way round they are: take one unless there is a reason not to."""
    columns: int = 8
    """Squares, tags or circles in a row."""
    rows: int = 6
    """Rows of them."""
    square: float = 0.03
    """Side of a square, or distance of tags or circles, m."""
    marker: float = 0.022
    """Side of the markers or tags, or diameter of the circles, m."""
    dictionary: str = ""
    """OpenCV's dictionary of markers, for example DICT_5X5_250; the usual one of the kind if left out."""


def board(args: BoardArgs) -> BoardSpec:
    from calibration.boards import Board

    return Board(
        kind=args.kind, columns=args.columns, rows=args.rows, square_m=args.square, marker_m=args.marker, dictionary=args.dictionary
    )


def lens(path: Path) -> Camera:
    from calibration.camera import Camera as Lens
    from sinew.config import read_config

    return read_config(Lens, path / "camera.json" if path.is_dir() else path, "camera")


def drawing(path: Path, cameras: int) -> Any:
    import json

    import numpy as np

    from calibration.results import read
    from sinew.errors import DataError

    try:
        content = json.loads((path / "calibration.json" if path.is_dir() else path).read_text())
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise DataError(f"{path} is no JSON: {e}") from None
    if isinstance(content, dict):
        poses = np.array([m.T for m in read(path)])
    else:
        poses = np.asarray(content, dtype=float)
        poses = poses.reshape(-1, 4, 4) if poses.size and poses.size % 16 == 0 else poses
    if poses.shape != (cameras, 4, 4) or not np.isfinite(poses).all():
        raise InputError(f"{path} does not hold {cameras} pose{'s' * (cameras > 1)} of 16 numbers")
    return poses
