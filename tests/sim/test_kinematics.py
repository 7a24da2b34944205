"""Forward kinematics against MuJoCo's own, Jacobians against finite differences."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import mujoco
import numpy as np
import pytest

from sim.kinematics import Chain, quaternion_columns
from sim.scene import load_scene
from sinew.errors import InputError


@pytest.mark.parametrize("task", ["lift", "handover"])
def test_forward_equals_mujoco(task: str) -> None:
    scene = load_scene(task)
    rng = np.random.default_rng(0)
    for arm, robot in enumerate(scene.robots):
        chain = Chain(scene.model, robot.joints, robot.tool)
        columns = scene.joint_qpos[arm * 7 : arm * 7 + 7]
        q = rng.uniform(-2, 2, (20, 7))
        frames = chain.forward(q)
        data = mujoco.MjData(scene.model)
        for i in range(20):
            data.qpos[columns] = q[i]
            mujoco.mj_kinematics(scene.model, data)
            site = mujoco.mj_name2id(scene.model, mujoco.mjtObj.mjOBJ_SITE, robot.tool)
            np.testing.assert_allclose(frames.position[:, i], data.site_xpos[site], atol=1e-12)
            np.testing.assert_allclose(frames.rotation[..., i].reshape(9), data.site_xmat[site], atol=1e-12)


def test_jacobian_equals_finite_differences() -> None:
    scene = load_scene("lift")
    chain = Chain(scene.model, scene.robots[0].joints, scene.robots[0].tool)
    q = np.random.default_rng(1).uniform(-1.5, 1.5, (5, 7))
    frames = chain.forward(q)
    jacobian = chain.jacobian(frames)
    step = 1e-6
    for j in range(7):
        plus, minus = q.copy(), q.copy()
        plus[:, j] += step
        minus[:, j] -= step
        ahead, behind = chain.forward(plus), chain.forward(minus)
        np.testing.assert_allclose(jacobian[:3, j], (ahead.position - behind.position) / (2 * step), atol=1e-8)
        change = (ahead.rotation - behind.rotation) / (2 * step)
        spin = np.einsum("ijn,kjn->ikn", change, frames.rotation)  # the skew matrix of the angular velocity: dR R'
        np.testing.assert_allclose(jacobian[3:, j], np.stack((spin[2, 1], spin[0, 2], spin[1, 0])), atol=1e-8)


def test_rows_do_not_depend_on_each_other_to_the_bit() -> None:
    scene = load_scene("lift")
    chain = Chain(scene.model, scene.robots[0].joints, scene.robots[0].tool)
    q = np.random.default_rng(2).uniform(-2, 2, (130, 7))
    together = chain.forward(q)
    for i in (0, 7, 64, 129):
        alone = chain.forward(q[i : i + 1])
        assert np.array_equal(alone.position[:, 0], together.position[:, i])
        assert np.array_equal(chain.jacobian(alone)[..., 0], chain.jacobian(together)[..., i])


def test_slides_references_and_offset_anchors() -> None:
    model = mujoco.MjModel.from_xml_string("""<mujoco><compiler angle="radian"/><worldbody>
      <body name="a" pos=".1 .2 .3" euler=".3 .2 .1"><joint name="s" type="slide" axis="1 1 0" ref=".2"/><geom size=".1"/>
       <body name="b" pos="0 .1 .2"><joint name="h" axis="0 1 1" pos=".05 0 .1" ref=".4"/><geom size=".1"/>
        <body name="c" pos="0 0 .3" quat=".7 .1 .2 .3"><geom size=".1"/></body></body></body></worldbody></mujoco>""")
    chain = Chain(model, ("s", "h"), "c")
    data = mujoco.MjData(model)
    for q in np.random.default_rng(3).uniform(-1, 1, (5, 2)):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        frames = chain.forward(q[None])
        np.testing.assert_allclose(frames.position[:, 0], data.xpos[3], atol=1e-12)
        np.testing.assert_allclose(frames.rotation[..., 0].reshape(9), data.xmat[3], atol=1e-12)
        mujoco.mj_comPos(model, data)
        linear, angular = np.zeros((3, 2)), np.zeros((3, 2))
        mujoco.mj_jacBody(model, data, linear, angular, 3)
        np.testing.assert_allclose(chain.jacobian(frames)[..., 0], np.concatenate((linear, angular)), atol=1e-12)


def test_joint_beside_the_chain_is_refused_by_name() -> None:
    scene = load_scene("lift")
    with pytest.raises(InputError, match="'finger1' does not move tool 'tool'"):
        Chain(scene.model, ("joint1", "finger1"), "tool")


def test_quaternion_columns_equal_mujoco() -> None:
    q = np.random.default_rng(4).standard_normal((10, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    for row, columns in zip(q, quaternion_columns(q), strict=True):
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, row)
        np.testing.assert_allclose(columns, matrix.reshape(3, 3)[:, :2].T.reshape(6), atol=1e-12)
