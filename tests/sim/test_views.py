import numpy as np
import pytest

from sim.render import SceneRenderer
from sim.scene import load_scene
from sim.views import SceneViews


@pytest.fixture(scope="module")
def scene():
    return load_scene("lift")


@pytest.fixture(scope="module")
def views(scene):
    made = SceneViews(scene.model)
    yield made
    made.close()


def points(look, body):
    """World positions of the pixels of a body."""
    v, u = np.nonzero(look.body == body)
    rays = np.stack((u, v, np.ones_like(u)), 1) @ np.linalg.inv(look.matrix).T
    return (rays * look.depth_m[v, u, None]) @ look.T_world_camera[:3, :3].T + look.T_world_camera[:3, 3]


@pytest.mark.parametrize("turned", [0.0, 0.9, -0.6])
def test_depth_and_bodies_agree_with_where_things_are_from_all_sides(scene, views, turned):
    qpos = scene.initial(3)
    look = views.look(qpos, "front", 240, 320, turned)
    position, quaternion = scene.poses(qpos[None])["cube"][0, :3], scene.poses(qpos[None])["cube"][0, 3:]
    yaw = 2 * np.arctan2(quaternion[3], quaternion[0])
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    seen = (points(look, scene.model.body("cube").id) - position) @ turn
    assert len(seen) > 100
    surface = np.abs(np.abs(seen).max(1) - 0.02)  # every pixel is on a face of the cube
    assert np.percentile(surface, 95) < 1e-3
    np.testing.assert_allclose(np.abs(seen).max(0), 0.02, atol=2e-3)
    table = points(look, 0)
    assert np.percentile(np.abs(table[:, 2]), 99) < 1e-3


def test_the_picture_is_the_renderers_and_looking_leaves_no_trace(scene, views):
    qpos = scene.initial(3)
    plain = SceneRenderer(scene.model)
    expected = plain.images(qpos[None], "front", 120, 160)[0]
    plain.close()
    views.look(qpos, "front", 120, 160, 1.0)
    np.testing.assert_array_equal(views.look(qpos, "front", 120, 160).image, expected)
    np.testing.assert_array_equal(views.images(qpos[None], "front", 120, 160)[0], expected)
