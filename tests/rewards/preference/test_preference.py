"""Rewards from what was said: which episodes succeeded, and which of two pieces was better."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rewards import files
from rewards.files import RewardUnavailable, Situation
from rewards.latent import EncoderConfig, statistics
from rewards.preference import classifier, pairwise
from rewards.preference.episodes import gather, outcomes, split
from rewards.preference.pairwise import Pair
from rewards.preference.scored import load_scored, save_scored
from sinew.errors import DataError, InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

KEY = "observation.state"
SPEC = ObservationSpec({KEY: TensorSpec(shape=(3,))})
ACTION = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=20.0, names=("dz",))
LENGTH = 12


class Lifts:
    """Episodes of a height that rises to 1 in successes and to 0.3 in failures, among two numbers of noise."""

    observation_spec, action_spec, tasks = SPEC, ACTION, ("lift it",)

    def __init__(self, good=20, bad=20, unknown=0, noise=0.02):
        stream = np.random.default_rng(0)
        self.outcome = [True] * good + [False] * bad + [None] * unknown
        self.num_episodes = len(self.outcome)
        top = np.array([1.0 if ok else 0.3 for ok in self.outcome])
        height = np.linspace(0, 1, LENGTH)[None] * top[:, None] + noise * stream.normal(size=(self.num_episodes, LENGTH))
        self.values = np.concatenate([height[..., None], stream.normal(size=(self.num_episodes, LENGTH, 2))], 2).astype(np.float32)

    def __len__(self):
        return self.num_episodes * LENGTH

    def episode(self, index):
        return SimpleNamespace(index=index, start=index * LENGTH, length=LENGTH, success=self.outcome[index])

    def window(self, rows, n_obs_steps, horizon, keys=None):
        return {KEY: self.values.reshape(-1, 3)[rows][:, None]}

    def stats(self):
        flat = self.values.reshape(-1, 3)
        return {KEY: {"mean": flat.mean(0), "std": flat.std(0)}}


@pytest.fixture(scope="module")
def data():
    return Lifts()


@pytest.fixture(scope="module")
def cut(data):
    """Episodes to learn from, to calibrate on, to measure on, with the encoder's configuration and scale."""
    said = outcomes(data)
    config = EncoderConfig.of(SPEC, [KEY], dim=8, hidden=32)
    return [gather(data, [KEY], said, part) for part in split(said, 0)], config, statistics(data.stats(), config)


@pytest.fixture(scope="module")
def trained(cut):
    (learn, tune, _), config, stats = cut
    scored = classifier.train(learn, config, stats, classifier.ClassifierConfig(updates=150))
    rows, done = classifier.frames(tune, 3)
    scored.temperature.fill_(classifier.fit_temperature(scored.all(tune.seen)[rows], torch.from_numpy(done)))
    return scored


def test_parts_share_no_episode_and_have_both_outcomes():
    said = {i: (i % 2 == 0, 5) for i in range(20)}
    parts = split(said, 3)
    assert sorted(i for part in parts for i in part) == list(range(20)) and all(len({said[i][0] for i in part}) == 2 for part in parts)
    with pytest.raises(InputError, match="4 successes and 6 failures"):
        split({i: (i < 4, 5) for i in range(10)}, 0)


def test_what_was_said_later_holds_over_the_recorder_and_can_be_taken_back(tmp_path):
    data, path = Lifts(good=1, bad=1, unknown=1), tmp_path / "labels.jsonl"
    assert outcomes(data) == {0: (True, 11), 1: (False, 11)}
    lines = [{"episode": 1, "step": 7, "success": True}, {"episode": 2, "success": False}, {"episode": 0, "success": False}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"episode": 0, "undo": True}]))
    assert outcomes(data, path) == {0: (True, 11), 1: (True, 7), 2: (False, 11)}
    found = gather(data, [KEY], outcomes(data, path), [1, 2])
    assert [s.stop - s.start for s in found.spans] == [8, 12] and found.outcome == (True, False)


@pytest.mark.parametrize(
    "line", ["no json", "[1]", '{"episode": 1}', '{"episode": 9, "success": true}', '{"episode": 0, "step": 99, "success": true}']
)
def test_a_label_that_is_none_is_told_with_its_line(tmp_path, line):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"episode": 0, "success": true}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2") as said:
        outcomes(Lifts(2, 2), path)
    assert "\n" not in str(said.value)


def test_the_classifier_tells_held_out_successes_from_failures(trained, cut):
    told = classifier.measure(trained, cut[0][2], 3)
    assert told["auc"] >= 0.95 and told["accuracy"] >= 0.9 and told["frame_auc"] >= 0.95
    assert told["calibration_error"] < 0.1 and sum(b["count"] for b in told["curve"]) > 50


