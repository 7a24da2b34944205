"""Cameras: they see what is there, where the pinhole model says, and their pictures are part of observations."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import sim
from sim.gl import backend
from sinew.errors import InputError, MissingDependency


@pytest.fixture(autouse=True)
def opengl() -> Iterator[None]:
    """Skip where no OpenGL library can be loaded; `test_gl.py` covers what is said then."""
    try:
        backend()
    except MissingDependency as e:
        pytest.skip(str(e))
    yield


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_the_cube_is_seen_where_the_pinhole_model_projects_it(camera: str) -> None:
    height, width = 120, 160
    for seed in range(5):
        robot = sim.RobotSim("lift", seed)
        image = robot.image(camera, height, width).astype(int)
        red = (image[..., 0] > 2 * image[..., 1]) & (image[..., 0] > 60)
        rows, columns = np.nonzero(red)
        in_camera = np.linalg.inv(robot.camera_pose(camera)) @ np.append(robot.poses["cube"][:3], 1.0)
        u, v, w = robot.camera_matrix(camera, height, width) @ in_camera[:3]
        assert w > 0
        if camera == "wrist" and not (10 < u / w < width - 10 and 10 < v / w < height - 10):
            continue  # out of the wrist camera's sight
        assert abs(columns.mean() - u / w) < 4 and abs(rows.mean() - v / w) < 4, (seed, columns.mean(), u / w, rows.mean(), v / w)
        robot.close()


def test_pictures_are_part_of_observations_and_follow_the_world() -> None:
    env = sim.make_vec("lift", 3, cameras=("front", "wrist"), image_size=64)
    observation = env.reset([0, 1, 2])
    front = observation["observation.images.front"]
    assert front.shape == (3, 64, 64, 3) and str(front.dtype) == "torch.uint8"
    assert env.observation_spec.images == ("observation.images.front", "observation.images.wrist")
    assert front.float().std() > 10 and not bool((front[0] == front[1]).all())
    alone = sim.make_vec("lift", 1, cameras=("front",), image_size=64)
    np.testing.assert_array_equal(alone.reset([1])["observation.images.front"][0], front[1])
    np.testing.assert_array_equal(sim.render_frame(env, 1, "front", 64, 64), front[1])
    env.close()
    alone.close()


def test_reset_of_one_world_draws_only_its_picture_anew() -> None:
    env = sim.make_vec("lift", 2, cameras=("front",), image_size=48)
    before = env.reset([0, 1])["observation.images.front"].clone()
    after = env.reset([5], ids=[1])["observation.images.front"]
    assert bool((after[0] == before[0]).all()) and not bool((after[1] == before[1]).all())
    env.close()


def test_unknown_cameras_and_too_large_pictures_are_refused() -> None:
    robot = sim.RobotSim("handover")
    with pytest.raises(InputError, match="has no camera 'wrist'; its camera names are front, left_wrist, right_wrist"):
        robot.image("wrist")
    with pytest.raises(InputError, match="largest is 960x1280"):
        robot.image("front", 2000, 2000)


def test_camera_matrix_has_the_field_of_view() -> None:
    model = sim.make_interface("lift").scene.model
    matrix = sim.camera_matrix(model, "front", 100, 200)
    fovy = np.deg2rad(float(model.cam_fovy[0]))
    # a ray half the field of view above the axis meets the upper edge, 50 pixels above the centre
    np.testing.assert_allclose(matrix[1, 1] * np.tan(fovy / 2), 50)
    np.testing.assert_allclose(matrix, [[matrix[1, 1], 0, 99.5], [0, matrix[1, 1], 49.5], [0, 0, 1]])


def test_a_renderer_draws_the_same_from_any_thread() -> None:
    robot = sim.RobotSim("lift", 0)
    here = robot.image("front", 48, 64)
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(robot.image("front", 48, 64)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(drawn[0], here)
    np.testing.assert_array_equal(robot.image("front", 48, 64), here)
    robot.close()
