"""Answers kept in a folder, found again by what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.vlm.answers import check
from rewards.vlm.protocol import VLM, TokenLogprob, VLMReply, VLMUnavailable
from sinew.errors import DataError, InputError
from sinew.rundir import read_json, write_json

MODEL_FILE = "model.json"


class RecordedVLM:
    """Replays answers; asks `inner` for those that are missing and keeps what it says.

    Args:
        folder: one file for each question, named by its hash.
        inner: a model; None to replay alone.
        model: whose answers are replayed; what the folder says if None.

    Raises:
        InputError: no inner model, and no recording in the folder.
    """

    def __init__(self, folder: Path, inner: VLM | None = None, model: str | None = None) -> None:
        self.folder, self.inner = Path(folder), inner
        note = self.folder / MODEL_FILE
        if inner is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(note, {"model": inner.model})
        elif model is None and not note.is_file():
            raise InputError(f"{folder} holds no recorded answers: record some first, with a model's address and --record {folder}")
        self.model = model or (inner.model if inner is not None else str(read_json(note).get("model", "")))

    def chat(
        self,
        text: str,
        images: Sequence[np.ndarray],
        *,
        schema: Mapping[str, Any] | None = None,
        seed: int = 0,
        max_tokens: int = 512,
        timeout_s: float = 30.0,
        top_logprobs: int = 0,
    ) -> VLMReply:
        """See `VLM.chat`.

        Raises:
            VLMUnavailable: it was not recorded and there is no inner model.
            DataError: a recording is damaged.
        """
        path = self.folder / f"{question_hash(self.model, text, images, schema, seed, top_logprobs)}.json"
        if path.is_file():
            return _read(path, schema)
        if self.inner is None:
            raise VLMUnavailable(
                f"{self.folder} has no answer of {self.model!r} to this question; it was asked with other pictures or text"
            )
        options: dict[str, Any] = {"seed": seed, "max_tokens": max_tokens, "timeout_s": timeout_s, "top_logprobs": top_logprobs}
        reply = self.inner.chat(text, images, schema=schema, **options)
        write_json(path, {"model": self.model, "text": text, "images": len(images), "seed": seed, "reply": _told(reply)})
        return reply


def question_hash(
    model: str, text: str, images: Sequence[np.ndarray], schema: Mapping[str, Any] | None, seed: int, top_logprobs: int = 0
) -> str:
    """Sha256 of a question; pictures count by their pixels, not by how they are compressed."""
    whole = hashlib.sha256()
    pictures = [[*image.shape, hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()] for image in images]
    whole.update(json.dumps([model, text, pictures, schema, seed, top_logprobs], sort_keys=True).encode())
    return whole.hexdigest()


def _told(reply: VLMReply) -> dict[str, Any]:
    tokens = None if reply.logprobs is None else [[t.token, t.logprob, dict(t.top)] for t in reply.logprobs]
    return {"text": reply.text, "json": reply.json, "usage": dict(reply.usage), "latency_s": reply.latency_s, "logprobs": tokens}


def _read(path: Path, schema: Mapping[str, Any] | None) -> VLMReply:
    found = read_json(path)
    try:
        told = found["reply"]
        if schema is not None:
            check(told["json"], schema)
        tokens = None if told["logprobs"] is None else tuple(TokenLogprob(str(t), float(p), dict(top)) for t, p, top in told["logprobs"])
        return VLMReply(str(told["text"]), told["json"], dict(told["usage"]), float(told["latency_s"]), tokens)
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{path} is no recorded answer ({str(problem)[:100]}); delete it to ask again") from None
