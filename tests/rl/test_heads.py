"""Every critic head finds the values that can be worked out by hand, and its gradient is that of the loss as it is written."""

import json
import math

import point_mass
import pytest
import torch
from torch import Tensor, nn

from rl.critic import Critic
from rl.heads import Backup, CategoricalHead, GaussianHead, HistogramHead, ScalarHead, ValueHead, VectorHead, make_head
from rl.learner import Learner, LearnerConfig
from rl.loop_config import LoopConfig
from rl.replay import Ring
from rl.residual import ResidualConfig, train_residual
from sinew.errors import InputError
from sinew.rundir import RunDir

FRAME = {"features": ((2,), torch.float32)}
NAMES = ("scalar", "c51", "hl-gauss", "gaussian")


class Still(nn.Module):
    """An actor that puts out one number."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, features):
        return self.value.expand(len(features), 1)


def learner_of(head: ValueHead, heads: int = 2, **settings) -> Learner:
    g = torch.Generator().manual_seed(0)
    usual = {"critic_lr": 1e-2, "tau": 0.1, "smoothing_std": 0.0, "output_l2": 0.0}
    return Learner(
        Still(),
        Critic(3, (16,), heads, head=head, generator=g),
        propose=lambda actor, frames: actor(frames["features"]),
        decode=lambda frames, u: u,
        critic_input=lambda frames, a: torch.cat((frames["features"], a), -1),
        config=LearnerConfig(**{**usual, **settings}),
        generator=g,
    )


def backup(reward: Tensor, discount: Tensor, **settings) -> Backup:
    return Backup(reward=reward, discount=discount, **settings)


def any_head(name: str, heads: int = 2) -> ValueHead:
    return VectorHead([1.0, -0.5], normalise=True) if name == "vector" else make_head(name, heads, -1.0, 2.0, 31)  # type: ignore[arg-type]


# ------------------------------------------------------------ gradients


@pytest.mark.parametrize("name", [*NAMES, "vector"])
def test_networks_of_an_ensemble_do_not_pull_at_each_other(name):
    torch.manual_seed(0)
    head = any_head(name, 3)
    out, reward = torch.randn(3, 8, head.out_dim), torch.rand(8, 2) if name == "vector" else torch.rand(8)
    target = head.target(torch.randn(3, 8, head.out_dim), backup(reward, torch.full((8,), 0.9)))
    fresh = [any_head(name, 3) for _ in range(2)]
    loss, grad = fresh[0].loss(out, target)
    other = out.clone()
    other[1] += 5.0
    _, grad_other = fresh[1].loss(other, target)
    assert torch.equal(grad[[0, 2]], grad_other[[0, 2]])
    alone = [any_head(name, 1).loss(out[k : k + 1], target) for k in range(3)]
    torch.testing.assert_close(loss, torch.stack([a for a, _ in alone]).mean())  # the mean of losses, not a loss of the mean
    torch.testing.assert_close(grad, torch.cat([g for _, g in alone]) / 3)


def test_cross_entropy_gradient_is_autograds():
    torch.manual_seed(0)
    for name in ("c51", "hl-gauss"):
        head = any_head(name)
        out = torch.randn(2, 6, head.out_dim, requires_grad=True)
        target = head.target(torch.randn(2, 6, head.out_dim), backup(torch.rand(6), torch.full((6,), 0.9)))
        written = torch.stack([-(target * out[k].log_softmax(-1)).sum(-1).mean() for k in range(2)]).mean()
        (expected,) = torch.autograd.grad(written, out)
        loss, grad = head.loss(out.detach(), target)
        torch.testing.assert_close(loss, written.detach())
        torch.testing.assert_close(grad, expected)


def test_gaussian_gradient_is_autograds_of_the_written_loss():
    torch.manual_seed(0)
    head, heads, rows = GaussianHead(2), 2, 40
    out = torch.randn(heads, rows, 2, dtype=torch.float64) * torch.tensor([30.0, 3.0], dtype=torch.float64)
    target = 60 * torch.randn(2, rows, dtype=torch.float64)  # errors on both sides of the Huber loss's 50, draws out of reach
    head = head.double()
    head.usual.copy_(torch.tensor([[2.0], [0.5]]))
    loss, grad = head.loss(out, target)
    usual = head.usual  # as it is after the loss moved it
    leaf = out.clone().requires_grad_()
    mean, sigma = leaf[..., 0], nn.functional.softplus(leaf[..., 1])
    fixed, centre = sigma.detach(), mean.detach()
    bounded = centre + (target[1] - centre).clamp(-3 * usual, 3 * usual)
    huber = nn.functional.huber_loss
    first = huber(mean, target[0].expand_as(mean), delta=50.0, reduction="none")
    second = sigma * (fixed**2 - 2 * huber(centre, bounded, delta=50.0, reduction="none")) / (fixed + 0.1)
    weight = (usual**2 / (fixed**2 + 0.1)).clamp(0.1, 10)
    written = (weight * (first + second)).mean()
    torch.testing.assert_close(loss, written.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(written, leaf)[0])
    assert float((bounded - target[1]).abs().max()) > 0 and float((centre - target[0]).abs().max()) > 50


# ------------------------------------------------------------ histograms


def slow_projection(returns: Tensor, p: Tensor, support: Tensor) -> Tensor:
    """Atom after atom, as the definition has it."""
    out = torch.zeros_like(p)
    width = float(support[1] - support[0])
    for b in range(len(p)):
        for j in range(len(support)):
            z = min(max(float(returns[b, j]), float(support[0])), float(support[-1]))
            for i in range(len(support)):
                out[b, i] += max(0.0, 1 - abs(z - float(support[i])) / width) * p[b, j]
    return out


def test_projection_equals_the_slow_one_keeps_mass_and_mean():
    torch.manual_seed(0)
    head = CategoricalHead(-1.0, 2.0, 13).double()
    p = torch.rand(5, 13, dtype=torch.float64).softmax(-1)
    returns = torch.randn(5, 13, dtype=torch.float64) * 2
    returns[0] = head.support  # each on its own place
    returns[1] = 2.0  # all at the upper end
    found = head.project(returns, p)
    torch.testing.assert_close(found, slow_projection(returns, p, head.support), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(found[0], p[0])
    assert float(found[1, -1]) == pytest.approx(1.0)
    inside = returns.clamp(-1, 2)
    torch.testing.assert_close(found @ head.support, (p * inside).sum(-1))


def test_a_distributions_target_is_the_shifted_shrunk_one_of_the_lower_mean():
    head = CategoricalHead(0.0, 4.0, 5)
    sure = torch.full((2, 2, 5), -50.0)
    sure[0, :, 2], sure[1, 0, 1], sure[1, 1, 3] = 50.0, 50.0, 50.0  # means 2 and 2; 1 and 3
    reward, discount = torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.5])
    low = head.target(sure, backup(reward, discount))
    torch.testing.assert_close(low, torch.tensor([[0, 0, 1.0, 0, 0], [0, 0.5, 0.5, 0, 0]]))  # 1 + 1 = 2; 0.5 + 0.5 * 2 = 1.5
    mean = head.target(sure, backup(reward, discount, reduce="mean"))
    torch.testing.assert_close(mean @ head.support, torch.tensor([1 + 1.5, 0.5 + 0.5 * 2.5]))
    ended = head.target(sure, backup(reward, torch.zeros(2)))
    torch.testing.assert_close(ended @ head.support, reward)
    clipped = head.target(sure, backup(reward, discount, high=1.0))
    torch.testing.assert_close(clipped @ head.support, torch.ones(2))


@pytest.mark.parametrize("bins", [8, 21, 51])
def test_a_histogram_gives_back_the_return_it_was_made_of(bins):
    head = HistogramHead(-2.0, 3.0, bins)
    returns = torch.linspace(-2.0, 3.0, 101)
    shares = head.probabilities(returns)
    width = float(head.support[1] - head.support[0])
    torch.testing.assert_close(shares.sum(-1), torch.ones(101))
    torch.testing.assert_close(shares @ head.support, returns, atol=1e-3 * width, rtol=0)
    spread = (shares * (head.support - returns[:, None]).square()).sum(-1).sqrt()
    torch.testing.assert_close(spread, torch.full_like(spread, math.sqrt(0.75**2 + 1 / 12) * width), atol=0.01 * width, rtol=0)
    out = shares.clamp(min=1e-30).log()[None]
    torch.testing.assert_close(head.value(out)[0], returns, atol=2e-3 * width, rtol=0)
    assert float(head.probabilities(torch.tensor([99.0])) @ head.support) == pytest.approx(3.0, abs=1e-3 * width)


# ------------------------------------------------------------ values


def chain(ends: str) -> Ring:
    """s0 → s1 pays 0; s1 ends paying 1, or pays 0.5 and is cut by time, being followed by itself."""
    ring = Ring(4, 1, FRAME, 1)
    off, on = torch.tensor([False]), torch.tensor([True])
    s0, s1, zero = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1)
    ring.add({"features": s0}, zero, torch.tensor([0.0]), off, off)
    by_time = ends == "time"
    ring.add(
        {"features": s1},
        zero,
        torch.tensor([0.5 if by_time else 1.0]),
        off if by_time else on,
        on if by_time else off,
        final={"features": s1},
    )
    return ring


def learn(learner: Learner, ring: Ring, updates: int, gamma: float = 0.8) -> Tensor:
    """Values of s0 and s1, (2,)."""
    for batch in ring.sample(32, updates=updates, gamma=gamma, generator=torch.Generator().manual_seed(0)):
        learner.update(batch, train_actor=False)
    return learner.critic(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).mean(0).detach()


@pytest.mark.parametrize("name", NAMES)
def test_every_head_finds_the_values_of_a_chain(name):
    found = learn(learner_of(make_head(name, 2, 0.0, 1.0)), chain("terminal"), 300)
    torch.testing.assert_close(found, torch.tensor([0.8, 1.0]), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_head_bootstraps_over_a_time_out(name):
    # v1 = 0.5 + 0.8 v1 = 2.5, v0 = 0.8 v1 = 2
    learner = learner_of(make_head(name, 2, 0.0, 4.0), target_low=None, target_high=None)
    torch.testing.assert_close(learn(learner, chain("time"), 400), torch.tensor([2.0, 2.5]), atol=0.12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_head_clips_its_targets(name):
    learner = learner_of(make_head(name, 2, 0.0, 4.0), target_high=1.5)
    found = learn(learner, chain("time"), 300)
    torch.testing.assert_close(found, torch.tensor([1.2, 1.5]), atol=0.05, rtol=0)


def lottery(chance: float, steps: int = 1000) -> Ring:
    """One step from s0: 1 with this chance and else 0."""
    ring, g = Ring(steps, 1, FRAME, 1), torch.Generator().manual_seed(3)
    on, zero = torch.tensor([True]), torch.zeros(1, 1)
    for _ in range(steps):
        ring.add({"features": torch.tensor([[1.0, 0.0]])}, zero, (torch.rand(1, generator=g) < chance).float(), on, ~on)
    return ring


def test_a_distribution_learns_a_lottery():
    ring = lottery(0.3)
    learner = learner_of(CategoricalHead(0.0, 1.0, 11))
    learn(learner, ring, 400)
    p = learner.critic.net(torch.tensor([[1.0, 0.0, 0.0]])).softmax(-1)[:, 0]
    won = float(ring.reward.mean())
    assert float(p[:, -1].mean()) == pytest.approx(won, abs=0.06) and float(p[:, 0].mean()) == pytest.approx(1 - won, abs=0.06)


def test_the_gaussian_learns_the_spread_of_a_lottery():
    ring = lottery(0.3)
    learner = learner_of(GaussianHead(2))
    learn(learner, ring, 1000)
    mean, raw = learner.critic.net(torch.tensor([[1.0, 0.0, 0.0]]))[:, 0].mean(0).detach()
    assert float(mean) == pytest.approx(float(ring.reward.mean()), abs=0.05)
    # draws further than three usual deviations are cut, which none of these are; half the error would give 0.7 of it
    assert float(nn.functional.softplus(raw)) == pytest.approx(float(ring.reward.std()), abs=0.05)


def test_the_running_deviation_starts_at_the_first_and_is_saved():
    learner = learner_of(GaussianHead(2, rate=0.5))
    head = learner.critic.head
    assert isinstance(head, GaussianHead) and bool(head.usual.isnan().all())
    out = torch.randn(2, 6, 2)
    sigma = nn.functional.softplus(out[..., 1]).mean(1, keepdim=True)
    head.loss(out, torch.zeros(2, 6))
    torch.testing.assert_close(head.usual, sigma)
    head.loss(out + 1.0, torch.zeros(2, 6))
    torch.testing.assert_close(head.usual, 0.5 * sigma + 0.5 * nn.functional.softplus(out[..., 1] + 1).mean(1, keepdim=True))
    other = learner_of(GaussianHead(2, rate=0.5))
    other.load_state(*learner.state())
    assert torch.equal(other.critic.head.usual, head.usual)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*NAMES, "vector"])
def test_saving_and_restoring_continues_bit_for_bit(name, tmp_path):
    from rl.checkpoint import read_state, write_state

    ring = two_rewards() if name == "vector" else chain("time")
    learners = [learner_of(any_head(name), actor_every=1) for _ in range(2)]
    batches = ring.sample(16, updates=10, gamma=0.8, generator=torch.Generator().manual_seed(1))
    for batch in batches[:5]:
        learners[0].update(batch)
    write_state(tmp_path / "state.safetensors", *learners[0].state())
    learners[1].load_state(*read_state(tmp_path / "state.safetensors"))
    for batch in batches[5:]:
        for learner in learners:
            learner.update(batch)
    a, b = (learner.state()[0] for learner in learners)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
def test_the_actor_climbs_every_head(name):
    ring, g = Ring(512, 1, FRAME, 1), torch.Generator().manual_seed(0)
    on = torch.tensor([True])
    for _ in range(512):  # one step, reward 1 - (a - 0.3)^2
        a = torch.rand(1, 1, generator=g) * 2 - 1
        ring.add({"features": torch.zeros(1, 2)}, a, (1 - (a - 0.3) ** 2)[0], on, ~on)
    learner = learner_of(make_head(name, 2, -1.0, 1.0), actor_lr=1e-2, actor_every=1)
    for batch in ring.sample(64, updates=400, generator=g):
        learner.update(batch)
    assert float(learner.actor.value.detach()) == pytest.approx(0.3, abs=0.1)  # type: ignore[arg-type]


# ------------------------------------------------------------ several rewards


def two_rewards() -> Ring:
    """s0 → s1 pays (0, 2); s1 ends paying (1, 10)."""
    ring = Ring(4, 1, FRAME, 1)
    off, on = torch.tensor([False]), torch.tensor([True])
    s0, s1, zero = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1)
    ring.add({"features": s0}, zero, torch.tensor([[0.0, 2.0]]), off, off)
    ring.add({"features": s1}, zero, torch.tensor([[1.0, 10.0]]), on, off, final={"features": s1})
    return ring


@pytest.mark.parametrize("normalise", [False, True])
def test_each_reward_has_its_own_value(normalise):
    learner = learner_of(VectorHead([1.0, -0.5], normalise=normalise), target_low=None, target_high=None)
    learn(learner, two_rewards(), 500)
    values = learner.critic.net(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).mean(0)
    torch.testing.assert_close(values, torch.tensor([[0.8, 10.0], [1.0, 10.0]]), atol=0.15, rtol=0)


def test_rewards_of_several_steps_are_summed_apart():
    batch = two_rewards().gather(torch.tensor([0]), n_step=2, gamma=0.5)
    assert batch.reward.tolist() == [[0.5, 7.0]] and batch.discount.tolist() == [0.0]
    ring = two_rewards()
    other = Ring(4, 1, FRAME, 1)
    other.load_state(ring.state())
    assert torch.equal(other.reward, ring.reward)


def test_a_method_learns_from_worlds_with_several_rewards(tmp_path):
    class Paid(point_mass.PointMass):
        """Success, and what moving costs."""

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, torch.stack((reward, action.square().sum(1)), 1), *rest

    limits = {"steps": 160, "random_steps": 80, "critic_only_updates": 50, "batch_size": 16, "evaluate_every": 80}
    free = LearnerConfig(target_low=None, target_high=None)
    cfg = ResidualConfig(**limits, critic_hidden=(16,), reward_weights=(1.0, -0.5), normalise_rewards=True, learner=free)
    run = RunDir.create(tmp_path / "run", cfg)
    train_residual(Paid(4), point_mass.BiasedExecutor(4), point_mass.ToyActor(), point_mass.observe, run, cfg)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows and all(math.isfinite(rows[-1][key]) for key in ("loss", "q", "target", "actor_q"))


def test_the_lowest_sum_decides_whose_values_are_taken():
    head = VectorHead([1.0, -1.0])
    out = torch.tensor([[[3.0, 1.0]], [[2.0, 0.5]]])  # sums 2 and 1.5
    zero, one = torch.zeros(1, 2), torch.ones(1)
    assert head.target(out, backup(zero, one)).tolist() == [[2.0, 0.5]]
    assert head.target(out, backup(zero, one, reduce="mean")).tolist() == [[2.5, 0.75]]
    assert head.value(out).tolist() == [[2.0], [1.5]]


def test_normalising_makes_large_numbers_count_like_small_ones():
    torch.manual_seed(0)
    head = VectorHead([1.0, 1.0], normalise=True)
    target = torch.randn(500, 2) * torch.tensor([1.0, 1000.0])
    loss, grad = head.loss(torch.zeros(1, 500, 2), target)
    sizes = head.value(torch.diag(target.std(0))[None])  # one usual difference of each
    torch.testing.assert_close(sizes, torch.ones(1, 2))
    assert float(loss) == pytest.approx(1.0, abs=0.1)
    leaf = torch.zeros(1, 500, 2, requires_grad=True)
    (expected,) = torch.autograd.grad(((leaf - target) / head.scale).square().mean(), leaf)
    torch.testing.assert_close(grad, expected)


def test_what_does_not_fit_is_refused_in_one_line():
    head, one = VectorHead([1.0, 1.0]), torch.ones(4)
    for call in (
        lambda: head.target(torch.zeros(2, 4, 2), backup(one, one)),
        lambda: head.target(torch.zeros(2, 4, 2), backup(torch.ones(4, 2), one, bonus=one)),
        lambda: VectorHead([]),
        lambda: CategoricalHead(1.0, 0.0, 51),
        lambda: HistogramHead(0.0, 1.0, 7),
        lambda: make_head("quantile", 2),  # type: ignore[arg-type]
        lambda: LoopConfig(critic_head="c51", critic_low=1.0, critic_high=1.0),
        lambda: LoopConfig(critic_head="c51", reward_weights=(1.0, 1.0)),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value)


# ------------------------------------------------------------ choice


@pytest.mark.parametrize("name", NAMES)
def test_a_config_chooses_the_head(name):
    critic = LoopConfig(critic_head=name, critic_high=2.0, critic_heads=3, critic_hidden=(8,)).make_critic(4)
    assert isinstance(
        critic.head, {"scalar": ScalarHead, "c51": CategoricalHead, "hl-gauss": HistogramHead, "gaussian": GaussianHead}[name]
    )
    values = critic(torch.randn(5, 4))
    assert values.shape == (3, 5)
    values.sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
