"""Pictures at another size: one definition for training data and for live cameras."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sinew.errors import InputError
from sinew.specs import ObservationSpec


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 at another size, averaging over areas when it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    import cv2

    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resized_spec(observation: ObservationSpec, size_px: int) -> ObservationSpec:
    """A spec with squares of another size in place of the pictures.

    Raises:
        InputError: the size is not positive, or there are no pictures.
    """
    if size_px < 1:
        raise InputError(f"image size {size_px} must be at least 1 pixel")
    if not observation.images:
        raise InputError(f"an image size was given and the data has no pictures: it has {', '.join(observation)}")
    square = (size_px, size_px, 3)
    return ObservationSpec({k: replace(t, shape=square) if k in observation.images else t for k, t in observation.tensors.items()})
