"""Learning from recorded steps: expectiles, a chain whose best path was never walked whole, regression at its limit, exact resume."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import policies.backbones
import policies.flow_q
from policies.bootstrapped import ValueHeads
from rl.batch import Batch
from rl.episodes import add_episode
from rl.flow_q import FlowQConfig, FlowQMethod
from rl.iql import IqlConfig, IqlMethod, expectile_gradient
from rl.learner import LearnerConfig
from rl.offline import STATE_FILE, OfflineConfig, Overlapping, train_offline
from rl.replay import Ring
from rl.td3_bc import Td3BcConfig, Td3BcMethod
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir

LENGTH = 6
"""States of the chain; the last is the goal."""


class Linear(nn.Module):
    """Features → action, one layer."""

    def __init__(self, features: int, actions: int) -> None:
        super().__init__()
        self.last = nn.Linear(features, actions)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.last(features)


def one_hot(state: int) -> torch.Tensor:
    return torch.eye(LENGTH)[state]


def ring(steps: int, features: int, actions: int) -> Ring:
    layout = {"features": ((features,), torch.float32), "base_action": ((actions,), torch.float32)}
    return Ring(steps, 1, layout, actions)


def chain(episodes: int = 60, seed: int = 0) -> Ring:
    """Random walks over 0..4 with actions -1 and +1; reaching 5 is a success. Action +1 is taken in 60 % of the steps."""
    random = torch.Generator().manual_seed(seed)
    made = ring(10_000, LENGTH, 1)
    for episode in range(episodes):
        state, features, actions = episode % (LENGTH - 1), [], []
        for _ in range(12):
            action = 1 if torch.rand((), generator=random) < 0.6 else -1
            features.append(one_hot(state))
            actions.append(torch.tensor([float(action)]))
            state = max(0, state + action)
            if state == LENGTH - 1:
                break
        done = state == LENGTH - 1
        add_episode(made, torch.stack(features), torch.stack(actions), success=done,
                    final_features=None if done else one_hot(state), final_base_action=None if done else torch.zeros(1))  # fmt: skip
    return made


def identity(obs):
    return obs["features"]


# ---------------------------------------------------------------- closed forms


def test_expectile_regression_ends_at_the_expectile():
    targets = torch.tensor([0.0, 0.0, 0.0, 1.0])
    for tau in (0.5, 0.8, 0.95):
        value = torch.zeros(4)
        for _ in range(4000):
            _, gradient = expectile_gradient(value, targets, tau)
            value = value - 0.5 * gradient.sum()
        # 3 (1 - tau) v = tau (1 - v)
        assert value[0].item() == pytest.approx(tau / (tau + 3 * (1 - tau)), abs=1e-4)


def test_expectile_gradient_is_that_of_its_loss():
    value = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.linspace(-1, 1, 9, dtype=torch.float64)
    loss, gradient = expectile_gradient(value, target, 0.7)
    loss.backward()
    torch.testing.assert_close(value.grad, gradient)


def test_iql_finds_the_optimal_values_of_a_chain_in_walks_that_wander():
    config = IqlConfig(
        offline_updates=1500, batch_size=128, gamma=0.8, expectile=0.95, beta=20.0, critic_hidden=(32,),
        learner=LearnerConfig(actor_lr=1e-2, critic_lr=3e-3, tau=0.02, actor_every=1, smoothing_std=0.0, output_l2=0.0),
    )  # fmt: skip
    actor = Linear(LENGTH, 1)
    method = IqlMethod(actor, identity, 1, config)
    data = chain()
    learner = method.make_learner({"features": torch.eye(LENGTH)})
    random = torch.Generator().manual_seed(3)
    for batch in itertools.chain.from_iterable(
        data.sample(128, updates=50, gamma=config.gamma, generator=random) for _ in range(config.offline_updates // 50)
    ):
        learner.update(batch)
    found = learner.value_engine.evaluate(torch.eye(LENGTH))[0, :-1, 0]  # type: ignore[attr-defined]
    optimal = torch.tensor([config.gamma ** (LENGTH - 2 - s) for s in range(LENGTH - 1)])
    torch.testing.assert_close(found, optimal, atol=0.08, rtol=0)
    # the walks go right in 60 % of the steps, a mean action of 0.2; the actor goes right everywhere
    assert (actor(torch.eye(LENGTH)[:-1]) > 0.5).all()


def test_td3_bc_without_value_is_regression():
    """With alpha 0 the actor ends at the least-squares fit of the recorded actions."""
    random = torch.Generator().manual_seed(0)
    data, features = ring(256, 3, 2), torch.randn(200, 3, generator=random)
    truth = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.2, 0.1]])
    actions = features @ truth + 0.1 * torch.randn(200, 2, generator=random)
    add_episode(data, features, actions.clamp(-1, 1), success=True)
    config = Td3BcConfig(alpha=0.0, critic_hidden=(16,), learner=LearnerConfig(actor_lr=3e-3, actor_every=1, smoothing_std=0.0))
    actor = Linear(3, 2)
    learner = Td3BcMethod(actor, identity, 2, config).make_learner({"features": features})
    for batch in data.sample(200, updates=1500, generator=random):
        learner.update(batch)
    design = torch.cat([features, torch.ones(200, 1)], 1)
    fit = torch.linalg.lstsq(design, actions.clamp(-1, 1)).solution
    torch.testing.assert_close(actor(features), design @ fit, atol=0.03, rtol=0)


def test_td3_bc_goes_where_the_value_is_beside_the_data():
    """Q(a) = 1 - (a - 0.5)^2 and data at 0: the actor ends between, nearer to 0.5 the larger alpha."""
    found = []
    for alpha in (0.1, 2.5, 50.0):
        config = Td3BcConfig(alpha=alpha, critic_hidden=(32, 32), learner=LearnerConfig(
            actor_lr=1e-2, critic_lr=3e-3, actor_every=1, smoothing_std=0.0, target_low=None, target_high=None))  # fmt: skip
        actor = Linear(1, 1)
        learner = Td3BcMethod(actor, identity, 1, config).make_learner({"features": torch.ones(1, 1)})
        random = torch.Generator().manual_seed(1)
        for _ in range(400):
            action = 2 * torch.rand(64, 1, generator=random) - 1
            learner.critic_step(_bandit(action, 1 - (action[:, 0] - 0.5).square()), 1 - (action[:, 0] - 0.5).square())
        for _ in range(300):
            learner._batch = _bandit(torch.zeros(64, 1), torch.ones(64))
            learner.actor_step({"features": torch.ones(64, 1)})
        found.append(actor(torch.ones(1, 1)).item())
    assert found[0] < found[1] < found[2]
    assert found[0] == pytest.approx(0.0, abs=0.1) and found[2] == pytest.approx(0.5, abs=0.1)


def _bandit(action: torch.Tensor, reward: torch.Tensor) -> Batch:
    rows = len(action)
    ones, zeros = torch.ones(rows, 1), torch.zeros(rows)
    whole = torch.ones(rows, dtype=torch.int64)
    return Batch({"features": ones}, action, reward, zeros, {"features": ones}, whole, whole.to(torch.uint8), whole)


# ---------------------------------------------------------------- chunks


def test_chunks_may_start_at_every_step_and_are_cut_at_the_end():
    data = ring(32, 1, 1)
    for length in (5, 7):
        add_episode(data, torch.arange(length, dtype=torch.float32)[:, None], torch.full((length, 1), 0.5), success=True)
    (batch,) = Overlapping(data).sample(4000, stride=4, gamma=0.9, generator=torch.Generator().manual_seed(0))
    assert set(batch.slot.tolist()) == set(range(12))
    for slot, span, reward, discount in zip(batch.slot, batch.span, batch.reward, batch.discount, strict=True):
        place, length = (int(slot), 5) if slot < 5 else (int(slot) - 5, 7)
        left = length - place
        assert span == min(4, left)
        assert reward == pytest.approx(0.9 ** (left - 1) if left <= 4 else 0.0)
        assert discount == pytest.approx(0.0 if left <= 4 else 0.9**4)
    assert (batch.action[batch.span == 2][:, 2:] == 0).all()


def test_chunks_of_running_episodes_wait_until_they_are_whole():
    online = Ring(16, 2, {"features": ((1,), torch.float32)}, 1)
    no = torch.zeros(2, dtype=torch.bool)
    for t in range(6):
        ended = torch.tensor([t == 4, False])
        online.add({"features": torch.full((2, 1), float(t))}, torch.zeros(2, 1), torch.zeros(2), ended, no)
    (batch,) = Overlapping(online).sample(2000, stride=3, generator=torch.Generator().manual_seed(0))
    starts = {(int(s) // 2, int(s) % 2) for s in batch.slot}
    # world 0 ended after step 4, so all its steps but the new episode's count; world 1 runs: three steps and the state after them
    assert starts == {(t, 0) for t in range(5)} | {(t, 1) for t in range(3)}
    with pytest.raises(InputError, match="no 8 steps in a row"):
        fresh = Ring(16, 1, {"features": ((1,), torch.float32)}, 1)
        fresh.add({"features": torch.zeros(1, 1)}, torch.zeros(1, 1), torch.zeros(1), no[:1], no[:1])
        fresh.add({"features": torch.zeros(1, 1)}, torch.zeros(1, 1), torch.zeros(1), no[:1], no[:1])
        Overlapping(fresh).sample(1, stride=8)


# ---------------------------------------------------------------- flow Q-learning


class ToyFlow(nn.Module):
    """One-step policy: an affine map of the noise. Behaviour flow: the exact one of data at `mean`, so that it needs no learning."""

    def __init__(self, size: int, mean: float = 0.25) -> None:
        super().__init__()
        self.mean = mean
        self.scale, self.shift = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def jump(self, features, noise):
        return self.scale * noise + self.shift

    def velocity(self, features, x, t):
        return (x - self.mean) / t.clamp(min=1e-3)[:, None] + 0 * self.shift

    def flow(self, features, noise):
        return torch.full_like(noise, self.mean)


def test_one_step_policy_lands_where_the_flow_takes_its_noise():
    """With a large alpha the policy is the flow's map: here all noise goes to 0.25."""
    config = FlowQConfig(
        alpha=1000.0, critic_hidden=(16,), learner=LearnerConfig(actor_lr=2e-2, actor_every=1, smoothing_std=0.0, output_l2=0.0)
    )
    actor = ToyFlow(3)
    learner = FlowQMethod(actor, identity, 3, config).make_learner({"features": torch.ones(1, 1)})
    for _ in range(300):
        learner.update(_bandit(torch.full((64, 3), 0.25), torch.ones(64)))
    noise = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(actor.jump(None, noise), torch.full((100, 3), 0.25), atol=0.03, rtol=0)


