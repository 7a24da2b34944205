"""What is told to a person who looks at a robot and not at a screen: a bell, or words, on a thread of its own."""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
import threading
from typing import Literal, TextIO

from sinew.errors import MissingDependency

Sounds = Literal["none", "bell", "speak"]
SPEAKERS: dict[str, tuple[str, ...]] = {
    "spd-say": ("spd-say", "--wait"), "espeak-ng": ("espeak-ng",), "espeak": ("espeak",), "say": ("say",),
}  # fmt: skip
"""Speech programs, as they are called."""
LONGEST_S = 15.0
"""A program that speaks longer than this is ended."""
MOST_WAITING = 4
"""Lines that may wait to be spoken; more would be told too late to be of use."""


class Prompts:
    """Says lines aloud; nobody waits for it. A context manager.

    Args:
        sounds: "none"; "bell" rings a terminal's bell, three times for what is urgent; "speak" says the words.
        stream: terminal whose bell is rung; standard error if left out. Where it is no terminal nothing rings.

    Raises:
        MissingDependency: words are wanted and no speech program is installed.
    """

    def __init__(self, sounds: Sounds, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._speaker = next((SPEAKERS[name] for name in SPEAKERS if shutil.which(name)), None) if sounds == "speak" else None
        if sounds == "speak" and self._speaker is None:
            raise MissingDependency(
                f"--sounds speak: none of {', '.join(SPEAKERS)} is installed; try: sudo apt install speech-dispatcher, or --sounds bell"
            )
        self._rings = sounds == "bell" and bool(getattr(self._stream, "isatty", lambda: False)())
        self._queue: queue.Queue[tuple[str, bool] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="prompts", daemon=True)
        self._thread.start()

    def say(self, line: str, urgent: bool = False) -> None:
        """Say a line, as far as its first semicolon; returns at once. Where too much waits already it is left out."""
        if self._rings or self._speaker is not None:
            try:
                self._queue.put_nowait((line.split(";")[0], urgent))
            except queue.Full:
                return

    def close(self) -> None:
        """Say what waits and end."""
        self._queue.put(None)
        self._thread.join(LONGEST_S)

    def __enter__(self) -> Prompts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            line, urgent = item
            try:
                if self._speaker is not None:
                    # "--" so that no line is taken for an option.
                    subprocess.run([*self._speaker, "--", line], capture_output=True, timeout=LONGEST_S, stdin=subprocess.DEVNULL)
                else:
                    self._stream.write("\a" * (3 if urgent else 1))
                    self._stream.flush()
            except (OSError, ValueError, subprocess.TimeoutExpired):
                continue  # a prompt that cannot be heard stops nothing
