"""What a reward file with weights may say, for every kind that has some."""

from __future__ import annotations

import json

import pytest
import torch

from rewards import files
from rewards.latent import Encoder, EncoderConfig
from rewards.learned import LearnedSettings, SeenPotential, check_seen
from rewards.shaping import max_difference
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


class Counted(Encoder):
    """An encoder that counts the worlds that it looks at."""

    looked = 0

    def forward(self, seen):
        self.looked += len(seen["a"])
        return super().forward(seen)


def test_worlds_are_looked_at_once_where_they_have_not_changed():
    """What comes after one step is what comes before the next one, save in worlds that begin anew; buffers may be filled anew, too."""
    encoder = Counted(EncoderConfig(vectors={"a": 2, "b": 1}, dim=4, hidden=8)).eval()
    seen = SeenPotential(encoder, lambda latents: torch.sigmoid(latents[:, 0]), 0.0, 1.0)
    fresh = lambda obs: torch.sigmoid(encoder(obs)[:, 0]).detach()  # noqa: E731
    buffer = {"a": torch.rand(6, 2), "b": torch.rand(6, 1)}
    first = seen(buffer)
    assert encoder.looked == 6
    first.zero_()  # what was handed out is the caller's own
    torch.testing.assert_close(seen(buffer), fresh(buffer))
    encoder.looked = 0
    buffer["a"][[1, 4]] = torch.rand(2, 2)
    buffer["b"][5] += 1.0
    got = seen(buffer)
    assert encoder.looked == 3
    torch.testing.assert_close(got, fresh(buffer))
    buffer["a"][2] = torch.nan
    assert torch.isfinite(seen(buffer)).tolist() == [True, True, False, True, True, True]
    other = {"a": torch.rand(3, 2), "b": torch.rand(3, 1)}
    torch.testing.assert_close(seen(other), fresh(other))


def test_what_is_not_there_is_no_mistake_and_another_length_is_one():
    config = EncoderConfig(vectors={"a": 2})
    check_seen(config, situation(a=(2,), c=(5,)))
    with pytest.raises(files.RewardUnavailable, match=r"looks at a, and there is only c"):
        check_seen(config, situation(c=(5,)))
    with pytest.raises(InputError, match="length 2, and here it is") as problem:
        check_seen(config, situation(a=(3,)))
    assert not isinstance(problem.value, files.RewardUnavailable)
