"""Actors and learners on the machines of a Ray cluster. The one module that imports Ray, which starts, places and restarts them.

What is said between actor and learner is what is said on one host (`rl.link.Dialogue`, `rl.crew.Crew`): safetensors in bytes.
Ray carries these bytes as arguments and results of calls, and pickles nothing else of ours.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rl.crew import Crew, CrewConfig
from rl.group import Group, Ranks
from rl.link import Dialogue
from rl.outpost import Outbox, Outpost
from rl.transport import Client
from sinew.errors import DataError, InputError, MissingDependency, SinewError
from sinew.protocols import VecEnv
from sinew.rundir import RunDir
from sinew.specs import ActionSpec

LOCAL = "local"
"""Address of a Ray of this machine's own, that ends with the learner."""
TURN_S = 0.1
"""An actor that has nothing to say lets its learner wait so long."""

Act = Callable[[int, Mapping[str, Any], Callable[[VecEnv], Outpost]], Any]
"""(place, arguments, worlds → outpost): makes worlds and a method, and acts."""


class Host:
    """An actor, in a process of Ray's.

    Args:
        target: "module:function" of an `Act`, to be imported there.
        place: its number.
        arguments: JSON of what the function is given.
    """

    def __init__(self, target: str, place: int, arguments: str) -> None:
        outbox = Outbox()
        self._dialogue = Dialogue(outbox, place)
        module, name = target.split(":")

        def act() -> None:
            try:
                function: Act = getattr(importlib.import_module(module), name)
                function(place, json.loads(arguments), lambda env: Outpost(env, outbox, place))
            except BaseException as e:
                self._dialogue.last_word = str(e) if isinstance(e, SinewError) else f"{type(e).__name__}: {e}"
            finally:
                outbox.end()

        threading.Thread(target=act, name=f"actor {place}", daemon=True).start()

    def exchange(self, answer: bytes) -> bytes:
        """Take in the learner's answer to the last message, and give the next; no bytes when all was said."""
        if answer:
            self._dialogue.answered(answer)
        return self._dialogue.next(TURN_S) or b""


class Handle:
    """A host as `Crew` sees a process."""

    def __init__(self, ray: ModuleType, host: Any) -> None:
        self._ray, self.host = ray, host
        self._ended = threading.Event()
        self.code: int | None = None

    def end(self, code: int) -> None:
        """It has ended."""
        self.code = code
        self._ended.set()

    def poll(self) -> int | None:
        """None while it lives."""
        return self.code

    def kill(self) -> None:
        """End it."""
        self._ray.kill(self.host)
        self.end(-9)

    def wait(self, timeout: float | None = None) -> int | None:
        """Until it has ended; one that takes too long is ended."""
        if not self._ended.wait(timeout):
            self.kill()
        return self.code


class Post:
    """A thread that asks every host for its next message, and answers it with the next call."""

    def __init__(self, ray: ModuleType, answer: Callable[[Client, bytes], bytes | None], gone: Callable[[Client], None]) -> None:
        self._ray, self._answer, self._gone = ray, answer, gone
        self.error: BaseException | None = None
        self._calls: dict[Any, tuple[Client, Handle]] = {}
        self._lock, self._closing = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="ray post", daemon=True)
        self._thread.start()

    def add(self, handle: Handle) -> None:
        """A new host."""
        call = handle.host.exchange.remote(b"")
        with self._lock:
            self._calls[call] = (Client(None, known=True), handle)

    def close(self) -> None:
        """Ask nobody any more."""
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing:
                with self._lock:
                    calls = list(self._calls)
                ready = self._ray.wait(calls, num_returns=1, timeout=TURN_S)[0] if calls else time.sleep(TURN_S) or []
                for call in ready:
                    with self._lock:
                        client, handle = self._calls.pop(call)
                    self._turn(call, client, handle)
        except BaseException as e:
            self.error = e

    def _turn(self, call: Any, client: Client, handle: Handle) -> None:
        try:
            message = self._ray.get(call)
            answer = self._answer(client, message) if message else None
        except (self._ray.exceptions.RayError, DataError):
            message, answer = b"?", None
        if answer is None:
            self._gone(client)
            handle.end(1 if message else 0)
            return
        again = handle.host.exchange.remote(answer)
        with self._lock:
            self._calls[again] = (client, handle)


