"""Vision-language-action policy: what the prefix's cache and its sharing are worth, latency by views, and training speed.

Three networks, all with random weights: "tiny", the one that is trained from scratch; "small", 8 language layers of width
384 with three heads to a key-value head after 4 vision layers, 256 image tokens per view, an expert of 3/8 the width as in
NORA-1.5 (arXiv:2511.14659); and the shape of SmolVLM2-500M with the first 16 of its 32 language layers, as SmolVLA uses it
(arXiv:2506.01844). Times are CPU times on one thread, so that other work on the machine counts little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.policies import quantile
from sinew.specs import ACTION, IMAGES, STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

TEXT = "Put the red cube on the blue plate and close the drawer."
HORIZON, STEPS, CANDIDATES = 16, 10, 16
PIXELS = {"tiny": 64, "small": 128, "SmolVLM2": 512}
"""Side of the images by network."""
SMOLVLM2 = {
    "model_type": "smolvlm",
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 16, "num_attention_heads": 15,
        "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    },
    "scale_factor": 4,
}  # fmt: skip
"""Config of SmolVLM2-500M, the language model cut to 16 of 32 layers; 64 image tokens per view."""
AGAIN = "language model run again at every step"
REPEATED = "the observation repeated 16 times"
UNIT = "CPU ms"
UNLIKE = "no peer of equal size"
VIEWS = (1, 2, 3)


def rows(quick: bool) -> list[Row]:
    """Measure on one thread; what is compared takes turns, so that both see the same load."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            found = sharing_rows("tiny", 3 if quick else 20)
            found += sharing_rows("small", 1 if quick else 7)
            found += [] if quick else sharing_rows("SmolVLM2", 1)
            found += view_rows(1 if quick else 7)
        return [*found, *training_rows(1 if quick else 30)]
    finally:
        torch.set_num_threads(threads)


