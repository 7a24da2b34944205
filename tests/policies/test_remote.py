"""A served policy is the policy, over a real socket; and what happens when the other side is wrong, slow, gone or hostile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policies import wire
from policies.base import PolicyModule
from policies.evaluate import evaluate
from policies.executor import ChunkExecutor
from policies.remote import REMEMBERED, VERSION, VERSION_HEADER, RemotePolicy, connect
from policies.sampling import euler
from robot_bridge.policy_server import PolicyServer
from robot_bridge.server.limits import Limits
from robot_bridge.server.listener import Listener
from robot_bridge.server.requests import KEPT_CONTEXTS
from sinew.config import to_json
from sinew.errors import InputError, MissingDependency, SpecError
from sinew.protocols import Chunk
from sinew.specs import STATE

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef-a-secret"


@pytest.fixture
def served(case, toys) -> Iterator[tuple[PolicyModule, RemotePolicy, dict[str, Any]]]:
    """(local policy, the same behind a server, observations of 8)."""
    policy, data = toys.make(case)
    batch = toys.batch(data, policy.spec)
    with PolicyServer(policy, port=0, token=TOKEN, name=case) as server:
        remote = connect(server.url, TOKEN)
        told = {"task": batch["task"]} if "task" in batch else {}
        yield policy, remote, {**{key: batch[key] for key in policy.spec.observation}, **told}
        remote.close()


@pytest.fixture
def flow(toys) -> tuple[PolicyModule, dict[str, Any]]:
    policy, data = toys.make("flow-mlp")
    batch = toys.batch(data, policy.spec)
    return policy, {key: batch[key] for key in policy.spec.observation}


def noise_for(policy: Any, rows: int, n: int) -> torch.Tensor:
    return torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(3))


def test_same_noise_gives_the_local_actions_bit_for_bit(served):
    policy, remote, obs = served
    noise = noise_for(policy, 8, 3)
    with torch.no_grad():  # as policies act; with gradients, attention may take another path through the library
        here = policy.sample(policy.encode(obs), n=3, noise=noise, features=True)
    there = remote.sample(remote.encode(obs), n=3, noise=noise, features=True)
    assert torch.equal(there.actions, here.actions) and torch.equal(there.noise, noise)
    assert (there.features is None) == (here.features is None)
    if here.features is not None and there.features is not None:
        assert torch.equal(there.features, here.features)
    assert replace(remote.spec, capabilities=policy.spec.capabilities) == policy.spec
    assert set(remote.spec.capabilities) <= set(policy.spec.capabilities)


def test_what_the_policy_can_beside_sampling_comes_over_the_wire(served):
    policy, remote, obs = served
    spec = remote.spec
    newest = {key: obs[key][:, -1] for key in policy.spec.observation}
    if "observe" in spec.capabilities:
        assert torch.equal(remote.observe(newest), policy.observe(newest))
        assert remote.observation_dim == policy.observation_dim
    if "correct" in spec.capabilities:
        planned = torch.rand(8, spec.action_dim) * 2 - 1
        with torch.no_grad():
            assert torch.equal(remote.correct(newest, planned), policy.correct(newest, planned))
    if "denoise" in spec.capabilities:
        there = remote.encode(obs)
        assert torch.equal(remote.sigmas(3), policy.sigmas(3))
        noise = noise_for(policy, 8, 2)
        with torch.no_grad():
            native = policy.sample(policy.encode(obs), n=2, noise=noise, steps=3).actions
        wide, flat = there.expand(2), noise.flatten(0, 1)
        exchanged = euler(lambda x, sigma: remote.denoise(x, sigma, wide), flat, remote.sigmas(3)).clamp(-1, 1)
        torch.testing.assert_close(exchanged.reshape(native.shape), native, rtol=0, atol=1e-5)


def test_an_observation_is_sent_and_encoded_once_and_again_when_it_was_forgotten(flow, monkeypatch):
    policy, obs = flow
    encodes, sizes = [], []
    encode, send = policy.encode, wire.Channel.send
    monkeypatch.setattr(policy, "encode", lambda o: encodes.append(1) or encode(o))
    monkeypatch.setattr(wire.Channel, "send", lambda self, data: sizes.append(len(data)) or send(self, data))
    with PolicyServer(policy, port=0) as server:
        remote = connect(server.url)
        contexts = [remote.encode(obs) for _ in range(KEPT_CONTEXTS + 1)]
        assert not encodes
        noise = noise_for(policy, 8, 1)
        first = remote.sample(contexts[0], noise=noise).actions
        again = remote.sample(contexts[0], noise=noise, steps=7).actions
        assert len(encodes) == 1 and not torch.equal(first, again)
        by_n = remote.sample(contexts[0], n=4, noise=noise_for(policy, 8, 4)).actions
        wide = contexts[0].expand(4)
        by_expand = remote.sample(wide, noise=noise_for(policy, 8, 4).reshape(32, 1, *policy.spec.noise_shape)).actions
        assert len(encodes) == 1 and wide.batch == 32
        torch.testing.assert_close(by_expand.reshape(by_n.shape), by_n, rtol=0, atol=1e-6)
        for context in contexts[1:]:
            remote.sample(context, noise=noise)
        assert len(encodes) == KEPT_CONTEXTS + 1
        assert torch.equal(remote.sample(contexts[0], noise=noise).actions, first)
        assert len(encodes) == KEPT_CONTEXTS + 2
        remote.close()
        assert torch.equal(remote.sample(contexts[0], noise=noise).actions, first)  # on a new connection
        assert len(encodes) == KEPT_CONTEXTS + 3
        remote.close()


def test_a_client_that_runs_for_long_does_not_keep_the_number_of_every_observation(flow):
    policy, obs = flow
    one = {key: value[:1] for key, value in obs.items()}
    with PolicyServer(policy, port=0) as server:
        remote = connect(server.url)
        noise, first = noise_for(policy, 1, 1), remote.encode(one)
        before = remote.sample(first, noise=noise).actions
        for _ in range(2 * REMEMBERED):
            remote.sample(remote.encode(one), noise=noise, steps=1)
        assert len(remote._link._sent) <= REMEMBERED
        assert torch.equal(remote.sample(first, noise=noise).actions, before)
        remote.close()


def test_generator_and_executor_mean_what_they_mean_locally(flow, toys):
    policy, obs = flow
    with PolicyServer(policy, port=0) as server:
        remote = connect(server.url)
        a = policy.sample(policy.encode(obs), n=2, generator=torch.Generator().manual_seed(5))
        b = remote.sample(remote.encode(obs), n=2, generator=torch.Generator().manual_seed(5))
        assert torch.equal(a.noise, b.noise) and torch.equal(a.actions, b.actions)
        newest = {key: value[:, -1] for key, value in obs.items()}
        for mode in ("sync", "ensemble"):
            here, there = (ChunkExecutor(p, 8, mode=mode, seed=4) for p in (policy, remote))
            for _ in range(7):
                assert torch.equal(here.act(newest), there.act(newest))
        remote.close()


def test_an_evaluation_over_the_wire_has_the_same_episodes(toys):
    policy = toys.ScriptedPolicy()
    wrapped = ScriptedServed(policy)
    with PolicyServer(wrapped, port=0) as server:
        remote = connect(server.url)
        here, there = (evaluate(p, toys.PointEnv(3), range(5)) for p in (policy, remote))
        assert (here.success, here.lengths) == (there.success, there.lengths)
        remote.close()


class ScriptedServed:
    """The scripted policy as a server needs it: answers in float32, texts taken where there are any."""

    def __init__(self, policy: Any, delay_s: float = 0.0, language: bool = False) -> None:
        extra = ("language",) if language else ()
        self.inner, self.delay_s = policy, delay_s
        self.spec = replace(policy.spec, capabilities=(*policy.spec.capabilities, *extra))
        self.texts: list[Any] = []

    def encode(self, obs: Any) -> Any:
        self.texts.append(obs.get("task"))
        return self.inner.encode(obs)

    def sample(self, ctx: Any, **options: Any) -> Chunk:
        time.sleep(self.delay_s)
        return self.inner.sample(ctx, **{k: v for k, v in options.items() if k in ("n", "noise", "steps")})


def test_texts_of_the_task_are_sent_to_a_policy_that_reads(toys):
    policy = ScriptedServed(toys.ScriptedPolicy(), language=True)
    with PolicyServer(policy, port=0) as server:
        remote = connect(server.url)
        obs = {STATE: torch.zeros(2, 1, 2), "task": ["left", "right"], "not.looked.at": torch.zeros(2, 1000)}
        remote.sample(remote.encode(obs))
        assert policy.texts == [["left", "right"]]
        with pytest.raises(SpecError, match="'task' must be one text per row"):
            remote.sample(remote.encode({**obs, "task": ["left"]}))
        remote.close()


def test_what_cannot_be_is_refused_in_one_line_and_the_connection_lives_on(flow):
    policy, obs = flow
    with PolicyServer(policy, port=0) as server:
        remote = connect(server.url)
        context = remote.encode(obs)
        for act, message in [
            (lambda: remote.sample(context, guidance=[lambda *a: a[1]]), "guidance cannot be sent"),
            (lambda: remote.sample(context, noise=torch.zeros(8, 2, 3)), "noise has shape"),
            (lambda: remote.sample(context, steps=0), "steps 0 must be a whole number from 1"),
            (lambda: remote.sample(context, n=4000), "the server gives up to"),
            (lambda: remote.sample(remote.encode({STATE: obs[STATE]})), "needs observation 'observation.environment_state'"),
            (lambda: remote.sample(remote.encode({**obs, STATE: obs[STATE][..., :3]})), r"is \(8, 1, 3\) float32, expected \(8, 1, 4\)"),
            (lambda: remote.sample(remote.encode({**obs, STATE: obs[STATE].double()})), "float64, expected"),
            (lambda: remote.energy(torch.zeros(8, 5, 3), context), "no capability 'energy'"),
            (lambda: remote.loss({}), "cannot be trained from here"),
        ]:
            with pytest.raises(SpecError, match=message) as told:
                act()
            assert "\n" not in str(told.value) and "Traceback" not in str(told.value)
        assert remote.sample(context).actions.shape == (8, 1, policy.spec.horizon, 3)
        assert server.clients == 1
        remote.close()


# ---------------------------------------------------------------- faults


def test_wrong_tokens_and_addresses_are_told(flow, tmp_path):
    with PolicyServer(flow[0], port=0, token=TOKEN) as server:
        for token in (None, "wrong", TOKEN[:-1], TOKEN + "x"):
            with pytest.raises(InputError, match=r"401.*wrong or missing token"):
                connect(server.url, token)
        port = server.port
    with pytest.raises(InputError, match=f"nothing can be reached at ws://127.0.0.1:{port}.*is the policy server running"):
        connect(f"ws://127.0.0.1:{port}", TOKEN, timeout_s=2)
    for url in ("ftp://127.0.0.1:1", "127.0.0.1:1", "ws://", "http://a:b@127.0.0.1", "ws://127.0.0.1/a/b", "ws://127.0.0.1:99999"):
        with pytest.raises(InputError, match="not the address of a policy server"):
            connect(url)
    with pytest.raises(InputError, match="time-out above 0"):
        connect("ws://127.0.0.1:1", timeout_s=0)


def test_a_message_that_is_too_large_is_refused_before_it_is_sent(flow):
    policy, obs = flow
    with PolicyServer(policy, port=0, limits=Limits(max_bytes=2000)) as server:
        remote = connect(server.url)
        many = {key: value.repeat(20, 1, 1) for key, value in obs.items()}
        with pytest.raises(SpecError, match=r"takes messages of up to 2000 bytes, this one has \d+"):
            remote.sample(remote.encode(many))
        one = {key: value[:1] for key, value in obs.items()}
        assert remote.sample(remote.encode(one)).actions.shape[0] == 1
        remote._link._max_bytes = 10**9  # a client that does not look
        with pytest.raises(InputError, match="larger than the receiving side takes"):
            remote.sample(remote.encode(many))
        remote.close()


SERVE = """
import importlib.util, sys
sys.path.insert(0, {root!r})
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path); module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module; spec.loader.exec_module(module); return module
toys = load("policy_toys", {root!r} + "/tests/policies/toys.py")
remote = load("remote_tests", {root!r} + "/tests/policies/test_remote.py")
from robot_bridge.policy_server import PolicyServer
server = PolicyServer(remote.ScriptedServed(toys.ScriptedPolicy(), delay_s={delay}), port={port})
print(server.port, flush=True)
import time; time.sleep(60)
"""


@pytest.fixture
def process() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Start a server of the scripted policy in a process; gives it and its port."""
    running = []

    def start(delay: float = 0.0, port: int = 0) -> tuple[subprocess.Popen[str], int]:
        code = SERVE.format(root=str(ROOT), delay=delay, port=port)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        running.append(server)
        assert server.stdout is not None
        return server, int(server.stdout.readline())

    yield start
    for server in running:
        server.kill()
        server.communicate()


