"""From what a person gives to the policy's action: the same frame, the same units, the same elements.

What is remembered of a person's step must be the action that the policy would have had to choose to do the same. A motion given
along the tool's axes and stored as it was, where the policy's actions are along the world's, teaches the wrong thing and looks
right in every log.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_bridge.takeover import Given
from sinew.errors import InputError
from sinew.specs import ActionSpec

KINDS = ("ee_delta", "joint_position")


class ActionSpace:
    """Turns what is given into actions of a task.

    Args:
        interface: the task, with `action_spec`, `chains` and, for joint actions, the `scene` that a tool servo is made of.

    Raises:
        InputError: a person's motion cannot be put into such actions.
    """

    def __init__(self, interface: Any) -> None:
        spec: ActionSpec = interface.action_spec
        if spec.kind not in KINDS:
            raise InputError(f"a person can take over from policies that act in {' or '.join(KINDS)}, this one acts in {spec.kind}")
        self.spec, self.chains = spec, interface.chains
        self.low, self.high = np.array(spec.low), np.array(spec.high)
        self.grippers = [i for i, name in enumerate(spec.names) if name.endswith("gripper")]
        self._tool = None if spec.kind == "ee_delta" else _tool_interface(interface)
        self._motions = spec if self._tool is None else self._tool.action_spec
        self._servo = None if self._tool is None else self._tool.decoder(1)
        self._servoing = False
        self.openings = np.zeros(len(self.grippers))
        """(G,) metres, as they were commanded last."""

    def reset(self, gripper: np.ndarray) -> None:
        """An episode begins with grippers (G,) this far open, metres."""
        self._servoing = False
        self.openings = np.array(np.atleast_1d(gripper)[: len(self.grippers)], dtype=float)

    def executed(self, action: np.ndarray, by_person: bool) -> None:
        """Action (A,) is what was executed."""
        self.openings = np.asarray(action, dtype=float)[self.grippers]
        self._servoing = self._servoing and by_person

    def hold(self, joint_position: np.ndarray) -> np.ndarray:
        """The action (A,) that stays where the robot is."""
        return self.action(Given((0.0,) * 6), joint_position)

    def action(self, given: Given, joint_position: np.ndarray) -> np.ndarray:
        """What is given, as an action (A,) in physical units within the bounds.

        Args:
            given: a motion, or an action as it is.
            joint_position: (J,) rad, measured: where the tool's axes point.

        Raises:
            InputError: an action of another width or a value that is not finite.
        """
        values = np.asarray(given.values, dtype=float)
        wanted = len(self.low) if given.frame == "action" else 6
        if values.shape != (wanted,) or not np.isfinite(values).all():
            raise InputError(f"taking over in frame {given.frame!r} needs {wanted} finite values, given {given.values}")
        if given.frame == "action":
            return np.clip(values, self.low, self.high)
        motion = self._motion(given, values, np.asarray(joint_position, dtype=float))
        if self._servo is None:
            return motion
        if not self._servoing:
            self._servo.reset(joint_position[None])
            self._servoing = True
        joints, openings = self._servo.decode(motion[None], np.asarray(joint_position, dtype=float)[None])
        return np.clip(np.concatenate((joints[0], np.atleast_1d(openings[0]) if self.grippers else ())), self.low, self.high)

    def _motion(self, given: Given, values: np.ndarray, joint_position: np.ndarray) -> np.ndarray:
        """Displacements of all tools along the world's axes, with openings: an ee_delta action."""
        spec, arms = self._motions, len(self.chains)
        high, low = np.array(spec.high), np.array(spec.low)
        width = spec.dim // arms
        linear, angular = values[:3], values[3:]
        if given.frame == "tool":
            joints = np.split(joint_position, arms)[given.arm]
            rotation = self.chains[given.arm].forward(joints[None]).rotation[..., 0]  # tool axes in the world, as columns
            linear, angular = rotation @ linear, rotation @ angular
        motion, at = np.zeros(spec.dim), given.arm * width
        motion[at : at + 3] = linear * high[at]
        turns = [i for i, name in enumerate(spec.names) if name.endswith("dyaw") and at <= i < at + width]
        motion[turns] = angular[2] * high[turns]
        grippers = [i for i, name in enumerate(spec.names) if name.endswith("gripper")]
        motion[grippers] = self.openings
        if given.open is not None:
            mine = [i for i in grippers if at <= i < at + width]
            motion[mine] = low[mine] + given.open * (high[mine] - low[mine])
        return np.clip(motion, low, high)


def _tool_interface(interface: Any) -> Any:
    """The same task with actions that move the tool."""
    from sim.interface import TaskInterface

    return TaskInterface(interface.scene, "ee_delta")
