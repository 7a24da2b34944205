"""What a generated reward costs: a step of all worlds in the confined process, beside the same code in this one, world by world."""

from __future__ import annotations

import inspect
import resource
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from sinew.bench import Row

WORLDS = 256


def potential(now: Any) -> Any:
    """As a model writes it for `lift`."""
    d = np.linalg.norm(now.cube - now.tool)
    reach = 1 - np.tanh(d / 0.1)
    if d < 0.03 and now.gripper < 0.05:
        grasp = 1.0
    else:
        grasp = 0.0
    lift = np.clip((now.cube[2] - 0.03) / 0.1, 0, 1)
    return 0.3 * reach + 0.2 * grasp + 0.5 * lift, {"reach": reach, "grasp": grasp, "lift": lift}


CODE = inspect.getsource(potential).replace(": Any", "").replace(" -> Any", "")


def rows(quick: bool) -> list[Row]:
    """Cost of a step, of a start, and the share of a step of the worlds."""
    import torch

    import sim
    from rewards.files import Situation
    from rewards.generated.reward import GeneratedReward, GeneratedSettings

    env = sim.make_vec("lift", WORLDS, seed=0)
    interface = sim.make_interface("lift")
    told: dict[str, Any] = {"observation": interface.observation_spec, "action": interface.action_spec, "gamma": 0.99}
    started = time.monotonic()
    reward = GeneratedReward(GeneratedSettings(source=CODE), Situation(**told, num_envs=WORLDS, max_episode_steps=60))
    start_ms = 1e3 * (time.monotonic() - started)
    before = env.reset(0)
    action = torch.zeros(WORLDS, 4)
    stepped = []
    for _ in range(3 if quick else 20):
        begun = time.monotonic()
        after, _, terminated, _, info = env.step(action)
        stepped.append(time.monotonic() - begun)
    step = {**before, **{f"next.{k}": v for k, v in after.items()}, "success": info["success"], "terminated": terminated}
    walls, cpu_ms, worker_ms = _timed(reward, step, 300 if quick else 3000)
    by_world_ms = 1e3 * _by_world(step, 2 if quick else 10)
    env.close()
    reward.close()
    median, worst = (1e3 * float(np.quantile(walls, q)) for q in (0.5, 0.99))
    share = median / (1e3 * float(np.median(stepped)))
    return [
        Row(
            name=f"generated: a step of {WORLDS} worlds, both states, median", unit="ms", ours=round(median, 4), higher_is_better=False,
            peer="the same code in this process, world by world, unconfined", peer_value=round(by_world_ms, 3), target="< 1 ms",
            holds=median < 1, detail={"p10_ms": 1e3 * float(np.quantile(walls, 0.1)), "held": list(reward.sandbox.held)},
        ),
        Row(name="generated: the same, 99 %", unit="ms", ours=round(worst, 4), higher_is_better=False),
        Row(
            name="generated: processor time of a step, both processes", unit="ms", ours=round(cpu_ms + worker_ms, 4),
            higher_is_better=False, detail={"here": cpu_ms, "there": worker_ms},
        ),
        Row(
            name=f"generated: share of a step of {WORLDS} worlds of lift", unit="%", ours=round(100 * share, 2), target="<= 5 %",
            holds=share <= 0.05, higher_is_better=False,
        ),
        Row(name="generated: start of a confined process, code checked", unit="ms", ours=round(start_ms, 1), higher_is_better=False),
    ]  # fmt: skip


def _timed(reward: Any, step: dict[str, Any], times: int) -> tuple[np.ndarray, float, float]:
    """Wall time of each step in seconds; processor time in milliseconds per step of this process and of the confined one."""
    for _ in range(20):
        reward.reward(step, {})
    walls = np.empty(times)
    clock = (~reward.sandbox._process.pid << 3) | 2  # the processor clock of another process, clock_getcpuclockid(3)
    there, here = time.clock_gettime(clock), resource.getrusage(resource.RUSAGE_SELF)
    for i in range(times):
        begun = time.perf_counter()
        reward.reward(step, {})
        walls[i] = time.perf_counter() - begun
    done = resource.getrusage(resource.RUSAGE_SELF)
    spent = done.ru_utime + done.ru_stime - here.ru_utime - here.ru_stime
    return walls, 1e3 * spent / times, 1e3 * (time.clock_gettime(clock) - there) / times


def _by_world(step: dict[str, Any], times: int) -> float:
    """Seconds that Python itself takes for all worlds and both states; the code is our own."""
    import sim
    from rewards.generated.fields import fields_of

    fields = fields_of(sim.make_interface("lift").observation_spec)
    read = {
        prefix + name: step[prefix + field.key][:, list(field.columns)].numpy()
        for prefix in ("", "next.") for name, field in fields.items() if name in ("cube", "tool", "gripper")
    }  # fmt: skip
    begun = time.perf_counter()
    for _ in range(times):
        for prefix in ("", "next."):
            for world in range(WORLDS):
                now = SimpleNamespace(
                    cube=read[f"{prefix}cube"][world], tool=read[f"{prefix}tool"][world], gripper=read[f"{prefix}gripper"][world, 0]
                )
                potential(now)
    return (time.perf_counter() - begun) / times
