"""A real browser without a window, driven through its DevTools protocol, and servers of the page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from robot_bridge.takeover import Given
from robot_bridge.teleop.browser.device import BrowserTakeover
from robot_bridge.teleop.browser.server import PageServer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEADLINE_S = 60.0
PATIENT_S = 20.0
"""A dead man who waits for a machine that does other things; the page lets go by itself where the tests expect it to."""
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-extensions", "--mute-audio", "--no-proxy-server", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
    "--remote-debugging-port=0", "about:blank",
)  # fmt: skip


def wait_for(condition: Callable[[], Any], what: str = "it", timeout_s: float = DEADLINE_S) -> Any:
    """What `condition` gives, once it is something."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)
    return found


class LeavingError(AssertionError):
    """A page was asked while another takes its place."""


class Tab:
    """One page of the browser."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")
        self.ask("Runtime.enable")
        self.ask("Log.enable")
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)

    def ask(self, method: str, **arguments: Any) -> Any:
        return self._browser.ask(method, session=self._session, **arguments)

    def run(self, script: str) -> Any:
        """The value of an expression, which may be a promise."""
        told = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def before_each_page(self, script: str) -> None:
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def text(self, element: str) -> str:
        return self.run(f"document.getElementById({element!r})?.textContent ?? ''")

    def wait(self, script: str) -> Any:
        def now() -> Any:
            try:
                return self.run(script)
            except LeavingError:
                return None

        return wait_for(now, script)

    def screen(self, width: int, height: int, mobile: bool = False) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=mobile, maxTouchPoints=5 if mobile else 1)

    def centre(self, selector: str) -> tuple[float, float]:
        box = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())")
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        down = kind != "mouseReleased" and more.pop("held", kind == "mousePressed")
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=int(down), clickCount=1, **more)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'nearest'}})")
        x, y = self.centre(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def key(self, kind: str, code: str) -> None:
        self.ask("Input.dispatchKeyEvent", type=kind, code=code, key=code)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)])

    def picture(self, path: Path) -> None:
        path.write_bytes(b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._browser.ask("Target.closeTarget", targetId=self.target)

    @property
    def complaints(self) -> list[str]:
        """What the browser's console says is wrong."""
        return [text for session, text in self._browser.complaints if session == self._session]


class Browser:
    """Chromium; commands are answered in order, events are kept where they are complaints."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        command = [CHROMIUM, f"--user-data-dir={folder}", "--ignore-certificate-errors", *FLAGS]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(folder)}
        )
        port_file = folder / "DevToolsActivePort"
        port, path = wait_for(lambda: port_file.exists() and len(lines := port_file.read_text().split()) == 2 and lines, "the browser")
        self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=DEADLINE_S, proxy=None)
        self._lock, self._number = threading.Lock(), 0
        self.complaints: list[tuple[str, str]] = []

    def ask(self, method: str, session: str = "", **arguments: Any) -> Any:
        with self._lock:
            self._number += 1
            self._socket.send(
                json.dumps({"id": self._number, "method": method, "params": arguments} | ({"sessionId": session} if session else {}))
            )
            while True:
                message = json.loads(self._socket.recv(DEADLINE_S))
                self._note(message)
                if message.get("id") == self._number:
                    error = message.get("error")
                    if error and any(said in error["message"] for said in ("navigated", "context")):
                        raise LeavingError(method, error)
                    assert not error, (method, error)
                    return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.complaints.append((message["sessionId"], details.get("exception", {}).get("description", details["text"])))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.complaints.append((message["sessionId"], message["params"]["entry"]["text"]))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: sudo apt-get install chromium")
    running = Browser(tmp_path_factory.mktemp("browser"))
    yield running
    running.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    opened = Tab(browser)
    yield opened
    opened.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    return wait_for


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate of the tests is not the user's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def serving() -> Iterator[Callable[..., PageServer]]:
    """Start a server of the page; it is closed afterwards."""
    running: list[PageServer] = []

    def start(**settings: Any) -> PageServer:
        running.append(PageServer(**settings))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def page(tab: Tab) -> Iterator[Callable[..., tuple[BrowserTakeover, Tab]]]:
    """Open a device's page; at the end the browser must have had nothing to complain of."""
    opened = []

    def begin(size: tuple[int, int] = (1280, 800), mobile: bool = False, before: str = "", **settings: Any) -> tuple[BrowserTakeover, Tab]:
        device = BrowserTakeover(**{"dead_man_s": PATIENT_S, **settings})
        opened.append(device)
        tab.screen(*size, mobile)
        if before:
            tab.before_each_page(before)
        tab.open(device.server.link)
        tab.wait("document.body?.dataset.phase === 'there'")
        return device, tab

    yield begin
    for device in opened:
        device.close()
    assert not [text for text in tab.complaints if "ERR_CONNECTION" not in text]


@pytest.fixture
def after() -> Callable[..., Given]:
    """What a device gives once it is as a condition says."""

    def wait(device: BrowserTakeover, condition: Callable[[Given], Any]) -> Given:
        return wait_for(lambda: (given := device.read()) is not None and condition(given) and given)

    return wait


@pytest.fixture
def gone() -> Callable[[BrowserTakeover], None]:
    """Wait until a device gives nothing."""
    return lambda device: wait_for(lambda: device.read() is None)
