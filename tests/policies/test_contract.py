"""What every policy promises, whatever it is: run over all registered policies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import policies
from policies.base import Wrapper, require
from policies.catalog import ON_DEMAND, type_name
from policies.language import select
from policies.sampling import euler
from sinew.errors import DataError, InputError, SpecError
from sinew.protocols import HasCorrection, HasDenoiser, HasFeatures
from sinew.specs import ObservationSpec, TensorSpec


@pytest.fixture
def made(case, toys):
    """(policy, batch of 8) of one case."""
    policy, data = toys.make(case)
    return policy, toys.batch(data, policy.spec)


def observations(policy, batch, rows=slice(None)):
    told = ("task",) if "language" in policy.spec.capabilities else ()
    return select({key: batch[key] for key in (*policy.spec.observation, *told)}, rows)


def last_step(obs):
    """{key: (B, ...)} of the newest of the To steps; instructions as they are."""
    return {key: value[:, -1] if isinstance(value, torch.Tensor) else value for key, value in obs.items()}


def leaves(policy):
    """The policies at the bottom of all wrappers."""
    return [leaf for base in policy.bases() for leaf in leaves(base)] or [policy]


def noise_for(policy, rows, n, seed=0):
    return torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(seed))


def test_no_registered_policy_is_left_out_of_the_suite(toys):
    known = set(policies.registry) - set(ON_DEMAND)  # those are in tests/conformance, beside the packages that make them
    assert {type_name(toys.make(case)[0]) for case in toys.CASES} == known


def test_same_noise_gives_the_same_action_bit_for_bit(made):
    policy, batch = made
    noise = noise_for(policy, 8, 2)
    first = policy.sample(policy.encode(observations(policy, batch)), n=2, noise=noise)
    torch.rand(17)  # neither the global generator nor earlier calls matter
    policy.sample(policy.encode(observations(policy, batch)), n=3)
    second = policy.sample(policy.encode(observations(policy, batch)), n=2, noise=noise)
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.noise, noise)
    assert first.actions.shape == (8, 2, policy.spec.horizon, policy.spec.action_dim)
    assert first.actions.abs().max() <= 1


def test_sample_does_not_depend_on_its_batch(made):
    policy, batch = made
    noise = noise_for(policy, 8, 3)
    together = policy.sample(policy.encode(observations(policy, batch)), n=3, noise=noise).actions
    for row in (0, 5):
        alone = policy.sample(policy.encode(observations(policy, batch, slice(row, row + 1))), noise=noise[row : row + 1, 2:]).actions
        torch.testing.assert_close(alone[0, 0], together[row, 2], rtol=0, atol=1e-5)


def test_noise_is_standard_normal_and_reproducible_from_a_generator(made):
    policy, batch = made
    context = policy.encode(observations(policy, batch, slice(0, 1)))
    draw = policy.sample(context, n=400, generator=torch.Generator().manual_seed(5))
    again = policy.sample(context, n=400, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draw.actions, again.actions)
    count = draw.noise.numel()
    assert abs(draw.noise.mean()) < 5 / math.sqrt(count)
    assert abs(draw.noise.var() - 1) < 5 * math.sqrt(2 / count)
    # The policy owns the scaling: its own draw, given back as noise, is the same sample.
    assert torch.equal(policy.sample(context, n=400, noise=draw.noise).actions, draw.actions)


def test_no_candidates_are_no_sample(made):
    policy, batch = made
    with pytest.raises(SpecError, match="at least 1 candidate, not 0"):
        policy.sample(policy.encode(observations(policy, batch)), n=0)


def test_candidates_share_one_encode_and_expand_copies_nothing(made):
    policy, batch = made
    calls = []
    for leaf in leaves(policy):
        leaf.encoder.register_forward_hook(lambda *_: calls.append(1))
    context = policy.encode(observations(policy, batch))
    wide = context.expand(4)
    assert wide.batch == 32 and wide.expand(2).batch == 64 and context.batch == 8
    assert wide.embedding.untyped_storage().data_ptr() == context.embedding.untyped_storage().data_ptr()
    noise = noise_for(policy, 8, 4)
    by_n = policy.sample(context, n=4, noise=noise).actions
    by_expand = policy.sample(wide, noise=noise.reshape(32, 1, *noise.shape[2:])).actions
    torch.testing.assert_close(by_expand.reshape(by_n.shape), by_n, rtol=0, atol=1e-6)
    assert len(calls) == len(leaves(policy))


def test_sampling_through_the_denoiser_equals_native_sampling(made):
    policy, batch = made
    if "denoise" not in policy.spec.capabilities:
        return
    assert issubclass(type(policy), HasDenoiser)
    context = policy.encode(observations(policy, batch))
    noise = noise_for(policy, 8, 2)
    for steps in (1, 4, 9):
        native = policy.sample(context, n=2, noise=noise, steps=steps).actions
        wide, flat = context.expand(2), noise.flatten(0, 1)
        exchanged = euler(lambda x, sigma, wide=wide: policy.denoise(x, sigma, wide), flat, policy.sigmas(steps)).clamp(-1, 1)
        torch.testing.assert_close(exchanged.reshape(native.shape), native, rtol=0, atol=1e-5)


def test_denoiser_without_noise_gives_its_input(made):
    policy, batch = made
    if "denoise" not in policy.spec.capabilities:
        return
    context = policy.encode(observations(policy, batch))
    torch.testing.assert_close(policy.denoise(batch["action"], torch.zeros(8), context), batch["action"], rtol=0, atol=1e-6)


def test_guidance_that_changes_nothing_changes_nothing_and_one_that_pulls_pulls(made):
    policy, batch = made
    context = policy.encode(observations(policy, batch))
    noise = noise_for(policy, 8, 2)
    if "denoise" not in policy.spec.capabilities:
        with pytest.raises(SpecError, match="guidance"):
            policy.sample(context, n=2, noise=noise, guidance=[lambda x, clean, sigma, ctx: clean])
        return
    plain = policy.sample(context, n=2, noise=noise).actions
    kept = policy.sample(context, n=2, noise=noise, guidance=[lambda x, clean, sigma, ctx: clean]).actions
    torch.testing.assert_close(kept, plain, rtol=0, atol=1e-5)
    goal = torch.full((16, *policy.spec.noise_shape), 0.25)
    pulled = policy.sample(context, n=2, noise=noise, guidance=[lambda x, clean, sigma, ctx: goal]).actions
    torch.testing.assert_close(pulled, goal.view_as(pulled), rtol=0, atol=1e-4)


def test_policy_keeps_no_queue_and_no_clock(made):
    policy, batch = made
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    obs = observations(policy, batch)
    noise = noise_for(policy, 8, 1)
    has_features = "features" in policy.spec.capabilities
    chunks = [policy.sample(policy.encode(obs), noise=noise, features=has_features) for _ in range(3)]
    assert all(torch.equal(chunks[0].actions, c.actions) for c in chunks)
    if has_features:
        assert all(torch.equal(chunks[0].features, c.features) for c in chunks)
        assert chunks[0].features.shape == (8, 1, policy.spec.feature_dim)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_steps_of_a_sample_can_be_chosen_and_wrong_noise_is_refused(made):
    policy, batch = made
    context = policy.encode(observations(policy, batch))
    with pytest.raises(SpecError, match=r"noise has shape \(8, 2.*expected"):
        policy.sample(context, n=3, noise=noise_for(policy, 8, 2))
    with pytest.raises(SpecError, match="at least 1 step, not 0"):
        policy.sample(context, steps=0)


def test_loss_is_the_mean_over_samples_and_pinned_by_time_and_noise(made):
    policy, batch = made
    drawn = policy.draw(8, torch.Generator().manual_seed(2))
    loss = policy.loss(batch, t=drawn["t"], noise=drawn["noise"])
    assert loss.per_sample.shape == (8,) and loss.scalar.shape == ()
    torch.testing.assert_close(loss.per_sample.mean(), loss.scalar)
    weight = torch.arange(8.0)
    weighted = policy.loss({**batch, "weight": weight}, t=drawn["t"], noise=drawn["noise"])
    assert torch.equal(weighted.per_sample, loss.per_sample)
    torch.testing.assert_close(weighted.scalar, (weight * loss.per_sample).sum() / weight.sum())
    with pytest.raises(SpecError, match="one weight per sample"):
        policy.loss({**batch, "weight": torch.ones(7)})
    assert torch.equal(policy.loss(batch, t=drawn["t"], noise=drawn["noise"]).per_sample, loss.per_sample)
    part = select(batch, slice(3, 5))
    torch.testing.assert_close(policy.loss(part, t=drawn["t"][3:5], noise=drawn["noise"][3:5]).per_sample, loss.per_sample[3:5])
    assert torch.isfinite(policy.loss(batch).scalar)


def test_gradient_of_the_loss_is_that_of_finite_differences(made):
    policy, batch = made
    policy.requires_grad_(True).double()
    drawn = {key: value.double() for key, value in policy.draw(4, torch.Generator().manual_seed(2)).items() if key in ("t", "noise")}
    rows = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in select(batch, slice(4)).items()
    }
    rows["weight"] = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(policy.loss(rows, **drawn).scalar, parameters, allow_unused=True)
    stream = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=stream, dtype=torch.float64) for p in parameters]
    told = sum((g * d).sum() for g, d in zip(gradients, directions) if g is not None)

    def moved(step: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, directions):
                p.add_(d, alpha=step)
        value = policy.loss(rows, **drawn).scalar.detach()
        with torch.no_grad():
            for p, d in zip(parameters, directions):
                p.sub_(d, alpha=step)
        return value

    step = 1e-6
    torch.testing.assert_close(told, (moved(step) - moved(-step)) / (2 * step), rtol=1e-4, atol=1e-7)


def test_saved_and_loaded_is_bit_exact(made, tmp_path):
    policy, batch = made
    policies.save(policy, tmp_path / "run")
    loaded: Any = policies.load(tmp_path / "run")
    assert type(loaded) is type(policy) and loaded.spec == policy.spec and loaded.config == policy.config
    obs, noise = observations(policy, batch), noise_for(policy, 8, 2)
    one, two = (p.sample(p.encode(obs), n=2, noise=noise) for p in (loaded, policy))
    assert torch.equal(one.actions, two.actions)
    newest = last_step(obs)
    if "observe" in policy.spec.capabilities:
        assert torch.equal(loaded.observe(newest), policy.observe(newest))
    if "correct" in policy.spec.capabilities:
        planned = torch.rand(8, policy.spec.action_dim) * 2 - 1
        assert torch.equal(loaded.correct(newest, planned), policy.correct(newest, planned))


def test_observed_features_are_normalised_and_of_the_told_length(made):
    policy, batch = made
    if "observe" not in policy.spec.capabilities:
        return
    assert issubclass(type(policy), HasFeatures)
    newest = last_step(observations(policy, batch))
    features = policy.observe(newest)
    assert features.shape == (8, policy.observation_dim) and not features.requires_grad
    assert features[:, :7].abs().max() < 5  # the vectors, in scales of the data


def test_correction_stays_in_range_and_is_declared(made):
    policy, batch = made
    if "correct" not in policy.spec.capabilities:
        assert not hasattr(policy, "correct")
        return
    assert issubclass(type(policy), HasCorrection)
    newest = last_step(observations(policy, batch))
    planned = torch.rand(8, policy.spec.action_dim) * 2 - 1
    executed = policy.correct(newest, planned)
    assert executed.abs().max() <= 1 and not torch.equal(executed, planned)


def test_overfits_a_tiny_batch(made):
    policy, batch = made
    if type(policy).loss is Wrapper.loss:  # learns as what it wraps, which is a case of its own or wraps one
        policy.eval()
        fixed = policy.draw(8, torch.Generator().manual_seed(0))
        assert torch.equal(*(p.loss(batch, t=fixed["t"], noise=fixed["noise"]).scalar for p in (policy, policy.base)))
        return
    trained = torch.nn.ModuleList(leaves(policy)).requires_grad_(True)
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    fixed = policy.draw(64, torch.Generator().manual_seed(0))
    rows = torch.arange(64) % 8
    many = select(batch, rows)
    told: list[float] = []
    while not told or told[-1] >= 0.15 * told[0]:
        assert len(told) <= 150, (told[0], told[-1])
        optimizer.zero_grad()
        loss = policy.loss(many, t=fixed["t"], noise=fixed["noise"]).scalar
        loss.backward()
        optimizer.step()
        told.append(loss.item())


def test_a_wrapper_refuses_a_base_without_the_capability(made):
    policy, _ = made
    policy.spec = replace(policy.spec, capabilities=("noise",))
    with pytest.raises(SpecError, match=r"Residual needs a policy with capability 'observe'; .* has: noise"):
        policies.Residual(policy)
    with pytest.raises(SpecError, match="'energy'"):
        require(policy, "energy", "BestOfN")


def test_unknown_names_and_wrong_configs_are_told(toys):
    data = toys.ToyData()
    with pytest.raises(InputError, match="did you mean 'flow'"):
        policies.make("flwo", toys.policy_spec(), data.stats())
    with pytest.raises(InputError, match="wraps another policy"):
        policies.make("residual", toys.policy_spec(), data.stats())
    with pytest.raises(DataError, match="config of policy 'flow': unknown field 'depth'; known are backbone, "):
        policies.make("flow", toys.policy_spec(), data.stats(), {"depth": 3})
    assert policies.make("flow", toys.policy_spec(), data.stats(), {"hidden": [8, 8]}).config == policies.FlowConfig(hidden=(8, 8))
    with pytest.raises(InputError, match="takes a FlowConfig, not a ResidualConfig"):
        policies.make("flow", toys.policy_spec(), data.stats(), policies.ResidualConfig())


def test_made_with_the_same_seed_is_the_same_and_leaves_the_global_generator_alone(toys):
    data = toys.ToyData()
    state = torch.get_rng_state()
    one, two, other = (policies.make("flow", toys.policy_spec(), data.stats(), seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_specs_that_no_policy_can_serve_are_refused(toys):
    data = toys.ToyData()
    for spec, message in [
        (toys.policy_spec(horizon=0), "horizon 0 and n_obs_steps 1 must be at least 1"),
        (toys.policy_spec(n_obs_steps=-1), "n_obs_steps -1"),
        (replace(toys.policy_spec(), observation=ObservationSpec({toys.CAMERA: TensorSpec(shape=(8, 8), dtype="uint8")})), "images are"),
    ]:
        with pytest.raises(SpecError, match=message):
            policies.make("flow", spec, data.stats())
