"""Models that look at pictures and answer: over HTTP, from a recording, or from simulation truth."""

from __future__ import annotations

from rewards.vlm.http import OpenAICompatible
from rewards.vlm.oracle import SimOracleVLM
from rewards.vlm.protocol import VLM, TokenLogprob, VLMReply, VLMUnavailable
from rewards.vlm.recorded import RecordedVLM

__all__ = ["VLM", "OpenAICompatible", "RecordedVLM", "SimOracleVLM", "TokenLogprob", "VLMReply", "VLMUnavailable"]
