"""A world model learns what actions lead to, where that is known exactly; and plans are ranked by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewards import files
from rewards.files import Situation
from rewards.latent import EncoderConfig
from rewards.preference.episodes import Episodes
from rewards.world import candidates, model
from rewards.world.candidates import Ranking, choose, ranking_of_recorded, scores
from sinew.errors import DataError, InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

KEY = "observation.state"
LENGTH = 14


def walks(count, seed):
    """A point that moves by 0.2 times its action; half of the episodes go to (1, 1), which is success, half wander."""
    stream = np.random.default_rng(seed)
    points, actions, outcome = [], [], []
    for i in range(count):
        good = i % 2 == 0
        at = stream.uniform(-1, 0, 2)
        for _ in range(LENGTH):
            towards = np.clip((np.ones(2) - at) / 0.2, -0.7, 0.7) if good else stream.uniform(-1, 1, 2)
            action = np.clip(towards + 0.2 * stream.normal(size=2), -1, 1)
            points.append(at.copy())
            actions.append(action)
            at = at + 0.2 * action
        outcome.append(good)
    spans = tuple(slice(i * LENGTH, (i + 1) * LENGTH) for i in range(count))
    seen = {KEY: torch.tensor(np.array(points), dtype=torch.float32)}
    return Episodes(seen, spans, tuple(outcome)), torch.tensor(np.array(actions), dtype=torch.float32)


@pytest.fixture(scope="module")
def trained():
    episodes, actions = walks(60, 0)
    config = EncoderConfig(vectors={KEY: 2}, dim=8, hidden=48)
    values = episodes.seen[KEY].numpy()
    settings = model.WorldConfig(dim=8, hidden=48, updates=300, horizon=4, batch_size=96)
    return model.train(episodes, actions, config, (values.mean(0), values.std(0)), settings)


@pytest.fixture(scope="module")
def held():
    return walks(20, 1)


def test_it_predicts_better_than_the_guess_that_nothing_changes(trained, held):
    error = model.prediction_error(trained, *held, 4)
    assert error["steps"] == [1, 2, 3, 4] and max(error["ratio"]) < 1
    assert error["copied"][0] < error["copied"][3]


def test_a_plan_that_comes_nearer_to_success_ranks_higher(trained):
    at = torch.tensor([[0.0, 0.0], [-0.3, 0.2]])
    there, away = torch.full((4, 2), 0.8), torch.full((4, 2), -0.8)
    found = scores(trained, {KEY: at}, torch.stack([there, away]).expand(2, -1, -1, -1), Ranking())
    assert found.shape == (2, 2) and (found[:, 0] > found[:, 1]).all()


def test_the_recorded_plan_ranks_first_more_often_than_by_chance(trained, held):
    for by in ("outcome", "goal"):
        found = ranking_of_recorded(trained, *held, Ranking(by=by), 4)
        assert found["bootstrap95_over_episodes"][0] > found["chance"] == 0.2, by
        assert found["trials"] == 10 * (LENGTH - 4) and found["episodes"] == 10


def test_the_deviation_counts_where_something_was_demonstrated(trained):
    at, plans = torch.zeros(2, 2), torch.rand(2, 3, 4, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = torch.stack([plans[0, 1], torch.full((4, 2), torch.nan)])
    plain = scores(trained, {KEY: at}, plans, Ranking())
    with_it = scores(trained, {KEY: at}, plans, Ranking(deviation=100.0), shown)
    assert with_it.argmax(1)[0] == 1 and torch.equal(with_it[1], plain[1])
    away = (plans[0] - shown[0]).abs().mean((1, 2))
    torch.testing.assert_close(with_it[0], plain[0] - 100 * away, rtol=1e-4, atol=1e-3)


def test_by_goal_the_outcome_stands_in_where_no_goal_is(trained):
    at, plans = torch.zeros(2, 2), torch.rand(2, 3, 4, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    end = trained.roll(trained.encoder({KEY: at[:1]}), plans[0, 2:])[:, -1]
    goal = torch.cat([end, torch.full_like(end, torch.nan)])
    found = scores(trained, {KEY: at}, plans, Ranking(by="goal"), goal=goal)
    assert found[0].argmax() == 2 and found[0, 2] == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(found[1], scores(trained, {KEY: at}, plans, Ranking())[1])


def test_winner_and_loser_are_the_best_and_the_worst():
    plans, found = torch.arange(12.0).reshape(2, 3, 2, 1), torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]])
    pairs = choose(plans, found)
    assert torch.equal(pairs["winner"], torch.stack([plans[0, 1], plans[1, 0]]))
    assert torch.equal(pairs["loser"], torch.stack([plans[0, 0], plans[1, 2]]))
    assert pairs["gap"].tolist() == pytest.approx([0.8, 2.0])


def test_the_same_seed_gives_the_same_model():
    episodes, actions = walks(6, 2)
    config, settings = EncoderConfig(vectors={KEY: 2}, dim=4, hidden=8), model.WorldConfig(dim=4, hidden=8, updates=5, horizon=2)
    made = [model.train(episodes, actions, config, (np.zeros(2), np.ones(2)), settings).state_dict() for _ in range(2)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_it_is_a_reward_file(trained, tmp_path):
    model.save_world(tmp_path / "w.safetensors", trained, {})
    again = model.load_world(tmp_path / "w.safetensors")
    assert torch.equal(again.ahead(torch.ones(1, 8)), trained.ahead(torch.ones(1, 8)))
    files.save(tmp_path / "r.json", model.KIND, candidates.WorldSettings(weights="w.safetensors"), {})
    action = ActionSpec(kind="ee_delta", low=(-1.0,) * 2, high=(1.0,) * 2, rate_hz=20.0, names=("dx", "dy"))
    place = Situation(
        observation=ObservationSpec({KEY: TensorSpec(shape=(2,))}), action=action, gamma=0.97, num_envs=1, max_episode_steps=9
    )
    reward = files.build(tmp_path / "r.json", place)
    never = torch.tensor([False])
    towards = {KEY: torch.full((1, 2), -0.5), f"next.{KEY}": torch.full((1, 2), 0.8), "success": never, "terminated": never}
    back = {KEY: towards[f"next.{KEY}"], f"next.{KEY}": towards[KEY], "success": never, "terminated": never}
    assert reward.reward(towards, {}) > 0.1 > 0 > reward.reward(back, {})


def test_what_cannot_be_learned_from_is_said(tmp_path, trained):
    episodes, actions = walks(4, 0)
    lost = Episodes(episodes.seen, episodes.spans, (False,) * 4)
    config = EncoderConfig(vectors={KEY: 2}, dim=4, hidden=8)
    with pytest.raises(InputError, match="no success"):
        model.train(lost, actions, config, (np.zeros(2), np.ones(2)), model.WorldConfig(updates=1))
    with pytest.raises(InputError, match="longer than the horizon of 40"):
        ranking_of_recorded(trained, episodes, actions, Ranking(), 40)
    from rewards.latent import save_tensors

    save_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {"kind": "classifier"})
    with pytest.raises(DataError, match="'classifier', not of a world model"):
        model.load_world(tmp_path / "x")
