"""Policies put together on the command line: composed, the best of several, late, from elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import policies
from policies.best_of import BestOfN
from rl.checkpoint import write_state
from rl.residual import STATE_FILE, ResidualConfig, make_learner
from robot_bridge.policy_server import PolicyServer
from sinew.cli import assembly, collect, compare, deploy, distill, eval, train
from sinew.config import to_json
from sinew.errors import InputError, SinewError, SpecError
from sinew.rundir import RunDir

LIFT = {"task": "lift", "episodes": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of three families on one small dataset, and one of another horizon."""
    folder = tmp_path_factory.mktemp("assembly")
    collect.collect(collect.Args(task="lift", out=folder / "data", episodes=3))
    for kind in ("flow", "diffusion", "edm"):
        made(folder, kind, policy=kind)
    made(folder, "short", policy="flow", horizon=6)
    return folder


def made(folder: Path, name: str, **settings: Any) -> None:
    train.train(train.Args(data=(folder / "data",), out=folder / name, steps=6, batch_size=16, **settings))


def evaluated(folder: Path, *names: str, **settings: Any) -> dict[str, Any]:
    first, *others = (str(folder / name) for name in names)
    return eval.evaluate(eval.Args(run=first, others=tuple(others), **{"episodes": 2, **settings}))


def test_policies_of_different_families_are_composed_and_told_beside_each_alone(folder):
    for name in ("flow", "diffusion"):
        evaluated(folder, name)
    result = evaluated(folder, "flow", "diffusion", "edm", weight="0.5")
    assert result["weights"] == [0.5, 0.25, 0.25] and result["n"] == 2 and result["with"] == [str(folder / n) for n in ("diffusion", "edm")]
    assert [entry["run"] for entry in result["against"]] == [str(folder / "flow"), str(folder / "diffusion")]
    assert all(entry["n"] == 2 and entry["verdict"] == "no evidence" for entry in result["against"])
    (written,) = (folder / "flow/eval").glob("lift-with-diffusion+edm-*-w0.5.json")
    assert json.loads(written.read_text())["successes"] == result["successes"]


def test_a_search_looks_at_scenes_of_the_gate_and_then_tests_the_best(folder, monkeypatch):
    seen: list[tuple[tuple[float, ...], list[int]]] = []

    def success(policy, interface, seeds, options, progress=None, goals=None, *worlds):
        seen.append((policy.config.weights, list(seeds)))
        wins = {0.3: 4, 0.7: 5, 0.6: 5}.get(policy.config.weights[0], 1)
        return {"k": wins, "n": len(seeds), "wilson95": [0, 1], "seeds": list(seeds), "successes": [True] * len(seeds)}

    monkeypatch.setattr(eval, "success", success)
    result = evaluated(folder, "flow", "diffusion", weight="search", search_episodes=5, seed=3)
    assert result["search"] == {"weight": 0.6, "n": 5, "k": {f"{w / 10:g}": {3: 4, 6: 5, 7: 5}.get(w, 1) for w in range(11)}}
    assert all(seeds == list(range(33_000_000, 33_000_005)) for _, seeds in seen[:-1]) and len(seen) == 12
    assert seen[-1] == ((0.6, pytest.approx(0.4)), [23_000_000, 23_000_001]) and result["weights"] == [0.6, 0.4]


def test_pseudo_counts_are_learned_once_and_again_where_policy_or_data_are_others(folder, monkeypatch):
    fitted = []
    monkeypatch.setattr("policies.counts.fit_counts", lambda policy, *_: fitted.append(policy) or small_counts(policy))
    for _ in range(2):
        assert evaluated(folder, "flow", best_of=3)["best_of"] == 3
    assert len(fitted) == 1
    evaluated(folder, "flow", "edm", weight="0.5", best_of=3)
    evaluated(folder, "flow", "edm", weight="0.6", best_of=3)
    evaluated(folder, "flow", best_of=3, data=folder / "data")
    assert len(fitted) == 3
    assert {"lift-best3-count.json"} <= {path.name for path in (folder / "flow/eval").glob("*.json")}
    assert len(list((folder / "flow/counts").glob("*/counts.safetensors"))) == 3
    with pytest.raises(InputError, match=r"was trained on nowhere, which is not there: name it with --data DIR"):
        config = json.loads((folder / "edm/config.json").read_text())
        (folder / "edm/config.json").write_text(json.dumps({**config, "data": "nowhere"}))
        evaluated(folder, "edm", best_of=3)


