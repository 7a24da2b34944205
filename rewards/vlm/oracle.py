"""A model that knows the truth: whoever knows the simulation answers in its place, through the same questions and schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rewards.vlm.answers import Unreadable, read_answer
from rewards.vlm.protocol import VLMReply, VLMUnavailable

Truth = Callable[[str, Sequence[np.ndarray], Mapping[str, Any] | None], Any]
"""(text, pictures, schema) → the answer: text, or what JSON can hold where there is a schema."""


class SimOracleVLM:
    """Answers from `truth`, so that the whole path of a reward runs and is tested without a model.

    Args:
        truth: knows the answers.
        model: name under which answers are recorded.
    """

    def __init__(self, truth: Truth, model: str = "oracle") -> None:
        self._truth, self.model = truth, model

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
        """See `VLM.chat`; there are no log-probabilities."""
        answer = self._truth(text, images, schema)
        if schema is None:
            return VLMReply(text=str(answer))
        told = json.dumps(answer)
        try:
            return VLMReply(text=told, json=read_answer(told, schema))
        except Unreadable as problem:
            raise VLMUnavailable(f"the oracle's answer does not follow the schema: {problem}") from None
