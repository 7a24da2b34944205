"""Serve a run's policy over websockets: `policies.remote.connect(URL, token)` is then that policy, elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from policies import PolicyModule


@dataclass(frozen=True, kw_only=True)
class Args:
    """Serve a run's policy over websockets until Ctrl-C."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    listen: str = "127.0.0.1:8080"
    """Address and port; port 0 takes any that is free. Beyond this machine only with --token-file."""
    token_file: Path | None = None
    """File with the secret that clients must send, at least 16 characters."""
    device: str = "cpu"
    """Where the policy runs: cpu, cuda, cuda:1."""
    compile: bool = False
    """Compile the policy's sample for one observation at a time before listening; on a GPU, record it as a CUDA graph too."""
    max_mib: int = 64
    """Largest request, MiB."""
    max_clients: int = 16
    """Most clients at a time."""
    seed: int = 0
    """Changes nothing: clients send the noise."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: Args) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM."""
    import policies
    from policies.wire import read_token
    from robot_bridge.policy_server import PolicyServer, serve_until_asked

    host, port = address(args.listen)
    if not 1 <= args.max_mib <= 1024 or not 1 <= args.max_clients <= 1000:
        raise InputError(f"--max-mib {args.max_mib} must be in 1..1024 and --max-clients {args.max_clients} in 1..1000")
    token = None if args.token_file is None else read_token(args.token_file)
    policy = policies.load(args.run).to(device_of(args.device))
    if args.compile:
        policy = _compiled(policy, args.device)
    server = PolicyServer(
        policy,
        host=host,
        port=port,
        token=token,
        name=str(args.run),
        device=args.device,
        max_bytes=args.max_mib * 2**20,
        max_clients=args.max_clients,
    )
    ended = serve_until_asked(server, lambda line: print(line, file=sys.stderr, flush=True))
    return {"run": str(args.run), "url": server.url, "clients": server.clients, "requests": server.served, "ended": ended}


def _compiled(policy: PolicyModule, device: str) -> PolicyModule:
    """The policy compiled for one observation and one chunk; anything else that clients ask for runs as before.

    Raises:
        InputError: its clients bring the instruction, and with it the shapes.
    """
    from policies.language import LANGUAGE
    from policies.warmup import in_words, prepare
    from sinew.config import to_json

    if LANGUAGE in policy.spec.capabilities:
        raise InputError("--compile needs the instruction, which the clients of a language policy bring: use sinew deploy --compile")
    prepared = prepare(policy, device)
    print(in_words(to_json(prepared.config)), file=sys.stderr, flush=True)
    return prepared


def address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT.

    Raises:
        InputError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not port.isdigit() or int(port) > 65535 or (":" in host and not text.startswith("[")):
        raise InputError(f"--listen {text!r}: give HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return host, int(port)


def device_of(name: str) -> Any:
    """A torch device that is there.

    Raises:
        InputError: it is not.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"--device {name!r} cannot be used: {str(e).splitlines()[0]}") from None
    return device


def show(result: dict[str, Any], console: Console) -> None:
    """Print one line."""
    console.print(f"served {result['requests']} requests of {result['clients']} clients; ended by {result['ended']}")
