"""One contract for every backend that steps worlds, and agreement between them."""

import importlib.util

import cv2
import mujoco
import numpy as np
import pytest
import torch

import sim
from sim.randomise import Parameter, Randomisation
from sim.render import camera_matrix, camera_pose
from sinew.errors import InputError, SpecError
from sinew.protocols import VecEnv

WARP = pytest.param(
    "warp", marks=pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is None, reason="mujoco-warp is not installed")
)
ISAAC_LAB = pytest.param(
    "isaaclab", marks=pytest.mark.skipif(importlib.util.find_spec("isaaclab") is None, reason="isaaclab is not installed: make isaaclab")
)
backend_of_each = pytest.mark.parametrize("backend", ["mujoco", WARP, ISAAC_LAB, "isaacgym"])
CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
backend_that_randomises = pytest.mark.parametrize("backend", ["mujoco", WARP])


def make(backend: str, num_envs: int, task: str = "lift", seed: int = 0) -> VecEnv:
    return sim.worlds(sim.make_interface(task), num_envs, seed, backend)


def still(env: VecEnv) -> torch.Tensor:
    return torch.tensor([[0.0, 0.0, 0.0, 0.08]] * env.num_envs)


@backend_of_each
def test_specs_shapes_and_counts(backend: str) -> None:
    env = make(backend, 3)
    observation = env.reset(7)
    assert set(observation) == set(env.observation_spec)
    for key, value in observation.items():
        assert value.shape == (3, *env.observation_spec[key].shape) and value.dtype == torch.float32
    _, reward, terminated, truncated, info = env.step(still(env))
    assert reward.dtype == torch.float32 and reward.shape == (3,)
    assert terminated.dtype == truncated.dtype == torch.bool
    assert info["episode_length"].tolist() == [1, 1, 1] and info["seed"].tolist() == [7, 8, 9]
    env.close()


@backend_of_each
def test_time_out_truncates_resets_by_itself_and_keeps_the_final_observation(backend: str) -> None:
    env = make(backend, 2)
    env.reset([1, 2])
    for _ in range(20):
        env.step(still(env))
    env.reset([9], ids=[1])  # world 1 starts later, so that the two end at different times
    for step in range(40):
        observation, reward, terminated, truncated, info = env.step(still(env))
        assert truncated.tolist() == [step == 39, False] and not terminated.any() and reward.sum() == 0
    assert info["episode_length"].tolist() == [60, 40] and info["seed"].tolist() == [1, 9]
    final = info["final_observation"]["observation.state"]
    assert torch.equal(final[1], observation["observation.state"][1])
    assert not torch.equal(final[0], observation["observation.state"][0])
    following = int(env.step(still(env))[4]["seed"][0])
    again = make(backend, 1)
    torch.testing.assert_close(again.reset([following])["observation.state"][0], observation["observation.state"][0])


@backend_of_each
def test_scripted_experts_succeed_and_are_paid_once(backend: str) -> None:
    env, expert = make(backend, 4), sim.make_expert("lift", num_envs=4)
    observation = env.reset(range(4))
    expert.reset(seeds=range(4))
    total = torch.zeros(4)
    for _ in range(30):
        observation, reward, terminated, truncated, info = env.step(expert.act(observation).float())
        assert torch.equal(reward == 1, terminated) and torch.equal(info["success"], terminated) and not (terminated & truncated).any()
        total += reward
        if terminated.any():
            ended = terminated.nonzero()[:, 0].tolist()
            expert.reset(ended, env.seeds[ended].tolist())  # type: ignore[attr-defined]
    assert total.tolist() == [1, 1, 1, 1]


@backend_of_each
def test_bad_actions_are_refused_and_nothing_moves(backend: str) -> None:
    env = make(backend, 2)
    env.reset(0)
    before = torch.as_tensor(env.qpos).clone()  # type: ignore[attr-defined]
    with pytest.raises(SpecError, match="world 1"):
        env.step(torch.tensor([[0.0] * 4, [float("nan")] * 4]))
    with pytest.raises(SpecError, match="expected"):
        env.step(torch.zeros(2, 5))
    with pytest.raises(SpecError, match="3 actions given for 2 worlds"):
        env.step(torch.zeros(3, 4))
    with pytest.raises(SpecError, match="1 seeds given for 2"):
        env.reset([1])
    for ids in ([2], [-1], [0, 0]):
        with pytest.raises(SpecError, match="each once, from 0 to 1"):
            env.reset(ids=ids)
    assert torch.equal(before, torch.as_tensor(env.qpos))  # type: ignore[attr-defined]


