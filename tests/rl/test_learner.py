"""The learner finds the values and actions that can be worked out by hand."""

import copy

import torch
from torch import nn

from rl.critic import Critic
from rl.learner import Learner, LearnerConfig
from rl.replay import Ring

FRAME = {"features": ((2,), torch.float32), "base_action": ((1,), torch.float32)}


class Constant(nn.Module):
    """An actor that puts out one number."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def forward(self, features, base_action):
        return self.value.expand(len(features), 1)


def learner_of(actor: nn.Module, heads: int = 2, **settings) -> Learner:
    g = torch.Generator().manual_seed(0)
    return Learner(
        actor,
        Critic(3, (32, 16), heads, generator=g),
        propose=lambda actor, frames: actor(frames["features"], frames["base_action"]),
        decode=lambda frames, u: (frames["base_action"] + u).clamp(-1, 1),
        critic_input=lambda frames, a: torch.cat((frames["features"], a), -1),
        config=LearnerConfig(**settings),
        generator=g,
    )


def chain(truncate: bool, gamma: float) -> Ring:
    """Two states: s0 -> s1 with reward 0, s1 ends with reward 1 (terminal), or with reward 0 by time in state s1 again."""
    ring = Ring(4, 1, FRAME, 1)
    off, on = torch.tensor([False]), torch.tensor([True])
    s0, s1 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    zero = torch.zeros(1, 1)
    frame = [{"features": s, "base_action": zero} for s in (s0, s1)]
    ring.add(frame[0], zero, torch.tensor([0.0]), off, off)
    final = {"features": s1, "base_action": zero}
    ring.add(frame[1], zero, torch.tensor([0.5 if truncate else 1.0]), off if truncate else on, on if truncate else off, final=final)
    return ring


def values_after(ring: Ring, gamma: float, n_step: int, **settings) -> list[float]:
    learner = learner_of(Constant(), critic_lr=3e-3, tau=0.05, smoothing_std=0.0, **settings)
    g = torch.Generator().manual_seed(0)
    for batch in ring.sample(32, updates=1500, n_step=n_step, gamma=gamma, generator=g):
        learner.update(batch, train_actor=False)
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return learner.critic(x).mean(0).tolist()


def test_temporal_differences_find_the_values_of_a_two_state_chain():
    for n_step, engine in ((1, "loop"), (2, "loop"), (1, "loop_bf16")):
        v0, v1 = values_after(chain(truncate=False, gamma=0.8), 0.8, n_step, engine=engine)
        assert abs(v1 - 1.0) < 0.02 and abs(v0 - 0.8) < 0.02  # terminal reward 1, discounted once


def test_a_time_out_bootstraps_to_the_closed_form():
    # s1 pays 0.5 and is followed by itself: v1 = 0.5 + 0.8 v1 = 2.5; v0 = 0.8 v1 = 2.0
    v0, v1 = values_after(chain(truncate=True, gamma=0.8), 0.8, 1, target_high=None)
    assert abs(v1 - 2.5) < 0.1 and abs(v0 - 2.0) < 0.1


def test_targets_are_clipped_to_the_reward_range():
    ring = chain(truncate=True, gamma=0.8)
    learner = learner_of(Constant())
    for p in learner.critic_target.net.bias:
        p.data += 50.0
    target = learner.target(ring.sample(16, gamma=0.8)[0])
    assert float(target.max()) <= 1.0 and float(target.min()) >= 0.0


def test_target_takes_the_drawn_heads_only():
    ring = chain(truncate=True, gamma=0.8)
    learner = learner_of(Constant(), heads=4, target_low=None, target_high=None, smoothing_std=0.0)
    batch = ring.gather(torch.tensor([1]), gamma=0.8)
    x = torch.tensor([[0.0, 1.0, 0.0]])
    values = learner.critic_target(x)[:, 0]
    expected = 0.5 + 0.8 * values[[1, 3]].min()
    torch.testing.assert_close(learner.target(batch, heads=[1, 3])[0], expected)


def test_the_actor_climbs_the_value():
    actor = Constant()
    learner = learner_of(actor, actor_lr=1e-2, output_l2=0.0, actor_every=1, smoothing_std=0.0, critic_lr=3e-3)
    g = torch.Generator().manual_seed(0)
    ring = Ring(512, 1, FRAME, 1)
    on = torch.tensor([True])
    for _ in range(512):  # one step, reward 1 - (a - 0.4)^2: the best residual on a base of 0.1 is 0.3
        a = torch.rand(1, 1, generator=g) * 2 - 1
        frame = {"features": torch.zeros(1, 2), "base_action": torch.full((1, 1), 0.1)}
        ring.add(frame, a, (1 - (a - 0.4) ** 2)[0], on, ~on)
    for batch in ring.sample(64, updates=1500, generator=g):
        learner.update(batch)
    assert abs(float(actor.value.detach()) - 0.3) < 0.08


def test_output_penalty_pulls_the_actor_to_zero():
    actor = Constant(0.5)
    learner = learner_of(actor, output_l2=100.0, actor_lr=1e-2)
    frames = {"features": torch.zeros(8, 2), "base_action": torch.zeros(8, 1)}
    for _ in range(200):
        learner.actor_step(frames)
    assert abs(float(actor.value.detach())) < 0.05


def test_saving_and_restoring_continues_bit_for_bit(tmp_path):
    from rl.checkpoint import read_state, write_state

    ring = chain(truncate=True, gamma=0.8)
    a = learner_of(Constant(), heads=4)
    batches = ring.sample(16, updates=20, generator=torch.Generator().manual_seed(1))
    for batch in batches[:10]:
        a.update(batch)
    write_state(tmp_path / "state.safetensors", *a.state())
    b = learner_of(Constant(0.7), heads=4)
    b.load_state(*read_state(tmp_path / "state.safetensors"))
    for batch in batches[10:]:
        a.update(batch)
        b.update(batch)
    for p, q in zip(a.critic.parameters(), b.critic.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(a.actor.value, b.actor.value)  # type: ignore[arg-type]
    assert a.read_metrics() == b.read_metrics()


def test_loop_and_autograd_engines_learn_alike():
    ring = chain(truncate=True, gamma=0.8)
    batches = ring.sample(16, updates=100, generator=torch.Generator().manual_seed(1))
    learners = [learner_of(Constant(), heads=3, engine=e) for e in ("loop", "autograd")]
    for batch in batches:
        for learner in learners:
            learner.update(copy.copy(batch))
    for p, q in zip(*(learner.critic.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(learners[0].actor.value, learners[1].actor.value, atol=1e-5, rtol=1e-4)
