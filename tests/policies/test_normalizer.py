"""Normalisation of vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.normalizer import CLIP, STD_FLOOR, Normalizer
from sinew.errors import DataError, SpecError
from sinew.specs import ObservationSpec, TensorSpec

CAMERA = TensorSpec(shape=(8, 8, 3), dtype="uint8")
SPEC = ObservationSpec({"a": TensorSpec(shape=(2,)), "observation.images.c": CAMERA, "b": TensorSpec(shape=())})


def fitted(std=(2.0, 0.5)):
    normalizer = Normalizer(SPEC)
    normalizer.fit({"a": {"mean": np.array([1.0, -1.0]), "std": np.array(std)}, "b": {"mean": np.array(3.0), "std": np.array(1.0)}})
    return normalizer


def test_vectors_are_concatenated_in_the_order_of_the_spec_and_scaled():
    obs = {"b": torch.tensor([[4.0]]), "a": torch.tensor([[[3.0, -1.5]]])}
    torch.testing.assert_close(fitted()(obs, 2), torch.tensor([[[1.0, -1.0, 1.0]]]))


def test_data_get_mean_zero_and_unit_scale():
    data = np.random.default_rng(0).normal([5, -3], [2, 0.1], (5000, 2))
    normalizer = Normalizer(ObservationSpec({"a": TensorSpec(shape=(2,))}))
    normalizer.fit({"a": {"mean": data.mean(0), "std": data.std(0)}})
    x = normalizer({"a": torch.from_numpy(data)}, 1)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(x.std(0), torch.ones(2), rtol=0, atol=1e-3)


def test_near_constant_elements_are_not_blown_up_and_outliers_are_limited():
    normalizer = fitted(std=(1e-9, 0.5))
    assert normalizer.scale[0] == pytest.approx(STD_FLOOR)
    obs = {"a": torch.tensor([[1.0 + 1e-4, 1e9]]), "b": torch.zeros(1)}
    x = normalizer(obs, 1)
    assert x[0, 0] == pytest.approx(0.01, rel=1e-2) and x[0, 1] == CLIP


def test_statistics_that_do_not_fit_are_refused():
    normalizer = Normalizer(SPEC)
    good = {"mean": np.zeros(2), "std": np.ones(2)}
    with pytest.raises(SpecError, match="no statistics for 'b'"):
        normalizer.fit({"a": good})
    with pytest.raises(SpecError, match="length 2, the observation spec says 1"):
        normalizer.fit({"a": good, "b": good})
    with pytest.raises(DataError, match="not finite"):
        normalizer.fit({"a": {"mean": np.array([0, np.nan]), "std": np.ones(2)}, "b": {"mean": np.zeros(1), "std": np.ones(1)}})