def small_counts(policy):
    from policies.counts import CountConfig, make_counts

    return make_counts(policy.spec.feature_dim, CountConfig(hidden=8)).eval()


def test_values_are_those_of_the_runs_critics_on_the_corrected_first_action(folder):
    policy = policies.Residual(policies.load(folder / "flow"), scale=0.5)
    torch.nn.init.normal_(policy.actor.layers[-1].weight)
    run = RunDir.create(folder / "improved", {"verb": "improve", "task": "lift"})
    policies.save(policy, run)
    config = ResidualConfig()
    learner = make_learner(policy.actor, policy.observation_dim, policy.spec.action_dim, config)
    tensors, numbers = learner.state()
    write_state(run / STATE_FILE, tensors, {"learner": numbers, "config": to_json(config)})
    source = assembly.open_source(folder / "improved")
    best = assembly.best_of(source.policy, 4, "q", [source])
    assert isinstance(best, BestOfN) and best.config.scorer == "q"
    features, chunks = torch.randn(6, policy.observation_dim), torch.rand(6, 8, policy.spec.action_dim) * 2 - 1
    executed = (chunks[:, 0] + policy.actor(features, chunks[:, 0])).clamp(-1, 1)
    expected = learner.critic(torch.cat([features, executed], -1)).amin(0)
    torch.testing.assert_close(assembly.value_of([source])(features, chunks), expected)
    assert evaluated(folder, "improved", best_of=4, scorer="q")["scorer"] == "q"
    with pytest.raises(InputError, match=r"critics of one run that sinew improve made; .*flow has none: rank by count"):
        evaluated(folder, "flow", best_of=4, scorer="q")


def test_every_way_of_executing_is_kept_apart_and_can_be_compared(folder):
    ways = [{}, {"act_steps": 4}, {"executor": "async", "delay": 2, "act_steps": 4}, {"executor": "rtc", "delay": 2, "act_steps": 4}]
    results = [evaluated(folder, "diffusion", **way) for way in ways]
    names = {path.name for path in (folder / "diffusion/eval").glob("*.json")}
    assert {"lift.json", "lift-act4.json", "lift-async-delay2-act4.json", "lift-rtc-delay2-act4.json"} <= names
    assert [r["delay"] for r in results] == [0, 0, 2, 2]
    run = folder / "diffusion"
    late = compare.run(compare.Args(a=run, b=run, executor="rtc", delay=2, act_steps=4))
    assert late["a"]["n"] == 2
    files = [run / "eval/lift.json", run / "eval/lift-rtc-delay2-act4.json"]
    across = compare.run(compare.Args(a=files[0], b=files[1]))
    assert across["a"]["seeds"] == across["b"]["seeds"] == results[0]["seeds"]


def test_a_policy_behind_a_server_is_evaluated_as_if_it_were_here(folder, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o600)
    here = evaluated(folder, "flow")
    with PolicyServer(policies.load(folder / "flow"), port=0, name="flow", token="a-token-of-some-length") as server:
        there = eval.evaluate(eval.Args(run=server.url, token_file=token, **LIFT | {"episodes": 2}, out=tmp_path / "far"))
        assert there["successes"] == here["successes"] and there["lengths"] == here["lengths"]
        assert (tmp_path / "far/eval/lift.json").exists()
        with pytest.raises(InputError, match=r"does not say which task it is for; name it with --task"):
            eval.evaluate(eval.Args(run=server.url, token_file=token))
        with pytest.raises(InputError, match="is no run to keep them in; give --out FOLDER"):
            eval.evaluate(eval.Args(run=server.url, token_file=token, videos=1, **LIFT))


