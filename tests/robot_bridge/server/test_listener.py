"""The server's socket against those who connect and do not mean to ask anything."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time

import pytest

from policies import wire
from policies.remote import connect
from robot_bridge.server.limits import Limits
from robot_bridge.server.listener import Listener
from sinew.errors import InputError

SLOW = Limits(max_clients=2, max_pending=2, handshake_s=0.5)


def test_connections_that_drip_their_request_are_closed_and_others_are_served(serving, kinds):
    server = serving(limits=SLOW)
    dripping = [kinds.plain(server) for _ in range(4)]
    ended = []

    def drip(plain):
        text = b"GET / HTTP/1.1\r\n" + b"X-Nothing: 1\r\n" * 200
        for byte in text:
            try:
                plain.socket.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
        else:
            return
        ended.append(plain)

    threads = [threading.Thread(target=drip, args=(plain,)) for plain in dripping]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 4  # long before the request would have been whole
    assert kinds.raw(server).sample()["id"] == 1


def test_connections_beyond_the_limit_are_closed_before_they_are_read(serving, kinds, until):
    server = serving(limits=Limits(max_clients=1, max_pending=3, handshake_s=60))
    held = [kinds.plain(server) for _ in range(4)]
    beyond = [kinds.plain(server) for _ in range(3)]
    for plain in beyond:
        assert plain.rest() == b""
    assert server.metrics.value("sinew_rejected_total", reason="connections") == 3
    for plain in held:
        plain.socket.close()
    until(lambda: _served(server, kinds))


def _served(server, kinds) -> bool:
    try:
        raw = kinds.raw(server)
        return raw.ask(raw.sample())["id"] == 1
    except InputError:
        return False


def test_a_client_that_goes_away_before_it_is_accepted_does_not_end_the_server(serving, kinds, certificate):
    for tls in (certificate, None):
        server = serving(token=kinds.token, certificate=tls)
        for data in (b"", b"x"):
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", server.port)) as gone:
                    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset
                    gone.sendall(data)
        pin = f"#{certificate.fingerprint}" if tls else ""
        connect(server.url + pin, kinds.token).close()


def test_accepting_goes_on_after_errors_of_the_system(serving, kinds, monkeypatch):
    server, whole, errors = serving(), socket.socket.accept, iter([OSError(24, "no descriptors"), ConnectionAbortedError(103, "gone")])

    def accept(self):
        for error in errors:
            raise error
        return whole(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    for _ in range(2):
        raw = kinds.raw(server)
        assert raw.ask(raw.sample())["id"] == 1
    assert next(errors, None) is None


def test_half_a_tls_handshake_is_not_waited_for(serving, kinds, certificate):
    server = serving(certificate=certificate, limits=SLOW)
    silent = [kinds.plain(server) for _ in range(4)]
    for plain in silent:
        assert plain.rest() == b""
    assert b"HTTP" not in _told(server, kinds, b"GET / HTTP/1.1\r\n\r\n")  # no plain HTTP on a port of TLS
    connect(f"{server.url}#{certificate.fingerprint}").close()


def _told(server, kinds, data: bytes) -> bytes:
    plain = kinds.plain(server)
    plain.socket.sendall(data)
    return plain.rest()


def test_old_tls_is_refused(serving, certificate):
    server = serving(certificate=certificate)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", server.port)) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 500 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00",
        b"\x00" * 40_000,
    ],
)
def test_requests_that_are_too_long_or_none_are_closed_without_a_traceback(serving, kinds, request_):
    server = serving(limits=SLOW)
    told = _told(server, kinds, request_)
    assert b"Traceback" not in told and b"101 " not in told and b".py" not in told
    assert _served(server, kinds)


def test_a_header_that_is_named_twice_is_refused(serving, kinds):
    server = serving()
    for line in ("Host: evil.example", "Authorization: Bearer b", "Origin: http://a"):
        twice = ("Authorization: Bearer a",) if line.startswith("Auth") else ("Origin: http://b",) if line.startswith("Origin") else ()
        status, text = kinds.plain(server).ask("/metrics", *twice, line)
        assert status == 400 and "twice" in text


def test_a_client_that_says_nothing_is_let_go_and_comes_back_by_itself(serving, kinds, until):
    import torch

    server = serving(limits=Limits(idle_s=0.3))
    remote = connect(server.url)
    obs = remote.encode({"observation.state": torch.ones(1, 1, 3)})
    first = remote.sample(obs, noise=torch.zeros(1, 1, 4, 2)).actions
    until(lambda: server.metrics.value("sinew_requests_total") == 1 and "sinew_clients 0" in server._metrics_text())
    assert torch.equal(remote.sample(obs, noise=torch.zeros(1, 1, 4, 2)).actions, first)
    assert server.clients == 2
    remote.close()


def test_a_message_that_never_ends_does_not_hold_its_place(serving, kinds, until):
    server = serving(limits=Limits(idle_s=0.5, max_clients=1))
    raw = kinds.raw(server)
    raw.channel._connection.socket.sendall(b"\x82\xff" + (1000).to_bytes(8, "big") + b"\x00\x00\x00\x00")  # a frame of 1000 bytes, of which
    raw.channel._connection.socket.sendall(b"\x00" * 10)  # 10 come
    until(lambda: "sinew_clients 0" in server._metrics_text())
    assert _served(server, kinds)


def test_a_frame_is_refused_by_what_it_says_of_its_size(serving, kinds):
    server = serving(limits=Limits(max_bytes=100_000))
    raw = kinds.raw(server)
    raw.channel._connection.socket.sendall(b"\x82\xff" + (2**40).to_bytes(8, "big") + b"\x00\x00\x00\x00")  # no payload follows
    with pytest.raises(InputError, match="larger than the receiving side takes"):
        raw.read()


def test_fragments_are_counted_together(serving, kinds):
    server = serving(limits=Limits(max_bytes=100_000))
    raw = kinds.raw(server)
    part = b"\x7e" + (0xFFFF).to_bytes(2, "big")

    def fragment(opcode: int) -> bytes:
        return bytes([opcode, 0x80 | 126]) + (60_000).to_bytes(2, "big") + b"\x00\x00\x00\x00" + b"\x00" * 60_000

    assert part
    raw.channel._connection.socket.sendall(fragment(0x02) + fragment(0x00))
    with pytest.raises(InputError, match="larger than the receiving side takes"):
        raw.read()


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_does_not_read_does_not_hold_its_thread(certificate, tls):
    ended = threading.Event()

    def serve(channel: wire.Channel) -> None:
        try:
            while True:
                channel.send(b"\x00" * 1_000_000)
        except wire.LinkError:
            ended.set()

    context = certificate.context() if tls else None
    listener = Listener(serve, "127.0.0.1", 0, lambda path, headers: None, timeout_s=0.5, tls=context)
    plain = socket.create_connection(("127.0.0.1", listener.port))
    if tls:
        unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        plain = unchecked.wrap_socket(plain)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    plain.sendall(f"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n".encode())
    assert ended.wait(60)
    plain.close()
    listener.close()