@backend_of_each
def test_what_was_returned_is_not_changed_by_later_steps(backend: str) -> None:
    env = make(backend, 2)
    observation = env.reset(0)
    later, *_, info = env.step(still(env))
    kept = [{k: v.clone() for k, v in frame.items()} for frame in (observation, later, info["final_observation"])]
    numbers = {k: v.clone() for k, v in info.items() if isinstance(v, torch.Tensor)}
    env.step(torch.full((2, 4), 0.02))
    env.reset([5], ids=[0])
    for frame, copy in zip((observation, later, info["final_observation"]), kept, strict=True):
        assert all(torch.equal(frame[key], copy[key]) for key in copy)
    assert all(torch.equal(info[key], value) for key, value in numbers.items())


def test_warp_moves_as_mujoco_does() -> None:
    pytest.importorskip("mujoco_warp")
    for task, action in (("lift", "ee_delta"), ("lift", "joint_position")):
        interface = sim.make_interface(task, action)
        ours, theirs = (sim.worlds(interface, 6, backend=backend) for backend in ("mujoco", "warp"))
        seen, other = ours.reset(range(6)), theirs.reset(range(6))
        expert = sim.make_expert(task, num_envs=6)
        expert.reset(seeds=range(6))
        for _ in range(20):  # one second, the grasp included
            wanted = expert.act(seen).float() if action == "ee_delta" else torch.from_numpy(ours.qpos[:, :8]).float()  # type: ignore[attr-defined]
            seen, other = ours.step(wanted)[0], theirs.step(wanted)[0]
        for key in seen:
            assert np.abs(seen[key].numpy() - other[key].numpy()).max() < 5e-3, (task, action, key)


def test_cameras_of_warp_see_what_opengl_draws() -> None:
    pytest.importorskip("mujoco_warp")
    from sim.views import SceneViews
    from sim.warp_env import WarpVecEnv
    from sim.warp_views import WarpViews

    interface = sim.make_interface("lift")
    env = WarpVecEnv(interface, 2, device="cpu")
    env.reset([3, 4])
    views = WarpViews(env.physics, interface.scene.model, ("front", "wrist"), 96, 128, depth=True, bodies=True)
    views.look()
    drawn = SceneViews(interface.scene.model)
    for camera in ("front", "wrist"):
        for world in range(2):
            seen = drawn.look(env.qpos[world].double().numpy(), camera, 96, 128)
            depth, bodies = views.depth_m(camera)[world].numpy(), views.bodies(camera)[world].numpy()
            assert (bodies == seen.body).mean() > 0.995, "a silhouette is off by a pixel"
            assert np.quantile(np.abs(depth - seen.depth_m)[depth > 0], 0.95) < 1e-3, "lens and place agree to far less than a pixel"
            if camera == "front":  # near the table OpenGL lights a large surface at its corners only
                assert np.abs(views.images(camera)[world].numpy().astype(int) - seen.image).mean() < 4
    drawn.close()


@backend_of_each
def test_cameras_see_known_points_where_their_lens_and_place_say(backend: str) -> None:
    size = 240
    interface = sim.make_interface("lift", cameras=("front", "wrist"), image_size=size)
    env = sim.worlds(interface, 2, backend=backend)
    seen = env.reset([3, 8])
    model, states = interface.scene.model, torch.as_tensor(env.qpos).double().cpu().numpy()  # type: ignore[attr-defined]
    data, cube = mujoco.MjData(model), int(model.body("cube").geomadr[0])
    for world, camera in ((0, "front"), (1, "front"), (0, "wrist"), (1, "wrist")):
        data.qpos[:] = states[world]
        mujoco.mj_kinematics(model, data)
        corners = data.geom_xpos[cube] + CORNERS * model.geom_size[cube] @ data.geom_xmat[cube].reshape(3, 3).T
        T_camera_world = np.linalg.inv(camera_pose(model, states[world], camera))
        points = (corners @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]) @ camera_matrix(model, camera, size, size).T
        pixels = (points[:, :2] / points[:, 2:]).astype(np.float32)
        outline = cv2.moments(cv2.convexHull(pixels))
        image = seen[f"observation.images.{camera}"][world].cpu().numpy().astype(int)
        mask = (image[..., 0] > 2 * image[..., 1]) & (image[..., 0] > 2 * image[..., 2])
        told = np.array([outline["m10"], outline["m01"]]) / outline["m00"]
        found = np.argwhere(mask)[:, ::-1].mean(0)
        assert np.linalg.norm(found - told) <= 0.5, f"{camera} {world}: {found} where {told} was told"
        assert mask.sum() == pytest.approx(outline["m00"], rel=0.1)
    env.close()


