"""Episodes that something acts in a task, recorded as a dataset: rollouts of a policy, or an expert of any style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from sim import GymnasiumTask, TaskInterface
    from sinew.protocols import Executor, VecEnv

TOGETHER = 32
"""Episodes side by side; what is recorded does not depend on it."""


class Player(Protocol):
    """Who acts in some worlds at once."""

    def reset(self, ids: Sequence[int], seeds: Sequence[int]) -> None:
        """New episodes begin in worlds `ids`; `seeds` fix what is random in the player."""
        ...

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Actions (N, A) in physical units."""
        ...


class PolicyPlayer:
    """A policy behind an executor as a player."""

    def __init__(self, executor: Executor, interface: TaskInterface | GymnasiumTask) -> None:
        self.executor, self.spec = executor, interface.action_spec

    def reset(self, ids: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Player.reset`."""
        self.executor.reset(ids, seeds)

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """See `Player.act`."""
        return self.spec.denormalize(self.executor.act(obs).float())


def record(
    root: Path,
    interface: TaskInterface | GymnasiumTask,
    keys: Sequence[str],
    seeds: Sequence[int],
    worlds: Callable[[int], VecEnv],
    player: Callable[[int], Player],
    progress: Progress = SILENT,
) -> None:
    """Record the episodes of `seeds` that are still missing; how an interrupted recording goes on.

    Args:
        root: folder of the dataset.
        interface: task.
        keys: observations that are recorded.
        seeds: of scenes and player, one for each episode.
        worlds: number → that many worlds.
        player: number → who acts in that many worlds.
        progress: told every episode.

    Raises:
        InputError: the folder holds more episodes than there are seeds.
    """
    import sim
    from demos import Writer
    from sinew.specs import ObservationSpec

    if (root / "meta/info.json").exists():
        writer = Writer.resume(root, task=interface.task_text, keep_interrupted=False)
    else:
        writer = Writer.create(
            root,
            fps=round(interface.action_spec.rate_hz),
            observation_spec=ObservationSpec({key: interface.observation_spec[key] for key in keys}),
            action_spec=interface.action_spec,
            robot_type=interface.world if isinstance(interface, sim.GymnasiumTask) else interface.robot_spec.name,
            task=interface.task_text,
        )
    period_ns = 1e9 / interface.action_spec.rate_hz
    with writer:
        if writer.num_episodes > len(seeds):
            raise InputError(f"{root} holds {writer.num_episodes} episodes, more than the {len(seeds)} that belong there; remove it")
        progress.start("record", len(seeds), writer.num_episodes)
        while writer.num_episodes < len(seeds):
            due = seeds[writer.num_episodes : writer.num_episodes + TOGETHER]
            for frames, success in _wave(worlds(len(due)), player(len(due)), keys, due):
                for step, frame in enumerate(frames):
                    writer.add_frame(frame, stamp_ns=round(step * period_ns))
                writer.save_episode(success=success)
                progress.advance(1)


def _wave(env: VecEnv, player: Player, keys: Sequence[str], seeds: Sequence[int]) -> list[tuple[list[dict[str, Any]], bool]]:
    """Frames and success of episodes played side by side, in the order of their seeds."""
    try:
        obs, n = env.reset(list(seeds)), len(seeds)
        player.reset(list(range(n)), list(seeds))
        frames: list[list[dict[str, Any]]] = [[] for _ in range(n)]
        success, live = [False] * n, set(range(n))
        while live:
            action = player.act(obs)
            for i in live:
                frames[i].append({**{k: obs[k][i].numpy().copy() for k in keys}, "action": action[i].numpy().copy()})
            obs, _, terminated, truncated, info = env.step(action)
            for i in [i for i in live if terminated[i] or truncated[i]]:
                success[i] = bool(info["success"][i])
                live.remove(i)
        return list(zip(frames, success, strict=True))
    finally:
        env.close()
