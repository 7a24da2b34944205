"""Pictures of the cameras for the page: always the newest, and never one more than the page has asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np

from demos.resized import fit
from robot_bridge.images import encode_jpeg
from sinew.errors import SinewError

LARGEST_PX = 640
"""Wider and higher pictures are made smaller."""
QUALITY = 80
"""Of JPEG."""
POLL_S = 0.01

Source = Callable[[], Mapping[str, np.ndarray]]
"""{camera: (H, W, 3) uint8 RGB}, the newest of each; the same array again is the same picture. Returns at once."""


class PictureFeed:
    """What one page has been shown.

    Args:
        source: has the pictures.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sent: dict[str, np.ndarray] = {}  # the camera that was served last at the end

    def next(self, timeout_s: float) -> bytes:
        """The newest picture of the camera that waits longest, as a message: the length of the camera's name in a byte, the name,
        a JPEG. Empty when none is new in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            order = list(self._sent)
            pictures: Mapping[str, np.ndarray] = {}
            with suppress(SinewError):  # a robot that fails says so where it is moved
                pictures = self._source()
            new = [name for name, picture in pictures.items() if self._sent.get(name) is not picture]
            if new:
                name = min(new, key=lambda name: order.index(name) if name in order else -1)
                self._sent.pop(name, None)
                self._sent[name] = pictures[name]
                return _message(name, pictures[name])
            if time.monotonic() > deadline_s:
                return b""
            time.sleep(POLL_S)


def _message(name: str, picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    largest = max(height, width)
    if largest > LARGEST_PX:
        picture = fit(picture, max(1, height * LARGEST_PX // largest), max(1, width * LARGEST_PX // largest))
    head = name.encode()[:255]
    return bytes([len(head)]) + head + encode_jpeg(picture, QUALITY)
