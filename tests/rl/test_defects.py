"""One test per defect that was found in a published release of off-policy learning; each fails on code that has it."""

import copy
import re
from pathlib import Path

import point_mass
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rl.critic import Critic, EnsembleMLP, ScalarHead
from rl.learner import Learner, LearnerConfig
from rl.replay import Ring
from rl.residual import ResidualConfig, decode, make_learner, train_residual
from sinew.rundir import RunDir

FRAME = {"features": ((4,), torch.float32), "base_action": ((2,), torch.float32)}


def config(**settings) -> ResidualConfig:
    values = {"steps": 160, "random_steps": 80, "critic_only_updates": 4, "critic_hidden": (16,), "batch_size": 16, "evaluate_every": 10**6}
    return ResidualConfig(**{**values, "checkpoint_every": 10**6, **settings})


class Recorded(point_mass.PointMass):
    """Remembers the actions that were executed and what came of them."""

    def __init__(self, num_envs: int, **settings) -> None:
        super().__init__(num_envs, **settings)
        self.actions: list[torch.Tensor] = []
        self.results: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def step(self, action):
        self.actions.append(action.clone())
        out = super().step(action)
        self.results.append((out[2].clone(), out[3].clone(), out[4]["final_observation"][point_mass.STATE].clone()))
        return out


def trained(tmp_path: Path, env: Recorded, executor=None, actor=None, **settings):
    """A short run, with the replay it filled."""
    rings: list[Ring] = []

    class Spy(Ring):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            rings.append(self)

    executor = executor or point_mass.BiasedExecutor(env.num_envs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl.memory.Ring", Spy)
        cfg = config(**settings)
        train_residual(env, executor, actor or point_mass.ToyActor(), point_mass.observe, RunDir.create(tmp_path / "run", cfg), cfg)
    return rings[0], executor


# ------------------------------------------------------------ critic


def test_critic_loss_does_not_couple_the_heads():
    # (mean_k |Q_k - y|)^2 would give head 0 a gradient where it is exact, and 0.25 instead of 0.5 for errors 0 and 1
    out, target = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([1.0])
    loss, grad = ScalarHead().loss(out, target)
    assert float(loss) == 0.5
    assert grad[:, 0, 0].tolist() == [0.0, 1.0]
    leaf = out.clone().requires_grad_()
    (expected,) = torch.autograd.grad((leaf[..., 0] - target).square().mean(1).mean(), leaf)
    assert torch.equal(grad, expected)


def test_every_head_is_initialised_orthogonally_and_differently():
    net = EnsembleMLP(32, (32, 32), 1, heads=4)
    for layer in range(2):
        for head in net.weight[layer]:
            torch.testing.assert_close(head @ head.t(), 2 * torch.eye(32), atol=1e-4, rtol=0)  # gain sqrt 2
        assert not torch.allclose(net.weight[layer][0], net.weight[layer][1])
    assert all(float(b.detach().abs().max()) == 0 for b in net.bias)


def test_no_template_head_is_among_the_parameters():
    heads, layers = 4, ((6, 8), (8, 8), (8, 1))
    critic = Critic(6, (8, 8), heads)
    expected = heads * (sum(a * b + b for a, b in layers) + 2 * 2 * 8)
    assert sum(p.numel() for p in critic.parameters()) == expected == sum(v.numel() for v in critic.state_dict().values())
    critic(torch.randn(3, 6)).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for n, p in critic.named_parameters())


# ------------------------------------------------------------ base queue


def test_chunk_queue_is_reset_before_the_first_plan_of_an_episode_also_after_a_time_out(tmp_path):
    env = Recorded(3, max_episode_steps=7)
    _, executor = trained(tmp_path, env)
    kinds = {"terminated": 0, "truncated": 0}
    calls = executor.log
    plans = [i for i, call in enumerate(calls) if call[0] == "plan"]
    for step, (terminated, truncated, _) in enumerate(env.results):
        ended = torch.nonzero(terminated | truncated)[:, 0].tolist()
        kinds["terminated"] += int(terminated.sum())
        kinds["truncated"] += int(truncated.sum())
        between = calls[plans[step] + 1 : plans[step + 1]]
        assert [worlds for what, worlds in between if what == "reset"] == ([ended] if ended else [])
        names = [what for what, _ in between]
        assert names == (["peek", "reset"] if ended else [])
    assert min(kinds.values()) > 0, "both kinds of ends must occur for this test to mean anything"


