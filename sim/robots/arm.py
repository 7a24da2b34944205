"""Our own arm: seven hinges that alternate between roll and pitch, and a parallel gripper, all of primitive shapes.

Shoulder 0.34 m above the base, upper arm 0.4 m, forearm 0.4 m, wrist to tool 0.21 m. Gravity is compensated, as the
controllers of collaborative arms do. Only the finger pads collide: a capsule across the tip, which touches a flat face in
two points where a box would touch in eight at three times the solver's cost. With heels there is a third point above, so
that a grasp keeps a peg upright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.robots.config import RobotConfig

UPPER_ARM_M = 0.4
FOREARM_M = 0.4
SHOULDER_HEIGHT_M = 0.34
WRIST_TO_TOOL_M = 0.21
OPENING_MAX_M = 0.08

_LINK = 'rgba=".93 .93 .95 1"'
_JOINT = 'rgba=".20 .24 .30 1"'
_DARK = 'rgba=".25 .27 .30 1"'

# Damping and stiffness give each servo about 45 rad/s at its share of the arm's inertia: a lag below one control step.
_SERVOS = ((1100, 48), (1100, 48), (700, 30), (700, 30), (220, 9), (220, 9), (160, 7))
_FINGER_KP, _FINGER_KV = 900, 170

_BODY = """
<body name="{p}base" pos="{x} {y} {z}" euler="0 0 {yaw}">
 <geom type="cylinder" fromto="0 0 0 0 0 .24" size=".075" {joint} mass="5"/>
 <body name="{p}link1" pos="0 0 .34" gravcomp="1">
  <joint name="{p}joint1" axis="0 0 1" range="-2.9 2.9" class="arm"/>
  <geom type="cylinder" fromto="0 -.075 0 0 .075 0" size=".06" {joint} mass="1.2"/>
  <geom type="cylinder" fromto="0 0 -.1 0 0 0" size=".062" {link} mass=".6"/>
  <body name="{p}link2" gravcomp="1">
   <joint name="{p}joint2" axis="0 1 0" range="-1.9 1.9" class="arm"/>
   <geom type="capsule" fromto="0 0 0 0 0 .2" size=".05" {link} mass="1"/>
   <body name="{p}link3" pos="0 0 .2" gravcomp="1">
    <joint name="{p}joint3" axis="0 0 1" range="-2.9 2.9" class="arm"/>
    <geom type="capsule" fromto="0 0 .02 0 0 .2" size=".047" {link} mass=".7"/>
    <body name="{p}link4" pos="0 0 .2" gravcomp="1">
     <joint name="{p}joint4" axis="0 1 0" range="0 2.7" class="arm"/>
     <geom type="cylinder" fromto="0 -.062 0 0 .062 0" size=".05" {joint} mass=".5"/>
     <geom type="capsule" fromto="0 0 0 0 0 .2" size=".042" {link} mass=".5"/>
     <body name="{p}link5" pos="0 0 .2" gravcomp="1">
      <joint name="{p}joint5" axis="0 0 1" range="-2.9 2.9" class="arm"/>
      <geom type="capsule" fromto="0 0 .02 0 0 .18" size=".038" {link} mass=".4"/>
      <body name="{p}link6" pos="0 0 .2" gravcomp="1">
       <joint name="{p}joint6" axis="0 1 0" range="-2 2.2" class="arm"/>
       <geom type="cylinder" fromto="0 -.05 0 0 .05 0" size=".04" {joint} mass=".3"/>
       <body name="{p}hand" pos="0 0 .08" gravcomp="1">
        <joint name="{p}joint7" axis="0 0 1" range="-2.9 2.9" class="arm"/>
        <geom type="cylinder" fromto="0 0 -.045 0 0 .005" size=".036" {joint} mass=".15"/>
        <geom type="box" pos="0 0 .022" size=".03 .095 .018" {dark} mass=".25"/>
        <site name="{p}tool" pos="0 0 .13" size=".004" rgba="0 0 0 0"/>
        <camera name="{p}wrist" pos=".075 0 .01" xyaxes="0 1 0 .94 0 .34" fovy="75"/>
        <body name="{p}finger1" pos="0 0 .04" gravcomp="1">
         <joint name="{p}finger1" axis="0 1 0" class="finger"/>
         <geom type="box" pos="0 .010 .044" size=".010 .006 .044" {dark} mass=".03"/>
         <geom name="{p}pad1" type="capsule" fromto="-.009 .008 .09 .009 .008 .09" class="pad"/>
         {heel1}
        </body>
        <body name="{p}finger2" pos="0 0 .04" gravcomp="1">
         <joint name="{p}finger2" axis="0 -1 0" class="finger"/>
         <geom type="box" pos="0 -.010 .044" size=".010 .006 .044" {dark} mass=".03"/>
         <geom name="{p}pad2" type="capsule" fromto="-.009 -.008 .09 .009 -.008 .09" class="pad"/>
         {heel2}
        </body>
       </body>
      </body>
     </body>
    </body>
   </body>
  </body>
 </body>
