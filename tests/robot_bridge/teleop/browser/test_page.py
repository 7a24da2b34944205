"""The page in a real browser: what a hand does there arrives as a device's word, and what is let go holds."""

import numpy as np
import pytest

from robot_bridge.takeover import DeviceLost


def test_the_pad_moves_by_what_it_is_dragged_and_holds_when_it_is_let_go(page, after, gone):
    device, tab = page()
    assert "#" not in tab.run("location.href")
    x, y = tab.centre("#pad")
    tab.mouse("mousePressed", x, y)
    first = after(device, lambda g: True)
    assert first.kind == "pose" and first.values == (0, 0, 0, 1, 0, 0, 0) and first.frame == "world" and first.open is None
    tab.mouse("mouseMoved", x - 40, y - 60, held=True)
    after(device, lambda g: np.allclose(g.values, (0.03, 0.02, 0, 1, 0, 0, 0)))
    assert tab.text("headline") == "You move the robot"
    tab.run("document.getElementById('pad').dispatchEvent(new WheelEvent('wheel', {deltaY: -100, cancelable: true}))")
    after(device, lambda g: np.allclose(g.values[:3], (0.03, 0.02, 0.02)))
    tab.mouse("mouseReleased", x - 40, y - 60)
    gone(device)
    tab.mouse("mousePressed", x, y)
    again = after(device, lambda g: True)
    assert again.hold > first.hold and again.seq > first.seq and again.stamp_ns > first.stamp_ns
    tab.mouse("mouseReleased", x, y)


def test_strips_are_for_height_and_turning_and_the_side_turns_all(page, after, gone):
    device, tab = page()
    tab.run("(s => { s.value = 'facing'; s.onchange(); })(document.getElementById('side'))")
    for part, (dx, dy), wanted in (
        ("#height", (0, -50), (0, 0, 0.025, 1, 0, 0, 0)),
        ("#turn", (-100, 0), (0, 0, 0.025, np.cos(0.3), 0, 0, np.sin(0.3))),
        ("#pad", (0, -50), (-0.025, 0, 0.025, np.cos(0.3), 0, 0, np.sin(0.3))),
    ):
        x, y = tab.centre(part)
        tab.mouse("mousePressed", x, y)
        tab.mouse("mouseMoved", x + dx, y + dy, held=True)
        after(device, lambda g, wanted=wanted: np.allclose(g.values, wanted, atol=1e-6))
        tab.mouse("mouseReleased", x, y)
        gone(device)


def test_keys_move_while_they_are_down_and_words_are_said(page, until, after, gone):
    device, tab = page(arms=2)
    tab.key("keyDown", "KeyI")
    after(device, lambda g: g.kind == "steps" and np.allclose(g.values, (0.5, 0, 0, 0, 0, 0)))
    tab.key("keyDown", "PageUp")
    after(device, lambda g: np.allclose(g.values, (0.5, 0, 0.5, 0, 0, 0)) and g.arm == 0)
    tab.key("keyUp", "KeyI")
    after(device, lambda g: np.allclose(g.values, (0, 0, 0.5, 0, 0, 0)))
    tab.run("dispatchEvent(new Event('blur'))")  # the window is left with a key down
    gone(device)
    tab.key("keyUp", "PageUp")
    tab.key("keyDown", "KeyG")
    tab.key("keyUp", "KeyG")
    after(device, lambda g: g.open == 0 and g.values == (0,) * 6)
    gone(device)
    tab.key("keyDown", "KeyB")
    tab.click("[data-open='1']")
    after(device, lambda g: g.open == 1 and g.arm == 1)
    for code in ("KeyY", "KeyX", "KeyR", "KeyP", "KeyQ"):
        tab.key("keyDown", code)
        tab.key("keyUp", code)
    tab.click("[data-word='success']")
    words = ["success", "failure", "discard", "pause", "stop", "success"]
    until(lambda: len(device.server.requests) == len(words))
    assert [device.request() for _ in words] == words and device.request() is None
    tab.key("keyDown", "Escape")
    until(lambda: device.operator.pressed)
    tab.wait("document.getElementById('headline').textContent === 'Stopped'")


