"""From a task to a compiled MuJoCo model, and where its joints, actuators and objects lie in the state."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np

from sim.arrays import constant, namespace
from sim.robots.arm import DEFAULTS
from sim.robots.config import RobotConfig, check, find, load_robot, robot_spec
from sim.tasks import TASKS, Task
from sinew.errors import InputError

TIMESTEP_S = 0.01

# Contact settings, measured: elliptic cones with impratio 20 keep a 150 g cube in the fingers for minutes (creep below
# 0.2 mm/s); the step of 10 ms is the longest at which MuJoCo's default contact time constant of 20 ms is still resolved.
# A diverged world must be seen, so MuJoCo's silent reset to the initial state is off. Fewer facets, shadows and samples make a
# small picture three times cheaper on a CPU.
_HEADER = """
<mujoco model="sinew">
 <compiler angle="radian" autolimits="true"/>
 <option timestep="{timestep}" integrator="implicitfast" cone="elliptic" impratio="20" iterations="100" ls_iterations="50" tolerance="1e-8">
  <flag autoreset="disable"/>
 </option>
 <visual>
  <global offwidth="1280" offheight="960" fovy="45"/><quality shadowsize="0" offsamples="0" numslices="18" numstacks="8" numquads="1"/>
  <headlight ambient=".35 .35 .35" diffuse=".5 .5 .5" specular="0 0 0"/><map znear="0.01" zfar="20"/>
 </visual>
 <asset>
  <texture name="sky" type="skybox" builtin="gradient" rgb1=".86 .9 .95" rgb2=".55 .62 .72" width="64" height="64"/>
  <texture name="wood" type="2d" builtin="checker" rgb1=".62 .55 .46" rgb2=".58 .51 .43" width="64" height="64"/>
  <material name="wood" texture="wood" texrepeat="8 8" texuniform="true"/>
 </asset>
 <default>
  <geom contype="0" conaffinity="0" condim="3"/>
  <default class="object"><geom contype="1" conaffinity="1" friction="1 .02 .0001"/></default>
  <default class="fixture"><geom contype="1" conaffinity="0" friction="1 .02 .0001"/></default>
  {defaults}
 </default>
 <worldbody>
  <light pos=".3 -.6 1.6" dir=".1 .4 -1" diffuse=".45 .45 .45" castshadow="false"/>
  {camera}
  <geom name="table" type="plane" size="1.5 1.5 .1" material="wood" class="fixture" friction=".4 .02 .0001"/>
  {worldbody}
 </worldbody>
 <contact>{contact}</contact>
 <actuator>{actuator}</actuator>
