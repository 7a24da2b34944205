"""Reinforcement learning: cost of updates and of sampling, beside a list of modules that computes the same."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sinew.bench import Row
from sinew.cli.benchmarks import rl_peer

if TYPE_CHECKING:
    from rl.engine import EngineName
    from rl.replay import Ring

BATCH, FEATURES, ACTIONS = 256, 40, 7
ENGINES: tuple[EngineName, ...] = ("loop", "loop_bf16")
LOOP = "ModuleList loop, fused Adam, foreach Polyak, all target heads (PyTorch, CPU, 1 thread)"
"""The peer is written as it would be in a well-kept agent; each of its parts is PyTorch's fastest. Both compute the same update."""


def rows(quick: bool) -> list[Row]:
    """CPU time of one thread, the least of all rounds; ours and the peer take turns, so that both see the same load."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = 7 if quick else 15
        out = []
        for heads, hidden, calls, at_least in ((10, (256, 256, 256), 10, 25.0), (2, (256, 256), 40, 210.0)):
            out += critic_rows(heads, hidden, calls, rounds, at_least)
        updates = [row for engine in ENGINES for row in update_rows(rounds, engine)]
        return [*out, *updates, *rl_peer.rows(interleaved, rounds), *replay_rows(rounds)]
    finally:
        torch.set_num_threads(threads)


def interleaved(functions: Sequence[Callable[[], object]], calls: int, rounds: int) -> list[float]:
    """Least CPU milliseconds per call of each function, measured in turns: what else runs on the machine only ever adds."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        for _ in range(3):
            function()
    for _ in range(rounds):
        for function, kept in zip(functions, times, strict=True):
            start = time.thread_time()
            for _ in range(calls):
                function()
            kept.append((time.thread_time() - start) / calls * 1e3)
    return [min(t) for t in times]


def critic_rows(heads: int, hidden: tuple[int, ...], calls: int, rounds: int, at_least: float) -> list[Row]:
    """A whole critic update: target, loss, backward, Adam, Polyak."""
    ours_ms, half_ms, peer_ms = interleaved(
        (our_critic_update(heads, hidden), our_critic_update(heads, hidden, "loop_bf16"), peer_critic_update(heads, hidden)), calls, rounds
    )
    size = f"{heads} x {len(hidden)}x{hidden[0]}"
    rate = 1e3 / ours_ms

    def cost(name: str, ms: float, target: str, holds: bool | None) -> Row:
        return Row(name=name, unit="ms CPU", ours=ms, peer=LOOP, peer_value=peer_ms, target=target, holds=holds, higher_is_better=False)

    return [
        cost(f"critic update, {size} layer norm, batch {BATCH}", ours_ms, ">= 1.25x peer", peer_ms >= 1.25 * ours_ms),
        cost(f"critic update, {size}, bfloat16 products (opt-in, other numbers than the peer's)", half_ms, "", None),
        Row(
            name=f"critic updates per core, {size}",
            unit="1/s",
            ours=rate,
            peer=LOOP,
            peer_value=1e3 / peer_ms,
            target=f">= {at_least:.0f}",
            holds=rate >= at_least,
        ),
    ]


def our_critic_update(heads: int, hidden: tuple[int, ...], engine: EngineName = "loop") -> Callable[[], None]:
    """The update as `rl.learner` makes it, on random transitions."""
    import torch

    from rl.critic import Critic, polyak
    from rl.engine import make_engine

    critic = Critic(FEATURES + ACTIONS, hidden, heads)
    target = copy.deepcopy(critic).requires_grad_(False)
    online_engine, target_engine = make_engine(critic.net, engine), make_engine(target.net, engine)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-4, fused=True)
    online, frozen = list(critic.parameters()), list(target.parameters())
    x, after, reward = torch.randn(BATCH, FEATURES + ACTIONS), torch.randn(BATCH, FEATURES + ACTIONS), torch.rand(BATCH)

    def update() -> None:
        chosen = torch.randperm(heads)[:2].tolist() if heads > 2 else None
        with torch.no_grad():
            y = reward + 0.97 * target.head.value(target_engine.evaluate(after, chosen)).amin(0)
        _, grad = critic.head.loss(online_engine.forward(x), y)
        online_engine.backward(grad, parameters=True, inputs=False)
        optimizer.step()
        polyak(frozen, online, 0.005)

    return update


