"""What cameras do to pictures: closed forms, and the same noise wherever an episode is played."""

import numpy as np
import torch

import sim
from sim.camera_noise import CameraNoise, mixed, normal
from sim.randomise import Parameter, Randomisation
from sim.sampling import Sampler

STATES = torch.arange(6, dtype=torch.uint8)


def camera(*parameters: Parameter, num_envs: int = 6) -> CameraNoise:
    sampler = Sampler(Randomisation(parameters=parameters), sim.make_interface("lift", cameras=("front",)).scene)
    noise = CameraNoise(sampler, ("front",), num_envs)
    noise.begin(torch.ones(num_envs, dtype=torch.bool), torch.from_numpy(sampler.draw(range(num_envs))))
    return noise


def seen(noise: CameraNoise, images: torch.Tensor, step: int = 0, rows: torch.Tensor | None = None) -> torch.Tensor:
    rows = torch.arange(len(images)) if rows is None else rows
    return noise.seen("front", images, rows.long() + 100, torch.full((len(images),), step), rows)


def grey(level: int, count: int = 6) -> torch.Tensor:
    return torch.full((count, 48, 64, 3), level, dtype=torch.uint8)


def test_exposure_and_white_balance_are_gains() -> None:
    one = camera(Parameter(what="exposure", of=("front",), range=(1.0, 1.0), unit="stops"))
    assert (seen(one, grey(60)) == 120).all() and (seen(one, grey(200)) == 255).all()
    tint = camera(Parameter(what="white_balance", of=("front",), range=(1.5, 1.5), unit="factor"))
    assert seen(tint, grey(100))[0, 0, 0].tolist() == [150, 100, 150]


def test_noise_has_the_spread_that_was_asked_for_and_is_new_in_every_picture() -> None:
    noise = camera(Parameter(what="image_noise", of=("front",), range=(6.0, 6.0), unit="levels"))
    first, second = (seen(noise, grey(128), step).double() - 128 for step in (0, 1))
    assert abs(first.std() - 6.0) < 0.1 and abs(first.mean()) < 0.1
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.05, "nor are two worlds alike"
    assert torch.equal(seen(noise, grey(128), 0).double() - 128, first), "the same picture comes again"
    alone = seen(noise, grey(128, 1), 0, torch.tensor([4]))
    assert torch.equal(alone[0].double() - 128, first[4]), "whatever is drawn beside it"


def test_jitter_shifts_whole_pictures_and_repeats_their_edge() -> None:
    shaken = camera(Parameter(what="image_jitter", of=("front",), range=(3.0, 3.0), unit="px"))
    ramp = torch.arange(64, dtype=torch.uint8)[None, None, :, None].expand(6, 48, 64, 3)
    moves = set()
    for step in range(40):
        shift = seen(shaken, ramp, step)[:, 0, 30, 0].int() - 30
        moves |= set(shift.tolist())
    assert moves == set(range(-3, 4))


def test_blur_mixes_in_the_picture_before_and_none_at_the_beginning() -> None:
    blurred = camera(Parameter(what="motion_blur", of=("front",), range=(0.25, 0.25), unit="share"))
    assert (seen(blurred, grey(100), 0) == 100).all()
    assert (seen(blurred, grey(200), 1) == 175).all() and (seen(blurred, grey(200), 2) == 200).all()


def test_pictures_that_nothing_is_drawn_for_stay_as_they_are() -> None:
    other = camera(Parameter(what="exposure", of=("wrist",), range=(1.0, 1.0), unit="stops"))
    assert not other.active and torch.equal(seen(other, grey(60)), grey(60))


def test_the_hash_is_the_published_one() -> None:
    def reference(x: int) -> int:
        x = ((x ^ x >> 16) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ x >> 15) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ x >> 16

    numbers = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1]
    given = torch.tensor(numbers, dtype=torch.int64).int()
    assert [int(v) & 0xFFFFFFFF for v in mixed(given)] == [reference(n) for n in numbers]
    assert abs(float(normal(torch.arange(50, dtype=torch.int32), (1000,)).var()) - 1) < 0.02
