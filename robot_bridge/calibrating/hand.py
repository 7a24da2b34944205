"""The hand of an arm: where it is at its joints, and joints for where it shall be, many poses at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_bridge.robots.config import RobotConfig
from robot_bridge.robots.kinematics import chain_to, frame_matrix
from robot_bridge.robots.mjcf import mjcf
from sinew.errors import InputError, unknown
from sinew.protocols import RobotSpec
from sinew.se3 import Array, se3, se3_inverse, so3_log

if TYPE_CHECKING:
    from sim.kinematics import Chain

STEPS, DAMPING, STEP_RAD = 80, 1e-6, 0.25
"""Of damped least squares: at most so many, the least damping, and no joint turns farther in one. The damping grows with the squared
error (Sugihara 2011)."""
LEVER_M = 0.3
"""A radian of rotation counts as much as this way."""
NEAR_M, NEAR_RAD = 1e-4, 1e-3
"""A pose this near is reached."""
FROM_LIMITS_RAD = 0.03
"""Joints stay this far from their limits."""


class Hand:
    """One arm's hand.

    Args:
        chain: the arm's kinematics, from the world to the hand.
        spec: the robot's joints, all arms together.
        part: which of them are this arm's.
        base_frame: name of the frame that poses are told in.
        hand_frame: name of the hand's frame.
        T_world_base: where that base is (4, 4).
    """

    def __init__(
        self, chain: Chain, spec: RobotSpec, part: Sequence[int], base_frame: str, hand_frame: str, T_world_base: Array | None = None
    ) -> None:
        self.spec, self.part, self.base_frame, self.hand_frame = spec, np.array(part), base_frame, hand_frame
        self._chain = chain
        self.T_world_base = np.eye(4) if T_world_base is None else T_world_base
        self._T_base_world = se3_inverse(self.T_world_base)
        low, high = np.array(spec.position_low_rad)[self.part], np.array(spec.position_high_rad)[self.part]
        room = np.minimum(FROM_LIMITS_RAD, 0.1 * (high - low))
        self.low, self.high = low + room, high - room

    def pose(self, joints: Array) -> Array:
        """T_base_hand (4, 4) at the robot's joints (J,) rad."""
        return self._poses(np.asarray(joints, dtype=float)[self.part][None])[0]

    def jacobian(self, joints: Array) -> Array:
        """Twist of the hand in its own frame per joint of this arm (6, A): m, then rad."""
        frames = self._chain.forward(np.asarray(joints, dtype=float)[self.part][None])
        in_world, turn = self._chain.jacobian(frames)[..., 0], frames.rotation[..., 0].T
        return np.concatenate((turn @ in_world[:3], turn @ in_world[3:]))

    def tool_speed(self, joints: Array, velocity: Array) -> float:
        """How fast the hand moves at joints (J,) rad that turn with (J,) rad/s, m/s."""
        return float(np.linalg.norm(self.jacobian(joints)[:3] @ np.asarray(velocity)[self.part]))

    def near(self, poses: Array, start: Array) -> tuple[Array, Array]:
        """The nearest that the hand comes to poses, going there from joints `start` (J,) without jumping to another posture.

        Args:
            poses: T_base_hand (N, 4, 4).
            start: where all of the robot's joints are.

        Returns:
            Joints (N, J) of the whole robot, and the poses (N, 4, 4) that they lead to.
        """
        goals = np.asarray(poses, dtype=float).reshape(-1, 4, 4)
        q = np.repeat(np.clip(np.asarray(start, dtype=float)[self.part], self.low, self.high)[None], len(goals), axis=0)
        goals_world = self.T_world_base @ goals
        open_ = np.arange(len(goals))
        for _ in range(STEPS):
            frames = self._chain.forward(q[open_])
            error = _error(frames, goals_world[open_])
            far = (np.linalg.norm(error[:, :3], axis=1) > NEAR_M) | (np.linalg.norm(error[:, 3:], axis=1) > NEAR_RAD * LEVER_M)
            jacobian = np.moveaxis(self._chain.jacobian(frames), 2, 0) * np.array([1, 1, 1, LEVER_M, LEVER_M, LEVER_M])[:, None]
            damping = (DAMPING + 0.5 * np.sum(error * error, axis=1))[:, None, None] * np.eye(6)
            across = np.swapaxes(jacobian, 1, 2)
            step = (across @ np.linalg.solve(jacobian @ across + damping, error[..., None]))[..., 0]
            step *= np.minimum(1.0, STEP_RAD / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-12))
            q[open_[far]] = np.clip(q[open_] + step, self.low, self.high)[far]
            open_ = open_[far]
            if not len(open_):
                break
        joints = np.repeat(np.asarray(start, dtype=float)[None], len(goals), axis=0)
        joints[:, self.part] = q
        return joints, self._poses(q)

    def _poses(self, q: Array) -> Array:
        frames = self._chain.forward(q)
        return self._T_base_world @ se3(np.moveaxis(frames.rotation, 2, 0), frames.position.T)


def _error(frames: Any, goals: Array) -> Array:
    """From where the hand is to goals (N, 4, 4): (N, 6) m, rotation times `LEVER_M`, world axes."""
    turn = so3_log(goals[:, :3, :3] @ np.transpose(frames.rotation, (2, 1, 0)))
    return np.concatenate((goals[:, :3, 3] - frames.position.T, LEVER_M * turn), axis=1)


def hand_of(config: RobotConfig, arm: int = 0, hand_frame: str = "") -> Hand:
    """The hand of a robot that is known as data.

    Args:
        config: its frames must be known.
        arm: which arm, from 0 on.
        hand_frame: one of its links, where that is not the tool.

    Raises:
        InputError: frames, arm or link are not known.
    """
    import mujoco

    from sim.kinematics import Chain

    name = config.spec.name
    if not config.frames or not config.tools:
        raise InputError(f"where the hand of robot {name} is cannot be told: make its config anew with 'sinew robot add NAME --urdf FILE'")
    if not 0 <= arm < config.arms:
        raise InputError(f"--arm {arm}: robot {name} has arms 0 to {config.arms - 1}")
    links = [frame.child for frame in config.frames]
    hand = hand_frame or config.tools[arm]
    if hand not in links:
        raise unknown(f"frame of robot {name}", hand, links)
    chain = chain_to(config, hand)
    moving = [frame.name for frame in chain if frame.name in config.spec.joint_names]
    wanted = [frame.name for frame in chain_to(config, config.tools[arm]) if frame.name in config.spec.joint_names]
    if moving != wanted:
        raise InputError(f"frame {hand} of robot {name} is moved by {', '.join(moving) or 'no joint'}, its hand by {', '.join(wanted)}")
    first = chain[0]
    placed = first.kind == "fixed" and first.parent == "world"
    base, T_world_base = (first.child, frame_matrix(first)) if placed else (first.parent, np.eye(4))
    model = mujoco.MjModel.from_xml_string(mjcf(config))  # pyright: ignore[reportAttributeAccessIssue]  # mujoco ships no type stubs
    part = [config.spec.joint_names.index(joint) for joint in moving]
    return Hand(Chain(model, moving, hand), config.spec, part, base, hand, T_world_base)


def hand_of_task(interface: Any) -> Hand:
    """The hand of a simulated task's first arm; poses are told in the world, where its base stands."""
    chain = interface.chains[0]
    return Hand(chain, interface.robot_spec, range(len(chain.joint_ids)), "base_link", "tool0")
