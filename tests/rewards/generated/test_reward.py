"""A generated reward in use: bounded, telescoping, and never in the way of training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rewards import files
from rewards.files import RewardUnavailable, Situation
from rewards.generated import sandbox as sandbox_module
from rewards.generated.fields import described, fields_of
from rewards.generated.reward import LOG_STEPS, GeneratedReward, GeneratedSettings
from rewards.generated.sandbox import CodeRefused, WorkerLost
from sinew.errors import InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

OBSERVATION = ObservationSpec(
    {
        "observation.state": TensorSpec(
            shape=(6,), unit="rad,rad,m,m,m,m", names=("joint1.position", "joint2.position", "gripper", "tool.x", "tool.y", "tool.z")
        ),
        "observation.environment_state": TensorSpec(
            shape=(6,), unit="m", names=("cube.x", "cube.y", "cube.z", "cube-tool.x", "cube-tool.y", "cube-tool.z")
        ),
        "observation.images.front": TensorSpec(shape=(8, 8, 3), dtype="uint8"),
    }
)
ACTION = ActionSpec(kind="ee_delta", low=(-1.0,) * 4, high=(1.0,) * 4, rate_hz=20.0, names=("dx", "dy", "dz", "gripper"))
REACH = "def potential(now):\n    d = distance(now.tool, now.cube)\n    return 1 - tanh(d), {'far': d}\n"


def situation(**others):
    return Situation(observation=OBSERVATION, action=ACTION, gamma=0.9, num_envs=3, max_episode_steps=5, **others)


def transitions(steps, worlds=3, seed=0):
    """One episode in every world, terminated at its end."""
    stream = torch.Generator().manual_seed(seed)
    state, cube = (torch.randn(steps + 1, worlds, 6, generator=stream) for _ in range(2))
    for t in range(steps):
        done = torch.full((worlds,), t == steps - 1)
        yield {
            "observation.state": state[t], "next.observation.state": state[t + 1], "observation.environment_state": cube[t],
            "next.observation.environment_state": cube[t + 1], "action": torch.zeros(worlds, 4), "success": done, "terminated": done,
        }  # fmt: skip


@pytest.fixture
def made():
    kept = []

    def make(source, given=None, **settings):
        kept.append(GeneratedReward(GeneratedSettings(source=source, **settings), given or situation()))
        return kept[-1]

    yield make
    for reward in kept:
        reward.close()


def test_fields_are_read_off_the_specs():
    fields = fields_of(OBSERVATION)
    assert {name: len(f.columns) for name, f in fields.items()} == {
        "joint_position": 2, "gripper": 1, "tool": 3, "cube": 3, "cube_from_tool": 3,
    }  # fmt: skip
    assert fields["tool"].columns == (3, 4, 5) and fields["tool"].unit == "m" and fields["joint_position"].unit == "rad"
    text = described(fields, ACTION)
    assert "now.tool: 3 numbers, m (tool.x, tool.y, tool.z)" in text and "dx -1 to 1" in text


def test_shaping_telescopes_to_minus_the_first_potential(made):
    reward = made(REACH)
    whole, first = torch.zeros(3), None
    for t, step in enumerate(transitions(5)):
        if first is None:
            d = (step["observation.state"][:, 3:6] - step["observation.environment_state"][:, :3]).norm(dim=1)
            first = 1 - d.tanh()
        whole += 0.9**t * reward.reward(step, {})
    torch.testing.assert_close(whole, 0.9**4 - first, rtol=1e-5, atol=1e-5)


def test_a_dense_reward_is_never_worth_more_than_success(made):
    reward = made("def reward(before, now, action):\n    return 1e9 * now.gripper + 1e9\n")
    step = next(iter(transitions(2)))
    step["next.observation.state"][:, 2] = 1.0
    assert torch.allclose(reward.reward(step, {}), torch.full((3,), 0.1))  # 1 - gamma: 0.1 for ever is worth 1
    step["success"] = torch.tensor([True, False, False])
    assert reward.reward(step, {}).tolist() == pytest.approx([1.0, 0.1, 0.1])


def test_what_is_not_finite_gives_no_guidance_and_is_counted(made):
    reward = made("def potential(now):\n    return sqrt(now.gripper)\n", strikes=1)
    step = next(iter(transitions(2)))
    step["observation.state"][:, 2] = torch.tensor([0.04, -1.0, 0.04])
    step["next.observation.state"][:, 2] = 0.04
    given = reward.reward(step, {})
    assert torch.isfinite(given).all() and given[1] == 0 and given[0] == pytest.approx(0.9 * 0.2 - 0.2)
    with pytest.raises(RewardUnavailable, match=r"failed 2 times.*world 1 is not finite"):
        reward.reward(step, {})


def test_a_process_that_dies_is_replaced_and_counted(made):
    reward = made(REACH, strikes=1)
    step = next(iter(transitions(2)))
    before = reward.reward(step, {})
    reward.sandbox._process.kill()
    assert reward.reward(step, {}).tolist() == [0.0, 0.0, 0.0] and reward.strikes.lost == 1
    assert torch.equal(reward.reward(step, {}), before)


def test_a_process_that_is_too_late_is_ended(made, monkeypatch):
    reward = made(REACH, strikes=0)
    process = reward.sandbox._process
    import signal

    process.send_signal(signal.SIGSTOP)
    reward.sandbox.deadline_s = 0.2
    with pytest.raises(RewardUnavailable, match="too late"):
        reward.reward(next(iter(transitions(2))), {})
    assert process.poll() is not None


def test_sparse_success_goes_on_where_the_code_fails(tmp_path):
    said = []
    files.save(tmp_path / "r.json", "code", GeneratedSettings(source="def potential(now):\n    return 0 / 0\n", strikes=1), {})
    reward = files.build(tmp_path / "r.json", situation(say=said.append))
    given = [reward.reward(step, {}).tolist() for step in transitions(4)]
    assert given == [[0.0] * 3] * 3 + [[1.0] * 3] and len(said) == 1 and "success alone" in said[0]


def test_sparse_success_stands_in_where_nothing_confines(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sandbox_module, "holds", lambda held: False)
    files.save(tmp_path / "r.json", "code", GeneratedSettings(source=REACH), {})
    files.build(tmp_path / "r.json", situation(say=said.append))
    assert len(said) == 1 and "does not confine" in said[0]


def test_bad_code_is_an_error_in_one_line(made):
    with pytest.raises(CodeRefused, match=r"line 2.*now\.ball is not observed; there are joint_position") as said:
        made("def potential(now):\n    return now.ball[0]\n")
    assert isinstance(said.value, InputError) and "\n" not in str(said.value)
    with pytest.raises(RewardUnavailable, match="tool, which the generated reward reads, is not finite in row 4"):
        step = next(iter(transitions(1)))
        step["next.observation.state"][1, 3] = float("nan")
        made(REACH).reward(step, {})


def test_parts_are_told_to_the_training_log(made):
    lines = []
    reward = made(REACH, situation(log=lines.append))
    step = next(iter(transitions(1)))
    for _ in range(-(-LOG_STEPS // 3)):
        reward.reward(step, {})
    (line,) = lines
    d = (step["next.observation.state"][:, 3:6] - step["next.observation.environment_state"][:, :3]).norm(dim=1).numpy()
    assert line["stage"] == "reward" and line["step"] >= LOG_STEPS and line["successes"] == line["step"]
    assert line["parts"]["far"] == pytest.approx({"min": d.min(), "mean": d.mean(), "max": d.max()}, rel=1e-5)


def test_a_step_that_does_not_answer_right_is_not_believed(made, monkeypatch):
    reward = made(REACH)
    monkeypatch.setattr(reward.sandbox, "described", replace(reward.sandbox.described, parts=("far", "more")))
    inputs = {use: np.zeros((2, 3), np.float32) for use in reward.sandbox.described.uses}
    with pytest.raises(WorkerLost, match="no answer"):
        reward.sandbox.step(inputs, 2)