class RayCrew(Crew):
    """Actors on Ray; give it to a runner in place of worlds.

    Args:
        run: folder of the run.
        config: settings.
        num_envs: worlds of each actor.
        action_spec: of these worlds.
        address: ray://host:port, host:port of a cluster this machine belongs to, or "local".
        target: "module:function" of an `Act`; importable on every machine.
        arguments: what it is given, as JSON takes it.
        options: of Ray for every actor, for example {"num_cpus": 1}.

    Raises:
        InputError: there is no Ray at this address.
        MissingDependency: Ray is not installed.
    """

    def __init__(
        self,
        run: RunDir,
        config: CrewConfig,
        num_envs: int,
        action_spec: ActionSpec,
        address: str,
        target: str,
        arguments: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(run, config, num_envs, action_spec, self._start_host)
        self._ray, self._mine = connect(address)
        self._made = (target, json.dumps(arguments))
        self._host = self._ray.remote(Host).options(**{**_share(address), **(options or {})})

    def _listen(self) -> bool:
        self._server = Post(self._ray, self._answer, self._gone)
        return False

    def _start_host(self, place: int, endpoint: Path, log: Path) -> Any:
        handle = Handle(self._ray, self._host.remote(self._made[0], place, self._made[1]))
        if isinstance(self._server, Post):
            self._server.add(handle)
        return handle

    def close(self) -> None:
        """Tell every actor to end, and leave Ray where this crew entered it."""
        super().close()
        if self._mine:
            self._ray.shutdown()


class LearnerHost:
    """A learner of a group, in a process of Ray's."""

    def learn(self, target: str, rank: int, size: int, where: str, arguments: str) -> None:
        """Join, and learn by "module:function" of (rank, arguments, group)."""
        group = Ranks(rank, size, where)
        module, name = target.split(":")
        try:
            getattr(importlib.import_module(module), name)(rank, json.loads(arguments), group)
        finally:
            group.close()


@contextmanager
def learners(
    address: str, size: int, target: str, arguments: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> Iterator[Group]:
    """A group whose first learner is this process; the others are on Ray, and end with the context.

    Args:
        address: as of `RayCrew`.
        size: learners in all.
        target: "module:function" of (rank, arguments, group), to be imported there.
        arguments: what it is given, as JSON takes it.
        options: of Ray for every learner, for example {"num_gpus": 1}.

    Raises:
        InputError: there is no Ray, or a learner did not come.
        MissingDependency: Ray is not installed.
    """
    ray, mine = connect(address)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    where = f"tcp://{ray.util.get_node_ip_address()}:{port}"
    host = ray.remote(LearnerHost).options(**{**_share(address), **(options or {})})
    hosts = [host.remote() for _ in range(1, size)]
    calls = [h.learn.remote(target, rank, size, where, json.dumps(arguments)) for rank, h in enumerate(hosts, start=1)]
    try:
        group = Ranks(0, size, where)
        try:
            yield group
            ray.get(calls, timeout=60)
        except InputError as e:
            raise InputError(f"{e}{_first_failure(ray, calls)}") from None
        finally:
            group.close()
    finally:
        for h in hosts:
            ray.kill(h)
        if mine:
            ray.shutdown()


def _share(address: str) -> dict[str, Any]:
    """Of a cluster's machines a core each; this machine is shared as it comes."""
    return {"num_cpus": 0 if address == LOCAL else 1}


def _first_failure(ray: ModuleType, calls: list[Any]) -> str:
    """What the first learner that ended with an error has to say."""
    for call in ray.wait(calls, num_returns=len(calls), timeout=2.0)[0]:
        try:
            ray.get(call)
        except ray.exceptions.RayError as e:
            lines = [line for line in str(e).splitlines() if line.strip()]
            return f" ({lines[-1].strip()[:200]})" if lines else ""
    return ""


def connect(address: str) -> tuple[ModuleType, bool]:
    """Ray, connected, and whether that was done here.

    Raises:
        InputError: there is no Ray at this address.
        MissingDependency: Ray is not installed.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as e:
        raise MissingDependency(f"actors on other machines need ray: pip install 'sinew[distributed]' ({e})") from None
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address == LOCAL:
            path = os.pathsep.join(p for p in sys.path if p)
            with _environment(PYTHONPATH=path, OMP_NUM_THREADS="1", RAY_worker_niceness="0"):  # who acts at 20 Hz does not stand back
                ray.init(include_dashboard=False, log_to_driver=False, num_cpus=os.cpu_count())
        else:
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    except Exception as e:  # Ray has a type of its own for every way to fail
        told = str(e).splitlines()
        raise InputError(f"no Ray at {address}: {told[0] if told else type(e).__name__}; start one with: ray start --head") from None
    return ray, True


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """These variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
