"""Pictures of simulated worlds, and the pinhole model of the cameras that took them."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from sim.gl import make_context, release
from sim.robots.config import find
from sinew.errors import InputError

if TYPE_CHECKING:
    from sim.robot_sim import RobotSim
    from sim.vec_env import MujocoVecEnv


class SceneRenderer:
    """Draws states of one model, one picture after the other, off screen.

    The model's shadows and multisampling are off: on a CPU they cost 4 to 50 times the picture itself.

    Raises:
        MissingDependency: no OpenGL library works; names the packages to install.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._width, self._height = int(model.vis.global_.offwidth), int(model.vis.global_.offheight)
        self._gl: Any = make_context(self._width, self._height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._data = mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW.value] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION.value] = 0
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        release()

    def images(
        self, qpos: np.ndarray, camera: str, height: int, width: int, models: Sequence[mujoco.MjModel] | None = None
    ) -> np.ndarray:
        """Pictures (n, height, width, 3) uint8 of the states qpos (n, nq), seen by a named camera.

        Args:
            qpos: states.
            camera: its name.
            height: of the pictures, pixels.
            width: likewise.
            models: one for each state, of the same size and with the same textures; the renderer's own if left out.

        Raises:
            InputError: no camera of that name, or the picture is larger than the model's off-screen buffer.
        """
        if height > self._height or width > self._width:
            raise InputError(f"image of {height}x{width} asked for; the largest is {self._height}x{self._width}")
        self._camera.fixedcamid = find(self._model, "camera", camera, "scene")
        images = np.empty((len(qpos), height, width, 3), dtype=np.uint8)
        self._gl.make_current()
        try:
            for image, positions, model in zip(images, qpos, models or [self._model] * len(qpos), strict=True):
                self._draw(image, positions, model)
        finally:
            release()
        return images

    def _draw(self, image: np.ndarray, qpos: np.ndarray, model: mujoco.MjModel) -> None:
        """Fill image (height, width, 3) with the state qpos (nq,)."""
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(model, self._data)
        mujoco.mj_comPos(model, self._data)
        mujoco.mj_camlight(model, self._data)
        mujoco.mjv_updateScene(
            model, self._data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, image.shape[1], image.shape[0])
        mujoco.mjr_render(viewport, self._scene, self._context)
        raw = np.empty(image.shape, dtype=np.uint8)
        mujoco.mjr_readPixels(raw, None, viewport, self._context)
        image[:] = raw[::-1]

    def close(self) -> None:
        """Free the context."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def camera_matrix(model: mujoco.MjModel, camera: str, height: int, width: int) -> np.ndarray:
    """Intrinsics K (3, 3) in pixels of a named camera for pictures of height x width; pixel centres at integers."""
    fovy = np.deg2rad(model.cam_fovy[find(model, "camera", camera, "scene")])
    focal = height / 2 / np.tan(fovy / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def camera_pose(model: mujoco.MjModel, qpos: np.ndarray, camera: str) -> np.ndarray:
    """T_world_camera (4, 4) of a named camera at qpos (nq,), in computer vision's axes: x right, y down, z forward."""
    index = find(model, "camera", camera, "scene")
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    T_world_camera = np.eye(4)
    T_world_camera[:3, :3] = data.cam_xmat[index].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    T_world_camera[:3, 3] = data.cam_xpos[index]
    return T_world_camera


def render_frame(env: MujocoVecEnv | RobotSim, index: int = 0, camera: str = "front", height: int = 240, width: int = 320) -> np.ndarray:
    """Picture (height, width, 3) uint8 of one world, for videos."""
    from sim.robot_sim import RobotSim

    if isinstance(env, RobotSim):
        return env.image(camera, height, width)
    return env.render(camera, height, width, np.array([index]))[0]
