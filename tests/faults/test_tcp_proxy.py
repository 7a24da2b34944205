"""The proxy before a TCP server: bytes stay as they are and in order, whatever it does with time; cuts and partitions."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from robot_bridge.faults.link import LinkFaults
from robot_bridge.faults.tcp_proxy import TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(handle: socket.socket) -> None:
        with handle:
            try:
                while data := handle.recv(65536):
                    handle.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                handle, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(handle,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.fixture
def proxy(echo) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", echo, seed=1) as proxy:
        yield proxy


def connect(proxy: TcpProxy) -> socket.socket:
    handle = socket.create_connection(("127.0.0.1", proxy.port), timeout=30.0)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return handle


def receive(handle: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = handle.recv(65536)
        assert more, f"closed after {len(data)} of {count} bytes"
        data += more
    return data


@pytest.mark.parametrize("faults", [LinkFaults(), LinkFaults(loss=0.1, delay_s=0.005, jitter_s=0.005, duplicate=0.5, reorder=0.5)])
def test_bytes_arrive_as_they_were_sent(proxy, faults):
    proxy.set(faults)
    data = np.random.default_rng(0).bytes(1_000_000)
    with connect(proxy) as handle:
        sender = threading.Thread(target=handle.sendall, args=(data,))
        sender.start()
        assert receive(handle, len(data)) == data
        sender.join()


def test_both_ways_take_their_delay(proxy):
    proxy.set(LinkFaults(delay_s=0.1), back=LinkFaults(delay_s=0.2))
    with connect(proxy) as handle:
        before = time.monotonic()
        handle.sendall(b"x")
        receive(handle, 1)
        assert time.monotonic() - before >= 0.3


def test_a_partition_stands_still_and_goes_on(proxy):
    with connect(proxy) as handle:
        handle.sendall(b"before")
        receive(handle, 6)
        proxy.set(LinkFaults(partition=True))
        handle.sendall(b"during")
        handle.settimeout(0.3)
        with pytest.raises(TimeoutError):
            handle.recv(1)
        handle.settimeout(30.0)
        proxy.set()
        assert receive(handle, 6) == b"during"


def test_a_cut_resets_and_a_new_connection_works(proxy):
    with connect(proxy) as handle:
        handle.sendall(b"x")
        receive(handle, 1)
        proxy.cut()
        with pytest.raises(OSError):
            while handle.recv(1):
                pass
            raise ConnectionResetError  # an orderly end is an end too
    with connect(proxy) as handle:
        handle.sendall(b"y")
        assert receive(handle, 1) == b"y" and proxy.connections == 2


def test_the_end_of_a_stream_is_passed_on(proxy):
    with connect(proxy) as handle:
        handle.sendall(b"last")
        handle.shutdown(socket.SHUT_WR)
        assert receive(handle, 4) == b"last" and handle.recv(1) == b""


def test_nobody_behind_it_is_a_closed_connection():
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    with TcpProxy("127.0.0.1", port) as proxy, connect(proxy) as handle:
        assert handle.recv(1) == b""
