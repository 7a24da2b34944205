"""The policy server: what a round trip adds to a sample, and several clients' samples in one beside one after another."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row

CLIENTS = 8
CAMERAS, HEIGHT, WIDTH = 3, 480, 640
TOKEN = "a-token-for-this-benchmark"
NO_PEER = "openpi's server is not among the packages of this environment, and its client alone has nobody to talk to"


def rows(quick: bool) -> list[Row]:
    """Measure everything; `quick` ends within a minute."""
    seconds = 3.0 if quick else 10.0
    return [*_round_trips(seconds), *_throughput(seconds)]


# ---------------------------------------------------------------- round trips


def _round_trips(seconds: float) -> list[Row]:
    """From an observation to its chunk, one client, server in a process of its own on the same machine."""
    here = _timed(_policy("small"), seconds)
    made = []
    for name, tls in (("plain", False), ("TLS", True)):
        with _served("small", tls=tls) as remote:
            made.append(_row(f"round trip, state, {name}", _timed(remote, seconds), "the same policy in this process", here))
    for name, tls in (("plain", False), ("TLS", True)):
        with _served("cameras", tls=tls) as remote:
            sent = CAMERAS * HEIGHT * WIDTH * 3 / 1e6
            made.append(
                _row(f"round trip, {CAMERAS} cameras {WIDTH}x{HEIGHT} ({sent:.2f} MB), {name}", _timed(remote, seconds), NO_PEER, None)
            )
    return made


def _row(name: str, taken: np.ndarray, peer: str, others: np.ndarray | None) -> Row:
    """p50 in milliseconds; the other quantiles are in the detail."""
    return Row(
        name=f"{name}, p50",
        unit="ms",
        ours=float(np.median(taken)),
        peer=peer,
        peer_value=None if others is None else float(np.median(others)),
        higher_is_better=False,
        detail={"p95_ms": float(np.quantile(taken, 0.95)), "p99_ms": float(np.quantile(taken, 0.99)), "requests": len(taken)},
    )


def _timed(policy: Any, seconds: float) -> np.ndarray:
    """Milliseconds of each sample of a new observation."""
    import torch

    from policies.live import empty_observation

    torch.set_num_threads(1)
    obs = {key: value[:, None] for key, value in empty_observation(policy.spec).items()}
    noise, taken, end = torch.zeros(1, 1, *policy.spec.noise_shape), [], time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end or len(taken) < 20:
            begin = time.perf_counter()
            policy.sample(policy.encode(obs), noise=noise)
            taken.append(1e3 * (time.perf_counter() - begin))
    return np.array(taken[5:])


# ---------------------------------------------------------------- throughput


def _throughput(seconds: float) -> list[Row]:
    """Chunks per second for several clients that ask without a pause, in one forward pass and one after another."""
    rates = {}
    for batch in (CLIENTS, 1):
        with _served("unet", batch=batch) as first:
            rates[batch] = _asked(first.config.url, seconds)
    (together, slow), (single, slow_single) = rates[CLIENTS], rates[1]
    detail = {"p95_ms": slow, "p95_ms_one_by_one": slow_single}
    peer = "the same server with --batch 1, one after another"
    name = f"{CLIENTS} clients, flow U-Net of 2.2 M parameters, chunks per second"
    return [Row(name=name, unit="1/s", ours=together, peer=peer, peer_value=single, target="> 1x", holds=together > single, detail=detail)]


def _asked(url: str, seconds: float) -> tuple[float, float]:
    """Answers per second, and the 95 % quantile of their latency in milliseconds."""
    from policies.remote import connect

    remotes = [connect(url, TOKEN, timeout_s=60) for _ in range(CLIENTS)]
    taken: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda r=remote: taken.append(_timed(r, seconds))) for remote in remotes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for remote in remotes:
        remote.close()
    return sum(len(some) / (some.sum() / 1e3) for some in taken), float(np.quantile(np.concatenate(taken), 0.95))


# ---------------------------------------------------------------- the server


@contextlib.contextmanager
def _served(kind: str, *, tls: bool = False, batch: int = CLIENTS) -> Iterator[Any]:
    """A client of a server in a process of its own, which ends afterwards."""
    from policies.remote import connect

    with tempfile.TemporaryDirectory() as folder:
        code = f"from sinew.cli.benchmarks.server import serve; serve({kind!r}, {folder!r}, {tls}, {batch})"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stdout is not None
            remote = connect(process.stdout.readline().strip(), TOKEN, timeout_s=60)
            yield remote
            remote.close()
        finally:
            process.kill()
            process.communicate()


def serve(kind: str, folder: str, tls: bool, batch: int) -> None:
    """Serve one of this benchmark's policies until the process is ended; tells its URL on stdout."""
    import torch

    from robot_bridge.policy_server import PolicyServer
    from robot_bridge.server.certificate import of_machine
    from robot_bridge.server.limits import Limits

    torch.set_num_threads(1)
    certificate = of_machine("127.0.0.1", Path(folder) / "server") if tls else None
    server = PolicyServer(_policy(kind), port=0, token=TOKEN, certificate=certificate, limits=Limits(batch=batch))
    sys.stdout.write(server.url + (f"#{certificate.fingerprint}" if certificate else "") + "\n")
    sys.stdout.flush()
    threading.Event().wait()


def _policy(kind: str) -> Any:
    """small: a flow of two layers on 9 numbers; unet: one of 2.2 M parameters; cameras: no computation at all."""
    import policies
    from sinew.specs import IMAGES, STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

    tensors = {STATE: TensorSpec(shape=(9,))}
    if kind == "cameras":
        tensors |= {f"{IMAGES}camera{i}": TensorSpec(shape=(HEIGHT, WIDTH, 3), dtype="uint8") for i in range(CAMERAS)}
    names = tuple(f"joint{i}" for i in range(8))
    action = ActionSpec(kind="joint_position", low=(-1.0,) * 8, high=(1.0,) * 8, rate_hz=20.0, names=names)
    spec = PolicySpec(observation=ObservationSpec(tensors), action=action, horizon=16)
    if kind == "cameras":
        return _Still(spec)
    settings: dict[str, Any] = {"hidden": [64, 64], "steps": 4} if kind == "small" else {"backbone": "unet"}
    return policies.make("flow", spec, {STATE: {"mean": np.zeros(9), "std": np.ones(9)}}, settings).eval()


class _Still:
    """Answers at once: what is measured is the way there and back."""

    def __init__(self, spec: Any) -> None:
        from dataclasses import replace

        self.spec = replace(spec, noise_shape=(spec.horizon, spec.action_dim))

    def encode(self, obs: Any) -> Any:
        return obs

    def sample(self, ctx: Any, *, noise: Any, **options: Any) -> Any:
        from sinew.protocols import Chunk

        return Chunk(actions=noise.clamp(-1, 1), noise=noise)