def test_pictures_of_warp_follow_episodes() -> None:
    pytest.importorskip("mujoco_warp")
    env = sim.worlds(sim.make_interface("lift", cameras=("front",), image_size=32), 2, backend="warp")
    key = "observation.images.front"
    first = env.reset([1, 2])[key]
    assert first.shape == (2, 32, 32, 3) and first.dtype == torch.uint8
    kept = first.clone()
    for _ in range(60):
        observation, *_, truncated, info = env.step(still(env))
    assert truncated.all() and torch.equal(first, kept), "what was returned is not drawn over"
    again = sim.worlds(sim.make_interface("lift", cameras=("front",), image_size=32), 2, backend="warp")
    assert torch.equal(again.reset(env.seeds.tolist())[key], observation[key])  # type: ignore[attr-defined]
    assert not torch.equal(info["final_observation"][key], observation[key])


def test_backends_that_cannot_be_are_refused_in_a_line() -> None:
    with pytest.raises(InputError, match="unknown backend 'warq': did you mean 'warp'"):
        sim.worlds(sim.make_interface("lift"), 1, backend="warq")
    pytest.importorskip("mujoco_warp")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"--device cuda: .*--device cpu runs everywhere"):
            sim.worlds(sim.make_interface("lift"), 1, backend="warp", device="cuda")


def test_more_contacts_than_there_is_room_for_are_told() -> None:
    pytest.importorskip("mujoco_warp")
    from sim.warp_env import WarpVecEnv

    with pytest.raises(InputError, match="room for 2 contacts a world is less than the task begins with"):
        WarpVecEnv(sim.make_interface("lift"), 1, device="cpu", contacts=2)
    env, expert = WarpVecEnv(sim.make_interface("lift"), 1, device="cpu", contacts=4), sim.make_expert("lift")
    observation = env.reset(0)
    expert.reset(seeds=[0])
    with pytest.raises(InputError, match=r"world 0 \(seed 0\) needs more .* than there is room for"):
        for _ in range(30):  # the fingers close on the cube
            observation = env.step(expert.act(observation).float())[0]


DIFFERENT = Randomisation(
    parameters=(
        Parameter(what="mass", of=("cube", "link3"), range=(0.5, 2), unit="factor", spacing="log"),
        Parameter(what="friction", of=("cube", "finger*", "table"), range=(0.7, 1.3), unit="factor", together=True),
        Parameter(what="damping", range=(0.2, 2), unit="N m s/rad"),
        Parameter(what="friction_loss", range=(0, 1), unit="N m"),
        Parameter(what="armature", range=(0.8, 1.4), unit="factor"),
        Parameter(what="servo_stiffness", range=(0.7, 1.2), unit="factor"),
        Parameter(what="payload", range=(0, 0.5), unit="kg"),
        Parameter(what="action_delay", range=(0, 80), unit="ms"),
        Parameter(what="servo_lag", range=(0, 30), unit="ms"),
        Parameter(what="backlash", range=(0, 0.2), unit="deg"),
        Parameter(what="observation_delay", range=(0, 1.5), unit="steps"),
    )
)


def test_randomised_worlds_of_warp_move_as_those_of_mujoco_do() -> None:
    pytest.importorskip("mujoco_warp")
    interface = sim.make_interface("lift")
    ours, theirs = (sim.worlds(interface, 6, backend=backend, randomisation=DIFFERENT) for backend in ("mujoco", "warp"))
    seen, other = ours.reset(range(6)), theirs.reset(range(6))
    expert = sim.make_expert("lift", num_envs=6)
    expert.reset(seeds=range(6))
    for _ in range(20):  # one second, the grasp included
        action = expert.act(seen).float()
        (seen, *_, info), (other, *_, theirs_info) = ours.step(action), theirs.step(action)
    np.testing.assert_allclose(info["randomised"], theirs_info["randomised"], rtol=1e-6)
    for key in seen:
        assert np.abs(seen[key].numpy() - other[key].numpy()).max() < 5e-3, key


@backend_that_randomises
def test_an_episode_is_played_with_what_its_seed_says_and_again_the_same(backend: str) -> None:
    interface = sim.make_interface("lift")
    env = sim.worlds(interface, 2, backend=backend, randomisation=DIFFERENT)
    env.reset([1, 2])
    for _ in range(61):  # both episodes time out, and others begin by themselves
        info = env.step(still(env))[-1]
    seeds, values = info["seed"].tolist(), info["randomised"]
    assert seeds != [1, 2] and not torch.equal(values[0], values[1])
    again = sim.worlds(interface, 1, backend=backend, randomisation=DIFFERENT)
    expected = again.reset([seeds[1]])  # type: ignore[list-item]
    assert expected and torch.allclose(again.step(still(again))[-1]["randomised"][0], values[1])
    first, later = (e.step(still(e))[0]["observation.state"] for e in (env, again))
    torch.testing.assert_close(first[1], later[0], atol=1e-5, rtol=1e-5)
