"""Policies on disk: what is whole comes back, what is not is told in one line."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import policies
from policies import checkpoint
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir


@pytest.fixture
def saved(toys, tmp_path):
    policy, _ = toys.make("residual-flow-mlp")
    policies.save(policy, tmp_path / "run")
    return tmp_path / "run"


def write(run, described):
    """Put another description beside the tensors, as if both had been saved together."""
    text = json.dumps(described)
    (run / "policy.json").write_text(text)
    save_file(load_file(run / "policy.safetensors"), run / "policy.safetensors", {checkpoint._DIGEST: checkpoint._digest(text)})


def read(run):
    return json.loads((run / "policy.json").read_text())


def test_run_directory_or_path_and_evaluation_mode(saved):
    policy: Any = policies.load(saved)
    assert not policy.training and not any(p.requires_grad for p in policy.base.parameters())
    assert type(policies.load(RunDir(saved))) is policies.Residual


def test_missing_run_names_what_is_there(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no run at .*nothing.*other"):
        policies.load(tmp_path / "nothing")


def test_run_that_holds_no_policy_yet(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"policy\.json does not exist"):
        policies.load(tmp_path)


def test_missing_tensors(saved):
    (saved / "policy.safetensors").unlink()
    with pytest.raises(DataError, match=r"policy\.safetensors does not exist"):
        policies.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99, this Sinew reads 1"),
        ({"type": "transformer"}, "policy type 'transformer' is unknown; known are .*flow, .*residual"),
        ({"bases": []}, "does not describe a residual policy"),
        ({"bases": None}, "does not describe a policy: an object with type, spec, config and bases"),
        ({"config": {"scale": 0.3, "hidden": [16], "size": 1}}, "unknown field 'size'"),
        ({"config": {"scale": 0.4, "hidden": [32]}}, r"tensor 'actor.layers.0.weight' is \(16, \d+\) torch.float32, expected \(32"),
        ({"config": {"scale": -1.0, "hidden": [16]}}, r"scale -1\.0 must be"),
        ({"spec": {}}, "is missing"),
    ],
)
def test_changed_description_is_refused(saved, change, message):
    write(saved, {**read(saved), **change})
    with pytest.raises(DataError, match=message) as told:
        policies.load(saved)
    assert "\n" not in str(told.value)


def test_a_description_changed_by_hand_is_refused_before_it_is_used(saved):
    (saved / "policy.json").write_text(json.dumps({**read(saved), "config": {"scale": 0.2, "hidden": [10**12]}}))
    with pytest.raises(DataError, match=r"policy\.json was changed after policy\.safetensors was saved"):
        policies.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00\x01"])
def test_broken_description_is_refused(saved, text):
    (saved / "policy.json").write_text(text)
    with pytest.raises(DataError):
        policies.load(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_tensors_are_refused(saved, keep):
    path = saved / "policy.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(DataError, match="truncated or not a safetensors file") as told:
        policies.load(saved)
    assert "\n" not in str(told.value)


def test_foreign_tensors_are_refused(saved):
    save_file({"weight": torch.zeros(3)}, saved / "policy.safetensors")
    with pytest.raises(DataError, match="does not hold a policy of Sinew"):
        policies.load(saved)
    write(saved, read(saved))
    with pytest.raises(DataError, match=r"tensor 'actor.layers.0.bias' is missing; it belongs to another policy"):
        policies.load(saved)


def test_tensors_that_are_not_finite_are_refused_both_ways(saved, toys):
    path = saved / "policy.safetensors"
    tensors = load_file(path)
    tensors["actor.layers.0.bias"][0] = float("nan")
    save_file(tensors, path)
    write(saved, read(saved))
    with pytest.raises(DataError, match=r"'actor.layers.0.bias' holds values that are not finite"):
        policies.load(saved)
    policy, _ = toys.make("flow-mlp")
    policy.net.out.bias.data[0] = float("inf")
    before = path.read_bytes()
    with pytest.raises(DataError, match="not finite"):
        policies.save(policy, saved)
    assert path.read_bytes() == before


def test_a_pickle_is_never_run(saved):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    (saved / "policy.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError):
        policies.load(saved)
    torch.save({"trap": Trap()}, saved / "policy.safetensors")
    with pytest.raises(DataError):
        policies.load(saved)


def test_saving_again_replaces_both_files(saved, toys):
    policy, _ = toys.make("flow-unet")
    policies.save(policy, saved)
    assert type(policies.load(saved)) is policies.FlowPolicy
    assert sorted(p.name for p in saved.iterdir()) == ["policy.json", "policy.safetensors"]


def test_a_class_that_is_not_registered_cannot_be_saved(toys, tmp_path):
    class Own(policies.FlowPolicy):
        pass

    flow, _ = toys.make("flow-mlp")
    with pytest.raises(InputError, match=r"Own is not a registered policy: known are .*flow, .*residual"):
        policies.save(Own(flow.spec, flow.config), tmp_path)


def places(value, path=()):
    """The path of every value inside parsed JSON."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def put(value, path, new):
    """A copy of parsed JSON with the value at `path` replaced."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def test_any_value_of_the_description_may_be_wrong(saved):
    """Every value is replaced by odd ones: one line names the file, whatever it was."""
    whole, loaded = read(saved), []
    for path in places(whole):
        for odd in (None, -1, 0.5, "x", [None], {"x": 1}):
            changed = put(whole, path, odd)
            if changed == whole:
                continue
            write(saved, changed)
            try:
                policies.load(saved)
            except DataError as told:
                assert "\n" not in str(told) and str(saved) in str(told), path
            else:
                loaded.append((path, odd))
    assert all("config" in path for path, _ in loaded)  # a setting that shapes no tensor of this policy, within its bounds
