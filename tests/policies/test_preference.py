"""Preference training: the loss in closed form, its gradient's sign, pairs that are what the scorer says, and a run that goes on."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import policies
from policies.preference import PreferConfig, frozen_copy, pair_losses, prefer, preference_loss
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir


@pytest.fixture(params=["flow-mlp", "vla-bidirectional"])
def made(request, toys):
    """(policy, data, batch of 8 with pairs, times, noise)."""
    policy, data = toys.make(request.param)
    batch = toys.batch(data, policy.spec)
    stream = torch.Generator().manual_seed(3)
    chunks = torch.rand(2, *batch["action"].shape, generator=stream) * 2 - 1
    drawn = policy.draw(8, stream)
    return policy, data, {**batch, "winner": chunks[0], "loser": chunks[1]}, {"t": drawn["t"], "noise": drawn["noise"]}


def test_at_the_reference_the_loss_is_log_two_and_its_gradient_prefers_the_winner(made):
    policy, _, batch, drawn = made
    reference = frozen_copy(policy)
    loss = preference_loss(policy, reference, batch, beta=20.0, **drawn)
    torch.testing.assert_close(loss.per_sample, torch.full((8,), math.log(2)), rtol=0, atol=1e-5)
    # There the gradient is beta / 4 times that of the difference of the losses.
    winner, loser = pair_losses(policy, batch, **drawn)
    net = list(policy.net.parameters())
    told = torch.autograd.grad(loss.scalar, net, allow_unused=True)
    wanted = torch.autograd.grad((winner - loser).mean(), net, allow_unused=True)
    assert any(g is not None for g in told)
    for ours, plain in zip(told, wanted, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, 5.0 * plain, rtol=1e-3, atol=1e-6)


def test_the_loss_away_from_the_reference_in_closed_form(made):
    policy, _, batch, drawn = made
    reference = frozen_copy(policy)
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.02)
        batch["weight"] = torch.tensor([1.0, 0, 0, 0, 2.0, 0, 0, 1.0])
        loss = preference_loss(policy, reference, batch, beta=7.0, **drawn)
        margins = []
        for row in range(8):  # by the policy's ordinary loss, pair by pair and chunk by chunk
            alone = {key: value[row : row + 1] for key, value in batch.items() if key in (*policy.spec.observation, "task")}
            at = {key: value[row : row + 1] for key, value in drawn.items()}
            chunks = [batch[which][row : row + 1] for which in ("winner", "loser")]
            ours, theirs = ([p.loss({**alone, "action": chunk}, **at).scalar for chunk in chunks] for p in (policy, reference))
            margins.append((ours[0] - ours[1]) - (theirs[0] - theirs[1]))
    margin = torch.stack(margins)
    assert margin.abs().max() > 1e-3
    expected = torch.log1p(torch.exp(3.5 * margin))
    torch.testing.assert_close(loss.per_sample, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.scalar, (batch["weight"] * expected).sum() / 4, rtol=1e-4, atol=1e-5)
    assert loss.logs["accuracy"] == (margin < 0).float().mean()


def test_winner_and_loser_share_their_noise(made):
    policy, _, batch, drawn = made
    winner, loser = pair_losses(policy, {**batch, "loser": batch["winner"]}, **drawn)
    torch.testing.assert_close(winner, loser, rtol=0, atol=1e-6)


def test_the_reference_shares_what_is_frozen_and_copies_the_rest(made):
    policy = made[0]
    policy.encoder.requires_grad_(False)
    reference: Any = frozen_copy(policy)
    assert reference.encoder is policy.encoder and reference.net is not policy.net
    assert not any(p.requires_grad for p in reference.parameters()) and all(p.requires_grad for p in policy.net.parameters())


def first_action(chunk, ctx):
    """Scores that want the first element of the first action high."""
    return chunk.actions[:, :, 0, 0]


def settings(**change: Any) -> PreferConfig:
    given = {"pairs": 32, "candidates": 4, "beta": 20.0, "steps": 12, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2}
    return PreferConfig(**{**given, "log_every": 3, "checkpoint_every": 6, **change})


def test_preferred_is_what_the_scorer_prefers(made, tmp_path):
    policy, data, batch, _ = made
    noise = torch.randn(8, 16, *policy.spec.noise_shape)

    def score() -> float:
        with torch.no_grad():
            ctx = policy.encode({key: value for key, value in batch.items() if key in (*policy.spec.observation, "task")})
            return policy.sample(ctx, n=16, noise=noise).actions[:, :, 0, 0].mean().item()

    before, encoder = score(), copy.deepcopy(policy.encoder.state_dict())
    run = RunDir.create(tmp_path / "run", {})
    prefer(policy, data, first_action, run, settings(steps=40))
    assert score() > before + 0.02
    assert all(torch.equal(value, encoder[name]) for name, value in policy.encoder.state_dict().items())
    lines = [line for line in run.metrics() if line["stage"] == "prefer"]
    assert lines[-1]["accuracy"] > 0.5 and lines[-1]["loss"] < math.log(2)
    loaded = policies.load(tmp_path / "run")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in policy.state_dict().items())


def test_a_stopped_run_goes_on_as_if_it_had_not_been(made, tmp_path):
    policy, data, _, _ = made
    first, again = copy.deepcopy(policy), copy.deepcopy(policy)
    whole = prefer(policy, data, first_action, RunDir.create(tmp_path / "whole", {}), settings())

    class StopError(Exception):
        pass

    class Watch:
        def start(self, *_: Any, **__: Any) -> None:
            self.count = 0

        def advance(self, *_: Any, **values: Any) -> None:
            self.count += "loss" in values
            if self.count == 10:
                raise StopError

    run = RunDir.create(tmp_path / "cut", {})
    with pytest.raises(StopError):
        prefer(first, data, first_action, run, settings(), Watch())  # type: ignore[arg-type]
    resumed = prefer(again, data, lambda *_: pytest.fail("the pairs were made already"), run, settings())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [line["step"] for line in run.metrics()] == [3, 6, 9, 12]  # each once
    (run / "policy.json").unlink()  # killed before it was written
    prefer(copy.deepcopy(policy), data, first_action, run, settings())
    assert (run / "policy.json").exists()
    with pytest.raises(InputError, match=r"was trained with beta = 20\.0, not 5\.0"):
        prefer(copy.deepcopy(policy), data, first_action, run, settings(beta=5.0))


@pytest.mark.parametrize("other", [{"candidates": 5}, {"seed": 7}])
def test_pairs_made_with_other_settings_are_not_taken_over(other, toys, tmp_path):
    policy, data = toys.make("flow-mlp")
    config = PreferConfig(pairs=len(data), candidates=3, steps=2, batch_size=8)  # all frames, whatever the seed
    run = RunDir.create(tmp_path / "cut", {})

    class Stopped:
        def start(self, stage: str, *_: Any, **__: Any) -> None:
            if stage == "prefer":
                raise KeyboardInterrupt

        def advance(self, *_: Any, **__: Any) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        prefer(policy, data, first_action, run, config, Stopped())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="made with another seed or other candidates: choose another run"):
        prefer(policy, data, first_action, run, replace(config, **other))
    prefer(policy, data, first_action, run, config)


def test_scores_and_settings_that_cannot_be_used_are_refused(made, tmp_path):
    policy, data, _, _ = made
    for bad in (lambda chunk, ctx: chunk.actions[:, 0, 0, 0], lambda chunk, ctx: chunk.actions[:, :, 0, 0] * math.nan):
        with pytest.raises(DataError, match="one finite score per candidate"):
            prefer(policy, data, bad, RunDir.create(tmp_path / f"run{id(bad)}", {}), settings())
    with pytest.raises(InputError, match="at least 2 candidates"):
        settings(candidates=1)
    with pytest.raises(InputError, match="beta and learning_rate must be above 0"):
        settings(beta=0.0)


def test_pairs_of_few_frames_are_not_taken_for_short_episodes(toys, tmp_path):
    """Two frames from the first of their episodes; the horizon of 5 fits the episodes of 20."""
    policy, data = toys.make("flow-mlp")
    early = np.flatnonzero(data.column("frame_index") < 3)
    seed = next(s for s in range(10_000) if set(np.random.default_rng(s).permutation(len(data))[:2]) <= set(early))
    prefer(policy, data, first_action, RunDir.create(tmp_path / "run", {}), settings(pairs=2, batch_size=2, steps=1, seed=seed))
    with pytest.raises(InputError, match="horizon of 5 actions is longer than the longest episode, 4 frames"):
        prefer(policy, toys.ToyData(length=4), first_action, RunDir.create(tmp_path / "short", {}), settings())
