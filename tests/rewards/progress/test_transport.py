from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from rewards.files import RewardUnavailable
from rewards.measures import auc
from rewards.progress.nearest import Successes
from rewards.progress.transport import MOMENTS, Demonstrations, EpisodeTransport, moments, sinkhorn
from sinew.errors import InputError


def exact(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """Least cost of moving masses (n,) onto masses (m,), as a linear programme."""
    n, m = cost.shape
    left, right = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    found = linprog(cost.ravel(), A_eq=np.vstack([left, right]), b_eq=np.r_[rows, columns], bounds=(0, None))
    return float(found.fun)


def by_logarithms(cost: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, iterations: int = 500) -> torch.Tensor:
    """The same plan as of `sinkhorn`, of one cost, in float64 and in logarithms, where nothing is lost."""
    kernel = -cost.double() / (0.05 * cost.double().mean())
    right = torch.zeros(1, cost.shape[1], dtype=torch.float64)
    for _ in range(iterations):
        left = rows.double().log()[:, None] - torch.logsumexp(kernel + right, 1, keepdim=True)
        right = columns.double().log() - torch.logsumexp(kernel + left, 0, keepdim=True)
    return torch.exp(kernel + left + right)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (7, 4), (3, 9)])
def test_sinkhorn_comes_to_the_least_cost(n, m):
    cost = torch.rand(n, m, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    rows, columns = torch.softmax(torch.linspace(0, 2, n).double(), 0), torch.softmax(torch.linspace(0, 1, m).double(), 0)
    plan = sinkhorn(cost, rows, columns, 0.01, 3000)
    np.testing.assert_allclose(plan.sum(0), columns, atol=1e-9)
    np.testing.assert_allclose(plan.sum(1), rows, atol=2e-3)
    assert float((plan * cost).sum()) == pytest.approx(exact(cost.numpy(), rows.numpy(), columns.numpy()), abs=5e-3)


def test_sinkhorn_finds_an_assignment():
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows, columns = linear_sum_assignment(cost.numpy())
    plan = sinkhorn(cost, torch.full((8,), 0.125), torch.full((8,), 0.125), 0.01, 3000)
    assert plan.argmax(1).tolist() == columns[np.argsort(rows)].tolist()


def test_many_plans_in_single_precision_are_those_of_one_in_logarithms():
    """Frames far from everything, rows as well as columns, have costs at which an exponential is 0."""
    costs = torch.rand(5, MOMENTS, MOMENTS, generator=torch.Generator().manual_seed(0))
    costs[1, 3] += 40.0
    costs[2, :, 7] += 40.0
    costs[3, 2] += 400.0
    mass = torch.softmax(torch.linspace(0, 2, MOMENTS), 0)
    plans = sinkhorn(costs, mass, mass, iterations=500)
    for plan, cost in zip(plans, costs, strict=True):
        expected = by_logarithms(cost, mass, mass)
        torch.testing.assert_close(float((plan * cost).sum()), float((expected * cost).sum()), rtol=1e-3, atol=0)
        torch.testing.assert_close(plan.sum(0), mass, rtol=1e-3, atol=1e-6)


class AsItIs:
    def __call__(self, obs):
        return obs["x"]


def lines(count=3, length=20):
    """Demonstrations side by side, 0.1 apart."""
    x = torch.linspace(0, 5, length)
    return [torch.stack([x, torch.full_like(x, 0.1 * i)], 1) for i in range(count)]


def demonstrations(episodes):
    return Demonstrations(torch.stack([moments(e) for e in episodes]), 1.0)


def cost(episode, episodes=None):
    return float(demonstrations(episodes or lines()).costs(moments(episode)[None]))


def test_an_episode_costs_what_lies_between_it_and_the_demonstration_that_is_closest():
    far = [line + torch.tensor([0.0, 50.0]) for line in lines()]
    own, beside, off = (cost(lines()[0] + torch.tensor([0.0, y]), lines() + far) for y in (0.0, -0.5, -3.0))
    assert own < 0.15  # moments are 0.33 apart, and the entropy, 0.05 of a mean cost of about 3, moves a little between them
    assert beside == pytest.approx(0.5, abs=0.15)
    assert off == pytest.approx(3.0, abs=0.15)
    assert len(demonstrations(lines()).costs(torch.stack([moments(line) for line in lines()]))) == 3


def test_how_fast_an_episode_goes_matters_little():
    way = lines()[0]
    slow = torch.cat((way[:8], way[8].repeat(10, 1), way[8:]))
    assert cost(slow) < 0.5 * cost(way + torch.tensor([0.0, -1.5]))
    assert cost(lines(length=200)[0]) == pytest.approx(cost(way), abs=0.13)  # moments fall on frames: half a step of 0.26 off at most


def test_late_frames_weigh_more():
    early, late = lines()[0].clone(), lines()[0].clone()
    early[:5, 1], late[-5:, 1] = -2.0, -2.0
    assert cost(late) > 3 * cost(early)


def test_the_same_way_backwards_is_worth_less():
    way = lines()[0]
    assert cost(way.flip(0)) > 10 * cost(way)
    forwards, backwards = walk([way, way.flip(0)])[-1].tolist()
    assert backwards < 0.2 * forwards


def test_scenes_that_look_otherwise_are_held_against_their_own_demonstrations():
    """Frames tell far more of the scene, y, than of the way, x: most demonstrations say little of an episode, and its own all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 1, 30)

    def episode(last):
        return torch.stack([x.clamp(max=last), torch.full_like(x, float(20 * torch.rand((), generator=generator)))], 1)

    known = demonstrations([episode(1.0) for _ in range(100)])
    good, bad = (known.costs(torch.stack([moments(episode(last)) for _ in range(20)])).tolist() for last in (1.0, 0.3))
    assert auc([-c for c in good], [-c for c in bad]) > 0.9


def walk(episodes, truncated=True):
    """What worlds are paid that walk along the frames of an episode each, all of one length."""
    reward = EpisodeTransport(AsItIs(), ("x",), demonstrations(lines()), len(episodes))
    reward.begin({"x": torch.stack([e[0] for e in episodes])}, range(len(episodes)))
    paid = []
    for i in range(1, len(episodes[0])):
        last = torch.full((len(episodes),), i == len(episodes[0]) - 1)
        flags = {"success": torch.zeros(len(episodes)), "terminated": last & (not truncated), "truncated": last & truncated}
        paid.append(reward.reward({"next.x": torch.stack([e[i] for e in episodes]), **flags}, {}))
    return torch.stack(paid)


@pytest.mark.parametrize("truncated", [True, False])
def test_an_episode_is_paid_once_at_its_end_and_more_the_nearer_it_went(truncated):
    way = lines()[1]
    bent = way.clone()
    bent[5:15, 1] = 1.0
    paid = walk([way, bent, way + 30.0], truncated)
    assert bool((paid[:-1] == 0).all())
    good, worse, worst = paid[-1].tolist()
    assert good == pytest.approx(0.5)
    assert 0.0 <= worst < worse < 0.1 * good


def test_episodes_of_different_worlds_do_not_mix():
    reward = EpisodeTransport(AsItIs(), ("x",), demonstrations(lines()), 2)
    reward.begin({"x": torch.zeros(2, 2)}, [0, 1])
    flags = {"success": torch.zeros(2), "terminated": torch.zeros(2, dtype=torch.bool)}
    reward.reward({"next.x": torch.ones(2, 2), **flags}, {})
    reward.begin({"x": torch.full((2, 2), 3.0)}, [1])
    assert reward.last.tolist() == [1, 0]
    assert reward.frames[0].tolist() == [[0.0, 0.0], [3.0, 3.0]]
    with pytest.raises(RewardUnavailable, match="world 1 is not finite"):
        reward.reward({"next.x": torch.tensor([[0.0, 0.0], [float("nan"), 0.0]]), **flags}, {})


def test_worlds_that_end_at_different_times_are_paid_for_their_own_episodes():
    """Also after more steps than there was room for at first."""
    way, reward = lines(length=150)[1], EpisodeTransport(AsItIs(), ("x",), demonstrations(lines()), 2)
    reward.begin({"x": torch.stack([way[0], way[0]])}, [0, 1])
    never, paid = torch.zeros(2, dtype=torch.bool), []
    for i, (_, after) in enumerate(pairwise(way), 1):
        ended = torch.tensor([i == 149, i == 60])  # the second world ends on its way, and begins again
        paid.append(reward.reward({"next.x": torch.stack([after, after]), "success": never, "terminated": never, "truncated": ended}, {}))
        if i == 60:
            reward.begin({"x": torch.stack([after, way[0]])}, [1])
    total = torch.stack(paid)
    assert total.count_nonzero().item() == 2
    assert float(total[-1, 0]) == pytest.approx(0.5)
    assert 0.0 < float(total[59, 1]) < 0.1


def test_recorded_successes_become_demonstrations(monkeypatch):
    successes = Successes.of(lines(count=5))
    assert Demonstrations.of(successes).shown.shape == (5, MOMENTS, 2)
    torch.testing.assert_close(Demonstrations.of(successes).shown[:, [0, -1], 0], torch.tensor([[0.0, 5.0]]).expand(5, 2))
    monkeypatch.setattr("rewards.progress.transport.MOST_DEMONSTRATIONS", 3)
    assert Demonstrations.of(successes).shown[:, 0, 1].tolist() == pytest.approx([0.0, 0.2, 0.4])


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        sinkhorn(torch.tensor([[1.0, float("inf")]]), torch.ones(1), torch.full((2,), 0.5))
