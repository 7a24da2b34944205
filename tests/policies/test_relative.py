"""What learning sees beside the base's features, and a base without dice."""

import pytest
import torch

from policies.planned import Planned
from policies.relative import Relative, named_points
from sinew.errors import SpecError
from sinew.specs import ENVIRONMENT_STATE, STATE, ObservationSpec, TensorSpec


def test_points_are_told_by_their_names():
    """Positions count once, differences and lone axes do not."""
    names = ("joint1.position", "tool.x", "tool.y", "tool.z", "peg.x", "peg.y", "peg.z", "peg-tool.x", "peg-tool.y", "peg-tool.z", "flat.x")
    spec = ObservationSpec({STATE: TensorSpec(shape=(len(names),), names=names)})
    assert named_points(spec) == [("tool", STATE, 1), ("peg", STATE, 4)]


def test_a_millimetre_shows_where_things_are_close(toys):
    """tanh of the difference over the reach, behind the base's features; how it acts stays the base's."""
    base, data = toys.make("flow-mlp")
    policy = Relative(base, reach_m=0.02)
    obs = {key: torch.from_numpy(value[:3]) for key, value in data.frames.items()}
    obs[ENVIRONMENT_STATE] = obs[STATE][:, :3] + torch.tensor([[0.003, 0.0, -0.02], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    seen = policy.observe(obs)
    assert seen.shape == (3, policy.observation_dim) and policy.observation_dim == base.observation_dim + 3
    assert torch.equal(seen[:, :-3], base.observe(obs))
    wanted = torch.tensor([[-0.15, 0.0, 1.0], [-50.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).tanh()
    torch.testing.assert_close(seen[:, -3:], wanted, atol=2e-5, rtol=0)
    context = {key: value[:, None] for key, value in obs.items()}
    noise = torch.randn(3, 1, *policy.spec.noise_shape)
    assert torch.equal(policy.sample(policy.encode(context), noise=noise).actions, base.sample(base.encode(context), noise=noise).actions)


def test_zero_noise_leaves_nothing_to_chance(toys):
    """Whatever noise is drawn or given, the chunk is that of zero noise; who wants to choose the noise is refused."""
    base, data = toys.make("flow-mlp")
    policy = Planned(base, 4, zero_noise=True)
    obs = {key: torch.from_numpy(value[:3, None]) for key, value in data.frames.items()}
    zero = base.sample(base.encode(obs), n=2, noise=torch.zeros(3, 2, *base.spec.noise_shape)).actions[:, :, :4]
    assert policy.spec.horizon == 4 and torch.equal(policy.sample(policy.encode(obs), n=2).actions, zero)
    assert torch.equal(policy.sample(policy.encode(obs), n=2, noise=torch.randn(3, 2, *base.spec.noise_shape)).actions, zero)
    assert "noise" not in policy.spec.capabilities
    with pytest.raises(SpecError, match="keeps 4 of 5 actions"):
        policy.loss({})
    with pytest.raises(SpecError, match="act_steps 6"):
        Planned(base, 6)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_what_cannot_be_is_refused(toys, wrong):
    """A reach that is no distance, and a policy that sees no two points."""
    base, _ = toys.make("flow-mlp")
    with pytest.raises(SpecError, match="reach_m"):
        Relative(base, wrong)
