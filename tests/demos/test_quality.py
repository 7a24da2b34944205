"""Scores against closed forms and planted episodes, weights as a file, and relabelling in place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import demos
from demos.quality import motion, weights
from demos.quality.features import points
from demos.quality.neighbours import information, nearest_elsewhere
from demos.quality.scores import NONE, divergence, doubts, robust, score, weights_of
from demos.relabel import Label, relabel
from sinew.errors import DataError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

ACTION = ActionSpec(kind="ee_delta", low=(-1.0, -1.0), high=(1.0, 1.0), rate_hz=20.0, names=("dx", "dy"))
STATE = ObservationSpec({"observation.state": TensorSpec(shape=(4,), unit="m", names=("x", "y", "goal.x", "goal.y"))})
BAD = {3: "wrong way", 8: "hesitant", 12: "noisy"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Points that go to a goal of their own; three of sixteen go wrong in different ways."""
    root = tmp_path_factory.mktemp("quality") / "d"
    rng = np.random.default_rng(0)
    with demos.Writer.create(root, fps=20, observation_spec=STATE, action_spec=ACTION, task="go there") as writer:
        for episode in range(16):
            place, goal, step = np.zeros(2), rng.uniform(0.5, 1.0, 2), 0
            while np.linalg.norm(goal - place) > 0.05 and step < 60:
                action = np.clip(4 * (goal - place), -1, 1)
                if BAD.get(episode) == "wrong way" and step < 12:
                    action = -action
                if BAD.get(episode) == "hesitant" and step % 9 > 2:
                    action = 0 * action
                if BAD.get(episode) == "noisy":
                    action = np.clip(action + rng.normal(0, 0.8, 2), -1, 1)
                values = {"observation.state": np.concatenate([place, goal]).astype(np.float32), "action": action.astype(np.float32)}
                writer.add_frame(values, stamp_ns=step * 50_000_000)
                place, step = place + 0.05 * action, step + 1
            writer.save_episode(success=True)
    return root