GAMEPAD = """
window.pad = {id: 'Test pad (0001)', index: 0, connected: true, mapping: 'standard', axes: [0, 0, 0, 0],
              buttons: Array.from({length: 17}, () => ({pressed: false, value: 0}))};
navigator.getGamepads = () => [null, window.pad];
window.push = (i, on) => { window.pad.buttons[i] = {pressed: on, value: Number(on)}; };
"""


def test_a_gamepad_moves_while_its_shoulder_is_held(page, until, after, gone):
    device, tab = page(before=GAMEPAD)
    tab.wait("document.getElementById('pad-name').textContent === 'gamepad: Test pad'")
    tab.run("pad.axes = [0.1, -1, 0, 1]")
    tab.run("push(4, true)")
    after(device, lambda g: g.kind == "steps" and np.allclose(g.values, (0.5, 0, -0.5, 0, 0, 0)))  # 0.1 is no deflection
    tab.run("push(7, true)")
    after(device, lambda g: g.open == 0)
    tab.run("push(7, false)")
    after(device, lambda g: g.open is None)
    tab.run("push(4, false)")
    gone(device)
    tab.run("push(0, true)")
    assert until(device.request) == "success"
    tab.run("push(4, true)")
    after(device, lambda g: True)
    tab.run("pad.connected = false")  # its battery is empty
    gone(device)


def test_a_page_that_stands_still_lapses_and_takes_hold_anew(page, until, after, gone):
    device, tab = page(dead_man_s=1.0)
    x, y = tab.centre("#pad")
    tab.mouse("mousePressed", x, y)
    held = after(device, lambda g: True).hold
    tab.run("(() => { const end = performance.now() + 1500; while (performance.now() < end); })()")  # as a machine that sleeps
    gone(device)
    tab.mouse("mouseMoved", x, y - 5, held=True)
    tab.wait("document.getElementById('headline').textContent === 'Let go, then take hold again'")
    assert device.read() is None
    tab.mouse("mouseReleased", x, y)

    def anew():
        tab.mouse("mousePressed", x, y)
        given = device.read()
        if given is None:
            tab.mouse("mouseReleased", x, y)
        return given

    assert until(anew).hold > held


def test_a_hidden_page_lets_go(page, after, gone):
    device, tab = page()
    tab.key("keyDown", "KeyI")
    after(device, lambda g: True)
    tab.run("Object.defineProperty(document, 'hidden', {value: true}); document.dispatchEvent(new Event('visibilitychange'))")
    gone(device)
    assert device.server.present


def test_a_closed_page_holds_and_asks_for_a_pause_of_what_is_recorded(page, until, after, gone):
    device, tab = page()
    device.show(dict, lambda: {"recording": True, "kept": 1, "episodes": 3})
    tab.wait("document.getElementById('recording').classList.contains('on')")
    assert tab.text("episode") == "1 of 3 kept"
    tab.key("keyDown", "KeyI")
    after(device, lambda g: True)
    tab.open("about:blank")
    gone(device)
    until(lambda: not device.server.present)
    assert device.read() is None and device.request() == "pause" and device.request() is None


def test_a_reloaded_page_is_the_same_operator_and_a_used_link_is_told_so(page, browser, until):
    device, tab = page()
    device.show(dict, lambda: {"recording": True})
    device.read()
    link, before = device.server.link, device.server.visit
    tab.ask("Page.reload")  # it may be there again before anybody notices that it was gone
    until(lambda: device.server.visit > before)
    tab.wait("document.body?.dataset.phase === 'there'")
    assert device.read() is None and device.request() == "pause" and device.request() is None
    other = type(tab)(browser)
    try:
        other.open(link)
        other.wait("document.body?.dataset.phase === 'refused'")
        assert "open the link that the terminal shows" in other.text("explanation")
        other.open(f"{link}#a-token-that-was-used-before")  # in the same tab
        other.wait("document.getElementById('explanation')?.textContent.includes('used already')")
        assert "#" not in other.run("location.href")
    finally:
        other.close()
    until(lambda: device.server.present)
    device.close()
    tab.wait("document.getElementById('headline').textContent === 'The session is over'")


