"""Actions as tokens: a round trip within the rounding error, short where the motion is smooth."""

from __future__ import annotations

import math

import pytest
import torch

from policies.vla.fast import IGNORED, ActionTokenizer, cosine_basis
from sinew.errors import InputError


def smooth(rows: int, horizon: int, dims: int) -> torch.Tensor:
    time = torch.linspace(0, 1, horizon)[None, :, None]
    phase, speed = torch.rand(rows, 1, dims) * 6, torch.rand(rows, 1, dims) * 3
    return torch.sin(speed * time + phase)


def test_basis_is_orthonormal_and_its_first_row_is_the_mean():
    basis = cosine_basis(7)
    torch.testing.assert_close(basis @ basis.T, torch.eye(7), rtol=0, atol=1e-6)
    torch.testing.assert_close(basis[0], torch.full((7,), 1 / math.sqrt(7)))


@pytest.mark.parametrize("scale", [5.0, 10.0, 40.0])
@pytest.mark.parametrize("horizon", [1, 8, 50])
def test_round_trip_stays_within_the_rounding_error(scale, horizon):
    tokenizer = ActionTokenizer(horizon, 4, scale)
    for chunk in (torch.rand(64, horizon, 4) * 2 - 1, smooth(64, horizon, 4), torch.ones(1, horizon, 4), -torch.ones(1, horizon, 4)):
        tokens = tokenizer.encode(chunk)
        assert tokens.shape == (len(chunk), horizon * 4 + 1) and tokens.max() < tokenizer.size
        error = (tokenizer.decode(tokens) - chunk).square().mean((1, 2)).sqrt()
        assert error.max() <= 0.5 / scale + 1e-6


def test_the_tokens_of_a_known_chunk():
    tokenizer = ActionTokenizer(4, 2, 10.0)  # coefficients up to 10 * 2
    chunk = torch.zeros(1, 4, 2)
    chunk[..., 1] = 0.5  # constant: one coefficient, 0.5 * sqrt(4) * 10 = 10
    assert tokenizer.encode(chunk).tolist() == [[20, 30, tokenizer.end, *[IGNORED] * 6]]
    assert tokenizer.encode(torch.zeros(1, 4, 2)).tolist() == [[tokenizer.end, *[IGNORED] * 8]]


def test_smooth_chunks_are_shorter_than_noise_and_missing_tokens_are_zero():
    tokenizer = ActionTokenizer(50, 3)

    def length(chunk):
        return (tokenizer.encode(chunk) != IGNORED).sum(1).float().mean()

    assert length(smooth(64, 50, 3)) < 0.5 * length(torch.rand(64, 50, 3) * 2 - 1)
    chunk = smooth(8, 50, 3)
    tokens = tokenizer.encode(chunk)
    cut = tokens[:, : int((tokens != IGNORED).sum(1).max())]
    assert torch.equal(tokenizer.decode(cut), tokenizer.decode(tokens))


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="must be above 0"):
        ActionTokenizer(4, 2, 0.0)
