"""Against a websocket server that speaks openpi's protocol, written here from the protocol's description and not from `policies.wire`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from policies import openpi
from policies.executor import ChunkExecutor
from policies.remote import connect as connect_to_sinew
from sinew.errors import InputError, SpecError
from sinew.specs import STATE, ActionSpec, ObservationSpec, TensorSpec

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
ACTION = ActionSpec(kind="joint_position", low=(-2.0, 0.0, -1.0), high=(2.0, 4.0, 1.0), rate_hz=15.0, names=("a", "b", "c"))
OBSERVATION = ObservationSpec(
    {STATE: TensorSpec(shape=(5,)), FRONT: TensorSpec(shape=(6, 8, 3), dtype="uint8"), WRIST: TensorSpec(shape=(4, 4, 3), dtype="uint8")}
)
HORIZON = 7


def pack(tree: Any) -> bytes:
    def default(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        raise TypeError(type(value))

    return msgpack.packb(tree, default=default)


def unpack(data: bytes) -> Any:
    def hook(found: dict[Any, Any]) -> Any:
        if b"__ndarray__" in found:
            return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])
        return found

    return msgpack.unpackb(data, object_hook=hook)


def infer(obs: dict[str, Any]) -> dict[str, Any]:
    """Actions that tell what was received: a ramp on the state, shifted by the brightness and by the prompt's length."""
    state = obs["observation/state"].astype(np.float64)
    shift = float(obs["observation/image"].mean()) / 255 + 0.01 * len(obs["prompt"])
    return {"actions": np.stack([state[:3] * 0.1 + 0.01 * h + shift for h in range(HORIZON)])}


class Server:
    """openpi's server: metadata first, then one answer per request; a failure is a text frame and the end."""

    def __init__(self, infer: Callable[[dict[str, Any]], dict[str, Any]] = infer, metadata: Any = None, api_key: str | None = None) -> None:
        self.infer, self.metadata, self.api_key = infer, {"model": "toy"} if metadata is None else metadata, api_key
        self.received: list[dict[str, Any]] = []
        self.connections = 0
        self._server = serve(self._client, "127.0.0.1", 0, compression=None, max_size=None, process_request=self._check)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _check(self, connection: Any, request: Any) -> Any:
        if self.api_key is not None and request.headers.get("Authorization") != f"Api-Key {self.api_key}":
            return connection.respond(403, "forbidden\n")
        return None

    def _client(self, connection: Any) -> None:
        self.connections += 1
        connection.send(pack(self.metadata))
        try:
            while True:
                obs = unpack(connection.recv())
                self.received.append(obs)
                try:
                    answer = self.infer(obs)
                except Exception as e:
                    connection.send(f"Traceback (most recent call last):\n  File \"x.py\", line 1\n{type(e).__name__}: {e}\n")
                    connection.close(1011, "Internal server error. Traceback included in previous frame.")
                    return
                if isinstance(answer, bytes):
                    connection.send(answer)
                elif answer is not None:
                    connection.send(pack({**answer, "server_timing": {"infer_ms": 1.0}}))
        except ConnectionClosed:
            pass

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def started() -> Iterator[Callable[..., Server]]:
    running = []

    def start(*args: Any, **options: Any) -> Server:
        running.append(Server(*args, **options))
        return running[-1]

    yield start
    for server in running:
        server.close()


def observations(rows: int = 3) -> dict[str, Any]:
    stream = torch.Generator().manual_seed(1)
    return {
        STATE: torch.randn(rows, 1, 5, generator=stream),
        FRONT: torch.randint(0, 256, (rows, 1, 6, 8, 3), generator=stream, dtype=torch.uint8),
        WRIST: torch.zeros(rows, 1, 4, 4, 3, dtype=torch.uint8),
        "task": ["pick", "place it", "stop"][:rows],
    }


