"""A small policy, servers of it, and clients that send what they like."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import policies
from policies import wire
from policies.link import VERSION, VERSION_HEADER
from robot_bridge.policy_server import PolicyServer
from robot_bridge.server.certificate import Certificate, of_machine
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

TOKEN = "a-token-of-some-length"


def make_policy(seed: int = 0) -> policies.PolicyModule:
    """A flow policy on three numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    action = ActionSpec(kind="joint_position", low=(-1.0, -2.0), high=(1.0, 2.0), rate_hz=10.0, names=("a", "b"))
    spec = PolicySpec(observation=ObservationSpec({STATE: TensorSpec(shape=(3,))}), action=action, horizon=4)
    stats = {STATE: {"mean": np.zeros(3), "std": np.ones(3)}}
    policy = policies.make("flow", spec, stats, {"hidden": [16], "steps": 3}).eval()
    for parameter in policy.parameters():  # what training begins with does not look at the observation
        torch.nn.init.normal_(parameter, std=0.3)
    return policy


class Plain:
    """A TCP connection to a server, without any websocket library."""

    def __init__(self, server: PolicyServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), 20)

    def ask(self, path: str, *headers: str, host: str = "localhost") -> tuple[int, str]:
        """Status and text of the answer to one question over HTTP."""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\n".encode() + "".join(f"{line}\r\n" for line in (f"Host: {host}", *headers, "")).encode()
        )
        answer = self.rest().decode()
        return int(answer.split(" ", 2)[1]), answer.split("\r\n\r\n", 1)[-1]

    def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        parts = []
        while True:
            try:
                part = self.socket.recv(65536)
            except ConnectionResetError:
                part = b""
            if not part:
                return b"".join(parts)
            parts.append(part)


class Raw:
    """A websocket client that sends what it likes."""

    def __init__(self, server: PolicyServer, **headers: str) -> None:
        self.channel = wire.dial(server.url, headers={VERSION_HEADER: str(VERSION), **headers}, timeout_s=20)
        self.hello = self.read()
        self.number = 0

    def read(self) -> Any:
        data = self.channel.receive(20)
        assert isinstance(data, bytes)
        return wire.unpack(data)

    def sample(self, **fields: Any) -> dict[str, Any]:
        """A request for one chunk."""
        self.number += 1
        obs = {STATE: np.ones((1, 1, 3), np.float32)}
        noise = np.zeros((1, 1, 4, 2), np.float32)
        wanted = {"op": "sample", "policy": next(iter(self.hello["policies"])), "session": self.hello["session"], "id": self.number}
        return {**wanted, "context": 0, "obs": obs, "noise": noise, **fields}

    def ask(self, request: dict[str, Any]) -> Any:
        self.channel.send(wire.pack(request))
        return self.read()


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return of_machine("127.0.0.1", tmp_path / "server")


@pytest.fixture
def serving() -> Iterator[Callable[..., PolicyServer]]:
    """Start a server of the small policy; it is closed afterwards."""
    running = []

    def start(policy: Any = None, **settings: Any) -> PolicyServer:
        running.append(PolicyServer(make_policy() if policy is None else policy, port=0, **settings))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def kinds() -> Any:
    """The helpers of this folder, for its tests."""

    class Kinds:
        policy, plain, raw, token = staticmethod(make_policy), Plain, Raw, TOKEN

    return Kinds


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Wait for something to become true."""

    def wait(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            threading.Event().wait(0.02)

    return wait


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and known servers of the tests are not those of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SINEW_TOKEN", raising=False)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
