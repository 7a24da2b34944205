"""What a reward file with weights may say, for every kind that has some."""

from __future__ import annotations

import json

import pytest
import torch

from rewards import files
from rewards.latent import Encoder, EncoderConfig
from rewards.learned import LearnedSettings, SeenPotential, ShapedBySight, check_seen
from rewards.shaping import Shaped, max_difference
from sinew.errors import InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

LEARNED = ("progress", "transport", "classifier", "preference", "world")
OUTSIDE = ("../w.safetensors", "/etc/passwd", "a/w.safetensors", "", "..", ".", "..\\w.safetensors", "w\0")


def situation(**tensors):
    spec = ObservationSpec({k: TensorSpec(shape=shape) for k, shape in tensors.items()})
    action = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=10.0, names=("x",))
    return files.Situation(observation=spec, action=action, gamma=0.99, num_envs=2, max_episode_steps=10)


def write(path, kind, **settings):
    path.write_text(json.dumps({"reward": kind, "version": 1, "made": {}, "settings": settings}))
    return path


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("name", OUTSIDE)
def test_weights_lie_beside_the_file_and_nowhere_else(kind, name, tmp_path):
    with pytest.raises(InputError, match="beside the reward file"):
        files.load(write(tmp_path / "r.json", kind, weights=name))


@pytest.mark.parametrize("name", OUTSIDE)
def test_so_do_guarded_rewards_their_references_and_recorded_answers(name, tmp_path):
    for settings in ({"inside": name, "reference": "w"}, {"inside": "r.json", "reference": name}):
        with pytest.raises(InputError, match="beside the reward file"):
            files.load(write(tmp_path / "r.json", "guarded", keys=["a"], **settings))
    if name:  # nothing keeps no answers
        with pytest.raises(InputError, match="beside the reward file"):
            files.load(write(tmp_path / "r.json", "asked", base_url="http://localhost:1/v1", model="m", record=name))


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_is_above_nothing_and_finite(kind, weight, tmp_path):
    with pytest.raises(InputError, match="weight"):
        files.load(write(tmp_path / "r.json", kind, weights="w.safetensors", weight=weight))


@pytest.mark.parametrize("kind", LEARNED)
def test_returns_hold_all_that_telescopes(kind, tmp_path):
    """Along any way the discounted sum is success less what the episode began with: Φ = 0 where it terminates."""
    _, made = files.load(write(tmp_path / "r.json", kind, weights="w.safetensors", weight=0.5))
    assert isinstance(made, LearnedSettings)
    low, high = made.returns(0.99, 100)
    for begun in (made.low, made.high):
        for success in (0.0, 1.0):
            assert low <= success - 0.5 * begun <= high
    assert (low, high) == (-0.5 * made.high, 1 - 0.5 * made.low)


def test_the_potential_sees_what_the_encoder_names_and_no_more():
    encoder = Encoder(EncoderConfig(vectors={"a": 2, "b": 1}, dim=4, hidden=8)).eval()
    seen = SeenPotential(encoder, lambda latents: torch.sigmoid(latents[:, 0]), 0.0, 1.0)
    obs = {"a": torch.ones(3, 2), "b": torch.zeros(3, 1)}
    torch.testing.assert_close(seen({**obs, "c": torch.full((3,), torch.nan)}), torch.sigmoid(encoder(obs)[:, 0]).detach())
    assert max_difference(seen, 0.99) == 1.0


class Counted(SeenPotential):
    """A potential that counts the worlds that it looks at."""

    looked = 0

    def of(self, gathered):
        self.looked += len(gathered[0])
        return super().of(gathered)


def test_worlds_are_looked_at_once_a_step():
    """What comes after one step is what comes before the next one, save in worlds that begin anew; against the same without a memory."""
    encoder = Encoder(EncoderConfig(vectors={"a": 2, "b": 1}, dim=4, hidden=8)).eval()
    potential = Counted(encoder, lambda latents: torch.sigmoid(latents[:, 0]) - 1.0, -1.0, 0.0)
    once, twice = ShapedBySight(potential, 0.9, 2.0), Shaped(potential, 0.9, 2.0)
    generator = torch.Generator().manual_seed(0)
    obs = {key: torch.rand(6, n, generator=generator) for key, n in (("a", 2), ("b", 1))}
    flags = {name: torch.zeros(6, dtype=torch.bool) for name in ("success", "terminated")}
    for fresh in ([0, 1, 2, 3, 4, 5], [], [1, 4], [5], [], [0, 1, 2, 3, 4, 5]):
        for buffer in obs.values():  # filled anew where they are, as simulators do
            buffer[fresh] = torch.rand(len(fresh), buffer.shape[1], generator=generator)
        after = {f"next.{key}": value + torch.rand(value.shape, generator=generator) for key, value in obs.items()}
        flags["terminated"] = torch.rand(6, generator=generator) < 0.3
        potential.looked = 0
        got = once.reward({**obs, **after, **flags}, {})
        assert potential.looked == 6 + len(fresh)
        torch.testing.assert_close(got, twice.reward({**obs, **after, **flags}, {}))
        for key, buffer in obs.items():
            buffer.copy_(after[f"next.{key}"])
    fewer = {key: value[:3] for key, value in {**obs, **after, **flags}.items()}
    torch.testing.assert_close(once.reward(fewer, {}), twice.reward(fewer, {}))


def test_a_world_that_cannot_be_seen_is_named():
    encoder = Encoder(EncoderConfig(vectors={"a": 2}, dim=4, hidden=8)).eval()
    reward = ShapedBySight(SeenPotential(encoder, lambda latents: torch.sigmoid(latents[:, 0]), 0.0, 1.0), 0.9)
    never = torch.zeros(3, dtype=torch.bool)
    wrong = torch.tensor([[0.0, 0.0], [0.0, 0.0], [float("nan"), 0.0]])
    reward.reward({"a": torch.zeros(3, 2), "next.a": torch.zeros(3, 2), "success": never, "terminated": never}, {})
    for _ in range(2):
        with pytest.raises(files.RewardUnavailable, match="world 2"):
            reward.reward({"a": torch.zeros(3, 2), "next.a": wrong, "success": never, "terminated": never}, {})


def test_what_is_not_there_is_no_mistake_and_another_length_is_one():
    config = EncoderConfig(vectors={"a": 2})
    check_seen(config, situation(a=(2,), c=(5,)))
    with pytest.raises(files.RewardUnavailable, match=r"looks at a, and there is only c"):
        check_seen(config, situation(c=(5,)))
    with pytest.raises(InputError, match="length 2, and here it is") as problem:
        check_seen(config, situation(a=(3,)))
    assert not isinstance(problem.value, files.RewardUnavailable)
