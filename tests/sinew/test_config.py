"""Dataclasses to JSON and back, strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sinew.config import from_json, read_config, to_json
from sinew.errors import DataError, InputError, unknown
from sinew.specs import ActionSpec, ObservationSpec, PolicySpec, TensorSpec


@dataclass(frozen=True)
class Part:
    size: tuple[int, int]
    rate: float = 1.0
    note: str | None = None


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part
    parts: tuple[Part, ...] = ()
    table: dict[str, Part] = field(default_factory=dict)
    on: bool = False

    def __post_init__(self) -> None:
        if self.name == "nobody":
            raise unknown("name", self.name, ("somebody",))


WHOLE = Whole("a", Part((1, 2)), (Part((3, 4), 0.5, "x"),), {"k": Part((5, 6))}, True)


def test_round_trip_through_text() -> None:
    assert from_json(Whole, json.loads(json.dumps(to_json(WHOLE)))) == WHOLE


def test_round_trip_of_specs() -> None:
    vector = TensorSpec(shape=(2,), low=-1.0, high=(1.0, 2.0), unit="rad, m", names=("a", "b"))
    observation = ObservationSpec({"observation.state": vector, "observation.images.front": TensorSpec(shape=(8, 8, 3), dtype="uint8")})
    action = ActionSpec(kind="ee_delta", low=(-1,), high=(1,), rate_hz=20, names=("dx",))
    spec = PolicySpec(observation=observation, action=action, horizon=8, noise_shape=(8, 1), capabilities=("denoise",))
    assert from_json(PolicySpec, json.loads(json.dumps(to_json(spec)))) == spec


def test_arrays_tensors_and_sets_become_plain_json() -> None:
    made = to_json({"f": np.float32(0.5), "a": np.arange(3), "t": torch.tensor(2), "m": torch.eye(2), "s": {1}, 3: None})
    assert made == {"f": 0.5, "a": [0, 1, 2], "t": 2, "m": [[1.0, 0.0], [0.0, 1.0]], "s": [1], "3": None}
    json.dumps(made)


def test_an_integer_serves_as_a_float() -> None:
    rate = from_json(Part, {"size": [1, 2], "rate": 3}).rate
    assert rate == 3.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "b"}, r"config\.json: unknown field 'nmae'; known are name, part"),
        ({"name": 5}, r"config\.json\.name: expected str, found 5"),
        ({"part": {"size": [1, 2], "rate": "fast"}}, r"config\.json\.part\.rate: expected float, found 'fast'"),
        ({"part": {"rate": 1.0}}, r"config\.json\.part: field 'size' is missing"),
        ({"part": [1]}, r"config\.json\.part: expected an object, found list"),
        ({"parts": "ab"}, r"config\.json\.parts: expected a list, found 'ab'"),
        ({"table": {"k": {"size": [1, "x"]}}}, r"config\.json\.table\.k\.size: expected int, found 'x'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_json(Whole, {**to_json(WHOLE), **change}, "config.json")


def test_a_file_is_named_whatever_is_wrong_with_it(tmp_path) -> None:
    file = tmp_path / "whole.json"
    with pytest.raises(InputError, match=r"^settings .*whole\.json cannot be read: No such file or directory; write one$"):
        read_config(Whole, file, "settings", "write one")
    with pytest.raises(InputError, match=r"^settings .* cannot be read: Is a directory$"):
        read_config(Whole, tmp_path, "settings")
    file.write_text(json.dumps(to_json(WHOLE)))
    assert read_config(Whole, file, "settings") == WHOLE
    for text, said in (
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "expected an object, found list"),
        (json.dumps({**to_json(WHOLE), "name": "nobody"}).encode(), "unknown name 'nobody'"),
    ):
        file.write_bytes(text)
        with pytest.raises(InputError, match=rf"^settings .*whole\.json:? ?{said}[^\n]*$"):
            read_config(Whole, file, "settings")
