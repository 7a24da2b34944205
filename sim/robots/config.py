"""What the simulator must know about a robot, by the names its model file uses."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mujoco
import numpy as np

from sinew.errors import InputError, SpecError
from sinew.protocols import RobotSpec


@dataclass(frozen=True, kw_only=True)
class RobotConfig:
    """A robot as an MJCF or URDF model and the names of its parts."""

    name: str
    """What the robot is called."""
    path: str = ""
    """MJCF or URDF file; empty where the model is built in code."""
    joints: tuple[str, ...]
    """Arm joints in command order, base to tool."""
    actuators: tuple[str, ...] = ()
    """Position actuator of each joint; empty to add position servos with `servo_kp` and `servo_kv` (URDF has none)."""
    tool: str
    """Site, or else body, between the fingers; commanded by ee_delta actions."""
    gripper_joints: tuple[str, ...] = ()
    """Finger slide joints; the opening in metres is the sum of their positions."""
    gripper_actuators: tuple[str, ...] = ()
    """Position actuator of each finger."""
    home_rad: tuple[float, ...] = ()
    """Joint positions at the start of an episode; empty for the middle of the limits."""
    velocity_max_rad_s: float = 3.0
    """Largest joint speed that is commanded."""
    acceleration_max_rad_s2: float = 120.0
    """Largest joint acceleration that is commanded; decoders limit speed only, so it should allow a reversal: 2 speed x rate."""
    workspace_low_m: tuple[float, float, float] = (-2.0, -2.0, -2.0)
    """Corner of the box the tool may be in, world frame."""
    workspace_high_m: tuple[float, float, float] = (2.0, 2.0, 2.0)
    servo_kp: float = 400.0
    """Stiffness of added servos, N m / rad."""
    servo_kv: float = 30.0
    """Damping of added servos, N m s / rad."""
    rate_hz: float = 20.0
    """Commands per second."""
    timestep_s: float = 0.005
    """Physics step of scenes with this robot; servos stiffer than the built-in arm's need a shorter one."""
    base_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the robot's base stands, world frame."""
    prefix: str = "robot_"
    """Put before the names of the model file where it is placed in a scene, so that they cannot clash."""

    def __post_init__(self) -> None:
        if not self.joints:
            raise SpecError(f"robot {self.name!r} names no joints")
        for field, names in (("actuators", self.actuators), ("home_rad", self.home_rad)):
            if names and len(names) != len(self.joints):
                raise SpecError(f"robot {self.name!r}: {len(names)} {field} for {len(self.joints)} joints")
        if len(self.gripper_joints) != len(self.gripper_actuators):
            counts = f"{len(self.gripper_actuators)} gripper actuators for {len(self.gripper_joints)} gripper joints"
            raise SpecError(f"robot {self.name!r}: {counts}")


    def prefixed(self) -> RobotConfig:
        """The config with the names its parts have in a scene."""
        fields = ("joints", "actuators", "gripper_joints", "gripper_actuators")
        named = {field: tuple(self.prefix + name for name in getattr(self, field)) for field in fields}
        return replace(self, tool=self.prefix + self.tool, **named)


def find(model: mujoco.MjModel, kind: str, name: str, owner: str = "model") -> int:
    """Id of a named element.

    Args:
        model: compiled model.
        kind: "joint", "actuator", "site", "body" or "camera".
        name: its name.
        owner: what the model is, for the message.

    Raises:
        InputError: there is none; the names that exist are listed.
    """
    object_type = getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}")
    index = mujoco.mj_name2id(model, object_type, name)
    if index < 0:
        count = {"joint": model.njnt, "actuator": model.nu, "site": model.nsite, "body": model.nbody, "camera": model.ncam}[kind]
        names = [mujoco.mj_id2name(model, object_type, i) or "(unnamed)" for i in range(count)]
        raise InputError(f"{owner} has no {kind} {name!r}; its {kind} names are {', '.join(names) or '(none)'}")
    return index


