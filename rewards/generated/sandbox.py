"""The side of generated code that trusts nothing: starts the confined process, waits with a deadline, checks what comes back."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.files import RewardUnavailable
from rewards.generated.confine import holds
from rewards.generated.language import FORMS, MAX_PARTS, MAX_SOURCE
from rewards.generated.worker import CODE, COUNT, HEAD, HELD, MAX_BODY, REFUSED, STEP, VALUES, WRONG
from sinew.errors import InputError

START_S = 60.0
"""How long a process may take to come up; a loaded machine imports slowly."""
CODE_S = 10.0
"""How long checking the code may take."""
WORKER = Path(__file__).with_name("worker.py")
_BUBBLEWRAP = ("--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc")


class CodeRefused(InputError):  # noqa: N818
    """Generated code says what it may not, or does not work out; the message has the line."""


class WorkerLost(Exception):  # noqa: N818
    """The process died, was too late, or answered what is no answer; a new one has been started or can be."""


@dataclass(frozen=True)
class Described:
    """What the process told of the code it took."""

    form: str
    """potential or reward."""
    uses: tuple[tuple[str, str], ...]
    """Inputs in the order they are sent: (argument, field), field "" for the action."""
    parts: tuple[str, ...]
    """Names of the parts."""


class Sandbox:
    """One confined process and the code in it.

    Args:
        source: the code.
        fields: names of what is observed, with lengths.
        action: length of an action.
        deadline_s: longest time a step may take.
        program: what is run; another one than the worker only to test the confinement.

    Raises:
        CodeRefused: the code says what it may not.
        RewardUnavailable: this machine cannot confine a process, so no generated code is run.
        WorkerLost: the code brought the process down.
    """

    def __init__(self, source: str, fields: Mapping[str, int], action: int, *, deadline_s: float = 2.0, program: Path = WORKER) -> None:
        if len(source) > MAX_SOURCE:
            raise CodeRefused(f"the code has {len(source)} characters; {MAX_SOURCE} are allowed")
        self.fields, self.action, self.deadline_s, self._program = dict(fields), action, deadline_s, program
        self._code = json.dumps({"source": source, "fields": self.fields, "action": action}).encode()
        self._process: subprocess.Popen[bytes] | None = None
        self.held: tuple[str, ...] = ()
        """Names of what confines the process."""
        self.described = self._start()

    def step(self, inputs: Mapping[tuple[str, str], np.ndarray], worlds: int) -> np.ndarray:
        """Evaluate N worlds.

        Args:
            inputs: (argument, field) → (N, length) float32, for all that `described.uses` names.
            worlds: N.

        Returns:
            (1 + parts, N) float64, the value first; not necessarily finite.

        Raises:
            CodeRefused: the code does not work out.
            WorkerLost: the process is gone; the next call starts another.
        """
        if self._process is None:
            self._start()
        body = b"".join([COUNT.pack(worlds), *(np.ascontiguousarray(inputs[use], np.float32).tobytes() for use in self.described.uses)])
        kind, answer = self._ask(STEP, body, self.deadline_s)
        rows = 1 + len(self.described.parts)
        if kind != VALUES or len(answer) != 8 * rows * worlds:
            self._lose("answered what is no answer", kind, answer)
        return np.frombuffer(answer, np.float64).reshape(rows, worlds)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._socket.close()
            self._process = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the end of the interpreter parts of it are gone
            self.close()

    # ------------------------------------------------------------ the process

    def _start(self) -> Described:
        if not sys.platform.startswith("linux"):
            raise RewardUnavailable("generated rewards are only run on Linux, where a process can be confined")
        self._socket, theirs = socket.socketpair()
        bubblewrap = shutil.which("bwrap")
        before = [bubblewrap, *_BUBBLEWRAP] if bubblewrap else []
        with theirs:
            self._process = subprocess.Popen(
                [*before, sys.executable, "-I", "-X", "utf8", str(self._program), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, cwd="/", start_new_session=True,
            )  # fmt: skip
        kind, body = self._answer(time.monotonic() + START_S)
        if kind != HELD:
            self._lose("did not say what confines it", kind, body)
        self.held = tuple(str(name) for name in self._parsed(body, list))
        if not holds(self.held):
            self.close()
            raise RewardUnavailable(
                f"this machine does not confine a process enough to run generated code: {', '.join(self.held) or 'nothing'} holds, "
                "the filter of system calls is needed"
            )
        kind, body = self._ask(CODE, self._code, CODE_S)
        return self._description(kind, body)

    def _description(self, kind: bytes, body: bytes) -> Described:
        if kind != CODE:
            self._lose("did not take the code", kind, body)
        told = self._parsed(body, dict)
        known = {("action", ""), *((argument, name) for argument in ("before", "now") for name in self.fields)}
        uses = tuple((str(a), str(f)) for a, f in told.get("uses", ()))
        parts = tuple(str(name) for name in told.get("parts", ()))
        if told.get("form") not in FORMS or not known >= set(uses) or len(parts) > MAX_PARTS or not all(p.isidentifier() for p in parts):
            self._lose("told of code that cannot be", kind, body)
        return Described(told["form"], uses, parts)

    def _parsed(self, body: bytes, kind: type) -> Any:
        try:
            told = json.loads(body) if len(body) < 1 << 16 else None
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, kind):
            self._lose("told what is no JSON", b"", body)
        return told

    def _ask(self, kind: bytes, body: bytes, within_s: float) -> tuple[bytes, bytes]:
        deadline = time.monotonic() + within_s
        try:
            self._socket.settimeout(within_s)
            self._socket.sendall(HEAD.pack(len(body), kind) + body)
        except OSError as e:
            self._lose(f"does not listen ({type(e).__name__})", b"", b"")
        return self._answer(deadline)

    def _answer(self, deadline: float) -> tuple[bytes, bytes]:
        length, kind = HEAD.unpack(self._exactly(HEAD.size, deadline))
        if length > MAX_BODY:
            self._lose("answered too much", kind, b"")
        body = self._exactly(length, deadline)
        if kind in (REFUSED, WRONG):
            text = body[:500].decode(errors="replace")
            if kind == REFUSED:
                self.close()
            raise CodeRefused("".join(c if c.isprintable() else " " for c in text))
        return kind, body

    def _exactly(self, length: int, deadline: float) -> bytes:
        body = bytearray()
        while len(body) < length:
            try:
                self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
                part = self._socket.recv(min(length - len(body), 1 << 20))
            except TimeoutError:
                self._lose("was too late", b"", b"")
            except OSError:
                part = b""
            if not part:
                self._lose("died", b"", b"")
            if time.monotonic() > deadline:
                self._lose("was too late", b"", b"")
            body += part
        return bytes(body)

    def _lose(self, how: str, kind: bytes, body: bytes) -> Any:
        """End the process, which nothing more is believed of."""
        process = self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process is not None and how == "died":
                process.wait(1.0)
        code = process.poll() if process is not None else None
        self.close()
        ended = f" (signal {-code})" if code is not None and code < 0 else ""
        raise WorkerLost(f"the process of generated code {how}{ended}")
