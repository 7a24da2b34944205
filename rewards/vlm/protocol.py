"""What every model that looks at pictures offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rewards.files import RewardUnavailable


class VLMUnavailable(RewardUnavailable):
    """No usable answer can be had: nobody there, quota or budget spent, time is up, or an answer that cannot be read."""


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer."""

    token: str
    logprob: float
    """Natural logarithm of its probability, at most 0."""
    top: Mapping[str, float] = field(default_factory=dict)
    """The likeliest tokens at this place with theirs, as many as were asked for."""


@dataclass(frozen=True)
class VLMReply:
    """An answer."""

    text: str
    json: Any = None
    """The answer as checked JSON where a schema was given, else None."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """"prompt_tokens", "completion_tokens" and "total_tokens", where they were told."""
    latency_s: float = 0.0
    """Time from question to answer, retries included."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of every token of the answer; None where they were not asked for or not given."""


class VLM(Protocol):
    """A model that answers questions about pictures."""

    model: str
    """Its name, which recordings are kept under."""

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
        """Ask once.

        Args:
            text: the question.
            images: (H, W, 3) uint8 RGB each, shown after the text in this order.
            schema: JSON schema (`rewards.vlm.answers`) that the answer must follow; `json` of the reply then holds it.
            seed: of the model's sampling.
            max_tokens: longest answer.
            timeout_s: for everything together, retries included.
            top_logprobs: likeliest tokens wanted at every place of the answer, 0 for no log-probabilities.

        Raises:
            VLMUnavailable: there is no usable answer.
            InputError: the question itself is wrong.
        """
        ...
