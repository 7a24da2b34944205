"""What goes with a recording on the terminal: what is looked at before an episode, and how it goes while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sinew.progress import Progress

if TYPE_CHECKING:
    from robot_bridge.camera_check import CameraCheck
    from robot_bridge.recording import DatasetRecorder
    from sinew.protocols import Observation

EVERY_S = 1.0
"""Between two looks at how the recording goes."""


def before(recorder: DatasetRecorder, episode_s: float, cameras: CameraCheck | None) -> Callable[[Observation], str]:
    """What is looked at before each episode: room on the disk, each camera, and the cameras' calibrations where there are some.

    Args:
        recorder: of the dataset.
        episode_s: longest episode.
        cameras: compares with the calibrations; None where there are none.
    """

    def look(measured: Observation) -> str:
        problem = recorder.room().refusal(episode_s) or recorder.look(measured)
        return problem or (cameras(measured) if cameras is not None else "")

    return look


@contextmanager
def shown(recorder: DatasetRecorder, progress: Progress) -> Iterator[None]:
    """Show meanwhile how the recording goes: frames per second, lateness, ages, losses, minutes of disk."""
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(EVERY_S):
            told = recorder.live()
            if "hz" in told:
                progress.advance(0, **told)

    thread = threading.Thread(target=show, name="live", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
