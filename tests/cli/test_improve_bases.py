"""What `sinew improve` builds on: methods that decide beside a base, and bases that are no run of ours."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import policies
import sim
from sinew.cli import collect, eval, improve, train
from sinew.cli.assembly import data_of, demonstrations, open_source
from sinew.cli.improve_methods import planning, with_best_plan
from sinew.errors import InputError, MissingDependency, SpecError
from sinew.progress import Progress
from sinew.rundir import RunDir
from sinew.specs import STATE, PolicySpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset of lift and a policy that has hardly learned."""
    folder = tmp_path_factory.mktemp("improve")
    collect.collect(collect.Args(task="lift", out=folder / "data", episodes=4))
    train.train(train.Args(data=(folder / "data",), out=folder / "bc", steps=30, batch_size=32))
    return folder


@pytest.fixture
def short(monkeypatch):
    """Learning that is over in seconds, with a gate of a few scenes."""
    import rl.dsrl
    import rl.fast_td3
    import rl.ibrl
    import rl.policy_decorator
    import rl.residual

    monkeypatch.setattr(improve, "GATE_EPISODES", 4)
    named = ((rl.ibrl, "IbrlConfig"), (rl.policy_decorator, "DecoratorConfig"), (rl.residual, "ResidualConfig"), (rl.dsrl, "DsrlConfig"))
    for module, name in (*named, (rl.fast_td3, "FastTd3Config")):
        kind = getattr(module, name)
        small = {"random_steps": 40, "critic_only_updates": 10, "updates_per_step": 0.1, "batch_size": 16, "critic_hidden": (16,)}

        def made(kind=kind, small=small, **settings):
            return kind(**{**settings, **small, "evaluate_every": 60})

        made.steps = kind.steps  # type: ignore[attr-defined]
        monkeypatch.setattr(module, name, made)


@pytest.mark.parametrize(("method", "kind"), [("ibrl", "bootstrapped"), ("decorator", "decorated")])
def test_what_was_learned_beside_a_base_is_saved_evaluated_and_compared(folder, short, method, kind):
    args = improve.Args(run=folder / "bc", out=folder / method, method=method, steps=120)
    made = improve.improve(args)
    assert made["steps"] == 120 and made["updates"] > 0 and made["gate"]["n"] == 4
    assert json.loads((folder / method / "policy.json").read_text())["type"] == kind
    policy = policies.load(folder / method)
    assert "correct" in policy.spec.capabilities
    config = json.loads((folder / method / "config.json").read_text())
    assert config["task"] == "lift" and method in config
    assert config["demos"] == (str(folder / "data") if method == "ibrl" else None)  # the decorator's own method has none
    assert eval.evaluate(eval.Args(run=folder / method, episodes=2))["n"] == 2
    assert improve.improve(args) == made  # finished: nothing is learned again


@pytest.mark.parametrize(
    ("options", "best", "tried"),
    [
        ({}, (8, "zero"), 4),
        ({"act_steps": 4}, (4, "sample"), 2),
        ({"base_noise": "sample"}, (4, "sample"), 2),
        ({"act_steps": 8, "base_noise": "zero"}, (8, "zero"), 0),
        ({"method": "dsrl"}, (8, "zero"), 2),
        ({"method": "ibrl"}, (None, "sample"), 0),
    ],
)
def test_what_is_left_open_of_how_a_policy_plans_is_what_succeeds_most_often(folder, options, best, tried):
    successes, seen = {(4, False): 30, (4, True): 20, (8, False): 30, (8, True): 40}, []

    def measure(policy: Any, steps: int | None, progress: Progress) -> dict[str, int]:
        assert steps == (5 if options.get("method") == "dsrl" else None)  # as it will act
        seen.append((policy.spec.horizon, policy.config.zero_noise))
        return {"k": successes[seen[-1]], "n": 50}

    args = improve.Args(run=folder / "bc", out=folder / "never", **options)
    made: list[improve.Args] = []
    found = with_best_plan(args, policies.load(folder / "bc"), made.append, measure, Progress())  # type: ignore[arg-type]
    assert (found.act_steps, found.base_noise) == best and len(seen) == tried
    assert len(made) == (tried > 0)  # what cannot be is refused before anything is measured


