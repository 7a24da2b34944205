"""A policy that runs in another process or on another machine, behind `sinew serve`: used like any other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, noise_for
from policies.link import REMEMBERED, VERSION, VERSION_HEADER, ServerLink
from policies.trust import Trust, parse_url, read_token
from sinew.config import from_json
from sinew.errors import DataError, InputError, SpecError
from sinew.protocols import Chunk, Loss, Obs
from sinew.specs import TASK, PolicySpec

__all__ = ["REMEMBERED", "VERSION", "VERSION_HEADER", "RemoteConfig", "RemoteContext", "RemotePolicy", "connect", "read_token"]

CAPABILITIES = ("noise", "denoise", "energy", "features", "observe", "correct", "language", "goal")
"""Capabilities that work over the wire."""


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """Where the policy is."""

    url: str
    """https://host:port, or http://127.0.0.1:port on this machine; with /policy where the server has several, and with
    #sha256:fingerprint of its certificate."""
    timeout_s: float = 10.0
    """Longest time to be connected, and longest time to wait for one answer, in seconds."""
    warmup_s: float | None = None
    """Longest time to wait for the very first answer, for which the server may have to compile; None for `timeout_s`."""
    fingerprint: str | None = None
    """SHA-256 of the server's certificate, as it printed it."""
    ca: str | None = None
    """File with the certificate of the authority that signed the server's."""
    trust_first_use: bool = False
    """Whether a server that was never seen is trusted, and remembered."""
    exact: bool = False
    """Have every sample computed alone, bit for bit as here, also where several clients share one server; slower for all."""

    def __post_init__(self) -> None:
        for seconds in (self.timeout_s, self.timeout_s if self.warmup_s is None else self.warmup_s):
            if not 0 < seconds < float("inf"):
                raise InputError(f"a policy server needs a time-out above 0 s, not {seconds}")


@dataclass(frozen=True)
class RemoteContext:
    """An observation that the server encodes with the first request that needs it, and then keeps for a while."""

    obs: Mapping[str, Any]
    """{key: (B, To, ...)} as arrays."""
    key: int
    """Number of the observation; sent instead of it from the second request on."""
    rows: int
    """Observations B."""
    candidates: int = 1

    @property
    def batch(self) -> int:
        """Rows that the context stands for: observations times candidates."""
        return self.rows * self.candidates

    def expand(self, n: int) -> RemoteContext:
        """The same observation for n candidates each; nothing is copied or sent."""
        return replace(self, candidates=self.candidates * n)


def connect(
    url: str,
    token: str | None = None,
    *,
    timeout_s: float = 10.0,
    warmup_s: float | None = None,
    fingerprint: str | None = None,
    ca: str | None = None,
    trust_first_use: bool = False,
    exact: bool = False,
) -> RemotePolicy:
    """The policy that `sinew serve RUN` serves at `url`.

    Args:
        url: what the server printed; see `RemoteConfig`, for the other arguments too.
        token: what the server's token file holds (`read_token(path)`); None for a server without one.
        timeout_s: longest time to be connected, and longest time to wait for one answer, in seconds.
        warmup_s: longest time to wait for the very first answer; None for `timeout_s`.
        fingerprint: of the server's certificate.
        ca: file with the certificate of an authority.
        trust_first_use: trust a server that was never seen.
        exact: have every sample computed alone.

    Raises:
        InputError: no such server or policy, wrong token, a certificate that is not trusted, another version, no answer in
            time: one line that says which.
        MissingDependency: `websockets` or `msgpack` is not installed: pip install 'sinew[serve]'.
    """
    config = RemoteConfig(
        url=url, timeout_s=timeout_s, warmup_s=warmup_s, fingerprint=fingerprint, ca=ca, trust_first_use=trust_first_use, exact=exact
    )
    return RemotePolicy(config, token)


