"""A dataset with its pictures at another size."""

from __future__ import annotations

import numpy as np
import pytest

import demos
from demos.resized import fit, resized_spec
from sinew.errors import InputError
from sinew.specs import ObservationSpec, TensorSpec

CAM = "observation.images.cam0"


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0], ids=["all pictures fit", "none is kept"])
@pytest.mark.parametrize("video", [True, False])
def test_what_training_sees_is_what_a_live_camera_gives(tmp_path, helpers, video, cache_bytes):
    data = demos.Dataset(helpers.record(tmp_path / "d", [4, 3], 1, video=video), cache_bytes=cache_bytes)
    small = data.resized(16)
    assert small.observation_spec[CAM].shape == (16, 16, 3) and data.observation_spec[CAM].shape == (32, 48, 3)
    whole, window = data.window(np.arange(7), 2, 4), small.window(np.arange(7), 2, 4)
    assert window[CAM].shape == (7, 2, 16, 16, 3) and window[CAM].dtype == np.uint8
    for row in range(7):
        for step in range(2):
            np.testing.assert_array_equal(window[CAM][row, step], fit(whole[CAM][row, step], 16, 16))
    for key in ("observation.state", "action", "action_is_pad"):
        np.testing.assert_array_equal(window[key], whole[key])
    assert small.content_hash() == data.content_hash() and small[3][CAM].shape == (16, 16, 3)
    both = demos.Concat([data, data]).resized(16).window(np.array([8]), 1, 1)[CAM]
    np.testing.assert_array_equal(both[0, 0], window[CAM][1, 1])


def test_pictures_are_averaged_over_areas():
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = 255
    small = fit(picture, 8, 8)
    assert (small[:, :4] == 0).all() and (small[:, 4:] == 255).all()
    assert fit(picture, 40, 80) is picture


def test_sizes_that_cannot_be_are_refused():
    blind = ObservationSpec({"observation.state": TensorSpec(shape=(2,))})
    with pytest.raises(InputError, match=r"an image size was given and the data has no pictures: it has observation.state"):
        resized_spec(blind, 8)
    seeing = ObservationSpec({CAM: TensorSpec(shape=(4, 4, 3), dtype="uint8")})
    with pytest.raises(InputError, match="image size 0 must be at least 1"):
        resized_spec(seeing, 0)
