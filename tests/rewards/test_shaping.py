from itertools import pairwise

import pytest
import torch

import rewards
from rewards.shaping import DistancePotential, Shaped, ShapedByHistory, max_difference
from sinew.errors import InputError
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec, TensorSpec

SPEC = ObservationSpec(
    {
        STATE: TensorSpec(shape=(4,), names=("gripper", "tool.x", "tool.y", "tool.z")),
        ENVIRONMENT_STATE: TensorSpec(shape=(3,), names=("cube.x", "cube.y", "cube.z")),
    }
)


def walk(steps: int = 6) -> list[dict[str, torch.Tensor]]:
    """Two worlds whose tools approach the cube at different speeds."""
    frames = []
    for i in range(steps):
        tool = torch.tensor([[0.0, 0.4 - 0.05 * i, 0.0, 0.1], [0.0, 0.2, 0.3 - 0.04 * i, 0.0]])
        frames.append({STATE: tool, ENVIRONMENT_STATE: torch.zeros(2, 3)})
    return frames


def transition(before, after, terminated=(False, False)):
    flags = torch.tensor(terminated)
    return {**before, **{f"next.{k}": v for k, v in after.items()}, "terminated": flags, "success": torch.zeros(2, dtype=torch.bool)}


def test_shaping_telescopes_to_the_ends_of_the_path():
    gamma, potential = 0.9, DistancePotential(SPEC, "cube")
    reward, frames = Shaped(potential, gamma), walk()
    total = sum(gamma**t * reward.reward(transition(a, b), {}) for t, (a, b) in enumerate(pairwise(frames)))
    torch.testing.assert_close(total, gamma ** (len(frames) - 1) * potential(frames[-1]) - potential(frames[0]))


def test_terminal_potential_is_zero_but_a_timeout_keeps_it():
    potential = DistancePotential(SPEC, "cube")
    reward, (a, b, *_) = Shaped(potential, 0.9), walk()
    got = reward.reward(transition(a, b, (True, False)), {})
    torch.testing.assert_close(got, torch.stack([-potential(a)[0], 0.9 * potential(b)[1] - potential(a)[1]]))


def test_reward_stays_in_its_declared_range():
    reward = Shaped(DistancePotential(SPEC, "cube", reach_m=0.2), 0.95, weight=3.0)
    for a in walk():
        for b in walk():
            got = reward.reward(transition(a, b, (True, False)), {})
            assert bool(((got >= reward.low) & (got <= reward.high)).all())


def test_what_is_not_finite_is_refused_with_its_world():
    a, b, *_ = walk()
    b[STATE][1, 1] = float("nan")
    with pytest.raises(InputError, match="world 1"):
        Shaped(DistancePotential(SPEC, "cube")).reward(transition(a, b), {})


def test_wrong_names_list_what_exists():
    with pytest.raises(InputError, match=r"'peg.x'; it has cube.x"):
        DistancePotential(SPEC, "peg")
    with pytest.raises(InputError, match="did you mean 'sparse'"):
        rewards.make("sprase")


class Seconds:
    """Grows with the steps of an episode: nothing in the observation tells it."""

    low, high = 0.0, 10.0

    def __init__(self):
        self.steps = torch.zeros(2)

    def begin(self, obs, ids):
        self.steps[ids] = obs["x"][ids]
        return self.steps[ids]

    def advance(self, obs):
        self.steps = self.steps + obs["x"]
        return self.steps


def test_a_potential_of_the_episode_so_far_telescopes_in_every_world():
    gamma, reward = 0.9, ShapedByHistory(Seconds(), 0.9, 2)
    generator = torch.Generator().manual_seed(0)
    never = torch.zeros(2, dtype=torch.bool)
    reward.begin({"x": torch.zeros(2)}, range(2))
    total, discount, start, age = torch.zeros(2), torch.ones(2), torch.zeros(2), torch.zeros(2)
    for step in range(40):
        x = torch.rand(2, generator=generator)
        terminated = torch.tensor([step % 7 == 6, step % 5 == 4])
        truncated = torch.tensor([step % 11 == 10, False])
        total += discount * reward.reward({"next.x": x, "terminated": terminated, "success": never}, {})
        discount *= gamma
        age = reward.before.clone()
        ended = terminated | truncated
        kept = torch.where(terminated, 0.0, discount * age)  # a time-out keeps its potential, the end of the task does not
        torch.testing.assert_close(total[ended], (kept - start)[ended])
        if ended.any():
            fresh = torch.rand(2, generator=generator)
            reward.begin({"x": fresh}, ended.nonzero()[:, 0].tolist())
            start = torch.where(ended, fresh, start)
            total, discount = torch.where(ended, 0.0, total), torch.where(ended, 1.0, discount)
    assert reward.low <= -10.0
    assert reward.high >= 9.0


def test_the_range_of_differences_knows_that_the_end_is_zero():
    class High:
        low, high = 0.5, 1.0

    assert max_difference(High(), 1.0) == 1.0  # 1 → the end: 0 − 1