def test_first_planned_action_of_an_episode_is_not_from_the_old_chunk(tmp_path):
    env = Recorded(2, max_episode_steps=6)  # 6 is no multiple of the chunk of 4: two actions are left over at each time-out
    ring, _ = trained(tmp_path, env, point_mass.BiasedExecutor(2, noise=0.0))
    features, base = ring.frames("features"), ring.frames("base_action")
    first = ring.episode_step.view(ring.length, 2)[: ring.count] == 0
    p, goal = features[: ring.count][first][:, :2], features[: ring.count][first][:, 2:] + torch.tensor([0.12, 0.0])
    torch.testing.assert_close(base[: ring.count][first], ((goal - p) / 0.15).clamp(-1, 1))
    assert int(first.sum()) > 10


# ------------------------------------------------------------ ends of episodes


def test_time_outs_are_not_terminal(tmp_path):
    env = Recorded(2, max_episode_steps=5, radius_m=1e-6)  # nothing but time-outs
    ring, _ = trained(tmp_path, env)
    assert bool(ring.truncated.any()) and not bool(ring.terminated.any())
    batch = ring.gather(ring.starts(), n_step=3, gamma=0.9)
    torch.testing.assert_close(batch.discount, 0.9 ** batch.span.float())


def test_final_base_action_is_what_the_base_would_plan_there_not_zeros(tmp_path):
    env = Recorded(2, max_episode_steps=5, radius_m=1e-6)
    ring, _ = trained(tmp_path, env, point_mass.BiasedExecutor(2, noise=0.0, horizon=1))
    starts = ring.starts()
    last = starts[ring.truncated[starts % (ring.length * 2)]]
    batch = ring.gather(last, n_step=1)
    final = torch.stack([env.results[int(s) // 2][2][int(s) % 2] for s in last])
    torch.testing.assert_close(batch.next_frames["features"], final)
    goal = final[:, 2:] + torch.tensor([0.12, 0.0])
    torch.testing.assert_close(batch.next_frames["base_action"], ((goal - final[:, :2]) / 0.15).clamp(-1, 1))
    assert float(batch.next_frames["base_action"].abs().min()) > 0


# ------------------------------------------------------------ actions


def test_what_is_stored_is_the_clamped_action_that_was_executed(tmp_path):
    class Pusher(nn.Module):
        """A residual that leaves the bounds wherever the base is at them."""

        def __init__(self) -> None:
            super().__init__()
            self.size = nn.Parameter(torch.tensor(0.9))

        def forward(self, features, base_action):
            return self.size * torch.sign(base_action)

    env = Recorded(2)
    ring, _ = trained(tmp_path, env, actor=Pusher())
    stored = ring.action.view(ring.length, 2, 2)[: ring.count]
    assert float(stored.abs().max()) == 1.0
    executed = torch.stack(env.actions)[-len(stored) :]
    torch.testing.assert_close(env.action_spec.denormalize(stored), executed)
    torch.testing.assert_close(stored, env.action_spec.normalize(executed), atol=1e-6, rtol=0)
    base = {"base_action": torch.tensor([[0.9, -0.5]])}
    assert decode(base, torch.tensor([[0.4, -0.8]])).tolist() == [[1.0, -1.0]]  # targets and actor see the same


# ------------------------------------------------------------ n-step


def test_n_step_is_chosen_when_sampling_and_worlds_do_not_mix():
    ring = Ring(10, 3, FRAME, 2)
    no = torch.zeros(3, dtype=torch.bool)
    for t in range(6):
        frame = {"features": torch.zeros(3, 4), "base_action": torch.zeros(3, 2)}
        ring.add(frame, torch.zeros(3, 2), torch.tensor([1.0, 10.0, 100.0]) * (t + 1), no, no)
    for n in (1, 2, 4):
        batch = ring.gather(torch.tensor([0, 1, 2]), n_step=n, gamma=1.0)
        total = n * (n + 1) / 2
        assert batch.reward.tolist() == [total, 10 * total, 100 * total]
    assert ring.gather(torch.tensor([0]), n_step=2, gamma=0.5).reward.tolist() == [2.0]  # 1 + 0.5 * 2


def test_n_step_never_crosses_an_episode_and_keeps_the_short_tail():
    ring = Ring(10, 1, FRAME, 2)
    rewards, ends = [0.0, 0.0, 1.0, 5.0, 5.0], {2: "truncated"}
    for t, reward in enumerate(rewards):
        cut = torch.tensor([ends.get(t) == "truncated"])
        frame = {"features": torch.full((1, 4), float(t)), "base_action": torch.zeros(1, 2)}
        final = {"features": torch.full((1, 4), 99.0), "base_action": torch.zeros(1, 2)} if t in ends else None
        ring.add(frame, torch.zeros(1, 2), torch.tensor([reward]), torch.tensor([False]), cut, final=final)
    batch = ring.gather(torch.tensor([0, 1, 2]), n_step=3, gamma=0.9)
    assert batch.span.tolist() == [3, 2, 1]
    torch.testing.assert_close(batch.reward, torch.tensor([0.81, 0.9, 1.0]))  # the 5s of the next episode are not in it
    torch.testing.assert_close(batch.discount, torch.tensor([0.9**3, 0.9**2, 0.9]))  # the actual span, not gamma^n
    assert (batch.next_frames["features"] == 99.0).all()
    assert set(ring.starts().tolist()) == {0, 1, 2, 3}


# ------------------------------------------------------------ the update itself


class Watch(TorchDispatchMode):
    """Collects the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ["loop", "autograd"])
@pytest.mark.parametrize("heads", [2, 10])
def test_an_update_reads_no_value_back(engine, heads):
    cfg = config(critic_heads=heads, learner=LearnerConfig(engine=engine, actor_every=1))
    learner = make_learner(point_mass.ToyActor(), 4, 2, cfg)
    ring = Ring(64, 1, FRAME, 2)
    for _ in range(50):
        frame = {"features": torch.randn(1, 4), "base_action": torch.rand(1, 2)}
        ring.add(frame, torch.rand(1, 2), torch.rand(1), torch.rand(1) < 0.1, torch.zeros(1, dtype=torch.bool))
    batches = ring.sample(16, updates=3, n_step=3)
    learner.update(batches[0])
    with Watch() as watch:
        for batch in batches:
            learner.update(batch)
    assert len(watch.seen) > 50
    reads = [name for name in watch.seen if "_local_scalar_dense" in name or "is_nonzero" in name or "nonzero" in name]
    assert not reads, reads


def test_no_backward_retains_its_graph():
    for path in Path(__file__).parents[2].joinpath("rl").glob("*.py"):
        assert "retain_graph" not in path.read_text(), path.name
    # and the actor's loss leaves nothing in the critic
    learner = make_learner(point_mass.ToyActor(), 4, 2, config(critic_hidden=(16,)))
    frames = {"features": torch.randn(8, 4), "base_action": torch.rand(8, 2)}
    before = copy.deepcopy(learner.critic.state_dict())
    learner.actor_step(frames)
    assert all(p.grad is None for p in learner.critic.parameters())
    assert all(torch.equal(v, before[k]) for k, v in learner.critic.state_dict().items())


def test_next_state_is_seen_through_targets_only():
    """The target must not move with the trained networks: neither critic nor actor, nor any encoder they would hold."""
    learner = make_learner(point_mass.ToyActor(), 4, 2, config(learner=LearnerConfig(smoothing_std=0.0, target_low=None, target_high=None)))
    ring = Ring(64, 1, FRAME, 2)
    no = torch.zeros(1, dtype=torch.bool)
    for _ in range(50):
        ring.add({"features": torch.randn(1, 4), "base_action": torch.rand(1, 2)}, torch.rand(1, 2), torch.rand(1), no, no)
    batch = ring.sample(32)[0]
    before = learner.target(batch)
    with torch.no_grad():
        for p in (*learner.critic.parameters(), *learner.actor.parameters()):
            p.add_(1.0)
    assert torch.equal(learner.target(batch), before)
    assert not any(p.requires_grad for p in (*learner.critic_target.parameters(), *learner.actor_target.parameters()))


def test_the_frozen_base_is_not_asked_during_updates(tmp_path):
    env = Recorded(2)
    _, executor = trained(tmp_path, env, critic_only_updates=200)
    plans = sum(what == "plan" for what, _ in executor.log)
    assert plans == len(env.actions) + 1


def test_no_transition_joins_two_episodes_even_where_a_checkpoint_starts_them_anew(tmp_path):
    ring, _ = trained(tmp_path, Recorded(2), checkpoint_every=30)
    batch = ring.gather(ring.starts(), n_step=1)
    bootstraps = batch.discount > 0
    before, after = batch.frames["features"][bootstraps], batch.next_frames["features"][bootstraps]
    torch.testing.assert_close(after[:, :2], (before[:, :2] + 0.15 * batch.action[bootstraps]).clamp(-1, 1))
    assert torch.equal(after[:, 2:], before[:, 2:])  # the goal of an episode never moves
    assert int(ring.truncated.sum()) > 0 and len(before) > 50


def test_the_warm_up_counts_environment_steps_whatever_episodes_and_worlds_there_are(tmp_path):
    """A minimum that counts trajectories starts to learn at another time with every task."""
    updates: list[int] = []

    class Watched(Recorded):
        def step(self, action):
            updates.append(len(seen))
            return super().step(action)

    seen: list[int] = []
    for worlds in (1, 5):
        updates.clear()
        seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "update", lambda self, batch, *, train_actor=True: seen.append(len(batch.reward)))
            trained(tmp_path / str(worlds), Watched(worlds), random_steps=80)
        first = next(i for i, n in enumerate(updates) if n)
        assert first * worlds == 80


def test_all_heads_are_not_drawn_as_a_permutation():
    """A compiler of today breaks on a random subset that is the whole; nothing is drawn where all are wanted."""
    assert make_learner(point_mass.ToyActor(), 4, 2, config(critic_heads=2)).draw_heads() is None
    drawn = [make_learner(point_mass.ToyActor(), 4, 2, config(critic_heads=5, seed=i)).draw_heads() for i in range(20)]
    kinds = {tuple(sorted(torch.as_tensor(d).tolist())) for d in drawn if d is not None}
    assert all(len(set(kind)) == 2 for kind in kinds) and len(kinds) > 5


def test_nothing_that_is_learned_or_sent_is_pickled():
    for path in Path(__file__).parents[2].joinpath("rl").glob("*.py"):
        found = re.search(
            r"\b(pickle|torch\.load|torch\.save|cloudpickle|marshal)\b(?!s)", re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.S)
        )
        assert not found, f"{path.name}: {found}"


def test_a_guiding_gradient_is_shortened_to_its_limit_and_nothing_is_added_to_it():
    """g / |g| + eps in place of g / (|g| + eps) moves every element of a sample whose gradient is zero."""
    from policies.guided import ValueGuidance

    x = torch.randn(3, 4, 2, requires_grad=True)
    clean, sigma = 0.5 * x, torch.full((3,), 2.0)
    slopes = torch.zeros(3, 4, 2)
    slopes[1] = torch.randn(4, 2)
    guidance = ValueGuidance(lambda chunk, ctx: (chunk * slopes).sum((1, 2)), strength=10.0, limit=0.1)
    moved = (guidance(x, clean, sigma, None) - clean).detach()
    assert not bool(moved[0].any()) and not bool(moved[2].any())
    torch.testing.assert_close(moved[1].square().mean().sqrt(), torch.tensor(0.1))
    torch.testing.assert_close(moved[1] / moved[1].norm(), slopes[1] / slopes[1].norm())
