"""How much a policy server takes on, from everybody together and from each client."""

from __future__ import annotations

from dataclasses import dataclass

from policies.wire import MAX_BYTES
from sinew.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes, numbers and times beyond which a server refuses; each is checked before anything is allocated for it."""

    max_bytes: int = MAX_BYTES
    """Largest message; also the most that is kept of one client's observations."""
    max_clients: int = 16
    """Most clients at a time."""
    max_pending: int = 32
    """Most connections besides them, which have not shown a token yet."""
    handshake_s: float = 5.0
    """A connection that has not ended its TLS and HTTP handshakes after this is closed."""
    idle_s: float = 300.0
    """A client from which no whole message came for this long is let go; it may come again at any time."""
    waiting: int = 16
    """Requests that wait for one policy; those beyond are told at once that it is busy."""
    batch: int = 8
    """Samples of different clients that are computed in one; 1 for each by itself."""
    window_s: float = 0.002
    """A sample waits this long for those of other clients, where there are others."""
    drain_s: float = 5.0
    """Requests under way when the server is closed have this long to be answered."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_bytes", 1024, 2**30), ("max_clients", 1, 1000), ("max_pending", 1, 1000), ("handshake_s", 0.05, 60),
            ("idle_s", 0.05, 86400), ("waiting", 1, 10_000), ("batch", 1, 1024), ("window_s", 0, 1), ("drain_s", 0, 60),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise InputError(f"a policy server's {name} must be in {low}..{high}, not {getattr(self, name)}")
