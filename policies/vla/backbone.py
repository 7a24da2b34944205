"""The vision-language model behind a policy: the only module that uses `transformers`.

A backbone is any image-text model whose vision tower takes square images and whose language model is a decoder with a
key-value cache. It is used in three parts: images to tokens, text to tokens, and tokens to the keys and values of every
layer, which the action expert attends to. The language model's head is left out.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sinew.errors import DataError, InputError, MissingDependency

_REMEDY = "give a folder with the model, go online, or use backbone='tiny'"
_TRIED = "SmolVLM, Idefics3, LLaVA, PaliGemma, Gemma 3 and InternVL do"


class Layout(NamedTuple):
    """What the action expert must know of a backbone."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int


class Backbone(nn.Module):
    """A vision-language model, from pixels and tokens to keys and values.

    Args:
        model: image-text model of transformers, without its language head.
        record: "model" (its config), "image_px", "image_mean", "image_std", "dtype"; JSON values, enough to build it again.
    """

    def __init__(self, model: Any, record: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.record = record
        self.image_px: int = record["image_px"]
        self._mean, self._std = record["image_mean"], record["image_std"]

    @property
    def layout(self) -> Layout:
        """Sizes of the language model."""
        text = self.model.config.get_text_config()
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return Layout(text.num_hidden_layers, text.hidden_size, heads, getattr(text, "num_key_value_heads", None) or heads, head_dim)

    def images(self, image: Tensor) -> Tensor:
        """Images (N, height, width, 3) uint8 → tokens (N, T, width)."""
        pixels = self._pixels(image)
        if hasattr(self.model, "connector") and hasattr(self.model, "vision_model"):  # SmolVLM, Idefics3: no search for empty images
            return self.model.connector(self.model.vision_model(pixel_values=pixels).last_hidden_state)
        given = self.model.get_image_features(pixel_values=pixels)
        tokens = getattr(given, "pooler_output", given)
        return torch.stack(list(tokens)) if isinstance(tokens, (list, tuple)) else tokens.view(len(pixels), -1, tokens.shape[-1])

    def _pixels(self, image: Tensor) -> Tensor:
        """Images → (N, 3, image_px, image_px), the longer side scaled to that, the rest padded with black, normalised."""
        x = image.movedim(-1, 1).to(torch.float64 if self.dtype == torch.float64 else torch.float32) / 255
        height, width = x.shape[-2:]
        scale = self.image_px / max(height, width)
        size = (round(height * scale), round(width * scale))
        if size != (height, width):
            x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        if size != (self.image_px, self.image_px):
            x = nn.functional.pad(x, (0, self.image_px - size[1], 0, self.image_px - size[0]))
        mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (self._mean, self._std))
        return ((x - mean) / std).to(self.dtype)

    def text(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, L) → embeddings (B, L, width)."""
        return self.decoder.get_input_embeddings()(tokens)

    def forward(
        self, embeddings: Tensor, allowed: Tensor, places: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Run the language model.

        Args:
            embeddings: (B, L, width).
            allowed: (B or 1, L, L) bool; row i tells which tokens token i sees.
            places: (B, L) int64, where each token stands; None for one after the other.

        Returns:
            Keys and values of every layer, (B, kv_heads, L, head_dim) each, and the last hidden states (B, L, width).
        """
        mask = torch.zeros(allowed.shape, dtype=embeddings.dtype, device=embeddings.device)
        mask = mask.masked_fill(~allowed, torch.finfo(mask.dtype).min).unsqueeze(1).expand(len(embeddings), -1, -1, -1)
        cache = _library().DynamicCache()  # without the config: layers with a sliding window would keep their last keys only
        given = self.decoder(inputs_embeds=embeddings, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        layers = given.past_key_values.layers
        return tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers), given.last_hidden_state

    @property
    def decoder(self) -> Any:
        """The language model."""
        return self.model.text_model if hasattr(self.model, "text_model") else self.model.language_model

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype


# ---------------------------------------------------------------- making one


def rebuild(record: Mapping[str, Any]) -> Backbone:
    """A backbone of the recorded config with fresh weights.

    Raises:
        DataError: the record is not one that `transformers` can build from.
        MissingDependency: `transformers` is not installed.
    """
    library = _library()
    try:
        described = {k: v for k, v in record["model"].items() if k != "model_type"}
        config = library.AutoConfig.for_model(record["model"]["model_type"], **described)
        dtype = getattr(torch, record.get("dtype", "float32"))
        return Backbone(_body(library.AutoModelForImageTextToText.from_config(config, dtype=dtype)), record)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"the recorded backbone cannot be built by transformers {library.__version__}: {str(e).splitlines()[0]}") from None