def test_the_temperature_mends_chances_that_are_too_sure():
    stream = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, generator=stream)
    done = torch.rand(20_000, generator=stream) < torch.sigmoid(logits)
    assert classifier.fit_temperature(5 * logits, done) == pytest.approx(5.0, rel=0.06)
    sure, true = (torch.sigmoid(k * logits).numpy() for k in (5, 1))
    assert classifier.calibration_error(true, done.numpy()) < 0.02 < classifier.calibration_error(sure, done.numpy())


def test_the_calibration_error_is_what_a_hand_works_out():
    # one bin says 0.9 and is right in 3 of 4, the other says 0.1 and is wrong in none of 4
    chance, done = np.array([0.9] * 4 + [0.1] * 4), np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    assert classifier.calibration_error(chance, done) == pytest.approx((0.15 + 0.1) / 2)
    assert classifier.calibration_curve(chance, done) == [
        {"said": pytest.approx(0.1), "was": 0.0, "count": 4}, {"said": pytest.approx(0.9), "was": 0.75, "count": 4},
    ]  # fmt: skip


def situation(folder, observation=SPEC, **others):
    return Situation(observation=observation, action=ACTION, gamma=0.9, num_envs=2, max_episode_steps=9, folder=folder, **others)


def test_a_classifier_is_a_reward_file(trained, tmp_path):
    save_scored(tmp_path / "w.safetensors", trained, classifier.KIND, {})
    files.save(tmp_path / "r.json", classifier.KIND, classifier.ClassifierSettings(weights="w.safetensors"), {})
    reward = files.build(tmp_path / "r.json", situation(tmp_path))
    low, high = torch.tensor([[0.0, 0, 0]] * 2), torch.tensor([[1.0, 0, 0], [0.0, 0, 0]])
    step = {KEY: low, f"next.{KEY}": high, "success": torch.tensor([False] * 2), "terminated": torch.tensor([False] * 2)}
    rises, stays = reward.reward(step, {}).tolist()
    assert rises > 0.5 and abs(stays) < 0.1
    said = []
    other = ObservationSpec({"observation.other": TensorSpec(shape=(3,))})
    assert files.build(tmp_path / "r.json", situation(tmp_path, other, say=said.append)).reward(step, {}).tolist() == [0.0, 0.0]
    assert len(said) == 1 and "looks at observation.state, and there is only observation.other" in said[0]
    with pytest.raises(DataError, match="'preference' is needed"):
        load_scored(tmp_path / "w.safetensors", "preference")
    with pytest.raises(RewardUnavailable):
        classifier.ClassifierSettings(weights="w.safetensors").build(situation(tmp_path, other))


def test_a_score_learns_what_was_preferred(cut):
    (learn, _, test), config, stats = cut
    taught = pairwise.from_outcomes(learn, 200, 0)
    scored = pairwise.train(learn, taught, config, stats, pairwise.PairwiseConfig(updates=150))
    found = pairwise.measure(scored, test, pairwise.from_outcomes(test, 200, 1))
    assert found["agreement"] > 0.9 and found["wilson95"][0] > 0.8
    turned = [Pair(p.worse, p.better) for p in taught]
    against = pairwise.train(learn, turned, config, stats, pairwise.PairwiseConfig(updates=150))
    assert pairwise.measure(against, test, pairwise.from_outcomes(test, 200, 1))["agreement"] < 0.1


def test_preferences_implied_by_outcomes_are_true(cut):
    episodes = cut[0][0]
    height = episodes.seen[KEY][:, 0]
    for pair in pairwise.from_outcomes(episodes, 100, 0):
        assert height[slice(*pair.better)].mean() > height[slice(*pair.worse)].mean() - 0.05


def test_a_margin_is_the_difference_of_mean_scores(cut, trained):
    episodes, pairs = cut[0][0], [Pair((0, 3), (14, 19)), Pair((30, 31), (2, 9))]
    scores = trained.all(episodes.seen)
    with torch.no_grad():
        found = pairwise.margins(trained, episodes, pairs)
    expected = [scores[slice(*p.better)].mean() - scores[slice(*p.worse)].mean() for p in pairs]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_persons_preferences_are_read(tmp_path, data):
    path = tmp_path / "said.jsonl"
    path.write_text('{"a": [0, 1, 5], "b": [2, 0, 4], "better": "b"}\n\n{"a": [0, 1, 5], "b": [2, 0, 4], "better": "same"}\n')
    assert pairwise.read_pairs(path, data) == [Pair((24, 28), (1, 5))]
    for wrong in ("x", '{"a": [0, 1, 5]}', '{"a": [0, 1, 50], "b": [2, 0, 4], "better": "a"}', '{"a": 3, "b": [2, 0, 4], "better": "a"}'):
        path.write_text(wrong)
        with pytest.raises(DataError, match="line 1"):
            pairwise.read_pairs(path, data)
    with pytest.raises(InputError, match="not there"):
        pairwise.read_pairs(tmp_path / "none", data)
