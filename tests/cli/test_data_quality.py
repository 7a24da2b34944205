"""`sinew data quality` and what uses it: training that draws by weights, editing that leaves the doubtful out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import demos
from sinew.cli import train_weights
from sinew.cli.benchmarks import data_planted, data_quality
from sinew.cli.main import main
from sinew.progress import SILENT, Progress


def told(capsys, *argv):
    capsys.readouterr()
    code = main([*map(str, argv), "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out) if code == 0 else out.err


@pytest.fixture(scope="module")
def kinds() -> list[str]:
    return data_planted.kinds_of(good=8, bad_each=1, seed=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory, kinds) -> Path:
    root = tmp_path_factory.mktemp("quality") / "d"
    data_planted.collect(root, "lift", kinds, seed=0)
    assert main(["data", "quality", str(root), "--policy-folds", "2", "--json"]) == 0
    return root


@pytest.fixture
def copy(root, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(root, tmp_path / "d"))


def test_planted_episodes_are_of_their_kinds(root, kinds):
    data = demos.Dataset(root)
    assert data.num_episodes == 13 and sorted(set(kinds)) == sorted({"good", *data_planted.KINDS})
    assert all(data.episode(i).success for i, kind in enumerate(kinds) if kind == "good")
    gripper = {kind: data.column("action")[data.episode(i).start : data.episode(i).start + 5, -1] for i, kind in enumerate(kinds)}
    assert not gripper["habit"].any() and gripper["good"].all()
    assert demos.check(root).ok, "bad demonstrations are sound data"


def test_the_table_names_the_planted_ones_first(root, kinds, tmp_path, capsys):
    code, result = told(capsys, "data", "quality", root, "--policy-folds", "0", "--out", tmp_path / "pictures")
    assert code == 0 and "policy_loss" not in result["episodes"][0]
    code, result = told(capsys, "data", "quality", root, "--policy-folds", "2", "--out", tmp_path / "pictures")
    doubt = [row["doubt"] for row in result["episodes"]]
    assert doubt == sorted(doubt, reverse=True) and len(doubt) == 13 and "policy_loss" in result["episodes"][0]
    assert all(kinds[row["episode"]] != "good" for row in result["episodes"][:3]) and result["episodes"][0]["because"]
    assert Path(result["picture"]).parent == tmp_path / "pictures" and Path(result["weights_file"]).parent == root / "meta"
    import cv2

    picture = cv2.imread(result["picture"])
    assert picture is not None and picture.shape[0] > 13 * 20 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    capsys.readouterr()
    assert main(["data", "quality", str(root), "--policy-folds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "because of" in shown and "sinew train draws by them" in shown and max(map(len, shown.splitlines()[:13])) <= 100


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_training_draws_by_the_weights_says_so_and_keeps_it(root, tmp_path):
    from demos.quality import weights
    from sinew.cli import train

    notes, kept = Notes(), weights.load(demos.Dataset(root))
    assert kept is not None
    how = {"data": (root,), "policy": "direct", "steps": 8, "batch_size": 32}
    train.train(train.Args(out=tmp_path / "auto", **how), notes)
    assert any(f"of 13 episodes are drawn less often, {int((kept.weights == 0).sum())} of them not at all" in n for n in notes.notes)
    train.train(train.Args(out=tmp_path / "asked", weights="quality", **how))
    train.train(train.Args(out=tmp_path / "none", weights="none", **how))
    config = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in ("auto", "asked", "none")}
    assert config["auto"] == config["asked"] and len(config["auto"]["draw"]) == 64 and "draw" not in config["none"]
    assert json.loads((tmp_path / "auto" / "provenance.json").read_text())["inputs"]["draw"] == config["auto"]["draw"]


def test_a_run_that_was_stopped_goes_on_with_the_same_draws(root, tmp_path):
    import policies
    from policies.train import train
    from sinew.rundir import RunDir
    from sinew.specs import PolicySpec

    data = demos.Dataset(root)
    draw = train_weights.draw(data, None, SILENT)
    assert draw is not None and draw.shape == (len(data),)
    spec = PolicySpec(observation=data.observation_spec, action=data.action_spec, horizon=4)
    config = policies.TrainConfig(steps=24, batch_size=32, checkpoint_every=6, warmup_steps=2)

    class Stops(Progress):
        done = 0

        def advance(self, n: int = 1, **values: float) -> None:
            Stops.done += "loss" in values
            if Stops.done == 15:
                raise RuntimeError

    def fit(name: str, progress: Progress = SILENT):
        run = RunDir.create(tmp_path / name, {"verb": "train"}, seeds={}, inputs={})
        return train(policies.make("direct", spec, data.stats(), seed=0), data, run, config, progress, draw=draw)

    with pytest.raises(RuntimeError):
        fit("stopped", Stops())
    stopped, whole = fit("stopped"), fit("whole")
    assert all(torch.equal(a, b) for a, b in zip(stopped.state_dict().values(), whole.state_dict().values(), strict=True))


def test_each_of_several_datasets_keeps_its_share(root, tmp_path, capsys):
    from demos.edit import assemble, pieces_of

    assemble(tmp_path / "other", pieces_of(root)[:5])
    parts = [demos.Dataset(root), demos.Dataset(tmp_path / "other")]
    draw = train_weights.draw(demos.Concat(parts, shares=(1.0, 3.0)), None, SILENT)
    assert draw is not None
    assert draw[len(parts[0]) :].sum() == pytest.approx(3 * draw[: len(parts[0])].sum())
    plain = train_weights.draw(demos.Concat(parts), None, SILENT)
    assert plain is not None and plain.mean() == pytest.approx(1.0) and (plain[len(parts[0]) :] == 1).all()
    assert train_weights.draw(parts[1], None, SILENT) is None
    code, error = told(capsys, "train", "--data", tmp_path / "other", "--out", tmp_path / "run", "--weights", "quality")
    assert code == 2 and "sinew_weights.json is missing; run sinew data quality" in error and not (tmp_path / "run").exists()


def test_weights_of_other_data_are_refused(copy, tmp_path, capsys):
    data = demos.Dataset(copy)
    with demos.Writer.resume(copy, task="lift") as writer:
        writer.add_frame({k: data[0][k] for k in (*data.observation_spec.vectors, "action")})
        writer.save_episode()
    code, error = told(capsys, "train", "--data", copy, "--out", tmp_path / "run", "--policy", "direct", "--steps", "2")
    assert code == 2 and "was made of other data" in error and error.count("\n") == 1 and "Traceback" not in error


def test_editing_leaves_the_doubtful_out(copy, kinds, tmp_path, capsys):
    code, made = told(capsys, "data", "edit", copy, "--drop-worst", "3", "--out", tmp_path / "best")
    assert code == 0 and made["made"][""]["episodes"] == 10
    best = demos.Dataset(tmp_path / "best")
    lost = demos.Dataset(copy).episode
    code, table = told(capsys, "data", "quality", copy, "--policy-folds", "2")
    gone = [row["episode"] for row in table["episodes"][:3]]
    assert len(best) == len(demos.Dataset(copy)) - sum(lost(i).length for i in gone)
    code, made = told(capsys, "data", "edit", copy, "--keep-best", "0.5", "--out", tmp_path / "half")
    assert code == 0 and made["made"][""]["episodes"] == 6
    for argv, message in (
        (("--keep-best", "0.5"), "--keep-best makes another dataset: give a folder for it with --out"),
        (("--keep-best", "1.5", "--out", tmp_path / "x"), "--keep-best 1.5 is a share"),
        (("--drop-worst", "13", "--out", tmp_path / "x"), "13 of 13 episodes would go"),
        (("--drop-worst", "1", "--keep-best", "0.9", "--out", tmp_path / "x"), "give one"),
        ((), "nothing is to be changed"),
    ):
        code, error = told(capsys, "data", "edit", copy, *argv)
        assert code == 2 and message in error and error.count("\n") == 1
    (copy / "meta/sinew_weights.json").unlink()
    code, error = told(capsys, "data", "edit", copy, "--keep-best", "0.5", "--out", tmp_path / "x")
    assert code == 2 and "run sinew data quality" in error and not (tmp_path / "x").exists()


def test_words_and_outcomes_change_in_place(copy, capsys):
    code, made = told(capsys, "data", "edit", copy, "--failure", "0,2", "--task", "1:lift it gently")
    assert code == 0 and made["made"][""]["relabelled"] == [0, 1, 2] and made["made"][""]["root"] == str(copy)
    code, info = told(capsys, "data", "info", copy)
    assert info["tasks"]["lift it gently"] == 1 and info["outcomes"]["failure"] >= 2
    assert demos.check(copy).ok
    capsys.readouterr()
    assert main(["data", "edit", str(copy), "--success", "2"]) == 0
    assert "1 of them relabelled in place" in capsys.readouterr().out


@pytest.mark.parametrize(("folds", "message"), [("1", "--policy-folds 1: 2 or more"), ("-2", "--policy-folds -2")])
def test_numbers_of_folds_that_cannot_be_are_refused(root, capsys, folds, message):
    code, error = told(capsys, "data", "quality", root, "--policy-folds", folds)
    assert code == 2 and message in error


def test_the_benchmark_runs_and_counts_right():
    bad, score = np.array([True, True, False, False]), np.array([3.0, 1.0, 1.0, 0.0])
    assert data_quality.area(bad, score) == (1 + 1 + 0.5 + 1) / 4
    cell = {"all": [True, False, False, True], "weighted": [True, True, True, True], "good": [True] * 4, "seeds": [1, 2, 3, 4]}
    better, least = data_quality._success_rows("direct", "lift", [cell])
    assert (better.ours, better.peer_value, better.holds) == (100.0, 50.0, False) and "2 won, 0 lost" in str(better.peer)
    assert least.peer_value == 100.0 and least.holds is None
