"""The EDM policy against its closed forms, and what goals do to it."""

from __future__ import annotations

import math

import pytest
import torch

import policies
from policies.edm import EdmConfig
from policies.goals import GoalSettings
from sinew.errors import SpecError
from sinew.specs import ENVIRONMENT_STATE


@pytest.fixture
def make(toys):
    data = toys.ToyData()
    return lambda **kw: policies.make("edm", toys.policy_spec(horizon=5), data.stats(), EdmConfig(hidden=(32, 32), **kw), seed=1), data


def test_preconditioning_is_that_of_karras(make):
    policy = make[0]()
    sigma = torch.tensor([0.02, 0.3, 1.0, 2.0], dtype=torch.float64)
    scale, skip, out, level = policy.coefficients(sigma)
    variance = sigma**2 + 0.25
    torch.testing.assert_close(scale, 1 / variance.sqrt())  # c_in
    torch.testing.assert_close(skip * scale, 0.25 / variance)  # c_skip
    torch.testing.assert_close(out, sigma * 0.5 / variance.sqrt())  # c_out
    torch.testing.assert_close(level, sigma.log() / 4)  # c_noise


def test_target_and_input_of_the_network_have_unit_variance(make):
    """What the preconditioning is for: actions of variance sigma_data^2 give input and target of variance 1 at any level."""
    policy = make[0]()
    action, noise = 0.5 * torch.randn(4000, 5, 3), torch.randn(4000, 5, 3)
    for t in (0.05, 0.5, 0.95):
        y, target, _ = policy.corrupt(action, noise, torch.full((4000,), t))
        assert y.var() == pytest.approx(1, abs=0.03) and target.var() == pytest.approx(1, abs=0.03)


def test_training_levels_are_log_logistic_between_the_bounds(make):
    policy = make[0]()
    assert policy.quantile(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.02, 2.0], rel=1e-4)
    low, high = (1 / (1 + (s / 0.5) ** -2) for s in (0.02, 2.0))  # log-logistic with scale 1/2: F(s) = 1 / (1 + (s / 0.5)^-2)
    sigma = policy.quantile(torch.rand(20000, generator=torch.Generator().manual_seed(0))).sort().values
    for share in (0.1, 0.5, 0.9):
        want = 0.5 * math.sqrt(1 / (1 / (low + share * (high - low)) - 1))
        assert float(sigma[int(share * 20000)]) == pytest.approx(want, rel=0.05)


def goal_policy(toys, scale=1.0):
    """A policy that has learned to go where the goal's first element points, and anywhere without a goal."""
    data = toys.ToyData()
    config = EdmConfig(hidden=(128, 128), goal=GoalSettings(keys=(ENVIRONMENT_STATE,), dropout=0.3, scale=scale))
    policy = policies.make("edm", toys.policy_spec(horizon=5), data.stats(), config, seed=1)
    return policy, data


def goal_rows(policy, sign, rows):
    observation = {key: torch.zeros(rows, 1, *policy.spec.observation[key].shape) for key in policy.spec.observation}
    goal = torch.zeros(rows, 3)
    goal[:, 0] = -1.0 + 0.5 * sign
    return observation, goal


@pytest.fixture(scope="module")
def taught():
    """Weights of the goal policy after 1000 steps."""
    import sys

    toys = sys.modules["policy_toys"]
    torch.manual_seed(0)
    policy, _ = goal_policy(toys)
    stream = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(1000):
        sign = torch.randint(0, 2, (128,), generator=stream) * 2.0 - 1
        observation, goal = goal_rows(policy, sign, 128)
        drawn = policy.draw(128, stream)
        batch = {**observation, "goal." + ENVIRONMENT_STATE: goal, "action": (0.5 * sign)[:, None, None].expand(128, 5, 3)}
        loss = policy.loss(policy.augment(batch, drawn), t=drawn["t"], noise=drawn["noise"]).scalar
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.state_dict()


def first_actions(policy, sign, with_goal=True):
    observation, goal = goal_rows(policy, torch.full((1,), sign), 1)
    told = {**observation, **({"goal." + ENVIRONMENT_STATE: goal} if with_goal else {})}
    with torch.no_grad():
        return policy.sample(policy.encode(told), n=300, generator=torch.Generator().manual_seed(1)).actions[0, :, 0, 0]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_goals_are_followed_and_without_one_both_ways_stay_open(toys, taught, scale):
    policy, _ = goal_policy(toys, scale)
    policy.load_state_dict(taught)
    assert (first_actions(policy, 1.0) > 0.2).float().mean() > 0.95
    assert (first_actions(policy, -1.0) < -0.2).float().mean() > 0.95
    free = first_actions(policy, 1.0, with_goal=False)
    assert 0.3 < (free > 0).float().mean() < 0.7 and (free.abs() > 0.2).float().mean() > 0.9


def test_a_goal_of_scale_zero_is_no_goal(toys, taught):
    policy, _ = goal_policy(toys, 0.0)
    policy.load_state_dict(taught)
    torch.testing.assert_close(first_actions(policy, 1.0), first_actions(policy, 1.0, with_goal=False))


def test_a_goal_is_dropped_as_a_whole(toys):
    policy, _ = goal_policy(toys)
    rows, goal = goal_rows(policy, torch.ones(8), 8)
    dropped = torch.tensor([True, False] * 4)
    told = {**rows, "goal." + ENVIRONMENT_STATE: goal, "goal_dropped": dropped}
    seen = policy.goal(told, goal)
    assert (seen[dropped] == 0).all() and (seen[~dropped][:, -1] == 1).all()
    assert policy.draw(4000)["goal_dropped"].float().mean() == pytest.approx(0.3, abs=0.03)


def test_wrong_settings_are_told(make, toys):
    with pytest.raises(SpecError, match="0 < sigma_min < sigma_data < sigma_max"):
        make[0](sigma_max=0.1)
    with pytest.raises(SpecError, match=r"goal key 'observation.images.front' is not a vector .*: there are observation.state"):
        make[0](goal=GoalSettings(keys=("observation.images.front",)))
    with pytest.raises(SpecError, match=r"goal dropout 2.* must be in \[0, 1\]"):
        GoalSettings(dropout=2.0)
    policy, _ = goal_policy(toys)
    with pytest.raises(SpecError, match=r"the goal lacks 'goal.observation.state': give all of its parts, or none"):
        policy = make[0](goal=GoalSettings(keys=("observation.state", ENVIRONMENT_STATE)))
        rows, goal = goal_rows(policy, torch.ones(2), 2)
        policy.encode({**rows, "goal." + ENVIRONMENT_STATE: goal})
