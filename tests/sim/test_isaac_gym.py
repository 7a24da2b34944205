"""Isaac Gym behind a stand-in that refuses calls out of order: what is asked of it, and what worlds are made of it."""

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

import sim
from sim import isaac_gym_worker as wire
from sim.collisions import colliding, touch
from sim.isaac_env import inverse, rotated, to_wxyz, to_xyzw
from sim.isaac_gym import PYTHON, IsaacGymPhysics
from sim.isaac_gym_model import plan
from sinew.errors import InputError, MissingDependency

SOLVED = ("push", "drawer", "peg", "handover")


@pytest.mark.parametrize("task", sim.TASK_NAMES)
def test_shapes_share_a_bit_exactly_if_they_never_touch(task: str) -> None:
    model = sim.make_interface(task).scene.model
    bits = {}
    for actor in plan(model).actors:
        for name, shapes in actor["shapes"].items():
            body = 0 if name == "scene" else model.body(name).id
            bits.update(zip(colliding(model, body), [shape["filter"] for shape in shapes], strict=True))
    pairs = [(a, b) for a in bits for b in bits if a < b and model.geom_bodyid[a] != model.geom_bodyid[b]]
    assert pairs and all((bits[a] & bits[b] == 0) == touch(model, a, b) for a, b in pairs)


@pytest.mark.parametrize("task", SOLVED)
def test_scripted_experts_solve_tasks_that_went_through_isaac_gym(task: str) -> None:
    env, expert = sim.worlds(sim.make_interface(task), 1, 0, "isaacgym"), sim.make_expert(task)
    observation = env.reset(3)
    expert.reset(seeds=[3])
    for _ in range(env.max_episode_steps):  # type: ignore[attr-defined]
        observation, _, terminated, _, _ = env.step(expert.act(observation).float())
        if terminated[0]:
            break
    assert terminated[0], "joints, drives, shapes or what touches what were lost on the way"
    env.close()


def test_worlds_move_as_ours_do_where_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.isaac_gym.SOLVER_SUBSTEPS", 1)  # the stand-in then takes the steps that ours takes
    interface = sim.make_interface("reach")
    ours, theirs = (sim.worlds(interface, 3, 0, backend) for backend in ("mujoco", "isaacgym"))
    seen, _ = ours.reset(range(3)), theirs.reset(range(3))
    expert = sim.make_expert("reach", num_envs=3)
    expert.reset(seeds=range(3))
    for _ in range(20):
        action = expert.act(seen).float()
        seen, other = ours.step(action)[0], theirs.step(action)[0]
        for key in seen:
            assert np.abs(seen[key].numpy() - other[key].numpy()).max() < 1e-3, key
    process = theirs.physics._worker._process  # type: ignore[attr-defined]
    assert process.poll() is None
    theirs.close()
    assert process.poll() is not None
    with pytest.raises(InputError, match="has ended"):
        theirs.step(action)


class Reversed:
    """A worker whose engine lists joints last to first."""

    def ask(self, message: dict) -> tuple[dict, dict]:
        return {"dofs": [[dof["name"] for dof in reversed(actor["dofs"])] for actor in message["actors"]]}, {}


def test_poses_and_turning_go_through_in_the_order_of_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.isaac_gym.Worker", Reversed)
    interface = sim.make_interface("lift")
    physics = IsaacGymPhysics(interface.scene.model, 2, "cpu")
    pose = torch.tensor([0.5, 0.1, 0.4, 0.8, 0.0, 0.6, 0.0])
    physics.qpos[:, :9] = torch.arange(9.0)
    physics.qpos[:, 9:16], physics.qvel[:, 9:15] = pose, torch.tensor([0.1, 0.2, 0.3, 1.0, 2.0, 3.0])
    roots, dofs = physics._state(torch.ones(2, dtype=torch.bool))
    assert np.allclose(roots[0, 0, 3:7], [0.0, 0.6, 0.0, 0.8]) and dofs[0, :, 0].tolist() == list(range(8, -1, -1))
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, pose[3:].double().numpy())
    assert np.allclose(roots[0, 0, 10:13], matrix.reshape(3, 3) @ [1.0, 2.0, 3.0], atol=1e-6), "the other side turns along the world's axes"
    before = physics.qpos.clone(), physics.qvel.clone()
    physics.qpos.zero_(), physics.qvel.zero_()
    physics._take(roots, dofs)
    torch.testing.assert_close((physics.qpos, physics.qvel), before)


