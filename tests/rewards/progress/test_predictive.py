import numpy as np
import pytest
import torch

from rewards.latent import Encoder, EncoderConfig
from rewards.progress import predictive
from rewards.progress.predictive import PredictiveConfig, check_spread, effective_rank
from sinew.errors import DataError, InputError

SIZES = {"dim": 8, "hidden": 32}
SEES = EncoderConfig(vectors={"observation.state": 3}, **SIZES)


def circles(episodes: int = 12, length: int = 30) -> tuple[dict[str, torch.Tensor], list[slice]]:
    """Walks along circles of different sizes, at different speeds."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(episodes):
        angle = np.linspace(0, rng.uniform(2, 5), length)
        radius = rng.uniform(0.5, 1.5)
        parts.append(np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(length, radius)], 1))
    seen = {"observation.state": torch.from_numpy(np.concatenate(parts).astype(np.float32))}
    return seen, [slice(i * length, (i + 1) * length) for i in range(episodes)]


def test_latents_spread_and_the_same_seed_gives_the_same_encoder():
    seen, spans = circles()
    config = PredictiveConfig(updates=150, batch_size=64, **SIZES)
    first, second = (predictive.train(seen, spans, SEES, config) for _ in range(2))
    latents = predictive.encode(first, seen)
    assert effective_rank(latents) > 2.0  # angle and radius, at least
    torch.testing.assert_close(latents, predictive.encode(second, seen), rtol=0, atol=0)


def test_an_encoder_that_tells_nothing_apart_is_noticed():
    seen, spans = circles()
    still = {"observation.state": seen["observation.state"][:1].expand(360, 3)}  # nothing ever moves
    with pytest.raises(DataError, match="tells nothing apart"):
        predictive.train(still, spans, SEES, PredictiveConfig(updates=5, batch_size=8, **SIZES))
    constant = Encoder(SEES)
    torch.nn.init.zeros_(constant.head[-1].weight)
    with pytest.raises(DataError, match=r"spread by 0 in 0\.0 directions"):
        check_spread(predictive.encode(constant, seen))


@pytest.mark.parametrize("latents", [torch.zeros(50, 8), torch.randn(50, 1, generator=torch.Generator().manual_seed(0)).expand(50, 8)])
def test_a_point_and_a_line_are_noticed(latents):
    with pytest.raises(DataError, match="tells nothing apart"):
        check_spread(latents)


def test_effective_rank_of_a_known_covariance():
    """Equal spread in k directions has rank k."""
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    x[:, 3:] = 0.0
    assert effective_rank(x) == pytest.approx(3.0, abs=0.01)


def test_pictures_are_learned_from_too():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 40, (40, 64, 64, 3), dtype=np.uint8)
    for i in range(40):  # a bright square moves over each picture
        pictures[i, 20:30, i : i + 10] = 255
    seen = {"observation.images.front": torch.from_numpy(pictures)}
    sees = EncoderConfig(vectors={}, pictures=("observation.images.front",), **SIZES)
    encoder = predictive.train(seen, [slice(0, 20), slice(20, 40)], sees, PredictiveConfig(updates=20, batch_size=8, **SIZES))
    assert predictive.encode(encoder, seen).shape == (40, 8)


def test_pictures_are_averaged_when_they_are_made_small():
    large = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    large[:, ::2] = 100
    assert set(predictive.small(large).unique().tolist()) == {50}
    same = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert predictive.small(same) is same


def test_nothing_to_learn_from_and_wrong_settings_are_refused():
    seen, _ = circles(2)
    with pytest.raises(InputError, match="no episode has two frames"):
        predictive.train(seen, [slice(0, 1), slice(1, 2)], SEES, PredictiveConfig(**SIZES))
    with pytest.raises(InputError, match="at least 1"):
        PredictiveConfig(updates=0)


def test_a_vector_that_is_not_finite_is_refused_with_its_frame():
    from sinew.specs import ObservationSpec, TensorSpec

    class Data:
        observation_spec = ObservationSpec({"observation.state": TensorSpec(shape=(3,))})

        def window(self, rows, *_):
            values = np.zeros((len(rows), 1, 3), np.float32)
            values[np.asarray(rows) == 7] = np.nan
            return {"observation.state": values}

    with pytest.raises(DataError, match="frame 7 is not finite"):
        predictive.read(Data(), ("observation.state",), np.arange(5, 10))
