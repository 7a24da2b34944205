import point_mass
import pytest
import torch

from rl.episodes import add_episode, plan_along
from rl.replay import DEMO, Ring
from sinew.errors import DataError


def ring(worlds: int = 1) -> Ring:
    return Ring(50, worlds, {"features": ((4,), torch.float32), "base_action": ((2,), torch.float32)}, 2)


def test_a_success_ends_with_reward_one_and_no_bootstrap():
    r, features, action = ring(), torch.randn(6, 4), torch.rand(6, 2)
    assert add_episode(r, features, action, success=True) == 6
    batch = r.gather(r.starts(), n_step=3, gamma=0.9)
    torch.testing.assert_close(batch.reward, torch.tensor([0.0, 0.0, 0.0, 0.81, 0.9, 1.0]))
    assert batch.discount.tolist()[3:] == [0.0, 0.0, 0.0]
    assert (batch.source == DEMO).all()
    assert torch.equal(batch.frames["base_action"], batch.action)  # the executed action stands in for the base's


def test_a_failure_bootstraps_from_its_last_state():
    r, features, action, base = ring(), torch.randn(6, 4), torch.rand(6, 2), torch.rand(6, 2)
    assert add_episode(r, features, action, success=False, base_action=base) == 5  # the last frame is the final state
    batch = r.gather(r.starts(), n_step=10, gamma=0.9)
    assert float(batch.reward.abs().max()) == 0.0
    torch.testing.assert_close(batch.discount, 0.9 ** torch.tensor([5.0, 4, 3, 2, 1]))
    assert (batch.next_frames["features"] == features[5]).all() and (batch.next_frames["base_action"] == base[5]).all()


def test_a_given_final_state_is_used():
    r = ring()
    final, final_base = torch.full((4,), 3.0), torch.full((2,), 0.5)
    steps = add_episode(r, torch.randn(4, 4), torch.rand(4, 2), success=False, final_features=final, final_base_action=final_base)
    batch = r.gather(torch.tensor([3]), n_step=1)
    assert (
        steps == 4 and torch.equal(batch.next_frames["features"][0], final) and torch.equal(batch.next_frames["base_action"][0], final_base)
    )
    with pytest.raises(DataError, match="final_base_action"):
        add_episode(r, torch.randn(4, 4), torch.rand(4, 2), success=False, final_features=final)


def test_bad_episodes_are_refused():
    with pytest.raises(DataError, match="must agree"):
        add_episode(ring(), torch.randn(5, 4), torch.rand(4, 2), success=True)
    broken = torch.rand(5, 2)
    broken[3, 1] = float("nan")
    with pytest.raises(DataError, match=r"action .* frame 3"):
        add_episode(ring(), torch.randn(5, 4), broken, success=True)
    with pytest.raises(DataError, match="one world"):
        add_episode(ring(2), torch.randn(5, 4), torch.rand(5, 2), success=True)


def test_planning_along_episodes_is_what_the_base_does_in_a_rollout():
    executor = point_mass.BiasedExecutor(3)
    episodes = [{point_mass.STATE: torch.randn(n, 4) * 0.3} for n in (7, 5, 9, 6)]
    planned = plan_along(executor, episodes, 3, seed=11)
    assert [len(p) for p in planned] == [7, 5, 9, 6]
    alone = point_mass.BiasedExecutor(1)
    for i, episode in enumerate(episodes):
        alone.reset(None, [11 + i])
        expected = torch.cat([alone.plan({point_mass.STATE: row[None]}) for row in episode[point_mass.STATE]])
        torch.testing.assert_close(planned[i], expected)
