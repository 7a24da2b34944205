"""Who gets in: raw TLS connections and websocket clients that send what they like."""

import json
import socket
import ssl
import stat
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from robot_bridge.safety.operator import Operator
from robot_bridge.server.certificate import of_machine
from robot_bridge.teleop.browser.door import Door

TIME_S = 30


def anybody():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def ask(server, path="/", *headers, host=None):
    """Status, headers and text of a request over HTTPS."""
    with anybody().wrap_socket(socket.create_connection(("127.0.0.1", server.port), TIME_S)) as secured:
        lines = [f"GET {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{server.port}'}", *headers, "", ""]
        secured.sendall("\r\n".join(lines).encode())
        answer = b""
        while part := secured.recv(65536):
            answer += part
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), head, body


def dial(server, path="/control", origin="", **more):
    origin = f"https://127.0.0.1:{server.port}" if origin == "" else origin
    end = time.monotonic() + TIME_S
    while True:
        try:
            return connect(f"wss://127.0.0.1:{server.port}{path}", ssl=anybody(), origin=origin, proxy=None, open_timeout=TIME_S, **more)
        except InvalidMessage:  # hung up on: who came before is not let go of yet
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def hello(socket_, **secret):
    socket_.send(json.dumps({"kind": "hello", **secret}))
    return json.loads(socket_.recv(TIME_S))


def token(server):
    return server.link.partition("#")[2]


def sample(number, heard, *hands):
    return json.dumps({"kind": "sample", "number": number, "heard": heard, "device": "pointer", "hands": list(hands)})


def test_the_page_comes_with_a_policy_that_lets_nothing_foreign_in(serving):
    server = serving()
    status, head, body = ask(server)
    assert status == 200 and "<!doctype html>" in body
    policy = next(line for line in head.splitlines() if line.startswith("Content-Security-Policy"))
    assert (
        "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    )
    assert "Cache-Control: no-store" in head and "Referrer-Policy: no-referrer" in head and "nosniff" in head
    assert "http://" not in body and "https://" not in body and "<script>" not in body and " style=" not in body
    assert token(server) not in body and len(token(server)) >= 32


def test_every_file_of_the_page_is_served_and_nothing_else(serving):
    server = serving()
    for path in ("/main.js", "/style.css", "/icon.svg", "/index.html"):
        assert ask(server, path)[0] == 200
    for path in ("/../door.py", "/%2e%2e/door.py", "//etc/passwd", "/page/main.js", "/conftest.py", "/main.js?x=1"):
        assert ask(server, path)[0] == 404, path


def test_foreign_names_and_pages_are_turned_away(serving):
    server = serving()
    for host in (
        "evil.example",
        f"evil.example:{server.port}",
        "localhost.evil.example",
        "192.168.1.4",
        "127.0.0.1.evil.example",
        "[::2]:80",
    ):
        assert ask(server, host=host)[0] == 421, host
    for host in ("localhost", f"LOCALHOST:{server.port}", "127.0.0.1", f"[::1]:{server.port}"):
        assert ask(server, host=host)[0] == 200, host
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.port}", f"https://127.0.0.1:{server.port + 1}"):
        assert ask(server, "/", f"Origin: {origin}")[0] == 403, origin
        with pytest.raises(InvalidStatus, match="403"):
            dial(server, origin=origin)
    with pytest.raises(InvalidStatus, match="403"):
        dial(server, origin=None)  # a program, not the page
    assert ask(server, "/control", f"Origin: https://127.0.0.1:{server.port}")[0] == 403
    assert ask(server, "/", f"Host: 127.0.0.1:{server.port}")[0] == 400  # of two, which one?


def test_on_a_network_addresses_and_own_names_are_right_and_foreign_names_are_not():
    door = Door("0.0.0.0", ("robot.lab",))
    assert all(map(door.called_rightly, ("192.168.1.4:8443", "[fe80::1]:8443", "robot.lab", f"{socket.gethostname()}:8443", "localhost")))
    assert not any(map(door.called_rightly, ("evil.example", "192.168.1.4.evil.example", "", "robot.lab.evil.example", "[", ":8443")))


def test_a_link_opens_once(serving):
    server = serving(about={"arms": 2})
    link = token(server)
    with dial(server) as first:
        told = hello(first, token=link)
        assert told["kind"] == "welcome" and told["arms"] == 2 and server.present
        assert token(server) == ""
        with dial(server) as second:
            assert hello(second, token=link)["kind"] == "refused"
        first.send(sample(1, 0))  # and the first is still there
        assert json.loads(first.recv(TIME_S))["kind"] == "heard"


@pytest.mark.parametrize("secret", [{}, {"token": "wrong"}, {"session": "wrong"}, {"session": ""}, {"token": "x" * 199}])
def test_wrong_secrets_open_nothing(serving, secret):
    server = serving()
    for path in ("/control", "/pictures"):
        with dial(server, path) as there:
            assert hello(there, **secret)["kind"] == "refused"
            with pytest.raises(ConnectionClosed):
                there.recv(TIME_S)
    assert not server.present and token(server)


def test_a_page_that_says_nothing_or_nonsense_first_is_let_go(serving):
    server = serving()
    for nonsense in ("{", sample(1, 0), '{"kind":"word","word":"stop"}', b"\xff\x00"):
        with dial(server) as there:
            there.send(nonsense)
            assert json.loads(there.recv(TIME_S))["kind"] == "refused"
    assert not server.requests and not server.operator.pressed


