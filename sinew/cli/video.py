"""Episodes as mp4 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from policies import PolicyModule
    from sim import Randomisation, TaskInterface

HEIGHT, WIDTH = 240, 320
HOLD_FRAMES = 10
"""The last picture stays this long, so that the end can be seen before the film loops."""


def film(
    policy: PolicyModule,
    interface: TaskInterface,
    seeds: Sequence[int],
    folder: Path,
    options: dict[str, Any],
    progress: Progress = SILENT,
    randomisation: Randomisation | None = None,
) -> list[str]:
    """Play one episode per seed and write <seed>-success.mp4 or <seed>-failure.mp4.

    Args:
        policy: the policy.
        interface: the task as the policy sees it.
        seeds: one episode each.
        folder: where the files go.
        options: arguments of `ChunkExecutor`.
        progress: told of every film, and why there is none.
        randomisation: what every episode draws anew.

    Returns:
        Names of the files; none where this machine cannot render.
    """
    from sinew.errors import MissingDependency

    names = []
    progress.start("film", len(seeds))
    for seed in seeds:
        try:
            success, frames = _play(policy, interface, seed, options, randomisation)
        except MissingDependency as e:
            progress.note(f"no videos: {e}")
            return names
        name = f"{seed}-{'success' if success else 'failure'}.mp4"
        write_mp4(folder / name, frames, interface.action_spec.rate_hz)
        names.append(name)
        progress.advance(1)
    return names


def _play(
    policy: PolicyModule, interface: TaskInterface, seed: int, options: dict[str, Any], randomisation: Randomisation | None
) -> tuple[bool, list[np.ndarray]]:
    import sim
    from policies.evaluate import evaluate

    env = sim.MujocoVecEnv(interface, 1, randomisation=randomisation)
    frames: list[np.ndarray] = []
    try:
        outcome = evaluate(
            policy,
            env,
            [seed],
            executor_kwargs={"instruction": interface.task_text, **options},
            on_frame=lambda *_: frames.append(sim.render_frame(env, 0, "front", HEIGHT, WIDTH)),
        )
    finally:
        env.close()
    # The world has begun its next episode when the last observation is told: that frame is another scene's.
    return outcome.success[0], frames[:-1] + HOLD_FRAMES * frames[-2:-1]


def write_mp4(path: Path, frames: Sequence[np.ndarray], rate_hz: float) -> None:
    """Write frames (height, width, 3) uint8 as H.264 that every browser plays."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=round(rate_hz))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
