"""Distilling: a student lands where a known flow map leads, nothing but the student moves, and it resumes exactly."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import policies
from policies.base import EmbeddingContext, PolicyModule
from policies.best_of import BestOfN
from policies.composed import Composed
from policies.consistency import ConsistencyPolicy
from policies.counts import CountConfig, make_counts
from policies.distill import DistillConfig, distilling
from policies.guided import Guided
from policies.residual import Residual
from policies.sampling import euler, time_to_sigma
from policies.train import TrainConfig, train
from policies.train_state import trainable
from sinew.errors import InputError, SpecError
from sinew.progress import SILENT, Progress
from sinew.rundir import RunDir
from sinew.specs import STATE

SPREAD = 0.25
SHORT = {"steps": 24, "batch_size": 16, "warmup_steps": 4, "log_every": 1, "checkpoint_every": 5, "seed": 3}


class Bell(PolicyModule):
    """The exact denoiser of chunks N(m, SPREAD^2), m a known function of the state; no network, and no denoiser's class."""

    def __init__(self, spec):
        super().__init__(replace(spec, noise_shape=(spec.horizon, spec.action_dim), capabilities=("denoise",)), None)
        self.unused = torch.nn.Parameter(torch.ones(1))  # what a teacher has and a student must not move

    def bases(self):
        return ()

    def encode(self, obs):
        return EmbeddingContext(center(obs))

    def sigmas(self, steps=None):
        return time_to_sigma(torch.linspace(0.99, 0, (steps or 10) + 1))

    def denoise(self, x, sigma, ctx):
        noise = sigma.square()[:, None, None]
        return (SPREAD**2 * x + noise * ctx.embedding[:, None]) / (SPREAD**2 + noise)


def center(obs):
    """m (B, A): a smooth function of the newest state."""
    return 0.5 * torch.tanh(obs[STATE][:, -1, :3] - 1)


def observed(spec, rows, generator):
    return {key: torch.randn(rows, 1, *spec.observation[key].shape, generator=generator) for key in spec.observation}


def standard(spec):
    shapes = {key: spec.observation[key].shape for key in spec.observation}
    return {key: {"mean": np.zeros(shape, np.float32), "std": np.ones(shape, np.float32)} for key, shape in shapes.items()}


