"""One robot as an environment to learn in: real time, a person who may take over, and the safety gate in the path.

`step` hands the action to the control loop at once and comes back with the next measurement one policy period later. Nothing
that takes long may be done between two steps: updates are made between episodes, while the robot stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robot_bridge.attended import AttendedRobot
from robot_bridge.scene import Scene
from sim.seeds import next_seed
from sinew.specs import ActionSpec, ObservationSpec

Restore = Callable[[int], object]
"""(seed of the next episode): brings the scene back."""
Detect = Callable[[Mapping[str, Tensor], int], bool]
"""({key: (1, ...)}, step of the episode from 1 on) → whether the task is done. Called in a tick: it must be quick."""


class LearningEnv:
    """A `sinew.protocols.VecEnv` of one world on a robot.

    `info` also has "executed_action" (1, A) and "source" (1,) bits of who chose it, and "interrupted" (1,) bool: time has passed
    that is not the episode's, so what was planned before is old.

    Args:
        arm: the robot and the person beside it; closed with this.
        scene: sets episodes up and tells success; None where the person does both.
        restore: brings the scene back before every episode; the scene's own reset, or else the person, if left out.
        max_steps: policy periods per episode; the task's own if left out.
        detect: tells success in place of the scene; a person's word holds over it.
    """

    num_envs = 1

    def __init__(
        self, arm: AttendedRobot, scene: Scene | None = None, *, restore: Restore | None = None, max_steps: int | None = None,
        detect: Detect | None = None,
    ) -> None:  # fmt: skip
        self.arm, self.scene, self.restore, self.detect = arm, scene, restore, detect
        self.max_episode_steps = max_steps or arm.interface.max_episode_steps

    @property
    def observation_spec(self) -> ObservationSpec:
        """What `reset` and `step` return."""
        return self.arm.wanted

    @property
    def action_spec(self) -> ActionSpec:
        """What `step` takes."""
        return self.arm.interface.action_spec

    def control(self) -> str | None:
        """Gives "stop" once that was asked for; pauses and resets are seen to here."""
        return "stop" if self.arm.stopped else None

    def close(self) -> None:
        """Bring the robot to rest."""
        self.arm.close()

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Start a new episode; the robot stands when this returns. One without a step stays, unless its seed says how it begins."""
        arm = self.arm
        seeds = [seed] if isinstance(seed, int) else list(seed or ())
        if arm.playing and not arm.step and (self.scene is None or self.restore is not None):
            arm.measure_all()
            return arm.tensors()
        self._begin(int(seeds[0]) if seeds else next_seed(arm.seed))
        return arm.tensors()

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """One policy period of action (1, A); see `sinew.protocols.VecEnv`.

        Raises:
            SafetyStop: the robot holds, and nobody is there to let it go on.
        """
        arm = self.arm
        executed, source = arm.tick(np.asarray(action.detach().cpu(), dtype=np.float64)[0])
        arm.step += 1
        asked, arm.asked = arm.asked, None
        solved = asked == "success" or (asked != "failure" and self._done())
        terminated = solved or asked == "failure"
        truncated = not terminated and (arm.step >= self.max_episode_steps or asked == "reset")
        info = {
            "final_observation": arm.tensors(),
            "episode_length": torch.tensor([arm.step]),
            "executed_action": torch.from_numpy(executed[None]).float(),
            "source": torch.tensor([source], dtype=torch.uint8),
            "interrupted": torch.tensor([arm.interrupted]),
        }
        arm.interrupted = False
        if terminated or truncated:
            said = self._begin(next_seed(arm.seed))
            if said is not None:  # of the episode that is over, while the scene was set up again
                solved = said == "last_success"
                terminated, truncated = solved or asked == "failure", not solved and asked != "failure"
        info["success"] = torch.tensor([solved])
        return arm.tensors(), torch.tensor([float(solved)]), torch.tensor([terminated]), torch.tensor([truncated]), info

    def _done(self) -> bool:
        """Whether the task is solved, as far as nobody has to say so."""
        if self.detect is not None:
            return self.detect(self.arm.tensors(), self.arm.step)
        return self.scene is not None and bool(self.scene.success())

    def _begin(self, seed: int) -> str | None:
        """Bring the scene back and look at it; gives what the person said of the last episode meanwhile."""
        arm = self.arm
        arm.playing, arm.asked = False, None
        arm.rest()
        if self.restore is not None:
            self.restore(seed)
        elif self.scene is not None:
            self.scene.reset(seed)
        elif arm.takeover is not None:
            arm.ask("set the scene up again, and say whether the last episode was a success")
        said, arm.asked = arm.asked, None
        arm.measure_all()
        arm.begin(seed)
        return said
