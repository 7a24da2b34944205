"""Nothing is answered twice, nothing that was recorded means anything later, and several policies in one server stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies import link
from policies.remote import connect
from robot_bridge.server.limits import Limits
from robot_bridge.server.requests import Kept, Memory
from sinew.errors import InputError
from sinew.specs import STATE


def test_a_recorded_request_is_worth_nothing_later(serving, kinds):
    server = serving()
    first = kinds.raw(server)
    request = first.sample()
    assert "actions" in first.ask(request)
    assert "nothing is answered twice" in first.ask(request)["error"]  # on the same connection
    second = kinds.raw(server)
    assert "not of this connection" in second.ask(request)["error"]  # on another one
    assert "not of this connection" in second.ask({**request, "session": None})["error"]
    assert "actions" in second.ask(second.sample())
    server.close()
    again = serving()
    assert "not of this connection" in kinds.raw(again).ask(request)["error"]  # of another server


def test_numbers_only_go_up_and_gaps_are_no_matter(serving, kinds):
    raw = kinds.raw(serving())
    for number, fine in ((5, True), (5, False), (4, False), (100, True), (6, False), (101, True)):
        assert ("actions" in raw.ask(raw.sample(id=number))) is fine
    for number in (-1, "7", None, 1.5):
        assert "a request is a map with op, id" in raw.ask(raw.sample(id=number))["error"]


def test_answers_carry_the_session_and_the_number_of_their_question(serving, kinds):
    raw = kinds.raw(serving())
    for request in (raw.sample(id=3), raw.sample(id=4, noise=None), raw.sample(id=5, policy="none")):
        answer = raw.ask(request)
        assert answer["session"] == raw.hello["session"] and answer["id"] == request["id"]


def test_an_answer_to_an_earlier_question_is_never_used(serving, monkeypatch):
    """The client gives up waiting; what the server then sends is read by nobody."""
    import threading

    server, release = serving(), threading.Event()
    policy = server._workers["policy"].policy
    sample = policy.sample
    monkeypatch.setattr(policy, "sample", lambda *a, **k: release.wait(30) and sample(*a, **k))
    remote = connect(server.url, timeout_s=0.3)
    noise = torch.zeros(1, 1, 4, 2)
    with pytest.raises(InputError, match=r"did not answer within 0\.3 s"):
        remote.sample(remote.encode({STATE: torch.zeros(1, 1, 3)}), noise=noise)
    release.set()
    remote.close()
    patient = connect(server.url)
    for value in (1.0, 2.0):
        obs = {STATE: torch.full((1, 1, 3), value)}
        with torch.no_grad():
            here = sample(policy.encode(obs), noise=noise).actions
        assert torch.equal(patient.sample(patient.encode(obs), noise=noise).actions, here)
    patient.close()


def test_several_policies_by_name(serving, kinds):
    both = {"lift": kinds.policy(1), "door": kinds.policy(2)}
    server = serving(both)
    obs, noise = {STATE: torch.ones(1, 1, 3)}, torch.ones(1, 1, 4, 2)
    with pytest.raises(InputError, match=rf"serves lift, door: name one, as in {server.url}/lift"):
        connect(server.url)
    with pytest.raises(InputError, match=r"unknown policy at .* 'dor': did you mean 'door'"):
        connect(f"{server.url}/dor")
    answers = {}
    for name, policy in both.items():
        remote = connect(f"{server.url}/{name}")
        assert remote.name == name
        with torch.no_grad():
            here = policy.sample(policy.encode(obs), noise=noise).actions
        answers[name] = remote.sample(remote.encode(obs), noise=noise).actions
        assert torch.equal(answers[name], here)
        remote.close()
    assert not torch.equal(answers["lift"], answers["door"])
    raw = kinds.raw(server)
    raw.ask(raw.sample(policy="lift"))
    forgotten = raw.sample(policy="door")
    forgotten.pop("obs")
    assert raw.ask(forgotten)["kind"] == link.FORGOTTEN  # what one policy was shown is not another's
    assert "unknown policy" in raw.ask(raw.sample(policy=None))["error"]


def test_a_server_that_came_back_with_another_policy_is_noticed(serving, kinds):
    from dataclasses import replace

    server = serving()
    remote = connect(server.url)
    port = server.port
    server.close()
    other = kinds.policy()
    other.spec = replace(other.spec, horizon=3)
    from robot_bridge.policy_server import PolicyServer

    with PolicyServer(other, port=port), pytest.raises(InputError, match="now serves another policy than it did"):
        remote.sample(remote.encode({STATE: torch.ones(1, 1, 3)}))


def test_what_is_kept_of_a_client_is_bounded_in_bytes_too():
    memory = Memory(100)
    for key, size in enumerate((40, 40, 40)):
        memory.keep("p", key, Kept({}, 1, size))
    assert [key for _, key in memory._kept] == [1, 2]
    memory.keep("p", 3, Kept({}, 1, 500))
    assert [key for _, key in memory._kept] == [3]  # the newest one always


def test_a_message_that_unfolds_into_millions_of_parts_is_refused(serving, kinds):
    raw = kinds.raw(serving(limits=Limits(max_bytes=2**21)))
    bombs = [
        b"\xdd\x00\x1f\xff\xf0" + b"\x80" * 0x1FFFF0,  # two million empty maps
        b"\xdc\x0f\xff" * 512 + b"\x80" * 10**6,
        b"\xdc\x10\x00" + (b"\xdc\x10\x00" + b"\x80" * 4096) * 400,
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc7\x01\x05x",  # an extension type
        b"\x91" * 3000 + b"\x90",
    ]
    for bomb in bombs:
        raw.channel.send(bomb)
        told = raw.read()
        assert told["kind"] == "input" and ("not msgpack" in told["error"] or "parts" in told["error"] or "a map" in told["error"])
    assert "actions" in raw.ask(raw.sample())


def test_arrays_larger_than_what_was_sent_are_not_made(serving, kinds):
    raw = kinds.raw(serving())
    array = {b"__ndarray__": True, b"dtype": "<f4", b"data": b"", b"shape": [2**31, 2**31]}
    assert "array of shape" in raw.ask(raw.sample(noise=array))["error"]
    assert "dimension" in raw.ask(raw.sample(noise={**array, b"shape": [0] * 100}))["error"]
    assert "65536 rows cannot be used" in raw.ask(raw.sample(obs={STATE: np.zeros((2**16, 1, 3), np.float32)}))["error"]