class RemotePolicy(PolicyModule):
    """A served policy as a policy: the same noise gives the same actions as on the server.

    They are the same bit for bit while this is the only client or `exact` is set, and to 1e-5 where the server computes
    several clients' samples in one. Noise is drawn here and sent, so generators and seeds mean what they mean locally. An
    observation is sent once; further samples of the same context send its number. A connection that was lost is opened again,
    once per call; what then fails raises `policies.wire.LinkError` in one line, and the next call tries anew. No call takes
    longer than twice its time-out.

    Args:
        config: where it is.
        token: the server's token.
    """

    Config = RemoteConfig

    def __init__(self, config: RemoteConfig, token: str | None = None) -> None:
        address = parse_url(config.url)
        trust = Trust(fingerprint=config.fingerprint, ca=config.ca, first_use=config.trust_first_use)
        self._numbers = itertools.count()
        link = ServerLink(address, token, trust, config.timeout_s, config.warmup_s)
        try:
            spec = from_json(PolicySpec, link.policy.get("spec"), f"{config.url}: spec")
        except BaseException:
            link.close()
            raise
        kept = tuple(name for name in spec.capabilities if name in CAPABILITIES)
        super().__init__(replace(spec, capabilities=kept), config)
        self._link, self.name = link, link.name

    # ------------------------------------------------------------ as a policy

    def encode(self, obs: Mapping[str, Any]) -> RemoteContext:
        """Take what the policy looks at; nothing is sent before it is needed."""
        arrays = self._pick(obs)
        rows = len(next((arrays[key] for key in self.spec.observation if key in arrays), ()))
        return RemoteContext(arrays, next(self._numbers), rows)

    def sample(
        self,
        ctx: Any,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """See `sinew.protocols.Policy.sample`.

        Raises:
            SpecError: guidance is given, which cannot be sent; wrong noise; or what the served policy refuses.
            InputError: the server cannot be reached or does not answer in time.
        """
        if guidance:
            raise SpecError("guidance cannot be sent to a policy server: guide the policy where it is served")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        answer = self._link.ask("sample", ctx, n=n, noise=_array(noise), steps=steps, features=features, alone=self.config.exact)
        actions = self._tensor(answer, "actions", (ctx.batch, n, self.spec.horizon, self.spec.action_dim))
        told = {
            name: self._tensor(answer, name, shape) if answer.get(name) is not None else None
            for name, shape in (("features", (ctx.batch, n, self.spec.feature_dim)), ("energy", (ctx.batch, n)))
        }
        return Chunk(actions=actions, noise=noise, features=told["features"], energy=told["energy"])

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """See `sinew.protocols.HasDenoiser`; one request per call, without gradient."""
        return self._tensor(self._link.ask("denoise", ctx, x=_array(x), sigma=_array(sigma)), "value", tuple(x.shape))

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Noise levels of the served policy's native sampler; capability "denoise"."""
        return self._tensor(self._link.ask("sigmas", None, steps=steps), "value", None)

    def energy(self, x: Tensor, ctx: Any) -> Tensor:
        """See `sinew.protocols.HasEnergy`; one request per call, without gradient."""
        return self._tensor(self._link.ask("energy", ctx, x=_array(x)), "value", (x.shape[0],))

    def observe(self, obs: Obs) -> Tensor:
        """See `sinew.protocols.HasFeatures`; one request per call."""
        return self._tensor(self._link.ask("observe", None, obs=self._pick(obs)), "value", None)

    @property
    def observation_dim(self) -> int:
        """Length of what `observe` gives; 0 where it cannot."""
        return int(self._link.policy.get("observation_dim") or 0)

    def correct(self, obs: Obs, action: Tensor) -> Tensor:
        """See `sinew.protocols.HasCorrection`; one request per call."""
        answer = self._link.ask("correct", None, obs=self._pick(obs), action=_array(action))
        return self._tensor(answer, "value", tuple(action.shape)).to(action.device)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Refused."""
        raise SpecError("a policy behind a server cannot be trained from here: train where its weights are")

    @property
    def device(self) -> torch.device:
        """The CPU: that is where answers arrive."""
        return torch.device("cpu")

    def answer_within(self, timeout_s: float) -> None:
        """Wait no longer for any answer from now on; what does not come by then raises `policies.wire.LinkError`."""
        self._link.timeout_s = min(self._link.timeout_s, timeout_s)

    def close(self) -> None:
        """Close the connection; the next request would open it again."""
        self._link.close()

    def _pick(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """What the policy looks at, as arrays."""
        goals = [f"goal.{key}" for key in self.spec.observation]
        picked: dict[str, Any] = {key: _array(obs[key]) for key in (*self.spec.observation, *goals) if key in obs}
        if TASK in obs and "language" in self.spec.capabilities:
            picked[TASK] = list(obs[TASK])
        return picked

    def _tensor(self, answer: Mapping[str, Any], name: str, shape: tuple[int, ...] | None) -> Tensor:
        found = answer.get(name)
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or (shape is not None and found.shape != shape):
            told = getattr(found, "shape", type(found).__name__)
            raise DataError(f"{self._link.url} answered with {name} {told}, expected floats of shape {shape or 'any'}")
        return torch.from_numpy(found)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
