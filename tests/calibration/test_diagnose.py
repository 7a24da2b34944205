"""Wrong poses are named: units, orders of quaternions, inverses, mounts; right ones and merely noisy ones are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.diagnose import diagnose
from calibration.simulate import Scenario, simulate
from calibration.solve import solve
from calibration.views import pack
from sinew.errors import DataError
from sinew.se3 import matrix_to_quaternion, quaternion_to_matrix, se3_inverse


def in_millimetres(pose: np.ndarray) -> np.ndarray:
    result = pose.copy()
    result[:3, 3] *= 1000
    return result


def read_in_another_order(pose: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    result = pose.copy()
    result[:3, :3] = quaternion_to_matrix(matrix_to_quaternion(pose[:3, :3])[list(order)])
    return result


MISTAKES = {
    "millimetres": in_millimetres,
    "are xyzw and were read as wxyz": lambda pose: read_in_another_order(pose, (1, 2, 3, 0)),
    "are wxyz and were read as xyzw": lambda pose: read_in_another_order(pose, (3, 0, 1, 2)),
    "T_hand_base": se3_inverse,
}


@pytest.mark.parametrize(("named", "mount"), zip(MISTAKES, ["in_hand", "to_hand", "in_hand", "to_hand"], strict=True))
def test_wrong_poses_are_named_in_one_line(named, mount):
    made = simulate(Scenario(mount=mount, views=12), len(named))
    wrong = pack([replace(v, robot=MISTAKES[named](v.robot)) for v in made.views])
    with pytest.raises(DataError, match=named) as told:
        solve(wrong, [made.camera], mount, model="poses")
    assert "\n" not in str(told.value) and " and " not in str(told.value).partition(named)[0].partition(":")[2]


@pytest.mark.parametrize(("mount", "told"), [("in_hand", "to_hand"), ("to_hand", "in_hand")])
def test_the_wrong_mount_is_named(mount, told):
    made = simulate(Scenario(mount=mount, views=12), 3)
    with pytest.raises(DataError, match=f"mount is {mount} and not {told}"):
        solve(pack(made.views), [made.camera], told, model="poses")


def test_two_mistakes_at_once_are_both_named():
    made = simulate(Scenario(views=12), 1)
    views = pack([replace(v, robot=in_millimetres(se3_inverse(v.robot))) for v in made.views])
    why = diagnose(views, (made.camera,), "in_hand")
    assert "millimetres" in why and "T_hand_base" in why


def test_right_poses_and_mere_noise_are_not_mistaken():
    for seed in range(2):
        noisy = simulate(Scenario(views=12, sigma_m=3e-3, sigma_rad=np.deg2rad(0.7), bad_views=0.25), seed)
        assert diagnose(pack(noisy.views), (noisy.camera,), "in_hand") == ""
    made = simulate(Scenario(views=12), 0)
    mixed = np.random.default_rng(0).permutation(12)
    views = pack([replace(v, robot=made.views[i].robot) for v, i in zip(made.views, mixed, strict=True)])
    with pytest.raises(DataError, match="poses belong to the pictures"):
        solve(views, [made.camera], "in_hand", model="poses")
