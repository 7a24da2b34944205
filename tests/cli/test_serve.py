"""`sinew serve` as its user meets it: what it makes, what it prints, what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from policies.remote import connect, read_token
from sinew.cli import serve
from sinew.errors import InputError
from sinew.rundir import RunDir
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs a and b, whose policies differ; keys of the test are not those of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SINEW_TOKEN", raising=False)
    action = ActionSpec(kind="joint_position", low=(-1.0,), high=(1.0,), rate_hz=10.0, names=("a",))
    spec = PolicySpec(observation=ObservationSpec({STATE: TensorSpec(shape=(3,))}), action=action, horizon=4)
    for name in ("a", "b"):
        policy = policies.make("flow", spec, {STATE: {"mean": np.zeros(3), "std": np.ones(3)}}, {"hidden": [8], "steps": 2})
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        RunDir.create(tmp_path / name, {"task": name})
        policies.save(policy, tmp_path / name)
    return tmp_path


def test_a_server_for_others_makes_its_token_and_certificate_and_prints_what_clients_need(runs):
    command = [sys.executable, "-m", "sinew", "serve", f"{runs}/a", f"second={runs}/b", "--listen", "0.0.0.0:0"]
    command += ["--token-file", f"{runs}/token", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(5)]
        assert "made a certificate for this machine" in lines[0] and "made a token in" in lines[1], lines
        assert stat.S_IMODE((runs / "token").stat().st_mode) == 0o600 and len((runs / "token").read_text().strip()) == 64
        token = read_token(runs / "token")
        for line, name in zip(lines[3:], ("a", "second"), strict=True):
            shown = re.search(r"sinew deploy 'https://[^:/']+:(\d+)/(\w+)(#sha256:[0-9a-f]{64})' --token-file FILE", line)
            assert shown is not None and shown[2] == name, lines
            url = f"https://127.0.0.1:{shown[1]}/{shown[2]}{shown[3]}"
            remote, here = connect(url, token), policies.load(runs / {"a": "a", "second": "b"}[name])
            obs, noise = {STATE: torch.ones(1, 1, 3)}, torch.ones(1, 1, 4, 1)
            with torch.no_grad():
                expected = here.sample(here.encode(obs), noise=noise).actions
            assert torch.equal(remote.sample(remote.encode(obs), noise=noise).actions, expected)
            remote.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    told = json.loads(out)
    assert process.returncode == 0 and not err.strip() and told["requests"] == 2 and told["ended"] == "SIGTERM", err
    assert list(told["runs"]) == ["a", "second"] and told["url"].startswith("wss://0.0.0.0:") and told["fingerprint"] in lines[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"listen": "0.0.0.0:0"}, r"0\.0\.0\.0 can be reached by others: that needs --token-file; or listen at 127\.0\.0\.1"),
        ({"listen": "0.0.0.0:0", "tls": False}, "that needs --token-file and TLS"),
        ({"certificate": Path("c.pem")}, "--certificate and --key belong together"),
        ({"certificate": Path("c.pem"), "key": Path("k.pem"), "tls": False}, "--no-tls and --certificate contradict"),
        ({"certificate": Path("c.pem"), "key": Path("k.pem")}, r"there is no certificate at c\.pem"),
        ({"token_file": Path("/none/token")}, "cannot write the token file /none/token"),
        ({"batch": 0}, "a policy server's batch must be in"),
        ({"window_ms": -1.0}, "a policy server's window_s must be in"),
        ({"max_mib": 0}, "--max-mib 0 must be in"),
        ({"device": "cuda:77"}, "--device 'cuda:77' cannot be used"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(runs, settings, message):
    with pytest.raises(InputError, match=message) as told:
        serve.run(serve.Args(runs=(f"{runs}/a",), **{"listen": "127.0.0.1:0", **settings}))
    assert "\n" not in str(told.value)


def test_names_of_runs(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert serve.named((f"{tmp_path}/x", f"lift={tmp_path}/x")) == {"x": tmp_path / "x", "lift": tmp_path / "x"}
    for runs, message in [
        ((f"{tmp_path}/x", f"{tmp_path}/y/../x"), "two runs are called 'x': give NAME=FOLDER"),
        ((f"a b={tmp_path}/x",), "'a b' cannot be the name of a served policy"),
        ((f"={tmp_path}/x",), "'' cannot be the name"),
        ((f"{tmp_path}/a=b",), "'a=b' cannot be the name"),
    ]:
        with pytest.raises(InputError, match=message):
            serve.named(runs)
