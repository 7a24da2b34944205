"""Actors and learner: what arrives of robots that act at 20 Hz, whether any of it is lost, and what learning has left of the processor.

Robots that are many share processes, as `--actors` and `--num-envs` have them: those of a process tick together and are decided for
at once. All of them are on the learner's machine here; a robot with a machine of its own would cost the learner's nothing but the link.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
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
PROCESSES = 8
"""Processes that act, at most; the robots are shared out among them."""
ROBOTS = (1, 8, 64)
SECONDS, QUICK_SECONDS = 20.0, 6.0
ALONE_UPDATES = 200


class SleepingRobots:
    """Worlds that take a real step's time together and cost nothing else; a `VecEnv`.

    Args:
        num_envs: robots.
    """

    max_episode_steps = EPISODE_STEPS

    def __init__(self, num_envs: int) -> None:
        from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

        self.num_envs = num_envs
        names = tuple(f"joint_{i}" for i in range(ACTION_DIM))
        self.observation_spec = ObservationSpec({"observation.state": TensorSpec(shape=(STATE_DIM,), unit="rad")})
        self.action_spec = ActionSpec(kind="joint_delta", low=(-1.0,) * ACTION_DIM, high=(1.0,) * ACTION_DIM, rate_hz=RATE_HZ, names=names)
        self._age, self._due_s = 0, time.monotonic()
        self.began: tuple[float, float] | None = None
        """Time and CPU time at the first step."""

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """A new episode of all."""
        self._age = 0
        return self._look()

    def _look(self) -> dict[str, Tensor]:
        import torch

        return {"observation.state": torch.full((self.num_envs, STATE_DIM), self._age / EPISODE_STEPS)}

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Sleeps until the next tick."""
        import torch

        self.began = self.began or (time.monotonic(), time.process_time())
        self._due_s = max(self._due_s + 1 / RATE_HZ, time.monotonic())
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        self._age += 1
        ended = torch.full((self.num_envs,), self._age >= EPISODE_STEPS)
        last = self._look()
        obs = self.reset() if self._age >= EPISODE_STEPS else last
        return obs, ended.float(), ended, torch.zeros_like(ended), {"final_observation": last, "success": ended}

    def close(self) -> None:
        """Nothing is open."""


class Standstill:
    """A base that plans not to move; an `Executor`."""

    def reset(self, ids: Any = None, seeds: Any = None) -> None:
        """Nothing is remembered."""

    def plan(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Zeros."""
        return obs["observation.state"].new_zeros(len(obs["observation.state"]), ACTION_DIM)

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
    for robots in ROBOTS:
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
        Row(
            name=f"{name}: updates per CPU second of the learner", unit="1/s", ours=measured["updates_per_cpu_s"],
            peer="the same learner alone", peer_value=alone,
        ),
        Row(
            name=f"{name}: learner without work", unit="% of the time", ours=100 * waited, target="< 1", holds=waited < 0.01,
            higher_is_better=False,
        ),
        Row(name=f"{name}: steps lost", unit="steps", ours=lost, target="0", holds=lost == 0, higher_is_better=False),
        Row(name=f"{name}: processor of the {measured['processes']} processes that act", unit="cores", ours=measured["acting_cores"]),
        Row(name=f"{name}: processor that the learner had", unit="cores", ours=measured["learner_cores"]),
    ]  # fmt: skip


def updates_alone() -> float:
    """Updates per CPU second where nobody acts."""
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
        started = time.process_time()
        for batch in ring.sample(config.batch_size, updates=updates, n_step=config.n_step, generator=generator):
            learner.update(batch)
        return updates / (time.process_time() - started)

    work(50)
    return work(ALONE_UPDATES)


def measure(robots: int, seconds: float) -> dict[str, float]:
    """What a learner gets done while so many robots act, and what becomes of their steps."""
    from rl.crew import ENDPOINT, Crew, CrewConfig
    from sinew.rundir import RunDir

    processes = min(PROCESSES, robots)
    each = robots // processes
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(Path(folder) / "run", {"robots": robots})
        crew = Crew(run, CrewConfig(actors=processes, lead_steps=None), each, SleepingRobots(each).action_spec, None)
        crew.control = watch = Watch(crew, seconds)
        command = [sys.executable, "-m", __name__, str(run / ENDPOINT), str(each)]
        actors = [subprocess.Popen([*command, str(place)], stdout=subprocess.PIPE, text=True) for place in range(processes)]
        try:
            _learn(crew, run)
        finally:
            crew.close()
        told = [json.loads(actor.communicate()[0]) for actor in actors]
    sent, received = each * sum(t["made"] for t in told), each * sum(seat.received for seat in crew.seats)
    acting = sum(t["cpu_s"] / t["acted_s"] for t in told)
    return {**watch.told(), "processes": processes, "acting_cores": acting, "sent": sent, "received": received, "lost": sent - received}


class Watch:
    """Lets a run go on for some seconds, from when all robots are there, and asks to stop then."""

    def __init__(self, crew: Crew, seconds: float) -> None:
        self.crew, self.seconds = crew, seconds
        self.began: tuple[float, ...] | None = None
        self.ended: tuple[float, ...] = ()

    def __call__(self) -> str | None:
        """What a runner asks before it looks at what has arrived."""
        crew = self.crew
        arrived = crew.num_envs * sum(max(0, seat.received) for seat in crew.seats)
        self.ended = (time.perf_counter(), time.process_time(), arrived, crew.updates, crew.waited_s)
        if self.began is None and all(seat.received > RATE_HZ for seat in crew.seats):
            self.began = self.ended
        return "stop" if self.began is not None and self.ended[0] - self.began[0] > self.seconds else None

    def told(self) -> dict[str, float]:
        """Rates between both moments."""
        seconds, cpu_s, steps, updates, waited_s = (b - a for a, b in zip(self.began or self.ended, self.ended, strict=True))
        stale = self.crew.metrics(0, 0)
        return {
            "seconds": seconds,
            "steps_per_s": steps / seconds,
            "updates_per_s": updates / seconds,
            "updates_per_cpu_s": updates / cpu_s,
            "learner_cores": cpu_s / seconds,
            "waited": waited_s / seconds,
            "stale_updates": stale["stale_updates"],
            "stale_steps": stale["stale_steps"],
        }


def main(endpoint: Path, robots: int, place: int) -> None:
    """Robots that one process decides for; prints how many steps each has made, and the time and CPU time from the first on."""
    import torch

    from rl.link import Link
    from rl.outpost import Outbox, Outpost
    from sinew.rundir import RunDir

    torch.set_num_threads(1)
    while not endpoint.exists():
        time.sleep(0.02)
    outbox, worlds = Outbox(), SleepingRobots(robots)
    with Link(outbox, endpoint, place):
        _learn(Outpost(worlds, outbox, place), RunDir(endpoint.parent))
    acted_s, cpu_s = (now - then for now, then in zip((time.monotonic(), time.process_time()), worlds.began or (0.0, 0.0), strict=True))
    told = {"made": outbox.made, "acted_s": acted_s, "cpu_s": cpu_s}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
