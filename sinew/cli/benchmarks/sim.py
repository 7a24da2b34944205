"""The simulator: control steps and pictures per core-second of CPU time, and how often the scripted experts succeed.

A control step is everything a policy pays for: inverse kinematics, physics, observation, success, resets. The worlds are driven
by the clean scripted expert, whose own time is not counted. The peer is plain `mj_step` in a loop, 25 steps of 2 ms per control
step, on the same scene, from the same states and with the same servo targets, physics only. Ours and the peer take turns and
the best of three turns counts for each, since other work on the machine only ever slows one down.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch

import sim
from sim.scene import Scene, mjcf
from sinew.bench import Row
from sinew.cli.benchmarks import sim_scale, sim_warp
from sinew.errors import MissingDependency

WORLDS = 64
PEER_TIMESTEP_S = 0.002
CPU_UNIT = "control steps per core-second"
PEER = "plain mj_step, 2 ms, physics only"
TURNS = 3


def rows(quick: bool, out: Path | None = None) -> list[Row]:
    """Measure.

    Args:
        quick: fewer steps and episodes, under a minute.
        out: folder for runs that learn tasks from nothing, which takes an hour; None to leave that out.
    """
    torch.set_num_threads(1)
    steps = 60 if quick else 200
    tasks = ("lift", "push") if quick else ("lift", *(task for task in sim.TASK_NAMES if task != "lift"))
    found: list[Row] = []
    for task in tasks:
        found += _throughput(task, WORLDS, steps, "3x" if task == "lift" else "")
    found += _throughput("lift", 8, steps, "") + _throughput("lift", 1, 5 * steps, "")
    for cameras in (("front",), ("front", "wrist")):
        found.append(_with_cameras(cameras, 20 if quick else 60))
    for task in sim.TASK_NAMES:
        found.append(_expert(task, 40 if quick else 200))
    return found + sim_warp.rows(quick) + sim_scale.rows(quick, out)


@dataclass
class _Drive:
    """Worlds that follow the clean expert, and what was recorded of them."""

    env: sim.MujocoVecEnv
    expert: sim.Expert
    observation: dict[str, torch.Tensor]

    @classmethod
    def start(cls, task: str, worlds: int, cameras: tuple[str, ...] = ()) -> _Drive:
        env = sim.make_vec(task, worlds, cameras=cameras, num_threads=1)
        drive = cls(env, sim.make_expert(task, num_envs=worlds), env.reset(0))
        for _ in range(10):
            drive.turn(3)  # so that episodes are at different points when measuring begins
            ids = list(range(0, worlds, 10))
            drive.observation = env.reset(None, ids)
            drive.expert.reset(ids, env.seeds[ids].tolist())
        return drive

    def turn(self, steps: int, record: list[tuple[np.ndarray, np.ndarray]] | None = None) -> float:
        """Step on; CPU seconds spent in the environment."""
        spent = 0.0
        for _ in range(steps):
            action = self.expert.act(self.observation)
            before = np.concatenate((self.env.qpos, self.env.qvel), axis=1) if record is not None else np.zeros(0)
            begun = time.process_time()
            self.observation, _, terminated, truncated, _ = self.env.step(action)
            spent += time.process_time() - begun
            if record is not None:
                opening = action[:, [n.endswith("gripper") for n in self.env.action_spec.names]].numpy().astype(np.float64)
                record.append((before, self.env.scene.control(self.env.joint_targets(), opening)))
            ended = (terminated | truncated).nonzero()[:, 0].tolist()
            if ended:
                self.expert.reset(ended, self.env.seeds[ended].tolist())
        return spent


def _peer(scene: Scene, record: list[tuple[np.ndarray, np.ndarray]], count: int) -> float:
    """CPU seconds per control step of plain mj_step over `count` of the recorded states."""
    model = mujoco.MjModel.from_xml_string(mjcf(scene.task, PEER_TIMESTEP_S))  # pyright: ignore[reportAttributeAccessIssue]
    data = mujoco.MjData(model)  # pyright: ignore[reportAttributeAccessIssue]
    substeps = round(1 / (scene.task.rate_hz * PEER_TIMESTEP_S))
    states = np.concatenate([state for state, _ in record])
    controls = np.concatenate([control for _, control in record])
    spent = 0.0
    for i in np.linspace(0, len(states) - 1, count).astype(int):
        data.qpos[:], data.qvel[:], data.ctrl[:] = states[i, : model.nq], states[i, model.nq :], controls[i]
        begun = time.process_time()
        for _ in range(substeps):
            mujoco.mj_step(model, data)  # pyright: ignore[reportAttributeAccessIssue]
        spent += time.process_time() - begun
    return spent / count


def _throughput(task: str, worlds: int, steps: int, target: str) -> list[Row]:
    drive = _Drive.start(task, worlds)
    ours, peer = [], []
    for _ in range(TURNS):
        record: list[tuple[np.ndarray, np.ndarray]] = []
        ours.append(drive.turn(steps, record) / (steps * worlds))
        peer.append(_peer(drive.env.scene, record, min(400, steps * worlds)))
    drive.env.close()
    rate, peer_rate = 1 / min(ours), 1 / min(peer)
    holds = rate >= 3 * peer_rate if target else None
    row = Row(
        name=f"{task}, {worlds} {'worlds' if worlds > 1 else 'world'}", unit=CPU_UNIT, ours=rate, peer=PEER, peer_value=peer_rate,
        target=">= 3x peer" if target else "", holds=holds,
    )  # fmt: skip
    if not target:
        return [row]
    anchor = Row(
        name=f"{task}, {worlds} worlds, against the anchor", unit=CPU_UNIT, ours=rate,
        peer="plain mj_step on an arm scene of this size, measured earlier", peer_value=3700.0, target=">= 11100",
        holds=rate >= 11100,
    )  # fmt: skip
    return [row, anchor]


def _with_cameras(cameras: tuple[str, ...], steps: int) -> Row:
    name = f"lift, 8 worlds, with {len(cameras)} 84x84 camera{'s' if len(cameras) > 1 else ''} ({', '.join(cameras)})"
    target = ">= 700" if len(cameras) == 1 else ""
    try:
        drive = _Drive.start("lift", 8, cameras)
    except MissingDependency as e:
        return Row(name=name, unit="env-steps per core-second", ours=None, peer=str(e), target=target)
    rate = 1 / min(drive.turn(steps) / (8 * steps) for _ in range(TURNS))
    drive.env.close()
    return Row(name=name, unit="env-steps per core-second", ours=rate, target=target, holds=rate >= 700 if target else None)


def _expert(task: str, episodes: int) -> Row:
    env, expert = sim.make_vec(task, episodes), sim.make_expert(task, num_envs=episodes)
    observation = env.reset(0)
    expert.reset(seeds=range(episodes))
    running = torch.ones(episodes, dtype=torch.bool)
    solved = torch.zeros(episodes, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        observation, _, terminated, truncated, _ = env.step(expert.act(observation))
        solved |= running & terminated
        running &= ~(terminated | truncated)
        if not running.any():
            break
    env.close()
    share = float(solved.sum()) / episodes
    return Row(
        name=f"{task}, scripted expert without noise", unit=f"share of {episodes} seeds solved", ours=share, target=">= 0.98",
        holds=share >= 0.98,
    )  # fmt: skip
