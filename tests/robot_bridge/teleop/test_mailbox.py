import math

import pytest

from robot_bridge.takeover import DeviceLost, Given
from robot_bridge.teleop.mailbox import MOST_WORDS, Mailbox


class Now:
    ns = 10**12

    def __call__(self):
        return self.ns

    def later(self, seconds):
        self.ns += int(seconds * 1e9)


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def box(now):
    return Mailbox(0.2, now_ns=now)


def pose(x=0.0, **more):
    return Given((x, 0, 0, 1, 0, 0, 0), kind="pose", **more)


def test_what_is_put_is_stamped_numbered_and_given_until_it_is_old(box, now):
    assert box.read() is None
    box.put(pose(1.0, also=(pose(2.0, arm=1),)))
    given = box.read()
    assert (given.values[0], given.stamp_ns, given.seq, given.hold) == (1.0, now.ns, 1, 1)
    assert (given.also[0].values[0], given.also[0].seq, given.also[0].hold) == (2.0, 1, 1)
    now.later(0.15)
    assert box.read() is given  # nothing new, and not old yet
    now.later(0.1)
    assert box.read() is None


def test_every_gap_is_a_new_hold_even_where_nobody_looked(box, now):
    box.put(pose())
    first = box.read().hold
    now.later(0.1)
    box.put(pose())
    assert box.read().hold == first
    box.release()
    box.put(pose())
    assert box.read().hold == first + 1
    now.later(0.3)
    box.put(pose())
    assert box.read().hold == first + 2


def test_what_is_not_finite_is_not_taken(box):
    for bad in (pose(math.nan), pose(open=math.inf), pose(also=(pose(math.inf, arm=1),))):
        box.put(bad)
    assert box.read() is None and box.refused == 3


def test_words_come_in_order_and_do_not_pile_up(box):
    for word in ["pause"] * (MOST_WORDS + 5) + ["success"]:
        box.say(word)
    words = [box.request() for _ in range(MOST_WORDS + 1)]
    assert words[-2:] == ["success", None] and words[0] == "pause"


def test_a_lost_device_says_so_until_it_is_back_and_then_takes_hold_anew(box):
    box.put(pose())
    hold = box.read().hold
    box.lose("the leader arm is gone")
    with pytest.raises(DeviceLost, match="leader arm is gone"):
        box.read()
    assert not box.reopen()
    box.lose("")
    assert box.reopen() and box.read() is None
    box.put(pose())
    assert box.read().hold == hold + 1