def test_actions_are_those_of_the_server_in_our_units(started):
    server = started()
    policy = openpi.connect(openpi.OpenpiConfig(url=server.url), OBSERVATION, ACTION)
    assert policy.spec.horizon == HORIZON and policy.metadata == {"model": "toy"} and set(policy.spec.observation) == set(OBSERVATION)
    obs = observations()
    chunk = policy.sample(policy.encode(obs))
    assert chunk.actions.shape == (3, 1, HORIZON, 3) and chunk.actions.dtype == torch.float32 and chunk.noise.shape == (3, 1)
    for row in range(3):
        state, image = obs[STATE][row, 0].numpy(), obs[FRONT][row, 0].numpy()
        theirs = {"observation/state": state, "observation/image": image, "prompt": obs["task"][row]}
        wanted = ACTION.normalize(infer(theirs)["actions"]).clip(-1, 1)
        np.testing.assert_allclose(chunk.actions[row, 0].numpy(), wanted, atol=1e-6)
    last = server.received[-1]
    assert set(last) == {"observation/state", "observation/image", "observation/wrist_image", "prompt"}
    assert last["observation/image"].dtype == np.uint8 and last["observation/image"].shape == (6, 8, 3)
    assert last["observation/state"].dtype == np.float32 and last["prompt"] == "stop"
    policy.close()


def test_candidates_are_requests_of_their_own(started):
    stream = np.random.default_rng(0)
    server = started(lambda obs: {"actions": stream.normal(size=(HORIZON, 3)).astype(np.float32)})
    policy = openpi.connect(openpi.OpenpiConfig(url=server.url), OBSERVATION, ACTION)
    before = len(server.received)
    chunk = policy.sample(policy.encode(observations(2)), n=4)
    assert chunk.actions.shape == (2, 4, HORIZON, 3) and len(server.received) - before == 8
    assert torch.unique(chunk.actions.reshape(8, -1), dim=0).shape[0] == 8
    assert policy.encode(observations(2)).expand(3).batch == 6
    assert "noise" not in policy.spec.capabilities and server.connections == 1
    policy.close()


def test_keys_are_what_one_says_and_a_vector_can_be_parted(started):
    server = started(lambda obs: {"actions": np.tile(np.append(obs["observation/joint_position"][:2], obs["observation/gripper"]), (4, 1))})
    keys = {f"{STATE}[0:3]": "observation/joint_position", f"{STATE}[4:]": "observation/gripper", WRIST: "observation/cam"}
    config = openpi.OpenpiConfig(url=server.url, keys=keys, prompt="go", prompt_key="instruction")
    policy = openpi.connect(config, OBSERVATION, ACTION, horizon=2)
    assert policy.spec.horizon == 2 and set(policy.spec.observation) == {STATE, WRIST}
    obs = observations(1)
    del obs["task"]
    actions = ACTION.denormalize(policy.sample(policy.encode(obs)).actions)[0, 0]
    torch.testing.assert_close(actions[1].double(), ACTION.denormalize(ACTION.normalize(obs[STATE][0, 0, [0, 1, 4]]).clip(-1, 1)).double())
    assert server.received[-1]["instruction"] == "go" and server.received[-1]["observation/gripper"].shape == (1,)
    for keys, message in [({"observation.left": "x"}, "'observation.left', which is not there"), ({"a[b]": "x"}, "not a key")]:
        with pytest.raises(InputError, match=message):
            openpi.connect(openpi.OpenpiConfig(url=server.url, keys=keys), OBSERVATION, ACTION)
    policy.close()


def test_it_acts_through_the_executor(started):
    server = started()
    policy = openpi.connect(openpi.OpenpiConfig(url=server.url, prompt="go"), OBSERVATION, ACTION)
    before = len(server.received)
    newest = {key: value[:, -1] for key, value in observations(2).items() if key != "task"}
    executor = ChunkExecutor(policy, 2, act_steps=3, instruction="go")
    for _ in range(4):
        assert executor.act(newest).shape == (2, 3)
    assert len(server.received) - before == 4 and server.received[-1]["prompt"] == "go"
    policy.close()


