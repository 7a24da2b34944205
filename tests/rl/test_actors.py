"""Actors and learner apart: nothing is lost on the way, and either survives the other's death."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import test_dsrl
import test_residual
import test_rlpd
import torch

from rl.crew import ENDPOINT, Crew, CrewConfig
from rl.dsrl import train_dsrl
from rl.link import Link
from rl.outpost import Outbox, Outpost
from rl.parcels import Record, pack, pack_steps, pack_tensors, unpack, unpack_steps
from rl.residual import train_residual
from rl.rlpd import train_rlpd
from rl.runner import STATE_FILE
from rl.transport import Caller, Endpoint, Lost
from rl.worlds import Step
from sinew.errors import DataError, InputError
from sinew.progress import Progress
from sinew.rundir import RunDir

WORLDS = 4
SHORT = replace(test_residual.SHORT, steps=800, random_steps=200, evaluate_every=400, checkpoint_every=200, stop_success=2.0)


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)


class Watched(point_mass.PointMass):
    """Keeps every action that was executed, and takes its time, as a robot does."""

    def __init__(self, num_envs: int = WORLDS) -> None:
        super().__init__(num_envs)
        self.executed: list[torch.Tensor] = []

    def step(self, action):
        self.executed.append(self.action_spec.normalize(action))
        time.sleep(0.003)
        return super().step(action)


def residual(env: Any, run: Any, config: Any = SHORT, progress: Any = None, evaluate: Any = None) -> tuple[Any, Any]:
    actor, executor = point_mass.ToyActor(), point_mass.BiasedExecutor(WORLDS)
    measure = None if evaluate is None else lambda: evaluate(actor)
    return train_residual(env, executor, actor, point_mass.observe, run, config, evaluate=measure, progress=progress or Progress()), actor


def act(run: RunDir, place: int, env: Any, learn: Callable[..., Any], progress: Progress) -> None:
    """What an actor does, here in a thread."""
    deadline = time.monotonic() + 60
    while not (run / ENDPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    outbox = Outbox()
    with Link(outbox, run / ENDPOINT, place, progress, give_up_s=60):
        learn(Outpost(env, outbox, place), run)


@contextmanager
def acting(run: RunDir, envs: list[Any], learn: Callable[..., Any] = residual):
    """Actors in threads; yields what they say."""
    notes = Notes()
    threads = [threading.Thread(target=act, args=(run, i, env, learn, notes), daemon=True) for i, env in enumerate(envs)]
    for thread in threads:
        thread.start()
    yield notes
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def crew(run: RunDir, actors: int = 2, launch: Any = None, **options: Any) -> Crew:
    spec = point_mass.PointMass(1).action_spec
    return Crew(run, CrewConfig(actors=actors, **options), WORLDS, spec, launch)


# ------------------------------------------------------------ on the wire


def made(number: int, ended: list[bool], generator: torch.Generator) -> Record:
    N, many = len(ended), sum(ended)
    end = torch.tensor(ended)
    frames = {"features": torch.randn(N, 3, generator=generator), "image": torch.randint(255, (N, 4, 4, 3), dtype=torch.uint8)}
    final = {"features": torch.randn(many, 3, generator=generator), "image": torch.zeros(many, 4, 4, 3, dtype=torch.uint8)}
    action, reward = torch.rand(N, 2, generator=generator), torch.rand(N, generator=generator)
    step = Step(action, reward, end, torch.zeros_like(end), 1 + number % 2, frames, final if many else None, [1.0] * many)
    return Record(number, step, 10 * number)


def test_steps_arrive_as_they_were_sent():
    generator = torch.Generator().manual_seed(0)
    sent = [made(i, e, generator) for i, e in enumerate([[False, False], [True, False], [True, True], [False, False]], start=5)]
    kind, numbers, payload = unpack(pack("steps", *pack_steps(sent)))
    assert kind == "steps"
    for a, b in zip(sent, unpack_steps(numbers, payload), strict=True):
        assert (a.number, a.version) == (b.number, b.version) and a.step.success == b.step.success
        for name in ("action", "reward", "terminated", "truncated"):
            assert torch.equal(getattr(a.step, name), getattr(b.step, name))
        assert (b.step.source == a.step.source).all()
        assert all(torch.equal(a.step.frames[k], b.step.frames[k]) for k in a.step.frames)
        assert (a.step.final is None) == (b.step.final is None)
        assert all(torch.equal(v, (b.step.final or {})[k]) for k, v in (a.step.final or {}).items())


def test_damaged_messages_are_told():
    whole = pack("steps", *pack_steps([made(1, [True], torch.Generator().manual_seed(0))]))
    for bad in (b"", whole[:3], whole[:40], b"\xff\xff\xff\xff" + whole[4:]):
        with pytest.raises(DataError):
            unpack(bad)
    _, numbers, payload = unpack(whole)
    for damaged in (payload[:-5], b"", payload[8:]):
        with pytest.raises(DataError):
            unpack_steps(numbers, damaged)
    with pytest.raises(DataError):
        unpack_steps({**numbers, "versions": [1, 2], "success": [[], []]}, payload)


@pytest.fixture
def listening(tmp_path):
    run = RunDir.create(tmp_path / "run", SHORT)
    learner = crew(run)
    opening = threading.Thread(target=learner.open, args=(0, 0, None), daemon=True)
    opening.start()
    while not (run / ENDPOINT).exists():
        time.sleep(0.01)
    yield run, learner
    caller = Caller(Endpoint.read(run / ENDPOINT), 5)
    caller.ask(pack("hello", {"place": 0, "life": "last"}, pack_tensors({"x": torch.zeros(1)})))
    opening.join(10)
    caller.close()
    learner.close()


def test_nobody_without_the_secret_is_answered(listening):
    run, _ = listening
    true = Endpoint.read(run / ENDPOINT)
    assert ((run / ENDPOINT).stat().st_mode & 0o777) == 0o600
    with pytest.raises(Lost):
        Caller(replace(true, token="0" * 64), 5).ask(pack("hello", {"place": 0, "life": "x"}))
    stranger = socket.create_connection((true.host, true.port), 5)
    stranger.sendall(b"\xff" * 64)  # a length that nobody may send
    assert stranger.recv(10) == b""
    known = Caller(true, 5)
    with pytest.raises(Lost):
        known.ask(b"not a message")
    assert unpack(Caller(true, 5).ask(pack("hello", {"place": 9, "life": "x"})))[1]["refused"].startswith("there are places 0 to 1")
    with pytest.raises(InputError, match="cannot listen"):
        other = RunDir.create(run.path.parent / "other", SHORT)
        true.write(other / ENDPOINT)
        crew(other).open(0, 0, None)


# ------------------------------------------------------------ what an actor keeps


def answer(outbox: Outbox, received: int, safe: int) -> None:
    outbox.answered({"received": received, "safe": safe, "step": 0, "go": True, "stop": False, "version": 0}, b"")


def test_what_is_in_no_checkpoint_is_sent_again():
    outbox, generator = Outbox(), torch.Generator().manual_seed(0)
    outbox.begin({"features": torch.zeros(1, 3)})
    outbox.go = True
    for i in range(1, 11):
        outbox.put(made(i, [False], generator).step, 0)
    assert [r.number for r in outbox.pending(4)] == [1, 2, 3, 4]
    outbox.sent = 8
    answer(outbox, received=8, safe=3)
    assert [r.number for r in outbox.pending(99)] == [9, 10]
    assert outbox.has(5), "a learner that comes back from a checkpoint has less"
    assert [r.number for r in outbox.pending(99)] == [6, 7, 8, 9, 10]
    assert not outbox.has(1), "what was safe is gone, and a learner that has less than that starts anew"
    assert outbox.base[0] == 3 and [r.number for r in outbox.pending(2)] == [4, 5]


def test_without_room_what_was_received_goes_first_and_then_acting_waits():
    generator = torch.Generator().manual_seed(0)
    one = made(1, [False], generator).step
    outbox = Outbox(room=3 * (sum(v.nbytes for v in (one.action, one.reward, *one.frames.values())) + 64))
    outbox.begin({"features": torch.zeros(1, 3)})
    outbox.go = True
    for i in range(1, 4):
        outbox.put(made(i, [False], generator).step, 0)
    outbox.sent = 2
    answer(outbox, received=2, safe=-1)
    outbox.put(made(4, [False], generator).step, 0)
    assert outbox.base[0] == 1 and outbox.room_steps == 3
    waiting = threading.Thread(target=lambda: [outbox.put(made(i, [False], generator).step, 0) for i in (5, 6)], daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and outbox.base[0] == 2, "three are here that nobody has"
    outbox.sent = 6
    answer(outbox, received=6, safe=6)
    waiting.join(10)
    assert not waiting.is_alive() and outbox.base[0] == 6


# ------------------------------------------------------------ together


def test_every_step_arrives_once_and_in_order(tmp_path):
    """What the rings hold is what the worlds executed; the actors learn from what the learner publishes."""
    run, envs = RunDir.create(tmp_path / "run", SHORT), [Watched(), Watched()]
    learner, kept = crew(run, lead_steps=40), []
    taken = learner.took
    learner.took = lambda arrival: (kept.append(arrival), taken(arrival))[1]  # type: ignore[method-assign]
    with acting(run, envs):
        try:
            result, actor = residual(learner, run)
        finally:
            learner.close()
    assert result.steps >= SHORT.steps
    for place, env in enumerate(envs):
        mine = [a for a in kept if a.place == place]
        assert mine[0].step is None and all(a.step is not None for a in mine[1:])
        assert [a.stamp[1] for a in mine] == list(range(len(mine)))
        arrived = torch.stack([a.step.action for a in mine[1:]])
        torch.testing.assert_close(arrived, torch.stack(env.executed[: len(arrived)]), atol=1e-5, rtol=0)
    last = list(run.metrics())[-1]
    assert last["actors"] == 2 and last["lost_steps"] == 0 and last["received_steps"] == result.steps
    assert last["stale_updates"] >= 0 and last["stale_steps"] >= 0
    assert any(a.stamp[2] > 0 for a in kept), "weights were swapped"
    assert result.updates >= SHORT.critic_only_updates + SHORT.updates_per_step * (result.steps - SHORT.random_steps) - 60
    assert not test_residual.same(actor, point_mass.ToyActor())


def dsrl(env: Any, run: Any, evaluate: Any = None) -> tuple[Any, Any]:
    config = replace(test_dsrl.SHORT, steps=800, random_steps=200, checkpoint_every=400, stop_success=2.0)
    steering = test_dsrl.Steering()
    measure = None if evaluate is None else lambda: test_dsrl.rollout(steering)
    return train_dsrl(env, steering, run, config, evaluate=measure), steering.actor


def rlpd(env: Any, run: Any, evaluate: Any = None) -> tuple[Any, Any]:
    config = replace(test_rlpd.SHORT, steps=800, random_steps=200, checkpoint_every=400, stop_success=2.0)
    actor = test_rlpd.Actor(bound=1.0)
    measure = None if evaluate is None else lambda: test_rlpd.rollout(actor)
    demos = test_rlpd.demonstrations(5)
    return train_rlpd(env, actor, point_mass.observe, run, config, demos=demos, evaluate=measure), actor


@pytest.mark.parametrize("learn", [dsrl, rlpd])
def test_other_methods_act_elsewhere_too(tmp_path, learn):
    run, learner = RunDir.create(tmp_path / "run", {"learn": learn.__name__}), None
    with acting(run, [point_mass.PointMass(WORLDS), point_mass.PointMass(WORLDS)], learn):
        learner = crew(run)
        try:
            result, actor = learn(learner, run, evaluate=True)
        finally:
            learner.close()
    assert result.steps >= 800 and result.updates > 200 and len(result.history) >= 2
    fresh = test_dsrl.Actor() if learn is dsrl else test_rlpd.Actor(bound=1.0)
    state = torch.cat([v.flatten().float() for v in actor.state_dict().values()])
    assert state.shape == torch.cat([v.flatten().float() for v in fresh.state_dict().values()]).shape


def test_a_chunk_is_of_one_set_of_weights(tmp_path):
    """New weights before every step, and yet the noise of a chunk holds until it ends."""
    config = replace(test_dsrl.SHORT, random_steps=0)
    outbox, seen, steering = Outbox(), [], test_dsrl.Steering()
    outbox.go = True

    def answering() -> None:
        while not outbox.stop:
            fresh = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in test_dsrl.Actor().state_dict().items()}
            said = {"received": 0, "safe": -1, "step": 500, "go": True, "stop": False, "version": outbox.version + 1}
            outbox.answered(said, pack_tensors(fresh))
            time.sleep(0.001)

    thread = threading.Thread(target=answering, daemon=True)
    thread.start()

    class Once(Watched):
        def step(self, action):
            before = outbox.version
            if len(self.executed) > 40:
                outbox.end()
            while outbox.version == before and not outbox.stop:
                time.sleep(0.0005)
            return super().step(action)

    train_dsrl(Outpost(Once(1), outbox, 0), steering, RunDir(tmp_path), config)  # type: ignore[arg-type]
    thread.join(10)
    records, since = outbox.pending(99), 0
    before = outbox.base[1]["u"]
    for record in records:
        seen.append(torch.equal(record.step.frames["u"], before))
        before, since = record.step.frames["u"], since + 1
        ended = bool(record.step.terminated | record.step.truncated)
        if ended or since == test_dsrl.HORIZON:
            since = 0
        else:
            assert seen[-1], "the noise changed within a chunk"
    assert len({r.version for r in records}) > 5 and not all(seen)


def test_actors_that_are_far_ahead_wait_for_the_updates(tmp_path):
    run, envs = RunDir.create(tmp_path / "run", SHORT), [Watched()]
    learner = crew(run, 1, lead_steps=40)
    with acting(run, envs):
        opened = learner.open(0, 0, None)
        assert set(opened) == {"features", "base_action"}
        learner.publish(point_mass.ToyActor(), 0, 0, now=True)
        deadline, steady, last = time.monotonic() + 30, 0, -1
        while steady < 20 and time.monotonic() < deadline:  # nobody takes anything in
            time.sleep(0.05)
            steady = steady + 1 if len(envs[0].executed) == last > 0 else 0
            last = len(envs[0].executed)
        assert steady == 20 and last * WORLDS >= 40, "it went as far as it may, and there it stands"
        learner.close()


# ------------------------------------------------------------ deaths


def test_a_learner_that_dies_is_waited_for_and_gets_everything_again(tmp_path):
    """Here it dies without a word in the middle of learning; the one after it goes on from the checkpoint."""
    run, envs = RunDir.create(tmp_path / "run", SHORT), [Watched(), Watched()]

    class DeathError(RuntimeError):
        pass

    first = crew(run)
    took = first.took

    def dying(arrival: Any) -> None:
        took(arrival)
        if first.received_steps > 500 and (run / STATE_FILE).exists():
            raise DeathError

    first.took = dying  # type: ignore[method-assign]
    with acting(run, envs) as notes:
        with pytest.raises(DeathError):
            residual(first, run)
        assert first._server is not None
        first._server.close()  # as the end of a process does, without telling anybody
        time.sleep(0.3)
        second, kept = crew(run), []
        taken = second.took
        second.took = lambda arrival: (kept.append(arrival), taken(arrival))[1]  # type: ignore[method-assign]
        try:
            result, _ = residual(second, run)
        finally:
            second.close()
    assert notes.heard("THE LEARNER IS GONE") and notes.heard("the learner is back")
    assert result.steps >= SHORT.steps and sum(seat.lost for seat in second.seats) == 0
    assert all(a.step is not None for a in kept), "the same lives go on, and nothing is cut"
    firsts = [next(a.stamp[1] for a in kept if a.place == place) for place in range(2)]
    assert max(firsts) > 1, "what is in the checkpoint is not sent again"
    for place, env in enumerate(envs):
        mine, first_number = [a for a in kept if a.place == place], firsts[place]
        assert [a.stamp[1] for a in mine] == list(range(first_number, first_number + len(mine)))
        arrived = torch.stack([a.step.action for a in mine])
        torch.testing.assert_close(arrived, torch.stack(env.executed[first_number - 1 :][: len(mine)]), atol=1e-5, rtol=0)


class Mortal(point_mass.PointMass):
    """Worlds whose process is killed once, at place 1; at place 0 nobody gets far before the other is back."""

    def __init__(self, run: RunDir, place: int) -> None:
        super().__init__(WORLDS)
        self.run, self.place, self.steps = run, place, 0

    def step(self, action):
        self.steps += 1
        died, back = self.run / "died", self.run / "back"
        if self.place == 1 and died.exists() and self.steps == 5:
            back.touch()
        if self.place == 1 and not died.exists() and self.steps == 20:
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while self.place == 0 and self.steps == 100 and (self.run / "waits").exists() and not back.exists():
            time.sleep(0.02)
        return super().step(action)


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
import point_mass, test_actors
from sinew.rundir import RunDir
what, run, place = sys.argv[1], RunDir(Path(sys.argv[2])), int(sys.argv[3])
if what == "actor":
    test_actors.act(run, place, test_actors.Mortal(run, place), test_actors.residual, test_actors.Progress())
if what == "broken":
    class Broken(point_mass.PointMass):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward * float("nan"), *rest
    test_actors.act(run, place, Broken(test_actors.WORLDS), test_actors.residual, test_actors.Progress())
if what == "learner":
    test_actors.residual(test_actors.crew(run, 1, test_actors.launcher(run, "actor")), run)
"""


