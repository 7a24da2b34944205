"""The encoder that rewards share: what it sees, that it does not collapse, and that only its own files are read."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rewards.latent import (
    Encoder,
    EncoderConfig,
    Sight,
    follow,
    follower,
    load_encoder,
    load_tensors,
    save_encoder,
    save_tensors,
    spread_loss,
    statistics,
)  # fmt: skip
from sinew.errors import DataError, InputError, SpecError
from sinew.specs import ObservationSpec, TensorSpec

SPEC = ObservationSpec(
    {
        "observation.state": TensorSpec(shape=(3,)),
        "observation.images.front": TensorSpec(shape=(48, 80, 3), dtype="uint8"),
    }
)


def seen(n=4):
    stream = torch.Generator().manual_seed(0)
    return {
        "observation.state": torch.randn(n, 3, generator=stream),
        "observation.images.front": torch.randint(0, 256, (n, 48, 80, 3), generator=stream, dtype=torch.uint8),
    }


def test_vectors_and_pictures_of_any_size_become_latents():
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig.of(SPEC, list(SPEC), dim=7, hidden=16)).eval()
    whole = encoder(seen())
    assert whole.shape == (4, 7)
    one = encoder({key: value[2:3] for key, value in seen().items()})
    torch.testing.assert_close(one, whole[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [list(SPEC), list(SPEC)[:1], list(SPEC)[1:]])
def test_sight_is_the_encoder_in_fewer_operations(keys):
    config = EncoderConfig.of(SPEC, keys, dim=7, hidden=16)
    stats = {"observation.state": {"mean": np.array([1.0, 0, 0.5]), "std": np.array([0.1, 2, 0])}}
    torch.manual_seed(0)
    encoder = Encoder(config, *statistics(stats, config)).eval()
    far = seen(64) | {"observation.state": 20 * seen(64)["observation.state"]}
    for obs in (seen(64), far):
        torch.testing.assert_close(Sight(encoder)(obs), encoder(obs), rtol=1e-4, atol=1e-4)


def test_what_is_seen_is_brought_to_one_scale():
    config = EncoderConfig.of(SPEC, ["observation.state"], dim=2, hidden=8)
    mean, std = statistics({"observation.state": {"mean": np.array([1.0, 2, 3]), "std": np.array([0.1, 2, 0])}}, config)
    torch.manual_seed(0)
    scaled = Encoder(config, mean, std)
    plain = Encoder(config)
    plain.load_state_dict({**scaled.state_dict(), "mean": torch.zeros(3), "std": torch.ones(3)})
    given = torch.tensor([[1.1, 4.0, 3.0]])
    torch.testing.assert_close(scaled({"observation.state": given}), plain({"observation.state": torch.tensor([[1.0, 1.0, 0.0]])}))


def test_spread_is_without_cost_only_for_latents_that_are_apart_and_independent():
    grid = torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    assert spread_loss(1.5 * grid) == pytest.approx(0.0, abs=1e-6)
    assert spread_loss(torch.zeros(4, 2)) == pytest.approx(0.99, abs=1e-3)
    assert spread_loss(1.5 * grid[:, :1].repeat(1, 2)) > 0.04 * 2 * (4 / 3 * 1.5**2) ** 2 / 2 - 1e-4


def test_the_follower_draws_near_and_is_not_trained():
    torch.manual_seed(0)
    online = Encoder(EncoderConfig(vectors={"a": 2}, dim=2, hidden=4))
    slow = follower(online)
    before = [p.clone() for p in slow.parameters()]
    with torch.no_grad():
        for p in online.parameters():
            p += 1.0
    follow(slow, online, 0.75)
    assert all(torch.allclose(p, b + 0.25) and not p.requires_grad for p, b in zip(slow.parameters(), before, strict=True))


def test_an_encoder_comes_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig.of(SPEC, list(SPEC), dim=5, hidden=8), np.ones(3), np.full(3, 2.0)).eval()
    save_encoder(tmp_path / "e.safetensors", encoder, {"data": "here"})
    again = load_encoder(tmp_path / "e.safetensors")
    assert again.config == encoder.config and torch.equal(again(seen()), encoder(seen()))
    assert not any(p.requires_grad for p in again.parameters())


def test_what_cannot_be_used_is_said(tmp_path):
    with pytest.raises(SpecError, match=r"no 'observation\.stat'"):
        EncoderConfig.of(SPEC, ["observation.stat"])
    with pytest.raises(InputError, match="needs something"):
        EncoderConfig(vectors={})
    with pytest.raises(InputError, match="not there"):
        load_tensors(tmp_path / "none")
    (tmp_path / "text").write_text("no weights")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    for name in ("text", "foreign"):
        with pytest.raises(DataError, match="no weights of a reward"):
            load_encoder(tmp_path / name)
    with pytest.raises(DataError, match="not finite"):
        save_tensors(tmp_path / "nan", {"a": torch.tensor([float("nan")])}, {})
    assert not (tmp_path / "nan").exists()
    config = {"vectors": {"a": 3}, "pictures": [], "dim": 2, "hidden": 4}
    other = Encoder(EncoderConfig(vectors={"a": 2}, dim=2, hidden=4))
    save_tensors(tmp_path / "other", other.state_dict(), {"encoder": config})
    with pytest.raises(DataError, match="does not fit"):
        load_encoder(tmp_path / "other")
