import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from rewards.files import RewardUnavailable
from rewards.progress.transport import EpisodeTransport, sinkhorn, step_costs
from sinew.errors import InputError


def exact(cost: np.ndarray) -> float:
    """Least cost of moving equal masses 1/n onto equal masses 1/m, as a linear programme."""
    n, m = cost.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    found = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.r_[np.full(n, 1 / n), np.full(m, 1 / m)], bounds=(0, None))
    return float(found.fun)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (7, 4), (3, 9)])
def test_sinkhorn_comes_to_the_least_cost(n, m):
    cost = torch.rand(n, m, generator=torch.Generator().manual_seed(n))
    plan = sinkhorn(cost, 0.005, 3000)
    np.testing.assert_allclose(plan.sum(0), 1 / m, atol=1e-9)
    np.testing.assert_allclose(plan.sum(1), 1 / n, atol=2e-3)
    assert float((plan * cost).sum()) == pytest.approx(exact(cost.numpy()), abs=5e-3)


def test_sinkhorn_finds_an_assignment():
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(3))
    rows, columns = linear_sum_assignment(cost.numpy())
    plan = 8 * sinkhorn(cost, 0.002, 4000)
    assert plan.argmax(1).tolist() == columns[np.argsort(rows)].tolist()


def test_an_episode_that_is_a_demonstration_costs_nothing_and_a_detour_costs_where_it_is():
    way = torch.stack([torch.linspace(0, 5, 20), torch.zeros(20)], 1)
    other = way + torch.tensor([0.0, 50.0])
    assert float(step_costs(way, [other, way], 1.0).max()) < 0.05  # frames are 0.26 apart
    detour = way.clone()
    detour[8:12, 1] = 3.0
    cost = step_costs(detour, [way], 1.0)
    assert float(cost[8:12].min()) > 2.5
    assert float(torch.cat((cost[:6], cost[14:])).max()) < 0.5


class AsItIs:
    def __call__(self, obs):
        return obs["x"]


def lines(count=3):
    """Demonstrations side by side, 0.1 apart."""
    x = torch.linspace(0, 5, 20)
    return [torch.stack([x, torch.full_like(x, 0.1 * i)], 1) for i in range(count)]


def walk(episodes, truncated=True):
    """What worlds are paid that walk along the frames of an episode each, all of one length."""
    reward = EpisodeTransport(AsItIs(), lines(), 1.0, len(episodes))
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


def test_the_same_way_backwards_is_worth_as_much():
    """Transport does not know the order of frames: that is a limit of it, and told in the documentation."""
    way = lines()[0]
    torch.testing.assert_close(walk([way])[-1], walk([way.flip(0)])[-1])


def test_episodes_of_different_worlds_do_not_mix():
    reward = EpisodeTransport(AsItIs(), lines(), 1.0, 2)
    reward.begin({"x": torch.zeros(2, 2)}, [0, 1])
    flags = {"success": torch.zeros(2), "terminated": torch.zeros(2, dtype=torch.bool)}
    reward.reward({"next.x": torch.ones(2, 2), **flags}, {})
    reward.begin({"x": torch.full((2, 2), 3.0)}, [1])
    assert [len(f) for f in reward.frames] == [2, 1]
    with pytest.raises(RewardUnavailable, match="world 1 is not finite"):
        reward.reward({"next.x": torch.tensor([[0.0, 0.0], [float("nan"), 0.0]]), **flags}, {})


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        sinkhorn(torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(InputError, match="no demonstration"):
        step_costs(torch.zeros(2, 2), [], 1.0)