def test_too_large_messages_end_the_connection(serving):
    server = serving()
    with dial(server) as there:
        hello(there, token=token(server))
        there.send("x" * 5000)
        with pytest.raises(ConnectionClosed) as e:
            there.recv(TIME_S)
        assert e.value.rcvd is not None and e.value.rcvd.code == 1009
    assert server.held()[1] == ()


def test_the_same_session_opened_again_ends_the_one_before(serving, until):
    server = serving()
    with dial(server) as first:
        session = hello(first, token=token(server))["session"]
        with dial(server) as second:
            assert hello(second, session=session)["kind"] == "welcome"
            told = json.loads(first.recv(TIME_S))
            assert told["kind"] == "refused" and "elsewhere" in told["why"]
            second.send(sample(1, 0))
            assert json.loads(second.recv(TIME_S))["kind"] == "heard" and server.present


def test_a_page_that_is_gone_gets_a_new_link_and_the_session_stays_good_until_it_is_used(serving, until, monkeypatch):
    monkeypatch.setattr("robot_bridge.teleop.browser.server.AWAY_S", 0.05)
    said: list[str] = []
    server = serving(tell=said.append)
    with dial(server) as first:
        session = hello(first, token=token(server))["session"]
    until(lambda: said)
    again = token(server)
    assert again and again in said[-1]
    with dial(server) as back:  # a network that was away for long
        assert hello(back, session=session)["kind"] == "welcome"
        assert token(server) == ""
        with dial(server) as late:
            assert hello(late, token=again)["kind"] == "refused"
    until(lambda: token(server))
    with dial(server) as other:
        assert hello(other, token=token(server))["kind"] == "welcome"
        for path in ("/control", "/pictures"):
            with dial(server, path) as old:
                assert hello(old, session=session)["kind"] == "refused"


def test_the_stop_button_presses_in_the_thread_that_hears_it(serving):
    pressed: list[str] = []
    operator = Operator(on_press=pressed.append)
    server = serving(operator=operator)
    with dial(server) as there:
        hello(there, token=token(server))
        there.send('{"kind":"word","word":"e_stop"}')
        assert json.loads(there.recv(TIME_S))["state"]["stopped"] == operator.pressed
    assert pressed == ["the stop button of the page"]


def test_words_wait_in_order_and_a_flood_of_them_does_not_grow(serving):
    server = serving()
    with dial(server) as there:
        hello(there, token=token(server))
        for word in ["failure"] * 100 + ["success", "stop"]:
            there.send(json.dumps({"kind": "word", "word": word}))
            there.recv(TIME_S)
    assert len(server.requests) <= 16 and list(server.requests)[-2:] == ["success", "stop"]


def test_a_page_that_does_not_read_pictures_holds_up_neither_words_nor_the_stop(serving, until):
    pictures = {"front": np.zeros((480, 640, 3), np.uint8)}
    rng = np.random.default_rng(0)

    def source():
        pictures["front"] = rng.integers(0, 255, (480, 640, 3), np.uint8)  # nothing compresses this
        return dict(pictures)

    server = serving(source=source)
    with dial(server) as there:
        session = hello(there, token=token(server))["session"]
        with dial(server, "/pictures", max_queue=1, close_timeout=0.1) as slow:
            slow.send(json.dumps({"kind": "hello", "session": session}))
            for _ in range(60):  # asks for far more than it reads
                slow.send("next")
            for number in range(1, 20):
                there.send(sample(number, 0))
                assert json.loads(there.recv(TIME_S))["number"] == number
            there.send('{"kind":"word","word":"e_stop"}')
            until(lambda: server.operator.pressed)


def test_pictures_come_one_for_one_and_only_the_newest(serving):
    shown = {"front": np.full((8, 8, 3), 1, np.uint8)}
    server = serving(source=lambda: dict(shown))
    with dial(server) as there:
        session = hello(there, token=token(server))["session"]
        with dial(server, "/pictures") as view:
            view.send(json.dumps({"kind": "hello", "session": session}))
            view.send("next")
            message = view.recv(TIME_S)
            assert isinstance(message, bytes) and message[1:6] == b"front" and message[6:8] == b"\xff\xd8"
            shown["wrist"] = np.full((1000, 1400, 3), 2, np.uint8)
            view.send("next")
            assert view.recv(TIME_S)[1:6] == b"wrist"
            view.send("next")
            assert view.recv(TIME_S) == b""  # nothing is new


def test_without_tls_nothing_is_told(serving):
    server = serving()
    with socket.create_connection(("127.0.0.1", server.port), TIME_S) as plain:
        plain.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        answer = b""
        try:
            while part := plain.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    assert b"HTTP" not in answer and b"html" not in answer
    assert ask(server)[0] == 200


def test_the_key_is_the_users_alone_and_made_once(tmp_path, serving):
    server = serving()
    key = tmp_path / "config" / "sinew" / "server" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert server.fingerprint == serving().fingerprint == of_machine("127.0.0.1").fingerprint


def test_silence_for_longer_than_a_page_is_ever_silent_ends_the_connection(serving, until, monkeypatch):
    monkeypatch.setattr("robot_bridge.teleop.browser.server.SILENT_S", 0.2)
    server = serving()
    with dial(server) as there:
        hello(there, token=token(server))
        until(lambda: not server.present)
    assert ask(server)[0] == 200
