import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import torch

from rl.gate import Evaluation, Gate, eased
from rl.learner import LearnerConfig
from rl.residual import ACTOR_FILE, STATE_FILE, ResidualConfig, train_residual
from sinew.errors import DataError, InputError
from sinew.progress import Progress
from sinew.rundir import RunDir

LEARNS = ResidualConfig(
    steps=10_000,
    random_steps=1_500,
    critic_only_updates=500,
    critic_hidden=(64, 64),
    evaluate_every=1_000,
    checkpoint_every=1_000,
    batch_size=128,
    stop_success=0.96,
    learner=LearnerConfig(actor_lr=3e-4),
)
SHORT = replace(
    LEARNS,
    steps=1_200,
    random_steps=320,
    critic_only_updates=20,
    critic_hidden=(16,),
    batch_size=32,
    evaluate_every=400,
    checkpoint_every=400,
)


def learn(folder: Path, config: ResidualConfig, *, worlds: int = 8, evaluate: Any = True, actor=None, env=None, progress=None, demos=None):
    actor = actor or point_mass.ToyActor()
    env = env or point_mass.PointMass(worlds)
    result = train_residual(
        env,
        point_mass.BiasedExecutor(env.num_envs),
        actor,
        point_mass.observe,
        RunDir.create(folder, config),
        config,
        demos=demos,
        evaluate=(lambda: point_mass.rollout(actor)) if evaluate is True else evaluate,
        progress=progress or Progress(),
    )
    return result, actor


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_biased_base_is_corrected(tmp_path):
    result, actor = learn(tmp_path / "run", LEARNS)
    fresh = point_mass.rollout(actor, episodes=200, seed=5_000_000)
    base = point_mass.rollout(point_mass.ToyActor(), episodes=200, seed=5_000_000)
    assert result.base is not None and result.best is not None and result.base.rate < 0.9
    assert base["k"] < 180 and fresh["k"] > 190, (base, fresh)
    assert "reached" in result.reason and result.steps < LEARNS.steps
    curve = [line for line in RunDir(tmp_path / "run").metrics() if "success" in line]
    assert [line["step"] for line in curve] == [e.step for e in result.history]
    assert {"k", "n", "q", "loss", "train_success", "wall_s"} <= set(curve[-1])


def test_the_same_seed_gives_the_same_actor(tmp_path):
    a, b = (learn(tmp_path / name, SHORT)[1] for name in "ab")
    c = learn(tmp_path / "c", replace(SHORT, seed=1))[1]
    assert same(a, b) and not same(a, c)


def test_progress_is_told_steps_success_q_and_loss(tmp_path):
    class Told(Progress):
        def __init__(self) -> None:
            self.steps, self.names, self.total = 0, set(), 0

        def start(self, stage, total, done=0):
            self.total, self.steps = total, done

        def advance(self, n=1, **values):
            self.steps += n
            self.names |= set(values)

    told = Told()
    learn(tmp_path / "run", replace(SHORT, stop_success=2.0), progress=told)
    assert told.steps == told.total == SHORT.steps
    assert {"success", "q", "loss"} <= told.names


# ------------------------------------------------------------ gate


def test_an_actor_that_falls_gives_way_to_the_best_one(tmp_path):
    """Far below the base it is the best again and waits, while critics learn from the fall; a small dip is let be."""
    scores, seen = iter([30, 26, 10, 30, 30]), []
    actor = point_mass.ToyActor()

    def measured() -> dict[str, int]:
        seen.append([p.detach().clone() for p in actor.parameters()])
        return {"k": next(scores), "n": 50}

    config = replace(SHORT, evaluate_every=200, checkpoint_every=200, steps=1_000)
    learn(tmp_path / "run", config, evaluate=measured, actor=actor)
    rows = [row for row in RunDir(tmp_path / "run").metrics() if "success" in row]
    assert [row.get("went_back", False) for row in rows] == [False, False, True, False, False]
    fresh = list(point_mass.ToyActor().parameters())
    moved = [max(float((a - b).detach().abs().max()) for a, b in zip(weights, fresh, strict=True)) for weights in seen]
    assert moved[0] == 0 and moved[2] > moved[1] > 0
    assert moved[3] < moved[2], "it started again from the base and waited for half the steps"


def test_without_a_floor_nothing_holds_it(tmp_path):
    scores = iter([30, 1, 1, 1, 1])
    learn(tmp_path / "run", replace(SHORT, floor=None), evaluate=lambda: {"k": next(scores), "n": 50})
    assert not any("went_back" in row for row in RunDir(tmp_path / "run").metrics())
    with pytest.raises(InputError, match="floor 2"):
        replace(SHORT, floor=2.0)


