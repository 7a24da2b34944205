"""Headsets and phones: an emulated WebXR device, emulated sensors and fingers, in a real browser."""

from pathlib import Path

import numpy as np
import pytest

from sinew.se3 import quaternion_to_matrix

EMULATED = (Path(__file__).parent / "emulated_xr.js").read_text()
LEFT, RIGHT = 0, 1
TRIGGER, SQUEEZE, STICK, LOWER, UPPER = 0, 1, 3, 4, 5


@pytest.fixture
def worn(page):
    """(settings) → a device, the tab, and what a person does with the controllers."""

    def begin(kind="headset", floor="true", **settings):
        device, tab = page(before=f"{EMULATED}\ndevice.kind = '{kind}'; device.floor = {floor};", **settings)
        tab.wait("!document.getElementById('enter').hidden")
        tab.click("#enter")
        tab.wait("window.device.session !== null")
        return device, tab, lambda call: tab.run(f"{{ device.{call} }}")

    return begin


def near(*position):
    return lambda given: np.allclose(given.values[:3], position, atol=1e-6)


def test_squeezing_holds_and_the_hand_moves_along_the_robots_axes(worn, after, gone):
    device, tab, do = worn()
    assert device.read() is None
    do("move(1, [0.2, 1.1, -0.4])")
    do(f"press(1, {SQUEEZE}, 1)")
    first = after(device, near(0.4, -0.2, 1.1))  # WebXR: x right, y up, z back
    assert first.kind == "pose" and first.arm == 0 and first.open is None
    do("move(1, [0.2, 1.1, -0.5], [Math.SQRT1_2, 0, Math.SQRT1_2, 0])")  # forth, and turned left about the vertical
    turned = after(device, near(0.5, -0.2, 1.1))
    assert np.allclose(turned.values[3:], (np.sqrt(0.5), 0, 0, np.sqrt(0.5))) and turned.hold == first.hold
    tab.run("document.getElementById('speed').value = 100")  # somebody at the screen turns it up: it counts from the next hold on
    do("move(1, [0.2, 1.1, -0.6])")
    after(device, near(0.6, -0.2, 1.1))
    do(f"press(1, {SQUEEZE}, 0)")
    gone(device)
    do("move(1, [5, 5, 5])")
    do(f"press(1, {SQUEEZE}, 1)")
    assert after(device, near(-10, -10, 10)).hold > first.hold
    tab.wait("device.draws > 0 && device.trouble === 0")


def test_rotations_of_the_hand_are_the_robots_about_the_same_axis(worn, after):
    device, _, do = worn()
    do(f"press(0, {SQUEEZE}, 1)")
    for turn, axis in (([1, 0, 0], [0, -1, 0]), ([0, 1, 0], [0, 0, 1]), ([0, 0, 1], [-1, 0, 0])):
        half = 0.25
        xyz = [np.sin(half) * v for v in turn]
        do(f"move(0, [0, 0, 0], [{np.cos(half)}, {xyz[0]}, {xyz[1]}, {xyz[2]}])")
        wanted = np.array([np.cos(half), *(np.sin(half) * np.array(axis))])
        given = after(device, lambda g, wanted=wanted: np.allclose(g.values[3:], wanted, atol=1e-6))
        R = quaternion_to_matrix(np.array(given.values[3:]))
        assert np.allclose(R @ np.array(axis), axis)


def test_the_trigger_closes_by_how_far_it_is_pulled_while_the_hand_holds(worn, after):
    device, tab, do = worn()
    do(f"press(1, {TRIGGER}, 1)")
    tab.run("new Promise((done) => setTimeout(done, 200))")  # frames in which it is pulled
    do(f"press(1, {TRIGGER}, 0), device.press(1, {SQUEEZE}, 1)")  # and one in which it is not and the hand holds
    assert after(device, lambda g: True).open is None
    do(f"press(1, {TRIGGER}, 0.75)")
    after(device, lambda g: g.open == 0.25)
    do(f"press(1, {TRIGGER}, 0)")
    after(device, lambda g: g.open == 1)
    after(device, lambda g: g.open is None)


def test_lost_tracking_a_recentred_origin_and_a_hidden_session_let_go_until_it_is_squeezed_anew(worn, after, gone):
    device, tab, do = worn()
    hidden = "session.dispatchEvent(new Event('visibilitychange'))"
    events = (
        ("lose(1)", "move(1, [0, 1, 0])"),
        ("move(1, [0, 1, 0]), device.controllers[1].gripSpace.at.guessed = true", "move(1, [0, 1, 0])"),
        ("space.dispatchEvent(new Event('reset'))", "move(1, [3, 1, 0])"),
        (f"session.visibilityState = 'hidden', device.{hidden}", f"session.visibilityState = 'visible', device.{hidden}"),
    )
    for lost, back in events:
        do(f"press(1, {SQUEEZE}, 1)")
        after(device, lambda g: True)
        do(lost)
        gone(device)
        do(back)
        seen = device.server.held()[0].number
        tab.wait(f"document.getElementById('headline').textContent === 'The robot holds' && {seen} > 0")
        assert device.read() is None, lost  # it is squeezed all the time
        do(f"press(1, {SQUEEZE}, 0)")
        tab.run("new Promise((done) => setTimeout(done, 100))")
    do(f"press(1, {SQUEEZE}, 1)")
    after(device, lambda g: True)


