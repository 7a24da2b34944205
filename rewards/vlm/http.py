"""Any server that speaks `POST {base_url}/chat/completions`: vLLM, Ollama, a cloud.

Nothing that a server says is trusted: answers are bounded in time, size and nesting and checked against a schema, no redirect is
followed, and the key is read from the environment for every call, sent over TLS or to this machine only, and cut out of whatever
comes back.

Source of the protocol: OpenAI's chat completions, as vLLM and Ollama document that they speak it.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rewards.vlm.answers import Unreadable, read_answer
from rewards.vlm.protocol import TokenLogprob, VLMReply, VLMUnavailable
from sinew.errors import InputError

AGAIN = (429, 500, 502, 503, 504)
"""States of a server that may pass."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Before asking such a server again, unless it says how long."""
SECRET = 8
"""Shorter keys are no secrets (local servers take any word), and may be part of any answer."""
SHOWN = 200
"""Characters of a server's words in a message of ours."""


@dataclass
class OpenAICompatible:
    """A model behind HTTP.

    Raises:
        InputError: the address is none that can be asked.
    """

    base_url: str
    """For example http://localhost:8000/v1."""
    model: str
    """Its name on the server."""
    api_key_env: str = "SINEW_VLM_API_KEY"
    """Environment variable of the key; a server without one needs none."""
    max_calls: int = 200
    """Questions sent in all, retries included."""
    max_tokens_total: int = 1_000_000
    """Tokens used in all, as the server counts them, or four characters each where it does not."""
    image_edge_px: int = 1024
    """Larger pictures are made smaller until their longer edge is this."""
    max_images: int = 64
    """Pictures in one question."""
    max_answer_bytes: int = 2_000_000
    """Larger answers are refused."""
    calls: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._host, self._port, self._secure, self._path = _address(self.base_url)
        self._counting = threading.Lock()  # several may ask at once

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
        """See `VLM.chat`; an answer that does not follow the schema is sent back once with what is wrong."""
        started = time.monotonic()
        deadline = started + timeout_s
        body = self._body(text, images, schema, seed, max_tokens, top_logprobs)
        reply = self._completed(body, deadline)
        if schema is not None:
            try:
                return _timed(reply, started, read_answer(reply.text, schema))
            except Unreadable as problem:
                wrong = f"Your answer cannot be used: {problem}. Answer again, with the JSON alone."
            body["messages"] += [{"role": "assistant", "content": reply.text[:4000]}, {"role": "user", "content": wrong}]
            reply = self._completed(body, deadline)
            try:
                return _timed(reply, started, read_answer(reply.text, schema))
            except Unreadable as problem:
                raise VLMUnavailable(f"{self.model} at {self.base_url} twice gave no usable answer: {problem}") from None
        return _timed(reply, started)

    def _body(
        self, text: str, images: Sequence[np.ndarray], schema: Mapping[str, Any] | None, seed: int, max_tokens: int, top_logprobs: int
    ) -> dict[str, Any]:
        if len(images) > self.max_images:
            raise InputError(f"{len(images)} pictures in one question; at most {self.max_images} are sent")
        if schema is not None:
            text = f"{text}\n\nAnswer with JSON that follows this schema, and nothing else:\n{json.dumps(schema, sort_keys=True)}"
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [{"type": "image_url", "image_url": {"url": _data_url(image, self.image_edge_px)}} for image in images]
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        body |= {"temperature": 0, "seed": seed, "max_tokens": max_tokens}
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        return body | ({"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {})

    def _completed(self, body: dict[str, Any], deadline: float) -> VLMReply:
        """One answer of the server, asked again where its state may pass, and without what it does not know."""
        status, content, headers = self._post(body, deadline)
        if status == 400 and "response_format" in body:
            del body["response_format"]
            status, content, headers = self._post(body, deadline)
        if status in AGAIN:
            time.sleep(max(0.0, min(_wanted_pause(headers), LONGEST_PAUSE_S, (deadline - time.monotonic()) / 2)))
            status, content, headers = self._post(body, deadline)
        if 300 <= status < 400:
            place = _clean(headers.get("location", "elsewhere"))
            raise VLMUnavailable(f"{self.base_url} sends on to {place}, which is not followed: give that address if you trust it")
        if status in (401, 403):
            raise VLMUnavailable(f"{self.base_url} refuses the key (HTTP {status}): put a valid one into {self.api_key_env}")
        if status != 200:
            raise VLMUnavailable(f"{self.base_url} answers HTTP {status}: {_complaint(content)}")
        reply = _reply(content, self.base_url)
        counted = reply.usage.get("total_tokens") or len(json.dumps(body["messages"][0]["content"][0])) // 4 + len(reply.text) // 4
        with self._counting:
            self.tokens += counted
        return reply

    def _post(self, body: Mapping[str, Any], deadline: float) -> tuple[int, str, Mapping[str, str]]:
        """(status, content, headers) of one request, all within the deadline."""
        with self._counting:
            if self.calls >= self.max_calls:
                raise VLMUnavailable(f"the {self.max_calls} questions that {self.model} may be asked are spent")
            if self.tokens >= self.max_tokens_total:
                raise VLMUnavailable(f"the {self.max_tokens_total:,} tokens that {self.model} may use are spent")
            self.calls += 1
        left = deadline - time.monotonic()
        if left <= 0:
            raise VLMUnavailable(f"{self.base_url} did not answer in time")
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=left)
        sockets: list[socket.socket | None] = []  # the connection forgets its own as soon as an answer begins
        watch = threading.Timer(left, _cut, [sockets])
        watch.daemon = True
        try:
            connection.connect()
            sockets.append(connection.sock)
            watch.start()
            sent = json.dumps(body).encode()
            connection.request("POST", self._path, sent, headers | ({"Authorization": f"Bearer {key}"} if key else {}))
            answer = connection.getresponse()
            content = answer.read(self.max_answer_bytes + 1)
            told = {k.lower(): _without(v, key) for k, v in answer.getheaders()}
        except (OSError, http.client.HTTPException, ValueError) as problem:
            late = time.monotonic() >= deadline or isinstance(problem, TimeoutError)
            why = "did not answer in time" if late else f"cannot be asked ({_without(_clean(str(problem) or type(problem).__name__), key)})"
            raise VLMUnavailable(f"{self.base_url} {why}") from None
        finally:
            watch.cancel()
            connection.close()
        if time.monotonic() >= deadline:
            raise VLMUnavailable(f"{self.base_url} did not answer in time")
        if len(content) > self.max_answer_bytes:
            raise VLMUnavailable(f"{self.base_url} gave an answer of more than {self.max_answer_bytes:,} bytes")
        return answer.status, _without(content.decode("utf-8", "replace"), key), told

    def _key(self) -> str:
        """The key as the environment has it now.

        Raises:
            InputError: it would go over the network in clear text, or is none; it is not shown.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise InputError(f"{self.api_key_env} holds characters that no key has")
        if key and not self._secure and not _here(self._host):
            raise InputError(
                f"{self.base_url} is plain HTTP on another machine and {self.api_key_env} would be readable on the way: use https or a "
                "tunnel, or unset it"
            )
        return key


def _address(base_url: str) -> tuple[str, int | None, bool, str]:
    """Host, port, whether TLS, and path of the completions."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{base_url!r} is no address of a model: give one as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InputError(
            "the address of a model is kept in files: leave user, password and query out of it, and put the key into the environment"
        )
    return host, port, parts.scheme == "https", f"{parts.path.rstrip('/')}/chat/completions"


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cut(sockets: Sequence[socket.socket | None]) -> None:
    """End a request whose time is up, wherever it waits."""
    for each in sockets:
        if each is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)


