"""Pictures between cameras, messages and policies. OpenCV is imported here only."""

from __future__ import annotations

import numpy as np

from sinew.errors import DataError


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 at another size, averaging over areas when it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    import cv2

    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def encode_jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    import cv2

    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decode_compressed(data: bytes | memoryview) -> np.ndarray:
    """JPEG or PNG as (H, W, 3) uint8 RGB.

    Raises:
        DataError: not a picture.
    """
    import cv2

    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError("a compressed image could not be decoded; send JPEG or PNG")
    return image[..., ::-1]