def test_two_arms_follow_two_hands_and_one_arm_the_hand_that_held_first(worn, after, gone):
    device, tab, do = worn(arms=2)
    do("move(0, [-0.2, 1, 0])")
    do("move(1, [0.2, 1, 0])")
    do(f"press(1, {SQUEEZE}, 1)")
    assert after(device, near(0, -0.2, 1)).arm == 1
    do(f"press(0, {SQUEEZE}, 1)")
    both = after(device, lambda g: g.also)
    arms = {given.arm: given for given in (both, *both.also)}
    assert near(0, 0.2, 1)(arms[0]) and near(0, -0.2, 1)(arms[1]) and arms[0].hold != arms[1].hold
    tab.run("device.session.end()")
    gone(device)


def test_buttons_are_words_and_the_stick_is_the_stop(worn, until):
    device, _, do = worn()
    for hand, button, word in ((RIGHT, LOWER, "success"), (RIGHT, UPPER, "failure"), (LEFT, LOWER, "discard"), (LEFT, UPPER, "pause")):
        do(f"press({hand}, {button}, 1)")
        assert until(device.request) == word
    assert not device.operator.pressed
    do(f"press(0, {STICK}, 1)")
    until(lambda: device.operator.pressed)


def test_a_headset_without_a_floor_works_too(worn, after):
    device, tab, do = worn(floor="false")
    do(f"press(1, {SQUEEZE}, 1)")
    assert after(device, near(0.3, 0, 1)).kind == "pose"
    tab.wait("device.draws > 0 && device.trouble === 0")


def test_a_phone_that_knows_where_it_is_moves_while_a_finger_holds_the_pad(worn, after, gone, until):
    device, tab, _ = worn("phone", size=(390, 844), mobile=True)
    tab.run("void (device.head = {p: [0, 1.5, 0], q: [1, 0, 0, 0]})")
    x, y = tab.centre("#pad")
    tab.touch("touchStart", (x, y))
    after(device, near(0, 0, 1.5))
    tab.run("void (device.head = {p: [0.1, 1.6, -0.2], q: [1, 0, 0, 0]})")
    after(device, near(0.2, -0.1, 1.6))
    tab.touch("touchMove", (x, y - 80))  # the finger does not move what the phone moves
    given = after(device, near(0.2, -0.1, 1.6))
    assert until(lambda: (sample := device.server.held()[0]) and sample.number > given.seq + 3 and sample.device == "phone")
    assert near(0.2, -0.1, 1.6)(after(device, lambda g: True))
    tab.run("void (device.head = null)")  # it has lost track
    gone(device)
    tab.touch("touchEnd")
    tab.click("#enter")
    tab.wait("device.session === null && !document.body.classList.contains('see-through')")


def test_a_phone_without_it_turns_the_tool_by_its_sensors(page, tab, after, gone):
    device, tab = page(size=(390, 844), mobile=True)
    tab.ask("DeviceOrientation.setDeviceOrientationOverride", alpha=30, beta=0, gamma=0)
    tab.click("#turning")
    tab.wait("document.getElementById('turning').getAttribute('aria-pressed') === 'true'")
    pad = tab.centre("#pad")
    tab.touch("touchStart", pad)
    first = after(device, lambda g: True)
    assert np.allclose(first.values, (0, 0, 0, 1, 0, 0, 0), atol=1e-6)  # whichever way north is
    tab.ask("DeviceOrientation.setDeviceOrientationOverride", alpha=50, beta=0, gamma=0)
    half = np.radians(10)
    after(device, lambda g: np.allclose(g.values[3:], (np.cos(half), 0, 0, np.sin(half)), atol=1e-4))
    tab.ask("DeviceOrientation.setDeviceOrientationOverride", alpha=30, beta=20, gamma=0)  # its upper edge up: nose up, about its left
    after(device, lambda g: np.allclose(g.values[3:], (np.cos(half), 0, -np.sin(half), 0), atol=1e-4))
    tab.touch("touchMove", (pad[0], pad[1] - 40))
    after(device, near(0.02, 0, 0))
    tab.touch("touchEnd")
    gone(device)
