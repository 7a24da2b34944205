"""Which pixels are the robot: read from any segmenter's picture, or made from a picture without the robot, or from its colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sinew.errors import DataError, InputError

SPECK = 0.01
"""Parts of a mask smaller than this part of it are specks."""
HALF_TONES = 0.1
"""A picture with more pixels than this between black and white is no mask."""
TINY = 1e-3
"""A robot that fills less than this of the picture is too far away."""
FULL = 0.9
SURE = 5.0
"""Differences larger than so many standard deviations of the camera's noise are the robot's."""


def read_picture(path: Path) -> np.ndarray:
    """A picture (height, width, 3) uint8 RGB.

    Raises:
        DataError: missing or damaged.
    """
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise DataError(f"{path} is missing or damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> np.ndarray:
    """A mask (height, width) bool from a picture: what is not black, or what is opaque where it has transparency.

    Raises:
        DataError: missing, damaged, or a picture with half-tones instead of a mask.
    """
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if image is None:
        raise DataError(f"{path} is missing or damaged")
    if image.ndim == 3 and image.shape[2] == 4 and image[..., 3].min() < image[..., 3].max():
        values = image[..., 3].astype(float)
    else:
        values = image.astype(float) if image.ndim == 2 else image[..., :3].max(-1).astype(float)
    top = max(float(values.max()), 1e-9)
    between = float(np.mean((values > 0.15 * top) & (values < 0.85 * top)))
    if between > HALF_TONES:
        raise DataError(f"{path} is no mask: {100 * between:.0f} % of it is neither black nor white")
    return values > 0.5 * top


def subtract(picture: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """What is in a picture (height, width, 3) uint8 and not in the one without the robot, (height, width) bool.

    The threshold is `SURE` times the noise of the camera, as most of the picture tells it. Light must be the same in both, and shadows
    count as robot: a matt, evenly lit background of another colour makes good masks.

    Raises:
        InputError: the pictures differ in size.
    """
    import cv2

    if picture.shape != empty.shape:
        raise InputError(f"the picture without the robot is {_size(empty)}, the one with it {_size(picture)}: take both with one camera")
    apart = cv2.absdiff(cv2.GaussianBlur(picture, (0, 0), 0.7), cv2.GaussianBlur(empty, (0, 0), 0.7)).max(-1)
    noise = float(np.median(apart)) / 1.2 + 0.5  # the largest of three channels
    return tidy(apart > SURE * noise)


def of_colours(picture: np.ndarray, colours: Sequence[Sequence[float]], tolerance: float = 18.0) -> np.ndarray:
    """What has one of the colours (0 to 255 RGB) in a picture (height, width, 3) uint8; the tolerance is a distance in CIE Lab."""
    import cv2

    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    wanted = cv2.cvtColor(np.array(colours, dtype=np.float32).reshape(1, -1, 3) / 255, cv2.COLOR_RGB2LAB)[0]
    return tidy(np.min([np.linalg.norm(lab - one, axis=-1) for one in wanted], axis=0) < tolerance)


def tidy(mask: np.ndarray) -> np.ndarray:
    """Without specks, and without pinholes."""
    import cv2

    for value in (True, False):
        count, label, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=8 if value else 4)
        sizes = stats[:, cv2.CC_STAT_AREA].astype(float)
        sizes[0] = 0.0
        least = SPECK * sizes.sum() if value else SPECK * max(int(mask.sum()), 1) / 10
        small = np.flatnonzero((sizes < least) & (np.arange(count) > 0))
        mask = np.where(np.isin(label, small), not value, mask)
    return mask


def unusable(mask: np.ndarray) -> str:
    """Why a mask cannot be used; empty if it can."""
    part = float(mask.mean())
    if part == 0.0:
        return "its mask is empty"
    if part < TINY:
        return f"the robot fills {100 * part:.2f} % of its picture: come nearer, or use a longer lens"
    if part > FULL:
        return f"its mask fills {100 * part:.0f} % of the picture: is it inverted?"
    return ""


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