def test_behaviour_flow_is_not_taught_what_lies_past_the_end():
    config = FlowQConfig(critic_hidden=(16,))
    method = FlowQMethod(ToyFlow(4), identity, 2, config, stride=2)
    learner = method.make_learner({"features": torch.ones(1, 1)})
    whole = _bandit(torch.zeros(8, 4), torch.ones(8))
    batch = Batch(whole.frames, torch.full((8, 2, 2), 0.3), whole.reward, whole.discount, whole.next_frames,
                  torch.ones(8, dtype=torch.int64), whole.source, whole.slot)  # fmt: skip
    seen = []
    learner.critic_step = lambda batch, target: seen.append(batch.action)  # type: ignore[method-assign]
    learner.update(batch)
    learner.update(batch)
    for action in seen:
        assert (action[:, :2] == 0.3).all() and not (action[:, 2:] == 0.0).any()
    assert not torch.equal(seen[0][:, 2:], seen[1][:, 2:])
    assert learner._past.tolist() == [[False, False, True, True]] * 8  # type: ignore[attr-defined]


def test_the_best_of_several_chunks_is_taken_by_the_slow_critics():
    """The flow puts out its noise, so that the best candidate is the noise that critics value most."""
    base = policies.flow_q.FlowQActor(nn.Linear(1, 1), None, ValueHeads(3, (4,), 2), (1, 2), 1)
    base.flow = lambda features, noise: noise  # type: ignore[method-assign]
    config = FlowQConfig(candidates=5, critic_hidden=(4,))
    learner = FlowQMethod(base, identity, 2, config).make_learner({"features": torch.ones(1, 1)})

    def values(noise):
        rows, number = noise.shape[:2]
        return base.critic(torch.cat([torch.ones(rows * number, 1), noise.flatten(0, 1)], -1)).mean(0).view(rows, number)

    noise = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(base.best(torch.ones(7, 1), noise), noise[torch.arange(7), values(noise).argmax(1)])
    # targets bootstrap from the best chunk of fresh noise, as the slow critics see it
    action, _ = learner.next_action(_bandit(torch.zeros(64, 2), torch.zeros(64)).frames)
    fresh = learner._noise  # type: ignore[attr-defined]
    assert torch.equal(action, fresh[torch.arange(64), values(fresh).argmax(1)].clamp(-1, 1))


