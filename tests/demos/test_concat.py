"""Several datasets read as one: the same frames, statistics of all, each frame's own instruction."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import demos
from sinew.errors import DataError, InputError, SpecError
from sinew.protocols import EpisodeData, HasColumns

LENGTHS = ([7, 4], [1, 9, 3], [5])
TEXTS = ("push the block", "lift the block", "push the block")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, helpers):
    folder = tmp_path_factory.mktemp("parts")
    roots = [helpers.record(folder / str(i), lengths, 1, task=TEXTS[i]) for i, lengths in enumerate(LENGTHS)]
    return [demos.Dataset(root) for root in roots]


def test_windows_are_those_of_the_parts(parts):
    whole = demos.Concat(parts)
    data: EpisodeData = whole
    assert len(data) == sum(map(len, parts)) == 29 and data.num_episodes == 6
    assert data.observation_spec == parts[0].observation_spec and data.action_spec == parts[0].action_spec
    rows = [(number, at) for number, part in enumerate(parts) for at in range(len(part))]
    order = np.random.default_rng(0).permutation(len(rows))
    window = data.window(order, 2, 4)
    for row, index in enumerate(order):
        number, at = rows[index]
        for key, value in parts[number].window(np.array([at]), 2, 4).items():
            np.testing.assert_array_equal(window[key][row], value[0])
            assert window[key].dtype == value.dtype


def test_statistics_are_those_of_all_frames(parts):
    stats = demos.Concat(parts).stats()
    for key in ("observation.state", "observation.environment_state", "action"):
        values = np.concatenate([part.column(key) for part in parts]).astype(np.float64)
        for name, expected in {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}.items():
            np.testing.assert_allclose(stats[key][name], expected, rtol=1e-12, atol=1e-12)


def test_every_frame_keeps_its_instruction(parts):
    whole = demos.Concat(parts)
    assert isinstance(whole, HasColumns) and isinstance(parts[0], HasColumns)
    assert set(whole.tasks) == set(TEXTS) and len(whole.tasks) == 2
    told = [whole.tasks[i] for i in whole.column("task_index").reshape(-1)]
    assert told == [text for text, lengths in zip(TEXTS, LENGTHS, strict=True) for _ in range(sum(lengths))]
    np.testing.assert_array_equal(whole.column("timestamp"), np.concatenate([part.column("timestamp") for part in parts]))
    with pytest.raises(DataError, match="has no column 'mass'"):
        whole.column("mass")


def test_hash_depends_on_every_part_and_their_order(parts):
    hashes = {demos.Concat(some).content_hash() for some in (parts, parts[::-1], parts[:2], parts[:1])}
    assert len(hashes) == 4
    assert demos.Concat(parts).content_hash() in hashes


def test_parts_that_do_not_fit_are_refused_with_the_difference(parts, helpers, tmp_path):
    other = demos.Dataset(helpers.record(tmp_path / "cameras", [3], 0))
    with pytest.raises(SpecError, match=r"needs 'observation.images.cam0', which .*cameras does not give"):
        demos.Concat([parts[0], other])
    narrow = demos.Concat([parts[0], other], keys=("observation.state",))
    assert tuple(narrow.observation_spec) == ("observation.state",) and set(narrow.stats()) == {"observation.state", "action"}
    assert set(narrow.window(np.array([0, 11]), 1, 1)) == {"observation.state", "action", "action_is_pad"}
    with pytest.raises(InputError, match="no datasets were given"):
        demos.Concat([])
    with pytest.raises(DataError, match="frame indices run from -1"):
        demos.Concat(parts).window(np.array([-1]), 1, 1)
    with pytest.raises(DataError, match="frame indices run from"):
        demos.Concat(parts).window(np.array([29]), 1, 1)


def test_shares_say_how_often_a_part_is_drawn_and_how_much_its_statistics_count(parts):
    whole = demos.Concat(parts, shares=(6, 3, 1))
    assert whole.shares == (0.6, 0.3, 0.1)
    ends = np.cumsum([0, *map(len, parts)])
    np.testing.assert_allclose([whole.draw[a:b].sum() for a, b in pairwise(ends)], [0.6, 0.3, 0.1])
    assert demos.Concat(parts).draw is None
    for key in ("observation.state", "action"):
        values = [part.column(key).astype(np.float64) for part in parts]
        mean = sum(share * v.mean(0) for share, v in zip(whole.shares, values, strict=True))
        square = sum(share * (v**2).mean(0) for share, v in zip(whole.shares, values, strict=True))
        np.testing.assert_allclose(whole.stats()[key]["mean"], mean)
        np.testing.assert_allclose(whole.stats()[key]["std"], np.sqrt(square - mean**2))
    for shares, message in (
        ((1, 1), "2 shares were given for 3 datasets"),
        ((1, 0, 1), "must be above 0"),
        ((1, np.nan, 1), "must be above 0"),
    ):
        with pytest.raises(InputError, match=message):
            demos.Concat(parts, shares=shares)


def test_statistics_of_the_first_or_of_each_one_s_own(parts):
    first, own = (demos.Concat(parts, statistics=how) for how in ("first", "own"))
    for whole in (first, own):
        for name, value in parts[0].stats()["observation.state"].items():
            np.testing.assert_array_equal(whole.stats()["observation.state"][name], value)
    ends = np.cumsum([0, *map(len, parts)])
    window = own.window(np.arange(29), 1, 1)["observation.state"][:, 0]
    np.testing.assert_array_equal(window, own.column("observation.state"))
    told = parts[0].stats()["observation.state"]
    for part, a, b in zip(parts, ends, ends[1:], strict=False):
        mine = part.stats()["observation.state"]
        scale = np.maximum(told["std"], 0.01) / np.maximum(mine["std"], 0.01)
        np.testing.assert_allclose(window[a:b].mean(0), told["mean"], atol=1e-5)
        np.testing.assert_allclose(window[a:b].std(0), mine["std"] * scale, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(own.window(np.arange(29), 1, 1)["action"], first.window(np.arange(29), 1, 1)["action"])
    np.testing.assert_array_equal(first.column("observation.state"), demos.Concat(parts).column("observation.state"))
    with pytest.raises(InputError, match="statistics 'mine' are not known: choose all, first, own"):
        demos.Concat(parts, statistics="mine")


def test_bounds_that_nobody_told_are_joined_and_told_ones_hold(parts, helpers, tmp_path):
    foreign = []
    for name in ("one", "other"):
        root = helpers.record(tmp_path / name, [6 if name == "one" else 9], 1)
        (root / "meta/sinew.json").unlink()
        foreign.append(demos.Dataset(root))
    joined = demos.Concat(foreign).action_spec
    assert joined.low == tuple(np.min([f.action_spec.low for f in foreign], 0)) and joined.high > foreign[0].action_spec.low
    with pytest.raises(SpecError, match=r"disagree on the action: kind 'joint_position' against 'ee_delta'"):
        demos.Concat([foreign[0], parts[0]])
    ours = tmp_path / "ours"
    helpers.record(ours, [6], 1)
    path = ours / "meta/sinew.json"
    path.write_text(path.read_text().replace('"ee_delta"', '"joint_position"'))
    assert demos.Concat([foreign[0], demos.Dataset(ours)]).action_spec == demos.Dataset(ours).action_spec
    path.write_text(path.read_text().replace("1.0", "0.1"))
    with pytest.raises(SpecError, match=r"actions of .*one do not fit .*ours: x runs from .* limits it to -0\.1 to 0\.1"):
        demos.Concat([foreign[0], demos.Dataset(ours)])
