"""What a policy sees of a task and how its actions become joint targets: one object for the simulator and the robot.

Whatever runs a policy, in simulation or deployed, uses this object and nothing else, so the two cannot drift apart.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim.arrays import constant, namespace, numbers, single
from sim.control import ArmLimits, EndEffectorDecoder, JointDecoder, ToolServo
from sim.kinematics import Chain, quaternion_columns
from sim.robots.config import RobotConfig, joint_limits, robot_spec
from sim.scene import Scene, load_scene
from sim.tasks import View
from sinew.errors import unknown
from sinew.protocols import RobotSpec
from sinew.specs import ENVIRONMENT_STATE, IMAGES, STATE, ActionSpec, ObservationSpec, TensorSpec

ACTIONS = ("ee_delta", "joint_position")
_COLUMNS = ("r11", "r21", "r31", "r12", "r22", "r32")


class TaskInterface:
    """Specs, observation and action decoding of a task.

    Args:
        scene: compiled task.
        action: "ee_delta" or "joint_position".
        cameras: names of the cameras that are part of the observation.
        image_size: height and width of their images in pixels.

    Raises:
        InputError: unknown action kind or camera.
    """

    def __init__(self, scene: Scene, action: str = "ee_delta", cameras: Sequence[str] = (), image_size: int = 84) -> None:
        if action not in ACTIONS:
            raise unknown("action", action, ACTIONS)
        known = [scene.model.camera(i).name for i in range(scene.model.ncam)]
        for camera in cameras:
            if camera not in known:
                raise unknown("camera", camera, known)
        self.scene, self.action, self.cameras, self.image_size = scene, action, tuple(cameras), image_size
        task, model = scene.task, scene.model
        self.objects, self.task_text, self.max_episode_steps = tuple(task.objects), task.text, task.max_episode_steps
        self.chains = tuple(Chain(model, robot.joints, robot.tool) for robot in scene.robots)
        self.grippers = len(scene.finger_qpos)
        self._prefixes = [""] if len(scene.robots) == 1 else [f"{robot.name}_" for robot in scene.robots]
        self.observation_spec = self._make_observation_spec()
        self.action_spec = self._make_action_spec()
        self._device: Any = None

    def to(self, device: Any) -> TaskInterface:
        """The same for tensors of single precision on a torch device: what it observes and decodes never leaves it."""
        there = copy.copy(self)
        there.scene, there._device = self.scene.to(device), device
        there.chains = tuple(chain.to(device) for chain in self.chains)
        return there

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot that executes the task; for two arms, that of both together."""
        specs = [robot_spec(self.scene.model, robot) for robot in self.scene.robots]
        if len(specs) == 1:
            return specs[0]
        join = {f: sum((getattr(s, f) for s in specs), ()) for f in ("joint_names", "position_low_rad", "position_high_rad", "home_rad")}
        join |= {f: sum((getattr(s, f) for s in specs), ()) for f in ("velocity_max_rad_s", "acceleration_max_rad_s2")}
        low = np.min([s.workspace_low_m for s in specs], axis=0)
        high = np.max([s.workspace_high_m for s in specs], axis=0)
        return RobotSpec(
            name="+".join(s.name for s in specs),
            gripper_name=specs[0].gripper_name,
            gripper_low_m=specs[0].gripper_low_m,
            gripper_high_m=specs[0].gripper_high_m,
            workspace_low_m=(float(low[0]), float(low[1]), float(low[2])),
            workspace_high_m=(float(high[0]), float(high[1]), float(high[2])),
            rate_hz=specs[0].rate_hz,
            **join,
        )

    def observe(
        self, joint_position: np.ndarray, joint_velocity: np.ndarray, gripper: np.ndarray, poses: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Observation vectors from measurements.

        Args:
            joint_position: (N, J) rad.
            joint_velocity: (N, J) rad/s.
            gripper: (N,) or (N, G) openings in metres.
            poses: {object: (N, 7)} xyz and wxyz quaternion, world frame.

        Returns:
            {key: (N, D) float32} of every vector of `observation_spec`.
        """
        return self.observe_and_view(joint_position, joint_velocity, gripper, poses)[0]

    def observe_and_view(
        self, joint_position: np.ndarray, joint_velocity: np.ndarray, gripper: np.ndarray, poses: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], View]:
        """`observe`, and the view that success is judged by."""
        xp = namespace(joint_position)
        grippers = xp.asarray(gripper).reshape(len(joint_position), self.grippers)
        state, tools, yaws = [], [], []
        for i, chain in enumerate(self.chains):
            joints = len(self.scene.robots[i].joints)
            part = slice(i * joints, (i + 1) * joints)
            frames = chain.forward(numbers(joint_position[:, part]))
            tools.append(xp.stack(tuple(frames.position), axis=1))
            yaws.append(xp.arctan2(frames.rotation[1, 0], frames.rotation[0, 0]))
            state += [joint_position[:, part], joint_velocity[:, part], grippers[:, i : i + 1], tools[-1]]
            state += [frames.rotation[:, 0].T, frames.rotation[:, 1].T]
        positions = {name: poses[name][:, :3] for name in self.objects}
        rotations = {name: quaternion_columns(poses[name][:, 3:]) for name in self.objects}
        view = View(tuple(tools), tuple(yaws), tuple(grippers.T), positions, rotations)
        environment: list[np.ndarray] = [joint_position[:, :0]]
        for name in self.objects:
            environment += [positions[name], rotations[name], *(positions[name] - tool for tool in tools)]
        environment.append(self.scene.task.extra_state(view))
        vectors = {STATE: single(xp.concatenate(state, axis=1))}
        if ENVIRONMENT_STATE in self.observation_spec.tensors:
            vectors[ENVIRONMENT_STATE] = single(xp.concatenate(environment, axis=1))
        return vectors, view

    def view(self, vectors: Mapping[str, np.ndarray]) -> View:
        """The view back from observation vectors {key: (N, D)}, for experts that see only observations."""
        tools, yaws, grippers, at = [], [], [], 0
        state = np.asarray(vectors[STATE], dtype=np.float64)
        for robot in self.scene.robots:
            at += 2 * len(robot.joints)
            if self.grippers:
                grippers.append(state[:, at])
                at += 1
            tools.append(state[:, at : at + 3])
            yaws.append(np.arctan2(state[:, at + 4], state[:, at + 3]))
            at += 9
        positions, rotations, at = {}, {}, 0
        for name in self.objects:
            environment = np.asarray(vectors[ENVIRONMENT_STATE], dtype=np.float64)
            positions[name], rotations[name] = environment[:, at : at + 3], environment[:, at + 3 : at + 9]
            at += 9 + 3 * len(self.chains)
        return View(tuple(tools), tuple(yaws), tuple(grippers), positions, rotations)

    def decoder(self, num: int) -> EndEffectorDecoder | JointDecoder:
        """A decoder for `num` worlds; call its `reset` before `decode`."""
        task, spec = self.scene.task, self.action_spec
        low, high = self._constant(np.array(spec.low)), self._constant(np.array(spec.high))
        if self.action == "ee_delta":
            return EndEffectorDecoder(self.tool_servos(num), task.axes == "xyz_yaw", self.grippers > 0, low, high)
        limits = self.arm_limits
        joined = {f: np.concatenate([getattr(limit, f) for limit in limits]) for f in ("position_low", "position_high", "step_max", "home")}
        joints = replace(limits[0], **joined)
        return JointDecoder(joints if self._device is None else joints.to(self._device), self.grippers, num, low, high)

    def tool_servos(self, num: int) -> list[ToolServo]:
        """What moves the tool of each arm in `num` worlds, within the arm's limits; call its `reset` before `move`."""
        limits = self.arm_limits if self._device is None else [limit.to(self._device) for limit in self.arm_limits]
        return [ToolServo(chain, limit, num) for chain, limit in zip(self.chains, limits, strict=True)]

    def _constant(self, array: np.ndarray) -> Any:
        """The array, where tensors live if they do."""
        return array if self._device is None else constant(array, self._device)

    @property
    def arm_limits(self) -> list[ArmLimits]:
        """What each arm keeps to."""
        return [self._limits(i) for i in range(len(self.chains))]

    @property
    def tool_step(self) -> tuple[float, float]:
        """Largest displacement along an axis and turn of a tool in one step, metres and rad."""
        return self.scene.task.step_m, self.scene.task.step_rad

    def _limits(self, index: int) -> ArmLimits:
        robot = self.scene.robots[index]
        low, high = joint_limits(self.scene.model, robot.joints)
        # A tenth of the allowed speed is kept back, so that a safety gate with the same limits never trips on rounding.
        step = 0.9 * robot.velocity_max_rad_s / self.scene.task.rate_hz
        return ArmLimits(
            position_low=low + 1e-3,
            position_high=high - 1e-3,
            step_max=np.full(len(low), step),
            workspace_low=np.array(robot.workspace_low_m),
            workspace_high=np.array(robot.workspace_high_m),
            home=np.array(robot_spec(self.scene.model, robot).home_rad),
            rotation_weight=1.0 if len(low) >= 6 else 0.0,
        )

    def _make_observation_spec(self) -> ObservationSpec:
        names: list[str] = []
        units: list[str] = []
        for prefix, robot in zip(self._prefixes, self.scene.robots, strict=True):
            names += [f"{j}.position" for j in robot.joints] + [f"{j}.velocity" for j in robot.joints]
            names += [f"{prefix}gripper"] * bool(self.grippers) + [f"{prefix}tool.{a}" for a in ("x", "y", "z", *_COLUMNS)]
            units += ["rad"] * len(robot.joints) + ["rad/s"] * len(robot.joints) + ["m"] * (3 + bool(self.grippers)) + ["1"] * 6
        tensors = {STATE: TensorSpec(shape=(len(names),), unit=",".join(units), names=tuple(names))}
        features: list[str] = []
        for name in self.objects:
            features += [f"{name}.{a}" for a in "xyz"] + [f"{name}.{c}" for c in _COLUMNS]
            features += [f"{name}-{prefix}tool.{a}" for prefix in self._prefixes for a in "xyz"]
        features += list(self.scene.task.extra_features())
        if features:
            tensors[ENVIRONMENT_STATE] = TensorSpec(shape=(len(features),), names=tuple(features))
        for camera in self.cameras:
            tensors[IMAGES + camera] = TensorSpec(shape=(self.image_size, self.image_size, 3), dtype="uint8", low=0, high=255)
        return ObservationSpec(tensors)

    def _make_action_spec(self) -> ActionSpec:
        task = self.scene.task
        low: list[float] = []
        high: list[float] = []
        names: list[str] = []
        specs = [robot_spec(self.scene.model, robot) for robot in self.scene.robots]
        for prefix, spec in zip(self._prefixes, specs, strict=True):
            if self.action == "ee_delta":
                steps = [task.step_m] * 3 + ([task.step_rad] if task.axes == "xyz_yaw" else [])
                names += [prefix + n for n in ("dx", "dy", "dz", "dyaw")[: len(steps)]]
                low += [-s for s in steps]
                high += steps
                if self.grippers:
                    names.append(f"{prefix}gripper")
                    low.append(spec.gripper_low_m)
                    high.append(spec.gripper_high_m)
            else:
                names += spec.joint_names
                low += spec.position_low_rad
                high += spec.position_high_rad
        if self.action == "joint_position" and self.grippers:
            names += [f"{prefix}gripper" for prefix in self._prefixes]
            low += [spec.gripper_low_m for spec in specs]
            high += [spec.gripper_high_m for spec in specs]
        kind = "ee_delta" if self.action == "ee_delta" else "joint_position"
        return ActionSpec(kind=kind, low=tuple(low), high=tuple(high), rate_hz=task.rate_hz, names=tuple(names))


def make_interface(
    task: str, action: str = "ee_delta", cameras: Sequence[str] = (), image_size: int = 84, robot: RobotConfig | None = None
) -> TaskInterface:
    """The interface of a registered task, with its own arm or with `robot` in its place.

    Raises:
        InputError: unknown task, action kind or camera; the nearest names are offered. Or the robot's file or a name in its
            config does not exist.
    """
    return TaskInterface(load_scene(task, robot), action, cameras, image_size)