def taught(spec, config, updates=300, rows=128):
    """The student of a Bell, taught on observations and demonstrations that are drawn afresh for every update."""
    trainer = distilling(Bell(spec), config, standard(spec), seed=0)
    stream = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(trainable(trainer).values(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        obs, drawn = observed(spec, rows, stream), trainer.draw(rows, stream)
        shape = (rows, spec.horizon, spec.action_dim)
        action = center(obs)[:, None] + SPREAD * torch.randn(shape, generator=stream)
        loss = trainer.loss({**obs, "action": action}, t=drawn["t"], noise=drawn["noise"]).scalar
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        trainer.after_update()
    return trainer.product().eval()


@pytest.mark.parametrize("form", ["rl100", "ctm"])
def test_one_step_lands_where_the_flow_of_a_gaussian_leads(toys, form):
    """Every Euler step of a Gaussian's flow shrinks x - m by a known factor, so ten of them do, whatever the state.

    The samples are 0.2 away from the mean m; a student must be four times nearer than one that knows the mean alone.
    """
    spec = toys.policy_spec(horizon=2)
    student = taught(spec, DistillConfig(form=form))
    obs, noise = observed(spec, 500, torch.Generator().manual_seed(1)), torch.randn(500, 2, 3)
    with torch.no_grad():
        got = student.sample(student.encode(obs), noise=noise.unsqueeze(1)).actions[:, 0]
    sigmas = Bell(spec).sigmas(10).double()
    assert float(student.sigmas(1)[0]) == pytest.approx(float(sigmas[0]), rel=1e-4)
    kept = SPREAD**2 / (SPREAD**2 + sigmas[:-1].square())  # D - m = kept (x - m)
    factor = float((kept + (1 - kept) * sigmas[1:] / sigmas[:-1]).prod())
    mean = center(obs)[:, None]
    expected = mean + (float(sigmas[0]) * noise - mean) * factor
    error, spread = ((chunks - expected.clamp(-1, 1)).square().mean().sqrt().item() for chunks in (got, mean))
    assert spread > 0.15 and error < spread / 4


def test_several_steps_follow_the_same_path(toys):
    """A student of two jumps: the first stops half-way in the teacher's steps, both together end where one does."""
    spec = toys.policy_spec(horizon=2)
    student = taught(spec, DistillConfig(form="rl100", steps=2, start_share=0.5))
    obs, noise = observed(spec, 300, torch.Generator().manual_seed(1)), torch.randn(300, 1, 2, 3)
    teacher = Bell(spec)
    expected = euler(lambda x, sigma: teacher.denoise(x, sigma, teacher.encode(obs)), noise[:, 0], teacher.sigmas(10)).clamp(-1, 1)
    with torch.no_grad():
        for steps in (1, 2):
            got = student.sample(student.encode(obs), noise=noise, steps=steps).actions[:, 0]
            assert (got - expected).square().mean().sqrt() < 0.06, steps


@pytest.mark.parametrize("name", ["flow-unet", "diffusion-unet", "edm-transformer"])
def test_the_path_that_is_taught_is_the_teachers_own_sample(toys, name):
    """From the start to the end in one jump: the mean of that jump is the native sample, before it is limited."""
    teacher, data = toys.make(name)
    trainer = distilling(teacher, DistillConfig(teacher_steps=4, start_share=1.0), data.stats())
    batch, draws = toys.batch(data, teacher.spec), trainer.draw(8, torch.Generator().manual_seed(0))
    x, start, end, mean = trainer._path(batch, draws["t"], draws["noise"])
    with torch.no_grad():
        native = teacher.sample(teacher.encode(batch), noise=draws["noise"].unsqueeze(1), steps=4).actions[:, 0]
    torch.testing.assert_close(mean.clamp(-1, 1), native, rtol=0, atol=3e-5)
    assert torch.equal(x, start[:, None, None] * draws["noise"]) and not end.any()


@pytest.mark.parametrize("form", ["rl100", "ctm"])
@pytest.mark.parametrize("name", ["flow-unet", "edm-transformer", "composed-flow-mlp+diffusion-mlp", "vla-bidirectional"])
def test_only_the_student_moves(toys, tmp_path, name, form):
    teacher, data = toys.make(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    trainer = distilling(teacher, DistillConfig(form=form, teacher_steps=3), data.stats())
    fresh = {key: value.clone() for key, value in trainer.student.state_dict().items()}
    folder = tmp_path / "run"
    folder.mkdir()
    student = train(trainer, data, RunDir(folder), TrainConfig(**{**SHORT, "steps": 3, "batch_size": 8}))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    moved = [key for key, value in student.state_dict().items() if not torch.equal(value, fresh[key])]
    assert any(key.startswith("jump.") for key in moved) and any(key.startswith("base.net.") for key in moved)
    assert not any(key.startswith("base.encoder.") for key in moved)  # frozen is the default
    loaded = policies.load(folder)
    assert isinstance(loaded, ConsistencyPolicy) and loaded.config.steps == 1
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_samples_without_weight_teach_nothing(toys):
    """A weight of zero leaves a sample out: its loss may be anything, the gradient is that of the others."""
    teacher, data = toys.make("flow-mlp")
    for form in ("rl100", "ctm"):
        trainer = distilling(teacher, DistillConfig(form=form), data.stats())
        batch, draws = toys.batch(data, teacher.spec), trainer.draw(8, torch.Generator().manual_seed(0))
        weight = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
        weighted = trainer.loss({**batch, "weight": weight}, t=draws["t"], noise=draws["noise"]).scalar
        half = {key: value[:4] for key, value in batch.items()}
        alone = trainer.loss(half, t=draws["t"][:4], noise=draws["noise"][:4]).scalar
        torch.testing.assert_close(weighted, alone)


class Crash(Progress):
    """Ends the training without a checkpoint, as a kill would."""

    def start(self, stage, total, done=0):
        self.left = 13 if stage == "train" else -1

    def advance(self, n=1, **values):
        self.left -= n
        if self.left == 0:
            raise ZeroDivisionError


@pytest.mark.parametrize("form", ["rl100", "ctm"])
def test_cut_off_and_resumed_equals_uninterrupted(toys, tmp_path, form):
    """Between two checkpoints; the slow copy of ctm is part of what goes on."""
    teacher, data = toys.make("flow-mlp")

    def run(name, progress=SILENT):
        (tmp_path / name).mkdir(exist_ok=True)
        trainer = distilling(teacher, DistillConfig(form=form), data.stats())
        return train(trainer, data, RunDir(tmp_path / name), TrainConfig(**SHORT), progress).state_dict()

    whole = run("whole")
    with pytest.raises(ZeroDivisionError):
        run("cut", Crash())
    assert json.loads((tmp_path / "cut" / "train_state.json").read_text())["step"] == 10
    resumed = run("cut")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    lines = [[line["loss"] for line in RunDir(tmp_path / name).metrics()] for name in ("whole", "cut")]
    assert lines[0] == lines[1] and len(lines[0]) == SHORT["steps"]


@pytest.mark.parametrize("name", ["act-state", "energy-mlp", "best_of-flow-mlp", "consistency-flow-mlp"])
def test_a_teacher_that_is_no_denoiser_is_refused(toys, name):
    teacher, data = toys.make(name)
    with pytest.raises(SpecError, match=r"^distilling needs a policy with capability 'denoise'; \w+ has: [^\n]*$"):
        distilling(teacher, DistillConfig(), data.stats())


def test_a_teacher_that_corrects_is_refused(toys):
    teacher, data = toys.make("residual-flow-mlp")
    with pytest.raises(SpecError, match=r"corrects its actions at every tick[^\n]*distil the run that it was improved from"):
        distilling(teacher, DistillConfig(), data.stats())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"teacher_steps": 0}, {"solver_steps": 0}, {"form": "magic"}, {"start_share": 1.5},
                                   {"target_decay": 1.0}, {"denoising": -1.0}])  # fmt: skip
