"""Checkpoints made to run code, to fill the memory or to end the process are refused in one line."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import policies
from policies.checkpoint import TENSORS_NAME, read_tensors
from policies.torch_runner import open_program
from sinew.errors import DataError
from sinew.rundir import RunDir


class Trap:
    """What a pickle of this does when it is opened."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.fixture
def saved(tmp_path: Path, toys: Any) -> Path:
    policy, _ = toys.make("flow-mlp")
    RunDir.create(tmp_path / "run", {"task": "none"})
    policies.save(policy, tmp_path / "run")
    return tmp_path / "run"


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, which says that it has any length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({}, b"", 2**63),
        ({}, b"", 2**40),
        (b" " * 200, b"", 10**9),
        (b"{" * 100_000, b"", None),
        (b"[1, 2]", b"", None),
        (b"\xff\xfe", b"", None),
        ({"a": tensor(0, 2**40, [2**38])}, b"1234", None),
        ({"a": tensor(0, 4, [2**38])}, b"1234", None),
        ({"a": tensor(0, 4, [1]), "b": tensor(0, 4, [1])}, b"1234", None),
        ({"a": tensor(4, 0, [1])}, b"1234", None),
        ({"a": tensor(-4, 0, [1])}, b"1234", None),
        ({"a": tensor(0, 4, [2**62, 4])}, b"1234", None),
        ({"a": tensor(0, 4, [1], "O")}, b"1234", None),
        ({"a": tensor(0, 4, [1])}, b"1234 and more", None),
        ({"a": tensor(4, 8, [1])}, b"12345678", None),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"1234", None),
    ],
)
def test_safetensors_that_are_none(tmp_path, header, data, length):
    path = written(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(DataError, match="is truncated or not a safetensors file") as told:
        read_tensors(path)
    assert "\n" not in str(told.value)


def test_a_header_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", 2**30))
        f.truncate(2**30 + 8)  # sparse: takes no place on the disk
    with pytest.raises(DataError, match="is truncated or not a safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_under_another_name_is_not_run(saved, protocol):
    for content in (pickle.dumps(Trap(), protocol), pickle.dumps({"weight": Trap()}, protocol)):
        (saved / TENSORS_NAME).write_bytes(content)
        with pytest.raises(DataError, match="is truncated or not a safetensors file"):
            policies.load(saved)


def test_a_zip_with_a_pickle_under_another_name_is_not_run(saved):
    torch.save({"weight": Trap()}, saved / TENSORS_NAME)
    with pytest.raises(DataError, match="is truncated or not a safetensors file"):
        policies.load(saved)
    with pytest.raises(DataError, match="a pickle or code"):
        open_program(saved / TENSORS_NAME)


@pytest.mark.parametrize("name", ["model.pt", "optimizer.PTH", "data.pkl", "x.ckpt", "pytorch_model.bin", "y.joblib"])
def test_a_pickle_beside_the_policy_is_refused(saved, name):
    (saved / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="is a pickle, which can run any code when it is opened"):
        policies.load(saved)


def test_a_zip_that_unfolds_without_end_is_not_opened(tmp_path):
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for i in range(4):
            archive.writestr(f"a/data/weights/weight_{i}", b"\0" * 20_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"would unfold into 80000000 bytes, more than it has"):
        open_program(path)


@pytest.mark.parametrize("hidden", [[2**31], [60_000, 60_000], [2**62], [10**30]])
def test_a_description_of_a_giant_is_refused_before_it_is_made(saved, hidden):
    path = saved / "policy.json"
    described = json.loads(path.read_text())
    described["config"]["hidden"] = hidden
    text = json.dumps(described)
    path.write_text(text)
    whole, _ = read_tensors(saved / TENSORS_NAME)
    save_file(whole, saved / TENSORS_NAME, {"sinew_policy_json_sha256": sha256(text.encode()).hexdigest()})
    with pytest.raises(DataError) as told:
        policies.load(saved)
    assert "\n" not in str(told.value) and str(path) in str(told.value)


def test_types_and_files_that_a_description_may_not_name(saved):
    path = saved / "policy.json"
    described = json.loads(path.read_text())
    for name in ("os.system", "../../evil", "__class__", "policies.flow.FlowPolicy", "", None, 3):
        path.write_text(json.dumps(described | {"type": name}))
        with pytest.raises(DataError, match=r"is unknown; known are") as told:
            policies.load(saved)
        assert "\n" not in str(told.value)