@pytest.mark.parametrize(
    ("runs", "settings", "message"),
    [
        (["flow", "edm"], {}, "2 policies are composed: give --weight 0.5 or --weight search"),
        (["flow"], {"weight": "0.5"}, "--weight 0.5 is for several policies"),
        (["flow", "edm"], {"weight": "1.5"}, "--weight '1.5': give the first policy's weight from 0 to 1, 2 weights that sum"),
        (["flow", "edm"], {"weight": "0.5,0.6"}, "--weight '0.5,0.6'"),
        (["flow", "edm"], {"weight": "half"}, "--weight 'half'"),
        (["flow", "edm"], {"weight": "search", "search_episodes": 0}, "--search-episodes 0"),
        (["flow", "short"], {"weight": "0.5"}, "has horizon 8, policy 2 6: train both with the same one"),
        (["flow"], {"best_of": 0}, "--best-of 0: at least 1 candidate"),
        (["flow"], {"best_of": 4, "scorer": "energy"}, "best-of by energy needs a policy with capability 'energy'"),
        (["flow"], {"delay": 2}, "executor sync waits for its chunks and knows no delay, given 2"),
        (["flow"], {"executor": "rtc", "delay": 5}, "a delay of 5 ticks does not fit chunks of 8 actions, it may be 0 to 4"),
        (["flow"], {"executor": "rtc", "delay": 3, "act_steps": 2}, r"act_steps 2 is not within 3\.\.5"),
        (["flow"], {"executor": "rtc", "delay": 1, "best_of": 4}, "--executor rtc guides every sample, which --best-of 4 cannot take"),
        (["flow"], {"token_file": Path("secret")}, "--token-file secret is for a policy behind a server"),
        (["nothing"], {}, "no run at"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, runs, settings, message):
    with pytest.raises((InputError, SpecError), match=message) as told:
        evaluated(folder, *runs, **settings)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best_of": 4, "scorer": "energy"}, "best-of by energy needs a policy with capability 'energy'"),
        ({"best_of": 4, "scorer": "q"}, "--scorer q ranks by the critics of one run"),
        ({"best_of": 4, "data": Path("nowhere")}, "nowhere"),
        ({"episodes": 0}, "--episodes 0: at least 1 is needed"),
    ],
)
def test_nothing_is_searched_for_in_vain(folder, monkeypatch, settings, message):
    monkeypatch.setattr(eval, "search_weight", lambda *_: pytest.fail("the search came before the refusal"))
    with pytest.raises(SinewError, match=message):
        evaluated(folder, "flow", "diffusion", weight="search", **settings)


def test_a_policy_without_features_is_told_what_else_to_rank_by(folder):
    source = assembly.open_source(folder / "flow")
    source.policy.spec = replace(source.policy.spec, capabilities=("noise",), feature_dim=0)
    with pytest.raises(SpecError, match=r"'features'; FlowPolicy has: noise: rank by another scorer, or use a policy whose sampler"):
        assembly.best_of(source.policy, 4, "count", [source], folder=folder)


def test_pseudo_counts_see_pictures_of_the_size_that_the_policy_was_trained_on(folder, monkeypatch):
    collect.collect(collect.Args(task="reach", out=folder / "seen", episodes=1, cameras=("front",), image_size=32))
    settings = {"data": (folder / "seen",), "image_size": 16, "horizon": 4, "keys": ("observation.state", "observation.images.front")}
    train.train(train.Args(out=folder / "small", steps=1, batch_size=8, **settings))
    seen = []
    monkeypatch.setattr("policies.counts.fit_counts", lambda policy, data, *_: seen.append(data) or small_counts(policy))
    assert evaluated(folder, "small", best_of=2)["best_of"] == 2
    assert seen[0].observation_spec["observation.images.front"].shape == (16, 16, 3)


