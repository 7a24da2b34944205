"""Demonstrations of the scripted expert on a robot of the network: through the control loop and its gate, recorded as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sinew.cli.scenes import first_scene
from sinew.errors import SafetyStop
from sinew.progress import Progress
from sinew.specs import PolicySpec

if TYPE_CHECKING:
    from torch import Tensor

    from robot_bridge.recording import DatasetRecorder
    from sim import TaskInterface
    from sinew.calibrations import Calibration
    from sinew.protocols import Executor


class ExpertExecutor:
    """The scripted expert of a task where a policy's executor is expected."""

    def __init__(self, interface: TaskInterface, task: str, quality: str) -> None:
        import sim

        self._expert = sim.make_expert(task, quality, 1)
        self._action = interface.action_spec
        self.spec = PolicySpec(observation=interface.observation_spec, action=interface.action_spec, horizon=1)

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """An episode begins; its seed fixes what the expert does by chance."""
        self._expert.reset([0], list(seeds or [0]))

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The next action (1, A) in [-1, 1]."""
        import torch

        action = torch.as_tensor(np.asarray(self._expert.act(obs)), dtype=torch.float32)
        return self._action.normalize(action).clip(-1, 1)


def collect(
    args: Any, interface: TaskInterface, settings: Mapping[str, Any], progress: Progress, calibration: Calibration | None = None
) -> None:
    """Record the episodes that are still missing on a robot with a scene, as `sinew robot` serves one.

    Args:
        args: of `sinew collect`.
        interface: its task.
        settings: kept with the dataset.
        progress: told of every episode.
        calibration: where the cameras are; None where nobody tells.

    Raises:
        InputError: no robot answers, or the dataset cannot be written.
        SpecError: the folder holds another collection.
        SafetyStop: the gate stopped the robot; what was recorded is kept.
    """
    from robot_bridge.recording import DatasetRecorder
    from sinew.cli.recording_watch import shown

    with (
        DatasetRecorder(Path(args.out), interface, about=settings, calibration=calibration, tell=progress.note) as recorder,
        shown(recorder, progress),
    ):
        first = first_scene("demonstrations", args.seed)
        seeds = [first + i for i in range(recorder.episodes, args.episodes)]
        if seeds:
            _play(args, interface, seeds, recorder, progress, calibration)


def _play(
    args: Any,
    interface: TaskInterface,
    seeds: Sequence[int],
    recorder: DatasetRecorder,
    progress: Progress,
    calibration: Calibration | None,
) -> None:
    import robot_bridge
    from robot_bridge.deploy import deploy
    from sinew.cli.calibrated import look
    from sinew.cli.recording_watch import before

    episode_s = interface.max_episode_steps / interface.action_spec.rate_hz
    robot = robot_bridge.DdsRobot(
        interface.robot_spec, objects=interface.objects, cameras=interface.cameras, domain=args.domain, reach=args.reach,
        transport=args.robot,
    )  # fmt: skip
    try:
        executor = cast("Executor", ExpertExecutor(interface, args.task, args.quality))
        report = deploy(
            executor, interface, robot, seeds=seeds, scene=robot_bridge.DdsScene(robot), record=recorder, progress=progress,
            look=before(recorder, episode_s, look(args.calibration, calibration, interface, robot, None)), ended=lambda: recorder.changed,
        )  # fmt: skip
    finally:
        robot.close()
    if report.stopped:
        done = len(report.episodes)
        raise SafetyStop(f"the robot was stopped after {done} of {len(seeds)} episodes ({report.why}); the same command goes on")
