"""MuJoCo Warp beside MuJoCo: how far its states and outcomes are from ours, what a step costs, and, on a GPU, how it grows with the worlds.

Both backends get the same initial states and the same actions. Outcomes are those of the imperfect scripted expert, which sees each
backend's own observations and so closes the loop through it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

import sim
from sinew.bench import Row
from sinew.cli.benchmarks import sim_roofline
from sinew.errors import SinewError
from sinew.stats import paired

WORLDS_CPU, WORLDS_GPU = (1, 16, 64, 256, 1_024, 4_096), tuple(4**k for k in range(8))
MOST = 8_192
"""Worlds that speed is wanted of."""
STEPS_PER_S = 2.5e6
"""Physics steps per second wanted of lift with contacts: what MuJoCo Warp's own bench reports for aloha_pot on an RTX 6000 Ada."""
FRAMES_PER_S = 85e3
"""Frames per second wanted with pictures of 64 x 64: what Isaac Lab's lift with cameras reports on an RTX 5090."""
SECOND_TOLERANCE = 1e-2
"""Largest difference of any element of an observation after one second, the grasp included."""
COMMAND = "sinew bench sim, on a machine with an NVIDIA GPU"


def rows(quick: bool) -> list[Row]:
    """Agreement and cost on the CPU, and scaling on a GPU where there is one."""
    try:
        _worlds("lift", 1, "cpu").close()
    except SinewError as e:
        return [Row(name="MuJoCo Warp", unit="", ours=None, peer=str(e))]
    tasks = ("lift",) if quick else ("lift", "peg", "handover", "drawer")
    found = [_agreement(task) for task in tasks]
    found += [_outcomes("lift", 50 if quick else 1_000)]
    many = WORLDS_CPU[:2] if quick else WORLDS_CPU
    found += [_cost("lift", worlds, "cpu", 5 if quick else min(20, 8_192 // worlds)) for worlds in many]
    return found + (_gpu() if torch.cuda.is_available() else _not_measured())


def counted(worlds: int) -> str:
    """In words."""
    return f"{worlds:,} world{'s' * (worlds > 1)}"


def _worlds(task: str, num_envs: int, device: str, backend: str = "warp", cameras: Sequence[str] = (), size: int = 64) -> Any:
    return sim.worlds(sim.make_interface(task, cameras=cameras, image_size=size), num_envs, 0, backend, device)


def _agreement(task: str) -> Row:
    """Both follow the actions that the expert gives in ours, for a second."""
    envs = [_worlds(task, 16, "cpu", backend) for backend in ("mujoco", "warp")]
    expert = sim.make_expert(task, num_envs=16)
    seen = [env.reset(range(16)) for env in envs]
    expert.reset(seeds=range(16))
    largest = 0.0
    for _ in range(20):
        action = expert.act(seen[0]).float()
        seen = [env.step(action)[4]["final_observation"] for env in envs]
        largest = max(largest, *(float((seen[0][key] - seen[1][key]).abs().max()) for key in seen[0]))
    return Row(
        name=f"{task}: largest difference of an observation within 1 s, 16 worlds, same actions", unit="SI units", ours=largest,
        peer="MuJoCo on the CPU, double precision", target=f"<= {SECOND_TOLERANCE:g}", holds=largest <= SECOND_TOLERANCE,
        higher_is_better=False,
    )  # fmt: skip


def _outcomes(task: str, episodes: int) -> Row:
    """The same scenes played by the same imperfect expert in both."""
    ours, theirs = (_played(task, episodes, backend) for backend in ("mujoco", "warp"))
    told = paired(ours, theirs)
    return Row(
        name=f"{task}: expert of human quality, {episodes} scenes; {told['wins']} solved only in Warp, {told['losses']} only in ours",
        unit="% solved in Warp", ours=100 * sum(theirs) / episodes, peer="MuJoCo on the CPU", peer_value=100 * sum(ours) / episodes,
        target="the same: p > 0.05", holds=told["p"] > 0.05, detail={"paired": told},
    )  # fmt: skip


def _played(task: str, episodes: int, backend: str) -> list[bool]:
    env, expert = _worlds(task, episodes, "cpu", backend), sim.make_expert(task, "human", episodes)
    seen = env.reset(range(episodes))
    expert.reset(seeds=range(episodes))
    running, solved = torch.ones(episodes, dtype=torch.bool), torch.zeros(episodes, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        seen, _, terminated, truncated, _ = env.step(expert.act(seen).float())
        solved |= running & terminated
        running &= ~(terminated | truncated)
        if not running.any():
            break
    env.close()
    return solved.tolist()


def _cost(task: str, worlds: int, device: str, steps: int, cameras: Sequence[str] = ()) -> Row:
    """Control steps per second with still actions, resets included, after the kernels were compiled."""
    cuda = device != "cpu"
    free = torch.cuda.mem_get_info()[0] if cuda else 0
    env = _worlds(task, worlds, device, cameras=cameras)
    action = torch.as_tensor(env.action_spec.low).add(torch.as_tensor(env.action_spec.high)).div(2).float().to(device).repeat(worlds, 1)
    for _ in range(3):
        env.step(action)
    clock = time.perf_counter if cuda else time.process_time
    begun = clock()
    for _ in range(steps):
        env.step(action)
    if cuda:
        torch.cuda.synchronize()
    rate = worlds * steps / (clock() - begun)
    physics = rate * env.scene.substeps
    held = free - torch.cuda.mem_get_info()[0] if cuda else sim_roofline.held(env.physics.data)
    work = sim_roofline.work_of(env.physics)
    env.close()
    seen = ", one camera of 64 x 64" if cameras else ""
    told = f"{physics:,.0f} physics steps{'/s' if cuda else ' per core-second'}"
    wanted = cuda and worlds >= 4_096
    target = "" if not wanted else (f">= {FRAMES_PER_S:g}" if cameras else f">= {STEPS_PER_S / env.scene.substeps:g}")
    return Row(
        name=f"{task}, Warp on {device}, {counted(worlds)}{seen}: {told}, {held / worlds / 1024:,.0f} KiB a world",
        unit="control steps per second" if cuda else "control steps per core-second", ours=rate, target=target,
        holds=rate >= float(target.split()[1]) if target else None,
        detail={"physics_steps_per_s": physics, "bytes_a_world": held / worlds, "work": asdict(work)},
    )  # fmt: skip


def _gpu() -> list[Row]:
    found = [_cost("lift", worlds, "cuda", 100) for worlds in (*WORLDS_GPU, MOST)]
    return [*found, _cost("lift", 4_096, "cuda", 50, ("front",)), *_roofline(found[-1])]


def _roofline(row: Row) -> list[Row]:
    """What share of the device the physics of a row of `_cost` used."""
    told = dict(row.detail or {})
    work, name = sim_roofline.Work(**told["work"]), f"lift, Warp on cuda, {MOST:,} worlds, of the roofline"
    return sim_roofline.rows(name, work, told["physics_steps_per_s"], "cuda")


def _not_measured() -> list[Row]:
    why = f"not measured: no GPU here; {COMMAND}"
    wanted = (
        ("8,192 worlds, physics steps/s", f">= {STEPS_PER_S:g}"),
        ("4,096 worlds with 64 x 64 pictures, frames/s", f">= {FRAMES_PER_S:g}"),
        ("8,192 worlds: shares of memory bandwidth and of arithmetic", ""),
        ("1 to 16,384 worlds: control steps/s and memory a world", ""),
    )
    return [Row(name=f"lift, Warp on an H100, {what}", unit="", ours=None, peer=why, target=goal) for what, goal in wanted]
