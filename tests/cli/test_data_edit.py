import json

import pytest

from sinew.cli.data_edit import numbers, shared_out
from sinew.cli.main import main
from sinew.errors import InputError


def told(capsys, *argv):
    capsys.readouterr()
    code = main([*map(str, argv), "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out) if code == 0 else out.err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "lift"
    assert main(["collect", "--task", "lift", "--episodes", "6", "--out", str(root)]) == 0
    return root


def test_shares_are_of_all_episodes_and_disjoint():
    parts = shared_out(["a=0.5", "b=0.3", "c=0.2"], 10, seed=3)
    assert [len(p) for p in parts.values()] == [5, 3, 2]
    assert sorted(i for part in parts.values() for i in part) == list(range(10))
    assert parts == shared_out(["a=0.5", "b=0.3", "c=0.2"], 10, seed=3) != shared_out(["a=0.5", "b=0.3", "c=0.2"], 10, seed=4)


WRONG = ["a"], ["a=0.9", "a=0.1"], ["a=0.7", "b=0.7"], ["a=0-3", "b=3"], ["a=0.001"], ["../a=0.5"], ["a=0-99"], ["a=x"]


@pytest.mark.parametrize("parts", WRONG)
def test_parts_that_cannot_be_are_refused(parts):
    with pytest.raises(InputError, match="parts"):
        shared_out(parts, 10, 0)


def test_numbers_are_read():
    assert numbers("0-2, 7,1", 8, "--keep") == [0, 1, 2, 7]
    assert numbers("", 8, "--keep") == []


def test_split_merge_edit_and_replay(data, tmp_path, capsys):
    code, made = told(capsys, "data", "split", data, "--parts", "a=0-3", "b=4,5", "--out", tmp_path / "parts")
    assert code == 0 and [m["episodes"] for m in made["made"].values()] == [4, 2]
    code, made = told(capsys, "data", "merge", tmp_path / "parts" / "b", tmp_path / "parts" / "a", "--out", tmp_path / "whole")
    assert code == 0 and made["made"][""]["episodes"] == 6
    argv = ["--delete", "0", "--trim", "2:-9", "--task", "1:lift it gently", "--failure", "3"]
    code, made = told(capsys, "data", "edit", tmp_path / "whole", *argv, "--out", tmp_path / "edited")
    assert code == 0 and made["made"][""]["episodes"] == 5
    code, told_of = told(capsys, "data", "info", tmp_path / "edited")
    assert told_of["outcomes"] == {"success": 4, "failure": 1} and told_of["tasks"]["lift it gently"] == 1
    code, again = told(capsys, "data", "replay", tmp_path / "edited", "--episodes", "0,4")
    assert code == 0 and again["task"] == "lift" and again["agree"] == again["of"] == 2
    assert all(row["objects_max_m"] < 0.005 for row in again["rows"])


def test_wrong_words_get_one_line(data, tmp_path, capsys):
    for argv, said in (
        (["edit", data, "--out", tmp_path / "x"], "nothing is to be changed"),
        (["edit", data, "--delete", "9", "--out", tmp_path / "x"], "0 to 5"),
        (["edit", data, "--delete", "1", "--success", "1", "--out", tmp_path / "x"], "episode 1"),
        (["edit", data, "--trim", "1:2", "--out", tmp_path / "x"], "write episode"),
        (["merge", data, "--out", tmp_path / "x"], "two datasets"),
        (["split", data, "--parts", "a=0-9", "--out", tmp_path / "x"], "0 to 5"),
        (["replay", data, "--task", "drawer"], "disagree"),
        (["replay", data, "--task", "lfit"], "did you mean 'lift'"),
    ):
        code, err = told(capsys, "data", *argv)
        lines = [line for line in err.splitlines() if line.startswith("sinew:")]
        assert code == 2 and len(lines) == 1 and said in lines[0], (argv, err)
    assert not (tmp_path / "x").exists()


def test_formats_of_others_come_and_go(data, tmp_path, capsys):
    pytest.importorskip("h5py")
    code, made = told(capsys, "data", "convert", data, "--to", "hdf5", "--out", tmp_path / "lift.hdf5")
    assert code == 0 and made["episodes"] == 6
    argv = ["--state", "state", "--environment", "environment_state", "--task", "lift the cube", "--fps", "20"]
    code, made = told(capsys, "data", "convert", tmp_path / "lift.hdf5", *argv, "--out", tmp_path / "back")
    assert code == 0 and made["episodes"] == 6
    code, facts = told(capsys, "data", "info", tmp_path / "back")
    assert facts["outcomes"] == {"success": 6} and facts["observation"]["observation.environment_state"]["shape"] == [12]
    for argv, said in (
        (["convert", tmp_path / "lift.hdf5", "--out", tmp_path / "x"], "--task"),
        (["convert", tmp_path / "lift.hdf5", "--state", "stat", "--out", tmp_path / "x"], "did you mean 'state'"),
        (["convert", tmp_path / "lift.hdf5", "--to", "mcap", "--out", tmp_path / "x"], "to lerobot first"),
        (["convert", tmp_path / "lift.hdf5", "--contract", "ur5e", "--out", tmp_path / "x"], "--contract"),
        (["convert", data, "--fps", "20", "--out", tmp_path / "x"], "--fps"),
    ):
        code, err = told(capsys, "data", *argv)
        lines = [line for line in err.splitlines() if line.startswith("sinew:")]
        assert code == 2 and len(lines) == 1 and said in lines[0], (argv, err)
