"""The policy server against clients that are strangers, hostile, many, or simply wrong; and its command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from websockets.sync.client import connect as raw_connect

import policies
from policies import trust, wire
from policies.remote import VERSION, VERSION_HEADER, connect
from robot_bridge.policy_server import PolicyServer
from robot_bridge.server.certificate import of_machine
from robot_bridge.server.limits import Limits
from robot_bridge.server.requests import KEPT_CONTEXTS, MAX_ROWS
from sinew.cli.serve import address
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-some-length"
HEADERS = {VERSION_HEADER: str(VERSION)}
OBS = {STATE: np.ones((2, 1, 3), np.float32)}


def small() -> policies.PolicyModule:
    """A flow policy on three numbers."""
    torch.set_num_threads(1)
    action = ActionSpec(kind="joint_position", low=(-1.0, -2.0), high=(1.0, 2.0), rate_hz=10.0, names=("a", "b"))
    spec = PolicySpec(observation=ObservationSpec({STATE: TensorSpec(shape=(3,))}), action=action, horizon=4)
    stats = {STATE: {"mean": np.zeros(3), "std": np.ones(3)}}
    return policies.make("flow", spec, stats, {"hidden": [16], "steps": 3}).eval()


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with PolicyServer(small(), port=0, name="small", limits=Limits(max_bytes=100_000)) as running:
        yield running


class Raw:
    """A client that sends what it likes."""

    def __init__(self, server: PolicyServer, **headers: str) -> None:
        self.channel = wire.dial(server.url, headers={**HEADERS, **headers}, timeout_s=5)
        self.hello = self.read()
        self.number = 0

    def read(self) -> Any:
        data = self.channel.receive(5)
        assert isinstance(data, bytes)
        return wire.unpack(data)

    def ask(self, message: Any) -> Any:
        if isinstance(message, dict):
            self.number += 1
            message = {"session": self.hello["session"], "policy": "small", **message, "id": self.number}
        sent: Any = message if isinstance(message, (bytes, str)) else wire.pack(message)
        self.channel.send(sent)
        return self.read()


def request(**fields: Any) -> dict[str, Any]:
    asked = {"op": "sample", "id": 1, "context": 0, "expand": 1, "n": 1, "steps": None, "features": False}
    return {**asked, "obs": OBS, "noise": np.zeros((2, 1, 4, 2), np.float32), **fields}


def array(kind: str, data: Any, shape: Any) -> dict[bytes, Any]:
    """An array as it is written on the wire."""
    return {b"__ndarray__": True, b"dtype": kind, b"data": data, b"shape": shape}


def test_nothing_beyond_this_machine_without_token_and_tls(tmp_path):
    assert all(map(wire.is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(wire.is_loopback, ("0.0.0.0", "::", "192.168.1.4", "robot.local")))
    certificate = of_machine("0.0.0.0", tmp_path / "server")
    for host in ("0.0.0.0", "::", "192.168.1.4"):
        for token, shown, missing in ((None, None, "--token-file and TLS"), (TOKEN, None, "TLS"), (None, certificate, "--token-file")):
            with pytest.raises(InputError, match=f"can be reached by others: that needs {missing}; or listen at 127.0.0.1"):
                PolicyServer(small(), host=host, port=0, token=token, certificate=shown)
    with PolicyServer(small(), host="0.0.0.0", port=0, token=TOKEN, certificate=certificate) as server:
        url = f"https://127.0.0.1:{server.port}#{certificate.fingerprint}"
        with pytest.raises(InputError, match="401"):
            connect(url)
        connect(url, TOKEN).close()


def test_a_stranger_learns_nothing_before_the_token():
    with PolicyServer(small(), port=0, token=TOKEN, limits=Limits(max_clients=1)) as server:
        with pytest.raises(InputError, match="401") as told:
            wire.dial(server.url, headers={VERSION_HEADER: "99"})
        assert "version" not in str(told.value)
        for given in ("Basic " + TOKEN, "Bearer", "Bearer " + TOKEN[1:], TOKEN):
            with pytest.raises(InputError, match="401"):
                wire.dial(server.url, headers={**HEADERS, "Authorization": given})


def test_tokens_are_compared_whole(monkeypatch):
    compared = []
    monkeypatch.setattr(trust.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    assert not trust.same_token("ä", TOKEN) and trust.same_token(TOKEN, TOKEN)
    assert len(compared) == 2 and all(isinstance(side, bytes) for pair in compared for side in pair)


def test_a_web_page_cannot_connect_through_a_browser(server):
    with pytest.raises(InputError, match="403"):
        wire.dial(server.url, headers={**HEADERS, "Origin": "https://example.org"})


def test_the_greeting_tells_the_spec(server):
    raw = Raw(server)
    assert raw.hello["server"] == "sinew" and raw.hello["version"] == VERSION and list(raw.hello["policies"]) == ["small"]
    told = raw.hello["policies"]["small"]
    assert raw.hello["max_bytes"] == 100_000 and told["spec"]["horizon"] == 4 and told["observation_dim"] == 3
    assert len(raw.hello["session"]) == 32 and raw.hello["session"] != Raw(server).hello["session"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\xc1garbage", "not msgpack"),
        (b"", "not msgpack"),
        (b"\x93" * 5000, "not msgpack"),
        ("text", "sent as a binary message"),
        ([1, 2], "a request is a map with op, id"),
        ({}, "a request is a map with op, id"),
        ({"op": "__class__"}, "unknown operation"),
        ({"op": "energy"}, "no capability 'energy'"),
        (request(policy="large"), "unknown policy 'large': .*known are small"),
        (request(wait_s=-1.0), "wait_s -1.0 must be in seconds"),
        (request(session="0" * 32), "not of this connection"),
        (request(context="a"), "by a number"),
        (request(obs=[1]), "holds no observation"),
        (request(obs={}), "needs observation 'observation.state'; given are none"),
        (request(obs={STATE: np.ones((2, 1, 4), np.float32)}), r"is \(2, 1, 4\) float32, expected \(2, 1, 3\) float32"),
        (request(obs={STATE: np.ones((2, 1, 3), np.float64)}), "float64, expected"),
        (request(obs={STATE: np.ones((0, 1, 3), np.float32)}), "0 rows"),
        (request(n=10**6), f"from 1 to {MAX_ROWS}"),
        (request(n=-1), "from 1 to"),
        (request(expand=MAX_ROWS, n=2), "chunks are asked for at once"),
        (request(steps=10**9), "from 1 to 1000"),
        (request(noise=np.zeros((2, 1, 4, 3), np.float32)), r"expected \(2, 1, 4, 2\) float32"),
        (request(noise=np.zeros((2, 1, 4, 2))), "float64, expected"),
        (request(noise="none"), "noise is str"),
        (msgpack.packb({"op": "sample", "id": 1, "obs": array("|O", b"x", [1])}), "array of '|O'"),
        (msgpack.packb(array("<f4", b"1234", [2**40])), "array of shape"),
        (msgpack.packb(array("<f4", b"1234", [-1])), "without a shape"),
        (msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4", b"data": "x"}), "scalar of <f4 that is no number"),
    ],
)
def test_wrong_messages_are_answered_in_one_line_and_the_client_may_go_on(server, message, told):
    raw = Raw(server)
    answer = raw.ask(message)
    assert answer["kind"] == "input"
    assert re.search(told, answer["error"])
    assert "\n" not in answer["error"] and "Traceback" not in answer["error"] and str(ROOT) not in answer["error"]
    assert raw.ask(request())["actions"].shape == (2, 1, 4, 2)
    raw.channel.close()


def test_an_oversize_frame_ends_that_connection_and_no_other(server):
    other, raw = Raw(server), Raw(server)
    with pytest.raises(InputError, match="larger than the receiving side takes"):
        raw.ask(b"\x00" * 200_000)
    assert other.ask(request())["id"] == 1


def test_an_observation_that_is_not_kept_is_asked_for_again(server):
    raw = Raw(server)
    for key in range(KEPT_CONTEXTS + 1):
        raw.ask(request(context=key))
    without = {k: v for k, v in request(context=0).items() if k != "obs"}
    assert raw.ask(without)["kind"] == "forgotten"
    assert "actions" in raw.ask({**without, "context": KEPT_CONTEXTS})
    assert Raw(server).ask({**without, "context": KEPT_CONTEXTS})["kind"] == "forgotten"  # clients do not see each other's


def test_a_defect_of_the_policy_is_logged_here_and_not_told_there(server, monkeypatch, caplog):
    monkeypatch.setattr(server._workers["small"].policy, "sample", lambda *a, **k: {}["secret"])
    raw = Raw(server)
    answer = raw.ask(request())
    assert answer == {
        "session": raw.hello["session"],
        "id": 1,
        "kind": "internal",
        "error": "the policy failed on this request; the server's log says why",
    }
    assert "secret" in caplog.text and "Traceback" in caplog.text


def test_clients_beyond_the_limit_wait_outside():
    with PolicyServer(small(), port=0, name="small", limits=Limits(max_clients=2)) as server:
        held = [Raw(server), Raw(server)]
        with pytest.raises(InputError, match=r"503.*its 2 clients already"):
            Raw(server)
        held[0].channel.close()
        for _ in range(100):
            with contextlib.suppress(InputError):
                assert Raw(server).ask(request())["id"] == 1
                return
            threading.Event().wait(0.05)
        pytest.fail("the place of a client that left was never given to another")


def test_several_clients_at_once_get_their_own_answers(server):
    policy, wrong = server._workers["small"].policy, []

    def client(seed: int) -> None:
        remote = connect(server.url, exact=True)
        stream = torch.Generator().manual_seed(seed)
        for _ in range(15):
            obs = {STATE: torch.randn(2, 1, 3, generator=stream)}
            noise = torch.randn(2, 1, 4, 2, generator=stream)
            with torch.no_grad():
                here = policy.sample(policy.encode(obs), noise=noise).actions
            if not torch.equal(remote.sample(remote.encode(obs), noise=noise).actions, here):
                wrong.append(seed)
        remote.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and server.served == 60 and server.clients == 4


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(InputError, match=rf"cannot listen at 127\.0\.0\.1:{server.port}: Address already in use; choose another"):
        PolicyServer(small(), port=server.port)


def test_messages_survive_the_wire_and_others_do_not():
    kinds = [np.dtype(kind) for kind in wire.DTYPES]
    tree = {"a": [1, 2.5, None, "text", b"bytes", True], "arrays": {str(kind): np.ones((2, 3), kind) for kind in kinds}}
    again = wire.unpack(wire.pack(tree))
    assert again["a"] == tree["a"]
    for name, array in tree["arrays"].items():
        assert again["arrays"][name].dtype == array.dtype and np.array_equal(again["arrays"][name], array)
    assert wire.unpack(wire.pack(np.float32(1.5))) == np.float32(1.5) and again["arrays"]["float32"].flags.writeable
    assert np.array_equal(wire.unpack(wire.pack(np.arange(6.0).reshape(2, 3).T)), np.arange(6.0).reshape(2, 3).T)
    big = np.arange(3, dtype=">f4")
    assert np.array_equal(wire.unpack(wire.pack(big)), big)
    assert wire.unpack(wire.pack(np.zeros((0, 3), np.float32))).shape == (0, 3)
    for bad in (np.array([object()]), np.array([1j]), np.array(["a"]), np.zeros(2, "f4,i4"), {1, 2}, object()):
        with pytest.raises(DataError, match="cannot be packed"):
            wire.pack(bad)


def test_addresses():
    assert address("127.0.0.1:8080") == ("127.0.0.1", 8080) and address("[::1]:0") == ("::1", 0)
    for bad in ("8080", "127.0.0.1", "127.0.0.1:x", ":80", "::1:80", "a:99999"):
        with pytest.raises(InputError, match="give HOST:PORT"):
            address(bad)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_a_run_and_ends_cleanly(tmp_path, number):
    policy = small()
    RunDir.create(tmp_path / "run", {"task": "none"})
    policies.save(policy, tmp_path / "run")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    arguments = ["serve", str(tmp_path / "run"), "--listen", "127.0.0.1:0", "--token-file", str(tmp_path / "token"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sinew", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "serving run at" in line and "Ctrl-C ends it" in line, line + process.communicate()[1]
    url = line.split(" at ")[1].split(";")[0]
    assert process.stderr.readline().strip() == f"sinew deploy '{url.replace('ws:', 'http:')}' --token-file FILE"
    remote = connect(url, TOKEN)
    obs, noise = {STATE: torch.ones(1, 1, 3)}, torch.ones(1, 1, 4, 2)
    with torch.no_grad():
        here = policy.sample(policy.encode(obs), noise=noise).actions
    assert torch.equal(remote.sample(remote.encode(obs), noise=noise).actions, here)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and not err.strip(), err
    told = json.loads(out)
    assert told["requests"] == 1 and told["clients"] == 1 and told["ended"] == number.name
    with pytest.raises(InputError, match="nothing can be reached"):
        remote.sample(remote.encode(obs))


def test_a_tcp_client_that_says_nothing_does_not_hinder_others(server):
    import socket

    with socket.create_connection(("127.0.0.1", server.port)):
        assert Raw(server).ask(request())["id"] == 1


def test_a_client_that_vanishes_leaves_no_trace(server):
    client = raw_connect(server.url, additional_headers=HEADERS)
    with client:
        client.recv()
        client.socket.close()
    assert Raw(server).ask(request())["id"] == 1