def test_quaternions_turned_about_come_back() -> None:
    wxyz = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.equal(to_wxyz(to_xyzw(wxyz)), wxyz) and torch.equal(to_xyzw(wxyz)[:, 3], wxyz[:, 0])
    vector = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotated(inverse(wxyz), rotated(wxyz, vector)), vector)


HINGE = '<body name="a"><joint name="a"/><geom size=".1"/></body></worldbody>'


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ('<body name="a"><joint name="a" type="ball"/><geom size=".1"/></body></worldbody>', "joint 'a'"),
        ('<body name="a"><joint name="a"/><geom type="ellipsoid" size=".1 .1 .2"/></body></worldbody>', "the ellipsoid of body 'a'"),
        ('<body name="a"><joint name="a" stiffness="3"/><geom size=".1"/></body></worldbody>', "the spring of joint 'a'"),
        ('<body name="a" gravcomp=".5"><joint name="a"/><geom size=".1"/></body></worldbody>', "compensate gravity for a part of 'a'"),
        (HINGE + '<actuator><motor name="m" joint="a"/></actuator>', "actuator 'm'"),
        (HINGE + '<equality><joint joint1="a"/></equality>', "constraints of equality"),
    ],
)
def test_what_cannot_be_expressed_is_named(inside: str, told: str) -> None:
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{inside}</mujoco>")
    with pytest.raises(InputError, match=told):
        plan(model)


def test_an_interpreter_without_isaac_gym_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = sim.make_interface("lift")
    monkeypatch.setenv(PYTHON, "")
    with pytest.raises(MissingDependency, match=rf"a Python of its own: .*set {PYTHON}"):
        sim.worlds(interface, 1, backend="isaacgym")
    monkeypatch.setenv(PYTHON, "/no/python3.8")
    with pytest.raises(InputError, match=r"=/no/python3.8 is no program"):
        sim.worlds(interface, 1, backend="isaacgym")
    monkeypatch.setenv(PYTHON, sys.executable)
    with pytest.raises(MissingDependency, match="cannot import Isaac Gym"):
        sim.worlds(interface, 1, backend="isaacgym")


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho libcuda.so is not here >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(script))
    with pytest.raises(InputError, match=r"has ended; what it said last: libcuda.so is not here"):
        sim.worlds(sim.make_interface("lift"), 1, backend="isaacgym")


def test_the_other_side_understands_the_worker() -> None:
    ast.parse(Path(wire.__file__).read_text(), feature_version=(3, 6))


def test_frames_hold_numbers_only() -> None:
    near, far = socket.socketpair()
    with near, far:
        wire.send(near, {"n": 1}, worlds=np.array([2, 0]), roots=np.ones((2, 0, 13), np.float32))
        message, arrays = wire.receive(far)
        assert message == {"n": 1} and arrays["worlds"].tolist() == [2, 0] and arrays["roots"].shape == (2, 0, 13)
        head = b'{"arrays": [["a", "|O", [1]]]}'
        near.sendall(wire.HEADER.pack(len(head), 8) + head + bytes(8))
        with pytest.raises(ValueError, match="holds objects"):
            wire.receive(far)
        near.close()
        with pytest.raises(EOFError):
            wire.receive(far)


def test_the_stand_in_refuses_what_isaac_gym_does_not_allow() -> None:
    script = """
from isaacgym import gymapi, gymtorch
import torch
gym, params = gymapi.acquire_gym(), gymapi.SimParams()
params.up_axis = gymapi.UP_AXIS_Z
sim = gym.create_sim(0, -1, gymapi.SIM_PHYSX, params)
for call in (
    lambda: gym.acquire_dof_state_tensor(sim),
    lambda: gym.prepare_sim(sim),
    lambda: gymtorch.unwrap_tensor(torch.zeros(2, dtype=torch.int64)),
    lambda: setattr(gymapi.AssetOptions(), "fix_base_links", True),
):
    try:
        call()
    except RuntimeError as e:
        print(e)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "fake_isaacgym")}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout.splitlines()
    wanted = ["acquire_dof_state_tensor before prepare_sim", "after the environments are made", "indices int32", "has no fix_base_links"]
    assert len(told) == 4 and all(part in line for part, line in zip(wanted, told, strict=True))
    late = subprocess.run([sys.executable, "-c", "import torch, isaacgym"], env=environment, capture_output=True, text=True)
    assert "PyTorch was imported before isaacgym" in late.stderr