def check(model: mujoco.MjModel, config: RobotConfig) -> None:
    """Check that everything the config names is in the model.

    Raises:
        InputError: a name is missing; the names that exist are listed.
    """
    owner = f"robot {config.name!r}"
    for kind, names in (("joint", config.joints + config.gripper_joints), ("actuator", config.actuators + config.gripper_actuators)):
        for name in names:
            find(model, kind, name, owner)
    if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, config.tool) < 0:
        find(model, "body", config.tool, f"{owner} has no site {config.tool!r} and")


def joint_limits(model: mujoco.MjModel, joints: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit (J,) of the joints; ±pi where a joint has none."""
    ids = [find(model, "joint", name) for name in joints]
    limited = model.jnt_limited[ids].astype(bool)
    low = np.where(limited, model.jnt_range[ids, 0], -np.pi)
    return low, np.where(limited, model.jnt_range[ids, 1], np.pi)


def robot_spec(model: mujoco.MjModel, config: RobotConfig) -> RobotSpec:
    """The layer-0 description of a robot, its limits read from the model."""
    low, high = joint_limits(model, config.joints)
    fingers = joint_limits(model, config.gripper_joints) if config.gripper_joints else (np.zeros(1), np.zeros(1))
    count = len(config.joints)
    return RobotSpec(
        name=config.name,
        joint_names=config.joints,
        gripper_name="gripper" if config.gripper_joints else None,
        position_low_rad=tuple(low.tolist()),
        position_high_rad=tuple(high.tolist()),
        velocity_max_rad_s=(config.velocity_max_rad_s,) * count,
        acceleration_max_rad_s2=(config.acceleration_max_rad_s2,) * count,
        gripper_low_m=float(fingers[0].sum()),
        gripper_high_m=float(fingers[1].sum()),
        workspace_low_m=config.workspace_low_m,
        workspace_high_m=config.workspace_high_m,
        rate_hz=config.rate_hz,
        home_rad=config.home_rad or tuple(((low + high) / 2).tolist()),
    )


def load_robot(config: RobotConfig) -> mujoco.MjSpec:
    """Parse a robot's MJCF or URDF file, check the config against it, and add servos where the config names none.

    Raises:
        InputError: there is no such file, MuJoCo cannot read it, or a name is missing; the names that exist are listed.
    """
    path = Path(config.path)
    if not path.is_file():
        raise InputError(f"robot model {path} does not exist; give an MJCF (.xml) or URDF (.urdf) file")
    try:
        check(_parse(path).compile(), config)
        spec = _parse(path) if _attaching_keeps_units() else _canonical(path)
    except ValueError as e:
        raise InputError(f"robot model {path} cannot be read: {str(e).strip().splitlines()[0]}") from None
    if not config.actuators:
        for name in config.joints:
            actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, biastype=mujoco.mjtBias.mjBIAS_AFFINE)
            actuator.gainprm[0] = config.servo_kp
            actuator.biasprm[1], actuator.biasprm[2] = -config.servo_kp, -config.servo_kv
        for body in spec.bodies[1:]:
            body.gravcomp = 1.0
    return spec


def _parse(path: Path) -> mujoco.MjSpec:
    spec = mujoco.MjSpec.from_file(str(path))
    # Fixed links of a URDF would otherwise melt into their parents, and the tool frame with them.
    spec.compiler.fusestatic = 0
    return spec


def _canonical(path: Path) -> mujoco.MjSpec:
    """A model file as MuJoCo writes it: radians, quaternions, absolute folders; rounded to six digits."""
    spec = _parse(path)
    for folder in ("meshdir", "texturedir"):
        setattr(spec, folder, str((path.parent / (getattr(spec, folder) or ".")).resolve()))
    spec.compile()
    return mujoco.MjSpec.from_string(spec.to_xml())


def _attaching_keeps_units() -> bool:
    """Whether an attached model keeps its own compiler settings.

    MuJoCo 3.3 may read its degrees as the scene's radians; 3.17 and 4.0 were seen to keep them, versions between were not tried.
    """
    major, minor = (int(part) for part in mujoco.__version__.split(".")[:2])
    return (major, minor) >= (3, 17)
