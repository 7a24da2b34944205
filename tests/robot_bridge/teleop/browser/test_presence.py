import math
import random
import re

import pytest

from robot_bridge.teleop.browser.messages import Hand, Hello, Sample, Word, parse
from robot_bridge.teleop.browser.presence import Presence
from sinew.errors import DataError

MS = 1_000_000
STILL = (0.0,) * 6


def said(number, heard_ms, *grips):
    return Sample(number, heard_ms * MS, "pointer", tuple(Hand(arm, grip, rate=STILL) for arm, grip in enumerate(grips)))


def grips(presence, now_ms):
    return [hand.grip for hand in presence.held(now_ms * MS)]


@pytest.fixture
def presence():
    """A connection whose page has said that nobody holds."""
    opened = Presence(0.2)
    opened.heard(said(1, 0), 0)
    return opened


def test_a_word_counts_for_200_ms_after_the_stamp_that_it_repeats(presence):
    presence.heard(said(2, 100, 1), 150 * MS)
    assert grips(presence, 150) == grips(presence, 300) == [1]
    assert grips(presence, 301) == []


def test_letting_go_counts_at_once(presence):
    presence.heard(said(2, 100, 1), 110 * MS)
    presence.heard(said(3, 110), 120 * MS)
    assert grips(presence, 120) == [] and not presence.lapsed()


def test_what_lapsed_comes_to_life_by_taking_hold_anew_only(presence):
    presence.heard(said(2, 100, 1), 110 * MS)
    presence.heard(said(3, 400, 1), 410 * MS)  # nothing came for longer than it counts
    assert grips(presence, 410) == [] and presence.lapsed()
    presence.heard(said(4, 420, 1), 430 * MS)
    assert grips(presence, 430) == [] and presence.lapsed()
    presence.heard(said(5, 440), 450 * MS)
    assert not presence.lapsed()
    presence.heard(said(6, 450, 2), 460 * MS)
    assert grips(presence, 460) == [2]


def test_a_slow_network_in_either_direction_holds_the_robot(presence):
    for i in range(10):  # words arrive every 20 ms, each repeating a stamp that is 210 ms old
        presence.heard(said(2 + i, 100 + 20 * i, 1), (310 + 20 * i) * MS)
        assert grips(presence, 310 + 20 * i) == []
    assert presence.lapsed()


def test_a_burst_of_old_words_after_a_stall_moves_nothing(presence):
    presence.heard(said(2, 100, 1), 105 * MS)
    for i in range(40):  # said while nothing got through; the last of them let go and took hold again
        presence.heard(said(3 + i, 100, 1 if i < 20 else 2), 1500 * MS)
        assert grips(presence, 1500) == []


def test_a_page_that_holds_when_it_comes_must_let_go_first():
    opened = Presence(0.2)
    opened.heard(said(1, 0, 7), 0)
    assert grips(opened, 0) == [] and opened.lapsed()
    opened.heard(said(2, 10, 8), 10 * MS)
    assert grips(opened, 10) == [8]


def test_old_and_repeated_numbers_and_stamps_of_the_future_are_ignored(presence):
    presence.heard(said(5, 100, 1), 110 * MS)
    presence.heard(said(5, 110), 120 * MS)
    presence.heard(said(4, 110), 120 * MS)
    assert grips(presence, 120) == [1]
    presence.heard(said(6, 500, 2), 130 * MS)
    assert grips(presence, 130) == [] and grips(presence, 500) == []


def test_two_hands_hold_by_themselves(presence):
    presence.heard(said(2, 100, 1, 2), 110 * MS)
    presence.heard(said(3, 120, 1, 0), 130 * MS)
    assert grips(presence, 130) == [1]


GOOD = '{"kind":"sample","number":3,"heard":0,"device":"headset","hands":[{"arm":0,"grip":1,"pose":[0,0,0,1,0,0,0],"open":0.5}]}'


def test_messages_of_the_page_are_understood():
    assert parse(GOOD) == Sample(3, 0, "headset", (Hand(0, 1, pose=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0), open=0.5),))
    assert parse('{"kind":"word","word":"e_stop"}') == Word("e_stop")
    assert parse('{"kind":"hello","token":"a"}') == Hello(token="a")


WRONG = [
    "", "{", "[]", "null", "7", '"sample"', "[" * 3000, '{"kind":"sample"}', '{"kind":"word","word":"rm -rf"}', '{"kind":"word","word":{}}',
    '{"kind":"hello","token":7}', '{"kind":"hello","token":"é"}', '{"kind":"hello","token":"' + "a" * 300 + '"}', '{"kind":"goodbye"}',
    GOOD.replace("[0,0,0,1,0,0,0]", "[0,0,0,0,0,0,0]"), GOOD.replace("[0,0,0,1,0,0,0]", "[0,0,0,1,0,0]"),
    GOOD.replace("[0,0,0,1,0,0,0]", "[1e9,0,0,1,0,0,0]"), GOOD.replace("[0,0,0,1,0,0,0]", "[NaN,0,0,1,0,0,0]"),
    GOOD.replace("[0,0,0,1,0,0,0]", "null"), GOOD.replace('"pose"', '"rate"'), GOOD.replace('"arm":0', '"arm":-1'),
    GOOD.replace('"arm":0', '"arm":true'), GOOD.replace('"number":3', '"number":1.5'), GOOD.replace('"number":3', '"number":1e400'),
    GOOD.replace("headset", "mind"), GOOD.replace('"open":0.5', '"open":Infinity'), GOOD.replace('"open":0.5', '"open":"wide"'),
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_message_is_refused(text):
    with pytest.raises(DataError):
        parse(text)


def test_whatever_comes_becomes_a_message_of_finite_numbers_or_an_error():
    rng = random.Random(0)
    values = ("null", "true", "-1", "1e999", "1e-320", "NaN", "[]", "{}", '""', "0.5", "[1,2,3,4,5,6,7]", "9" * 400)
    understood = 0
    for _ in range(3000):
        parts = re.split(r"(?<=[:,\[{])|(?=[,\]}])", GOOD)
        for _ in range(rng.randint(1, 3)):
            parts[rng.randrange(len(parts))] = rng.choice(values)
        try:
            message = parse("".join(parts))
        except DataError:
            continue
        understood += 1
        for hand in message.hands if isinstance(message, Sample) else ():
            assert all(math.isfinite(v) for v in (*(hand.pose or hand.rate or ()), hand.open or 0.0))
    assert understood > 10