</mujoco>
"""


@dataclass(frozen=True)
class TrackedObject:
    """Where the pose of an object is found in qpos."""

    name: str
    free_address: int
    """First of 7 elements in qpos for a free body, -1 for a body on slides."""
    origin: np.ndarray
    """(7,) world pose where all slides are at 0."""
    slides: tuple[tuple[int, np.ndarray], ...]
    """(index in qpos, world direction (3,)) of every slide joint between the world and the body."""

    def to(self, device: Any) -> TrackedObject:
        """The same for tensors on a torch device."""
        slides = tuple((address, constant(axis, device)) for address, axis in self.slides)
        return replace(self, origin=constant(self.origin, device), slides=slides)

    def poses(self, qpos: np.ndarray) -> np.ndarray:
        """Poses (N, 7), xyz and wxyz, from qpos (N, nq)."""
        if self.free_address >= 0:
            return qpos[:, self.free_address : self.free_address + 7]
        poses = namespace(qpos).broadcast_to(self.origin, (len(qpos), 7)) + 0.0
        for address, axis in self.slides:
            poses[:, :3] += qpos[:, address, None] * axis
        return poses


@dataclass(frozen=True)
class Scene:
    """A compiled task. The model is shared and must not be changed."""

    task: Task
    model: mujoco.MjModel
    robots: tuple[RobotConfig, ...]
    """One per arm."""
    joint_qpos: np.ndarray
    """(J,) indices of the arm joints in qpos, arm after arm."""
    joint_qvel: np.ndarray
    """(J,) indices of the arm joints in qvel."""
    joint_ctrl: np.ndarray
    """(J,) indices of the arm servos in ctrl."""
    finger_qpos: np.ndarray
    """(G, F) indices of the finger joints of each gripper in qpos."""
    finger_ctrl: np.ndarray
    """(G, F) indices of the finger servos in ctrl."""
    finger_open: np.ndarray
    """(G, F) metres, position of the finger joints when the grippers are open."""
    home: np.ndarray
    """(J,) rad, posture at the start."""
    objects: tuple[TrackedObject, ...]
    spawn_qpos: dict[str, int]
    """First index in qpos of every named joint."""
    spec: mujoco.MjSpec | None = None
    """What the model was compiled from, where it is known; to be copied, for scenes with more in them."""

    @property
    def substeps(self) -> int:
        """Physics steps per control step."""
        return round(1.0 / (self.task.rate_hz * self.model.opt.timestep))

    def to(self, device: Any) -> Scene:
        """The same scene for tensors on a torch device; episodes begin from the one it was made of (`initial`)."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}
        moved = {name: constant(value, device) for name, value in moved.items()}
        return replace(self, objects=tuple(o.to(device) for o in self.objects), **moved)

    def openings(self, qpos: np.ndarray) -> np.ndarray:
        """Gripper openings (N, G) in metres from qpos (N, nq)."""
        total = namespace(qpos).zeros_like(qpos[:, : len(self.finger_qpos)])
        for finger in range(self.finger_qpos.shape[1]):
            total += qpos[:, self.finger_qpos[:, finger]]
        return total

    def control(self, joint_target: np.ndarray, gripper_target: np.ndarray) -> np.ndarray:
        """Ctrl (N, nu) from joint targets (N, J) and opening targets (N, G) or (N,)."""
        xp = namespace(joint_target)
        ctrl = xp.zeros_like(xp.broadcast_to(joint_target[:, :1], (len(joint_target), self.model.nu)))
        ctrl[:, self.joint_ctrl] = joint_target
        opening = gripper_target.reshape(len(joint_target), len(self.finger_ctrl))
        for finger in range(self.finger_ctrl.shape[1]):
            ctrl[:, self.finger_ctrl[:, finger]] = opening / self.finger_ctrl.shape[1]
        return ctrl

    def poses(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        """Pose (N, 7) of every tracked object from qpos (N, nq)."""
        return {o.name: o.poses(qpos) for o in self.objects}

    def initial(self, seed: int) -> np.ndarray:
        """Qpos (nq,) at the start of the episode that `seed` fixes; the grippers are open."""
        rng = np.random.default_rng(seed)
        qpos = self.model.qpos0.copy()
        qpos[self.joint_qpos] = self.home + self.task.home_noise_rad * rng.standard_normal(len(self.home)).clip(-2, 2)
        qpos[self.finger_qpos] = self.finger_open
        for joint, value in self.task.spawn(rng).items():
            start = self.spawn_qpos[joint]
            qpos[start : start + len(value)] = value
        return qpos


def mjcf(task: Task, timestep_s: float = TIMESTEP_S, with_arms: bool = True) -> str:
    """The whole scene of a task as MJCF text."""
    arms = task.arms() if with_arms else ()
    return _HEADER.format(
        timestep=timestep_s,
        camera=_camera(task),
        defaults=DEFAULTS,
        worldbody="\n".join([part.body for part in arms] + [task.fixtures()]),
        contact="".join(part.contact for part in arms),
        actuator="".join(part.actuators for part in arms),
    )


def _camera(task: Task) -> str:
    """The front camera, upright."""
    position, target = np.array(task.camera_m), np.array(task.camera_target_m)
    right = np.cross(target - position, (0.0, 0.0, 1.0))
    axes = np.concatenate((right, np.cross(right, target - position)))
    return f'<camera name="front" pos="{" ".join(map(str, position))}" xyaxes="{" ".join(map(str, axes))}" fovy="40"/>'


@lru_cache(maxsize=16)
def load_scene(task: str, robot: RobotConfig | None = None) -> Scene:
    """Compile a registered task once, with its own arms or with another robot in their place.

    Raises:
        InputError: no task of that name; the robot's file or a name in its config does not exist; the task needs two arms.
    """
    instance = TASKS.get(task)()
    if robot is None:
        spec = mujoco.MjSpec.from_string(mjcf(instance))
        return replace(build_scene(instance, spec.compile()), spec=spec)
    if len(instance.arms()) != 1:
        raise InputError(f"task {task!r} has {len(instance.arms())} arms; another robot can only replace a single one")
    world = mujoco.MjSpec.from_string(mjcf(instance, robot.timestep_s, with_arms=False))
    placed = robot if robot.actuators else replace(robot, actuators=robot.joints)
    world.attach(load_robot(robot), frame=world.worldbody.add_frame(pos=list(robot.base_m)), prefix=robot.prefix)
    return replace(build_scene(instance, world.compile(), (placed.prefixed(),)), spec=world)


def build_scene(task: Task, model: mujoco.MjModel, robots: tuple[RobotConfig, ...] | None = None) -> Scene:
    """Find everything a scene needs in its compiled model."""
    robots = robots or tuple(part.config for part in task.arms())
    for robot in robots:
        check(model, robot)
    joints = [find(model, "joint", name) for robot in robots for name in robot.joints]
    gripping = [robot for robot in robots if robot.gripper_joints]
    fingers = np.array([[find(model, "joint", name) for name in robot.gripper_joints] for robot in gripping], dtype=np.int64)
    fingers = fingers.reshape(len(gripping), len(gripping[0].gripper_joints) if gripping else 0)
    return Scene(
        task=task,
        model=model,
        robots=robots,
        joint_qpos=model.jnt_qposadr[joints],
        joint_qvel=model.jnt_dofadr[joints],
        joint_ctrl=np.array([find(model, "actuator", name) for robot in robots for name in robot.actuators]),
        finger_qpos=model.jnt_qposadr[fingers],
        finger_ctrl=np.array(
            [[find(model, "actuator", name) for name in robot.gripper_actuators] for robot in gripping], dtype=np.int64
        ).reshape(fingers.shape),
        finger_open=model.jnt_range[fingers, 1],
        home=np.concatenate([robot_spec(model, robot).home_rad for robot in robots]),
        objects=tuple(_tracked(model, name) for name in task.objects),
        spawn_qpos={model.joint(j).name: int(model.jnt_qposadr[j]) for j in range(model.njnt)},
    )


def _tracked(model: mujoco.MjModel, name: str) -> TrackedObject:
    body = find(model, "body", name, "scene")
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    origin, slides, at = np.concatenate((data.xpos[body], data.xquat[body])), [], body
    while at > 0:
        for joint in range(model.body_jntadr[at], model.body_jntadr[at] + model.body_jntnum[at]):
            address, kind = int(model.jnt_qposadr[joint]), int(model.jnt_type[joint])
            if kind == int(mujoco.mjtJoint.mjJNT_FREE) and at == body:
                return TrackedObject(name, address, origin, ())
            if kind != int(mujoco.mjtJoint.mjJNT_SLIDE):
                culprit = model.joint(joint).name
                raise InputError(f"object {name!r} moves on joint {culprit!r}; tracked objects are free or move on slides only")
            origin[:3] -= data.xaxis[joint] * data.qpos[address]
            slides.append((address, data.xaxis[joint].copy()))
        at = int(model.body_parentid[at])
    return TrackedObject(name, -1, origin, tuple(slides))
