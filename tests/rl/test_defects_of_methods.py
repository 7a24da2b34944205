"""One test per defect of released codes, in latent steering and in all methods that decide with something frozen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import point_mass
import pytest
import test_dsrl
import test_ibrl
import test_policy_decorator
import torch
from test_defects import FRAME, Recorded, Watch, config

from rl.batch import Batch
from rl.dsrl import DsrlConfig, DsrlMethod, train_dsrl
from rl.learner import Learner
from rl.noise_judge import FRESH
from rl.policy_decorator import DecoratorMethod
from rl.replay import Ring
from rl.residual import make_learner
from sinew.rundir import RunDir

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
    assert float(u.abs().max()) <= 1.5 and bool((u.abs() == 1.5).any())  # clipped, not drawn again
    sizes = u.square().mean(-1)
    assert float(sizes.min()) < 0.05 and float(sizes.max()) > 1.0  # of every size from none to the prior's
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
    every, share = learner.config.actor_every, round(16 * FRESH)
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
