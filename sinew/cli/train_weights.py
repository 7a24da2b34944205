"""How often each frame is drawn in training: by the quality of its episode and by the share of its dataset, where these are told."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from sinew.errors import InputError
from sinew.progress import Progress

if TYPE_CHECKING:
    from demos import Concat, Dataset
    from demos.quality.weights import Kept

QUALITY, NONE = "quality", "none"


def draw(data: Dataset | Concat, wanted: str | None, progress: Progress) -> np.ndarray | None:
    """How often each frame is drawn, relative to the others.

    Args:
        data: a dataset, or several with or without shares.
        wanted: "quality" asks for each dataset's meta/sinew_weights.json, None takes those that are there, anything else none.
        progress: told what the files do.

    Returns:
        (frames,), or None where all frames are alike. Weights of episodes do not change the share of a dataset.

    Raises:
        InputError: the files are asked for and one is missing.
        DataError: a file is damaged, or the data were changed since.
    """
    from demos import Concat
    from demos.quality import weights

    parts, shares = (data.parts, data.draw) if isinstance(data, Concat) else ((data,), None)
    if wanted not in (None, QUALITY):
        return shares
    found = [weights.load(part) for part in parts]
    for part, kept in zip(parts, found, strict=True):
        if kept is None and wanted == QUALITY:
            raise InputError(f"--weights quality: {part.root / weights.FILE} is missing; run sinew data quality {part.root}")
        if kept is not None:
            less, none = int((kept.weights < 1).sum()), int((kept.weights == 0).sum())
            how = f"{less} of {part.num_episodes} episodes are drawn less often, {none} of them not at all"
            progress.note(f"{part.root / weights.FILE}: {how}; --weights none draws all alike")
    if all(kept is None or (kept.weights == kept.weights[0]).all() for kept in found):
        return shares
    draws = np.concatenate([_of_frames(part, kept) for part, kept in zip(parts, found, strict=True)])
    return draws if shares is None else draws * shares


def _of_frames(part: Dataset, kept: Kept | None) -> np.ndarray:
    if kept is None:
        return np.ones(len(part))
    weights = kept.weights[part.column("episode_index")[:, 0]]
    return weights / weights.mean()


def digest(values: np.ndarray) -> str:
    """SHA-256 (hex) of how often frames are drawn, for provenance."""
    return hashlib.sha256(np.ascontiguousarray(values, np.float64).tobytes()).hexdigest()
