"""Prompts are heard, and nobody waits for them: with a real program that speaks, which here writes down what it was told."""

from __future__ import annotations

import io
import os
import pty
import time

import pytest

from sinew.cli.prompts import MOST_WAITING, Prompts
from sinew.errors import MissingDependency


@pytest.fixture
def speaker(tmp_path, monkeypatch):
    """A speech program in a PATH of its own, that is as slow as it is told; gives what it has said."""
    programs, heard = tmp_path / "bin", tmp_path / "heard"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr("sinew.cli.prompts.SPEAKERS", {"espeak": ("espeak",)})

    def install(pause_s: float = 0.0):
        program = programs / "espeak"
        program.write_text(f'#!/bin/sh\nsleep {pause_s}\nprintf "%s\\n" "$*" >> {heard}\n')
        program.chmod(0o755)
        return lambda: heard.read_text().splitlines() if heard.exists() else []

    return install


def test_words_are_spoken_up_to_the_first_semicolon(speaker):
    heard = speaker()
    with Prompts("speak") as prompts:
        prompts.say("--help me; not this")
        prompts.say("episode saved")
    assert heard() == ["-- --help me", "-- episode saved"]


def test_a_slow_speaker_holds_nobody_up_and_old_news_are_left_out(speaker):
    heard = speaker(0.5)
    with Prompts("speak") as prompts:
        begin = time.process_time()
        for i in range(100):
            prompts.say(f"line {i}")
        assert time.process_time() - begin < 0.5  # it waited for none of the 50 s
    assert 1 <= len(heard()) <= MOST_WAITING + 2 and heard()[0] == "-- line 0"


def test_what_cannot_be_spoken_is_passed_over_and_prompts_go_on(speaker, monkeypatch, tmp_path):
    heard, program, began = speaker(), tmp_path / "bin/espeak", tmp_path / "began"
    program.write_text(program.read_text().replace("sleep 0.0", f'case "$*" in *endless*) touch {began}; exec sleep 600;; esac'))

    def wait(condition):
        end = time.monotonic() + 60.0
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)

    with Prompts("speak") as prompts:
        monkeypatch.setattr("sinew.cli.prompts.LONGEST_S", 3.0)
        for line in ("a \0 that no program takes", "too long " * 100_000, "endless"):
            prompts.say(line)
        wait(began.exists)
        monkeypatch.setattr("sinew.cli.prompts.LONGEST_S", 60.0)
        prompts.say("and goes on")
        wait(heard)
    assert heard() == ["-- and goes on"]


def test_without_a_speech_program_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingDependency, match=r"--sounds speak: none of spd-say, .* apt install .* or --sounds bell"):
        Prompts("speak")


def test_a_bell_rings_on_a_terminal_only():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, Prompts("bell", terminal) as prompts:
        prompts.say("saved")
        prompts.say("the camera is gone", urgent=True)
        prompts.close()
        heard = b""
        while len(heard) < 4:  # a terminal hands over what it has, which may be one bell of the four
            heard += os.read(ours, 100)
        assert heard == b"\a\a\a\a"
    os.close(ours)
    for sounds, stream in (("bell", io.StringIO()), ("none", io.StringIO())):
        with Prompts(sounds, stream) as prompts:
            prompts.say("saved")
        assert stream.getvalue() == ""
