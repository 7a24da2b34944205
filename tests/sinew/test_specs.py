"""Specs, and the join check that names the difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sinew.errors import SpecError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec, check_action_join, check_observation_join

ACTION = ActionSpec(kind="ee_delta", low=(-0.025, -0.1, 0.0), high=(0.025, 0.3, 0.08), rate_hz=20.0, names=("dx", "dy", "gripper"))
STATE = TensorSpec(shape=(2,), unit="rad", names=("a", "b"))
FRONT = TensorSpec(shape=(84, 84, 3), dtype="uint8")
GIVEN = ObservationSpec({"observation.state": STATE, "observation.images.front": FRONT})


# ---------------------------------------------------------------- actions


@pytest.mark.parametrize("make", [np.asarray, lambda v: torch.tensor(v, dtype=torch.float64)])
def test_normalize_maps_bounds_to_one_and_back(make) -> None:
    physical = make([[-0.025, -0.1, 0.0], [0.025, 0.3, 0.08], [0.0, 0.1, 0.04]])
    unit = ACTION.normalize(physical)
    np.testing.assert_allclose(unit, [[-1, -1, -1], [1, 1, 1], [0, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(ACTION.denormalize(unit), physical, atol=1e-12)


def test_denormalize_clips_to_the_bounds() -> None:
    assert ACTION.denormalize(np.array([5.0, -5.0, 1.5])) == pytest.approx([0.025, -0.1, 0.08])


def test_library_and_dtype_are_kept() -> None:
    assert ACTION.normalize(np.zeros((4, 3), np.float32)).dtype == np.float32
    assert ACTION.denormalize(torch.zeros(4, 3)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": (-1.0, -1.0)}, "differ in length"),
        ({"low": (0.025, -0.1, 0.0)}, "is not below high"),
        ({"high": (float("nan"), 0.3, 0.08)}, "is not below high"),
    ],
)
def test_impossible_action_specs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(ACTION, **change)


def test_bounds_become_plain_tuples() -> None:
    spec = ActionSpec(kind="joint_position", low=np.array([-1, -2]), high=[1, 2], rate_hz=50, names=["a", "b"])  # type: ignore[arg-type]
    assert spec.low == (-1.0, -2.0) and isinstance(spec.low[0], float) and spec.names == ("a", "b") and spec.dim == 2
    assert hash(spec) == hash(replace(spec))


# ---------------------------------------------------------------- observations


def test_names_must_fit_the_shape() -> None:
    with pytest.raises(SpecError, match="3 names given for a tensor of shape"):
        TensorSpec(shape=(2,), names=("a", "b", "c"))
    with pytest.raises(SpecError):
        TensorSpec(shape=(2, 2), names=("a", "b"))


def test_images_and_vectors_are_told_apart() -> None:
    assert GIVEN.images == ("observation.images.front",)
    assert GIVEN.vectors == ("observation.state",)
    assert list(GIVEN) == ["observation.state", "observation.images.front"] and GIVEN["observation.state"] == STATE


# ---------------------------------------------------------------- joining


def joined(wanted: dict[str, TensorSpec]) -> None:
    check_observation_join("task lift", GIVEN, "policy runs/a", ObservationSpec(wanted))


@pytest.mark.parametrize("wanted", [{"observation.state": STATE}, {}, {"observation.state": TensorSpec(shape=(2,))}])
def test_a_part_of_what_is_given_fits(wanted) -> None:
    assert joined(wanted) is None  # SpecError would name a difference; unit and names may be left open


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"observation.force": STATE},
            "policy runs/a needs 'observation.force', which task lift does not give: it gives observation.state, ",
        ),
        ({"observation.state": replace(STATE, shape=(3,), names=())}, r"disagree on 'observation.state': shape \(2,\) against \(3,\)"),
        ({"observation.state": replace(STATE, unit="m")}, "unit 'rad' against 'm'"),
        ({"observation.state": replace(STATE, names=("b", "a"))}, r"names \('a', 'b'\) against \('b', 'a'\)"),
        ({"observation.images.front": replace(FRONT, dtype="float32")}, "dtype 'uint8' against 'float32'"),
    ],
)
def test_the_first_difference_is_named(wanted: dict[str, TensorSpec], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        joined(wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "joint_delta"}, "kind 'ee_delta' against 'joint_delta'"),
        ({"rate_hz": 30.0}, "rate_hz 20.0 against 30.0"),
        ({"names": ("dx", "dz", "gripper")}, "names"),
        ({"high": (0.025, 0.3, 0.081)}, "high"),
        ({"low": (-1.0,), "high": (1.0,), "names": ("dx",)}, "low"),
    ],
)
def test_actions_that_mean_something_else_are_refused(change: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_action_join("policy", ACTION, "task", replace(ACTION, **change))


def test_bounds_that_differ_by_rounding_fit() -> None:
    nearby = replace(ACTION, high=tuple(float(np.float32(v)) for v in ACTION.high))
    assert nearby.high != ACTION.high
    check_action_join("policy", ACTION, "task", nearby)