def peer_critic_update(heads: int, hidden: tuple[int, ...]) -> Callable[[], None]:
    """The same update with one module per head."""
    import torch
    from torch import nn

    def network() -> nn.Sequential:
        layers: list[nn.Module] = []
        width = FEATURES + ACTIONS
        for h in hidden:
            layers += [nn.Linear(width, h), nn.LayerNorm(h), nn.ReLU()]
            width = h
        return nn.Sequential(*layers, nn.Linear(width, 1))

    critics = nn.ModuleList(network() for _ in range(heads))
    targets = copy.deepcopy(critics).requires_grad_(False)
    optimizer = torch.optim.Adam(critics.parameters(), 3e-4, fused=True)
    online: list[torch.Tensor] = list(critics.parameters())
    frozen: list[torch.Tensor] = list(targets.parameters())
    x, after, reward = torch.randn(BATCH, FEATURES + ACTIONS), torch.randn(BATCH, FEATURES + ACTIONS), torch.rand(BATCH)

    def update() -> None:
        with torch.no_grad():
            values = torch.stack([m(after).squeeze(-1) for m in targets])
            y = reward + 0.97 * values[torch.randperm(heads)[:2]].amin(0)
        q = torch.stack([m(x).squeeze(-1) for m in critics])
        loss = (q - y).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(frozen, online, 0.005)  # pyright: ignore[reportPrivateImportUsage]

    return update


def update_rows(rounds: int, engine: EngineName) -> list[Row]:
    """A whole residual update with sampling; the actor is updated every second time."""
    import torch

    from policies.residual import ResidualActor
    from rl.learner import LearnerConfig
    from rl.residual import ResidualConfig, make_learner

    ring, config = filled_ring(), ResidualConfig(learner=LearnerConfig(engine=engine))
    kind = "" if engine == "loop" else ", bfloat16 products (opt-in)"
    learner = make_learner(ResidualActor(FEATURES, ACTIONS, (256, 256), 0.5), FEATURES, ACTIONS, config)
    generator = torch.Generator().manual_seed(0)

    def two_updates() -> None:
        for batch in ring.sample(BATCH, updates=2, n_step=config.n_step, gamma=config.gamma, generator=generator):
            learner.update(batch)

    update_ms = interleaved((two_updates,), 10, rounds)[0] / 2
    why = "no peer: the parts that have one are above"
    return [
        Row(
            name=f"residual update with sampling, 2 x 2x256, batch {BATCH}, actor every 2nd{kind}",
            unit="ms CPU",
            ours=update_ms,
            peer=why,
            target="<= 5",
            holds=update_ms <= 5.0,
            higher_is_better=False,
        ),
        Row(
            name=f"learning for 40 000 steps at 0.5 updates per step, environment excluded{kind}",
            unit="s CPU",
            ours=update_ms * 20.0,
            peer=why,
            target="< 180",
            holds=update_ms * 20.0 < 180.0,
            higher_is_better=False,
        ),
    ]


def filled_ring() -> Ring:
    """200 000 steps of 4 worlds with episodes of some 50 steps."""
    import torch

    from rl.replay import Ring

    ring = Ring(50_000, 4, {"features": ((FEATURES,), torch.float32), "base_action": ((ACTIONS,), torch.float32)}, ACTIONS)
    running = torch.zeros(4, dtype=torch.bool)
    frame = {"features": torch.randn(4, FEATURES), "base_action": torch.rand(4, ACTIONS)}
    for step in range(ring.length):
        ended = torch.rand(4) < 0.02 if step % 4 == 0 else running
        ring.add(frame, torch.rand(4, ACTIONS), ended.float(), ended, running)
    return ring


def replay_rows(rounds: int) -> list[Row]:
    """Batches drawn from the replay, several per call as a learner draws them."""
    import torch

    ring = filled_ring()
    generator = torch.Generator().manual_seed(0)
    together = 8
    per_call_ms = interleaved((lambda: ring.sample(BATCH, updates=together, n_step=3, generator=generator),), 30, rounds)[0]
    rate = 1e3 * together / per_call_ms
    return [
        Row(
            name=f"replay: batches of {BATCH}, 3-step, {together} per call, 200 000 steps stored",
            unit="1/s",
            ours=rate,
            peer="no peer: nothing comparable installs beside PyTorch",
            target=">= 3000",
            holds=rate >= 3000,
        )
    ]
