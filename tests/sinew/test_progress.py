"""Libraries may report progress to nobody."""

from __future__ import annotations

from sinew.progress import SILENT, Progress


def test_silent_progress_says_nothing(capsys) -> None:
    SILENT.start("train", 10, done=3)
    SILENT.advance(2, loss=0.5)
    SILENT.note("half way")
    assert capsys.readouterr() == ("", "")
    assert isinstance(SILENT, Progress)
