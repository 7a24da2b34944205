"""Image encoder and augmentation."""

from __future__ import annotations

import re

import pytest
import torch

from policies.encoders import ImageConfig, ImageEncoder, ObservationEncoder, SpatialSoftmax, convolutional_trunk, random_shift
from sinew.errors import SpecError
from sinew.specs import ObservationSpec, TensorSpec


def test_spatial_softmax_gives_the_coordinates_of_a_peak():
    x = torch.zeros(1, 2, 5, 9)
    x[0, 0, 4, 2] = 50  # column 2 of 9 is -0.5, row 4 of 5 is +1
    x[0, 1, 2, 8] = 50  # column 8 is +1, row 2 is 0
    torch.testing.assert_close(SpatialSoftmax()(x), torch.tensor([[-0.5, 1.0, 1.0, 0.0]]))


def test_spatial_softmax_of_a_flat_image_is_its_centre():
    torch.testing.assert_close(SpatialSoftmax()(torch.zeros(2, 3, 4, 6)), torch.zeros(2, 6), rtol=0, atol=1e-6)


def test_random_shift_moves_and_repeats_the_border():
    image = torch.randint(0, 256, (3, 2, 6, 7, 3), dtype=torch.uint8)
    shift = torch.tensor([[0, 0], [2, -1], [-3, 3]])
    moved = random_shift(image, shift)
    assert moved.shape == image.shape and moved.dtype == torch.uint8
    assert torch.equal(moved[0], image[0])
    assert torch.equal(moved[1, :, :4, 1:], image[1, :, 2:, :-1])
    assert torch.equal(moved[1, :, 4, 1:], image[1, :, 5, :-1]) and torch.equal(moved[1, :, :4, 0], image[1, :, 2:, 0])
    assert torch.equal(moved[2, :, 3:, :4], image[2, :, :3, 3:])


VIT = {"width": 32, "layers": 2, "heads": 2}


@pytest.mark.parametrize("kind", ["small", "resnet18", "vit"])
def test_pixels_become_features_independent_of_the_batch(kind):
    encoder = ImageEncoder(ImageConfig(kind=kind, channels=(8, 16), keypoints=8, feature_dim=6, groups=4, **VIT), 32, 40).eval()
    images = torch.randint(0, 256, (4, 32, 40, 3), dtype=torch.uint8)
    together = encoder(images)
    assert together.shape == (4, 6)
    torch.testing.assert_close(encoder(images[2:3])[0], together[2], rtol=0, atol=1e-5)


def test_resnet18_has_the_layers_of_resnet18():
    """17 convolutions and 3 projections, 11,166,912 weights without norms (as published without the classifier)."""
    trunk = convolutional_trunk(ImageConfig(kind="resnet18"))
    kernels = [m for m in trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size[0] > 1 for m in kernels) == 17 and sum(m.kernel_size == (1, 1) for m in kernels) == 3
    assert sum(m.weight.numel() for m in kernels) == 11_166_912
    assert trunk(torch.zeros(1, 3, 96, 96)).shape == (1, 512, 3, 3)


@pytest.mark.parametrize(("kind", "rate", "steps"), [("small", 1e-2, 80), ("vit", 3e-3, 200)])
def test_image_encoder_learns_where_a_spot_is(kind, rate, steps):
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageConfig(kind=kind, channels=(8, 8), keypoints=8, feature_dim=2, groups=4, patch_px=4, **VIT), 24, 24)
    place = torch.randint(3, 21, (64, 2))
    images = torch.zeros(64, 24, 24, 3, dtype=torch.uint8)
    for i, (row, column) in enumerate(place.tolist()):
        images[i, row - 2 : row + 3, column - 2 : column + 3] = 255
    goal = place.float() / 12 - 1
    optimizer = torch.optim.Adam(encoder.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (encoder(images) - goal).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01  # the variance of the goal is 0.19


def test_cameras_have_networks_of_their_own_and_steps_are_concatenated():
    spec = ObservationSpec({"observation.images.a": TensorSpec(shape=(16, 16, 3), dtype="uint8"),
                            "observation.images.b": TensorSpec(shape=(24, 16, 3), dtype="uint8")})
    encoder = ObservationEncoder(spec, 2, ImageConfig(channels=(8,), keypoints=4, feature_dim=5, groups=4))
    obs = {"observation.images.a": torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8),
           "observation.images.b": torch.randint(0, 256, (3, 2, 24, 16, 3), dtype=torch.uint8)}
    assert encoder.dim == 20 and encoder(obs).shape == (3, 20)
    torch.testing.assert_close(encoder(obs)[:, 10:], encoder.newest({k: v[:, 1] for k, v in obs.items()}))


def test_wrong_settings_are_told():
    with pytest.raises(SpecError, match="multiples of the 8 groups"):
        ImageConfig(channels=(12,))
    with pytest.raises(SpecError, match="kind 'resnet50' is unknown: known are small, resnet18, vit"):
        ImageConfig(kind="resnet50")
    with pytest.raises(SpecError, match=r"patches of 8 px do not divide 30 x 32 pixels: set image.patch_px"):
        ImageEncoder(ImageConfig(kind="vit"), 30, 32)
    with pytest.raises(SpecError, match="observation spec is empty"):
        ObservationEncoder(ObservationSpec({}), 1, ImageConfig())
    wrist = ObservationSpec({"observation.images.wrist": TensorSpec(shape=(16, 16, 3), dtype="uint8")})
    encoder = ObservationEncoder(wrist, 1, ImageConfig())
    with pytest.raises(SpecError, match=r"looks at 'observation.images.wrist' and the observation has observation.state: give it,"):
        encoder({"observation.state": torch.zeros(1, 1, 4)})


def test_what_would_be_spread_over_elements_or_steps_is_refused(toys):
    """One element for four and one step for two broadcast without a word."""
    policy, data = toys.make("flow-mlp-camera")
    batch = toys.batch(data, policy.spec, 3)
    for wrong in (torch.zeros(3, 2, 1), torch.zeros(3, 1, 4), torch.zeros(3, 4)):
        shape = re.escape(str(tuple(wrong.shape)))
        with pytest.raises(SpecError, match=rf"'observation\.state' has shape {shape}, the policy looks at \(batch, 2, 4\)"):
            policy.encode({**batch, "observation.state": wrong})
    last = {key: batch[key][:, -1] for key in policy.spec.observation}
    with pytest.raises(SpecError, match=r"'observation\.images\.front' has shape \(3, 8, 8, 3\), .* at \(batch, 16, 20, 3\)"):
        policy.observe({**last, "observation.images.front": torch.zeros(3, 8, 8, 3, dtype=torch.uint8)})