def test_a_server_killed_in_the_middle_of_a_request_is_told_and_a_new_one_is_found(process):
    server, port = process(delay=600.0)
    remote = connect(f"ws://127.0.0.1:{port}", timeout_s=300)
    context = remote.encode({STATE: torch.ones(1, 1, 2)})
    threading.Timer(0.3, server.kill).start()
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"nothing can be reached at|closed the connection|is no websocket server") as told:
        remote.sample(context)
    assert time.monotonic() - begin < 200 and "\n" not in str(told.value)
    with pytest.raises(InputError, match="nothing can be reached"):
        remote.sample(context)
    process(port=port)
    noise = torch.zeros(1, 1, 1)
    assert remote.sample(context, noise=noise).actions[0, 0, 0, 0] == pytest.approx(0.1)  # the same context goes on
    remote.close()


def test_a_server_that_hangs_is_given_up(process):
    server, port = process()
    remote = connect(f"ws://127.0.0.1:{port}", timeout_s=1.0)
    context = remote.encode({STATE: torch.ones(1, 1, 2)})
    remote.sample(context)
    server.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"did not answer within 1 s"):
        remote.sample(context)
    assert time.monotonic() - begin < 60
    server.send_signal(signal.SIGCONT)
    assert remote.sample(context, noise=torch.zeros(1, 1, 1)).actions[0, 0, 0, 0] == pytest.approx(0.1)
    remote.close()


