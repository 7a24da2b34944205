"""Pictures between cameras and messages."""

from __future__ import annotations

import struct

import numpy as np

from sinew.errors import DataError

MAX_PIXELS = 64_000_000
"""Compressed images of more are refused: a file of a kilobyte can claim gigabytes."""
HEADER_BYTES = 1 << 18
"""Where a JPEG's size is looked for; metadata may stand before it."""


def info_topic(topic: str) -> str:
    """Where the driver of a camera tells of its lens, given the topic of its pictures: beside it (image_transport's way)."""
    return topic.removesuffix("/compressed").rsplit("/", 1)[0] + "/camera_info"


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
        DataError: not a picture, or one that claims to be larger than any camera's.
    """
    import cv2

    height, width = _size(data)
    if not 0 < height * width <= MAX_PIXELS:
        raise DataError(f"a compressed image of {height} x {width} pixels is refused; {MAX_PIXELS} are allowed")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as e:
        raise DataError(f"a compressed image could not be decoded: {e.err}") from None
    if image is None:
        raise DataError("a compressed image could not be decoded; send JPEG or PNG")
    return image[..., ::-1]


def _size(data: bytes | memoryview) -> tuple[int, int]:
    """Height and width from the header, before any memory is taken for the pixels.

    Source: PNG specification, IHDR; ITU-T T.81, start of frame.
    """
    head = bytes(data[:HEADER_BYTES])
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        width, height = struct.unpack_from(">II", head, 16)
        return height, width
    at = 2
    while head.startswith(b"\xff\xd8") and at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return height, width
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big") if marker != 0xFF else 1
    raise DataError("a compressed image could not be decoded; send JPEG or PNG")
