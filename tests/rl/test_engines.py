"""All engines compute the one update of the learner, and each of them learns."""

import copy
import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tape import Tape
from torch import Tensor, nn

from rl.critic import Critic
from rl.engine import EngineName, Swapped, make_engine
from rl.graph import GraphedUpdate, copy_batch
from rl.heads import HeadName, make_head
from rl.learner import Learner, LearnerConfig
from rl.loop_engine import PlainNetwork
from rl.replay import Batch, Ring
from sinew.errors import InputError

HIDDEN = (16,)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")


class Actor(nn.Module):
    """Features (N, 2) → action (N, 2), or mean and spread of one."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, *HIDDEN), nn.LayerNorm(*HIDDEN), nn.ReLU(), nn.Linear(*HIDDEN, outputs))

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.layers(features)[:, :2])


def learner_of(engine: EngineName, heads: int = 3, head: HeadName = "scalar", device: str = "cpu", **settings: Any) -> Learner:
    g, noise = torch.Generator().manual_seed(0), torch.Generator(device).manual_seed(1)
    stochastic = "target_entropy" in settings

    def draw(actor: nn.Module, frames: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        mean, log_std = actor.layers(frames["features"]).chunk(2, -1)  # type: ignore[operator]
        normal = torch.randn(mean.shape, generator=noise, device=device)
        return torch.tanh(mean + log_std.clamp(-5, 0).exp() * normal), -(log_std + 0.5 * normal.square()).sum(-1)

    return Learner(
        Actor(4 if stochastic else 2).to(device),
        Critic(4, HIDDEN, heads, head=make_head(head, heads, -1.0, 1.0, 21), generator=g).to(device),
        propose=draw if stochastic else lambda actor, frames: actor(frames["features"]),
        decode=lambda frames, u: u.clamp(-1, 1),
        critic_input=lambda frames, action: torch.cat((frames["features"], action), -1),
        config=LearnerConfig(engine=engine, critic_lr=3e-3, actor_lr=3e-3, tau=0.05, **settings),
        generator=noise,
    )


def bandit(steps: int = 2_000, device: str = "cpu") -> Ring:
    """One step each: the action should be the state; it pays 1 near it and less further away."""
    ring, g = Ring(steps, 1, {"features": ((2,), torch.float32)}, 2, device=device), torch.Generator().manual_seed(0)
    on = torch.tensor([True], device=device)
    for _ in range(steps):
        state, action = (1.6 * torch.rand(1, 2, generator=g) - 0.8 for _ in range(2))
        ring.add({"features": state}, action, (1 - (action - state).square().sum(1)).clamp(min=0), on, ~on)
    return ring


def batches_of(ring: Ring, number: int, size: int = 32) -> list[Batch]:
    return ring.sample(size, updates=number, generator=torch.Generator(ring.device).manual_seed(2))


def running(steps: int = 300) -> Ring:
    """Episodes that go on, so that targets bootstrap."""
    ring, g = Ring(steps, 1, {"features": ((2,), torch.float32)}, 2), torch.Generator().manual_seed(0)
    for t in range(steps):
        ended = torch.tensor([t % 20 == 19])
        ring.add(
            {"features": torch.randn(1, 2, generator=g)}, torch.rand(1, 2, generator=g), torch.rand(1, generator=g), ended, ended & False
        )
    return ring


def difference(a: Learner, b: Learner) -> float:
    """Largest difference of any weight of actors, critics and their targets."""
    names = ("actor", "actor_target", "critic", "critic_target")
    pairs = [pair for n in names for pair in zip(getattr(a, n).parameters(), getattr(b, n).parameters(), strict=True)]
    return max(float((p.detach().cpu() - q.detach().cpu()).abs().max()) for p, q in pairs)


# ------------------------------------------------------------ one update


@pytest.mark.parametrize("engine", ["loop", pytest.param("compile", marks=needs_compiler)])
def test_200_updates_of_actor_and_critics_are_those_of_autograd(engine):
    learners = [learner_of(e, heads=5) for e in ("autograd", engine)]
    start = copy.deepcopy(learners[0])
    for batch in batches_of(running(), 200):
        for learner in learners:
            learner.update(batch)
    assert difference(*learners) < 2e-4
    assert difference(learners[0], start) > 0.1  # something happened at all
    metrics = [learner.read_metrics() for learner in learners]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("head", ["c51", "hl-gauss", "gaussian"])
def test_the_loop_is_autograd_for_every_head_and_for_stochastic_actors(head):
    learners = [learner_of(e, head=head, target_entropy=-2.0, target_actor=False, smoothing_std=0.0) for e in ("autograd", "loop")]
    for batch in batches_of(running(), 60):
        for learner in learners:
            learner.update(batch)
    assert difference(*learners) < 2e-4
    torch.testing.assert_close(learners[0].log_temperature, learners[1].log_temperature, atol=1e-5, rtol=0)


@needs_compiler
def test_all_heads_by_index_compile():
    """Inductor of PyTorch 2.13 fails where a permutation that takes all heads is drawn in the compiled function; an index does not."""
    critic = Critic(4, HIDDEN, heads=2)
    x = torch.randn(8, 4)
    compiled = torch.compile(critic.net, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, torch.tensor([1, 0])), critic.net(x)[[1, 0]], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------ learning


@pytest.mark.parametrize("engine", ["loop", "loop_bf16", "autograd", pytest.param("compile", marks=needs_compiler)])
def test_every_engine_learns_a_small_task(engine):
    learner = learner_of(engine, heads=2, output_l2=0.0)
    state = 1.6 * torch.rand(500, 2, generator=torch.Generator().manual_seed(9)) - 0.8

    def success() -> float:
        with torch.no_grad():
            return float(((learner.actor(state) - state).norm(dim=1) < 0.2).float().mean())

    before = success()
    for batch in batches_of(bandit(), 1_000):
        learner.update(batch)
    assert before < 0.3 and success() > 0.9


# ------------------------------------------------------------ plain networks


def test_plain_networks_run_in_the_loop_only_while_entered():
    actor = Actor()
    swapped, x = Swapped(actor, "loop"), torch.randn(7, 2)
    calls: list[int] = []
    plain = actor.layers.forward
    expected = actor(x).detach()
    with swapped:
        assert "forward" in actor.layers.__dict__
        calls.append(1)
        torch.testing.assert_close(actor(x).detach(), expected)
    assert "forward" not in actor.layers.__dict__ and actor.layers.forward == plain
    with pytest.raises(ZeroDivisionError), swapped:
        raise ZeroDivisionError
    assert "forward" not in actor.layers.__dict__
    with torch.no_grad():  # weights that change are seen
        for p in actor.parameters():
            p.mul_(0.5)
    with swapped, torch.no_grad():
        inside = actor(x)
    torch.testing.assert_close(inside, actor(x).detach())


@pytest.mark.parametrize("norm", [True, False])
def test_gradients_of_a_plain_network_add_up_and_reach_its_input(norm):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), *([nn.LayerNorm(8)] if norm else []), nn.ReLU(), nn.Linear(8, 5)]
    net = nn.Sequential(*layers[:-1], nn.Linear(8, 6), *([nn.LayerNorm(6)] if norm else []), nn.ReLU(), nn.Linear(6, 2))
    swapped, x = Swapped(net, "loop"), torch.randn(9, 3)

    def twice(inside: bool) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        net.zero_grad()
        if inside:
            with swapped:
                first, second = net(leaf), net(2 * leaf)  # the second call overwrites what the first one kept
        else:
            first, second = net(leaf), net(2 * leaf)
        (first.sin() + second.square()).sum().backward()
        return [leaf.grad, *(p.grad for p in net.parameters())]  # type: ignore[list-item]

    for mine, wanted in zip(twice(True), twice(False), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)


def test_what_is_no_plain_network_is_left_alone():
    linear, relu = nn.Linear(3, 3), nn.ReLU()
    assert PlainNetwork.fits(nn.Sequential(linear, relu, linear))
    for other in (
        nn.Sequential(linear, nn.Tanh(), linear),
        nn.Sequential(linear, relu),
        nn.Sequential(linear, relu, linear, relu),
        nn.Sequential(nn.Linear(3, 3, bias=False), relu, linear),
        nn.Sequential(linear, nn.LayerNorm(3, eps=1e-3), relu, linear),
        nn.Sequential(linear, nn.LayerNorm(3, elementwise_affine=False), relu, linear),
        nn.Sequential(linear, relu, linear).double(),
        linear,
    ):
        assert not PlainNetwork.fits(other)


# ------------------------------------------------------------ graphs


@pytest.mark.parametrize(
    ("head", "settings"),
    [("scalar", {}), ("c51", {"target_actor": False}), ("gaussian", {"target_entropy": -2.0, "entropy_in_target": True})],
)
def test_an_update_can_be_recorded_and_replayed(head, settings):
    """Nothing of an update may live on the host: what was done once, repeated on the same memory, must be the next update."""
    eager, recorded = (learner_of("autograd", heads=2, head=head, **settings) for _ in range(2))
    batches = batches_of(running(), 30)
    static, tapes = batches[0].map(torch.clone), {}
    for i, batch in enumerate(batches):
        eager.update(batch)
        with_actor = i % 2 == 1
        if i < 4:  # optimisers make their moments
            recorded._step(batch, with_actor)
            continue
        copy_batch(static, batch)
        if with_actor in tapes:
            tapes[with_actor].replay()
        else:
            tapes[with_actor] = Tape()
            with tapes[with_actor]:
                recorded._step(static, with_actor)
    assert difference(eager, recorded) == 0.0
    assert torch.equal(eager.log_temperature, recorded.log_temperature)
    names = {str(func) for tape in tapes.values() for func, *_ in tape.operations}
    assert not [name for name in names if "_local_scalar_dense" in name or "nonzero" in name]


@needs_cuda
@pytest.mark.parametrize("head", ["scalar", "c51", "gaussian"])
def test_200_updates_as_a_graph_are_those_of_autograd(head):
    learners = [learner_of(e, heads=4, head=head, device="cuda") for e in ("autograd", "graph")]
    for batch in batches_of(bandit(device="cuda"), 200):
        for learner in learners:
            learner.update(batch)
    assert difference(*learners) < 1e-3
    assert learners[0].read_metrics() == pytest.approx(learners[1].read_metrics(), rel=1e-2, abs=1e-3)


def test_batches_of_another_size_are_no_replay():
    big, small = batches_of(running(), 1, size=8)[0], batches_of(running(), 1, size=4)[0]
    with pytest.raises(InputError, match="batches of 8 and got one of 4"):
        copy_batch(big, small)


def test_engines_where_they_cannot_be_are_refused_in_one_line():
    net = Critic(4, HIDDEN).net
    for name, part in (("graph", "CUDA"), ("eager", "known are auto, loop")):
        with pytest.raises(InputError, match=part) as error:
            make_engine(net, name)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="for the CPU"):
        make_engine(copy.deepcopy(net).to("meta"), "loop")
    with pytest.raises(InputError, match="CUDA"):
        learner_of("graph")
    with pytest.raises(InputError, match="on the host"):
        GraphedUpdate(lambda batch, with_actor: None, torch.Generator())
