"""What a policy sees and does on a robot that no simulated task describes: what the robot's contract says, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_bridge.interfaces import Decoder
from robot_bridge.robots.config import RobotConfig
from sinew.errors import DataError, SpecError
from sinew.protocols import RobotSpec
from sinew.specs import IMAGES, ActionSpec, ObservationSpec, TensorSpec, check_action_join, check_observation_join

if TYPE_CHECKING:
    from sim.control import ArmLimits

STEP_SHARE = 0.9
"""Of the joints' speed limits that one action may ask for; the rest is kept back from rounding, as in simulation."""
LEASH_RAD = 0.5
"""Targets stay this near to what is measured, so that a robot that is stuck is not pulled hard when it comes free."""
KINDS = ("joint_position", "joint_delta")
SPEED_M_S, TURN_RAD_S = 0.25, 0.5
"""Largest speeds that a person's device asks of a tool."""


class RobotInterface:
    """The task interface of a robot's contract; see `robot_bridge.interfaces.TaskInterface`.

    Args:
        config: the robot, with a contract that has features and an action.
        task_text: what is to be done.
        wanted: what the policy looks at; pictures come in its size.
        action: what the policy does.
        max_episode_steps: policy ticks of an episode.

    Raises:
        SpecError: the contract does not give what the policy looks at, or takes other actions.
    """

    def __init__(
        self, config: RobotConfig, *, task_text: str, wanted: ObservationSpec, action: ActionSpec, max_episode_steps: int = 600
    ) -> None:
        self.config, self.contract, self.task_text, self.max_episode_steps = config, config.contract, task_text, max_episode_steps
        name = f"robot {config.spec.name}"
        if config.contract.action is None or config.contract.action.kind not in KINDS:
            kind = "no action" if config.contract.action is None else f"actions of kind {config.contract.action.kind}"
            raise SpecError(f"the contract of {name} has {kind}: it must command {' or '.join(KINDS)}")
        if action.kind == "ee_delta":
            self.action_spec = _tool_action(config, action)
        else:
            self.action_spec = replace(config.contract.action, rate_hz=action.rate_hz)
            check_action_join("the policy", action, name, self.action_spec)
        self.observation_spec = self._observation_spec(wanted)
        check_observation_join(name, self.observation_spec, "the policy", wanted)
        seen = {value for feature in self.contract.features if feature.key in wanted.tensors for value in feature.values}
        self.objects = tuple(value.removeprefix("pose.") for value in self.contract.keys if value.startswith("pose.") and value in seen)
        self.values = tuple(value for value in self.contract.keys if value in seen)
        """Values that the policy's observations are made of."""

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot."""
        return self.config.spec

    def observe_values(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Vectors {key: (D,) float32} and pictures {key: (H, W, 3)} from measured values, as recordings of the contract hold them.

        Raises:
            DataError: a value is missing.
        """
        return self.contract.changed(features=self._features).observe(values)

    def observe(
        self, joint_position: np.ndarray, joint_velocity: np.ndarray, gripper: np.ndarray, poses: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """{key: (N, D) float32} of the vectors that joints, grippers and poses are enough for."""
        rows = []
        for i in range(len(joint_position)):
            values = {"joint_position": joint_position[i], "joint_velocity": joint_velocity[i], "gripper": gripper[i]}
            values |= {f"pose.{name}": pose[i] for name, pose in poses.items()}
            enough = tuple(f for f in self._features if not f.key.startswith(IMAGES) and set(f.values) <= set(values))
            rows.append(self.contract.changed(features=enough).observe(values))
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def decoder(self, num: int) -> Decoder:
        """A decoder for `num` robots; call its `reset` before `decode`."""
        if self.action_spec.kind == "ee_delta":
            from sim.control import EndEffectorDecoder, ToolServo

            servos = [ToolServo(chain, limits, num) for chain, limits in zip(self.chains, self.arm_limits, strict=True)]
            action, gripping = self.action_spec, self.robot_spec.gripper_name is not None
            turning = any("dyaw" in n for n in action.names)
            return EndEffectorDecoder(servos, turning, gripping, np.array(action.low), np.array(action.high))
        return JointTargets(self.robot_spec, self.action_spec, num)

    @property
    def arm_limits(self) -> list[ArmLimits]:
        """What the inverse kinematics of each arm keeps to.

        Raises:
            SpecError: the robot's frames are not known.
        """
        _check_tools(self.config)
        return [_arm_limits(self.config, part, self.action_spec.rate_hz) for _, part in _tool_chains(self.config)]

    @property
    def tool_step(self) -> tuple[float, float]:
        """Largest displacement along an axis and turn of a tool that a person asks for in one step, metres and rad."""
        return SPEED_M_S / self.action_spec.rate_hz, TURN_RAD_S / self.action_spec.rate_hz

    @property
    def chains(self) -> tuple[Any, ...]:
        """A `sim.kinematics.Chain` from the base to each tool.

        Raises:
            SpecError: the robot's frames are not known.
        """
        _check_tools(self.config)
        return tuple(chain for chain, _ in _tool_chains(self.config))

    def _observation_spec(self, wanted: ObservationSpec) -> ObservationSpec:
        features = []
        for feature in self.contract.features:
            if feature.key not in wanted.tensors:
                continue
            if feature.key.startswith(IMAGES):
                height, width, _ = wanted[feature.key].shape
                feature = replace(feature, height=height, width=width)
            features.append(feature)
        self._features = tuple(features)
        tensors: dict[str, TensorSpec] = dict(self.contract.changed(features=self._features).observation_spec().tensors)
        return ObservationSpec({key: tensors[key] for key in tensors})


class JointTargets:
    """Joint actions as targets: near to what is measured, within the limits, no faster than the joints can follow.

    Args:
        robot: the limits.
        action: joint positions or changes of them, rad, then openings, m.
        num: robots N.
    """

    def __init__(self, robot: RobotSpec, action: ActionSpec, num: int) -> None:
        self._low, self._high = np.array(robot.position_low_rad), np.array(robot.position_high_rad)
        self._step = STEP_SHARE * np.array(robot.velocity_max_rad_s) / action.rate_hz
        self._bounds, self._relative = (np.array(action.low), np.array(action.high)), action.kind == "joint_delta"
        self._target = np.zeros((num, len(self._low)))

    def reset(self, joint_position: np.ndarray, gripper: np.ndarray | None = None, ids: Sequence[int] | None = None) -> None:
        """Start robots `ids` (None for all) from measured joints (n, J)."""
        self._target[slice(None) if ids is None else np.asarray(ids)] = joint_position

    def decode(self, action: np.ndarray, joint_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joint targets (N, J) and openings (N, G) for actions (N, A) in physical units.

        Raises:
            DataError: an action is not finite or of another width.
        """
        if action.shape[1] != len(self._bounds[0]) or not np.isfinite(action).all():
            raise DataError(f"actions (N, {len(self._bounds[0])}) of finite numbers are expected, given {action!r:.120}")
        action = np.clip(action, *self._bounds)
        joints, measured = self._target.shape[1], np.asarray(joint_position, dtype=float)
        wanted = self._target + action[:, :joints] if self._relative else action[:, :joints]
        wanted = np.clip(wanted, measured - LEASH_RAD, measured + LEASH_RAD)
        wanted = np.clip(wanted, self._target - self._step, self._target + self._step)
        self._target = np.clip(wanted, self._low, self._high)
        return self._target.copy(), action[:, joints:].copy()


def _tool_action(config: RobotConfig, action: ActionSpec) -> ActionSpec:
    """A policy's ee_delta action, checked: dx, dy, dz, perhaps dyaw, perhaps an opening, for each arm.

    Raises:
        SpecError: the robot's kinematics are not known, or the elements are others.
    """
    _check_tools(config)
    name = f"robot {config.spec.name}"
    width = action.dim // config.arms
    ends = [n.rsplit("_", 1)[-1] for n in action.names[:width]]
    wanted = ["dx", "dy", "dz", *["dyaw"] * ("dyaw" in ends), *["gripper"] * (config.spec.gripper_name is not None)]
    if action.dim != width * config.arms or ends != wanted:
        raise SpecError(f"the policy commands {', '.join(action.names)}; {name} takes {', '.join(wanted)} for each of {config.arms} arms")
    return action


def _check_tools(config: RobotConfig) -> None:
    if not config.tools:
        name = f"robot {config.spec.name}"
        raise SpecError(f"the tool is to be moved, but the frames of {name} are not known: 'sinew robot add' makes a config with them")


def _tool_chains(config: RobotConfig) -> list[tuple[Any, list[int]]]:
    """Each tool's chain on the model that is generated from the robot's frames, with the numbers of its joints."""
    import mujoco

    from robot_bridge.robots.kinematics import chain_to
    from robot_bridge.robots.mjcf import mjcf
    from sim.kinematics import Chain

    model = mujoco.MjModel.from_xml_string(mjcf(config))  # pyright: ignore[reportAttributeAccessIssue]  # mujoco ships no type stubs
    made = []
    for tool in config.tools:
        moving = {frame.name for frame in chain_to(config, tool)}
        part = [j for j, name in enumerate(config.spec.joint_names) if name in moving]
        made.append((Chain(model, [config.spec.joint_names[j] for j in part], tool), part))
    return made


def _arm_limits(config: RobotConfig, part: Sequence[int], rate_hz: float) -> ArmLimits:
    from sim.control import ArmLimits

    spec = config.spec
    home = spec.home_rad or tuple((lo + hi) / 2 for lo, hi in zip(spec.position_low_rad, spec.position_high_rad, strict=True))
    return ArmLimits(
        position_low=np.array(spec.position_low_rad)[part],
        position_high=np.array(spec.position_high_rad)[part],
        step_max=STEP_SHARE * np.array(spec.velocity_max_rad_s)[part] / rate_hz,
        workspace_low=np.array(spec.workspace_low_m),
        workspace_high=np.array(spec.workspace_high_m),
        home=np.array(home)[part],
        rotation_weight=1.0 if len(part) >= 6 else 0.0,
    )
