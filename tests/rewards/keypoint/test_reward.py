import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from rewards import files
from rewards.files import RewardUnavailable, Situation
from rewards.keypoint import KeypointSettings, Place
from sinew.errors import DataError, InputError
from sinew.specs import ENVIRONMENT_STATE, STATE, ActionSpec, ObservationSpec, TensorSpec

ELEMENTS = ("x", "y", "z", "r11", "r21", "r31", "r12", "r22", "r32")
SPEC = ObservationSpec(
    {
        STATE: TensorSpec(shape=(10,), names=("gripper", *(f"tool.{e}" for e in ELEMENTS))),
        ENVIRONMENT_STATE: TensorSpec(shape=(18,), names=tuple(f"{o}.{e}" for o in ("cube", "box") for e in ELEMENTS)),
    }
)
LIFT = KeypointSettings(
    function=Place(offset_m=(0.0, 0.0, 0.0), object="cube"),
    waypoints=(Place(offset_m=(0.0, 0.0, 0.1), object="cube"),),
    grasp=Place(offset_m=(0.0, 0.0, 0.0), object="cube"),
    approach=(Place(offset_m=(0.0, 0.0, 0.1), object="cube"),),
    weight=1.0,
)
GAMMA = 0.9


def situation(num_envs=1, spec=SPEC, **more):
    action = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=20.0, names=("x",))
    return Situation(observation=spec, action=action, gamma=GAMMA, num_envs=num_envs, max_episode_steps=9, **more)


def obs(tool, cube, box=(0.5, 0.5, 0.0), yaw=0.0):
    """Observation of worlds, from positions (N, 3) or (3,); objects are turned by yaw."""

    def frame(position, angle=0.0):
        position = torch.as_tensor(position).reshape(-1, 3).float()
        columns = torch.tensor([math.cos(angle), math.sin(angle), 0.0, -math.sin(angle), math.cos(angle), 0.0])
        return torch.cat((position, columns.expand(len(position), 6)), 1)

    tool = frame(tool)
    boxes = frame(box, yaw).expand(len(tool), 9)
    return {STATE: torch.cat((torch.zeros(len(tool), 1), tool), 1), ENVIRONMENT_STATE: torch.cat((frame(cube, yaw), boxes), 1)}


def step(reward, before, after, success=False, terminated=None):
    won, ended = torch.tensor([success]), torch.tensor([success if terminated is None else terminated])
    after = {f"next.{k}": v for k, v in after.items()}
    return float(reward.reward({**before, **after, "success": won, "terminated": ended}, {})[0])


def play(reward, frames, success=False):
    reward.begin(frames[0], [0])
    last = len(frames) - 2
    return [step(reward, a, b, success and i == last) for i, (a, b) in enumerate(pairwise(frames))]


PICKED = [
    obs((0.0, 0.0, 0.3), (0.2, 0.0, 0.0)), obs((0.1, 0.0, 0.2), (0.2, 0.0, 0.0)), obs((0.2, 0.0, 0.1), (0.2, 0.0, 0.0)),
    obs((0.2, 0.0, 0.0), (0.2, 0.0, 0.0)), obs((0.2, 0.0, 0.06), (0.2, 0.0, 0.06)), obs((0.2, 0.0, 0.1), (0.2, 0.0, 0.1)),
]  # fmt: skip


def test_rewards_telescope_to_the_ends_of_an_episode():
    reward = LIFT.build(situation())
    got = play(reward, PICKED[:-1])
    total = sum(GAMMA**t * r for t, r in enumerate(got))
    assert total == pytest.approx(GAMMA ** len(got) * float(reward.phi[0]) + 1.0, abs=1e-5)


def test_the_potential_is_the_share_of_the_way_that_is_left():
    reward = LIFT.build(situation())
    play(reward, PICKED)
    assert float(reward.phi[0]) == pytest.approx(0.0, abs=1e-6)
    whole = math.hypot(0.2, 0.2) + 0.1 + 0.1
    play(reward, PICKED[:5])
    assert float(reward.phi[0]) == pytest.approx(-0.04 / whole, abs=1e-5)
    play(reward, PICKED[:2])
    assert float(reward.phi[0]) == pytest.approx(-(math.hypot(0.1, 0.1) + 0.2) / whole, abs=1e-5)