def test_wrong_settings_are_one_line(wrong):
    with pytest.raises(InputError, match=r"^distilling [^\n]*$"):
        DistillConfig(**wrong)


def test_the_student_takes_steps_but_no_guidance(toys):
    student, data = toys.make("consistency-flow-mlp")
    ctx = student.encode(toys.batch(data, student.spec, 2))
    with pytest.raises(SpecError, match=r"takes no guidance[^\n]*use its teacher"):
        student.sample(ctx, guidance=[lambda x, clean, sigma, ctx: clean])
    with pytest.raises(SpecError, match="at least 1 step, not 0"):
        student.sample(ctx, steps=0)
    for wrapper in (lambda: Guided(student, reach=1.0), lambda: Composed([student, student], (0.5, 0.5))):
        with pytest.raises(SpecError, match="'denoise'"):
            wrapper()


def test_the_student_nests_where_samples_and_features_are_enough(toys):
    student, data = toys.make("consistency-flow-mlp")
    obs = {key: value for key, value in toys.batch(data, student.spec, 3).items() if key in student.spec.observation}
    counts = make_counts(student.spec.feature_dim, CountConfig(hidden=8))
    noise = torch.randn(3, 1, *student.spec.noise_shape)
    alone = student.sample(student.encode(obs), noise=noise).actions
    one, four = BestOfN(student, 1, counts), BestOfN(student, 4, counts)
    assert torch.equal(one.sample(one.encode(obs), noise=noise).actions, alone)
    assert four.sample(four.encode(obs), noise=noise).actions.shape == alone.shape
    corrected = Residual(student, scale=0.2, hidden=(8,))
    assert torch.equal(corrected.sample(corrected.encode(obs), noise=noise).actions, alone)


def test_a_student_of_a_composition_starts_from_its_first_denoiser_and_level(toys):
    """The network is the first member's; sampling starts where the composition does."""
    teacher, data = toys.make("composed-edm-mlp+flow-mlp-camera")
    student = distilling(teacher, DistillConfig(), data.stats()).student
    assert set(student.spec.observation) == set(teacher.spec.observation)
    assert float(student.sigmas(1)[0]) == pytest.approx(float(teacher.sigmas(1)[0]), rel=1e-4)


@pytest.mark.parametrize("inference", [True, False])
def test_what_is_kept_between_samples_follows_every_change_of_the_weights(toys, inference):
    """The embedding of the jumps is kept; copies, changes in place, other weights and other numbers make it anew."""
    student, data = toys.make("consistency-flow-unet-camera")
    obs, noise = toys.batch(data, student.spec, 2), torch.randn(2, 1, *student.spec.noise_shape)

    def sampled(policy, steps):
        with torch.inference_mode(inference), torch.no_grad():
            kept = policy.sample(policy.encode(obs), noise=noise.to(policy.jump.layers[-1].weight), steps=steps).actions
        fresh = policy.sample(policy.encode(obs), noise=noise, steps=steps).actions  # with gradients nothing is kept
        assert torch.equal(kept, fresh.detach())
        return kept

    first = sampled(student, 1)
    assert torch.equal(sampled(student, 1), first) and not torch.equal(sampled(student, 2), first)
    twin = copy.deepcopy(student)
    with torch.no_grad():
        student.jump.layers[-1].weight.add_(0.1)
    changed = sampled(student, 1)
    assert not torch.equal(changed, first) and torch.equal(sampled(twin, 1), first)
    twin.load_state_dict(student.state_dict())
    assert torch.equal(sampled(twin, 1), changed)
    twin.base.net.time_in[1].weight.data = 2 * twin.base.net.time_in[1].weight.data
    assert not torch.equal(sampled(twin, 1), changed)


@pytest.mark.parametrize("name", ["flow-mlp", "diffusion-mlp", "edm-mlp"])
def test_no_jump_without_a_teacher_is_so_short_that_it_has_no_mean(toys, name):
    """The largest number below 1 that torch draws makes one in some hundred of such jumps end where it starts."""
    policy = ConsistencyPolicy(toys.make(name)[0])
    t = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    t[:, 2] = 1 - 2**-24
    start, halt, end = policy.levels(t)
    share = (1 - end / halt) / (1 - end / start)  # of the second part of a jump, as the loss takes it
    assert torch.isfinite(share).all() and share.min() >= 0 and share.max() <= 1