def _data_url(image: np.ndarray, edge_px: int) -> str:
    """A picture (H, W, 3) uint8 RGB as PNG in a URL."""
    import cv2

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"a picture is {image.shape} {image.dtype}; give (H, W, 3) uint8")
    scale = edge_px / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def _reply(content: str, where: str) -> VLMReply:
    """What is needed of a server's answer.

    Raises:
        VLMUnavailable: it is no answer of this protocol.
    """
    try:
        told = json.loads(content)
        choice = told["choices"][0]
        text = choice["message"]["content"]
        if isinstance(text, list):
            text = "".join(str(part.get("text", "")) for part in text)
        if not isinstance(text, str) or not text:
            raise TypeError("no text")
        usage = told.get("usage") or {}
        counts = {k: v for k, v in usage.items() if type(v) is int and 0 <= v < 10**9}
        return VLMReply(text=text, usage=counts, logprobs=_logprobs(choice.get("logprobs")))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        raise VLMUnavailable(f"{where} does not answer as a chat completion does") from None


def _logprobs(told: Any) -> tuple[TokenLogprob, ...] | None:
    if not isinstance(told, Mapping) or not isinstance(told.get("content"), list):
        return None
    tokens = []
    for each in told["content"]:
        top = {str(t["token"]): float(t["logprob"]) for t in each.get("top_logprobs") or ()}
        tokens.append(TokenLogprob(str(each["token"]), float(each["logprob"]), top))
    every = [p for t in tokens for p in (t.logprob, *t.top.values())]
    return tuple(tokens) if all(p <= 1e-6 for p in every) else None  # a NaN is not below either


def _timed(reply: VLMReply, started: float, answer: Any = None) -> VLMReply:
    return VLMReply(reply.text, answer, reply.usage, time.monotonic() - started, reply.logprobs)


def _wanted_pause(headers: Mapping[str, str]) -> float:
    told = headers.get("retry-after", "")
    return float(told) if told.isascii() and told.isdigit() and len(told) < 6 else PAUSE_S


def _complaint(content: str) -> str:
    """What a server says is wrong."""
    try:
        told = json.loads(content)
        told = told.get("error", told) if isinstance(told, dict) else told
        told = told.get("message", told) if isinstance(told, dict) else told
        return _clean(str(told))
    except (ValueError, RecursionError):
        return _clean(content)


def _clean(text: str) -> str:
    """A server's words, short and without anything that a terminal would obey."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= SHOWN else f"{plain[: SHOWN - 3]}..."


def _without(text: str, key: str) -> str:
    return text.replace(key, "[key]") if len(key) >= SECRET else text
