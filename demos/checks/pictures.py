"""Cameras that show nothing: black, overexposed, one colour, or the same picture while the robot moves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from demos import layout
from demos.checks.finding import Finding
from demos.dataset import Dataset
from demos.layout import cameras, columns
from sinew.errors import DataError
from sinew.progress import Progress
from sinew.specs import ACTION, STATE

STILL_LEVELS = 16
"""Of 255: pictures that differ less everywhere are the same picture; codecs change still scenes by less."""
BLANK_LEVELS = 3
BLACK_LEVEL, BLACK_SHARE = 16, 0.99
"""Black: so large a share of the pixels is no brighter than this in any channel."""
WHITE_LEVEL, WHITE_SHARE = 250, 0.5
"""Overexposed: so large a share of the pixels is at least as bright as this in every channel."""
MOVED_PART = 0.02
"""Of a state element's range: less is standing still."""
STRIDE = 4
"""Every so many pixels in both directions are looked at for brightness."""
BRIEF_S = 0.5
"""An overexposed stretch is told from this length on: lamps flash. A single black picture is told at once."""
WORDS = {"black": "is black", "overexposed": "is overexposed", "one colour": "shows one colour"}


def check_pictures(dataset: Dataset, progress: Progress) -> Iterator[Finding]:
    """Everything that this file looks for; decodes every picture."""
    if not dataset.cameras:
        return
    progress.start("check pictures", dataset.num_episodes * len(dataset.cameras))
    moving = dataset.column(STATE).reshape(len(dataset), -1) if STATE in columns(dataset.info) else dataset.column(ACTION)
    span = np.ptp(moving, axis=0) if len(dataset) else np.ones(1)
    for key in dataset.cameras:
        path = (layout.VIDEO if cameras(dataset.info)[key] == "video" else layout.DATA).split("/")[0]
        for i in range(dataset.num_episodes):
            e = dataset.episode(i)
            state = moving[e.start : e.start + e.length] / np.where(span > 0, span, 1)
            try:
                for first, last, kind, message in _look(dataset, key, i, state):
                    yield Finding("warning", path, message, key, i, first, last, kind)
            except DataError as error:
                yield Finding("error", path, str(error), key, i)
            progress.advance()


def _look(dataset: Dataset, key: str, episode: int, state: np.ndarray) -> Iterator[tuple[int, int, str, str]]:
    """First and last frame, kind and story of what is odd in an episode."""
    reference: np.ndarray | None = None
    shape, length = layout.image_shape(dataset.info["features"][key]), len(state)
    starts: list[int] = []
    light: list[str] = []
    for block in dataset.pictures(key, episode):
        if block.shape[1:] != shape:
            raise DataError(f"pictures are {block.shape[1:]}, info.json says {shape}")
        for image in block:
            light.append(_light(image))
            small = image.astype(np.int16)
            if reference is None or np.abs(small - reference).max() > STILL_LEVELS:
                reference = small
                starts.append(len(light) - 1)
    if len(light) < length:
        raise DataError(f"has {len(light)} of {length} frames; run sinew data repair")
    second = max(1, min(round(dataset.fps), length))
    told = {"black": 1, "overexposed": max(1, min(round(BRIEF_S * dataset.fps), length)), "one colour": second}
    for kind, least in told.items():
        at = np.flatnonzero(np.array(light) == kind)
        if len(at) >= least:
            yield int(at[0]), int(at[-1]), kind, f"{WORDS[kind]} in {len(at)} of {length} frames"
    begin, end = max(zip(starts, [*starts[1:], length], strict=True), key=lambda s: s[1] - s[0])
    seen = sum(kind == "" for kind in light[begin:end])
    if end - begin >= second and seen and end - begin > 1 and np.ptp(state[begin:end], axis=0).max() > MOVED_PART:
        yield begin, end - 1, "frozen", "the picture does not change although the robot moves: the camera is stuck"


def _light(image: np.ndarray) -> str:
    """What is wrong with the light of a picture: black, overexposed, one colour, or nothing."""
    sample = image[::STRIDE, ::STRIDE]
    if (sample.max(2) <= BLACK_LEVEL).mean() >= BLACK_SHARE:
        return "black"
    if (sample.min(2) >= WHITE_LEVEL).mean() >= WHITE_SHARE:
        return "overexposed"
    return "one colour" if int(image.max()) - int(image.min()) <= BLANK_LEVELS else ""
