"""The process in which a peer is measured: another interpreter, which reads one JSON object a line and answers each with one line."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sinew


class Peer:
    """The process of the peer, if there is an interpreter with lerobot.

    Args:
        python: of that environment; None for where `make conformance` puts it, or SINEW_LEROBOT_PYTHON.
        script: what it runs, of this folder.
        more: environment variables besides ours.
    """

    def __init__(self, python: Path | None = None, script: str = "policies_peer.py", more: Mapping[str, str] | None = None) -> None:
        self.python, self.script, self.more = python or interpreter(), script, dict(more or {})
        self.process: subprocess.Popen[str] | None = None
        self.why = "lerobot is not installed beside us: make conformance, or set SINEW_LEROBOT_PYTHON"

    def __enter__(self) -> Self:
        if self.python.exists():
            root = Path(sinew.__file__).resolve().parent.parent
            environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **self.more}
            command = [str(self.python), "-P", str(Path(__file__).with_name(self.script))]
            self.errors = tempfile.TemporaryFile("w+")
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ask(self, **what: Any) -> dict[str, Any]:
        """One request, one answer; {} where there is no peer, or none any more, and `why` then says why."""
        if self.process is None or self.process.stdin is None or self.process.stdout is None:
            return {}
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        self.process.wait()
        self.errors.seek(0)
        self.why = f"lerobot failed: {(self.errors.read().strip().splitlines() or ['no output'])[-1][:120]}"
        self.process = None
        return {}


def interpreter() -> Path:
    """Python of the environment with lerobot; it may not exist."""
    root = Path(sinew.__file__).resolve().parent.parent
    return Path(os.environ.get("SINEW_LEROBOT_PYTHON") or root / ".venv-lerobot/bin/python")
