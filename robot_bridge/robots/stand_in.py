"""A robot of a config in MuJoCo: an arm that stands in for the real one, without a scene."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np

from robot_bridge.robots.config import RobotConfig
from robot_bridge.robots.mjcf import mjcf

if TYPE_CHECKING:
    from sim.render import SceneRenderer

GRIPPER_M_S = 0.1
"""Speed of grippers whose own is not known."""
HOME_NOISE_RAD = 0.005


class ArmPhysics:
    """The joints of a robot with servos of its torques; grippers move at their speed. A `robot_bridge.sim_robot.Physics`.

    Args:
        config: the robot; its frames must be known.
        seed: fixes the small deviation from home that it starts with.
        model: the compiled robot with more in its scene; the robot alone if left out.

    Raises:
        InputError: the frames are not known.
    """

    def __init__(self, config: RobotConfig, seed: int = 0, model: mujoco.MjModel | None = None) -> None:
        self.config = config
        self.model = model or mujoco.MjModel.from_xml_string(mjcf(config))
        self.data = mujoco.MjData(self.model)
        names = config.spec.joint_names
        self._qpos = np.array([self.model.joint(name).qposadr[0] for name in names])
        self._qvel = np.array([self.model.joint(name).dofadr[0] for name in names])
        self._ctrl = np.array([self.model.actuator(name).id for name in names])
        self._grippers = sum(len(s.names) for s in config.contract.sources if s.key == "gripper")
        self._renderer: SceneRenderer | None = None
        self._owed_s = 0.0
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Stand at home, grippers open."""
        spec = self.config.spec
        mujoco.mj_resetData(self.model, self.data)
        home = np.array(spec.home_rad or [0.0] * len(spec.joint_names))
        noise = HOME_NOISE_RAD * np.random.default_rng(seed).uniform(-1.0, 1.0, len(home))
        start = np.clip(home + noise, np.array(spec.position_low_rad) + 1e-6, np.array(spec.position_high_rad) - 1e-6)
        self.data.qpos[self._qpos] = start
        self.data.ctrl[self._ctrl] = start
        self._openings = np.full(self._grippers, spec.gripper_high_m)
        self._owed_s = 0.0
        mujoco.mj_forward(self.model, self.data)

    def step(self, joint_target: np.ndarray, gripper_target: float | np.ndarray, duration_s: float) -> None:
        """Move towards targets for a while."""
        spec = self.config.spec
        self.data.ctrl[self._ctrl] = joint_target
        self._owed_s += duration_s
        steps = int(self._owed_s / self.model.opt.timestep + 1e-9)
        self._owed_s -= steps * self.model.opt.timestep
        if steps:
            mujoco.mj_step(self.model, self.data, steps)
        if self._grippers:
            wanted = np.clip(np.atleast_1d(gripper_target), spec.gripper_low_m, spec.gripper_high_m)
            most = (self.config.gripper_velocity_max_m_s or GRIPPER_M_S) * duration_s
            self._openings = self._openings + np.clip(wanted - self._openings, -most, most)

    @property
    def joint_position(self) -> np.ndarray:
        """(J,) rad."""
        return self.data.qpos[self._qpos].copy()

    @property
    def joint_velocity(self) -> np.ndarray:
        """(J,) rad/s."""
        return self.data.qvel[self._qvel].copy()

    @property
    def joint_effort(self) -> np.ndarray:
        """(J,) Nm of the servos."""
        return self.data.actuator_force[self._ctrl].copy()

    @property
    def gripper(self) -> float | np.ndarray:
        """Opening in metres; (G,) for none or several grippers."""
        return float(self._openings[0]) if self._grippers == 1 else self._openings.copy()

    @property
    def poses(self) -> dict[str, np.ndarray]:
        """No objects."""
        return {}

    @property
    def success(self) -> bool:
        """There is nothing to do."""
        return False

    def image(self, camera: str, height: int = 240, width: int = 320) -> np.ndarray:
        """(height, width, 3) uint8: from a hand for "wrist", else from the front."""
        from sim.render import SceneRenderer

        if self._renderer is None:
            self._renderer = SceneRenderer(self.model)
        return self._renderer.images(self.data.qpos[None].copy(), self._seen_by(camera), height, width)[0]

    def fovy_rad(self, camera: str) -> float:
        """Vertical field of view of the camera that `image` takes."""
        return float(np.deg2rad(self.model.camera(self._seen_by(camera)).fovy[0]))

    def _seen_by(self, camera: str) -> str:
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        return camera if camera in known else "front"

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