def test_pictures_are_shown_and_what_stops_coming_says_so(page):
    device, tab = page()
    assert tab.run("document.querySelector('.empty') !== null")
    shown = {"front": np.full((48, 64, 3), (200, 30, 40), np.uint8), "wrist": np.full((300, 900, 3), 90, np.uint8)}
    device.show(lambda: dict(shown), dict)
    tab.wait("document.querySelectorAll('figure').length === 2")
    tab.wait("document.querySelector('[data-camera=wrist] canvas').width === 640")  # 900 is more than a page needs
    pixel = "[...document.querySelector('[data-camera=front] canvas').getContext('2d').getImageData(9, 9, 1, 1).data]"
    tab.wait(f"({pixel})[0] > 0")
    assert np.abs(np.array(tab.run(pixel)[:3]) - (200, 30, 40)).max() < 8
    tab.wait("document.querySelectorAll('figure.stale').length === 2")
    shown["front"] = np.full((48, 64, 3), (10, 220, 10), np.uint8)
    tab.wait(f"({pixel})[1] > 200")
    tab.click("[data-camera=wrist]")
    tab.wait("document.querySelector('figure.large').dataset.camera === 'wrist'")


@pytest.mark.parametrize(("size", "mobile"), [((390, 844), True), ((844, 390), True), ((320, 640), True), ((1280, 800), False)])
def test_everything_that_matters_is_in_reach(page, size, mobile):
    device, tab = page(size, mobile)
    device.show(lambda: {"front": np.zeros((48, 64, 3), np.uint8)}, dict)
    tab.wait("document.querySelectorAll('figure').length === 1")
    assert tab.run("document.documentElement.scrollWidth") <= size[0]
    box = "(r => [r.left, r.top, r.right, r.bottom])(document.querySelector({!r}).getBoundingClientRect())"
    for selector in ("#stop", "#pad", "#height", "#status", "[data-word=success]"):
        left, top, right, bottom = tab.run(box.format(selector))
        assert left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1], (selector, left, top, right, bottom)
        assert right - left >= 40 and bottom - top >= 36, selector
    named = "[...document.querySelectorAll('button, [role], input, select')].every(e => (e.getAttribute('aria-label') || e.textContent"
    assert tab.run(f"{named} || e.closest('label')?.textContent || '').trim())")


def test_fingers_hold_and_the_last_one_lets_go(page, after, gone):
    device, tab = page((390, 844), True)
    pad, height = tab.centre("#pad"), tab.centre("#height")
    tab.touch("touchStart", pad)
    tab.touch("touchMove", (pad[0], pad[1] - 40))
    after(device, lambda g: np.allclose(g.values[:3], (0.02, 0, 0), atol=1e-6))
    tab.touch("touchStart", (pad[0], pad[1] - 40), height)
    tab.touch("touchMove", (pad[0], pad[1] - 40), (height[0], height[1] - 20))
    after(device, lambda g: np.allclose(g.values[:3], (0.02, 0, 0.01), atol=1e-6))
    tab.touch("touchEnd")
    gone(device)


def test_whoever_watches_over_a_policy_takes_over_and_must_be_there(page, after, until):
    device, tab = page(watched=True)
    tab.wait("document.getElementById('headline').textContent === 'You watch over the policy'")
    assert device.read() is None and device.reopen()
    tab.key("keyDown", "KeyI")
    after(device, lambda g: g.values[0] == 0.5)
    held = device.server.held

    def stuttered():  # the same words, none of which counts
        return held()[0], ()

    device.server.held = stuttered
    after(device, lambda g: g.values == (0,) * 6)  # the person still holds: the policy does not go on
    device.server.held = held
    tab.key("keyUp", "KeyI")
    until(lambda: device.read() is None)
    tab.open("about:blank")
    until(lambda: not device.reopen())
    with pytest.raises(DeviceLost, match=r"not open|does not answer"):
        device.read()
    with pytest.raises(DeviceLost):
        device.request()
