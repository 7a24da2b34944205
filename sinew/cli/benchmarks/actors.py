"""Actors and learner: steps and updates per second against the number of robots that act at 20 Hz, and whether any step is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.bench import Row

if TYPE_CHECKING:
    from torch import Tensor

    from rl.crew import Crew
    from rl.residual import ResidualConfig
    from sinew.rundir import RunDir

RATE_HZ = 20.0
STATE_DIM, ACTION_DIM = 32, 7
EPISODE_STEPS = 200
PROCESSES = 2
"""The robots are threads of so many processes: each sleeps almost always."""
ROBOTS, QUICK_ROBOTS = (1, 2, 4, 8, 16, 32, 64), (1, 8, 64)
SECONDS, QUICK_SECONDS = 20.0, 6.0
ALONE_UPDATES = 400


class SleepingRobot:
    """One world that takes a real step's time and costs nothing else; a `VecEnv`."""

    num_envs, max_episode_steps = 1, EPISODE_STEPS

    def __init__(self) -> None:
        from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

        names = tuple(f"joint_{i}" for i in range(ACTION_DIM))
        self.observation_spec = ObservationSpec({"observation.state": TensorSpec(shape=(STATE_DIM,), unit="rad")})
        self.action_spec = ActionSpec(kind="joint_delta", low=(-1.0,) * ACTION_DIM, high=(1.0,) * ACTION_DIM, rate_hz=RATE_HZ, names=names)
        self._age, self._due_s = 0, time.monotonic()

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """A new episode."""
        self._age = 0
        return self._look()

    def _look(self) -> dict[str, Tensor]:
        import torch

        return {"observation.state": torch.full((1, STATE_DIM), self._age / EPISODE_STEPS)}

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Sleeps until the next tick."""
        import torch

        self._due_s = max(self._due_s + 1 / RATE_HZ, time.monotonic())
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        self._age += 1
        ended = torch.tensor([self._age >= EPISODE_STEPS])
        last = self._look()
        obs = self.reset() if bool(ended) else last
        return obs, ended.float(), ended, torch.zeros(1, dtype=torch.bool), {"final_observation": last, "success": ended}

    def close(self) -> None:
        """Nothing is open."""


class Standstill:
    """A base that plans not to move; an `Executor`."""

    def reset(self, ids: Any = None, seeds: Any = None) -> None:
        """Nothing is remembered."""

    def plan(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Zeros."""
        return obs["observation.state"].new_zeros(1, ACTION_DIM)

    act = plan

    def peek(self, obs: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
        """Zeros."""
        return self.plan(obs)


def _config() -> ResidualConfig:
    from rl.residual import ResidualConfig

    huge = 10**9
    return ResidualConfig(
        steps=huge,
        replay_steps=100_000,
        random_steps=64,
        critic_only_updates=0,
        updates_per_step=1e6,
        evaluate_every=huge,
        checkpoint_every=huge,
    )  # fmt: skip


def _learn(source: Any, run: RunDir) -> Any:
    import torch

    from policies.residual import ResidualActor
    from rl.residual import train_residual

    torch.manual_seed(0)
    actor = ResidualActor(STATE_DIM, ACTION_DIM, (256, 256), 0.5)
    executor: Any = Standstill()
    return train_residual(source, executor, actor, lambda obs: obs["observation.state"], run, _config())


def rows(quick: bool) -> list[Row]:
    """One measurement for each number of robots."""
    import torch

    torch.set_num_threads(1)
    alone = updates_alone()
    found = []
    for robots in QUICK_ROBOTS if quick else ROBOTS:
        measured = measure(robots, QUICK_SECONDS if quick else SECONDS)
        found += _rows(robots, measured, alone)
    return found


def _rows(robots: int, measured: Mapping[str, float], alone: float) -> list[Row]:
    name, wanted = f"{robots} robot{'s' if robots > 1 else ''} at {RATE_HZ:g} Hz", robots * RATE_HZ
    steps, waited, lost = measured["steps_per_s"], measured["waited"], measured["lost"]
    detail = dict(measured)
    return [
        Row(
            name=f"{name}: steps at the learner", unit="steps/s", ours=steps, peer="all that were due", peer_value=wanted,
            target=">= 95 %", holds=steps >= 0.95 * wanted, detail=detail,
        ),
        Row(name=f"{name}: updates", unit="updates/s", ours=measured["updates_per_s"], peer="the same learner alone", peer_value=alone),
        Row(
            name=f"{name}: learner without work", unit="% of the time", ours=100 * waited, target="< 1", holds=waited < 0.01,
            higher_is_better=False,
        ),
        Row(name=f"{name}: steps lost", unit="steps", ours=lost, target="0", holds=lost == 0, higher_is_better=False),
    ]  # fmt: skip


def updates_alone() -> float:
    """Updates per second where nobody acts."""
    import torch

    from policies.residual import ResidualActor
    from rl.replay import Ring
    from rl.residual import make_learner

    config, generator = _config(), torch.Generator().manual_seed(0)
    learner = make_learner(ResidualActor(STATE_DIM, ACTION_DIM, (256, 256), 0.5), STATE_DIM, ACTION_DIM, config)
    layout = {"features": ((STATE_DIM,), torch.float32), "base_action": ((ACTION_DIM,), torch.float32)}
    ring, off = Ring(2_000, 1, layout, ACTION_DIM), torch.zeros(1, dtype=torch.bool)
    for _ in range(2_000):
        frame = {k: torch.rand(1, *shape, generator=generator) for k, (shape, _) in layout.items()}
        ring.add(frame, torch.rand(1, ACTION_DIM, generator=generator), torch.zeros(1), off, off)

    def work(updates: int) -> float:
        started = time.perf_counter()
        for batch in ring.sample(config.batch_size, updates=updates, n_step=config.n_step, generator=generator):
            learner.update(batch)
        return updates / (time.perf_counter() - started)

    work(50)
    return work(ALONE_UPDATES)


def measure(robots: int, seconds: float) -> dict[str, float]:
    """What a learner gets done while so many robots act, and what becomes of their steps."""
    from rl.crew import ENDPOINT, Crew, CrewConfig
    from sinew.rundir import RunDir

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(Path(folder) / "run", {"robots": robots})
        crew = Crew(run, CrewConfig(actors=robots, lead_steps=None), 1, SleepingRobot().action_spec, None)
        crew.control = watch = Watch(crew, seconds)
        shares = [list(range(robots))[i::PROCESSES] for i in range(min(PROCESSES, robots))]
        command = [sys.executable, "-m", __name__, str(run / ENDPOINT)]
        processes = [subprocess.Popen([*command, json.dumps(share)], stdout=subprocess.PIPE, text=True) for share in shares]
        try:
            _learn(crew, run)
        finally:
            crew.close()
        sent = sum(sum(json.loads(process.communicate()[0])) for process in processes)
        received = sum(seat.received for seat in crew.seats)
    return {**watch.told(), "sent": sent, "received": received, "lost": sent - received}


class Watch:
    """Lets a run go on for some seconds, from when all robots are there, and asks to stop then."""

    def __init__(self, crew: Crew, seconds: float) -> None:
        self.crew, self.seconds = crew, seconds
        self.began: tuple[float, ...] | None = None
        self.ended: tuple[float, ...] = ()

    def __call__(self) -> str | None:
        """What a runner asks before it looks at what has arrived."""
        crew = self.crew
        self.ended = (time.perf_counter(), crew.received_steps, crew.updates, crew.waited_s)
        if self.began is None and all(seat.received > RATE_HZ for seat in crew.seats):
            self.began = self.ended
        return "stop" if self.began is not None and self.ended[0] - self.began[0] > self.seconds else None

    def told(self) -> dict[str, float]:
        """Rates between both moments."""
        seconds, steps, updates, waited_s = (b - a for a, b in zip(self.began or self.ended, self.ended, strict=True))
        stale = self.crew.metrics(0, 0)
        return {
            "seconds": seconds,
            "steps_per_s": steps / seconds,
            "updates_per_s": updates / seconds,
            "waited": waited_s / seconds,
            "stale_updates": stale["stale_updates"],
            "stale_steps": stale["stale_steps"],
        }


def main(endpoint: Path, places: Sequence[int]) -> None:
    """Robots as threads of this process; prints how many steps each has made."""
    import torch

    from rl.link import Link
    from rl.outpost import Outbox, Outpost
    from sinew.rundir import RunDir

    torch.set_num_threads(1)
    while not endpoint.exists():
        time.sleep(0.02)
    outboxes = {place: Outbox() for place in places}

    def act(place: int) -> None:
        with Link(outboxes[place], endpoint, place):
            _learn(Outpost(SleepingRobot(), outboxes[place], place), RunDir(endpoint.parent))

    threads = [threading.Thread(target=act, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([outboxes[place].made for place in places]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
