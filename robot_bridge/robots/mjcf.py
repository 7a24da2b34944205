"""A MuJoCo model from a robot's frames and capsules: for distances between its links, and to simulate it.

The bodies are the capsules, which collide with nothing in the simulation (contype 0); distances are asked for with
`mujoco.mj_geomDistance` over `collision_pairs`. Gravity is compensated, as arms' own controllers do.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from robot_bridge.robots.config import JointFrame, RobotConfig
from robot_bridge.robots.kinematics import chain_to
from sinew.errors import InputError

DENSITY_KG_M3 = 1500.0
SERVO_RAD_S = 60.0
"""Bandwidth of the simulated joints' servos."""


def mjcf(config: RobotConfig, timestep_s: float = 0.002) -> str:
    """The robot as MJCF text: bodies named as the links, joints and position actuators as the robot's joints, sites as the tools.

    Raises:
        InputError: the robot's frames are not known.
    """
    if not config.frames:
        raise InputError(f"robot {config.spec.name!r} has no joint frames to simulate; make a config with them: 'sinew robot add'")
    children: dict[str, list[JointFrame]] = {}
    for frame in config.frames:
        children.setdefault(frame.parent, []).append(frame)
    bodies = "".join(_body(config, frame, children) for frame in children[config.frames[0].parent])
    actuators = "".join(_actuator(config, name) for name in config.spec.joint_names)
    return f"""<mujoco model="{config.spec.name}">
<compiler angle="radian" autolimits="true"/>
<option timestep="{timestep_s}" integrator="implicitfast" gravity="0 0 -9.81"><flag autoreset="disable"/></option>
<visual><headlight ambient=".4 .4 .4" diffuse=".6 .6 .6"/><global offwidth="1280" offheight="960"/></visual>
<default><geom contype="0" conaffinity="0" density="{DENSITY_KG_M3}" rgba=".75 .78 .82 1"/></default>
<worldbody>
<light pos="0 0 3" dir="0 0 -1"/>
<camera name="front" pos="1.8 -1.2 1.2" xyaxes=".55 .83 0 -.3 .2 .93" fovy="45"/>
<geom name="floor" type="plane" size="2 2 .1" rgba=".9 .9 .88 1"/>
{bodies}</worldbody>
<actuator>{actuators}</actuator>
</mujoco>
"""


def _body(config: RobotConfig, frame: JointFrame, children: dict[str, list[JointFrame]]) -> str:
    spec = config.spec
    joint = ""
    if frame.name in spec.joint_names:
        j = spec.joint_names.index(frame.name)
        kind = "hinge" if frame.kind == "revolute" else "slide"
        reach = f"{spec.position_low_rad[j]!r} {spec.position_high_rad[j]!r}"
        # as much inertia of the drive as lets its full torque reach three times the acceleration limit
        armature = config.effort_max_nm[j] / (3.0 * spec.acceleration_max_rad_s2[j])
        joint = f'<joint name="{frame.name}" type="{kind}" axis="{_text(frame.axis)}" range="{reach}" armature="{armature:.6g}"/>'
    geoms = "".join(
        f'<geom name="{c.link}.{i}" type="capsule" fromto="{_text(c.start_m)} {_text(c.end_m)}" size="{c.radius_m}"/>'
        for i, c in enumerate(c for c in config.capsules if c.link == frame.child)
    )
    site = f'<site name="{frame.child}" size=".005"/>' if frame.child in config.tools else ""
    if frame.child == config.tools[0]:
        site += '<camera name="wrist" pos="0 -.09 -.1" xyaxes="1 0 0 0 -.9 -.4" fovy="70"/>'
    # a body that moves needs mass, also where nobody has given it a shape
    inertia = "" if geoms or not joint else '<inertial pos="0 0 0" mass="0.05" diaginertia="1e-4 1e-4 1e-4"/>'
    inner = "".join(_body(config, child, children) for child in children.get(frame.child, ()))
    place = f'pos="{_text(frame.origin_m)}" quat="{_text(_quaternion(frame))}"'
    return f'<body name="{frame.child}" {place} gravcomp="1">\n{joint}{inertia}{geoms}{site}{inner}</body>\n'


def _actuator(config: RobotConfig, name: str) -> str:
    j = config.spec.joint_names.index(name)
    effort = config.effort_max_nm[j]
    stiffness = effort / (3.0 * config.spec.acceleration_max_rad_s2[j]) * SERVO_RAD_S**2
    return (
        f'<position name="{name}" joint="{name}" kp="{stiffness:.6g}" dampratio="1" inheritrange="1" '
        f'forcerange="{-effort} {effort}"/>'
    )  # fmt: skip


def collision_pairs(config: RobotConfig, model: Any, near_m: float = 0.0) -> list[tuple[int, int]]:
    """Pairs of geoms whose distance tells a self-collision, and of those with the floor.

    Left out are links that no joint or only one joint parts, and links that touch at home already: simple capsules overlap
    around joints where the real parts do not.
    """
    import mujoco

    data = mujoco.MjData(model)
    home = config.spec.home_rad or (0.0,) * len(config.spec.joint_names)
    for name, value in zip(config.spec.joint_names, home, strict=True):
        data.joint(name).qpos[0] = value
    mujoco.mj_kinematics(model, data)
    links = [model.body(int(model.geom_bodyid[g])).name for g in range(model.ngeom)]
    moving = {link: [f.name for f in chain_to(config, link) if f.kind != "fixed"] for link in set(links)}
    fixed_floor = next((g for g in range(model.ngeom) if model.geom(g).name == "floor"), -1)
    pairs = []
    for a, b in combinations(range(model.ngeom), 2):
        floor = fixed_floor in (a, b)
        other = b if a == fixed_floor else a
        if floor and len(moving[links[other]]) < 2:
            continue
        apart = set(moving[links[a]]) ^ set(moving[links[b]])
        if not floor and len(apart) < 2:
            continue
        if mujoco.mj_geomDistance(model, data, a, b, 1.0, None) > near_m:
            pairs.append((a, b))
    return pairs


def _text(values: Any) -> str:
    return " ".join(f"{float(v):.9g}" for v in values)


def _quaternion(frame: JointFrame) -> tuple[float, float, float, float]:
    """Quaternion wxyz of roll, pitch, yaw."""
    halves = [angle / 2 for angle in frame.rpy_rad]
    (cr, sr), (cp, sp), (cy, sy) = ((float(np.cos(h)), float(np.sin(h))) for h in halves)
    return (
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    )
