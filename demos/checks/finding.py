"""One thing that was found in a dataset, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    level: str
    """"error": cannot be read as it is; "warning": can be read but should not be trained on unseen; "note"."""
    where: str
    """File or folder within the dataset."""
    message: str
    key: str | None = None
    episode: int | None = None
    frame: int | None = None
    """Frame within the episode, the first one where there are several."""
    last: int | None = None
    """Last frame, where there are several."""
    kind: str = ""
    """One word for what it is: "jump", "frozen", …; empty for damage to files."""
    advice: str = ""
    """What to do, as a command where there is one."""

    def __str__(self) -> str:
        return f"{self.level}: {self.place}: {self.message}{f'; {self.advice}' if self.advice else ''}"

    @property
    def place(self) -> str:
        """File, episode, frames and key, as far as they are known."""
        place = [self.where]
        place += [f"episode {self.episode}"] if self.episode is not None else []
        if self.frame is not None:
            several = self.last is not None and self.last != self.frame
            place += [f"frames {self.frame} to {self.last}" if several else f"frame {self.frame}"]
        return ", ".join([*place, self.key] if self.key else place)


def by_episode(rows: np.ndarray, episode: np.ndarray, start: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Sort frames into their episodes.

    Args:
        rows: (K,) global frame numbers, rising.
        episode: (frames,) episode of every frame.
        start: (episodes,) first global frame of each.

    Yields:
        Episode, and the (k,) frames within it.
    """
    for number in np.unique(episode[rows]).tolist():
        yield number, rows[episode[rows] == number] - start[number]


def stretch(frames: np.ndarray) -> str:
    """How many frames, in words."""
    return "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
