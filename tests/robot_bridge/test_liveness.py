import numpy as np
import pytest

from robot_bridge.liveness import PERSISTS, CameraWatch


def scene(seed: int, height: int = 60, width: int = 80, light: float = 1.0) -> np.ndarray:
    """A room of coloured blocks, with a little noise that differs from picture to picture."""
    blocks = np.random.default_rng(seed).integers(20, 220, (6, 8, 3))
    image = np.kron(blocks, np.ones((height // 6, width // 8, 1))) * light + np.random.default_rng().normal(0, 2, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def test_an_exchange_in_the_middle_of_an_episode_is_noticed_once():
    watch = CameraWatch()
    assert not any(watch.see({"front": scene(1), "wrist": scene(2)}) for _ in range(20))
    said = [watch.see({"front": scene(2), "wrist": scene(1)}) for _ in range(20)]
    assert [bool(s) for s in said] == [i == PERSISTS - 1 for i in range(20)]
    assert said[PERSISTS - 1].startswith("cameras front and wrist are exchanged") and "\n" not in said[PERSISTS - 1]


def test_an_exchange_before_an_episode_and_before_a_run():
    watch = CameraWatch()
    for _ in range(5):
        watch.see({"front": scene(1), "wrist": scene(2), "side": scene(3)})
    for _ in range(2):  # until somebody mends it
        assert "wrist and side are exchanged" in watch.before({"front": scene(1), "wrist": scene(3), "side": scene(2)})
    assert watch.before({"front": scene(1), "wrist": scene(2), "side": scene(3)}) == ""
    shown = {"front": scene(1, 30, 40), "wrist": scene(2, 30, 40)}  # as a dataset keeps them, smaller
    assert "exchanged" in CameraWatch(shown).before({"front": scene(2), "wrist": scene(1)})


@pytest.mark.parametrize(
    "after",
    [
        {"front": scene(1, light=0.4), "wrist": scene(2, light=0.4)},  # somebody switches the light off
        {"front": scene(3), "wrist": scene(4)},  # both look elsewhere
        {"front": scene(2), "wrist": scene(2)},  # one topic feeds both: not an exchange
        {"front": scene(1), "wrist": scene(9)},  # the arm has moved
    ],
)
def test_other_changes_are_no_exchange(after):
    watch = CameraWatch()
    for _ in range(5):
        watch.see({"front": scene(1), "wrist": scene(2)})
    assert not any(watch.see(after) for _ in range(20))


def test_cameras_that_look_alike_are_not_told_apart():
    watch = CameraWatch()
    said = [watch.see({"left": scene(1), "right": scene(1)}) for _ in range(20)]
    assert not any(said)


def test_size_and_black():
    watch = CameraWatch()
    watch.see({"front": scene(1)})
    assert "40x30 now, they were 80x60" in watch.before({"front": scene(1, 30, 40)})
    assert "40x30 now, they were 80x60" in watch.see({"front": scene(1, 30, 40)})
    assert watch.see({"front": scene(1, 30, 40)}) == ""  # said once; that is its size now
    assert watch.before({"front": np.zeros((30, 40, 3), np.uint8)}).startswith("camera front shows black")