def test_all_ways_to_success_are_worth_the_same_but_for_their_length():
    short, detour = [PICKED[i] for i in (0, 3, 5)], [*PICKED[:3], *PICKED[:3], *PICKED[3:]]
    for weight in (1.0, 4.0):
        reward = replace(LIFT, weight=weight).build(situation())
        for frames in (PICKED, short, detour):
            got = play(reward, frames, success=True)
            assert sum(GAMMA**t * r for t, r in enumerate(got)) == pytest.approx(weight + GAMMA ** (len(got) - 1), abs=1e-5)


def test_success_can_take_the_place_of_the_dense_reward():
    reward = replace(LIFT, replace=True).build(situation())
    assert play(reward, PICKED, success=True)[-1] == 1.0
    assert play(reward, PICKED)[-1] != 1.0


def test_an_end_without_success_counts_as_potential_zero_and_a_timeout_keeps_it():
    for terminated in (True, False):
        reward = LIFT.build(situation())
        reward.begin(PICKED[0], [0])
        got = step(reward, PICKED[0], PICKED[1], terminated=terminated)
        assert got == pytest.approx(1.0 if terminated else GAMMA * float(reward.phi[0]) + 1.0, abs=1e-6)


def test_a_held_object_may_be_carried_and_a_dropped_one_costs():
    reward = LIFT.build(situation())
    play(reward, PICKED)
    held = float(reward.phi[0])
    dropped = obs((0.2, 0.0, 0.1), (0.2, 0.0, 0.0))
    assert step(reward, PICKED[-1], dropped) < -0.1 < held
    assert float(reward.phi[0]) == pytest.approx(-0.5 * 0.2 / (math.hypot(0.2, 0.2) + 0.2), abs=1e-5)  # 10 cm beside each way


def test_walking_up_and_down_earns_nothing():
    reward = LIFT.build(situation())
    lap = [*PICKED, *PICKED[::-1]]
    got = play(reward, [*lap, *lap, *lap])
    assert sum(got) <= 1.0 + sum((1 - GAMMA) * 1.5 for _ in got)
    assert float(reward.progress.sum()) == pytest.approx(math.hypot(0.2, 0.2) + 0.2, abs=1e-5)


@pytest.mark.parametrize("settings", [LIFT, replace(LIFT, weight=4.0), replace(LIFT, weight=3.0, replace=True)])
def test_rewards_and_returns_stay_in_their_declared_ranges(settings):
    generator = torch.Generator().manual_seed(0)
    reward = settings.build(situation(64))
    low, high = settings.returns(GAMMA, 9)
    frames = [obs(torch.rand(64, 3, generator=generator), torch.rand(64, 3, generator=generator)) for _ in range(40)]
    reward.begin(frames[0], range(64))
    total, discount = torch.zeros(64), 1.0
    running = torch.ones(64)
    for t, (a, b) in enumerate(pairwise(frames)):
        won = torch.rand(64, generator=generator) < 0.05
        if t == 38:
            won[:] = True
        got = reward.reward({**a, **{f"next.{k}": v for k, v in b.items()}, "success": won, "terminated": won}, {})
        assert bool(((got >= reward.low) & (got <= reward.high)).all())
        total += discount * running * got
        running *= ~won
        discount *= GAMMA
    assert bool(((total >= low - 1e-5) & (total <= high + 1e-5)).all())


