"""LeRobot's SmolVLA, small and random, as our policy: runs where lerobot and transformers are, without the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("lerobot", reason="runs in the venv with the real lerobot: make conformance")
pytest.importorskip("transformers", reason="SmolVLA needs transformers: pip install 'lerobot[smolvla]' in that venv")

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

from policies.lerobot import LeRobotPolicy, load
from sinew.errors import SpecError
from sinew.specs import STATE, ActionSpec, ObservationSpec, TensorSpec

FRONT = "observation.images.front"
OBSERVATION = ObservationSpec({STATE: TensorSpec(shape=(4,)), FRONT: TensorSpec(shape=(32, 32, 3), dtype="uint8")})
ACTION = ActionSpec(kind="ee_delta", low=(-50.0,) * 3, high=(50.0,) * 3, rate_hz=10.0, names=("x", "y", "z"))
SPECIAL = {"image_token": "<image>", "fake_image_token": "<fake>", "global_image_token": "<global>", "end_of_utterance_token": "<end>"}
WORDS = ("<pad>", "<unk>", *SPECIAL.values(), "<bos>", "<eos>", "pick", "place", "it")


def backbone(folder: Path) -> Path:
    """A vision-language model of SmolVLM's classes with a tokenizer of a few words, as folder."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=SPECIAL, **named)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    heads = {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16}
    text = {**width, **heads, "model_type": "llama", "vocab_size": 64, "pad_token_id": 0}
    vision = {**width, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8}
    SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=2).save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), chat_template="{{ messages }}").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, LeRobotPolicy]:
    """The folder that LeRobot saved, and our policy of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("smolvla")
    config = SmolVLAConfig(
        vlm_model_name=str(backbone(root / "vlm")), load_vlm_weights=False, num_vlm_layers=2, chunk_size=6, n_action_steps=5,
        max_state_dim=8, max_action_dim=8, num_steps=4, resize_imgs_with_padding=(32, 32), device="cpu", push_to_hub=False,
        input_features={STATE: PolicyFeature(FeatureType.STATE, (4,)), FRONT: PolicyFeature(FeatureType.VISUAL, (3, 32, 32))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
    )  # fmt: skip
    stats = {STATE: {"mean": torch.ones(4), "std": 2 * torch.ones(4)}, "action": {"mean": torch.ones(3), "std": 2 * torch.ones(3)}}
    get_policy_class("smolvla")(config).save_pretrained(root / "policy")
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(root / "policy")
    return root / "policy", load(str(root / "policy"), OBSERVATION, ACTION)


def observations() -> dict[str, Any]:
    stream = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 1, 32, 32, 3), generator=stream, dtype=torch.uint8)
    return {STATE: torch.randn(3, 1, 4, generator=stream), FRONT: image, "task": ["pick it", "place", "it"]}


def test_actions_are_those_of_lerobots_own_rollout(made):
    folder, policy = made
    obs, noise = observations(), torch.randn(3, 2, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(2))
    ours = ACTION.denormalize(policy.sample(policy.encode(obs), n=2, noise=noise).actions)
    native = get_policy_class("smolvla").from_pretrained(folder)
    before, after = make_pre_post_processors(native.config, pretrained_path=str(folder))
    for row, candidate in ((0, 0), (1, 1), (2, 0)):
        native.reset()
        seen = {STATE: obs[STATE][row, 0], FRONT: obs[FRONT][row, 0].movedim(-1, 0).float() / 255, "task": obs["task"][row]}
        wanted = [after(native.select_action(before(dict(seen)), noise=noise[row : row + 1, candidate]))[0] for _ in range(5)]
        torch.testing.assert_close(ours[row, candidate], torch.stack(wanted), rtol=0, atol=2e-5)  # of ±50, in float32


def test_noise_steps_features_and_words_matter(made):
    _, policy = made
    assert policy.spec.noise_shape == (6, 8) and policy.spec.horizon == 5
    assert set(policy.spec.capabilities) == {"noise", "features", "observe", "language"}
    obs, noise = observations(), torch.randn(3, 2, 6, 8)
    context = policy.encode(obs)
    chunk = policy.sample(context, n=2, noise=noise, features=True)
    assert chunk.features is not None and chunk.features.shape == (3, 2, policy.spec.feature_dim)
    assert torch.equal(policy.sample(policy.encode(obs), n=2, noise=noise).actions, chunk.actions)
    assert not torch.equal(policy.sample(context, n=2, noise=noise + 0.1).actions, chunk.actions)
    assert not torch.equal(policy.sample(context, n=2, noise=noise, steps=2).actions, chunk.actions)
    other = policy.sample(policy.encode({**obs, "task": ["place", "place", "it"]}), n=2, noise=noise).actions
    assert not torch.equal(other[0], chunk.actions[0])
    torch.testing.assert_close(other[1:], chunk.actions[1:], rtol=0, atol=1e-5)
    with pytest.raises(SpecError, match="reads an instruction"):
        policy.encode({key: value for key, value in obs.items() if key != "task"})
