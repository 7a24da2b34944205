"""Figures in the text format that Prometheus reads, and who may see them."""

from __future__ import annotations

import re

from robot_bridge.server.metrics import Metrics


def test_the_text_is_what_the_format_says():
    metrics = Metrics()
    for value in (0.5, 1.0, 1.5, 9.0):
        metrics.observe("h", value, (1, 2), policy="a")
    metrics.count("c", reason='say "no"\\\n')
    metrics.count("c", reason="x")
    metrics.count("c", reason="x")
    assert metrics.value("c") == 3 and metrics.value("c", reason="x") == 2 and metrics.value("d") == 0
    assert metrics.text({"g": [({}, 2), ({"policy": "a"}, 0.5)]}) == (
        '# TYPE c counter\nc{reason="say \\"no\\"\\\\\\n"} 1\nc{reason="x"} 2\n'
        '# TYPE h histogram\nh_bucket{policy="a",le="1"} 2\nh_bucket{policy="a",le="2"} 3\nh_bucket{policy="a",le="+Inf"} 4\n'
        'h_sum{policy="a"} 12\nh_count{policy="a"} 4\n# TYPE g gauge\ng 2\ng{policy="a"} 0.5\n'
    )


def test_health_and_metrics_over_http(serving, kinds):
    server = serving()
    raw = kinds.raw(server)
    raw.ask(raw.sample())
    raw.ask(raw.sample(noise=None))
    assert kinds.plain(server).ask("/healthz") == (200, "ok\n")
    status, text = kinds.plain(server).ask("/metrics")
    assert status == 200
    assert 'sinew_requests_total{op="sample",outcome="ok",policy="policy"} 1\n' in text
    assert 'sinew_requests_total{op="sample",outcome="input",policy="policy"} 1\n' in text
    assert 'sinew_request_seconds_count{policy="policy"} 2\n' in text and "sinew_clients 1\n" in text
    for line in text.splitlines():
        assert re.fullmatch(r'# TYPE \w+ \w+|\w+(\{(\w+="[^"]*",?)+\})? [-+.e\w]+', line), line
    assert kinds.plain(server).ask("/secret")[0] == 404
    assert kinds.plain(server).ask("/")[0] == 426  # a browser's plain visit


def test_metrics_need_the_token_and_health_does_not(serving, kinds):
    server = serving(token=kinds.token)
    assert kinds.plain(server).ask("/healthz") == (200, "ok\n")
    for given in ((), ("Authorization: Bearer wrong-token-of-length",), (f"Authorization: Basic {kinds.token}",)):
        status, text = kinds.plain(server).ask("/metrics", *given)
        assert status == 401 and "sinew_" not in text
    status, text = kinds.plain(server).ask("/metrics", f"Authorization: Bearer {kinds.token}")
    assert status == 200 and 'sinew_rejected_total{reason="token"} 3\n' in text


def test_a_stuck_policy_is_no_healthy_server(serving, kinds, monkeypatch):
    server = serving()
    monkeypatch.setattr(type(server._workers["policy"]), "busy_s", lambda self: 61.0)
    assert kinds.plain(server).ask("/healthz") == (503, "a policy is stuck\n")


def test_a_web_page_gets_nothing_whatever_it_calls_itself(serving, kinds):
    server = serving()
    for path in ("/", "/healthz", "/metrics"):
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "", "localhost.", "192.168.1.4", "[::2]:80"):
            status, text = kinds.plain(server).ask(path, host=host)
            assert status == 421 and "ok" not in text.split() and "sinew_" not in text, (path, host)
        assert kinds.plain(server).ask(path, "Origin: https://evil.example")[0] == 403
        assert kinds.plain(server).ask(path, "Origin: null")[0] == 403
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:99", "127.8.8.8", "[::1]:3", "[::1]"):
        assert kinds.plain(server).ask("/healthz", host=host)[0] == 200


def test_a_tunnel_or_proxy_may_have_its_name(serving, kinds):
    server = serving(host_names=("Robot.lab",))
    assert kinds.plain(server).ask("/healthz", host="robot.lab:9000")[0] == 200
    assert kinds.plain(server).ask("/healthz", host="other.lab")[0] == 421