def test_a_server_that_does_not_read_cannot_hold_a_large_message_for_ever(process):
    server, port = process()
    remote = connect(f"ws://127.0.0.1:{port}", timeout_s=1.0)
    server.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(InputError):
        remote.sample(remote.encode({STATE: torch.ones(4_000_000, 1, 2)}))
    assert time.monotonic() - begin < 60
    server.send_signal(signal.SIGCONT)


def fake(answers: list[Any]) -> Listener:
    """A server that says the given messages, one at once and one after each request."""

    def serve(channel: wire.Channel) -> None:
        left = list(answers)
        while left:
            message = left.pop(0)
            channel.send(message if isinstance(message, bytes) else wire.pack(message))
            try:
                channel.receive(None)
            except wire.LinkError:
                return

    return Listener(serve, "127.0.0.1", 0, lambda path, headers: None)


def test_servers_that_are_no_policy_server_are_told_apart(flow):
    policy, obs = flow
    session = "0" * 32
    hello = {"server": "sinew", "version": VERSION, "session": session, "policies": {"a": {"spec": to_json(policy.spec)}}}
    for first, message in [
        ({"action_horizon": 10}, "not served by sinew serve; for a server of openpi see policies.openpi"),
        ({**hello, "version": VERSION + 1}, f"speaks version {VERSION + 1} of the policy messages, this Sinew {VERSION}"),
        (b"\xc1garbage", "does not answer as a policy server"),
        (wire.pack([1, 2]), "does not answer as a policy server"),
        ({**hello, "policies": {"a": {"spec": {"horizon": 3}}}}, "spec"),
        ({**hello, "policies": {"a": None}}, "does not say what its policy 'a' is"),
        ({**hello, "policies": {}}, "serves nothing"),
        ({**hello, "session": ""}, "its greeting is incomplete"),
    ]:
        listener = fake([first])
        with pytest.raises(InputError, match=message):
            connect(f"ws://127.0.0.1:{listener.port}", timeout_s=5)
        listener.close()
    for answer, message in [
        (b"\xc1\xff garbage", "does not answer as a policy server"),
        ({"id": 99, "session": session, "actions": 1}, "answered another request"),
        ({"id": 0, "session": "1" * 32, "actions": 1}, "answered another request"),
        ({"id": 0, "actions": 1}, "answered another request"),
        ({"id": 0, "session": session, "actions": "none"}, "answered with actions str, expected floats"),
        ({"id": 0, "session": session, "actions": torch.zeros(8, 1, 2, 2).numpy()}, r"answered with actions \(8, 1, 2, 2\), expected"),
        ({"id": 0, "session": session, "kind": "internal", "error": "the policy failed"}, "the policy failed"),
    ]:
        listener = fake([hello, answer])
        remote = connect(f"ws://127.0.0.1:{listener.port}", timeout_s=5)
        with pytest.raises(InputError, match=message):
            remote.sample(remote.encode(obs))
        remote.close()
        listener.close()


def test_a_client_of_another_version_is_turned_away_with_the_reason(flow):
    told = rf"426.*speaks version {VERSION} of the policy messages, the client 99"
    with PolicyServer(flow[0], port=0) as server, pytest.raises(InputError, match=told):
        wire.dial(server.url, headers={VERSION_HEADER: "99"})


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sinew\[serve\]'"):
        connect("ws://127.0.0.1:1")