def test_a_policy_of_lerobot_needs_its_task():
    with pytest.raises(InputError, match="hf:somebody/something does not say which task it is for; name it with --task"):
        eval.evaluate(eval.Args(run="hf:somebody/something"))


def test_names_of_evaluations_differ_by_what_was_asked_for():
    ways: list[dict[str, Any]] = [
        {}, {"weight": "0.5", "others": ("a",)}, {"weight": "0.5", "others": ("x/a",)}, {"weight": "0.6", "others": ("a",)},
        {"weight": "search", "others": ("a",)}, {"best_of": 4}, {"best_of": 8}, {"best_of": 4, "scorer": "q"}, {"executor": "rtc"},
        {"executor": "async"}, {"executor": "rtc", "delay": 1}, {"executor": "rtc", "delay": 1, "act_steps": 3},
    ]  # fmt: skip
    names = {eval.file_name("lift", eval.Args(run="run", **way)) for way in ways}
    assert len(names) == len(ways) and all("/" not in name for name in names)


@pytest.mark.parametrize("executor", ["async", "rtc"])
def test_deploying_with_chunks_that_are_computed_meanwhile(folder, executor):
    result = deploy.deploy(deploy.Args(run=folder / "flow", robot="sim", episodes=1, executor=executor, delay=2, act_steps=4))
    told = result["executor"]
    assert told["mode"] == executor and told["delay"] == 2 and told["act_steps"] == 4 and "held_ticks" in told
    assert result["stopped"] == "" and result["report"]["policy"]["ticks"] > 0
    assert (folder / f"flow/deploy/lift-sim-{executor}.json").exists()


def test_a_delay_without_use_is_refused_before_there_is_a_robot(folder):
    with pytest.raises(InputError, match="--delay 2: executor sync waits for its chunks"):
        deploy.deploy(deploy.Args(run=folder / "flow", robot="dds", delay=2))


# ------------------------------------------------------------ goals


def test_a_policy_with_goals_follows_what_the_expert_reaches_in_the_same_scene(folder):
    made(folder, "goal", policy="edm", set=('goal={"keys": ["observation.environment_state"]}',))
    free, followed = evaluated(folder, "goal"), evaluated(folder, "goal", goal_scale=2.0)
    assert free["goal_scale"] is None and followed["goal_scale"] == 2.0
    assert followed["against"][0]["run"] == str(folder / "goal")
    assert (folder / "goal/eval/lift-goal2.json").exists() and (folder / "goal/eval/lift.json").exists()
    other = folder / "goal/eval/lift-goal2.json"  # whatever it was: neither the plain evaluation nor that of another scale
    other.write_text(json.dumps({**followed, "successes": [not won for won in free["successes"]]}))
    assert evaluated(folder, "goal", goal_scale=1.0)["against"][0]["k"] == free["k"]


def test_a_distilled_policy_keeps_its_teachers_goals(folder):
    teacher = folder / "goal"
    if not teacher.exists():
        made(folder, "goal", policy="edm", set=('goal={"keys": ["observation.environment_state"]}',))
    distill.distil(distill.Args(run=teacher, out=folder / "jump", updates=2, batch_size=16, teacher_steps=2))
    assert evaluated(folder, "jump", goal_scale=1.0)["goal_scale"] == 1.0
    with pytest.raises(SpecError, match="Guided needs a policy with capability 'denoise'; ConsistencyPolicy has"):
        evaluated(folder, "jump", goal_scale=2.0)


def test_what_a_goal_asks_for_is_told(folder):
    with pytest.raises(InputError, match=r"--goal-scale 2: FlowPolicy takes no goal; train it with --set 'goal="):
        evaluated(folder, "flow", goal_scale=2.0)
    with pytest.raises(InputError, match=r"--goal-scale 2 is for one policy by itself"):
        evaluated(folder, "flow", best_of=4, goal_scale=2.0)


def test_a_device_that_is_not_there_is_told(folder):
    with pytest.raises(InputError, match="unknown device 'tpu9': known are cpu, cuda"):
        evaluated(folder, "flow", device="tpu9")
