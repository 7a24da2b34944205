"""Serve the policies of runs over websockets: `policies.remote.connect(URL, token)` is then one of them, elsewhere."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from policies import PolicyModule
    from robot_bridge.policy_server import PolicyServer
    from robot_bridge.server.certificate import Certificate


@dataclass(frozen=True, kw_only=True)
class Args:
    """Serve the policies of runs over websockets until Ctrl-C."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of runs, each as FOLDER or NAME=FOLDER; the folder's own name if none is given."""
    listen: str = "127.0.0.1:8080"
    """Address and port; port 0 takes any that is free. Beyond this machine only with --token-file, and then with TLS."""
    token_file: Path | None = None
    """File with the secret that clients must send, made if it is not there; SINEW_TOKEN if left out."""
    tls: bool | None = None
    """Whether connections are encrypted; if left out, where others can reach the server."""
    certificate: Path | None = None
    """Certificate, PEM; one of this machine, made at first use, if left out."""
    key: Path | None = None
    """Private key of --certificate, PEM, readable by its owner only."""
    host_name: tuple[str, ...] = ()
    """Names by which a tunnel or proxy lets clients call a server that listens at this machine only."""
    device: str = "cpu"
    """Where the policies run: cpu, cuda, cuda:1."""
    compile: bool = False
    """Compile each policy's sample for one observation at a time before listening; on a GPU, record it as a CUDA graph too."""
    batch: int = 8
    """Samples of different clients that are computed in one; 1 for each by itself, as with --compile."""
    window_ms: float = 2.0
    """A sample waits this long for those of other clients, where there are others."""
    waiting: int = 16
    """Requests that wait for one policy; those beyond are told at once that it is busy."""
    max_mib: int = 64
    """Largest request, MiB."""
    max_clients: int = 16
    """Most clients at a time."""
    idle: float = 300.0
    """Seconds after which a client that sends nothing is let go."""
    seed: int = 0
    """Changes nothing: clients send the noise."""
    json: bool = False
    """Print one JSON object at the end."""


def run(args: Args) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM."""
    from robot_bridge.policy_server import PolicyServer, serve_until_asked
    from robot_bridge.server.limits import Limits

    host, port = address(args.listen)
    if not 1 <= args.max_mib <= 1024:
        raise InputError(f"--max-mib {args.max_mib} must be in 1..1024")
    limits = Limits(
        max_bytes=args.max_mib * 2**20, max_clients=args.max_clients, batch=1 if args.compile else args.batch,
        window_s=args.window_ms / 1e3, waiting=args.waiting, idle_s=args.idle,
    )  # fmt: skip
    folders = named(args.runs)
    certificate = _certificate(args, host)
    token = _token(args.token_file)
    policies = {name: _policy(folder, args) for name, folder in folders.items()}
    server = PolicyServer(
        policies, host=host, port=port, token=token, device=args.device, certificate=certificate, host_names=args.host_name, limits=limits
    )
    ended = serve_until_asked(server, lambda line: _say(f"{line}\n{_for_clients(server, args, certificate)}"))
    return {
        "runs": {name: str(folder) for name, folder in folders.items()},
        "url": server.url,
        "fingerprint": certificate.fingerprint if certificate else None,
        "clients": server.clients,
        "requests": server.served,
        "ended": ended,
    }


def named(runs: tuple[str, ...]) -> dict[str, Path]:
    """Folders by the names that their policies are served under.

    Raises:
        InputError: two have the same name, or one that no URL can hold.
    """
    folders: dict[str, Path] = {}
    for text in runs:
        name, equals, folder = text.partition("=")
        if not equals or "/" in name or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        if not name or not all(c.isalnum() or c in "-._" for c in name) or not name.isascii():
            raise InputError(f"{name!r} cannot be the name of a served policy: give NAME=FOLDER, the name of letters, digits, - . and _")
        if name in folders:
            raise InputError(f"two runs are called {name!r}: give NAME=FOLDER for one of them")
        folders[name] = Path(folder)
    return folders


def _policy(folder: Path, args: Args) -> PolicyModule:
    import policies

    policy = policies.load(folder).to(device_of(args.device))
    return _compiled(policy, args.device) if args.compile else policy


def _token(path: Path | None) -> str | None:
    """The token; a file that does not exist is made with a new one."""
    from policies.trust import read_token

    if path is not None and not path.exists():
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
                f.write(secrets.token_hex(32) + "\n")
        except OSError as e:
            raise InputError(f"cannot write the token file {path}: {e.strerror}") from None
        _say(f"made a token in {path}: copy it to the clients' machines, readable by its owner only")
    return read_token(path)


def _certificate(args: Args, host: str) -> Certificate | None:
    """The certificate to serve with; None for no TLS.

    Raises:
        InputError: half of one is given, or it cannot be used.
    """
    from policies.wire import is_loopback
    from robot_bridge.server import certificate

    if (args.certificate is None) != (args.key is None):
        raise InputError("--certificate and --key belong together: give both, or neither for one that is made here")
    wanted = args.tls if args.tls is not None else args.certificate is not None or not is_loopback(host)
    if not wanted:
        if args.certificate is not None:
            raise InputError("--no-tls and --certificate contradict each other: leave one out")
        return None
    if args.certificate is not None and args.key is not None:
        return certificate.given(args.certificate, args.key)
    made = certificate.of_machine(host)
    if made.made:
        _say(f"made a certificate for this machine: {made.path}")
    return made


def _for_clients(server: PolicyServer, args: Args, certificate: Certificate | None) -> str:
    """What a client is to be called with."""
    import socket

    host, _ = address(args.listen)
    reached = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    pin = "" if certificate is None else f"#{certificate.fingerprint}"
    scheme = "http" if certificate is None else "https"
    token = " --token-file FILE" if args.token_file else ""
    return "\n".join(
        f"  sinew deploy '{scheme}://{reached}:{server.port}{'' if len(server.names) == 1 else '/' + name}{pin}'{token}"
        for name in server.names
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    _say(in_words(to_json(prepared.config)))
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