def test_nearest_points_are_those_of_other_groups():
    rng = np.random.default_rng(1)
    x, group = rng.normal(size=(700, 3)), rng.integers(0, 20, 700)
    index, distance = nearest_elsewhere(x, group, 4)
    for i in (0, 13, 699):
        apart = np.where(group == group[i], np.inf, np.linalg.norm(x - x[i], axis=1))
        assert index[i].tolist() == np.argsort(apart)[:4].tolist()
        np.testing.assert_allclose(distance[i], np.sort(apart)[:4], rtol=1e-3)
    among = np.arange(0, 700, 7)
    assert set(nearest_elsewhere(x, group, 4, among)[0].reshape(-1).tolist()) <= set(among.tolist())


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_information_of_gaussians_is_the_closed_form(correlation):
    """I = -log(1 - rho²) / 2; the estimate of 2000 points is within 0.06."""
    rng = np.random.default_rng(2)
    x, e = rng.normal(size=(2, 2000, 1))
    y = correlation * x + np.sqrt(1 - correlation**2) * e
    found = information(x, y, np.arange(2000))
    assert abs(found.mean() + 0.5 * np.log(1 - correlation**2)) < 0.06
    grouped = information(x, y, np.arange(2000) // 40)
    assert abs(grouped.mean() - found.mean()) < 0.03, "groups that are drawn alike change nothing"


def test_standing_still_far_away_tells_nothing():
    """An episode that stands still where no other one was: its frames foretell each other, and nothing besides."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(600, 2)), 5 + 0.001 * rng.normal(size=(100, 2))])
    y = np.concatenate([x[:600] + 0.3 * rng.normal(size=(600, 2)), rng.normal(size=(1, 2)) + 0.001 * rng.normal(size=(100, 2))])
    groups = np.append(np.arange(600) // 50, np.full(100, 12))
    alone, apart = information(x, y, np.arange(700)), information(x, y, groups)
    assert alone[600:].mean() > 1.5 and apart[600:].mean() < 0.3
    assert abs(alone[:600].mean() - apart[:600].mean()) < 0.3


def test_smoothness_falls_with_every_further_stroke():
    """One minimum-jerk stroke lies near the -1.41 that the authors give; two and four strokes are less smooth, tremor more so."""
    at = np.linspace(0, 1, 100)
    stroke = 30 * at**2 * (1 - at) ** 2
    one, two, four = (motion.spectral_arc_length(np.tile(stroke, n), 100.0) for n in (1, 2, 4))
    assert -1.5 < one < -1.3 and one > two > four
    trembling = np.abs(stroke + 0.4 * np.sin(2 * np.pi * 8 * at))
    assert motion.spectral_arc_length(trembling, 100.0) < one - 0.3
    assert motion.spectral_arc_length(7 * stroke, 100.0) == pytest.approx(one)
    assert motion.spectral_arc_length(np.zeros(9), 20.0) == 0.0


def test_efficiency_and_idle_time_by_hand():
    there = np.linspace(0, 1, 11)[:, None] * (3.0, 4.0)
    assert motion.efficiency(there) == pytest.approx(1.0)
    assert motion.efficiency(np.concatenate([there, there[::-1], there])) == pytest.approx(1 / 3)
    assert motion.efficiency(np.zeros((5, 2))) == 1.0
    assert motion.idle(np.array([1.0, 0.01, 0.0, 2.0]), usual=1.0) == 0.5
    np.testing.assert_allclose(motion.speed(there, 20.0), 10.0)


def test_robust_deviations():
    np.testing.assert_allclose(robust(np.array([1.0, 2, 3, 4, 100])), np.array([-2.0, -1, 0, 1, 97]) / 1.4826)
    assert robust(np.full(5, 2.0)).tolist() == [0.0] * 5
    assert robust(np.array([1.0, 1, 1, 1, 3]))[4] == pytest.approx(2 / 0.8)


def test_what_is_better_than_usual_takes_nothing_away():
    values = {"divergence": np.array([1.0, 2, 3, 4, 50]), "smoothness": np.array([-3.0, -3.1, -2.9, -3.05, 90.0])}
    assert doubts(values)[4] == pytest.approx(2.5)  # clipped at 5 on one of two scores
    found = weights_of(np.array([0.1, 0.2, 0.3, 0.9, NONE, 7.0]))
    np.testing.assert_allclose(found, [1.0, 1.0, 1.0, 0.5, 0.0, 0.0], atol=1e-12)
    assert (weights_of(np.full(6, 9.0)) == 1).all(), "where all are alike, all count"


def test_planted_episodes_are_the_most_doubtful(root):
    data = demos.Dataset(root)
    found = score(data)
    assert set(np.argsort(-found.doubt)[:3].tolist()) == set(BAD)
    assert (found.weights[list(BAD)] < 0.5).all() and np.delete(found.weights, list(BAD)).mean() > 0.8
    apart, _ = divergence(points(data))
    assert apart.mean() == pytest.approx(1.0) and apart.shape == found.per_frame.shape == (len(data),)
    assert found.values["idle"].argmax() == 8 and found.values["smoothness"].argmin() in BAD
    again = score(data)
    np.testing.assert_array_equal(again.doubt, found.doubt)


def test_too_little_or_broken_data_are_refused(tmp_path, helpers):
    with pytest.raises(DataError, match="has 3 episodes; what is usual shows from 4 on"):
        score(demos.Dataset(helpers.record(tmp_path / "few", [5, 5, 5])))


def test_pictures_count_as_observations(tmp_path, helpers):
    data = demos.Dataset(helpers.record(tmp_path / "d", [12, 12, 12, 12], cameras=1))
    with_pictures = points(data).observation
    assert with_pictures.shape[0] == 48 and np.isfinite(with_pictures).all()
    assert np.isfinite(score(data).doubt).all()


def test_weights_are_kept_with_the_data_and_fall_with_them(root, tmp_path):
    from demos.edit import assemble, pieces_of

    copy = tmp_path / "d"
    assemble(copy, pieces_of(root))
    data = demos.Dataset(copy)
    assert weights.load(data) is None
    found = score(data)
    path = weights.store(data, found, {"seed": 0})
    kept = weights.load(data)
    assert kept is not None and path == copy / weights.FILE
    np.testing.assert_allclose(kept.weights, found.weights, atol=1e-6)
    relabel(copy, {2: Label(task="go over there", success=False)})
    assert weights.load(demos.Dataset(copy)) is not None, "words and outcomes do not change what the scores are made of"
    good = path.read_text()
    for damage in (good[:50], json.dumps({**json.loads(good), "weights": [1.0]}), json.dumps({**json.loads(good), "weights": [0.0] * 16})):
        path.write_text(damage)
        with pytest.raises(DataError, match=f"run sinew data quality {copy} again"):
            weights.load(data)
    path.write_text(good)
    with demos.Writer.resume(copy, task="go there") as writer:
        writer.add_frame({"observation.state": np.zeros(4, np.float32), "action": np.zeros(2, np.float32)})
        writer.save_episode()
    with pytest.raises(DataError, match="was made of other data"):
        weights.load(demos.Dataset(copy))


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_relabelling_changes_what_was_said_and_nothing_else(tmp_path, helpers):
    root = helpers.record(tmp_path / "d", [6, 7, 8], cameras=1)
    before, frames = content(root), demos.Dataset(root)[10]
    relabel(root, {1: Label(success=True), 2: Label(task="pull the block")})
    after, data = content(root), demos.Dataset(root)
    assert [data.episode(i).success for i in range(3)] == [True, True, True]
    assert [data.episode(i).task for i in range(3)] == ["push the block", "push the block", "pull the block"]
    assert data.column("next.success")[:, 0].tolist() == [False] * 5 + [True] + [False] * 6 + [True] + [False] * 7 + [True]
    assert data.column("next.reward")[12, 0] == 1.0 and demos.check(root).ok
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        "data/chunk-000/file-001.parquet", "data/chunk-000/file-002.parquet", "meta/tasks.parquet", "meta/info.json", "meta/stats.json",
        "meta/episodes/chunk-000/file-001.parquet", "meta/episodes/chunk-000/file-002.parquet",
    }  # fmt: skip
    np.testing.assert_array_equal(data[10]["observation.state"], frames["observation.state"])
    relabel(root, {1: Label(success=False), 2: Label(task="push the block")})
    assert demos.Dataset(root).column("next.success")[:, 0].sum() == 2 and demos.info(root)["tasks"] == {"push the block": 3}
    with demos.Writer.resume(root, task="push the block") as writer:
        writer.add_frame(helpers.frame(3, 0, 1))
        writer.save_episode(success=True)
    assert demos.Dataset(root).num_episodes == 4


@pytest.mark.parametrize("label", [Label(success=True), Label(task="pull the block"), Label(task="pull", success=True)])
def test_every_rename_of_a_relabelling_can_be_the_last(tmp_path, helpers, monkeypatch, label):
    """It dies before each rename in turn: the data can be read, nothing but labels differs, and the same call ends it."""

    class Died(BaseException):
        pass

    real, steps, died = os.replace, 0, True
    while died:
        root = helpers.record(tmp_path / f"d{steps}", [5, 6, 7])
        left = steps

        def dying(source, target):
            nonlocal left
            if left == 0:
                raise Died
            left -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            relabel(root, {1: label})
            died = False
        except Died:
            died = True
        monkeypatch.setattr(os, "replace", real)
        data = demos.Dataset(root)
        for at in (0, 5, 17):
            np.testing.assert_array_equal(data[at]["action"], helpers.frame(*data.locate(at))["action"])
        relabel(root, {1: label})
        data = demos.Dataset(root)
        assert data.episode(1).task == (label.task or "push the block") and data.episode(1).success is bool(label.success)
        assert demos.check(root).ok
        steps += 1
    assert steps >= 3


def test_labels_that_cannot_be_are_refused(tmp_path, helpers):
    root = helpers.record(tmp_path / "d", [5])
    before = content(root)
    for labels, message in (({4: Label(success=True)}, "no episode 4"), ({0: Label(task="  ")}, "the task of episode 0 is empty")):
        with pytest.raises(DataError, match=message):
            relabel(root, labels)
    writer = demos.Writer.resume(root, task="push the block")
    with pytest.raises(DataError, match="another process"):
        relabel(root, {0: Label(success=True)})
    writer.finalize()
    assert {k: v for k, v in content(root).items() if not k.startswith("recording")} == before
