"""A dataset with its pictures at another size."""

from __future__ import annotations

import numpy as np
import pytest

from demos import Resized
from demos.resized import fit
from sinew.errors import InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

FRONT = "observation.images.front"


class Pictures:
    """Two frames: one grey, one half black, half white."""

    observation_spec = ObservationSpec({FRONT: TensorSpec(shape=(40, 80, 3), dtype="uint8"), "observation.state": TensorSpec(shape=(2,))})
    action_spec = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=20.0, names=("x",))
    num_episodes, tasks = 1, ("look",)

    def __len__(self):
        return 2

    def window(self, indices, n_obs_steps, horizon, keys=None):
        frames = np.full((2, 40, 80, 3), 100, np.uint8)
        frames[1, :, :40], frames[1, :, 40:] = 0, 255
        whole = {FRONT: frames[indices][:, None].repeat(n_obs_steps, 1), "observation.state": np.zeros((len(indices), n_obs_steps, 2))}
        return {key: whole[key] for key in keys or whole}


def test_pictures_are_averaged_over_areas_and_vectors_are_left():
    data = Resized(Pictures(), 8)
    assert data.observation_spec[FRONT].shape == (8, 8, 3) and data.observation_spec["observation.state"].shape == (2,)
    window = data.window(np.array([1, 0, 1]), 2, 4)
    assert window[FRONT].shape == (3, 2, 8, 8, 3) and window[FRONT].dtype == np.uint8
    assert (window[FRONT][1] == 100).all() and (window[FRONT][0, :, :, :4] == 0).all() and (window[FRONT][0, :, :, 4:] == 255).all()
    assert set(data.window(np.array([0]), 1, 1, ["observation.state"])) == {"observation.state"}


def test_what_training_sees_is_what_a_live_camera_gives():
    picture = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    data = Pictures()
    data.window = lambda indices, *_: {FRONT: picture[None, None]}  # type: ignore[method-assign]
    assert np.array_equal(Resized(data, 16).window(np.array([0]), 1, 1)[FRONT][0, 0], fit(picture, 16, 16))
    assert fit(picture, 40, 80) is picture


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="image size 0 must be at least 1"):
        Resized(Pictures(), 0)
    blind = Pictures()
    blind.observation_spec = ObservationSpec({"observation.state": TensorSpec(shape=(2,))})
    with pytest.raises(InputError, match=r"an image size was given and the data has no pictures: it has observation.state"):
        Resized(blind, 8)