def sharing_rows(shape: str, calls: int) -> list[Row]:
    """One prefix for all steps and all candidates; without a cache the language model runs again, the vision tower does not."""
    import torch

    policy, pixels = make(shape, 1), PIXELS[shape]
    obs, repeated = observation(1, 1, pixels), observation(CANDIDATES, 1, pixels)
    plan = (1 - torch.arange(STEPS) / STEPS).unsqueeze(1)

    def one() -> None:
        policy.sample(policy.encode(obs))

    def many() -> None:
        policy.sample(policy.encode(obs), n=CANDIDATES)

    def all_anew() -> None:
        policy.sample(policy.encode(repeated))

    def joint() -> None:
        encoder, y = policy.encoder, torch.randn(1, 1, HORIZON, policy.spec.action_dim)
        tokens = encoder.tokens(obs, 2)
        allowed = tokens.there.unsqueeze(1).expand(-1, tokens.there.shape[1], -1)
        for t in plan:
            ctx = encoder.context(obs, tokens, *encoder.backbone(tokens.embeddings, allowed))
            y = y - policy.net(y, policy.net.embed_time(t[None]), ctx)[0] / STEPS

    def whole() -> None:
        y = torch.randn(1, 1, HORIZON, policy.spec.action_dim)
        for t in plan:
            y = y - policy.net(y, policy.net.embed_time(t[None]), policy.encode(obs))[0] / STEPS

    alone, sixteen, again = timed(calls, one, many, joint)
    anew, encoded = timed(max(1, calls // 6), all_anew, whole, warm_up=min(1, calls // 6))
    cost, cost_16, cost_joint = (quantile(times, 50) for times in (alone, sixteen, again))
    ratio = cost_16 / cost
    return [
        Row(
            name=f"{shape} vla, batch 1, {STEPS} steps, cached prefix, p50",
            unit=UNIT,
            ours=cost,
            peer=AGAIN,
            peer_value=cost_joint,
            target=">= 4x the peer's speed",
            holds=cost_joint >= 4 * cost,
            higher_is_better=False,
        ),
        Row(
            name=f"{shape} vla, the same",
            unit=UNIT,
            ours=cost,
            peer="the whole observation encoded again at every step",
            peer_value=quantile(encoded, 50),
            target=">= 4x the peer's speed",
            holds=quantile(encoded, 50) >= 4 * cost,
            higher_is_better=False,
        ),
        Row(
            name=f"{shape} vla, {CANDIDATES} candidates of one observation, p50",
            unit=UNIT,
            ours=cost_16,
            peer=REPEATED,
            peer_value=quantile(anew, 50),
            higher_is_better=False,
        ),
        Row(
            name=f"{shape} vla, cost of {CANDIDATES} candidates over that of one",
            unit="x",
            ours=ratio,
            peer="no peer: two of our own figures",
            target="<= 2.5x",
            holds=ratio <= 2.5,
            higher_is_better=False,
        ),
    ]


def view_rows(calls: int) -> list[Row]:
    """Latency by number of cameras."""
    made = [(make("small", views), observation(1, views, PIXELS["small"])) for views in VIEWS]
    times = timed(calls, *(lambda p=policy, o=obs: p.sample(p.encode(o)) for policy, obs in made))
    measured = []
    for views, taken in zip(VIEWS, times, strict=True):
        name = f"{views} view{'s' * (views > 1)}"
        measured.append(Row(name=f"small vla, {name}, p50", unit=UNIT, ours=quantile(taken, 50), peer=UNLIKE, higher_is_better=False))
    return measured


def training_rows(iterations: int) -> list[Row]:
    """Forward, backward and optimiser of the tiny backbone on one 64 x 64 camera."""
    import torch

    policy = make("tiny", 1).train()
    batch = {**observation(64, 1, PIXELS["tiny"]), ACTION: torch.rand(64, HORIZON, 4) * 2 - 1}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, fused=True)
    started = 0.0
    for iteration in range(iterations + 1):
        if iteration == 1:
            started = time.process_time()
        drawn = policy.draw(64)
        optimizer.zero_grad()
        policy.loss(policy.augment(batch, drawn), t=drawn["t"], noise=drawn["noise"]).scalar.backward()
        optimizer.step()
    speed = 64 * iterations / (time.process_time() - started)
    return [Row(name=f"training, tiny vla, one 64 x 64 camera, horizon {HORIZON}", unit="samples/CPU s", ours=speed, peer=UNLIKE)]


# ---------------------------------------------------------------- what is measured


def make(shape: str, views: int) -> Any:
    """A policy with random weights on `views` cameras."""
    import torch

    import policies
    from policies.vla.policy import TOKENIZER_NAME, VlaConfig, VlaPolicy
    from policies.vla.text import byte_pair_tokenizer
    from policies.vla.tiny import TinyConfig

    pixels = PIXELS[shape]
    cameras = {f"{IMAGES}view{k}": TensorSpec(shape=(pixels, pixels, 3), dtype="uint8") for k in range(views)}
    action = ActionSpec(kind="ee_delta", low=(-1,) * 4, high=(1,) * 4, rate_hz=20.0, names=("dx", "dy", "dz", "gripper"))
    spec = PolicySpec(observation=ObservationSpec({STATE: TensorSpec(shape=(24,)), **cameras}), action=action, horizon=HORIZON)
    stats = {STATE: {"mean": np.zeros(24), "std": np.ones(24)}}
    if shape == "SmolVLM2":
        record = {"model": SMOLVLM2, "image_px": pixels, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "dtype": "float32"}
        with torch.inference_mode(False):
            policy = VlaPolicy.rebuild(spec, VlaConfig(record=record, steps=STEPS), ())
            policy.take_assets({TOKENIZER_NAME: byte_pair_tokenizer((TEXT,))})
            policy.encoder.normalizer.fit(stats)
        return policy.eval()
    small = TinyConfig(patch_px=8, width=384, heads=6, kv_heads=2, vision_layers=4, text_layers=8)
    given = {"tiny": small, "expert_width": 0.375} if shape == "small" else {}
    return policies.make("vla", spec, stats, VlaConfig(backbone="tiny", steps=STEPS, **given), seed=0).eval()


def observation(batch: int, views: int, pixels: int) -> dict[str, Any]:
    """{key: (B, 1, ...)} random tensors and the instruction."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (batch, 1, pixels, pixels, 3)
    pictures = {f"{IMAGES}view{k}": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for k in range(views)}
    return {STATE: torch.randn(batch, 1, 24, generator=generator), **pictures, "task": [TEXT] * batch}


def timed(calls: int, *functions: Callable[[], object], warm_up: int = 1) -> list[list[float]]:
    """CPU milliseconds of each call, the functions taking turns, after `warm_up` calls of each that do not count."""
    times: list[list[float]] = [[] for _ in functions]
    for call in range(calls + warm_up):
        for function, kept in zip(functions, times, strict=True):
            started = time.process_time_ns()
            function()
            if call >= warm_up:
                kept.append((time.process_time_ns() - started) / 1e6)
    return times
