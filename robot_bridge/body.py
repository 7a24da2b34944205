"""A robot's body drawn by MuJoCo, for calibrations that need no board (`calibration.body.Body`).

It is here because it joins two packages of the layer below: `calibration`, which knows what a body must answer, and `sim`, which
knows which OpenGL library works.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from calibration.body import Drawing
from calibration.camera import Camera
from sim.gl import make_context, release
from sinew.errors import InputError, unknown
from sinew.se3 import Array, se3_inverse

HIDDEN_GROUP = 5
NEAR_M = 0.02


class MujocoBody:
    """The robot of a MuJoCo model: everything that hangs on the body that carries its joints, and nothing else of the scene.

    Joints that are not named stay where the model has them, but for those that an equality constraint couples to a named one. The
    frame of the base is that of the robot's first body, or the world's.

    Args:
        model: compiled; it is copied.
        joints: names in the order of the positions that will be given; all hinges and slides of the robot if left out.
        base: body whose frame is the base's; the robot's first body if left out, "world" for the world's.

    Raises:
        InputError: a joint or body is not there, the robot has no joints or no shape.
        MissingDependency: no OpenGL library works.
    """

    def __init__(self, model: mujoco.MjModel, joints: Sequence[str] = (), base: str = "") -> None:
        self._model = model = copy.copy(model)
        kinds = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
        movable = {model.joint(j).name: j for j in range(model.njnt) if int(model.jnt_type[j]) in kinds}
        for name in joints:
            if name not in movable:
                raise unknown("joint of the model", name, movable)
        if not movable:
            raise InputError("the model has no hinges or slides: it is no robot")
        ids = [movable[name] for name in joints] if joints else list(movable.values())
        roots = sorted({int(model.body_rootid[model.jnt_bodyid[j]]) for j in ids})
        if not joints:  # other bodies on slides, as buttons and drawers, are no part of the robot with the most joints
            root = max(roots, key=lambda r: sum(int(model.body_rootid[model.jnt_bodyid[j]]) == r for j in ids))
            ids, roots = [j for j in ids if int(model.body_rootid[model.jnt_bodyid[j]]) == root], [root]
        self._joints, self._ids = tuple(model.joint(j).name for j in ids), ids
        self._data, self._qpos = mujoco.MjData(model), model.jnt_qposadr[ids]
        self._coupled = _coupled(model, ids)
        self._base = self._base_body(base, roots[0])
        own = np.isin(model.body_rootid[model.geom_bodyid], roots) & (model.geom_bodyid > 0)
        shown = own & (model.geom_group <= 2) & (model.geom_rgba[:, 3] > 0)
        if not shown.any():
            raise InputError("the model has no shape of the robot that is shown (groups 0 to 2): a body without shape cannot be seen")
        self._geoms = np.flatnonzero(shown)
        model.geom_group[~shown] = HIDDEN_GROUP
        model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 0
        self._gl: Any = None

    @classmethod
    def load(cls, path: str | Path, joints: Sequence[str] = (), base: str = "") -> MujocoBody:
        """From an MJCF or URDF file.

        Raises:
            InputError: there is no such file, MuJoCo cannot read it, or as the constructor.
        """
        if not Path(path).is_file():
            raise InputError(f"robot model {path} does not exist; give an MJCF (.xml) or URDF (.urdf) file")
        try:
            spec = mujoco.MjSpec.from_file(str(path))
            spec.compiler.fusestatic = 0
            model = spec.compile()
        except ValueError as e:
            raise InputError(f"robot model {path} cannot be read: {str(e).strip().splitlines()[0]}") from None
        return cls(model, joints, base)

    @property
    def joints(self) -> tuple[str, ...]:
        return self._joints

    def bounds(self, joints: Array) -> tuple[Array, float]:
        """See `calibration.body.Body`."""
        self._place(joints)
        inverse = se3_inverse(self._T_world_base())
        at = self._data.geom_xpos[self._geoms] @ inverse[:3, :3].T + inverse[:3, 3]
        size = self._model.geom_rbound[self._geoms]
        middle = 0.5 * ((at - size[:, None]).min(0) + (at + size[:, None]).max(0))
        return middle, float((np.linalg.norm(at - middle, axis=1) + size).max())

    def draw(self, joints: Array, T_base_camera: Array, lens: Camera) -> Drawing:
        """See `calibration.body.Body`."""
        self._place(joints)
        T = self._T_world_base() @ T_base_camera
        self._open(lens)
        self._gl.make_current()
        try:
            return self._draw(T, lens)
        finally:
            release()

    def jacobians(self, joints: Array, points: Array, parts: np.ndarray) -> Array:
        """See `calibration.body.Body`."""
        self._place(joints)
        mujoco.mj_comPos(self._model, self._data)
        T = self._T_world_base()
        world = points @ T[:3, :3].T + T[:3, 3]
        linear, angular = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        columns, rates = self._columns()
        result = np.zeros((len(points), 3, len(self._ids)))
        for body in np.unique(parts):
            mine = parts == body
            mujoco.mj_jacBody(self._model, self._data, linear, angular, int(body))
            lever = world[mine] - self._data.xpos[body]
            moved = linear[None, :, columns] + np.cross(angular[:, columns].T[None], lever[:, None]).transpose(0, 2, 1)
            result[mine] = T[:3, :3].T @ (moved @ rates)
        return result

    def point(self, name: str, position: Sequence[float], joints: Array) -> Array:
        """See `calibration.body.Body`; names are of sites or bodies.

        Raises:
            InputError: neither a site nor a body has that name.
        """
        self._place(joints)
        site = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_SITE, name)
        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_BODY, name)
        if site < 0 and number < 0:
            raise unknown("body or site of the model", name, [self._model.body(b).name for b in range(1, self._model.nbody)])
        if site >= 0:
            rotation, at, number = self._data.site_xmat[site], self._data.site_xpos[site], int(self._model.site_bodyid[site])
        else:
            rotation, at = self._data.xmat[number], self._data.xpos[number]
        world = rotation.reshape(3, 3) @ np.asarray(position, dtype=float) + at
        inverse = se3_inverse(self._T_world_base())
        return np.append(inverse[:3, :3] @ world + inverse[:3, 3], number)

    def close(self) -> None:
        """Free the context."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    # ------------------------------------------------------------ inside

    def _base_body(self, base: str, root: int) -> int:
        if not base:
            return root
        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_BODY, base)
        if number < 0:
            raise unknown("body of the model", base, [self._model.body(b).name for b in range(self._model.nbody)])
        return number

    def _place(self, joints: Array) -> None:
        joints = np.asarray(joints, dtype=float)
        if joints.shape != (len(self._ids),) or not np.isfinite(joints).all():
            raise InputError(f"joint positions {joints.tolist()} are not {len(self._ids)} finite numbers, of {', '.join(self._joints)}")
        self._data.qpos[:] = self._model.qpos0
        self._data.qpos[self._qpos] = joints
        for address, source, reference, polynomial in self._coupled:
            off = float(self._data.qpos[source] - self._model.qpos0[source])
            self._data.qpos[address] = reference + np.polynomial.polynomial.polyval(off, polynomial)
        mujoco.mj_kinematics(self._model, self._data)

    def _columns(self) -> tuple[np.ndarray, Array]:
        """Degrees of freedom that the named joints move, and how fast each moves them (D, J)."""
        address = self._model.jnt_dofadr[self._ids]
        columns, rates = list(address), list(np.eye(len(self._ids)))
        by_qpos = {int(q): i for i, q in enumerate(self._qpos)}
        for target, source, _, polynomial in self._coupled:
            off = float(self._data.qpos[source] - self._model.qpos0[source])
            joint = int(np.flatnonzero(self._model.jnt_qposadr == target)[0])
            columns.append(int(self._model.jnt_dofadr[joint]))
            slope = np.polynomial.polynomial.polyval(off, np.polynomial.polynomial.polyder(polynomial))
            rates.append(slope * np.eye(len(self._ids))[by_qpos[source]])
        return np.array(columns), np.array(rates)

    def _T_world_base(self) -> Array:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self._data.xmat[self._base].reshape(3, 3), self._data.xpos[self._base]
        return pose

    def _open(self, lens: Camera) -> None:
        if self._gl is not None and lens.width <= self._size[0] and lens.height <= self._size[1]:
            return
        self.close()
        self._size = lens.width, lens.height
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = self._size
        self._gl = make_context(*self._size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR.value
        self._scene = mujoco.MjvScene(self._model, maxgeom=self._model.ngeom + 100)
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
            self._scene.flags[flag.value] = 1
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = [1, 1, 1, 0, 0, 0]
        self._options.sitegroup[:] = 0

    def _box(self, T_world_camera: Array, lens: Camera) -> tuple[int, int, int, int]:
        """Left, top, width and height of the part of a drawing in which the robot is: no more is drawn."""
        at = (self._data.geom_xpos[self._geoms] - T_world_camera[:3, 3]) @ T_world_camera[:3, :3]
        radius = self._model.geom_rbound[self._geoms]
        nearest = at[:, 2] - radius
        size = np.array([lens.width, lens.height])
        if nearest.min() < NEAR_M:
            return 0, 0, lens.width, lens.height
        middle = at[:, :2] / at[:, 2:] * lens.focal[0] + np.array(lens.centre)
        # a ball's farthest ray from its middle: its radius, and as much again of its distance from the axis, at its nearest depth
        reach = (radius * (1 + np.linalg.norm(at[:, :2], axis=1) / at[:, 2]) / nearest * lens.focal[0])[:, None] + 3
        low = np.clip(np.floor((middle - reach).min(0)), 0, size - 8).astype(int)
        high = np.clip(np.ceil((middle + reach).max(0)), low + 8, size).astype(int)
        return int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])

    def _draw(self, T_world_camera: Array, lens: Camera) -> Drawing:
        scene = self._scene
        left, top, width, height = self._box(T_world_camera, lens)
        camera = mujoco.MjvCamera()
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
        far = float(np.linalg.norm(self._data.geom_xpos[self._geoms] - T_world_camera[:3, 3], axis=1).max())
        far += float(self._model.geom_rbound[self._geoms].max()) + 0.1
        for eye in scene.camera:
            eye.pos[:], eye.forward[:], eye.up[:] = T_world_camera[:3, 3], T_world_camera[:3, 2], -T_world_camera[:3, 1]
            eye.frustum_near, eye.frustum_far, eye.orthographic = NEAR_M, far, 0
            per = NEAR_M / lens.focal[0]
            eye.frustum_top, eye.frustum_bottom = per * (lens.centre[1] + 0.5 - top), per * (lens.centre[1] + 0.5 - top - height)
            eye.frustum_center = per * (left + width / 2 - 0.5 - lens.centre[0])
            eye.frustum_width = per * width / 2
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, scene, self._context)
        colour, depth = np.empty((height, width, 3), dtype=np.uint8), np.empty((height, width), dtype=np.float32)
        mujoco.mjr_readPixels(colour, depth, viewport, self._context)
        number = colour[::-1, :, 0].astype(np.int32)
        if scene.ngeom >= 255:
            number += 256 * colour[::-1, :, 1].astype(np.int32) + 65536 * colour[::-1, :, 2].astype(np.int32)
        body = np.full(scene.ngeom + 1, -1, dtype=np.int32)
        for geom in scene.geoms[: scene.ngeom]:
            if geom.objtype == int(mujoco.mjtObj.mjOBJ_GEOM) and geom.segid >= 0:
                body[geom.segid + 1] = self._model.geom_bodyid[geom.objid]
        # the buffer holds 1 at the near plane and 0 at the far one, where float32 is finest
        whole = Drawing(np.zeros((lens.height, lens.width), np.float32), np.full((lens.height, lens.width), -1, np.int32))
        here = slice(top, top + height), slice(left, left + width)
        whole.depth[here] = np.float32(NEAR_M * far) / (np.float32(NEAR_M) + depth[::-1] * np.float32(far - NEAR_M))
        whole.part[here] = body[np.minimum(number, scene.ngeom)]
        return whole


