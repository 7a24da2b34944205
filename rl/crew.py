"""Actors in processes of their own on this host, as the learner sees them: started, heard, missed and started again."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rl.memory import AT_ONCE
from rl.parcels import pack, pack_tensors, unpack, unpack_steps, unpack_tensors
from rl.source import Arrival, Saved, Source
from rl.transport import Client, Endpoint, Server, new_token
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir
from sinew.specs import ActionSpec

ENDPOINT = "learner.json"
"""In the run's folder: where its learner listens."""
LOGS = "actors"
"""In the run's folder: what each actor has to say."""
GRACE_S = 3.0
"""A learner that goes on waits so long for actors that are still there before it starts others."""
SILENT_S = 60.0
"""An actor that says nothing for so long is gone."""
STARTING_S = 300.0
"""An actor that was started and says nothing for so long will never."""
CLOSING_S = 60.0
"""Actors have so long to send what they have and to end."""
LOOK_S = 0.1
"""Between two looks at who is there."""
REMEMBERED = 1_000
"""Sets of weights of which it is known after how many steps they came."""

Launch = Callable[[int, Path, Path], "subprocess.Popen[bytes]"]
"""(place, file of the endpoint, file for what it says) → the process of an actor that was started."""


@dataclass(frozen=True, kw_only=True)
class CrewConfig:
    """How actors and learner keep pace."""

    actors: int
    """Processes that act."""
    lead_steps: int | None = 256
    """Actors that are so many steps ahead of the updates wait. None lets them go on, as robots do, and the updates that are
    missed are not made up for."""
    publish_every: int = 50
    """Updates between two sets of weights."""
    restarts: int = 3
    """An actor that died is started again so many times."""

    def __post_init__(self) -> None:
        if self.actors < 1 or self.publish_every < 1 or self.restarts < 0 or (self.lead_steps is not None and self.lead_steps < 1):
            raise InputError(
                f"actors {self.actors}, publish_every {self.publish_every} and lead_steps {self.lead_steps} must be at least 1, "
                f"restarts {self.restarts} not negative"
            )


@dataclass
class Seat:
    """An actor's place."""

    life: str = ""
    """Which of its lives was heard last."""
    received: int = -1
    """The newest of its steps that came."""
    safe: int = -1
    """The newest that a checkpoint has."""
    taken: tuple[str, int] = ("", -1)
    """Life and number of the newest step in the replay."""
    client: Client | None = None
    heard_s: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] | None = None
    met: bool = False
    """Whether this process was heard."""
    deaths: int = 0
    last_word: str = ""
    """What the process that is there says of its end."""
    ended: str = ""
    """How the one before it ended."""
    lost: int = 0
    """Steps that were made and never came."""


