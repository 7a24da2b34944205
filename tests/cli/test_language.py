"""Several datasets, sample weights and instructions through the verbs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sinew.cli import collect, deploy, eval, train
from sinew.errors import DataError, InputError, SinewError, SpecError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Small datasets of both touch tasks and of lift."""
    folder = tmp_path_factory.mktemp("language")
    for task in ("touch_red", "touch_blue", "lift"):
        collect.collect(collect.Args(task=task, out=folder / task, episodes=3))
    return folder


def args(folder: Path, *data: str, out: str, **settings) -> train.Args:
    return train.Args(data=tuple(folder / name for name in data), out=folder / out, **{"steps": 6, "batch_size": 16, **settings})


def test_two_datasets_train_one_policy_that_must_be_told_which_task(folder):
    both = args(folder, "touch_red", "touch_blue", out="both")
    train.train(both)
    config = json.loads((folder / "both/config.json").read_text())
    assert config["task"] is None and config["tasks"] == ["touch_blue", "touch_red"] and len(config["data"]) == 2
    state = json.loads((folder / "both/train_state.json").read_text())
    frames = [collect.summary(folder / name)["frames"] for name in ("touch_red", "touch_blue")]
    assert state["config"]["frames"] == sum(frames) and state["config"]["episodes"] == 6
    with pytest.raises(InputError, match="was trained on touch_blue, touch_red; name one with --task"):
        eval.evaluate(eval.Args(run=folder / "both", episodes=2))
    assert eval.evaluate(eval.Args(run=folder / "both", task="touch_red", episodes=2))["n"] == 2
    train.train(both)  # the same again: nothing left to do
    with pytest.raises(SinewError, match="data"):
        train.train(args(folder, "touch_blue", "touch_red", out="both"))


def test_datasets_that_differ_are_refused_and_joined_on_the_keys_they_share(folder):
    with pytest.raises(SpecError, match=r"lift and .*touch_red disagree on 'observation.environment_state'"):
        train.train(args(folder, "touch_red", "lift", out="mixed"))
    assert not (folder / "mixed").exists()
    train.train(args(folder, "touch_red", "lift", out="mixed", keys=("observation.state",)))
    with pytest.raises(InputError, match=r"has no 'observation\.images\.front'"):
        train.train(args(folder, "touch_red", "lift", out="seen", keys=("observation.images.front",)))
    with pytest.raises(InputError, match="--data names no folder"):
        train.train(args(folder, out="none"))


def test_weights_come_from_a_column_and_change_what_is_learned(folder):
    plain = train.train(args(folder, "touch_red", out="plain"))
    late = train.train(args(folder, "touch_red", out="late", weights="timestamp"))
    assert plain["loss"] != late["loss"]
    both = train.train(args(folder, "touch_red", "touch_blue", out="late-both", weights="timestamp"))
    assert np.isfinite(both["loss"])
    for name, error, message in [
        ("mass", DataError, "has no column 'mass': it has .*timestamp"),
        ("next.success", InputError, "--weights next.success: the column holds bool"),
        ("observation.state", InputError, r"--weights observation.state: the column holds float32 \(24,\) per frame, one float"),
    ]:
        with pytest.raises(error, match=message):
            train.train(args(folder, "touch_red", out="never", weights=name))
    assert not (folder / "never").exists()


def test_an_instruction_that_could_have_no_effect_is_refused(folder):
    train.train(args(folder, "touch_red", out="deaf"))
    with pytest.raises(InputError, match="FlowPolicy does not act by language"):
        eval.evaluate(eval.Args(run=folder / "deaf", episodes=1, instruction="Touch the blue button."))
    with pytest.raises(InputError, match="FlowPolicy does not act by language"):
        deploy.deploy(deploy.Args(run=folder / "deaf", episodes=1, robot="sim", instruction="Touch the blue button."))


def test_evaluations_with_different_instructions_are_kept_apart():
    told = [None, "Touch the blue button.", "Touch the blue button", "触れる"]
    names = {eval.file_name("touch_red", eval.Args(run=Path("run"), instruction=text)) for text in told}
    assert len(names) == 4 and "touch_red" in names
    assert any(name.startswith("touch_red-told-touch-the-blue-button-") for name in names)
    assert all(name.isascii() and "/" not in name for name in names)


def test_a_language_policy_goes_through_every_verb_and_does_what_it_is_told(folder):
    data = []
    for task in ("touch_red", "touch_blue"):
        data.append(f"{task}-seen")
        collect.collect(collect.Args(task=task, out=folder / data[-1], episodes=2, cameras=("front",), image_size=32))
    tiny = 'tiny={"width": 16, "heads": 2, "kv_heads": 1, "vision_layers": 1, "text_layers": 1, "patch_px": 16}'
    settings = {"policy": "vla", "keys": ("observation.state", "observation.images.front"), "set": ("backbone=tiny", tiny)}
    train.train(args(folder, *data, out="vla", **settings))
    described = json.loads((folder / "vla/policy.json").read_text())
    assert described["config"]["instructions"] == ["Touch the red button.", "Touch the blue button."]

    wanted = {"run": folder / "vla", "task": "touch_red", "episodes": 2}
    own = eval.evaluate(eval.Args(**wanted))
    assert own["instruction"] is None and (folder / "vla/eval/touch_red.json").exists()
    other = eval.evaluate(eval.Args(**wanted, instruction="Touch the blue button.", videos=1))
    assert other["instruction"] == "Touch the blue button." and len(other["videos"]) == 1
    assert len(list((folder / "vla/eval").glob("touch_red*.json"))) == 2
    with pytest.raises(InputError, match="--instruction is blank"):
        eval.evaluate(eval.Args(**wanted, instruction=" "))
    done = deploy.deploy(deploy.Args(**{**wanted, "episodes": 1}, robot="sim", instruction="Touch the blue button."))
    assert done["success"]["n"] == 1 and list((folder / "vla/deploy").glob("touch_red-sim-told-touch-the-blue-button-*.json"))
