"""Columns that no policy sees: recorded, read, refused where they would be in the way, and kept when info.json is lost."""

from __future__ import annotations

import numpy as np
import pytest

import demos
from sinew.errors import DataError, SpecError
from sinew.specs import TensorSpec

EXTRA = {"sent.joints": TensorSpec(shape=(2,), unit="rad"), "gate": TensorSpec(shape=(1,), dtype="int64")}


def record(root, helpers, extra=EXTRA):
    observation, action = helpers.specs()
    with demos.Writer.create(root, fps=20, observation_spec=observation, action_spec=action, task="t", extra=extra) as writer:
        for at in range(8):
            values = {"sent.joints": np.array([at, -at], np.float32), "gate": np.array([at % 3])}
            writer.add_frame({**helpers.frame(0, at), **values}, stamp_ns=at * 50_000_000)
        writer.save_episode(success=True, notes=["stopped for safety: a test"])
    return demos.Dataset(root)


def test_extra_columns_are_read_and_are_no_observations(tmp_path, helpers):
    data = record(tmp_path / "d", helpers)
    np.testing.assert_array_equal(data.column("sent.joints")[:, 0], np.arange(8))
    assert data.column("gate")[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert set(data.observation_spec.tensors) == set(helpers.specs()[0].tensors)
    assert data.episode(0).warnings == ("stopped for safety: a test",)
    with demos.Writer.resume(tmp_path / "d", task="t") as writer, pytest.raises(DataError, match=r"sent\.joints|gate"):
        writer.add_frame(helpers.frame(0, 0))


def test_extra_columns_survive_the_loss_of_info(tmp_path, helpers):
    record(tmp_path / "d", helpers)
    (tmp_path / "d/meta/info.json").unlink()
    demos.repair(tmp_path / "d")
    np.testing.assert_array_equal(demos.Dataset(tmp_path / "d").column("sent.joints")[:, 1], -np.arange(8))


@pytest.mark.parametrize("name", ["observation.sent", "action", "timestamp", "a/b"])
def test_names_that_are_taken_are_refused(tmp_path, helpers, name):
    with pytest.raises(SpecError, match="cannot be recorded"):
        record(tmp_path / "d", helpers, {name: TensorSpec(shape=(1,))})