def process(what: str, run: RunDir, place: int, log: Path) -> subprocess.Popen[bytes]:
    script = SCRIPT.format(root=str(Path(__file__).parents[2]), tests=str(Path(__file__).parent))
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", script, what, str(run.path), str(place)],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def launcher(run: RunDir, what: str):
    return lambda place, endpoint, log: process(what, run, place, log)


def test_an_actor_that_is_killed_is_said_and_started_again(tmp_path):
    run, notes = RunDir.create(tmp_path / "run", SHORT), Notes()
    (run / "waits").touch()
    learner = crew(run, 2, launcher(run, "actor"))
    try:
        result, _ = residual(learner, run, replace(SHORT, steps=1_600), notes)
    finally:
        learner.close()
    assert result.steps >= 1_600
    assert notes.heard("actor 1 DIED: signal 9; started again (1 of 3), the others go on"), notes.said
    assert all(seat.process is not None and seat.process.returncode == 0 for seat in learner.seats), "told to end, and ended"


def test_actors_that_all_die_are_told_with_their_last_words(tmp_path):
    run, notes = RunDir.create(tmp_path / "run", SHORT), Notes()
    learner = crew(run, 1, launcher(run, "broken"), restarts=0)
    try:
        with pytest.raises(InputError, match="all 1 actors died: world 0: reward is not finite") as told:
            residual(learner, run, progress=notes)
    finally:
        learner.close()
    assert "\n" not in str(told.value) and notes.heard("given up")


def test_actors_outlive_a_learner_process_that_is_killed(tmp_path):
    """SIGKILL to the learner; its actor holds on, and a learner in this process goes on with it."""
    run, notes = RunDir.create(tmp_path / "run", SHORT), Notes()
    first = process("learner", run, 0, tmp_path / "learner.log")
    while not (run / STATE_FILE).exists() and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, (tmp_path / "learner.log").read_text()
    learner = crew(run, 1, launcher(run, "actor"))
    try:
        result, _ = residual(learner, run, progress=notes)
    finally:
        learner.close()
    assert result.steps >= SHORT.steps and learner.seats[0].lost == 0
    assert learner.seats[0].process is None, "nobody else had to be started"
    with pytest.raises(InputError, match="--actors 1, not 2"):
        two = crew(run, 2)
        two._remember({"places": [["x", 1, 0]]})
