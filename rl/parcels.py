"""What actors and learners say to each other, as bytes: JSON for numbers, safetensors for tensors. Nothing is ever unpickled."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rl.worlds import Step
from sinew.errors import DataError

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Record:
    """A step as it travels."""

    number: int
    """Counts the steps of one life of an actor, from 1; 0 is its beginning."""
    step: Step
    version: int
    """Updates that the weights had seen that acted."""


def pack(kind: str, numbers: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """A message of one kind with numbers and tensors (`pack_tensors`)."""
    head = json.dumps({"kind": kind, **numbers}).encode()
    return _LENGTH.pack(len(head)) + head + payload


def unpack(data: bytes) -> tuple[str, dict[str, Any], bytes]:
    """Kind, numbers and tensors' bytes of a message.

    Raises:
        DataError: it is none.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        numbers = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        return str(numbers.pop("kind")), numbers, data[_LENGTH.size + length :]
    except (struct.error, ValueError, KeyError, AttributeError, TypeError) as e:
        raise DataError(f"a message between actor and learner is damaged: {e}") from None


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors as safetensors."""
    return save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})


def unpack_tensors(payload: bytes) -> dict[str, Tensor]:
    """What `pack_tensors` made.

    Raises:
        DataError: the bytes are no tensors.
    """
    try:
        return load(payload) if payload else {}
    except (SafetensorError, KeyError, ValueError) as e:
        raise DataError(f"tensors between actor and learner are damaged: {e}") from None


def pack_steps(records: Sequence[Record]) -> tuple[dict[str, Any], bytes]:
    """Consecutive steps of one life as numbers and tensors (K, N, ...)."""
    steps = [r.step for r in records]
    tensors = {name: torch.stack([getattr(s, name) for s in steps]) for name in ("action", "reward", "terminated", "truncated")}
    tensors["source"] = torch.stack([torch.as_tensor(s.source, dtype=torch.uint8).expand(len(s.reward)) for s in steps])
    tensors |= {f"frames.{k}": torch.stack([s.frames[k] for s in steps]) for k in steps[0].frames}
    ended = [s for s in steps if s.final is not None]
    for key in ended[0].final or {} if ended else ():
        tensors[f"final.{key}"] = torch.cat([s.final[key] for s in ended if s.final is not None])
    numbers = {"first": records[0].number, "versions": [r.version for r in records], "success": [list(s.success) for s in steps]}
    return numbers, pack_tensors(tensors)


def unpack_steps(numbers: Mapping[str, Any], payload: bytes) -> list[Record]:
    """What `pack_steps` took.

    Raises:
        DataError: it is no list of steps.
    """
    tensors = unpack_tensors(payload)
    frames = [k.removeprefix("frames.") for k in tensors if k.startswith("frames.")]
    finals = [k.removeprefix("final.") for k in tensors if k.startswith("final.")]
    records, used = [], 0
    try:
        for i, (version, success) in enumerate(zip(numbers["versions"], numbers["success"], strict=True)):
            plain = {name: tensors[name][i] for name in ("action", "reward", "terminated", "truncated", "source")}
            many = int((plain["terminated"] | plain["truncated"]).sum())
            final = {k: tensors[f"final.{k}"][used : used + many] for k in finals} if many and finals else None
            used += many if final else 0
            step = Step(**plain, frames={k: tensors[f"frames.{k}"][i] for k in frames}, final=final, success=success)
            records.append(Record(int(numbers["first"]) + i, step, int(version)))
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as e:
        raise DataError(f"steps of an actor are damaged: {e}") from None
    return records
