"""Backbones by folder and name: those that serve are read alike, the others are refused in one line and without a network."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import policies
from policies.vla.backbone import load_pretrained, rebuild
from policies.vla.policy import VlaConfig
from policies.vla.text import Tokenizer, byte_pair_tokenizer
from policies.vla.tiny import TinyConfig, make_tiny, plane_waves
from sinew.errors import DataError, InputError, MissingDependency, SpecError

TEXT = "Touch the red button."
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 300,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def smolvlm() -> Any:
    return transformers.SmolVLMConfig(vision_config=VISION, text_config={"model_type": "llama", **LLAMA}, image_token_id=299)


def idefics3() -> Any:
    return transformers.Idefics3Config(vision_config=VISION, text_config={"model_type": "llama", **LLAMA}, image_token_id=299)


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(**VISION, projection_dim=16)
    return transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(**LLAMA), image_token_index=299)


def paligemma() -> Any:
    vision = transformers.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=16)
    text = {**{k: v for k, v in LLAMA.items() if not k.endswith("token_id")}, "num_key_value_heads": 1}
    text = transformers.GemmaConfig(**text)
    return transformers.PaliGemmaConfig(vision_config=vision, text_config=text, image_token_id=299, projection_dim=16)


@pytest.fixture
def folder(tmp_path):
    """A function that writes a random model of a config, and its tokenizer, into a folder."""

    def write(config: Any, **how: Any) -> str:
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        model.save_pretrained(tmp_path / "model", **how)
        (tmp_path / "model" / "tokenizer.json").write_text(byte_pair_tokenizer([TEXT]))
        return str(tmp_path / "model")

    return write


@pytest.mark.parametrize("config", [smolvlm, idefics3, llava, paligemma])
def test_a_policy_on_a_backbone_from_a_folder_acts_and_loads_without_it(config, folder, toys, tmp_path):
    data, spec = toys.ToyData(camera=True), toys.policy_spec(camera=True, horizon=5)
    settings = VlaConfig(backbone=folder(config()), layers=2, train="lora", instructions=(TEXT,), steps=2)
    policy: Any = policies.make("vla", spec, data.stats(), settings).eval()
    assert len(policy.net.layers) == policy.encoder.backbone.layout.layers == 2
    batch = toys.batch(data, policy.spec)
    noise = torch.randn(8, 2, *policy.spec.noise_shape)
    actions = policy.sample(policy.encode(batch), n=2, noise=noise).actions
    policies.save(policy, tmp_path / "run")
    for file in (tmp_path / "model").iterdir():
        file.unlink()
    loaded = policies.load(tmp_path / "run")
    assert torch.equal(loaded.sample(loaded.encode(batch), n=2, noise=noise).actions, actions)


def test_the_first_layers_are_those_of_the_whole_model(folder):
    name = folder(smolvlm())
    whole, some = load_pretrained(name)[0].eval(), load_pretrained(name, layers=2)[0].eval()
    x = torch.randn(2, 7, 16)
    allowed = torch.ones(1, 7, 7, dtype=torch.bool)
    for kept, all_of_them in zip(some(x, allowed)[0], whole(x, allowed)[0], strict=False):
        torch.testing.assert_close(kept, all_of_them)
    with pytest.raises(InputError, match="has 3 language layers, 5 were asked for"):
        load_pretrained(name, layers=5)


def test_half_precision_weights_are_kept_and_the_expert_stays_in_single(folder, toys, tmp_path):
    data, spec = toys.ToyData(camera=True), toys.policy_spec(camera=True, horizon=5)
    settings = VlaConfig(backbone=folder(smolvlm()), dtype="bfloat16", train="frozen", instructions=(TEXT,), steps=2, discrete_weight=0.1)
    policy: Any = policies.make("vla", spec, data.stats(), settings).eval()
    batch, noise = toys.batch(data, policy.spec), torch.randn(8, 1, *policy.spec.noise_shape)
    actions = policy.sample(policy.encode(batch), noise=noise).actions
    assert policy.encoder.backbone.dtype == torch.bfloat16 and actions.dtype == torch.float32
    policy.loss(batch).scalar.backward()
    policies.save(policy, tmp_path / "run")
    loaded = policies.load(tmp_path / "run")
    assert torch.equal(loaded.sample(loaded.encode(batch), noise=noise).actions, actions)


def test_pixels_keep_their_shape_and_are_padded_with_black():
    backbone = make_tiny(258, 16, TinyConfig(patch_px=4, width=16, heads=2, kv_heads=2))
    image = torch.full((1, 8, 16, 3), 255, dtype=torch.uint8)
    pixels = backbone._pixels(image)
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.all(pixels[:, :, :8] == 1) and torch.all(pixels[:, :, 8:] == -1)
    large = backbone._pixels(image.repeat_interleave(3, 1).repeat_interleave(3, 2))
    torch.testing.assert_close(large, pixels, rtol=0, atol=1e-5)


def test_places_of_a_grid_are_all_different_and_near_ones_alike():
    waves = plane_waves(8, 64)
    apart = torch.cdist(waves, waves)
    assert apart[0, 1] < apart[0, 3] and apart[0, 8] < apart[0, 24]
    assert (apart + 9 * torch.eye(64)).min() > 1


# ---------------------------------------------------------------- words


def test_the_tokenizer_on_the_spot_reads_any_text_and_knows_its_instructions():
    tokenizer = Tokenizer(byte_pair_tokenizer([TEXT, "Touch the blue button."]))
    tokens, there = tokenizer([TEXT, "Schließe die Tür — 戸"])
    assert there.sum(1).tolist()[0] < 8 < there.sum(1).tolist()[1] and tokens.max() < tokenizer.size
    again, _ = Tokenizer(tokenizer.text)([TEXT])
    assert torch.equal(again[0], tokens[0][there[0]])
    assert not torch.equal(*(tokenizer([text])[0] for text in ("red ball", "red bell")))
    assert Tokenizer(byte_pair_tokenizer([]))([TEXT])[0].shape == (1, len(TEXT) + 2)  # with a space before and a line's end after it
    with pytest.raises(InputError, match=r"not a tokenizer\.json"):
        Tokenizer("{}")


# ---------------------------------------------------------------- refusals


def test_backbones_that_cannot_be_had_are_refused_in_one_line(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, message in [
        (str(tmp_path / "nowhere"), "neither a folder nor <owner>/<model>"),
        ("smolvlm", "neither a folder nor <owner>/<model>"),
        (str(tmp_path / "empty"), r"holds no \*\.safetensors"),
        (str(tmp_path / "pickled"), r"holds only pytorch_model\.bin, a pickle, which is never read: convert it to safetensors"),
        ("nobody/no-such-model", "the Hugging Face hub cannot be reached: give a folder with the model, go online, or use backbone='tiny'"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load_pretrained(name)
        assert "\n" not in str(caught.value)
    name = folder(smolvlm())
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"cannot be had \(.*tokenizer\.json"):
        load_pretrained(name)


def test_weights_that_are_not_all_there_are_refused_and_not_drawn_at_random(folder, tmp_path):
    name, path = folder(smolvlm()), tmp_path / "model" / "model.safetensors"
    tensors, whole = load_file(path), path.read_bytes()
    save_file({key: value for key, value in tensors.items() if "layers.1.self_attn" not in key}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for 'model\.text_model\.layers\.1\.self_attn.*\(4 are missing\)"):
        load_pretrained(name)
    save_file({f"other.{key}": value for key, value in tensors.items()}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="belong to another model"):
        load_pretrained(name)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot be had \(.*file not fully covered"):
        load_pretrained(name)
    path.write_bytes(whole)
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    described["text_config"]["intermediate_size"] = 48
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="cannot be had") as caught:
        load_pretrained(name)
    assert "\n" not in str(caught.value)


def test_a_backbone_that_needs_a_further_package_names_it(folder, monkeypatch):
    name = folder(smolvlm())

    def lacks(*_: Any, **__: Any) -> None:
        raise ImportError("\nTimmWrapperModel requires the timm library but it was not found.\npip install timm")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lacks)
    with pytest.raises(MissingDependency, match="requires the timm library"):
        load_pretrained(name)


def test_layers_with_a_sliding_window_keep_the_keys_of_the_whole_prefix():
    text = {**{k: v for k, v in LLAMA.items() if not k.endswith("token_id")}, "sliding_window": 4, "model_type": "gemma3_text"}
    vision = {**VISION, "model_type": "siglip_vision_model"}
    config = transformers.Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=4)
    assert "sliding_attention" in config.text_config.layer_types
    described = json.loads(config.to_json_string(use_diff=False))
    backbone = rebuild({"model": described, "image_px": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "dtype": "float32"})
    keys, values, _ = backbone(torch.randn(2, 9, 16), torch.ones(1, 9, 9, dtype=torch.bool))
    assert {k.shape for k in (*keys, *values)} == {(2, 2, 9, 4)}


def test_models_whose_images_are_no_squares_are_refused(folder):
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16}
    text = {k: v for k, v in LLAMA.items() if not k.endswith("token_id")}
    name = folder(transformers.Qwen2VLConfig(vision_config=vision, text_config=text))
    with pytest.raises(InputError, match=r"Qwen2VLModel.* does not give tokens from square images"):
        load_pretrained(name)


def test_a_record_that_builds_nothing_and_a_missing_library_are_told(monkeypatch):
    with pytest.raises(DataError, match="cannot be built by transformers"):
        rebuild({"model": {"model_type": "no-such-type"}, "image_px": 8, "image_mean": [0], "image_std": [1], "dtype": "float32"})
    with pytest.raises(SpecError, match="multiple of twice its 4 heads"):
        TinyConfig(width=36)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sinew\[vla\]'"):
        make_tiny(258, 16, TinyConfig())
