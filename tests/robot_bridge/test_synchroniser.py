"""What may be shown to a policy: ages, missing values, black and frozen pictures."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.contract import Contract, Source
from robot_bridge.synchroniser import Budget, Synchroniser, budgets
from sinew.errors import InputError
from sinew.protocols import Observation

MS = 1_000_000
NEEDED = ("joint_position", "pose.cube", "images.front")


def seen(joints_ms: float, camera_ms: float, *, picture=None, moved: float = 0.0, pose_ms: float | None = None) -> Observation:
    values = {
        "joint_position": np.array([moved, 0.0]),
        "pose.cube": np.zeros(7),
        "images.front": np.full((32, 32, 3), 100, dtype=np.uint8) if picture is None else picture,
    }
    stamps = {"images.front": round(camera_ms * MS), "pose.cube": round((joints_ms if pose_ms is None else pose_ms) * MS)}
    return Observation(round(joints_ms * MS), 1, values, stamps)


@pytest.fixture
def synchroniser():
    made = Synchroniser(budgets(NEEDED))
    made.start(0)
    return made


@pytest.mark.parametrize(
    ("age_ms", "answer"), [(0, "use"), (100, "use"), (199, "use"), (201, "hold"), (300, "hold"), (999, "hold"), (1000, "end")]
)
def test_a_camera_that_stalls_is_used_then_held_for_then_ends_the_episode(synchroniser, age_ms, answer):
    judgement = synchroniser.judge(seen(2000, 2000 - age_ms), 2000 * MS)
    assert judgement.answer == answer and judgement.key == ("" if answer == "use" else "images.front")


def test_what_is_late_is_counted_by_the_usual_interval_of_its_source(synchroniser):
    for k in range(10):
        assert synchroniser.judge(seen(50 * k, 50 * k), 50 * k * MS).answer == "use"
    for age_ms in (50, 74, 76, 100, 150):  # the camera's usual interval is 50 ms
        synchroniser.judge(seen(450 + age_ms, 450), (450 + age_ms) * MS)
    told = synchroniser.report()["images.front"]
    assert told["late"] == 3 and told["oldest_ms"] == 150.0 and "held" not in told


def test_joints_have_less_time_than_pictures(synchroniser):
    assert synchroniser.judge(seen(1000, 1090), 1099 * MS).answer == "use"
    judgement = synchroniser.judge(seen(1000, 1101), 1101 * MS)
    assert (judgement.answer, judgement.key) == ("hold", "joint_position")
    assert synchroniser.counts["joint_position"]["held"] == 1


def test_the_worst_value_is_named(synchroniser):
    judgement = synchroniser.judge(seen(4500, 3000, pose_ms=4700), 5000 * MS)
    assert (judgement.answer, judgement.key, judgement.age_s) == ("end", "images.front", 2.0)


def test_a_value_that_is_missing_is_as_old_as_when_it_was_seen_last(synchroniser):
    synchroniser.judge(seen(0, 0), 0)
    gone = Observation(250 * MS, 2, {"joint_position": np.zeros(2), "pose.cube": np.zeros(7)})
    assert synchroniser.judge(gone, 250 * MS).answer == "hold"
    assert synchroniser.judge(Observation(1000 * MS, 3, gone.values), 1000 * MS).answer == "end"


def test_what_never_came_is_waited_for_from_the_beginning(synchroniser):
    synchroniser.start(5000 * MS)
    nothing = Observation(5100 * MS, 1, {"joint_position": np.zeros(2), "pose.cube": np.zeros(7)})
    assert synchroniser.judge(nothing, 5100 * MS)[:2] == ("hold", "images.front")
    assert synchroniser.judge(Observation(6000 * MS, 2, nothing.values), 6000 * MS).answer == "end"


def test_stamps_that_are_far_apart_are_counted(synchroniser):
    synchroniser.judge(seen(1000, 880), 1000 * MS)
    synchroniser.judge(seen(1000, 950), 1000 * MS)
    assert synchroniser.report()["images.front"]["apart"] == 1


def test_black_pictures_are_counted(synchroniser):
    for picture in (np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 5, np.uint8), np.full((32, 32, 3), 50, np.uint8)):
        synchroniser.judge(seen(0, 0, picture=picture), 0)
    assert synchroniser.report()["images.front"]["black"] == 2


def test_a_picture_that_stays_while_the_arm_moves_is_frozen(synchroniser):
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    for k in range(10):  # nothing moves: the same picture is right
        synchroniser.judge(seen(50 * k, 50 * k, picture=still), 50 * k * MS)
    assert "frozen" not in synchroniser.report()["images.front"]
    for k in range(10, 20):
        synchroniser.judge(seen(50 * k, 50 * k, picture=still, moved=0.01 * (k - 9)), 50 * k * MS)
    assert synchroniser.report()["images.front"]["frozen"] == 8
    live = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    synchroniser.judge(seen(1000, 1000, picture=live, moved=0.2), 1000 * MS)
    assert synchroniser.report()["images.front"]["frozen"] == 8


def test_a_contract_that_sets_ages_is_followed():
    def source(key: str, **more) -> Source:
        return Source(key=key, topic="/t", message="sensor_msgs/Image", field="image", **more)

    contract = Contract(robot="r", rate_hz=20.0, sources=(source("images.slow", age_max_s=2.0, tolerance_s=0.3), source("images.usual")))
    made = budgets(("joint_position", "images.slow", "images.usual"), contract)
    assert made["images.slow"] == Budget(hold_after_s=2.0, end_after_s=4.0, tolerance_s=0.3)
    assert made["images.usual"].hold_after_s == 0.2 and made["joint_position"].hold_after_s == 0.1


def test_a_budget_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="both must be above 0"):
        Budget(hold_after_s=0.5, end_after_s=0.1)
