"""A guard through a whole `sinew improve` run: the alarm is heard, logged and told at the end; and a check finds what can be collected."""

from __future__ import annotations

import json

import pytest

from rewards.latent import load_tensors, save_tensors
from rl.crew import LOGS
from sinew.cli import collect, improve, reward_heard, train
from sinew.cli.improve_actors import _say_of_reward
from sinew.cli.main import main
from sinew.rundir import RunDir

HOVER = "def reward(before, now, action):\n    high = clip(now.tool[2], 0, 1)\n    return high, {'high': high}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Demonstrations of reach, a policy that has learned nothing, and a reward that pays for a hand held high."""
    folder = tmp_path_factory.mktemp("guard")
    collect.collect(collect.Args(task="reach", out=folder / "data", episodes=4))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=5, batch_size=32))
    settings = {"source": HOVER, "weight": 1.0}
    (folder / "hover.json").write_text(json.dumps({"reward": "code", "version": 1, "made": {}, "settings": settings}))
    return folder


def sinew(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_reward_that_pays_for_every_step_does_not_pass_the_check(folder, capsys):
    """It is scaled by 1 − γ, and is asked at a discount at which that is not nothing."""
    code, out, _ = sinew(capsys, "reward", "check", folder / "hover.json", "--data", folder / "data", "--json")
    found = {f["name"]: f for f in json.loads(out)["findings"]}
    assert code == 2 and "dense" not in found
    assert found["loops"]["holds"] is False and "again and again" in found["loops"]["text"]


def test_the_alarm_is_heard_once_kept_in_the_run_and_told_at_its_end(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(improve, "GATE_EPISODES", 2)
    guarded = folder / "guarded.json"
    words = ("reward", "guard", folder / "hover.json", "--data", folder / "data", "--out", guarded, "--alarm", 0.01)
    assert sinew(capsys, *words)[0] == 0
    learn = ("improve", folder / "bc", "--reward", guarded, "--out", tmp_path / "run", "--steps", 1100, "--evaluate-every", 1100)
    learn = (*learn, "--act-steps", 8, "--base-noise", "zero")
    code, out, err = sinew(capsys, *learn)
    assert code == 0
    assert sum("alarm: after" in line for line in err.splitlines()) == 1  # while it learns
    assert "the reward: alarm: after" in out and "the guard's χ² at the end" in out  # and when it is done
    lines = [line for line in RunDir.open(tmp_path / "run").metrics() if line.get("stage") == "reward"]
    assert sum("guard_chi_square" in line for line in lines) == 1  # after 1000 steps: the first 500 are learned from, the next judged
    assert sum("alarm" in line.get("note", "") for line in lines) == 1
    assert any("high" in line.get("parts", {}) for line in lines)  # what is guarded tells of itself as well
    code, out, _ = sinew(capsys, *learn, "--json")  # finished: nothing is learned again, and it is told all the same
    told = json.loads(out)["reward"]
    assert told["name"] == str(guarded) and len(told["said"]) == 1 and told["chi_square"]["highest"] > 0.01


def test_what_the_policy_visits_before_it_learns_is_known_as_well(folder, capsys):
    words = ("reward", "guard", folder / "hover.json", "--data", folder / "data", "--out", folder / "known.json")
    _, out, _ = sinew(capsys, *words, "--json")
    alone = json.loads(out)
    _, out, _ = sinew(capsys, *words, "--run", folder / "bc", "--episodes", 3, "--json")
    both = json.loads(out)
    assert alone["states"] == alone["demonstrated"] == both["demonstrated"]
    visited = both["states"] - both["demonstrated"]
    tensors, _ = load_tensors(folder / "known.safetensors")
    assert len(tensors["states"]) == both["states"] and 3 <= visited <= 3 * 200
    code, _, err = sinew(capsys, *words, "--run", folder / "bc", "--episodes", 0)
    assert code == 2 and "at least 1 is needed" in err
    code, _, err = sinew(capsys, *words, "--run", folder / "bc", "--noise", 3)
    assert code == 2 and "lies between 0 and 2" in err


def test_what_rewards_say_before_the_run_is_there_and_in_actors_is_kept_too(tmp_path, capsys):
    run, told = RunDir.create(tmp_path / "run", {}), []
    heard = reward_heard.Heard(told.append)
    heard.say("no model answers")
    heard.log({"guard_chi_square": 9.0})  # nothing can be kept yet, and nothing fails
    heard.keep(run)
    heard.say("no camera")
    heard.log({"guard_chi_square": 3.0})
    heard.log({"guard_chi_square": 2.0})
    heard.end(run)
    heard.end(run)  # a finished run that is asked for again says nothing twice
    _say_of_reward("the questions are spent")
    (run / LOGS).mkdir()
    (run / LOGS / "0.log").write_text(f"something else\n{capsys.readouterr().err}")
    assert told == ["no model answers", "no camera"]
    assert sum("note" in line for line in run.metrics()) == 2
    assert reward_heard.told(run) == {
        "said": ["no camera", "no model answers", "the questions are spent"],
        "chi_square": {"last": 2.0, "highest": 3.0},
    }


def test_a_reward_without_a_success_to_be_near_to_leaves_success_alone_and_says_so(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(improve, "GATE_EPISODES", 2)
    words = ("reward", "progress", "--data", folder / "data", "--out", tmp_path / "near.json", "--updates", 40)
    assert sinew(capsys, *words)[0] == 0
    weights = tmp_path / "near.safetensors"
    tensors, described = load_tensors(weights)
    emptied = {name: tensors[name][:0] for name in ("latents", "time", "episode")}
    save_tensors(weights, tensors | emptied, described)
    learn = ("improve", folder / "bc", "--reward", tmp_path / "near.json", "--out", tmp_path / "run", "--steps", 40)
    code, out, err = sinew(capsys, *learn, "--evaluate-every", 40, "--act-steps", 8, "--base-noise", "zero", "--json")
    said = [line for line in err.splitlines() if "success alone" in line]
    assert code == 0 and len(said) == 1 and "holds no success" in said[0]
    told = json.loads(out)
    assert told["steps"] == 40 and told["reward"]["name"] == "sparse" and told["reward"]["said"] == said
