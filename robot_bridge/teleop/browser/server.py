"""The server of the page that moves a robot: HTTPS and two websockets, in threads of its own that no control loop waits for.

One socket carries the person's words and what they are told, the other pictures: a picture that a slow network holds up holds up
no word, and no stop.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from policies.wire import Channel, LinkError, is_loopback
from robot_bridge.safety.operator import Operator
from robot_bridge.server.certificate import Certificate, of_machine
from robot_bridge.server.limits import Limits
from robot_bridge.server.listener import Listener
from robot_bridge.takeover import Request
from robot_bridge.teleop.browser.door import PICTURES, Door
from robot_bridge.teleop.browser.messages import MAX_BYTES, Hand, Hello, Sample, Word, parse
from robot_bridge.teleop.browser.pictures import PictureFeed, Source
from robot_bridge.teleop.browser.presence import DEAD_MAN_S, Presence
from sinew.errors import DataError

HELLO_S = 5.0
"""A connection that has not shown its secret after this is closed."""
SILENT_S = 5.0
"""A page that says nothing for this long is gone."""
AWAY_S = 3.0
"""A page that is gone for this long is not expected to come back by itself, and a new link is made."""
STATE_S = 0.1
"""Between two reports of the state to the page."""
WAIT_S = 1.0
"""For a new picture."""
MOST_REQUESTS = 16
"""Words of the person that wait to be asked for; those beyond push out the oldest."""
LIMITS = Limits(max_bytes=MAX_BYTES, max_clients=6, max_pending=12)
UNUSABLE = "this link does not work: it was used already, or is not the newest; the terminal shows the one that does"
ELSEWHERE = "the robot's page was opened elsewhere; this one does nothing any more"

log = logging.getLogger(__name__)


class PageServer:
    """Serves the page from its making until `close`.

    Args:
        host: address to listen at.
        port: 0 for any that is free.
        operator: whose emergency stop the page's button is; pressed in the thread that hears of it.
        source: has the cameras' pictures.
        state: what the page shows, as JSON can hold it; called often and returns at once.
        about: what the page shows and what does not change: arms, task.
        certificate: for TLS; None for that of this machine and user, made at first use.
        names: by which the server may be called besides those of this machine.
        dead_man_s: a person's word counts for this long.
        tell: gets lines for the terminal.

    Raises:
        InputError: the address cannot be listened at, or there is no certificate.
        MissingDependency: `websockets` is not installed.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        operator: Operator | None = None,
        source: Source = dict,
        state: Callable[[], Mapping[str, Any]] = dict,
        about: Mapping[str, Any] | None = None,
        certificate: Certificate | None = None,
        names: tuple[str, ...] = (),
        dead_man_s: float = DEAD_MAN_S,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.operator, self.source, self.state = operator or Operator(), source, state
        self.requests: deque[Request] = deque(maxlen=MOST_REQUESTS)
        self._about, self._tell, self._dead_man_s = dict(about or {}), tell, dead_man_s
        self._host, self._door = host, Door(host, names)
        self._lock = threading.Lock()
        self._open: tuple[Channel, Presence, int] | None = None
        self._visits = 0
        self._began_ns, self._closed = time.monotonic_ns(), threading.Event()
        certificate = certificate or of_machine(host)
        self.fingerprint = certificate.fingerprint
        self._listener = Listener(self._serve, host, port, self._door.front, LIMITS, timeout_s=2.0, tls=certificate.context(), origins=None)
        self.port = self._listener.port

    @property
    def link(self) -> str:
        """URL for the operator's browser; its token works once, and there is none while somebody is there."""
        name = _address_of_machine() if self._host in ("0.0.0.0", "::") else self._host
        token = self._door.token
        return f"https://{f'[{name}]' if ':' in name else name}:{self.port}/{f'#{token}' if token else ''}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the page."""
        return is_loopback(self._host)

    @property
    def present(self) -> bool:
        """Whether an operator's page is open."""
        return self.visit > 0

    @property
    def visit(self) -> int:
        """Which page is open, counted from 1; 0 where none is. A page that was loaded anew is another one."""
        there = self._open
        return 0 if there is None else there[2]

    def held(self) -> tuple[Sample | None, tuple[Hand, ...]]:
        """What the page said last, and what counts of it at this moment. Never waits."""
        there = self._open
        if there is None:
            return None, ()
        return there[1].newest, there[1].held(self._now_ns())

    def silent_s(self) -> float:
        """How old the newest word of the page is that anything is known of; infinite where there is no page."""
        sample, _ = self.held()
        return float("inf") if sample is None else (self._now_ns() - sample.heard_ns) / 1e9

    def monotonic_ns(self, stamp_ns: int) -> int:
        """A stamp of the page's on the monotonic clock."""
        return stamp_ns + self._began_ns

    def close(self) -> None:
        """Tell the page, let it go and stop listening."""
        self._closed.set()
        if there := self._open:
            stopped = f"the robot was stopped: {self.operator.pressed}. " if self.operator.pressed else ""
            _refuse(there[0], f"{stopped}This session has ended; the same command goes on with it, with a new link.")
        self._listener.close()

    def _now_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns

    # ------------------------------------------------------------ a connection's thread

    def _serve(self, channel: Channel) -> None:
        try:
            hello = parse(channel.receive(HELLO_S))
            if not isinstance(hello, Hello):
                raise DataError("the page must show its link first")
            if channel.path == PICTURES:
                self._pictures(channel, hello)
            else:
                self._control(channel, hello)
        except DataError as e:
            _refuse(channel, str(e))
        except LinkError as e:
            log.info("the page at %s is gone: %s", channel.url, e)

    def _pictures(self, channel: Channel, hello: Hello) -> None:
        """A picture for every message."""
        if not self._door.knows(hello.session):
            raise DataError(UNUSABLE)
        feed = PictureFeed(lambda: self.source())
        while self._door.knows(hello.session):  # whoever is not the operator any more sees nothing either
            channel.receive(None)  # a page that cannot show pictures asks for none, as long as it likes
            channel.send(feed.next(WAIT_S))

    def _control(self, channel: Channel, hello: Hello) -> None:
        """Listen to the operator, whoever was it before."""
        session = self._door.enter(hello.token) if hello.token else self._door.resume(hello.session)
        if not session:
            raise DataError(UNUSABLE)
        presence = Presence(self._dead_man_s)
        with self._lock:
            self._visits += 1
            before, self._open = self._open, (channel, presence, self._visits)
        if before is not None:
            threading.Thread(target=_refuse, args=(before[0], ELSEWHERE), daemon=True).start()
        try:
            told = {"kind": "welcome", "session": session, "at": self._now_ns(), "dead_man_s": self._dead_man_s}
            channel.send(json.dumps({**told, **self._about}))
            self._listen(channel, presence)
        finally:
            with self._lock:
                mine = self._open is not None and self._open[0] is channel
                self._open = None if mine else self._open
            if mine and not self._closed.wait(AWAY_S) and not self.present:
                self._door.renew()
                self._tell(f"the robot's page is closed and the robot holds; open it again at {self.link}")

    def _listen(self, channel: Channel, presence: Presence) -> None:
        told_s = 0.0
        while True:
            message = parse(channel.receive(SILENT_S))
            if isinstance(message, Word) and message.word == "e_stop":
                self.operator.press("the stop button of the page")
            elif isinstance(message, Word):
                self.requests.append(cast(Request, message.word))
            elif isinstance(message, Sample):
                presence.heard(message, self._now_ns())
            else:
                raise DataError("the page said hello twice")
            number = message.number if isinstance(message, Sample) else None
            answer: dict[str, Any] = {"kind": "heard", "at": self._now_ns(), "number": number, "lapsed": presence.lapsed()}
            if time.monotonic() - told_s > STATE_S:
                told_s = time.monotonic()
                answer["state"] = {**self.state(), "stopped": self.operator.pressed}
            channel.send(json.dumps(answer))


def _refuse(channel: Channel, why: str) -> None:
    """Say why, and close."""
    with suppress(LinkError):
        channel.send(json.dumps({"kind": "refused", "why": why}))
    channel.close()


def _address_of_machine() -> str:
    """The address by which others on the network reach this machine, as far as it can be told; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # reserved for documentation (RFC 5737): the route is looked up, no packet leaves
            return sock.getsockname()[0]
        except OSError:
            return socket.gethostname()
