"""One test per defect that was found in a published release of off-policy learning; each fails on code that has it."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import test_dsrl
import test_ibrl
import test_policy_decorator
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rl.batch import Batch
from rl.critic import Critic, EnsembleMLP, ScalarHead
from rl.dsrl import DsrlConfig, DsrlMethod, train_dsrl
from rl.learner import Learner, LearnerConfig
from rl.policy_decorator import DecoratorMethod
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


# ------------------------------------------------------------ chunks, and the noise behind them


DSRL = DsrlConfig(
    steps=480, random_steps=120, critic_hidden=(16,), batch_size=16, evaluate_every=10**6, checkpoint_every=10**6, updates_per_step=0.2
)
CHUNK = test_dsrl.HORIZON


def steered(tmp_path: Path, env: Recorded, **settings) -> tuple[Ring, list[dict[str, torch.Tensor]]]:
    """A short run of latent steering: its replay, and {"features", "u", "chunk"} of every decoding while acting."""
    rings: list[Ring] = []
    decoded: list[dict[str, torch.Tensor]] = []

    class Spy(Ring):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **{k: v for k, v in kwargs.items() if k != "stride"})  # every frame is kept
            rings.append(self)

    class Watched(test_dsrl.Steering):
        def decode(self, frames, u):
            chunk = super().decode(frames, u)
            if len(u) <= env.num_envs:
                decoded.append({"features": frames["features"].clone(), "u": u.clone(), "chunk": chunk.clone()})
            return chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl.memory.Ring", Spy)
        config = replace(DSRL, **settings)
        train_dsrl(env, Watched(), RunDir.create(tmp_path / "run", config), config)
    return rings[0], decoded


def written(ring: Ring, values: torch.Tensor) -> torch.Tensor:
    """(T, N, ...) of the steps that were taken."""
    return values.view(ring.length, ring.num_envs, *values.shape[1:])[: ring.count]


def test_no_action_of_a_chunk_is_executed_after_its_episode_ended(tmp_path):
    """A wrapper that plays chunks to their end steps on in the next episode, or after the end."""
    ring, decoded = steered(tmp_path, Recorded(2, max_episode_steps=6))  # 6 is no multiple of the chunk of 4
    step, features = written(ring, ring.episode_step), ring.frames("features")[: ring.count]
    action, u = written(ring, ring.action), ring.frames("u")[: ring.count]
    assert bool(ring.truncated.any()) and int((step == 0).sum()) > 20
    at = {tuple(f.tolist()): (n, c) for d in decoded for f, n, c in zip(d["features"], d["u"], d["chunk"], strict=True)}
    for world in range(2):
        for t in range(len(step)):
            age = int(step[t, world])
            if age % CHUNK == 0:
                noise, chunk = at[tuple(features[t, world].tolist())]  # decided from what is seen now, the first of an episode too
            torch.testing.assert_close(action[t, world], chunk[age % CHUNK], atol=1e-6, rtol=0)
            assert torch.equal(u[t, world], noise)


def test_a_chunk_that_an_end_cuts_short_keeps_its_length_its_discount_and_its_bootstrap(tmp_path):
    env = Recorded(2, max_episode_steps=6, radius_m=1e-6)  # nothing but time-outs, two steps into every second chunk
    ring, _ = steered(tmp_path, env)
    batch = ring.gather(ring.starts(CHUNK), stride=CHUNK, gamma=0.9)
    assert set(batch.span.tolist()) == {2, 4}
    torch.testing.assert_close(batch.discount, 0.9 ** batch.span.float())  # a time-out is not terminal, and no span is the whole chunk's
    short = batch.span == 2
    assert not bool(batch.action[short][:, 2:].any()), "what was never executed must not look executed"
    place = batch.frames["features"][:, :2]
    for k in range(CHUNK):
        place = torch.where((k < batch.span)[:, None], (place + 0.15 * batch.action[:, k]).clamp(-1, 1), place)
    torch.testing.assert_close(batch.next_frames["features"][:, :2], place)  # the state where it ended, not that of the next episode


def test_rewards_within_a_chunk_are_discounted_by_their_own_step():
    ring = Ring(8, 1, FRAME, 2)
    no = torch.zeros(1, dtype=torch.bool)
    for reward in (1.0, 2.0, 4.0, 8.0, 16.0, 0.0):
        ring.add({"features": torch.zeros(1, 4), "base_action": torch.zeros(1, 2)}, torch.zeros(1, 2), torch.tensor([reward]), no, no)
    batch = ring.gather(torch.tensor([0]), stride=4, gamma=0.5)
    assert batch.reward.tolist() == [1 + 1 + 1 + 1.0] and batch.discount.tolist() == [0.5**4]


def test_noise_of_the_warm_up_is_what_was_decoded_and_within_the_actors_bound(tmp_path):
    ring, decoded = steered(tmp_path, Recorded(2), variant="sac", random_steps=480)
    u = ring.frames("u")[: ring.count]
    assert float(u.abs().max()) <= 1.5 and float((u.abs() == 1.5).float().mean()) > 0.05  # clipped, not drawn again or scaled
    made = torch.cat([d["u"] for d in decoded])
    assert {tuple(x.tolist()) for x in u.flatten(0, 1)} <= {tuple(x.tolist()) for x in made}


def dsrl_learner(**settings) -> tuple[DsrlMethod, Learner]:
    method = DsrlMethod(test_dsrl.Steering(), 2, 2, replace(DSRL, **settings))
    return method, method.make_learner({"features": torch.zeros(2, 4), "u": torch.zeros(2, 2)})


def chunks(seed: int = 0, variant: str = "na") -> Batch:
    """Transitions of latent steering, as the learner takes them."""
    g = torch.Generator().manual_seed(seed)
    frames = [{"features": torch.rand(16, 4, generator=g) - 0.5, "u": torch.randn(16, 2, generator=g)} for _ in range(2)]
    action, flat = torch.rand(16, CHUNK, 2, generator=g) * 2 - 1, torch.zeros(16, dtype=torch.int64)
    reward, discount = torch.rand(16, generator=g), torch.full((16,), 0.9)
    batch = Batch(frames[0], action, reward, discount, frames[1], flat + CHUNK, flat.to(torch.uint8), flat)
    return dsrl_learner(variant=variant)[0].prepare(batch)


def test_the_noise_critics_optimiser_is_part_of_the_checkpoint(tmp_path):
    from rl.checkpoint import read_state, write_state

    learners = [dsrl_learner()[1] for _ in range(2)]
    for i in range(6):
        learners[0].update(chunks(seed=i))
    write_state(tmp_path / "state.safetensors", *learners[0].state())
    assert any(key.startswith("noise_optimizer.") for key in learners[0].state()[0])
    learners[1].load_state(*read_state(tmp_path / "state.safetensors"))
    for i in range(6, 10):
        for learner in learners:
            learner.update(chunks(seed=i))
    a, b = (learner.judge.modules()["noise_critic"].state_dict() for learner in learners)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_frozen_policy_decodes_once_for_the_target_and_once_for_its_distillation():
    method, learner = dsrl_learner()
    sizes: list[int] = []
    original = method.steering.decode
    method.steering.decode = lambda frames, u: sizes.append(len(u)) or original(frames, u)  # type: ignore[method-assign]
    for i in range(4):
        learner.update(chunks(seed=i))
    every, share = learner.config.actor_every, round(16 * method.config.fresh_share)
    wanted = [size for i in range(4) for size in ([16, share] if (i + 1) % every == 0 else [16])]
    assert sizes == wanted, "a batch at a time, never a loop over samples or candidates"


# ------------------------------------------------------------ every method on the one learner


def learners() -> dict[str, tuple[Learner, Batch]]:
    """A learner of each method that decides with something frozen, and a batch for it."""
    g = torch.Generator().manual_seed(0)
    frames = [{"features": torch.randn(16, 4, generator=g), "base_action": torch.rand(16, 2, generator=g) * 2 - 1} for _ in range(2)]
    batch = Batch(frames[0], torch.rand(16, 2, generator=g), torch.rand(16), torch.full((16,), 0.9), frames[1], *[torch.zeros(16)] * 3)
    decorator = test_policy_decorator.SHORT
    decorated = DecoratorMethod(point_mass.BiasedExecutor(1), test_policy_decorator.actor_of(), point_mass.observe, decorator)
    return {
        "residual": (make_learner(point_mass.ToyActor(), 4, 2, config()), batch),
        "decorator": (decorated.make_learner(frames[0]), batch),
        "ibrl": (test_ibrl.method_and_learner()[1], batch),
        "dsrl-na": (dsrl_learner()[1], chunks()),
        "dsrl-grad": (dsrl_learner(variant="grad")[1], chunks(variant="grad")),
        "dsrl-sac": (dsrl_learner(variant="sac")[1], chunks(variant="sac")),
    }


METHODS = ("residual", "decorator", "ibrl", "dsrl-na", "dsrl-grad", "dsrl-sac")


@pytest.mark.parametrize("name", METHODS)
def test_no_method_reads_a_value_back_or_leaves_for_numpy_during_an_update(name, monkeypatch):
    learner, batch = learners()[name]
    learner.temperature_optimizer = torch.optim.Adam([learner.log_temperature], fused=True)  # the plain one reads its counter, on the host
    learner.update(batch)

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an update left the device")

    for method in ("numpy", "cpu", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    learner.draw_heads = lambda: None  # an engine of the host makes a list of what was drawn there
    with Watch() as watch:
        for _ in range(learner.config.actor_every):
            learner.update(batch)
    assert len(watch.seen) > 50
    assert not [name for name in watch.seen if "_local_scalar_dense" in name or "nonzero" in name]


@pytest.mark.parametrize("name", METHODS)
def test_targets_of_no_method_move_with_the_critics_that_learn(name):
    learner, batch = learners()[name]
    learner.config = replace(learner.config, smoothing_std=0.0, target_low=None, target_high=None)
    state = learner.generator.get_state()
    before = learner.target(batch)
    with torch.no_grad():
        for p in learner.critic.parameters():
            p.add_(1.0)
    learner.generator.set_state(state)
    assert torch.equal(learner.target(batch), before)


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
