"""From what a person gives to the policy's action: the same frame, the same units, the same elements.

What is remembered of a person's step must be the action that the policy would have had to choose to do the same. A motion given
along the tool's axes and stored as it was, where the policy's actions are along the world's, teaches the wrong thing and looks
right in every log.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_bridge.following import Arm, joint_arms, tool_arms
from robot_bridge.takeover import UNITS, Given
from sinew.errors import InputError
from sinew.specs import ActionSpec

KINDS = ("ee_delta", "joint_position")


class ActionSpace:
    """Turns what is given into actions of a task.

    Args:
        interface: the task, with `action_spec`, `robot_spec`, `chains`, `tool_step` and, for joint actions, `arm_limits`.

    Raises:
        InputError: a person's motion cannot be put into such actions.
    """

    def __init__(self, interface: Any) -> None:
        spec: ActionSpec = interface.action_spec
        if spec.kind not in KINDS:
            raise InputError(f"a person can take over from policies that act in {' or '.join(KINDS)}, this one acts in {spec.kind}")
        self.spec = spec
        self.low, self.high = np.array(spec.low), np.array(spec.high)
        self.grippers = [i for i, name in enumerate(spec.names) if name.endswith("gripper")]
        self.openings = np.zeros(len(self.grippers))
        """(G,) metres, as they were commanded last."""
        self.moved = False
        """Whether what was given last was more than to hold still."""
        self._arms: list[Arm] = joint_arms(interface) if spec.kind == "joint_position" else tool_arms(interface)

    def reset(self, gripper: np.ndarray) -> None:
        """An episode begins with grippers (G,) this far open, metres."""
        for arm in self._arms:
            arm.forget(None)
        self.openings = np.array(np.atleast_1d(gripper)[: len(self.grippers)], dtype=float)

    def executed(self, action: np.ndarray, by_person: bool) -> None:
        """Action (A,) is what was executed."""
        self.openings = np.asarray(action, dtype=float)[self.grippers]
        if not by_person:
            for arm in self._arms:
                arm.forget(action)

    def hold(self, joint_position: np.ndarray) -> np.ndarray:
        """The action (A,) that stays where the robot is, at joints (J,) rad; the person has let go."""
        return self._act({}, joint_position)

    def action(self, given: Given, joint_position: np.ndarray) -> np.ndarray:
        """What is given, as an action (A,) in physical units within the bounds.

        Args:
            given: a motion of one arm or several, or an action as it is.
            joint_position: (J,) rad, measured: where the tool's axes point.

        Raises:
            InputError: another number of values than its kind has, or one that is not finite; or no such arm.
        """
        parts: dict[int, Given] = {}
        for part in (given, *given.also):
            if not 0 <= part.arm < len(self._arms) or part.arm in parts:
                raise InputError(f"arms {[p.arm for p in (given, *given.also)]} are given; the robot has {len(self._arms)}, each once")
            parts[part.arm] = part
            wanted = {"steps": 6, "pose": 7, "action": len(self.low)}.get(part.kind, self._arms[part.arm].joints)
            if len(part.values) != wanted or not np.isfinite(part.values).all():
                raise InputError(f"{part.kind} needs {wanted} finite values ({UNITS[part.kind]}), given {part.values}")
        if given.kind == "action":
            self.moved = True
            return np.clip(np.array(given.values, dtype=float), self.low, self.high)
        return self._act(parts, joint_position)

    def _act(self, parts: dict[int, Given], joint_position: np.ndarray) -> np.ndarray:
        action, share = np.zeros(len(self.low)), self._shares()
        self.moved = False
        joints = np.split(np.asarray(joint_position, dtype=float), len(self._arms))
        for i, (arm, measured) in enumerate(zip(self._arms, joints, strict=True)):
            part = parts.get(i)
            action[arm.elements] = arm.act(part, measured)
            if part is not None and i < len(share):
                share[i] = arm.opening(part, share[i])
            self.moved = self.moved or (part is not None and arm.moved(part))
        low, high = self.low[self.grippers], self.high[self.grippers]
        action[self.grippers] = low + share * (high - low)
        return np.clip(action, self.low, self.high)

    def _shares(self) -> np.ndarray:
        """(G,) shares of the openings that were commanded last."""
        low, high = self.low[self.grippers], self.high[self.grippers]
        return (self.openings - low) / np.maximum(high - low, 1e-9)
