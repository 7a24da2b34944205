"""One simulated robot in continuous time: what a process that plays a real robot steps."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np

from sim.interface import TaskInterface, make_interface
from sinew.errors import SpecError

if TYPE_CHECKING:
    from sim.render import SceneRenderer


class RobotSim:
    """A single world of a task, driven by joint targets; the same model and servos as the batched environment.

    Given the targets that the batched environment's decoder makes, once per control period, it moves exactly as a world of
    that environment does.

    Args:
        task: registered task.
        seed: episode; fixes where everything starts.
        interface: of a scene that is not registered; `task` is then only what it is called.
    """

    def __init__(self, task: str, seed: int = 0, interface: TaskInterface | None = None) -> None:
        self.interface: TaskInterface = interface or make_interface(task)
        self.scene = self.interface.scene
        self.data = mujoco.MjData(self.scene.model)
        self._renderer: SceneRenderer | None = None
        self._owed_s = 0.0
        self._held_s = 0.0
        self.seed = seed
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` fixes."""
        self.seed = seed
        mujoco.mj_resetData(self.scene.model, self.data)
        self.data.qpos[:] = self.scene.initial(seed)
        self._goal = self.scene.control(self.joint_position[None], self._openings[None])[0]
        self._from, self._ramped = self._goal.copy(), self.scene.substeps
        self.data.ctrl[:] = self._goal
        mujoco.mj_forward(self.scene.model, self.data)
        self._owed_s = self._held_s = 0.0

    def step(self, joint_target: np.ndarray, gripper_target: float | np.ndarray, duration_s: float) -> None:
        """Move towards the targets for a while; what is left of a physics step is made up for by the next call.

        Servo targets ramp from the old to the new over one control period, as robot drivers interpolate.

        Args:
            joint_target: (J,) rad.
            gripper_target: opening in metres; (G,) for several grippers.
            duration_s: simulated seconds, any length.

        Raises:
            SpecError: a target is not finite or has another number of elements; nothing has moved.
        """
        joints = np.asarray(joint_target, dtype=np.float64).reshape(1, -1)
        opening = np.asarray(gripper_target, dtype=np.float64).reshape(1, -1)
        if joints.shape[1] != len(self.scene.joint_qpos) or opening.shape[1] != len(self.scene.finger_qpos):
            raise SpecError(f"{joints.shape[1]} joint and {opening.shape[1]} gripper targets for {len(self.scene.joint_qpos)} joints")
        if not (np.isfinite(joints).all() and np.isfinite(opening).all()):
            raise SpecError("a target is not finite")
        goal = self.scene.control(joints, opening)[0]
        if not np.array_equal(goal, self._goal):
            self._from, self._goal, self._ramped = self.data.ctrl.copy(), goal, 0
        timestep = self.scene.model.opt.timestep
        self._owed_s += duration_s
        steps = int(self._owed_s / timestep + 1e-6)
        self._owed_s -= steps * timestep
        if steps:
            # The batched environment starts its solver cold at every control step; so does this one.
            self.data.qacc_warmstart[:] = 0.0
            for _ in range(steps):
                self._ramped = min(self._ramped + 1, self.scene.substeps)
                self.data.ctrl[:] = self._from + self._ramped / self.scene.substeps * (self._goal - self._from)
                mujoco.mj_step(self.scene.model, self.data)
            self._held_s = self._held_s + steps * timestep if self._goal_holds() else 0.0

    @property
    def joint_position(self) -> np.ndarray:
        """(J,) rad."""
        return self.data.qpos[self.scene.joint_qpos]

    @property
    def joint_velocity(self) -> np.ndarray:
        """(J,) rad/s."""
        return self.data.qvel[self.scene.joint_qvel]

    @property
    def joint_effort(self) -> np.ndarray:
        """(J,) Nm that the servos exert on the joints."""
        return self.data.qfrc_actuator[self.scene.joint_qvel]

    @property
    def gripper(self) -> float | np.ndarray:
        """Opening in metres; (G,) for several grippers."""
        return float(self._openings[0]) if len(self._openings) == 1 else self._openings

    @property
    def _openings(self) -> np.ndarray:
        return self.scene.openings(self.data.qpos[None])[0]

    @property
    def poses(self) -> dict[str, np.ndarray]:
        """{object: (7,)} xyz and wxyz quaternion, world frame."""
        return {name: value[0].copy() for name, value in self.scene.poses(self.data.qpos[None]).items()}

    @property
    def tool_pose(self) -> np.ndarray:
        """(7,) pose of the first tool, xyz and wxyz quaternion, world frame."""
        frames = self.interface.chains[0].forward(self.joint_position[None, : len(self.scene.robots[0].joints)])
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(frames.rotation[..., 0]).reshape(9))
        return np.concatenate((frames.position[:, 0], quaternion))

    @property
    def time_s(self) -> float:
        """Simulated seconds since the reset."""
        return float(self.data.time)

    @property
    def success(self) -> bool:
        """Whether the task's goal has held as long as it must."""
        needed = (self.scene.task.hold_steps - 1) / self.scene.task.rate_hz
        return self._goal_holds() and self._held_s >= needed

    def _goal_holds(self) -> bool:
        qpos, qvel = self.data.qpos[None], self.data.qvel[None]
        scene = self.scene
        view = self.interface.observe_and_view(
            qpos[:, scene.joint_qpos], qvel[:, scene.joint_qvel], scene.openings(qpos), scene.poses(qpos)
        )[1]
        return bool(scene.task.success(view)[0])

    def image(self, camera: str, height: int = 240, width: int = 320) -> np.ndarray:
        """(height, width, 3) uint8 picture of camera "front" or "wrist"."""
        from sim.render import SceneRenderer

        if self._renderer is None:
            self._renderer = SceneRenderer(self.scene.model)
        return self._renderer.images(self.data.qpos[None].copy(), camera, height, width)[0]

    def camera_matrix(self, camera: str, height: int = 240, width: int = 320) -> np.ndarray:
        """Intrinsics K (3, 3) in pixels of a camera for pictures of height x width."""
        from sim.render import camera_matrix

        return camera_matrix(self.scene.model, camera, height, width)

    def camera_pose(self, camera: str) -> np.ndarray:
        """T_world_camera (4, 4) now; x right, y down, z forward."""
        from sim.render import camera_pose

        return camera_pose(self.scene.model, self.data.qpos, camera)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
