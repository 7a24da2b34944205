"""Generated code is contained twice: what the checker refuses, and what the process withstands when nothing is checked."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from escapes import REFUSED, UNCHECKED

from rewards.generated import sandbox
from rewards.generated.language import Refused, check
from rewards.generated.sandbox import CodeRefused, Sandbox, WorkerLost

FIELDS = {"tool": 3, "cube": 3, "gripper": 1}
PROGRAM = """
import ctypes, json, mmap, os, resource, signal, socket, struct, subprocess, sys, threading, time
sys.path.insert(0, {root!r})
import numpy as np
from rewards.generated import worker
from rewards.generated.confine import confine
CHANNEL, CANARY, PORT = int(sys.argv[1]), {canary!r}, {port}
held = confine({layers})
worker.send(CHANNEL, b"H", json.dumps([*held, "limits", "system calls"]).encode())
kind, body = worker.receive(CHANNEL)
try:
    exec(json.loads(body)["source"], globals())
except BaseException as e:
    worker.send(CHANNEL, b"R", f"{{type(e).__name__}}: {{e}}".encode()[:100000])
else:
    worker.send(CHANNEL, b"C", b'{{"form": "potential", "uses": [], "parts": []}}')
worker.receive(CHANNEL)
"""
"""Runs what it is sent as it stands, within the confinement; `layers` are the arguments of `confine`."""


@pytest.fixture
def canary(tmp_path):
    """A file and a port that nobody may touch."""
    path = tmp_path / "canary"
    path.write_text("whole")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield path, server
        with pytest.raises(BlockingIOError):
            server.accept()
    assert path.read_text() == "whole" and path.stat().st_mode & 0o111 == 0


def unchecked(tmp_path, canary, source, layers=""):
    """What becomes of code that nothing checked; returns normally only where it did what it wanted."""
    path, server = canary
    program = tmp_path / "program.py"
    root = str(Path(sandbox.__file__).resolve().parents[2])
    program.write_text(PROGRAM.format(root=root, canary=str(path), port=server.getsockname()[1], layers=layers))
    Sandbox(source, FIELDS, 4, program=program).close()


@pytest.mark.parametrize("name", REFUSED)
def test_the_checker_refuses(name):
    with pytest.raises(Refused) as said:
        check(REFUSED[name], FIELDS)
    assert len(str(said.value)) < 500 and "\n" not in str(said.value)


@pytest.mark.parametrize("name", ["deep parentheses", "a long chain of signs", "walk from a tuple to all classes"])
def test_what_is_refused_is_refused_in_the_process(name):
    with pytest.raises(CodeRefused):
        Sandbox(REFUSED[name], FIELDS, 4)


@pytest.mark.parametrize("name", UNCHECKED)
def test_the_process_contains_what_gets_past_the_checker(name, tmp_path, canary, monkeypatch):
    monkeypatch.setattr(sandbox, "CODE_S", 1.0)
    monkeypatch.setenv("SINEW_TEST_SECRET", "secret")
    with pytest.raises((WorkerLost, CodeRefused)) as said:
        unchecked(tmp_path, canary, UNCHECKED[name])
    assert len(str(said.value)) < 600
    with pytest.raises(ChildProcessError):  # nobody is left behind
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("open(CANARY, 'w')", "FileNotFoundError|Read-only"),
        ("open('/a', 'w')", "Read-only"),
        ("os.listdir('/')[0]", "IndexError"),
        ("socket.socket().connect(('127.0.0.1', PORT))", "unreachable|refused"),
        ("os.chroot('/')", "PermissionError"),
        ("socket.sethostname('x')", "PermissionError"),
    ],
)
def test_namespaces_hold_without_the_filter(source, error, tmp_path, canary):
    guard = "if 'files' not in held or 'network' not in held: raise RuntimeError('no namespaces')\n"
    with pytest.raises((WorkerLost, CodeRefused)) as said:
        unchecked(tmp_path, canary, guard + source, "limits=False, filter_calls=False")
    if "no namespaces" in str(said.value):
        pytest.skip("this system lets no ordinary user have namespaces")
    assert any(part in str(said.value) for part in error.split("|")), said.value


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("bytearray(10 << 30)", "MemoryError"),
        ("open('/etc/passwd')", "Too many open files"),
        ("socket.socket()", "Too many open files"),
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))", "ValueError|PermissionError"),
    ],
)
def test_limits_hold_without_the_filter(source, error, tmp_path, canary):
    if os.geteuid() == 0 and "setrlimit" in source:
        pytest.skip("root may raise limits")
    with pytest.raises((WorkerLost, CodeRefused)) as said:
        unchecked(tmp_path, canary, source, "namespaces=False, filter_calls=False")
    assert any(part in str(said.value) for part in error.split("|")), said.value


def test_what_is_harmless_does_run_unchecked(tmp_path, canary):
    """The tests above would pass as well if nothing ran at all."""
    unchecked(tmp_path, canary, "x = np.linalg.norm(np.arange(9.0))\nassert abs(x - 204**0.5) < 1e-9")
