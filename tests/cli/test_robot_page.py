"""What the command line says of the page that moves a robot, and what it refuses."""

import socket

import cv2
import numpy as np
import pytest

import sim
from sinew.cli import robot_page
from sinew.errors import InputError


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def opened():
    """(device, listen) → what is said, and the page."""
    pages = []

    def begin(device, listen):
        said: list[str] = []
        pages.append(robot_page.open_page(device, listen, said.append, sim.make_interface("lift"), frame="world", arms=1))
        return said, pages[-1]

    yield begin
    for page in pages:
        page.close()


def test_the_link_stands_on_a_line_of_its_own_and_this_machine_alone_is_let_in(opened):
    said, page = opened("browser", "127.0.0.1:0")
    lines = "\n".join(said).splitlines()
    assert page.server.link in lines and page.server.fingerprint in lines
    assert not any("EVERYBODY" in line for line in lines)


def test_a_page_that_is_open_to_the_network_says_so_loudly_and_gives_an_address_that_others_can_use(opened):
    said, page = opened("phone", "0.0.0.0:0")
    assert any("EVERYBODY ON THIS NETWORK" in line for line in said) and "0.0.0.0" not in page.server.link
    code = next(text for text in said if "█" in text)
    half = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}
    rows = np.array([[half[c] for c in line] for line in code.splitlines()], np.uint8)  # (lines, columns, 2 rows)
    picture = rows.transpose(0, 2, 1).reshape(-1, rows.shape[1])
    large = cv2.copyMakeBorder(np.kron(picture, np.ones((6, 6), np.uint8)), 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=255)
    assert cv2.QRCodeDetector().detectAndDecode(large)[0] == page.server.link


def test_a_phone_and_a_page_that_only_this_machine_reaches_get_a_hint(opened):
    said, page = opened("phone", "127.0.0.1:0")
    assert any(f"adb reverse tcp:{page.server.port}" in line for line in said)


def test_a_taken_port_is_said_in_one_line(opened):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another --listen"):
        opened("browser", f"127.0.0.1:{taken.getsockname()[1]}")


WRONG = [
    (["--teleop", "browser", "--listen", "8443"], "HOST:PORT"),
    (["--teleop", "browser", "--listen", "127.0.0.1:99999"], "HOST:PORT"),
    (["--teleop", "browser", "--listen", "203.0.113.7:0"], "choose another --listen"),
    (["--teleop", "keyboard", "--listen", "127.0.0.1:0"], "--listen"),
    (["--listen", "127.0.0.1:0"], "--listen"),
]


@pytest.mark.parametrize(("argv", "said"), WRONG)
def test_wrong_addresses_are_said_in_one_line(argv, said, refused, tmp_path):
    assert said in refused(["collect", "--task", "lift", "--out", tmp_path / "x", *argv])
    assert not (tmp_path / "x").exists()