def test_a_run_that_goes_on_keeps_its_plan_without_measuring_again(folder, short):
    notes: list[str] = []

    class Told(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    args = improve.Args(run=folder / "bc", out=folder / "planned", steps=120)
    made = improve.improve(args, Told())
    assert "the best is improved" in notes[0]
    assert improve.improve(args, Told()) == made and len([note for note in notes if "the best is improved" in note]) == 1


@pytest.mark.parametrize("method", ["residual", "fasttd3"])
def test_the_best_so_far_is_there_for_other_verbs_when_learning_is_interrupted(folder, short, method):
    stop_at: list[int] = [130]

    class Interrupted(Progress):
        done = 0

        def advance(self, amount: int = 1, **values: float) -> None:
            self.done += amount
            if stop_at and self.done >= stop_at[0]:
                raise KeyboardInterrupt

    args = improve.Args(run=folder / "bc", out=folder / f"cut-{method}", method=method, steps=180, act_steps=4, base_noise="sample")
    with pytest.raises(KeyboardInterrupt):
        improve.improve(args, Interrupted())
    assert eval.evaluate(eval.Args(run=args.out, episodes=2))["n"] == 2
    stop_at.clear()
    assert improve.improve(args, Interrupted())["steps"] == 180
    assert eval.evaluate(eval.Args(run=args.out, episodes=2))["n"] == 2


def test_a_dataset_is_found_from_another_folder_and_told_of_where_it_is_gone(folder, short, monkeypatch):
    named = json.loads((folder / "bc/config.json").read_text())
    (folder / "elsewhere").mkdir()
    for name, data in (("near", f"{folder.name}/data"), ("gone", "nowhere/data")):
        shutil.copytree(folder / "bc", folder / name)
        (folder / name / "config.json").write_text(json.dumps(named | {"data": data}))
    monkeypatch.chdir(folder / "elsewhere")
    assert data_of(open_source(folder / "near")).samefile(folder / "data")
    notes: list[str] = []
    assert improve._own_demos(open_source(folder / "gone"), "residual", notes.append) is None
    assert len(notes) == 1 and "was trained on nowhere/data, which is not there" in notes[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0}, "--steps 0: at least 1 is needed"),
        ({"act_steps": 0}, "--act-steps 0"),
        ({"num_envs": -1}, "--num-envs -1"),
        ({"scale": 0.0}, "residual scale 0.0"),
        ({"actors": -1}, "--actors -1"),
        ({"demos": Path("/nowhere")}, "no dataset at /nowhere"),
        ({"method": "dsrl", "knots": 99}, "99 knots"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(folder, monkeypatch, options, told):
    monkeypatch.setattr("policies.evaluate.evaluate", lambda *args, **kwargs: pytest.fail("measured"))
    with pytest.raises(InputError, match=told):
        improve.improve(improve.Args(run=folder / "bc", out=folder / "never", **options))
    assert not (folder / "never").exists()


@pytest.mark.parametrize("method", ["residual", "dsrl", "recap", "ppo-denoise"])
def test_demonstrations_of_another_kind_are_refused_before_anything_is_measured(folder, monkeypatch, method):
    monkeypatch.setattr("policies.evaluate.evaluate", lambda *args, **kwargs: pytest.fail("measured"))
    if not (folder / "other-task").exists():
        collect.collect(collect.Args(task="peg", out=folder / "other-task", episodes=1))
        shutil.copytree(folder / "data", folder / "other-rate")
        spec = folder / "other-rate/meta/sinew.json"
        spec.write_text(json.dumps((layout := json.loads(spec.read_text())) | {"action": layout["action"] | {"rate_hz": 10.0}}))
    for name, told in (("task", "observation"), ("rate", "disagree on the action: rate_hz 10.0 against 20.0")):
        with pytest.raises(SpecError, match=told):
            improve.improve(improve.Args(run=folder / "bc", out=folder / "never", method=method, demos=folder / f"other-{name}"))
    assert not (folder / "never").exists()


def test_an_out_that_holds_something_else_is_refused_before_anything_is_measured(folder, monkeypatch):
    monkeypatch.setattr("policies.evaluate.evaluate", lambda *args, **kwargs: pytest.fail("measured"))
    for out, told in ((folder / "data", "holds a dataset"), (folder / "bc", "verb is 'train' there, 'improve' here")):
        with pytest.raises(InputError, match=told):
            improve.improve(improve.Args(run=folder / "bc", out=out))


def test_demonstrations_are_seen_as_the_policy_sees_them(tmp_path):
    pictures = collect.Args(task="lift", out=tmp_path / "data", episodes=2, cameras=("front",), image_size=48)
    collect.collect(pictures)
    few: dict[str, Any] = {"keys": ("observation.state", "observation.images.front"), "steps": 2, "batch_size": 4}
    train.train(train.Args(data=(tmp_path / "data",), out=tmp_path / "bc", image_size=32, **few))
    policy = policies.load(tmp_path / "bc")
    data = demonstrations(tmp_path / "data", policy, "the policy")
    assert data.observation_spec["observation.images.front"].shape == (32, 32, 3)
    (tmp_path / "data/meta/sinew.json").unlink()  # as of LeRobot, where nobody knows what actions mean
    assert len(demonstrations(tmp_path / "data", policy, "the policy")) > 0
    policy.spec = replace(policy.spec, action=replace(policy.spec.action, rate_hz=10.0))
    with pytest.raises(SpecError, match="disagree on the action: 4 numbers at 20 Hz against 4 numbers at 10 Hz"):
        demonstrations(tmp_path / "data", policy, "the policy")


def test_a_policy_that_takes_no_noise_is_tried_with_half_and_whole_chunks(folder):
    args = improve.Args(run=folder / "bc", out=folder / "x")
    base = planning(policies.load(folder / "bc"), replace(args, base_noise="zero", act_steps=8))
    tried: list[Any] = []

    def measure(policy, steps, progress):
        tried.append(policy.spec.horizon)
        return {"k": tried[-1], "n": 10}

    found = with_best_plan(args, base, lambda args: None, measure, Progress())  # type: ignore[arg-type, return-value]
    assert tried == [4, 8] and (found.act_steps, found.base_noise) == (8, "sample")


def test_options_that_do_not_go_together_leave_the_folder_free(folder):
    out = folder / "never"
    with pytest.raises(InputError, match="does not say which task it is for; name it with --task"):
        improve.improve(improve.Args(run="hf:somewhere/policy", out=out))
    with pytest.raises(MissingDependency, match="no package 'nowhere' is installed"):
        improve.improve(improve.Args(run=folder / "bc", out=out, task="gym:nowhere/Thing-v0"))
    assert not out.exists()


def test_where_there_is_no_ray_no_run_is_made(folder, short, monkeypatch):
    def refuse(address: str) -> None:
        raise InputError(f"no Ray at {address}")

    monkeypatch.setattr("rl.on_ray.connect", refuse)
    with pytest.raises(InputError, match="no Ray at ray://nowhere:1"):
        improve.improve(improve.Args(run=folder / "bc", out=folder / "nowhere", actors=1, address="ray://nowhere:1"))
    assert not (folder / "nowhere").exists()


def test_a_policy_that_could_not_be_saved_is_refused_before_anything_is_learned(folder):
    class Foreign(policies.PolicyModule):
        """Of no registered type."""

    base = policies.load(folder / "bc")
    stranger = Foreign(base.spec, base.config)
    with pytest.raises(InputError, match="Foreign is not a registered policy"):
        improve._check_kept(stranger)


# ---------------------------------------------------------------- worlds of Gymnasium


class Dense(gymnasium.Env):
    """A point to be brought to the origin, with a reward that is never zero."""

    observation_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-0.3, 0.3, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.place = (self.place + np.asarray(action, np.float32)).clip(-2, 2)
        distance = float(np.linalg.norm(self.place))
        return self.place.copy(), -distance, distance < 0.3, False, {"success": distance < 0.3}


TASK = "gym:SinewDense-v0"


@pytest.fixture
def dense(tmp_path) -> Path:
    """The run of an untrained policy for it."""
    if "SinewDense-v0" not in gymnasium.registry:
        gymnasium.register("SinewDense-v0", Dense, max_episode_steps=12)
    task = sim.GymnasiumTask(TASK)
    spec = PolicySpec(observation=task.observation_spec, action=task.action_spec, horizon=4)
    stats = {STATE: {"mean": np.zeros(2), "std": np.ones(2)}}
    policies.save(policies.make("flow", spec, stats, {"hidden": [32]}), RunDir.create(tmp_path / "bc", {"task": TASK}))
    return tmp_path / "bc"


def test_the_reward_of_a_gymnasium_world_is_its_success_not_its_own(dense):
    args: Any = improve.Args(run=dense, out=dense / "never", num_envs=3)
    env = improve._practice(sim.GymnasiumTask(TASK), args, 0.99)
    obs = env.reset([1, 2, 3])
    rewards, success = [], []
    for _ in range(30):
        obs, reward, terminated, _, info = env.step(-0.1 * obs[STATE])  # towards the origin
        rewards.append(reward)
        success.append(info["success"])
        assert torch.equal(terminated, info["success"])
    assert torch.equal(torch.stack(rewards), torch.stack(success).float()) and bool(torch.stack(success).any())
    with pytest.raises(
        InputError, match="--reward shaped draws the tool to an object that is known for our tasks, not for gym:SinewDense-v0"
    ):
        improve.improve(improve.Args(run=dense, out=dense.parent / "out", reward="shaped"))
    assert not (dense.parent / "out").exists()


@pytest.mark.parametrize("method", ["residual", "ibrl", "dsrl"])
def test_a_gymnasium_world_is_learned_in_and_evaluated(dense, short, method):
    out = dense.parent / method
    made = improve.improve(improve.Args(run=dense, out=out, method=method, steps=120))
    assert made["task"] == TASK and made["updates"] > 0 and made["gate"]["n"] == 4
    assert eval.evaluate(eval.Args(run=out, episodes=3))["n"] == 3