def test_the_result_is_never_below_the_base(tmp_path):
    scores = iter([30, 10, 29, 30, 5])
    result, actor = learn(tmp_path / "run", SHORT, evaluate=lambda: {"k": next(scores), "n": 50})
    assert result.best == result.base == Evaluation(0, 30, 50)
    assert same(actor, point_mass.ToyActor())  # nothing beat the base, so the residual is zero again


def test_the_best_weights_come_back_and_are_in_the_run(tmp_path):
    from safetensors.torch import load_file

    kept: list[dict[str, torch.Tensor]] = []
    scores = iter([30, 40, 45, 20])
    actor = point_mass.ToyActor()

    def evaluate():
        kept.append({k: v.clone() for k, v in actor.state_dict().items()})
        return {"k": next(scores), "n": 50}

    result, _ = learn(tmp_path / "run", SHORT, evaluate=evaluate, actor=actor)
    assert result.best is not None and result.best.k == 45
    written = load_file(tmp_path / "run" / ACTOR_FILE)
    for key, value in actor.state_dict().items():
        assert torch.equal(value, kept[2][key]) and torch.equal(written[key], kept[2][key])


def test_the_cost_of_leaving_the_base_halves_while_success_holds_and_comes_back_after_a_fall():
    base, start = Evaluation(0, 60, 100), 1_000
    assert eased([], start, 500) == eased([base], start, 500) == eased([base, Evaluation(1_000, 10, 100)], start, 500) == 1.0
    held = [base, Evaluation(1_500, 58, 100), Evaluation(2_500, 90, 100)]
    assert eased(held, start, 500) == pytest.approx(0.5**3)
    fell = [*held, Evaluation(3_000, 75, 100)]  # 15 points; two standard errors of the difference are 10.7
    assert eased(fell, start, 500) == pytest.approx(0.5)
    assert eased([*fell, Evaluation(4_000, 90, 100)], start, 500) == pytest.approx(0.25)  # it takes twice as long from then on
    assert eased([*fell, Evaluation(3_500, 50, 100)], start, 500) == 1.0  # never more than at first
    assert eased([*held, Evaluation(3_000, 80, 100)], start, 500) == pytest.approx(0.5**4)
    assert eased([*held, Evaluation(3_000, 8, 10)], start, 500) == pytest.approx(0.5**4)  # ten episodes say too little


def test_gate_prefers_the_base_in_a_tie_and_the_later_candidate_otherwise():
    module = torch.nn.Linear(1, 1)
    gate = Gate(module, margin=0.1)
    decisions = [gate.consider(Evaluation(i, k, 10)) for i, k in enumerate([5, 5, 6, 7, 7, 6])]
    assert decisions == [True, False, False, True, True, False]
    with torch.no_grad():
        module.weight.fill_(99.0)
    gate.restore()
    assert float(module.weight.detach()) != 99.0
    other = Gate(torch.nn.Linear(1, 1))
    other.load_state(*gate.state())
    other.restore()
    assert same(other.module, module) and other.history == gate.history
    assert other.base is other.history[0] and other.best is other.history[4]
    with pytest.raises(DataError, match=r"no best weights of 2\.weight; it is of another policy"):
        Gate(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity(), torch.nn.Linear(1, 1))).load_state(*gate.state())


@pytest.mark.parametrize("result", [{}, {"k": 3, "n": 0}, {"k": 5, "n": 3}, {"k": 0.5, "n": 1}])
def test_evaluations_that_make_no_rate_are_refused(result):
    with pytest.raises(InputError, match="k <= n"):
        Evaluation.of(result, 0)


def test_without_evaluation_the_last_weights_are_kept(tmp_path):
    result, actor = learn(tmp_path / "run", SHORT, evaluate=None)
    assert result.best is None and not same(actor, point_mass.ToyActor())


# ------------------------------------------------------------ interruption


def test_a_finished_run_is_not_learned_again(tmp_path):
    first, actor = learn(tmp_path / "run", SHORT)
    again, other = learn(tmp_path / "run", SHORT, evaluate=lambda: pytest.fail("evaluated again"))
    assert again == first and same(actor, other)


def test_a_run_of_another_config_is_refused_by_name(tmp_path):
    learn(tmp_path / "run", SHORT, evaluate=None)
    other = replace(SHORT, gamma=0.5)
    with pytest.raises(InputError, match=r"another run: gamma is 0\.99 there, 0\.5 here"):
        actor = point_mass.ToyActor()
        train_residual(point_mass.PointMass(8), point_mass.BiasedExecutor(8), actor, point_mass.observe, RunDir(tmp_path / "run"), other)