def test_the_key_opens_the_door(started):
    server = started(api_key="sesame")
    with pytest.raises(InputError, match="refused the connection"):
        openpi.connect(openpi.OpenpiConfig(url=server.url), OBSERVATION, ACTION)
    openpi.connect(openpi.OpenpiConfig(url=server.url), OBSERVATION, ACTION, api_key="sesame").close()


def test_a_failure_of_the_server_is_told_in_its_last_line(started):
    server = started()
    config = openpi.OpenpiConfig(url=server.url, keys={STATE: "wrong/key"})
    with pytest.raises(InputError, match=r"openpi server at .* failed: KeyError: 'observation/state'") as told:
        openpi.connect(config, OBSERVATION, ACTION)
    assert "\n" not in str(told.value) and "Traceback" not in str(told.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"actions": np.zeros((HORIZON, 4))}, r"gives actions \(7, 4\), expected at least 7 of 3"),
        ({"actions": np.zeros(3)}, r"actions \(3,\) float64, expected floats \(H, A\)"),
        ({"nothing": 1}, "actions NoneType"),
        (msgpack.packb({"actions": {b"__ndarray__": True, b"dtype": "|O", b"data": b"\0" * 8, b"shape": [1]}}), r"array of '\|O'"),
        (b"\xc1", "does not answer as an openpi server"),
        (msgpack.packb([1]), "it sent a list"),
    ],
)
def test_answers_that_cannot_be_are_refused(started, answer, message):
    server = started(lambda obs: answer)
    with pytest.raises(InputError, match=message):
        openpi.connect(openpi.OpenpiConfig(url=server.url), OBSERVATION, ACTION)


def test_silence_ends_after_the_time_out_and_a_lost_connection_is_opened_again(started):
    silent = started(lambda obs: None)
    with pytest.raises(InputError, match=r"did not answer within 0\.5 s"):
        openpi.connect(openpi.OpenpiConfig(url=silent.url, warmup_s=0.5), OBSERVATION, ACTION)
    server = started()
    policy = openpi.connect(openpi.OpenpiConfig(url=server.url), OBSERVATION, ACTION)
    context = policy.encode(observations(1))
    first = policy.sample(context).actions
    for connection in list(server._server.connections):
        connection.close(1001)
    assert torch.equal(policy.sample(context).actions, first) and server.connections == 2
    policy.close()


def test_what_the_protocol_cannot_carry_is_refused(started):
    server = started()
    policy = openpi.connect(openpi.OpenpiConfig(url=server.url), OBSERVATION, ACTION)
    context = policy.encode(observations(1))
    for options in ({"steps": 3}, {"guidance": [lambda *a: a[1]]}):
        with pytest.raises(SpecError, match="cannot be sent to an openpi server"):
            policy.sample(context, **options)
    obs = observations(1)
    with pytest.raises(SpecError, match=r"needs observation 'observation\.state'"):
        policy.encode({k: v for k, v in obs.items() if k != STATE})
    del obs["task"]
    with pytest.raises(SpecError, match="needs an instruction"):
        policy.encode(obs)
    with pytest.raises(SpecError, match="cannot be trained from here"):
        policy.loss({})
    with pytest.raises(InputError, match="time-outs above 0"):
        openpi.OpenpiConfig(url=server.url, timeout_s=0)
    policy.close()


def test_the_two_kinds_of_server_are_told_apart(started):
    server = started()
    with pytest.raises(InputError, match=r"see policies\.openpi"):
        connect_to_sinew(server.url)
    ours = started(metadata={"server": "sinew"})
    with pytest.raises(InputError, match=r"connect with policies\.remote"):
        openpi.connect(openpi.OpenpiConfig(url=ours.url), OBSERVATION, ACTION)
