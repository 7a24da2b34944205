"""That the step, integrator and contact settings which make the simulator fast keep its physics sound."""

# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false
import mujoco
import numpy as np

from sim.robots.arm import home
from sim.scene import Scene, build_scene, load_scene, mjcf
from sim.tasks.base import pose
from sim.tasks.lift import HALF_M

GRAVITY = 9.81


def fresh(scene: Scene, cube: np.ndarray, tool: tuple[float, float, float], opening: float) -> mujoco.MjData:
    data = mujoco.MjData(scene.model)
    data.qpos[scene.joint_qpos] = home(*tool)
    data.qpos[scene.finger_qpos[0]] = opening / 2
    data.qpos[scene.objects[0].free_address :][:7] = cube
    command(scene, data, tool, opening)
    return data


def command(scene: Scene, data: mujoco.MjData, tool: tuple[float, float, float], opening: float) -> None:
    data.ctrl[:] = scene.control(np.array([home(*tool)]), np.array([opening]))[0]


def test_a_free_cube_falls_as_semi_implicit_integration_says() -> None:
    scene = load_scene("lift")
    data = fresh(scene, pose(0.5, 0.0, 1.0), (0.4, 0.2, 0.3), 0.08)
    steps, h = 30, scene.model.opt.timestep
    mujoco.mj_step(scene.model, data, steps)
    # v_k = -g h k and z_k = z_0 + h * sum(v_1 .. v_k) = z_0 - g h² k (k + 1) / 2
    fallen = 1.0 - data.qpos[scene.objects[0].free_address + 2]
    np.testing.assert_allclose(fallen, GRAVITY * h**2 * steps * (steps + 1) / 2, rtol=1e-9)
    # and that is within 4 % of g t² / 2 already after 0.3 s
    np.testing.assert_allclose(fallen, GRAVITY * (steps * h) ** 2 / 2, rtol=0.04)


def test_a_free_swinging_arm_keeps_its_energy() -> None:
    text = mjcf(load_scene("lift").task).replace('gravcomp="1"', "").replace('damping=".5"', "").replace('damping="1"', "")
    flags = '<flag energy="enable" actuation="disable" limit="disable" contact="disable" '
    model = mujoco.MjModel.from_xml_string(text.replace("<flag ", flags))
    scene = build_scene(load_scene("lift").task, model)
    data = fresh(scene, pose(0.5, 0.0, 5.0), (0.5, 0.0, 0.4), 0.08)
    mujoco.mj_forward(model, data)
    start = data.energy.sum()
    worst, swing = 0.0, 0.0
    for _ in range(100):
        mujoco.mj_step(model, data)
        worst = max(worst, abs(data.energy.sum() - start))
        swing = max(swing, data.energy[1])
    assert worst < 0.05 * swing, f"{worst:.3f} J of {swing:.1f} J"


def test_a_cube_at_rest_stays_at_rest() -> None:
    scene = load_scene("lift")
    data = fresh(scene, pose(0.5, 0.05, HALF_M, 0.2), (0.4, 0.0, 0.3), 0.08)
    mujoco.mj_step(scene.model, data, 50)
    address = scene.objects[0].free_address
    before = data.qpos[address : address + 7].copy()
    mujoco.mj_step(scene.model, data, 500)
    np.testing.assert_allclose(data.qpos[address : address + 7], before, atol=2e-5)
    assert HALF_M - 5e-4 < before[2] < HALF_M + 1e-5


def grasp(offset_x: float) -> tuple[Scene, mujoco.MjData, list[float]]:
    """Close on a cube, lift it by 18 cm in half a second; penetration in metres over time."""
    scene = load_scene("lift")
    data = fresh(scene, pose(0.5 + offset_x, 0.0, HALF_M, 0.15), (0.5, 0.0, HALF_M), 0.08)
    depths = []

    def run(steps: int) -> None:
        for _ in range(steps):
            mujoco.mj_step(scene.model, data)
            depths.append(-min([0.0, *data.contact.dist]))

    run(10)
    command(scene, data, (0.5, 0.0, HALF_M), 0.0)
    run(40)
    for height in np.linspace(HALF_M, 0.2, 10):
        command(scene, data, (0.5, 0.0, height), 0.0)
        run(5)
    run(50)
    return scene, data, depths


def test_a_grasp_holds_two_seconds_without_slip_and_hardly_penetrates() -> None:
    for offset in (0.0, 0.015):
        scene, data, depths = grasp(offset)
        cube = slice(scene.objects[0].free_address, scene.objects[0].free_address + 3)
        tool = mujoco.mj_name2id(scene.model, mujoco.mjtObj.mjOBJ_SITE, "tool")
        assert data.qpos[cube][2] > 0.18
        in_hand = data.qpos[cube] - data.site_xpos[tool]
        mujoco.mj_step(scene.model, data, 200)
        slip = np.linalg.norm(data.qpos[cube] - data.site_xpos[tool] - in_hand)
        assert slip < 1e-3, f"{1e3 * slip:.2f} mm in 2 s"
        # 4 cm cube: under 4 mm at the moment of touching, 2 mm while held
        assert max(depths) < 4e-3 and max(depths[-50:]) < 2e-3, f"{1e3 * max(depths):.1f} mm, held {1e3 * max(depths[-50:]):.1f} mm"


def test_halving_the_step_hardly_changes_where_a_lift_ends() -> None:
    heights = []
    for timestep in (0.01, 0.005):
        model = mujoco.MjModel.from_xml_string(mjcf(load_scene("lift").task, timestep))
        scene = build_scene(load_scene("lift").task, model)
        data = fresh(scene, pose(0.5, 0.0, HALF_M), (0.5, 0.0, HALF_M), 0.08)
        command(scene, data, (0.5, 0.0, HALF_M), 0.0)
        mujoco.mj_step(model, data, round(0.5 / timestep))
        for height in np.linspace(HALF_M, 0.2, 10):
            command(scene, data, (0.5, 0.0, height), 0.0)
            mujoco.mj_step(model, data, round(0.05 / timestep))
        mujoco.mj_step(model, data, round(0.5 / timestep))
        heights.append(data.qpos[scene.objects[0].free_address + 2])
    np.testing.assert_allclose(heights[0], heights[1], atol=2e-3)


def test_the_arm_holds_its_posture_and_follows_a_step() -> None:
    scene = load_scene("lift")
    data = fresh(scene, pose(0.6, 0.2, HALF_M), (0.5, 0.0, 0.2), 0.08)
    start = data.qpos[scene.joint_qpos].copy()
    mujoco.mj_step(scene.model, data, 100)
    np.testing.assert_allclose(data.qpos[scene.joint_qpos], start, atol=1e-6)  # gravity is compensated
    command(scene, data, (0.52, 0.0, 0.2), 0.08)
    mujoco.mj_step(scene.model, data, 30)
    np.testing.assert_allclose(data.qpos[scene.joint_qpos], home(0.52, 0.0, 0.2), atol=2e-3)


def test_the_state_row_begins_with_time_positions_and_velocities() -> None:
    model = load_scene("peg").model
    data = mujoco.MjData(model)
    data.time = 7.0
    data.qpos[:], data.qvel[:] = np.arange(model.nq) + 100, np.arange(model.nv) + 200
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    state = np.zeros(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    np.testing.assert_array_equal(state, np.concatenate(([7.0], data.qpos, data.qvel)))
