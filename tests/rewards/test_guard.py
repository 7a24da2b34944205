import math
from dataclasses import dataclass

import pytest
import torch

from rewards import files
from rewards.guard import CLIP, Discriminator, GuardConfig, Guarded, GuardedSettings, chi_square, chi_square_between
from rewards.latent import save_tensors
from rewards.sparse import Sparse
from sinew.errors import DataError, InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec


@files.KINDS.add("at-least-success")
@dataclass(frozen=True)
class Inside:
    """Settings of success alone."""

    def build(self, situation):
        return Sparse()


def normal(mean: float, n: int, seed: int, dim: int = 1) -> torch.Tensor:
    return mean + torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("m", [0.0, 0.25, 0.5])
def test_chi_square_of_two_normals_is_its_closed_form(m):
    """For N(m, 1) against N(0, 1) the logarithm of the ratio is m x − m²/2, and χ² = e^{m²} − 1."""
    x = normal(m, 200_000, 0)[:, 0]
    assert chi_square(m * x - m * m / 2) == pytest.approx(math.expm1(m * m), abs=0.03)


@pytest.mark.parametrize(("m", "within"), [(0.5, 0.12), (1.0, 0.6)])
def test_a_discriminator_finds_it_from_samples(m, within):
    found = chi_square_between(normal(m, 6000, 1), normal(0.0, 6000, 2), updates=250)
    assert found == pytest.approx(math.expm1(m * m), abs=within)


def test_chi_square_grows_before_a_kl_divergence_does():
    """e^{m²} − 1 against m²/2: at one standard deviation three times as much, at two 27 times."""
    chi, kl = [[f(m) for m in (1.0, 2.0)] for f in (lambda m: math.expm1(m * m), lambda m: m * m / 2)]
    assert chi[0] / kl[0] > 3
    assert chi[1] / kl[1] > 26


def test_a_heavy_tail_is_cut_off():
    few = torch.zeros(1000)
    few[:5] = 50.0  # e^50 of five states would be all of the mean
    assert chi_square(few) == 0.0
    discriminator = Discriminator(normal(0, 100, 0, 2))
    discriminator.learn(normal(0, 100, 1, 2) + 100, 30)
    ratio = discriminator.log_ratio(torch.tensor([[1e6, 1e6], [float("nan"), 0.0], [-1e6, 0.0]]))
    assert float(ratio.abs().max()) <= CLIP
    assert float(ratio[1]) == 0.0


def test_states_of_demonstrations_that_cannot_be_used_are_refused():
    for reference in (torch.zeros(1, 3), torch.full((5, 3), float("nan"))):
        with pytest.raises(DataError, match="at least 2"):
            Discriminator(reference)
    with pytest.raises(InputError, match="must not be negative"):
        GuardConfig(strength=-1.0)


class Height:
    """A proxy: the higher the better."""

    low, high = -100.0, 100.0

    def reward(self, transition, context):
        return transition["next.x"][:, 0]


def step(x: torch.Tensor) -> dict[str, torch.Tensor]:
    never = torch.zeros(len(x), dtype=torch.bool)
    return {"x": x, "next.x": x, "success": never, "terminated": never}


def guarded(**settings):
    said, logged = [], []
    config = GuardConfig(**{"every": 200, "updates": 40, "remember": 800, **settings})
    reward = Guarded(Height(), normal(0.0, 500, 0, 2), lambda obs: obs["x"], config, said.append, logged.append)
    return reward, said, logged


def test_a_policy_that_stays_near_demonstrations_keeps_its_reward_and_hears_nothing():
    reward, said, logged = guarded()
    for i in range(100):
        x = normal(0.0, 10, i + 1, 2)
        paid = reward.reward(step(x), {})
        if i < 19:
            torch.testing.assert_close(paid, x[:, 0])  # nothing is taken off before the first lesson
    assert said == []
    assert len(logged) == 4  # the first lesson has nothing to tell yet
    assert logged[-1]["guard_chi_square"] < 1.0
    assert float((paid - x[:, 0]).abs().mean()) < 0.6


def test_states_of_many_numbers_are_not_far_away_because_they_were_learned_by_heart():
    """40 numbers, 500 states known and the same distribution: a discriminator that is asked what it learned from finds them far away."""
    said, logged = [], []
    config = GuardConfig(every=500, updates=50, remember=4000)
    reward = Guarded(Height(), normal(0.0, 500, 0, 40), lambda obs: obs["x"], config, said.append, logged.append)
    for i in range(300):
        reward.reward(step(normal(0.0, 10, i + 1, 40)), {})
    assert said == []
    assert max(line["guard_chi_square"] for line in logged) < 5.0
    assert reward.discriminator.share < 0.5
    assert chi_square(reward.discriminator(reward.states).clamp(-CLIP, CLIP)) > 5.0


def test_a_policy_that_leaves_is_penalised_and_the_alarm_is_raised_once():
    reward, said, logged = guarded()
    for i in range(100):
        away = 4.0 if i > 40 else 0.0
        x = normal(away, 10, i + 1, 2)
        paid = reward.reward(step(x), {})
    assert len(said) == 1
    assert "alarm: after" in said[0]
    assert logged[-1]["guard_chi_square"] > 10.0
    assert float(paid.mean()) < float(reward.reward(step(normal(0.0, 10, 7, 2)), {}).mean())  # going back pays
    assert bool(torch.isfinite(paid).all())


def test_a_guard_that_only_watches_changes_nothing():
    reward, said, _ = guarded(strength=0.0)
    for i in range(100):
        x = normal(4.0, 10, i, 2)
        torch.testing.assert_close(reward.reward(step(x), {}), x[:, 0])
    assert len(said) == 1


def test_states_that_are_not_finite_are_left_out():
    reward, _, _ = guarded()
    for i in range(60):
        x = normal(0.0, 10, i, 2)
        x[3, 1] = float("nan")
        paid = reward.reward(step(x), {})
    assert bool(torch.isfinite(paid).all())
    assert float(paid[3]) == float(x[3, 0])
    assert len(reward.states) == 540


def test_the_reward_inside_is_told_of_episodes():
    told = []

    class Remembering(Sparse):
        def begin(self, obs, ids):
            told.append(list(ids))

    Guarded(Remembering(), normal(0, 10, 0, 2), lambda obs: obs["x"], GuardConfig()).begin({}, [1, 2])
    assert told == [[1, 2]]


def test_what_is_told_is_of_whole_episodes_however_many_worlds_there_are(tmp_path):
    """64 worlds that begin together are at one moment of their episodes in any 500 steps, which is far from whole episodes."""
    files.save(tmp_path / "inside.json", "at-least-success", Inside(), {})
    save_tensors(tmp_path / "known.safetensors", {"states": normal(0.0, 100, 0, 2)}, {})
    spec, action = (
        ObservationSpec({"x": TensorSpec(shape=(2,))}),
        ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=10.0, names=("x",)),
    )
    settings = GuardedSettings(inside="inside.json", reference="known.safetensors", keys=("x",))
    for worlds, every in ((4, 500), (64, 2560), (256, 10_240)):
        said: list[str] = []
        told = {"num_envs": worlds, "max_episode_steps": 40, "folder": tmp_path, "say": said.append}
        place = files.Situation(observation=spec, action=action, gamma=0.99, **told)
        built = settings.build(place)
        assert isinstance(built, Guarded)
        assert built.config.every == every and built.config.remember == max(4000, every)
        assert [f"from step {2 * every:,} on" in line for line in said] == [True] * (every > 500)
