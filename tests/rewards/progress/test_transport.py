import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from rewards.progress.transport import GreedyTransport, sinkhorn, step_costs
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
    plan = 8 * sinkhorn(cost, 0.002, 5000)
    assert plan.argmax(1).tolist() == columns[np.argsort(rows)].tolist()


def test_an_episode_that_is_a_demonstration_costs_nothing_and_a_detour_costs_where_it_is():
    way = torch.stack([torch.linspace(0, 5, 20), torch.zeros(20)], 1)
    other = way + torch.tensor([0.0, 50.0])
    assert float(step_costs(way, [other, way], 1.0).max()) < 0.02
    detour = way.clone()
    detour[8:12, 1] = 3.0
    cost = step_costs(detour, [way], 1.0)
    assert float(cost[8:12].min()) > 2.5
    assert float(torch.cat((cost[:6], cost[14:])).max()) < 0.5


class AsItIs:
    def __call__(self, obs):
        return obs["x"]


def greedy(demonstrations, worlds=1) -> GreedyTransport:
    return GreedyTransport(AsItIs(), demonstrations, 1.0, worlds)  # type: ignore[arg-type]


def test_greedy_moves_never_cost_less_than_the_least():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        demonstration, episode = torch.rand(9, 2, generator=generator), torch.rand(9, 2, generator=generator)
        transport = greedy([demonstration])
        total = sum(float(transport.take(frame[None])[0]) / 9 for frame in episode)
        assert total >= exact(torch.cdist(episode, demonstration).numpy()) - 1e-6


def test_a_demonstration_earns_the_whole_weight_and_nothing_once_it_is_used_up():
    way = torch.stack([torch.linspace(0, 5, 10), torch.zeros(10)], 1)
    transport = greedy([way, way + 9], worlds=2)
    never = torch.zeros(2, dtype=torch.bool)

    def walk(frames):
        return torch.stack([transport.reward({"next.x": f.expand(2, 2), "success": never, "terminated": never}, {}) for f in frames])

    paid = walk(torch.cat((way, way[-1:].repeat(5, 1))))
    torch.testing.assert_close(paid.sum(0), torch.full((2,), transport.weight))
    assert bool((paid[10:].abs() < 1e-6).all())
    transport.begin({}, [1])  # a new episode begins with all of it, the other world has none left
    again = walk(way).sum(0)
    torch.testing.assert_close(again, torch.tensor([0.0, transport.weight]), atol=1e-6, rtol=0)


def test_standing_still_at_the_start_earns_less_than_going_on():
    way = torch.stack([torch.linspace(0, 20, 10), torch.zeros(10)], 1)
    never = torch.zeros(1, dtype=torch.bool)

    def earned(frames):
        transport = greedy([way])
        return sum(float(transport.reward({"next.x": f[None], "success": never, "terminated": never}, {})) for f in frames)

    assert earned(way[:1].repeat(40, 1)) < 0.3 * earned(way)


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        sinkhorn(torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(InputError, match="no demonstration"):
        step_costs(torch.zeros(2, 2), [], 1.0)
