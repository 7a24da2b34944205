"""Pictures between cameras and messages."""

from __future__ import annotations

import numpy as np

from sinew.errors import DataError


def encode_jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    import cv2

    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as PNG, which loses nothing."""
    import cv2

    return cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


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