def test_worlds_do_not_touch_each_other_and_begin_when_they_begin():
    reward = LIFT.build(situation(2))
    both = [obs([(0.0, 0.0, 0.3)] * 2, [(0.2, 0.0, 0.0)] * 2), obs([(0.2, 0.0, 0.0), (0.0, 0.0, 0.3)], [(0.2, 0.0, 0.0)] * 2)]
    reward.begin(both[0], [0, 1])
    flags = torch.zeros(2, dtype=torch.bool)
    reward.reward({**both[0], **{f"next.{k}": v for k, v in both[1].items()}, "success": flags, "terminated": flags}, {})
    assert float(reward.progress[0, 0]) > 0.3 and float(reward.progress[0, 1]) == 0.0
    reward.begin(both[0], [0])
    assert reward.progress[:, 0].tolist() == [0.0, 0.0] and reward.phi.tolist()[0] == -1.0
    assert float(reward.phi[1]) == pytest.approx(-1.0)


def test_points_turn_with_their_objects():
    settings = KeypointSettings(
        function=Place(offset_m=(0.1, 0.0, 0.0), object="cube"), waypoints=(Place(offset_m=(0.3, 0.0, 0.0), object="box"),)
    )
    reward = settings.build(situation())
    reward.begin(obs((0, 0, 0), (0.0, 0.0, 0.0), yaw=math.pi / 2), [0])
    np.testing.assert_allclose(reward.paths.places[1, :2], [[0.0, 0.1, 0.0], [0.5, 0.8, 0.0]], atol=1e-6)


def test_below_its_confidence_the_potential_is_held():
    reward = LIFT.build(situation())
    reward.begin(PICKED[0], [0])
    unsure = {**PICKED[3], "confidence": torch.tensor([0.2])}
    assert step(reward, PICKED[0], unsure) == pytest.approx(1 - GAMMA)
    assert float(reward.phi[0]) == -1.0 and float(reward.progress.sum()) == 0.0
    step(reward, PICKED[0], {**PICKED[3], "confidence": torch.tensor([0.9])})
    assert float(reward.progress.sum()) > 0.3


def test_what_is_not_finite_is_refused_with_its_world():
    reward = LIFT.build(situation(2))
    bad = obs([(0.0, 0.0, 0.3), (float("nan"), 0.0, 0.3)], [(0.2, 0.0, 0.0)] * 2)
    with pytest.raises(InputError, match="'tool' is in world 1"):
        reward.begin(bad, [0, 1])
    reward.begin({k: v[:1].expand(2, -1) for k, v in bad.items()}, [0, 1])
    flags = torch.zeros(2, dtype=torch.bool)
    for value in (float("nan"), float("inf")):
        gone = obs([(0.0, 0.0, 0.3)] * 2, [(0.2, 0.0, 0.0), (0.2, value, 0.0)])
        with pytest.raises(InputError, match="'cube' is in world 1"):
            reward.reward({**{f"next.{k}": v for k, v in gone.items()}, "success": flags, "terminated": flags}, {})


def test_an_environment_that_does_not_tell_poses_has_no_such_reward():
    bare = ObservationSpec({STATE: SPEC[STATE]})
    with pytest.raises(RewardUnavailable, match=r"does not tell 'cube\.x'"):
        LIFT.build(situation(spec=bare))
    with pytest.raises(InputError, match=r"about 'cube'; the environment has peg, hole"):
        LIFT.build(situation(objects=("peg", "hole")))


def test_settings_survive_their_file_and_wrong_ones_are_named(tmp_path):
    files.save(tmp_path / "r.json", "keypoint", LIFT, {})
    assert files.load(tmp_path / "r.json") == ("keypoint", LIFT)
    whole = (tmp_path / "r.json").read_text()
    for old, new, said in (
        ("0.1", "99.0", "within 5 m"),
        ("0.1", "NaN", "within 5 m"),
        ('"offset_m": [', '"offset_m": [0.0, ', "expected 3 values, found 4"),
        ('"stray": 0.5', '"stray": -1', "out of its range"),
        ('"waypoints": [', '"waypoints": [], "wayp": [', "unknown field"),
    ):
        (tmp_path / "r.json").write_text(whole.replace(old, new, 1))
        with pytest.raises(DataError, match=said):
            files.load(tmp_path / "r.json")


def place(on, *offset):
    return Place(offset_m=offset, object=on)


