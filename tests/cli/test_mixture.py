"""`sinew train --data A=0.7 B=0.3`: shares of datasets, from the command line to what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import demos
from sinew.cli import train
from sinew.cli.mixture import folders_and_shares
from sinew.errors import InputError, SpecError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec


def record(root: Path, frames: int, offset: float = 0.0, names: tuple[str, ...] = ("x", "y")) -> Path:
    observation = ObservationSpec(
        {"observation.state": TensorSpec(shape=(2,)), "observation.images.top": TensorSpec(shape=(16, 16, 3), dtype="uint8")}
    )
    action = ActionSpec(kind="ee_delta", low=(-1.0,) * len(names), high=(1.0,) * len(names), rate_hz=10.0, names=names)
    rng = np.random.default_rng(frames)
    with demos.Writer.create(root, fps=10, observation_spec=observation, action_spec=action, task="push") as writer:
        for _ in range(frames):
            writer.add_frame(
                {
                    "observation.state": rng.normal(offset, 1, 2).astype(np.float32),
                    "observation.images.top": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8),
                    "action": rng.uniform(-1, 1, len(names)).astype(np.float32),
                }
            )
        writer.save_episode(success=True)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    return record(folder / "a", 30), record(folder / "b", 60, 5.0)


def test_what_shares_mean(tmp_path):
    (tmp_path / "odd=0.5").mkdir()
    odd, a, b = tmp_path / "odd=0.5", Path("a"), Path("b")
    assert folders_and_shares([a, b]) == ((a, b), None) and folders_and_shares([odd]) == ((odd,), None)
    assert folders_and_shares([Path("a=0.7"), Path("b=3")]) == ((a, b), (0.7, 3.0))
    assert folders_and_shares([Path(f"{odd}=1"), Path("x=2")]) == ((odd, Path("x")), (1.0, 2.0))
    for given, message in (
        (("a=0.7", "b"), "b has no share and others have one: give each of the 2 datasets one, or none"),
        (("a=0", "b=1"), "a share is above 0 and finite"),
        (("a=inf", "b=1"), "a share is above 0 and finite"),
        (("a=1", "a=2"), "names a twice"),
    ):
        with pytest.raises(InputError, match=message):
            folders_and_shares([Path(text) for text in given])


def test_a_mixture_is_trained_on_and_told(folders, tmp_path):
    a, b = folders
    how = {"data": (Path(f"{a}=0.75"), Path(f"{b}=0.25")), "steps": 4, "batch_size": 12, "normalize": "first", "pool_mb": 1}
    result = train.train(train.Args(**how, out=tmp_path / "run"))
    assert set(result["times"]) == {"load_s", "preprocess_s", "update_s", "samples_per_s"} and result["times"]["samples_per_s"] > 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["shares"] == [0.75, 0.25] and config["normalize"] == "first" and config["data"] == [str(a), str(b)]
    with pytest.raises(InputError, match="choose another --out"):
        train.train(train.Args(**{**how, "data": (a, b)}, out=tmp_path / "run"))


def test_data_that_do_not_fit_are_refused_before_a_folder_is_made(folders, tmp_path):
    other = record(tmp_path / "c", 20, names=("x", "z"))
    with pytest.raises(SpecError, match=r"disagree on the action: names \('x', 'z'\) against \('x', 'y'\)"):
        train.train(train.Args(data=(Path(f"{folders[0]}=0.5"), Path(f"{other}=0.5")), out=tmp_path / "run"))
    with pytest.raises(InputError, match="no dataset at"):
        train.train(train.Args(data=(Path(f"{folders[0]}=0.5"), Path(f"{tmp_path / 'none'}=0.5")), out=tmp_path / "run"))
    with pytest.raises(InputError, match="--cache-gb -1"):
        train.train(train.Args(data=(folders[0],), cache_gb=-1, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_decoded_pictures_are_kept_where_they_are_told(folders, tmp_path):
    def make(out, **how):
        train.train(train.Args(data=(folders[0],), steps=1, batch_size=4, cache_dir=tmp_path / "kept", out=tmp_path / out, **how))

    make("none", cache_gb=0)
    assert not (tmp_path / "kept").exists()
    make("one")
    assert len(list((tmp_path / "kept/pictures").iterdir())) == 1
    make("small", image_size=8)
    assert len(list((tmp_path / "kept/pictures").iterdir())) == 2, "each size has its own"
    same = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("none", "one")]
    assert same[0] == same[1]
