"""Play recorded episodes again on the simulated robot: does what was recorded still do what it did?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from sinew.cli.data_edit import Common, numbers
from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

HEIGHT, WIDTH = 240, 320


@dataclass(frozen=True, kw_only=True)
class Replay(Common):
    """Put the simulated world where an episode began, execute its actions, and tell how far it strays from what was recorded."""

    dir: Annotated[Path, tyro.conf.Positional]
    """Dataset, of a simulated task or of a robot that has one."""
    episodes: str = "0"
    """Episodes, such as 0-9,12."""
    task: str | None = None
    """Simulated task; the one that the dataset was collected on if left out."""
    videos: Path | None = None
    """Folder for a film of each episode."""


def replay(args: Replay) -> dict[str, Any]:
    """Play the episodes.

    Raises:
        InputError: no such episode, or nobody says which task it is.
        SpecError: the dataset does not record what the task observes and takes.
    """
    import sim
    from demos import Dataset
    from sim.replay import replay as replay_episode
    from sinew.cli.collect import task_of_dataset
    from sinew.cli.console_progress import ConsoleProgress
    from sinew.cli.video import write_mp4
    from sinew.specs import ENVIRONMENT_STATE, STATE, check_action_join, check_observation_join

    data = Dataset(args.dir)
    chosen = numbers(args.episodes, data.num_episodes, "--episodes")
    task = args.task or task_of_dataset(args.dir)
    if task is None or task.startswith("gym:"):
        raise InputError(f"{args.dir} was collected {f'on {task}' if task else 'elsewhere'}: give the simulated task with --task")
    interface = sim.make_interface(task, action="ee_delta" if data.action_spec.kind == "ee_delta" else "joint_position")
    check_observation_join(str(args.dir), data.observation_spec, f"task {task}", interface.observation_spec)
    check_action_join(str(args.dir), data.action_spec, f"task {task}", interface.action_spec)
    env, rows = sim.MujocoVecEnv(interface, 1), []
    try:
        with ConsoleProgress() as progress:
            progress.start("replay", len(chosen))
            for number in chosen:
                episode = data.episode(number)
                frames = slice(episode.start, episode.start + episode.length)
                seen = {key: data.column(key)[frames] for key in (STATE, ENVIRONMENT_STATE) if key in interface.observation_spec}
                film: list[np.ndarray] = []
                watch = (lambda film=film: film.append(env.render("front", HEIGHT, WIDTH)[0])) if args.videos else lambda: None
                again = replay_episode(env, seen, data.column("action")[frames], watch)
                rows.append(
                    {
                        "episode": number, "frames": episode.length, "recorded": episode.success, "replayed": again.success,
                        "tool_max_m": float(again.tool_m.max(initial=0.0)), "objects_max_m": float(again.objects_m.max(initial=0.0)),
                    }
                )  # fmt: skip
                if args.videos:
                    write_mp4(args.videos / f"episode-{number:06d}.mp4", film, interface.action_spec.rate_hz)
                progress.advance()
    finally:
        env.close()
    told = [row for row in rows if row["recorded"] is not None]
    return {"action": "replay", "task": task, "rows": rows, "agree": sum(r["recorded"] == r["replayed"] for r in told), "of": len(told)}


def show(result: dict[str, Any], console: Console) -> None:
    """A line for each episode, and how many ended as they had."""
    words = {True: "success", False: "failure", None: "unknown"}
    for row in result["rows"]:
        strayed = f"tool at most {1e3 * row['tool_max_m']:.1f} mm, objects {1e3 * row['objects_max_m']:.1f} mm away"
        line = f"episode {row['episode']}: {words[row['recorded']]} recorded, {words[row['replayed']]} now; {strayed}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{result['agree']} of {result['of']} end as they were recorded", highlight=False)
