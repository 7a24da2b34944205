"""A bad network before a TCP server, in user space: what is sent waits, stands still or is cut off."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import replace

from robot_bridge.faults.link import CLEAR, Link, LinkFaults

RETRANSMISSION_S = 0.2
"""What a lost segment costs: TCP's shortest retransmission time-out on Linux."""
CHUNK_BYTES = 65536
IDLE_S = 0.05
MOST_WAITING = 4 * 2**20
"""Bytes on their way in one direction after which no more are taken, as a full network window does."""


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, seed: int) -> None:
        self.source, self.sink = source, sink
        self.link: Link[bytes] = Link(seed=seed)
        self.left = bytearray()
        """Bytes that are due and that the sink did not take yet."""
        self.waiting = 0
        self.ended = False

    @property
    def hungry(self) -> bool:
        """Whether more may be read."""
        return not self.ended and self.waiting < MOST_WAITING

    def take(self, faults: LinkFaults, now_ns: int) -> None:
        """Read what has come; a lost segment delays itself and all behind it, as TCP delivers in order."""
        data = self.source.recv(CHUNK_BYTES)
        self.ended = not data
        lost = self.link.chance() < faults.loss
        extra = RETRANSMISSION_S if lost else 0.0
        self.link.faults = replace(faults, loss=0.0, partition=False, delay_s=faults.delay_s + extra, duplicate=0.0, reorder=0.0)
        self.link.put(data, now_ns)
        self.waiting += len(data)

    def give(self, now_ns: int) -> None:
        """Pass on what is due."""
        for data in self.link.due(now_ns):
            self.waiting -= len(data)
            self.left += data
            if not data:
                self._flush()
                with contextlib.suppress(OSError):
                    self.sink.shutdown(socket.SHUT_WR)
        self._flush()

    def _flush(self) -> None:
        if self.left:
            with contextlib.suppress(BlockingIOError):
                del self.left[: self.sink.send(self.left)]


class TcpProxy:
    """Listens on this machine and passes connections on, from its making until `close`.

    Delay and jitter act on every piece; a loss delays by a retransmission; in a partition nothing moves and nothing is
    refused, as with a pulled cable; duplication and reordering do not exist above TCP and change nothing.

    Args:
        host: of the server behind.
        port: of the server behind.
        seed: of every chance.
    """

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self._server, self._seed = (host, port), seed
        self.faults = CLEAR
        self.back: LinkFaults | None = None
        self.connections = 0
        """Connections taken so far."""
        self._pipes: list[_Pipe] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcp proxy", daemon=True)
        self._thread.start()

    def set(self, faults: LinkFaults = CLEAR, *, back: LinkFaults | None = None) -> None:
        """Faults from now on: towards the server, and `back`, the same if left out."""
        self.faults, self.back = faults, back

    def cut(self) -> None:
        """Reset every open connection."""
        with self._lock:
            for pipe in self._pipes:
                with contextlib.suppress(OSError):
                    pipe.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                pipe.source.close()
            self._pipes.clear()

    def close(self) -> None:
        """Stop listening and reset what is open."""
        self._quit.set()
        self._thread.join()
        self._listener.close()
        self.cut()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ the proxy's thread

    def _run(self) -> None:
        while not self._quit.is_set():
            with self._lock:
                pipes = list(self._pipes)
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                for i, pipe in enumerate(pipes):
                    if pipe.hungry and not self._of(i).partition:
                        with contextlib.suppress(ValueError):  # cut a moment ago
                            selector.register(pipe.source, selectors.EVENT_READ, (i, pipe))
                ready = selector.select(self._patience_s(pipes))
            with self._lock:
                for key, _ in ready:
                    self._work(key.data)
                self._pass_on()

    def _of(self, index: int) -> LinkFaults:
        """Faults of a pipe: those with even numbers lead to the server."""
        return self.back if index % 2 and self.back is not None else self.faults

    def _patience_s(self, pipes: list[_Pipe]) -> float:
        if any(pipe.left for pipe in pipes):
            return 0.001
        due = [pipe.link.next_ns for pipe in pipes if pipe.link.next_ns is not None]
        return min(IDLE_S, max(0.0, (min(due) - time.monotonic_ns()) / 1e9)) if due else IDLE_S

    def _work(self, place: tuple[int, _Pipe] | None) -> None:
        if place is None:
            self._accept()
            return
        index, pipe = place
        if pipe not in self._pipes:
            return
        try:
            pipe.take(self._of(index), time.monotonic_ns())
        except BlockingIOError:
            pass
        except OSError:
            pipe.ended = True
            pipe.link.put(b"", time.monotonic_ns())

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(self._server, timeout=1.0)
            except OSError:
                client.close()
                return
            for handle in (client, server):
                handle.setblocking(False)
                handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._pipes += [_Pipe(client, server, self._seed), _Pipe(server, client, self._seed + 1)]

    def _pass_on(self) -> None:
        for i, pipe in enumerate(self._pipes):
            if not self._of(i).partition:
                with contextlib.suppress(OSError):
                    pipe.give(time.monotonic_ns())
        closed = [i for i in range(0, len(self._pipes), 2) if all(self._over(p) for p in self._pipes[i : i + 2])]
        for i in reversed(closed):
            self._pipes[i].source.close()
            self._pipes[i].sink.close()
            del self._pipes[i : i + 2]

    @staticmethod
    def _over(pipe: _Pipe) -> bool:
        return pipe.ended and not pipe.left and pipe.link.next_ns is None
