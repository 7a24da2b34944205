"""Pseudo-counts: one over the number of times that a feature was seen, and the features that they are learned from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policies.batches import Windows
from policies.best_of import BestOfN
from policies.counts import CountConfig, demonstrated_features, fit_counts, load_counts, make_counts, save_counts
from policies.parallel import Group
from policies.randomness import generator
from sinew.errors import DataError, SpecError

SEEN = (1, 3, 10)


def test_the_square_is_one_over_the_number_of_times_seen():
    """12 places for each count, 20 flips: their mean square has a relative deviation of sqrt(2 / 240) = 9 %."""
    stream = torch.Generator().manual_seed(0)
    places = torch.randn(len(SEEN), 12, 8, generator=stream)
    samples = torch.cat([places[i].repeat(n, 1) for i, n in enumerate(SEEN)])
    network = make_counts(8, CountConfig(hidden=128, blocks=2, epochs=400, batch_size=128))
    network.fit(samples)
    for i, n in enumerate(SEEN):
        assert float(network.novelty(places[i]).mean()) == pytest.approx(1 / n, rel=0.3), n


def test_what_was_never_seen_looks_new_and_an_untrained_network_calls_everything_new():
    stream = torch.Generator().manual_seed(1)
    seen = torch.randn(30, 8, generator=stream).repeat(40, 1)
    network = make_counts(8, CountConfig(hidden=64, epochs=40))
    network._scale(seen)
    assert float(network.novelty(seen).mean()) == pytest.approx(1.0, abs=0.05)
    network.fit(seen)
    assert float(network.novelty(3 + torch.randn(200, 8, generator=stream)).mean()) > 5 * float(network.novelty(seen).mean())


def test_the_feature_of_a_frame_is_that_of_the_candidate_nearest_to_its_demonstration(toys):
    policy, data = toys.make("flow-mlp")
    config = CountConfig(candidates=7, seed=5)
    features = demonstrated_features(policy, data, config)
    assert features.shape == (len(data), policy.spec.feature_dim)
    windows = Windows(data, policy.spec, len(data), 0, Group())
    indices, batch = next(iter(windows(0, 1)))
    rows = {int(i): place for place, i in enumerate(indices)}
    first = [rows[i] for i in range(64)]
    chunk = policy.sample(
        policy.encode({k: batch[k][first] for k in policy.spec.observation}), n=7, features=True, generator=generator(5, 2, 0)
    )
    for i in (0, 17, 19, 63):  # frame 19 is the last of its episode: only its own action counts
        inside = ~batch["action_is_pad"][first[i]]
        error = [float((c[inside].detach() - batch["action"][first[i]][inside]).square().sum()) for c in chunk.actions[i]]
        torch.testing.assert_close(features[i], chunk.features[i, error.index(min(error))])
    assert torch.equal(demonstrated_features(policy, data, config), features)


def test_fitted_saved_and_loaded_they_rank_alike(toys, tmp_path):
    policy, data = toys.make("edm-mlp")
    config = CountConfig(hidden=16, blocks=1, candidates=4, epochs=3)
    counts = fit_counts(policy, data, config)
    state = torch.get_rng_state()
    again = fit_counts(policy, data, config)
    assert torch.equal(torch.get_rng_state(), state)
    save_counts(counts, tmp_path)
    loaded, features = load_counts(tmp_path), torch.randn(6, policy.spec.feature_dim)
    for other in (again, loaded):
        assert torch.equal(other.novelty(features), counts.novelty(features))
    assert BestOfN(policy, 3, loaded).config.counts == config


def test_bad_input_is_told(toys, tmp_path):
    policy, data = toys.make("best_of-flow-mlp")
    with pytest.raises(DataError, match="need finite features"):
        make_counts(2, CountConfig(hidden=4)).fit(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(SpecError, match="pseudo-counts need candidates above 0"):
        CountConfig(candidates=0)
    (tmp_path / "counts.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="truncated or not a safetensors file"):
        load_counts(tmp_path)
    policy.spec = replace(policy.spec, capabilities=("noise",))
    with pytest.raises(SpecError, match="pseudo-counts needs a policy with capability 'features'"):
        fit_counts(policy, data)
