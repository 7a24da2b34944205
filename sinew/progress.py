"""How long work tells its progress; the command line draws it, libraries only report."""

from __future__ import annotations


class Progress:
    """Receives progress and shows nothing; the command line's subclass draws a bar."""

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage begins: `total` units of work, `done` of them finished by an earlier run."""

    def advance(self, n: int = 1, **values: float) -> None:
        """`n` more units are done; `values` are worth showing beside the bar, for example loss=0.1."""

    def note(self, text: str) -> None:
        """One line worth keeping in the log."""


SILENT = Progress()