def load_pretrained(name: str, layers: int = 0, dtype: str = "float32") -> tuple[Backbone, str]:
    """A pretrained image-text model and the text of its tokenizer.

    Args:
        name: local folder or id on the Hugging Face hub.
        layers: first layers of the language model that are kept; 0 for all.
        dtype: type that the weights are kept in.

    Raises:
        InputError: it cannot be had, is no image-text model that serves, or has pickled weights only.
        MissingDependency: `transformers` is not installed.
    """
    library = _library()
    _check_name(library, name)
    try:
        with _quietly(library):
            config = library.AutoConfig.from_pretrained(name)
            tokenizer = Path(_file(library, name, "tokenizer.json")).read_text()
            described = json.loads(_preprocessing(library, name))
            if layers:
                _truncate(config, layers, name)
            kind, how = library.AutoModelForImageTextToText, {"use_safetensors": True, "output_loading_info": True}
            model, loaded = kind.from_pretrained(name, config=config, dtype=getattr(torch, dtype), **how)
    except ImportError as e:
        raise MissingDependency(f"backbone {name!r} needs more than transformers: {_line(e)}") from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise InputError(f"backbone {name!r} cannot be had ({_line(e)}): {_REMEDY}") from None
    _check_complete(model, loaded["missing_keys"], name)
    record = {
        "model": json.loads(config.to_json_string(use_diff=False)),
        "image_px": _side(config),
        "image_mean": described.get("image_mean", [0.5] * 3),
        "image_std": described.get("image_std", [0.5] * 3),
        "dtype": dtype,
    }
    backbone = Backbone(_body(model), record)
    _probe(backbone, name)
    return backbone, tokenizer


def _side(config: Any) -> int:
    """Side of the square images that the vision tower was made for; 0 where it takes no such."""
    side = getattr(config.vision_config, "image_size", 0)
    return side if isinstance(side, int) else max(side)


def _body(model: Any) -> Any:
    """The model without its language head, with torch's RMS norm: the same function without the detour over float32."""
    body = getattr(model, "model", model)
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return body


def _check_complete(model: Any, missing: Iterable[str], name: str) -> None:
    """Refuse weights that leave some of the model as it was drawn at random; the language head is not used."""
    absent = sorted(key for key in missing if key.startswith("model.") or not hasattr(model, "model"))
    if absent:
        raise InputError(f"backbone {name!r} has no weights for {absent[0]!r} ({len(absent)} are missing): its safetensors belong to "
                         "another model, or are not all there")


def _truncate(config: Any, layers: int, name: str) -> None:
    text = config.get_text_config()
    if layers > text.num_hidden_layers:
        raise InputError(f"backbone {name!r} has {text.num_hidden_layers} language layers, {layers} were asked for")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def _check_name(library: Any, name: str) -> None:
    """Refuse what can be seen to be wrong without asking the hub, and a hub that cannot be asked without waiting for it."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not any(path.glob("*.safetensors")):
            pickled = next((p.name for p in sorted(path.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".ckpt")), None)
            found = f"only {pickled}, a pickle, which is never read: convert it to safetensors" if pickled else "no *.safetensors"
            raise InputError(f"backbone folder {name!r} holds {found}")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(f"backbone {name!r} is neither a folder nor <owner>/<model> on the Hugging Face hub: {_REMEDY}")
    elif not isinstance(library.utils.hub.try_to_load_from_cache(name, "config.json"), str) and not _hub_resolves():
        raise InputError(f"backbone {name!r} is neither a folder nor in the cache, and the Hugging Face hub cannot be reached: {_REMEDY}")


def _hub_resolves() -> bool:
    """Whether the hub's name is known here; where a proxy stands between, only that could tell."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    if getproxies():
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


@contextmanager
def _quietly(library: Any) -> Iterator[None]:
    """Without progress bars, and without a report on the layers that were left out on purpose."""
    logging = library.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _file(library: Any, name: str, file: str) -> str:
    found = library.utils.cached_file(name, file)
    if found is None:
        raise OSError(f"it has no {file}")
    return found


def _preprocessing(library: Any, name: str) -> str:
    try:
        return Path(_file(library, name, "preprocessor_config.json")).read_text()
    except OSError:
        return "{}"


def _probe(backbone: Backbone, name: str) -> None:
    """Refuse a model whose parts do not fit how they are used here."""
    kind = type(backbone.model).__name__
    try:
        with torch.no_grad():
            seen = backbone.images(torch.zeros(2, backbone.image_px, backbone.image_px, 3, dtype=torch.uint8))
            keys, _, _ = backbone(seen, torch.ones(1, seen.shape[1], seen.shape[1], dtype=torch.bool))
    except Exception as e:  # whatever a foreign class raises on an interface that it does not have
        raise InputError(f"backbone {name!r} ({kind}) does not give tokens from square images ({_line(e)}); {_TRIED}") from None
    layout = backbone.layout
    if len(keys) != layout.layers or any(k.shape != (2, layout.kv_heads, seen.shape[1], layout.head_dim) for k in keys):
        raise InputError(f"backbone {name!r} ({kind}) keeps keys of shape {tuple(keys[0].shape)}, its config says {layout}; {_TRIED}")


def _line(e: BaseException) -> str:
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingDependency("a vision-language-action policy needs transformers: pip install 'sinew[vla]'") from None
    return transformers