def _coupled(model: mujoco.MjModel, given: Sequence[int]) -> list[tuple[int, int, float, Array]]:
    """Joints that follow a given one: (its qpos, the given one's qpos, its reference, polynomial)."""
    found = []
    for e in range(model.neq):
        one, other = int(model.eq_obj1id[e]), int(model.eq_obj2id[e])
        if int(model.eq_type[e]) != int(mujoco.mjtEq.mjEQ_JOINT) or one in given or other not in given:
            continue
        target, source = int(model.jnt_qposadr[one]), int(model.jnt_qposadr[other])
        found.append((target, source, float(model.qpos0[target]), np.array(model.eq_data[e, :5], dtype=float)))
    return found


def body_of(robot: str, joints: Sequence[str] = (), base: str = "") -> MujocoBody:
    """The body of an MJCF or URDF file, or of the arm of a simulated task.

    Raises:
        InputError: there is no such file or task; the robot is one whose shape we do not have.
    """
    import sim
    from robot_bridge.robots import ROBOTS

    if robot in sim.TASK_NAMES:
        from sim.scene import load_scene

        return MujocoBody(load_scene(robot).model, joints, base)
    if robot in ROBOTS:
        raise InputError(
            f"robot {robot!r} is known by its joints and by capsules, which do not look like it: give its maker's MJCF or URDF with meshes"
        )
    if not Path(robot).suffix:
        raise InputError(f"robot {robot!r}: give an MJCF or URDF file, or a simulated task for its arm: {', '.join(sim.TASK_NAMES)}")
    return MujocoBody.load(robot, joints, base)