def test_a_damaged_or_foreign_state_is_refused(tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "run"
    RunDir.create(folder, SHORT)
    (folder / STATE_FILE).write_bytes(b"\x10\x00")
    with pytest.raises(DataError, match="cannot be read"):
        learn(folder, SHORT)
    save_file({"x": torch.zeros(1)}, folder / STATE_FILE)
    with pytest.raises(DataError, match="version"):
        learn(folder, SHORT)


# ------------------------------------------------------------ bad worlds


class Broken(point_mass.PointMass):
    """World 2 gives a value that is not finite at step 5."""

    def __init__(self, what: str) -> None:
        super().__init__(4)
        self.what, self.steps = what, 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.steps == 5:
            if self.what == "reward":
                reward[2] = float("nan")
            else:
                obs[point_mass.STATE][2, 1] = float("inf")
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_values_that_are_not_finite_are_refused_with_the_world_named(tmp_path, what):
    with pytest.raises(InputError, match=f"world 2: .*{what}"):
        learn(tmp_path / "run", SHORT, env=Broken(what), evaluate=None)


class Notes(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_never_succeeding_is_said_with_what_to_try(tmp_path):
    notes, env = Notes(), point_mass.PointMass(8, radius_m=1e-6)
    result, _ = learn(tmp_path / "run", SHORT, env=env, evaluate=None, progress=notes)
    assert "never reached in 1200 steps" in result.reason and "demonstrations" in result.reason
    assert any("warm-up" in n for n in notes.said)


def test_steps_that_end_within_the_warm_up_are_said_to_change_nothing(tmp_path):
    notes, short = Notes(), replace(SHORT, random_steps=400)
    for steps, told in ((400, ["the first 400 steps only fill the replay: 400 leave the policy as it is"]), (560, [])):
        notes.said.clear()
        before, actor = point_mass.ToyActor(), learn(tmp_path / f"{steps}", replace(short, steps=steps), evaluate=None, progress=notes)[1]
        assert [said for said in notes.said if "replay" in said] == told and same(before, actor) == bool(told)


def test_settings_that_cannot_be_are_refused():
    bad: dict[str, Any]
    for bad in ({"steps": 0}, {"gamma": 0.0}, {"demo_fraction": 2.0}, {"n_step": 0}, {"cost_half_life": 0}):
        with pytest.raises(InputError):
            ResidualConfig(**bad)
    with pytest.raises(InputError):
        LearnerConfig(tau=0.0)


def test_the_residual_comes_in_gradually_where_asked(tmp_path):
    """Early after the warm-up most ticks execute the base alone."""

    class Watching(point_mass.PointMass):
        actions: list[torch.Tensor]

        def __init__(self, n):
            super().__init__(n)
            self.actions = []

        def step(self, action):
            self.actions.append(action.clone())
            return super().step(action)

    env, planned = Watching(8), []

    class Remembering(point_mass.BiasedExecutor):
        def plan(self, obs):
            planned.append(super().plan(obs))
            return planned[-1]

    config = replace(SHORT, progressive_steps=800, evaluate_every=10**6, checkpoint_every=10**6)
    train_residual(env, Remembering(8), point_mass.ToyActor(), point_mass.observe, RunDir.create(tmp_path / "run", config), config)
    base = torch.stack(planned[: len(env.actions)]).clamp(-1, 1)
    plain = ((env.action_spec.normalize(torch.stack(env.actions)) - base).abs().amax(-1) < 1e-5).float().mean(1)
    first = SHORT.random_steps // 8
    assert float(plain[:first].mean()) < 0.1  # noise of the warm-up
    assert float(plain[first : first + 20].mean()) > 0.7 > 0.3 > float(plain[-10:].mean())


def test_demonstrations_are_mixed_in(tmp_path):
    from rl.episodes import add_episode
    from rl.replay import Ring

    demos = Ring(100, 1, {"features": ((4,), torch.float32), "base_action": ((2,), torch.float32)}, 2)
    for _ in range(5):
        add_episode(demos, torch.randn(10, 4), torch.rand(10, 2), success=True)
    with_demos = learn(tmp_path / "a", SHORT, evaluate=None, demos=demos)[1]
    without = learn(tmp_path / "b", SHORT, evaluate=None)[1]
    assert not same(with_demos, without)
    assert json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])["step"] <= SHORT.steps