def test_only_the_flow_learns_where_candidates_are_chosen_from():
    actor = policies.flow_q.FlowQActor(
        policies.backbones.MlpBackbone(2, 1, 1, (16,), 4), None, ValueHeads(3, (8,), 2).requires_grad_(False), (2, 1), 3
    )
    config = FlowQConfig(candidates=4, critic_hidden=(8,), learner=LearnerConfig(
        actor_lr=1e-2, actor_every=1, smoothing_std=0.0, output_l2=0.0, target_actor=False))  # fmt: skip
    learner = FlowQMethod(actor, identity, 2, config).make_learner({"features": torch.ones(1, 1)})
    before = [p.clone() for p in actor.behaviour.parameters()]
    for _ in range(300):
        learner.update(_bandit(torch.full((64, 2), 0.25), torch.ones(64)))
    assert not any(torch.equal(a, b) for a, b in zip(before, actor.behaviour.parameters(), strict=True) if a.numel() > 1)
    found = actor.best(torch.ones(50, 1), torch.randn(50, 4, 2, generator=torch.Generator().manual_seed(0)))
    assert (found - 0.25).abs().mean() < 0.12
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(actor.critic.parameters(), learner.critic_target.net.parameters(), strict=True))


def test_judging_chunks_as_steps_ahead_is_refused():
    with pytest.raises(InputError, match="n_step is 3"):
        FlowQMethod(ToyFlow(4), identity, 2, FlowQConfig(n_step=3), stride=2).make_learner({"features": torch.ones(1, 1)})


