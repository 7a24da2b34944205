"""Delay, lag and play against their closed forms, on arrays and on tensors."""

import numpy as np
import pytest
import torch

from sim.latency import Drive, Late

STEPS, SUBSTEPS, TIMESTEP_S = 12, 5, 0.01
both = pytest.mark.parametrize("array", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def commands() -> np.ndarray:
    """(steps, 1, 1) some commands."""
    return np.random.default_rng(0).normal(size=(STEPS, 1, 1))


def played(drive: Drive, given: np.ndarray, array) -> np.ndarray:
    """(steps * substeps,) targets of one servo."""
    return np.concatenate([np.asarray(drive.targets(array(command)))[:, 0, 0] for command in given])


@both
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5, 1.0, 1.37, 3.0])
def test_a_delay_is_the_line_through_the_commands_later(delay: float, array) -> None:
    given = commands()
    drive = Drive(array(np.zeros((1, 1))), SUBSTEPS, TIMESTEP_S, delay_max=3.0)
    drive.ideal, drive.delay_steps = False, array(np.array([delay]))
    now = np.arange(1, STEPS * SUBSTEPS + 1) / SUBSTEPS
    knots = np.concatenate(([0.0], given[:, 0, 0]))  # before the first step 0 was commanded
    np.testing.assert_allclose(played(drive, given, array), np.interp(now - delay, np.arange(STEPS + 1), knots), atol=1e-12)


def test_without_anything_between_it_is_what_it_was_to_the_bit() -> None:
    given = commands()
    drive, before = Drive(np.zeros((1, 1)), SUBSTEPS, TIMESTEP_S), np.zeros((1, 1))
    shares = (np.arange(1, SUBSTEPS + 1) / SUBSTEPS)[:, None, None]
    for command in given:
        assert np.array_equal(drive.targets(command), before + shares * (command - before))
        before = command


@both
def test_a_lag_answers_a_held_command_exponentially(array) -> None:
    drive, lag_s = Drive(array(np.zeros((1, 1))), SUBSTEPS, TIMESTEP_S), 0.07
    drive.ideal, drive.lag_s = False, array(np.array([lag_s]))
    drive.history = drive.history + 1.0  # held at 1 from the beginning, while the lag is still at 0
    seen = played(drive, np.ones((STEPS, 1, 1)), array)
    np.testing.assert_allclose(seen, 1 - np.exp(-TIMESTEP_S / lag_s * np.arange(1, len(seen) + 1)), atol=1e-12)


@both
def test_play_follows_only_once_it_is_used_up(array) -> None:
    drive = Drive(array(np.zeros((1, 1))), 1, TIMESTEP_S)
    drive.ideal, drive.play = False, array(np.array([[0.4]]))
    seen = played(drive, np.array([0.1, 0.2, 0.5, 1.0, 0.9, 0.7, 0.5])[:, None, None], array)
    np.testing.assert_allclose(seen, [0.0, 0.0, 0.3, 0.8, 0.8, 0.8, 0.7], atol=1e-12)


def test_worlds_have_their_own_delay_and_begin_anew_alone() -> None:
    drive = Drive(np.zeros((2, 1)), 1, TIMESTEP_S, delay_max=2.0)
    drive.ideal, drive.delay_steps = False, np.array([0.0, 2.0])
    for k in range(1, 4):
        targets = drive.targets(np.full((2, 1), float(k)))[0, :, 0]
    assert targets.tolist() == [3.0, 1.0]
    drive.begin(np.array([False, True]), np.full((2, 1), 9.0))
    assert drive.targets(np.full((2, 1), 4.0))[0, :, 0].tolist() == [4.0, 9.0]


def test_observations_are_seen_late_and_a_part_of_a_step_misses_its_tick() -> None:
    def frame(k: int) -> dict[str, torch.Tensor]:
        return {"state": torch.full((4, 2), float(k)), "picture": torch.full((4, 3, 3, 3), k, dtype=torch.uint8)}

    late = Late(frame(0), delay_max=2.0)
    late.delay_steps = torch.tensor([0.0, 0.3, 1.0, 2.0])
    for k in range(1, 6):
        seen = late.seen(frame(k))
        expected = [k, k - 1, k - 1, max(k - 2, 0)]
        assert seen["state"][:, 0].tolist() == expected and seen["picture"][:, 0, 0, 0].tolist() == expected
        assert seen["picture"].dtype == torch.uint8
    late.begin(torch.tensor([False, False, False, True]), frame(50))
    assert late.seen(frame(6))["state"][:, 0].tolist() == [6, 5, 5, 50]