class Crew(Source):
    """Actors on this host; give it to a runner in place of worlds.

    Args:
        run: folder with the endpoint and the actors' logs.
        config: settings.
        num_envs: worlds of each actor.
        action_spec: of these worlds.
        launch: starts an actor; None where they are started by somebody else.
    """

    together = False

    def __init__(self, run: RunDir, config: CrewConfig, num_envs: int, action_spec: ActionSpec, launch: Launch | None) -> None:
        self.run, self.config, self.places, self.num_envs, self.action_spec = run, config, config.actors, num_envs, action_spec
        self.launch = launch
        self.seats = [Seat() for _ in range(config.actors)]
        self.waited_s = 0.0
        self.received_steps = self.updates = 0
        self._lock = threading.Condition()
        self._arrived: deque[Arrival] = deque()
        self._like: dict[str, Tensor] | None = None
        self._weights, self._version, self._step, self._behind = b"", -1, 0, 0.0
        self._published: dict[int, int] = {}
        self._stale: deque[tuple[int, int]] = deque(maxlen=1_000)
        self._snapshot: list[tuple[str, int]] = []
        self.forgets = config.lead_steps is None
        self._stopping = False
        self._looked_s = 0.0
        self._server: Any = None

    # ------------------------------------------------------------ learner's side

    def open(self, block: int, step: int, saved: Saved | None) -> Mapping[str, Tensor]:
        """Listen, start the actors that are not there yet, and wait for the first one.

        Raises:
            InputError: no actor came; the last words of one are told.
        """
        self._step = step
        if saved is not None:
            self._remember(saved[1])
        if self._listen():
            self._wait(lambda: all(seat.client is not None for seat in self.seats), GRACE_S)
        while self._like is None:
            self._supervise()
            self._wait(lambda: self._like is not None, 0.2)
        return self._like

    def _listen(self) -> bool:
        """Be there for actors; True if some may be there already."""
        path = self.run / ENDPOINT
        before = path.exists()
        server = Server(Endpoint.read(path) if before else Endpoint("127.0.0.1", 0, new_token()), self._answer, self._gone)
        server.endpoint.write(path)
        self._server = server
        return before

    def _remember(self, numbers: Mapping[str, Any]) -> None:
        found = numbers.get("places", [])
        if len(found) != self.places:
            raise InputError(f"{self.run.path} was learned with --actors {len(found)}, not {self.places}: give the same number to go on")
        for seat, (life, number, lost) in zip(self.seats, found, strict=True):
            seat.life, seat.received, seat.safe, seat.taken, seat.lost = life, number, number, (life, number), lost

    def gather(self, step: int, behind: float, wait: bool) -> Iterator[Arrival]:
        """What has arrived; see `Source`."""
        self._supervise()
        with self._lock:
            self._step, self._behind = step, behind
            if wait and not self._arrived:
                started = time.monotonic()
                self._lock.wait(0.2)
                self.waited_s += time.monotonic() - started
            found = self._taken()
        yield from found

    def _taken(self) -> list[Arrival]:
        """What is taken in at once: all that has arrived where nobody waits for updates, and so much of each place."""
        found: list[Arrival] = []
        of_place = [0] * self.places
        most = len(self._arrived) if self.forgets else AT_ONCE
        while self._arrived and len(found) < most and of_place[self._arrived[0].place] < AT_ONCE:
            found.append(self._arrived.popleft())
            of_place[found[-1].place] += 1
        return found

    def took(self, arrival: Arrival) -> None:
        """It is in the replay now."""
        life, number, version = arrival.stamp
        self.seats[arrival.place].taken = (life, number)
        if arrival.step is not None:
            self.received_steps += self.num_envs
            self._stale.append((self._version - version, self._step - self._published.get(version, self._step)))

    def publish(self, module: nn.Module, updates: int, step: int, *, now: bool = False) -> None:
        """Bring new weights to the actors with the next thing that each says."""
        self.updates = updates
        if now or updates - self._version >= self.config.publish_every:
            weights = pack_tensors(module.state_dict())
            with self._lock:
                self._weights, self._version, self._step = weights, updates, step
                self._published[updates] = step
                for old in [v for v in self._published if len(self._published) > REMEMBERED and v != updates][:1]:
                    del self._published[old]

    def state(self) -> Saved:
        """Which steps of which lives are in the replay."""
        self._snapshot = [seat.taken for seat in self.seats]
        return {}, {"places": [[*seat.taken, seat.lost] for seat in self.seats]}

    def saved(self) -> None:
        """Actors need not keep these steps any longer."""
        with self._lock:
            for seat, (life, number) in zip(self.seats, self._snapshot, strict=True):
                if seat.life == life:
                    seat.safe = number

    def metrics(self, step: int, updates: int) -> dict[str, float]:
        """Actors there, how old the weights are that act, and what was lost."""
        with self._lock:
            count = max(1, len(self._stale))
            return {
                "actors": sum(seat.client is not None for seat in self.seats),
                "stale_updates": round(sum(updates for updates, _ in self._stale) / count, 2),
                "stale_updates_max": max((updates for updates, _ in self._stale), default=0),
                "stale_steps": round(sum(steps for _, steps in self._stale) / count, 2),
                "waiting_steps": len(self._arrived) * self.num_envs,
                "received_steps": self.received_steps,
                "lost_steps": self.num_envs * sum(seat.lost for seat in self.seats),
                "waited_s": round(self.waited_s, 3),
            }

    def close(self) -> None:
        """Tell every actor to end, and wait until all have."""
        self._stopping = True
        deadline = time.monotonic() + CLOSING_S
        for seat in self.seats:
            if seat.process is not None:
                try:
                    seat.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    seat.process.kill()
                    seat.process.wait()
        if self._server is not None:
            self._wait(lambda: all(seat.client is None for seat in self.seats), max(0.0, deadline - time.monotonic()))
            self._server.close()
            self._server = None
            (self.run / ENDPOINT).unlink(missing_ok=True)

    # ------------------------------------------------------------ who is there

    def _supervise(self) -> None:
        """Start actors that are not there, and say who died."""
        if self._server is not None and self._server.error is not None:
            raise self._server.error
        if time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        for place, seat in enumerate(self.seats):
            how = self._death(seat)
            if how is None:
                continue
            if how:
                seat.deaths += 1
                again = seat.deaths <= self.config.restarts and self.launch is not None
                what = f"started again ({seat.deaths} of {self.config.restarts})" if again else "given up"
                self.progress.note(f"actor {place} DIED: {how}; {what}, the others go on")
            seat.ended, seat.last_word = how or seat.ended, ""
            self._stop_process(seat)
            if self.launch is not None and seat.deaths <= self.config.restarts:
                seat.heard_s, seat.met = time.monotonic(), False
                (self.run / LOGS).mkdir(parents=True, exist_ok=True)
                seat.process = self.launch(place, self.run / ENDPOINT, self.run / LOGS / f"{place}.log")
        if self.launch is not None and all(seat.deaths > self.config.restarts and seat.client is None for seat in self.seats):
            word = next((seat.ended for seat in self.seats if seat.ended), "")
            raise InputError(f"all {self.places} actors died: {word}; see {self.run / LOGS}; the last checkpoint is kept")

    def _death(self, seat: Seat) -> str | None:
        """How an actor died; "" if there was none yet, None if it lives or was given up."""
        if seat.deaths > self.config.restarts:
            return None
        code = None if seat.process is None else seat.process.poll()
        if code is not None:
            return seat.last_word or _told(code, self.run / LOGS / f"{self.seats.index(seat)}.log")
        if seat.process is None and seat.client is None:
            return "" if self.launch is not None else None
        silent_s = time.monotonic() - seat.heard_s
        return f"nothing was heard of it for {silent_s:.0f} s" if silent_s > (SILENT_S if seat.met else STARTING_S) else None

    def _stop_process(self, seat: Seat) -> None:
        if seat.process is not None and seat.process.poll() is None:
            seat.process.kill()
            seat.process.wait()
        with self._lock:
            seat.process, seat.client = None, None

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> None:
        with self._lock:
            self._lock.wait_for(until, timeout_s)

    # ------------------------------------------------------------ actors' side, in the server's thread

    def _answer(self, client: Client, message: bytes) -> bytes | None:
        kind, numbers, payload = unpack(message)
        with self._lock:
            try:
                if kind == "hello":
                    return self._welcome(client, numbers, payload)
                if client.place is None or self.seats[client.place].client is not client:
                    return None
                seat = self.seats[client.place]
                seat.heard_s = time.monotonic()
                if kind == "start":
                    self._start(client.place, int(numbers["number"]), unpack_tensors(payload))
                elif kind == "steps" and not self._receive(client.place, numbers, payload):
                    return None
                elif kind == "end":
                    seat.last_word = str(numbers.get("why", ""))
                return self._reply(client)
            except (KeyError, ValueError, TypeError) as e:
                raise DataError(f"a message of an actor is damaged: {e}") from None
            finally:
                self._lock.notify_all()

    def _welcome(self, client: Client, numbers: Mapping[str, Any], payload: bytes) -> bytes:
        place, life = int(numbers["place"]), str(numbers["life"])
        if not 0 <= place < self.places:
            return pack("welcome", {"refused": f"there are places 0 to {self.places - 1}, not {place}"})
        seat = self.seats[place]
        if seat.client is not None and seat.life != life:
            return pack("welcome", {"refused": f"place {place} is taken by another actor"})
        known = seat.life == life
        if not known:
            seat.life, seat.received, seat.safe = life, -1, -1
        seat.client, seat.heard_s, seat.met, client.place = client, time.monotonic(), True, place
        self._like = self._like or unpack_tensors(payload) or None  # one that fails at once has no frames to show
        return pack("welcome", {"received": seat.received if known else -1})

    def _start(self, place: int, number: int, frames: Mapping[str, Tensor]) -> None:
        seat = self.seats[place]
        if seat.received >= 0:  # the same life, of which something was dropped in between
            seat.lost += max(0, number - seat.received)
        seat.received = number
        self._arrived.append(Arrival(place, None, frames, (seat.life, number, 0)))

    def _receive(self, place: int, numbers: Mapping[str, Any], payload: bytes) -> bool:
        """Take steps that are new; False if one is missing before them, so that the actor connects again."""
        seat = self.seats[place]
        for record in unpack_steps(numbers, payload):
            if record.number > seat.received + 1:
                return False
            if record.number == seat.received + 1:
                seat.received = record.number
                self._arrived.append(Arrival(place, record.step, record.step.frames, (seat.life, record.number, record.version)))
        return True

    def _reply(self, client: Client) -> bytes:
        place = client.place or 0
        seat = self.seats[place]
        ahead = len(self._arrived) * self.num_envs + self._behind
        go = self._version >= 0 and (self.config.lead_steps is None or ahead < self.config.lead_steps)
        numbers = {"received": seat.received, "safe": seat.safe, "step": self._step, "go": go, "stop": self._stopping}
        fresh = self._weights if client.version < self._version else b""
        client.version = self._version
        return pack("answer", {**numbers, "version": self._version}, fresh)

    def _gone(self, client: Client) -> None:
        with self._lock:
            for seat in self.seats:
                if seat.client is client:
                    seat.client = None
            self._lock.notify_all()


def _told(code: int, log: Path) -> str:
    """How a process ended, with the last line of its log."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how} ({lines[-1].strip()[:200]})" if lines else how