</body>
"""

DEFAULTS = """
<default class="arm"><joint armature=".1" damping=".5"/></default>
<default class="finger"><joint type="slide" range="0 .04" armature=".5" damping="1"/></default>
<default class="pad">
 <geom size=".008" mass=".01" condim="4" contype="1" conaffinity="1" friction="1.5 .02 .0001" rgba=".1 .1 .1 1"/>
</default>
"""


@dataclass(frozen=True, kw_only=True)
class ArmPart:
    """One arm of a scene as MJCF fragments, with the config that names its parts."""

    config: RobotConfig
    body: str
    """Goes into <worldbody>."""
    actuators: str
    """Goes into <actuator>."""
    contact: str
    """Goes into <contact>."""


def home(x_m: float, y_m: float, z_m: float) -> tuple[float, ...]:
    """Joint positions (7,) that put the tool at a point of the base frame, pointing down, elbow up, fingers across y."""
    reach, height = np.hypot(x_m, y_m), z_m + WRIST_TO_TOOL_M - SHOULDER_HEIGHT_M
    azimuth = np.arctan2(y_m, x_m)
    span = np.hypot(reach, height)
    elbow = np.pi - np.arccos((UPPER_ARM_M**2 + FOREARM_M**2 - span**2) / (2 * UPPER_ARM_M * FOREARM_M))
    shoulder = np.arctan2(reach, height) - elbow / 2
    return (float(azimuth), float(shoulder), 0.0, float(elbow), 0.0, float(np.pi - shoulder - elbow), float(azimuth))


def arm(
    prefix: str = "",
    base_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
    yaw_rad: float = 0.0,
    home_rad: tuple[float, ...] = home(0.5, 0.0, 0.2),
    workspace_low_m: tuple[float, float, float] = (0.3, -0.3, 0.012),
    workspace_high_m: tuple[float, float, float] = (0.7, 0.3, 0.45),
    heels: bool = False,
) -> ArmPart:
    """An arm whose names start with `prefix`, its base at a point of the world and turned about z."""
    heel = [f'<geom type="sphere" pos="0 {sign}.008 .078" class="pad"/>' if heels else "" for sign in ("", "-")]
    joints = tuple(f"{prefix}joint{i}" for i in range(1, 8))
    fingers = (f"{prefix}finger1", f"{prefix}finger2")
    servos = [
        f'<position name="{joint}" joint="{joint}" kp="{kp}" kv="{kv}" forcerange="-90 90"/>'
        for joint, (kp, kv) in zip(joints, _SERVOS, strict=True)
    ] + [f'<position name="{finger}" joint="{finger}" kp="{_FINGER_KP}" kv="{_FINGER_KV}"/>' for finger in fingers]
    config = RobotConfig(
        name=prefix.rstrip("_") or "arm",
        joints=joints,
        actuators=joints,
        tool=f"{prefix}tool",
        gripper_joints=fingers,
        gripper_actuators=fingers,
        home_rad=home_rad,
        workspace_low_m=workspace_low_m,
        workspace_high_m=workspace_high_m,
    )
    look = {"link": _LINK, "joint": _JOINT, "dark": _DARK, "heel1": heel[0], "heel2": heel[1]}
    body = _BODY.format(p=prefix, x=base_m[0], y=base_m[1], z=base_m[2], yaw=yaw_rad, **look)
    apart = f'<exclude body1="{fingers[0]}" body2="{fingers[1]}"/>'
    return ArmPart(config=config, body=body, actuators="".join(servos), contact=apart)
