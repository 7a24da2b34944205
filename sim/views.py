"""What a camera sees besides colour: how far everything is, and which body it belongs to; from any place beside the scene."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from sim.gl import release
from sim.render import SceneRenderer, camera_matrix, camera_pose
from sim.robots.config import find
from sim.scene import Scene, mjcf
from sinew.errors import InputError

NOTHING = -1
"""In the place of a body where the sky is seen."""


@dataclass(frozen=True, kw_only=True)
class SceneView:
    """One look at a scene."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    depth_m: np.ndarray
    """(H, W) float32, along the optical axis."""
    body: np.ndarray
    """(H, W) int32, number of the body that is seen; 0 is the table and what stands still with it, -1 nothing."""
    matrix: np.ndarray
    """(3, 3) pinhole matrix, pixel centres at integers."""
    T_world_camera: np.ndarray
    """(4, 4) metres; x right, y down, z forward."""


_SPECKLES = 32
"""Texels along the edge of a face."""


def speckled(scene: Scene) -> mujoco.MjModel:
    """The scene's model with a pattern of speckles on the objects, which gives something to follow in pictures.

    States of one model are states of the other.

    Raises:
        InputError: the scene is of another robot than the task's own.
    """
    spec, rng = mujoco.MjSpec.from_string(mjcf(scene.task)), np.random.default_rng(0)
    for name in scene.task.objects:
        for i, geom in enumerate(spec.body(name).geoms):
            label = f"speckles {name} {i}"
            _pattern(spec, label, np.array(geom.rgba[:3]), rng)
            geom.material, geom.rgba = label, (1.0, 1.0, 1.0, 1.0)
    model = spec.compile()
    if (model.nq, model.nbody) != (scene.model.nq, scene.model.nbody):
        raise InputError(f"objects can be drawn with speckles for the arm that comes with {type(scene.task).__name__} alone")
    return model


def _pattern(spec: mujoco.MjSpec, label: str, colour: np.ndarray, rng: np.random.Generator) -> None:
    """A material of speckles around a colour (3,) in 0 to 1."""
    noise = rng.standard_normal((6 * _SPECKLES, _SPECKLES))
    for axis in (0, 1):  # speckles of about three texels
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    light = np.clip(0.5 + 0.25 * noise / noise.std(), 0.0, 1.0)[..., None]
    texels = (255 * np.clip(0.25 * colour + light * (0.9 * colour + 0.25), 0.0, 1.0)).astype(np.uint8)
    spec.add_texture(
        name=label, type=mujoco.mjtTexture.mjTEXTURE_CUBE, width=_SPECKLES, height=6 * _SPECKLES, nchannel=3, data=texels.ravel().tolist()
    )
    material = spec.add_material(name=label)
    textures = list(material.textures)
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = label
    material.textures = textures


class SceneViews(SceneRenderer):
    """Draws colour, depth and bodies of states of one model."""

    def look(self, qpos: np.ndarray, camera: str, height: int, width: int, turned_rad: float = 0.0) -> SceneView:
        """One state, from a named camera or from beside it.

        Args:
            qpos: (nq,).
            camera: whose lens it is.
            height: of the pictures, pixels.
            width: likewise.
            turned_rad: the camera is carried so far around the vertical through what it looks at, on the table.

        Raises:
            InputError: no camera of that name.
        """
        T = self._carried(qpos, camera, turned_rad)
        self._gl.make_current()
        try:
            image = self._coloured(qpos, T, height, width)
            depth, body = self._numbered(height, width)
        finally:
            release()
        return SceneView(image=image, depth_m=depth, body=body, matrix=camera_matrix(self._model, camera, height, width), T_world_camera=T)

    def picture(
        self, qpos: np.ndarray, camera: str, height: int, width: int, turned_rad: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Colour alone, in half the time of `look`: (H, W, 3) uint8 RGB, matrix (3, 3), and T_world_camera (4, 4)."""
        T = self._carried(qpos, camera, turned_rad)
        self._gl.make_current()
        try:
            image = self._coloured(qpos, T, height, width)
        finally:
            release()
        return image, camera_matrix(self._model, camera, height, width), T

    def _carried(self, qpos: np.ndarray, camera: str, turned_rad: float) -> np.ndarray:
        """(4, 4) where the camera is, carried around the scene."""
        self._camera.fixedcamid = find(self._model, "camera", camera, "scene")
        T = camera_pose(self._model, qpos, camera)
        return _around(_looked_at(T), turned_rad) @ T

    def _coloured(self, qpos: np.ndarray, T: np.ndarray, height: int, width: int) -> np.ndarray:
        """(H, W, 3) uint8 from a camera at T."""
        self._data.qpos[:] = qpos
        for update in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
            update(self._model, self._data)
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, self._camera, every, self._scene)
        for eye in self._scene.camera:
            eye.pos[:], eye.forward[:], eye.up[:] = T[:3, 3], T[:3, 2], -T[:3, 1]
        viewport, image = mujoco.MjrRect(0, 0, width, height), np.empty((height, width, 3), np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return image[::-1].copy()

    def _numbered(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Depth in metres and bodies of what was drawn last."""
        viewport = mujoco.MjrRect(0, 0, width, height)
        ids, depth = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
        before = self._context.readDepthMap
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR.value
        flags = (mujoco.mjtRndFlag.mjRND_SEGMENT.value, mujoco.mjtRndFlag.mjRND_IDCOLOR.value)
        self._scene.flags[list(flags)] = 1
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(ids, depth, viewport, self._context)
        self._scene.flags[list(flags)] = 0
        self._context.readDepthMap = before
        return self._metres(depth[::-1]), self._bodies(ids[::-1])

    def _metres(self, depth: np.ndarray) -> np.ndarray:
        """From the depth buffer, 1 near and 0 far, to metres along the optical axis."""
        extent, reach = self._model.stat.extent, self._model.vis.map
        near, far = reach.znear * extent, reach.zfar * extent
        return (far * near / (depth.astype(np.float64) * (far - near) + near)).astype(np.float32)

    def _bodies(self, ids: np.ndarray) -> np.ndarray:
        """From colours that number what was drawn to bodies."""
        number = ids.astype(np.int64) @ np.array([1, 256, 65536])
        of = np.full(self._scene.ngeom + 1, NOTHING, dtype=np.int32)
        for i in range(self._scene.ngeom):
            geom = self._scene.geoms[i]
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM.value and 0 <= geom.segid < self._scene.ngeom:
                of[geom.segid + 1] = self._model.geom_bodyid[geom.objid]
        return of[np.where(number <= self._scene.ngeom, number, 0)]


def _looked_at(T: np.ndarray) -> np.ndarray:
    """(3,) where the optical axis meets the table."""
    return T[:3, 3] - T[:3, 2] * T[2, 3] / min(T[2, 2], -1e-3)


def _around(point: np.ndarray, angle_rad: float) -> np.ndarray:
    """(4, 4) rotation about the vertical through a point."""
    turn, c, s = np.eye(4), np.cos(angle_rad), np.sin(angle_rad)
    turn[:2, :2] = [[c, -s], [s, c]]
    turn[:3, 3] = point - turn[:3, :3] @ point
    return turn
