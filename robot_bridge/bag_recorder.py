"""Records every topic of a ROS 2 graph into an MCAP bag, as bytes; in a process of its own where a robot is controlled.

Topics are looked for all the time. A subscription asks for what the topic's publishers offer, so that nothing is lost of a
reliable one and one of best effort is heard at all.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from demos.bags import BagWriter, Topic
from robot_bridge.dds.messages import ROS_DISTRO, definition, full_name, type_hash
from robot_bridge.transport import Endpoint, Profile, Subscription, Transport
from sinew.errors import InputError

LOOK_S = 0.2
"""Between two looks for new topics."""
WAIT_S = 0.1
DEPTH, DEPTH_LARGE = 1000, 30
"""Messages of a topic that may wait while the disk is busy; of pictures and point clouds fewer."""
LARGE = ("Image", "PointCloud2", "PointCloud")
READY = "recording"
"""First word of the line that the process says when it listens."""

log = logging.getLogger("robot_bridge")


class BagRecorder:
    """Writes what comes on the topics of a graph; a context manager.

    Args:
        node: of its own, closed with the recorder.
        path: as `BagWriter` has it.
        topics: names that are wanted; None for all. They may appear later.

    Raises:
        InputError: the path is taken or cannot be written.
    """

    def __init__(self, node: Transport, path: Path | str, *, topics: Collection[str] | None = None) -> None:
        self._node, self._wanted = node, None if topics is None else {node.resolve(name) for name in topics}
        self.writer = BagWriter(path, distribution=os.environ.get("ROS_DISTRO", ROS_DISTRO))
        self.trouble = ""
        """Why nothing is written any more; empty while all is well."""
        self.passed_over: dict[str, str] = {}
        """Topics that are not recorded, and why."""
        self._lock = threading.Lock()  # around the writer
        self._quit = threading.Event()
        self._threads: list[threading.Thread] = []
        self._heard: set[str] = set()
        self._look()
        self._start(self._keep_looking, "look for topics")

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics that are recorded."""
        return tuple(sorted(self._heard))

    def put(self, topic: Topic, data: bytes, stamp_ns: int | None = None) -> None:
        """Write a message of our own into the bag, which is on no network."""
        with self._lock:
            self.writer.add(topic)
            self.writer.write(topic.name, time.time_ns() if stamp_ns is None else stamp_ns, data)

    def close(self) -> None:
        """Write what has come, finish the bag and leave the graph.

        Raises:
            InputError: something could not be written.
        """
        if self._quit.is_set():
            return
        self._quit.set()
        for thread in self._threads:
            thread.join()
        self._node.close()
        self.writer.close()
        if self.trouble:
            raise InputError(self.trouble)

    def __enter__(self) -> BagRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ inside

    def _keep_looking(self) -> None:
        while not self._quit.wait(LOOK_S):
            self._look()
            with self._lock:
                self._written(self.writer.tick)

    def _look(self) -> None:
        offered: dict[str, list[Endpoint]] = {}
        for endpoint in self._node.endpoints():
            if endpoint.publishes and (self._wanted is None or endpoint.name in self._wanted):
                offered.setdefault(endpoint.name, []).append(endpoint)
        for name in sorted(offered.keys() - self._heard - self.passed_over.keys()):
            try:
                self._record(name, offered[name])
            except InputError as e:
                self.passed_over[name] = str(e)
                log.warning("%s is not recorded: %s", name, e)

    def _record(self, name: str, publishers: list[Endpoint]) -> None:
        message = full_name(publishers[0].message)
        reliable, latched = all(p.profile.reliable for p in publishers), all(p.profile.latched for p in publishers)
        depth = DEPTH_LARGE if message.endswith(LARGE) else DEPTH
        subscription = self._node.subscription(name, publishers[0].message, Profile(reliable=reliable, depth=depth, latched=latched))
        topic = Topic(
            name=name, type=message, definition=definition(message), type_hash=type_hash(message), reliable=reliable, latched=latched,
            depth=publishers[0].profile.depth or 10,
        )  # fmt: skip
        self._heard.add(name)
        with self._lock:
            self.writer.add(topic)
        self._start(lambda: self._listen(subscription, name), f"record {name}")

    def _listen(self, subscription: Subscription, name: str) -> None:
        while not self._quit.is_set():
            if subscription.wait(WAIT_S):
                self._take(subscription, name)
        self._take(subscription, name)

    def _take(self, subscription: Subscription, name: str) -> None:
        samples = subscription.take(DEPTH)
        with self._lock:
            now_ns = time.time_ns()
            for sample in samples:
                self._written(lambda s=sample: self.writer.write(name, now_ns, s.data, s.source_ns))

    def _written(self, write: Callable[[], None]) -> None:
        if self.trouble:
            return
        try:
            write()
        except InputError as e:
            self.trouble = str(e)
            log.warning("%s", e)

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


@contextmanager
def recorded(
    path: Path | str, *, backend: str = "dds", domain: int | None = None, reach: str | None = None, contract: str = ""
) -> Iterator[None]:
    """Record every topic meanwhile, by `sinew data record` in a process of its own: whoever controls a robot is not held up.

    The process ends with this one, however that ends, and leaves a whole bag.

    Args:
        path: new bag.
        backend: transport, "dds" or "ros2".
        domain: None for ROS_DOMAIN_ID.
        reach: None for ROS_AUTOMATIC_DISCOVERY_RANGE.
        contract: name or file of a robot, kept in the bag; empty for none.

    Raises:
        InputError: it could not begin, or told of trouble at its end.
    """
    command = [sys.executable, "-m", "sinew", "data", "record", "--out", str(path), "--transport", backend, "--with-parent"]
    command += ["--domain", str(domain)] if domain is not None else []
    command += ["--reach", reach] if reach is not None else []
    command += ["--contract", contract] if contract else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.readline().strip()
    if not said.startswith(READY):
        process.kill()
        process.communicate()
        raise InputError(f"--mcap {path}: {said.removeprefix('sinew: ') or 'the recorder ended without a word'}")
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    reading.start()
    try:
        yield
    finally:
        process.terminate()
        code = process.wait(30)
        reading.join()
    if code:
        raise InputError(f"--mcap {path}: {(lines or ['the recorder failed'])[-1].strip().removeprefix('sinew: ')}")
