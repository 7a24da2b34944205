"""Policies across the border, in the venv with the real lerobot: its policies as ours, ours as its, compared action for action."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lerobot", reason="runs in the venv with the real lerobot: make conformance")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig

from policies.executor import ChunkExecutor
from policies.lerobot import LeRobotPolicy, action_spec, load
from sinew.errors import DataError, InputError, SinewError, SpecError
from sinew.specs import ENVIRONMENT_STATE, STATE, ActionSpec, ObservationSpec, TensorSpec

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SIZE = 32
OBSERVATION = ObservationSpec(
    {
        STATE: TensorSpec(shape=(4,), unit="rad", names=tuple("abcd")),
        ENVIRONMENT_STATE: TensorSpec(shape=(3,), unit="m"),
        **{camera: TensorSpec(shape=(SIZE, SIZE, 3), dtype="uint8") for camera in (FRONT, WRIST)},
    }
)
ACTION = ActionSpec(kind="ee_delta", low=(-20.0, -20.0, -20.0), high=(20.0, 30.0, 20.0), rate_hz=20.0, names=("x", "y", "gripper"))
SHAPES = {STATE: (4,), ENVIRONMENT_STATE: (3,), FRONT: (3, SIZE, SIZE), WRIST: (3, SIZE, SIZE)}
KINDS = {STATE: FeatureType.STATE, ENVIRONMENT_STATE: FeatureType.ENV, FRONT: FeatureType.VISUAL, WRIST: FeatureType.VISUAL}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def features(*keys: str) -> dict[str, Any]:
    return {
        "input_features": {key: PolicyFeature(KINDS[key], SHAPES[key]) for key in keys},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
        "device": "cpu",
        "push_to_hub": False,
    }


ACT = {"dim_model": 16, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1, "latent_dim": 4,
       "pretrained_backbone_weights": None}  # fmt: skip
DIFFUSION = {"down_dims": (16, 32), "horizon": 8, "n_action_steps": 4, "n_groups": 4, "kernel_size": 3, "diffusion_step_embed_dim": 16,
             "spatial_softmax_num_keypoints": 4, "crop_shape": (28, 28), "num_inference_steps": 5,
             "noise_scheduler_type": "DDIM"}  # fmt: skip
VQBET = {"n_obs_steps": 3, "crop_shape": (28, 28), "spatial_softmax_num_keypoints": 4, "gpt_input_dim": 32, "gpt_output_dim": 32,
         "gpt_hidden_dim": 32, "gpt_n_layer": 1, "gpt_n_head": 2, "vqvae_n_embed": 4, "vqvae_embedding_dim": 16,
         "vqvae_enc_hidden_dim": 16, "action_chunk_size": 3}  # fmt: skip


def configured(kind: str) -> Any:
    if kind == "act":
        return ACTConfig(chunk_size=6, n_action_steps=5, **ACT, **features(STATE, FRONT, WRIST))
    if kind == "act-state":
        return ACTConfig(chunk_size=6, n_action_steps=6, **ACT, **features(STATE, ENVIRONMENT_STATE))
    if kind == "diffusion":
        return DiffusionConfig(**DIFFUSION, **features(STATE, FRONT, WRIST))
    if kind == "diffusion-separate":
        return DiffusionConfig(**DIFFUSION, use_separate_rgb_encoder_per_camera=True, **features(STATE, ENVIRONMENT_STATE, FRONT, WRIST))
    if kind == "diffusion-state":
        return DiffusionConfig(**DIFFUSION, **features(STATE, ENVIRONMENT_STATE))
    if kind == "diffusion-ddpm":
        return DiffusionConfig(**{**DIFFUSION, "noise_scheduler_type": "DDPM"}, **features(STATE, ENVIRONMENT_STATE))
    return VQBeTConfig(**VQBET, **features(STATE, FRONT))


CASES = ("act", "act-state", "diffusion", "diffusion-separate", "diffusion-state", "diffusion-ddpm", "vqbet")


def stats() -> dict[str, dict[str, torch.Tensor]]:
    """Statistics that change every value, for every way of normalising."""
    stream = torch.Generator().manual_seed(5)
    told = {}
    for key, shape in {**SHAPES, "action": (3,)}.items():
        size = (3, 1, 1) if len(shape) == 3 else shape
        low = torch.rand(size, generator=stream) * 0.2 - (0 if len(shape) == 3 else 3)
        spread = 0.5 + torch.rand(size, generator=stream) * (0.3 if len(shape) == 3 else 6)
        told[key] = {"min": low, "max": low + spread, "mean": low + spread / 2, "std": spread / 3}
    return told


def save(kind: str, folder: Path) -> Path:
    """A small policy of LeRobot with random weights, saved by LeRobot with its processors."""
    config = configured(kind)
    policy = get_policy_class(config.type)(config)
    if kind == "vqbet":
        policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats()):
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory) -> tuple[str, Path, LeRobotPolicy]:
    torch.manual_seed(0)
    folder = save(request.param, tmp_path_factory.mktemp(request.param) / "p")
    return request.param, folder, load(str(folder), OBSERVATION, ACTION)


def observations(policy: LeRobotPolicy, rows: int = 5) -> dict[str, torch.Tensor]:
    """{key: (rows, To, ...)} of everything there is."""
    stream, steps = torch.Generator().manual_seed(7), policy.spec.n_obs_steps
    obs: dict[str, torch.Tensor] = {}
    for key, tensor in OBSERVATION.tensors.items():
        shape = (rows, steps, *tensor.shape)
        whole = tensor.dtype == "uint8"
        obs[key] = torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8) if whole else torch.randn(shape, generator=stream)
    return obs


def noise_for(policy: LeRobotPolicy, rows: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(seed))


def theirs(folder: Path, obs: dict[str, torch.Tensor], noise: torch.Tensor, row: int, steps: int, seed: int = 0) -> torch.Tensor:
    """The first actions (steps, A), physical, that LeRobot's own rollout takes on a history of observations that then stays.

    Args:
        folder: of the checkpoint.
        obs: {key: (B, To, ...)}.
        noise: (B, 1, *noise_shape), for policies that take it.
        row: which observation.
        steps: how many actions.
        seed: of the global generator when the first action is asked for.
    """
    config = json.loads((folder / "config.json").read_text())
    cls = get_policy_class(config["type"])
    policy = cls.from_pretrained(folder)
    if config.get("noise_scheduler_type") == "DDPM":
        settings = {**config, "noise_scheduler_type": "DDIM"}
        (folder / "config.json").write_text(json.dumps(settings))
        policy = cls.from_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config))
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    policy.reset()
    count = obs[STATE].shape[1]
    frames = [
        {key: value[row, at].movedim(-1, 0).float() / 255 if value.dtype == torch.uint8 else value[row, at] for key, value in obs.items()}
        for at in range(count)
    ]
    options = {"noise": noise[row]} if config["type"] == "diffusion" else {}
    if count > 1:  # the queues of observations, as they stand when a rollout comes to the newest one
        for key, queue in policy._queues.items():
            if key != "action":
                cameras = list(policy.config.image_features)
                past = [before(dict(frame)) for frame in frames[:-1]]
                entries = [torch.stack([p[c] for c in cameras], dim=-4) if key == "observation.images" else p[key] for p in past]
                queue.extend(entries)
    actions = []
    torch.manual_seed(seed)
    for _ in range(steps):
        actions.append(after(policy.select_action(before(dict(frames[-1])), **options))[0])
    return torch.stack(actions)


def test_actions_are_those_of_lerobots_own_rollout(made):
    kind, folder, policy = made
    obs, noise = observations(policy), noise_for(policy, 5, 1)
    with pytest.MonkeyPatch.context() as patched:
        if kind == "vqbet":  # draws its codes by itself: both sides from one seed, whatever ours makes of the noise
            seeded = torch.manual_seed
            patched.setattr(torch, "manual_seed", lambda seed: seeded(0))
        ours = ACTION.denormalize(policy.sample(policy.encode(obs), noise=noise).actions)
    for row in (0, 3):
        wanted = theirs(folder, obs, noise, row, policy.spec.horizon)
        assert (wanted.abs() < 19.9).all()  # nothing is clipped
        torch.testing.assert_close(ours[row, 0], wanted, rtol=0, atol=1e-5)


def test_the_contract_of_a_policy_holds(made):
    _, _, policy = made
    obs, noise = observations(policy), noise_for(policy, 5, 3)
    context = policy.encode(obs)
    chunk = policy.sample(context, n=3, noise=noise, features=True)
    assert chunk.actions.shape == (5, 3, policy.spec.horizon, 3) and chunk.actions.abs().max() <= 1
    torch.rand(3)
    policy.sample(context, n=2)
    again = policy.sample(policy.encode(obs), n=3, noise=noise, features=True)
    assert torch.equal(again.actions, chunk.actions) and torch.equal(chunk.noise, noise)
    for row in (0, 4):
        alone = policy.sample(policy.encode({k: v[row : row + 1] for k, v in obs.items()}), noise=noise[row : row + 1, 1:2])
        torch.testing.assert_close(alone.actions[0, 0], chunk.actions[row, 1], rtol=0, atol=1e-5)
    wide = context.expand(3)
    assert wide.batch == 15
    by_expand = policy.sample(wide, noise=noise.reshape(15, 1, *policy.spec.noise_shape))
    torch.testing.assert_close(by_expand.actions.reshape(chunk.actions.shape), chunk.actions, rtol=0, atol=1e-5)
    if "features" in policy.spec.capabilities:
        assert chunk.features is not None and chunk.features.shape == (5, 3, policy.spec.feature_dim)
        assert torch.equal(chunk.features, again.features) and policy.sample(context).features is None
    else:
        assert chunk.features is None and policy.spec.feature_dim == 0
    state = torch.get_rng_state()
    policy.sample(context, noise=noise[:, :1])
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left as it was
    one, two = (policy.sample(context, n=2, generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(one.actions, two.actions)


def test_noise_moves_what_it_should_and_nothing_else(made):
    kind, _, policy = made
    context = policy.encode(observations(policy))
    one, two = (policy.sample(context, noise=noise_for(policy, 5, 1, seed)).actions for seed in (0, 1))
    assert torch.equal(one, two) == kind.startswith("act")
    assert ("noise" in policy.spec.capabilities) == kind.startswith("diffusion")
    if kind.startswith("diffusion"):  # small steps of the noise are small steps of the action: a latent can be steered
        noise = noise_for(policy, 5, 1)
        near = policy.sample(context, noise=noise + 1e-4).actions
        assert 0 < (near - one).abs().max() < 1e-2


def test_candidates_of_a_diffusion_policy_share_one_look_at_the_images(tmp_path):
    policy = load(str(save("diffusion", tmp_path / "p")), OBSERVATION, ACTION)
    calls = []
    policy.inner.diffusion.rgb_encoder.register_forward_hook(lambda *_: calls.append(1))
    context = policy.encode(observations(policy))
    policy.sample(context, n=8)
    policy.sample(context.expand(2), n=3)
    assert len(calls) == 1


def test_sampling_steps_can_be_chosen_where_there_are_any(made):
    kind, _, policy = made
    context, noise = policy.encode(observations(policy)), noise_for(policy, 5, 1)
    if not kind.startswith("diffusion"):
        with pytest.raises(SpecError, match="does not sample in steps that can be chosen"):
            policy.sample(context, steps=3)
        return
    native = policy.sample(context, noise=noise).actions
    assert torch.equal(policy.sample(context, noise=noise, steps=5).actions, native)
    assert not torch.equal(policy.sample(context, noise=noise, steps=2).actions, native)
    assert torch.equal(policy.sample(context, noise=noise).actions, native)
    with pytest.raises(SpecError, match="at least 1 step"):
        policy.sample(context, steps=0)


def test_observation_features_for_a_critic(made):
    kind, _, policy = made
    newest = {key: value[:, -1] for key, value in observations(policy).items()}
    seen = policy.observe(newest)
    assert seen.shape == (5, policy.observation_dim) and not seen.requires_grad
    told = stats()[STATE]
    low, high, mean, std = (told[name] for name in ("min", "max", "mean", "std"))
    scaled = (newest[STATE] - mean) / std if kind.startswith("act") else 2 * (newest[STATE] - low) / (high - low) - 1
    torch.testing.assert_close(seen[:, :4], scaled, rtol=1e-4, atol=1e-5)
    if kind == "diffusion":
        assert policy.observation_dim > 4 + 8  # and its images


def test_it_acts_through_the_executor_as_lerobot_does(tmp_path):
    folder = save("diffusion-state", tmp_path / "p")
    policy = load(str(folder), OBSERVATION, ACTION)
    native = get_policy_class("diffusion").from_pretrained(folder)
    before, after = make_pre_post_processors(native.config, pretrained_path=str(folder))
    noise = noise_for(policy, 1, 1)
    executor = ChunkExecutor(policy, 1, noise=noise[0, 0])
    stream = torch.Generator().manual_seed(2)
    native.reset()
    for _ in range(10):
        obs = {STATE: torch.randn(1, 4, generator=stream), ENVIRONMENT_STATE: torch.randn(1, 3, generator=stream)}
        wanted = after(native.select_action(before(dict(obs)), noise=noise[0]))
        torch.testing.assert_close(ACTION.denormalize(executor.act(obs)), wanted, rtol=0, atol=1e-5)


def test_bounds_of_the_actions_from_the_statistics(tmp_path):
    folder = save("act-state", tmp_path / "p")
    spec = action_spec(str(folder), kind="joint_position", rate_hz=30.0)
    told = stats()["action"]
    torch.testing.assert_close(torch.tensor(spec.low), told["min"])
    torch.testing.assert_close(torch.tensor(spec.high), told["max"])
    assert spec.kind == "joint_position" and spec.rate_hz == 30.0
    assert load(str(folder), OBSERVATION, spec).spec.action == spec


def test_a_policy_that_ensembles_gives_all_its_actions(tmp_path):
    config = ACTConfig(chunk_size=6, n_action_steps=1, temporal_ensemble_coeff=0.01, **ACT, **features(STATE, ENVIRONMENT_STATE))
    policy = get_policy_class("act")(config)
    policy.save_pretrained(tmp_path)
    for processor in make_pre_post_processors(config, dataset_stats=stats()):
        processor.save_pretrained(tmp_path)
    ours = load(str(tmp_path), OBSERVATION, ACTION)
    assert ours.spec.horizon == 6
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    policy.reset()
    executor = ChunkExecutor(ours, 1, mode="ensemble")
    stream = torch.Generator().manual_seed(2)
    for _ in range(9):  # two implementations of Zhao et al. 2023, equation of appendix A
        obs = {STATE: torch.randn(1, 4, generator=stream), ENVIRONMENT_STATE: torch.randn(1, 3, generator=stream)}
        wanted = after(policy.select_action(before(dict(obs))))
        torch.testing.assert_close(ACTION.denormalize(executor.act(obs)), wanted, rtol=0, atol=1e-4)


def edited(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(told) or told))


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    def fresh() -> Path:
        return save("act-state", tmp_path / str(len(list(tmp_path.iterdir()))))

    def refused(folder: Path | str, error: type[SinewError], message: str, **options: Any) -> None:
        arguments = {"observation": OBSERVATION, "action": ACTION, **options}
        with pytest.raises(error, match=message) as told:
            load(str(folder), **arguments)
        assert "\n" not in str(told.value)

    refused(tmp_path / "none", InputError, "no LeRobot checkpoint at")
    refused("lerobot/does-not-exist", InputError, "is no folder, and cannot be had from the hub")
    for name in ("model.safetensors", "config.json", "policy_preprocessor.json"):
        folder = fresh()
        (folder / name).unlink()
        refused(folder, DataError, f"has no {name}")
    folder = fresh()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, DataError, r"holds pytorch_model\.bin and no model\.safetensors: pickles run code and are never read")
    folder = fresh()
    (folder / "optimizer.pt").write_bytes(b"x")
    refused(folder, DataError, r"holds optimizer\.pt: pickles")
    folder = fresh()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    refused(folder, DataError, "LeRobot cannot load")
    folder = fresh()
    edited(folder, "config.json", lambda told: {**told, "type": "difusion"})
    refused(folder, InputError, "unknown LeRobot policy type 'difusion': did you mean 'diffusion'")
    folder = fresh()
    edited(folder, "config.json", lambda told: {**told, "dim_model": 32})
    refused(folder, DataError, "LeRobot cannot load")
    folder = fresh()
    edited(folder, "config.json", lambda told: {**told, "use_peft": True})
    refused(folder, InputError, "adapters only")
    folder = fresh()
    edited(folder, "policy_preprocessor.json", lambda told: {**told, "steps": [{"class": "subprocess.Popen", "config": {"args": "true"}}]})
    refused(folder, DataError, r"names the class 'subprocess\.Popen', which is not LeRobot's")
    camera = save("act", tmp_path / "camera")
    blind = ObservationSpec({key: OBSERVATION[key] for key in (STATE, FRONT)})
    told = "looks at camera 'observation.images.wrist', which is not given: there are observation.state"
    refused(camera, SpecError, told, observation=blind)
    wide = ObservationSpec({**OBSERVATION.tensors, STATE: TensorSpec(shape=(5,))})
    refused(camera, SpecError, r"'observation.state' of shape \(4,\), given is \(5,\)", observation=wide)
    two = ActionSpec(kind="ee_delta", low=(0.0, 0.0), high=(1.0, 1.0), rate_hz=1.0, names=("a", "b"))
    refused(camera, SpecError, "acts in 3 elements, the action has 2: a, b", action=two)


def test_other_names_are_mapped(tmp_path):
    folder = save("act", tmp_path / "p")
    same = load(str(folder), OBSERVATION, ACTION)
    names = {"observation.images.left": FRONT, "observation.images.right": WRIST}
    other = ObservationSpec({STATE: OBSERVATION[STATE], **{ours: OBSERVATION[theirs] for ours, theirs in names.items()}})
    policy = load(str(folder), other, ACTION, rename=names)
    obs = observations(same)
    renamed = {STATE: obs[STATE], **{ours: obs[theirs] for ours, theirs in names.items()}}
    assert torch.equal(policy.sample(policy.encode(renamed)).actions, same.sample(same.encode(obs)).actions)


def test_what_the_adapter_cannot_do_is_told(tmp_path):
    policy = load(str(save("act-state", tmp_path / "p")), OBSERVATION, ACTION)
    obs = observations(policy)
    with pytest.raises(SpecError, match="takes no guidance"):
        policy.sample(policy.encode(obs), guidance=[lambda *a: a[1]])
    with pytest.raises(SpecError, match="lerobot-train"):
        policy.loss({})
    with pytest.raises(SpecError, match=r"needs observation 'observation\.state'"):
        policy.encode({ENVIRONMENT_STATE: obs[ENVIRONMENT_STATE]})