# ---------------------------------------------------------------- the loop


def makers():
    shared = {"offline_updates": 200, "evaluate_updates": 100, "batch_size": 32, "critic_hidden": (16,)}
    return {
        "iql": lambda: IqlMethod(Linear(LENGTH, 1), identity, 1, IqlConfig(**shared)),
        "td3-bc": lambda: Td3BcMethod(Linear(LENGTH, 1), identity, 1, Td3BcConfig(**shared)),
        "fql": lambda: FlowQMethod(ToyFlow(1), identity, 1, FlowQConfig(**shared)),
        "qc": lambda: FlowQMethod(ToyFlow(3), identity, 1, FlowQConfig(**shared), stride=3),
        "best": lambda: FlowQMethod(best_of_flow(), identity, 1, FlowQConfig(**shared, candidates=2), stride=3),
    }


def best_of_flow():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = policies.backbones.MlpBackbone(3, 1, LENGTH, (8,), 2)
        return policies.flow_q.FlowQActor(net, None, ValueHeads(LENGTH + 3, (16,), 2).requires_grad_(False), (3, 1), 2)


@pytest.mark.parametrize("name", ["iql", "td3-bc", "fql", "qc", "best"])
def test_resuming_equals_not_being_interrupted(tmp_path, name):
    scores = [{"k": k, "n": 10} for k in (4, 3)]
    whole = makers()[name]()
    (tmp_path / "a").mkdir()
    given = iter(scores)
    result = train_offline(whole, chain(), RunDir(tmp_path / "a"), whole.config, evaluate=lambda: next(given))
    assert (result.best.k, result.updates) == (4, 200)

    (tmp_path / "b").mkdir()
    first = makers()[name]()
    given = iter(scores[:1])  # the second evaluation fails, as a kill would
    with pytest.raises(StopIteration):
        train_offline(first, chain(), RunDir(tmp_path / "b"), first.config, evaluate=lambda: next(given))
    again = makers()[name]()
    given = iter(scores[1:])
    resumed = train_offline(again, chain(), RunDir(tmp_path / "b"), again.config, evaluate=lambda: next(given))
    assert resumed.history == result.history
    mine, theirs = whole.learner.state()[0], again.learner.state()[0]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    done = makers()[name]()  # a finished run is only read
    final = train_offline(done, chain(), RunDir(tmp_path / "b"), done.config, evaluate=lambda: pytest.fail("nothing is left to do"))
    assert final.history == result.history
    assert all(torch.equal(a, b) for a, b in zip(whole.actor.parameters(), done.actor.parameters(), strict=True))


def test_other_settings_other_data_and_no_data_are_told(tmp_path):
    (tmp_path / "a").mkdir()
    method = makers()["iql"]()
    train_offline(method, chain(), RunDir(tmp_path / "a"), method.config)
    other = IqlMethod(Linear(LENGTH, 1), identity, 1, IqlConfig(**{**_fields(method.config), "expectile": 0.6}))
    with pytest.raises(InputError, match=r"another run: expectile is 0\.8 there, 0\.6 here"):
        train_offline(other, chain(), RunDir(tmp_path / "a"), other.config)
    with pytest.raises(InputError, match="another run: actions is "):
        again = makers()["iql"]()
        train_offline(again, chain(seed=1, episodes=60), RunDir(tmp_path / "a"), again.config)
    with pytest.raises(InputError, match="no step to learn from"):
        train_offline(makers()["iql"](), ring(8, LENGTH, 1), RunDir(tmp_path / "b"), method.config)
    (tmp_path / "a" / STATE_FILE).write_bytes(b"torn")
    with pytest.raises(DataError, match="delete it to start again"):
        again = makers()["iql"]()
        train_offline(again, chain(), RunDir(tmp_path / "a"), again.config)


def _fields(config: OfflineConfig) -> dict:
    return {"offline_updates": config.offline_updates, "evaluate_updates": config.evaluate_updates,
            "batch_size": config.batch_size, "critic_hidden": config.critic_hidden}  # fmt: skip


@pytest.mark.parametrize("bad", [{"offline_updates": 0}, {"expectile": 1.0}, {"beta": -1.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError):
        IqlConfig(**bad)