ORACLE = {  # settings that the oracle proposed for three tasks, and what they have always paid for this grasp and lift at weight 4
    "lift": (
        KeypointSettings(
            function=place("cube", 0.0019, -0.00045, 0.00017), waypoints=(place("cube", 0.0019, -0.00045, 0.11),),
            grasp=place("cube", 0.0019, -0.00045, 0.00017), approach=(place("cube", 0.0019, -0.00045, 0.106),),
        ),
        [0.74189, 0.73216, 0.72283, 0.82686, 0.65682, 0.54966, 0.34691, 0.35119, 0.31858, 0.02343, -0.14325, 1.65897],
    ),
    "peg": (
        KeypointSettings(
            function=place("cube", 0.00123, 0.00019, 0.00029), grasp=place("cube", 0.00123, 0.00019, 0.00029),
            waypoints=(place("cube", 0.00123, 0.00019, 0.066), place("box", 7e-05, -0.00024, 0.095), place("box", 7e-05, -0.00024, 0.05)),
            approach=(place("cube", 0.00123, 0.00019, 0.115),),
        ),
        [0.61641, 0.6094, 0.60154, 0.69499, 0.56385, 0.49625, 0.36441, 0.42261, 0.11765, 0.08798, 0.08128, 3.13312],
    ),
    "drawer": (
        KeypointSettings(
            function=place("cube", 0.01672, -0.00014, 0.0003), waypoints=(place("cube", -0.11402, 0.00042, 0.0),),
            grasp=place("cube", -0.00625, -0.012, 0.01938), approach=(place("cube", -0.00625, -0.012, 0.105),),
        ),
        [0.71063, 0.71027, 0.71623, 0.87021, 0.69614, 0.36426, 0.01163, 0.03302, 0.03908, 0.04493, 0.05396, 3.19479],
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", ORACLE)
def test_files_that_the_oracle_proposed_pay_what_they_always_paid(task):
    settings, paid = ORACLE[task]
    frames = []
    for u in np.linspace(0, 1, 13):
        near, held = min(1, 2 * u), max(0, 2 * u - 1)
        tool = (0.5 - 0.08 * near, -0.1 + 0.02 * math.sin(9 * u), 0.3 - 0.26 * near + 0.2 * held)
        frames.append(obs(tool, (0.42 - 0.05 * held, -0.1 + 0.05 * held, 0.04 + 0.2 * held), box=(0.5, 0.1, 0.0), yaw=0.3))
    assert play(replace(settings, weight=4.0).build(situation()), frames, success=True) == pytest.approx(paid, abs=2e-5)


def test_worlds_may_have_points_of_their_own():
    other = replace(LIFT, function=place("box", 0.0, 0.0, 0.0), waypoints=(place("", 0.1, 0.2, 0.3), place("box", 0.0, 0.0, 0.2)))
    alone = [s.build(situation()) for s in (LIFT, other, LIFT)]
    tracks = [PICKED, [obs((0.1, 0.1, 0.1), (0.2, 0.0, 0.0), box=(0.5, 0.5 - 0.05 * t, 0.05 * t)) for t in range(6)], PICKED[::-1]]
    steps = [{k: torch.cat([track[t][k] for track in tracks]) for k in tracks[0][0]} for t in range(6)]
    mixed = replace(LIFT, approach=(place("box", 0.0, 0.0, 0.0),)).build(situation(3))  # knows both objects
    for rows, settings in (([0, 2], LIFT), ([1], other)):
        mixed.lay(mixed.poses.frames(steps[0], np.array(rows)), np.array(rows), settings)
    for i, reward in enumerate(alone):
        reward.begin(tracks[i][0], [0])
    flags = torch.zeros(3, dtype=torch.bool)
    for t in range(1, 6):
        got = mixed.reward({**{f"next.{k}": v for k, v in steps[t].items()}, "success": flags, "terminated": flags}, {})
        expected = [step(reward, tracks[i][t - 1], tracks[i][t]) for i, reward in enumerate(alone)]
        assert got.tolist() == pytest.approx(expected, abs=1e-6)
