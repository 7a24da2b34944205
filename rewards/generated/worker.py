"""The process that evaluates generated code: started by `sandbox`, it confines itself before it reads any of it.

Run as `python -I worker.py DESCRIPTOR`, with a socket to the one that started it. Messages are a length, a kind and bytes: JSON for
code, raw numbers for a step; nothing is unpickled on either side.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from rewards.generated.confine import confine
from rewards.generated.evaluate import Evaluator, Wrong
from rewards.generated.language import Refused, check

HEAD = struct.Struct("=Ic")
"""Length of the body and kind of a message."""
COUNT = struct.Struct("=I")
HELD, CODE, STEP, VALUES, REFUSED, WRONG = b"H", b"C", b"S", b"V", b"R", b"W"
MAX_BODY = 1 << 27
"""Bytes of a message."""


def send(channel: int, kind: bytes, body: bytes) -> None:
    """Write one message."""
    rest = memoryview(HEAD.pack(len(body), kind) + body)
    while rest:
        rest = rest[os.write(channel, rest) :]


def receive(channel: int) -> tuple[bytes, bytes]:
    """Read one message; leaves the process when the other side is gone, or sends what is none."""
    length, kind = HEAD.unpack(_exactly(channel, HEAD.size))
    if length > MAX_BODY:
        os._exit(1)
    return kind, _exactly(channel, length)


def _exactly(channel: int, length: int) -> bytes:
    body = bytearray()
    while len(body) < length:
        part = os.read(channel, min(length - len(body), 1 << 20))
        if not part:
            os._exit(0)
        body += part
    return bytes(body)


class Loaded:
    """Code that was checked, with the layout of a step.

    Args:
        told: "source", "fields" {name: length} and "action", its length.

    Raises:
        Refused: the code says what it may not.
    """

    def __init__(self, told: Mapping) -> None:
        self.fields, self.action = {str(k): int(v) for k, v in told["fields"].items()}, int(told["action"])
        self.program = check(str(told["source"]), self.fields)
        self.evaluator = Evaluator(self.program)

    def describe(self) -> bytes:
        """What the other side must know."""
        return json.dumps({"form": self.program.form, "uses": self.program.uses, "parts": self.program.parts}).encode()

    def step(self, body: bytes) -> bytes:
        """Count of worlds and float32 columns, one input after the other → (1 + parts, N) float64.

        Raises:
            Wrong: the code does not work out.
        """
        (worlds,) = COUNT.unpack_from(body)
        numbers, at, inputs = np.frombuffer(body, np.float32, offset=COUNT.size).astype(np.float64), 0, {}
        for argument, field in self.program.uses:
            width = self.fields[field] if field else self.action
            block = numbers[at : at + worlds * width]
            inputs[argument, field] = block if field and width == 1 else block.reshape(worlds, width)
            at += worlds * width
        return self.evaluator(inputs, worlds).tobytes()


def main(channel: int) -> None:
    """Confine, tell what holds, then answer until the other side is gone."""
    send(channel, HELD, json.dumps(confine()).encode())
    loaded: Loaded | None = None
    while True:
        kind, body = receive(channel)
        try:
            if kind == CODE:
                loaded = Loaded(json.loads(body))
                send(channel, CODE, loaded.describe())
            elif loaded is not None:
                send(channel, VALUES, loaded.step(body))
        except Refused as e:
            send(channel, REFUSED, str(e).encode())
        except Wrong as e:
            send(channel, WRONG, str(e).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
