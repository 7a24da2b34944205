"""The vision-language-action policy: what its prefix is worth, what is learned where, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

import policies
from policies.vla.policy import VlaConfig
from sinew.errors import InputError, SpecError

RED, BLUE = "Touch the red button.", "Touch the blue button."


@pytest.fixture
def made(toys):
    """(policy that knows two instructions, batch of 8)."""
    policy, data = toys.vla(instructions=(RED, BLUE))
    return policy, toys.batch(data, policy.spec)


def noise_for(policy, rows, n, seed=0):
    return torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(seed))


def told(batch, text):
    return {**batch, "task": [text] * len(batch["task"])}


# ---------------------------------------------------------------- the prefix


def joint_velocity(policy: Any, obs: Any, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Velocity (B, H, A) of one chunk per observation, without any cache: in every layer backbone and expert run side by
    side over one sequence, and a mask says who sees whom."""
    encoder, net = policy.encoder, policy.net
    prefix = encoder.tokens(obs, 2)
    text = encoder.backbone.decoder
    rows, size = prefix.there.shape
    state = net.state_in(encoder.state(obs, 2).flatten(1)).unsqueeze(1)
    suffix = torch.cat([state, net.action_in(y)], dim=1) + net.positions
    length = suffix.shape[1]
    allowed = torch.zeros(rows, size + length, size + length, dtype=torch.bool)
    allowed[:, :, :size] = prefix.there.unsqueeze(1)  # all see the prefix
    allowed[:, size:, size:] = True  # the suffix sees itself
    embedded = net.embed_time(t)
    modulation, skip = embedded[:, :-1].view(rows, 1, -1, net.feature_dim), embedded[:, -1:, None]
    position = torch.arange(size).unsqueeze(0)
    cos, sin = text.rotary_emb(prefix.embeddings, position)

    def split(x):
        return x.unflatten(-1, (-1, net.layers[0].head_dim)).transpose(1, 2)

    def turned(x):
        left, right = x.chunk(2, dim=-1)
        return x * cos.unsqueeze(1) + torch.cat([-right, left], dim=-1) * sin.unsqueeze(1)

    def attend(query, keys, values, allowed):  # queries of the prefix or of the suffix over the keys of both
        group = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        return functional.scaled_dot_product_attention(query, keys, values, allowed.unsqueeze(1)).transpose(1, 2).flatten(2)

    h = prefix.embeddings
    for k, (ours, theirs) in enumerate(zip(net.layers, text.layers, strict=True)):
        attention = theirs.self_attn
        normed = theirs.input_layernorm(h)
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = modulation[:, :, 6 * k : 6 * k + 6].unbind(2)
        acting = functional.rms_norm(suffix, suffix.shape[-1:]) * (1 + scale) + shift
        own_keys, own_values = ours.key_value(acting).chunk(2, dim=-1)

        keys = torch.cat([turned(split(attention.k_proj(normed))), split(own_keys)], dim=2)
        values = torch.cat([split(attention.v_proj(normed)), split(own_values)], dim=2)
        reading = attend(turned(split(attention.q_proj(normed))), keys, values, allowed[:, :size])
        doing = attend(split(ours.query(acting)), keys, values, allowed[:, size:])
        h = h + attention.o_proj(reading)
        h = h + theirs.mlp(theirs.post_attention_layernorm(h))
        suffix = suffix + (1 + gate) * ours.out(doing)
        acting = functional.rms_norm(suffix, suffix.shape[-1:]) * (1 + scale_mlp) + shift_mlp
        suffix = suffix + (1 + gate_mlp) * ours.mlp(acting)
    scale, shift = modulation[:, :, -2:].unbind(2)
    return skip * y + net.action_out(functional.rms_norm(suffix[:, 1:], suffix.shape[-1:]) * (1 + scale) + shift)


def test_cached_sampling_equals_the_joint_forward_without_a_cache(made):
    policy, batch = made
    batch["task"] = [RED, "Touch it, wherever it may be."] * 4  # of different length: padding must not be seen
    torch.nn.init.normal_(policy.net.modulate.weight, std=0.2)
    noise = noise_for(policy, 8, 1)
    with torch.no_grad():
        cached = policy.sample(policy.encode(batch), noise=noise).actions[:, 0]
        times = (policy.sigmas() / (1 + policy.sigmas())).double()
        y = times[0].float() * noise[:, 0]
        for now, then in pairwise(times):
            y = y + (then - now).float() * joint_velocity(policy, batch, y, now.float().expand(8))
    torch.testing.assert_close(y.clamp(-1, 1), cached, rtol=0, atol=1e-5)


def test_candidates_share_the_prefix_and_equal_separate_samples(made):
    policy, batch = made
    calls = []
    policy.encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    ctx, noise = policy.encode(batch), noise_for(policy, 8, 16)
    wide = ctx.expand(16)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(wide.keys + wide.values, ctx.keys + ctx.values, strict=True))
    together = policy.sample(ctx, n=16, noise=noise, features=True)
    assert len(calls) == 1 and together.features.shape == (8, 16, policy.spec.feature_dim)
    for k in (0, 7, 15):
        alone = policy.sample(ctx, noise=noise[:, k : k + 1], features=True)
        torch.testing.assert_close(alone.actions[:, 0], together.actions[:, k], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.features[:, 0], together.features[:, k], rtol=0, atol=1e-5)


def test_an_instruction_does_not_depend_on_longer_ones_beside_it(made):
    policy, batch = made
    noise, tasks = noise_for(policy, 2, 1), [RED, "Please " * 20]
    two = {key: value[:2] for key, value in batch.items()} | {"task": tasks}
    together = policy.sample(policy.encode(two), noise=noise).actions
    for row in (0, 1):
        alone = {key: value[row : row + 1] for key, value in two.items()}
        actions = policy.sample(policy.encode(alone), noise=noise[row : row + 1]).actions
        torch.testing.assert_close(actions[0], together[row], rtol=0, atol=1e-5)


def test_language_changes_the_action(made):
    policy, batch = made
    noise = noise_for(policy, 8, 1)
    red, blue = (policy.sample(policy.encode(told(batch, text)), noise=noise).actions for text in (RED, BLUE))
    assert (red - blue).abs().max() > 1e-3
    newest = {key: batch[key][:, -1] for key in policy.spec.observation}
    assert not torch.allclose(*(policy.observe({**newest, "task": [text] * 8}) for text in (RED, BLUE)), atol=1e-3)


# ---------------------------------------------------------------- learning


def gradients(policy, batch) -> dict[str, float]:
    policy.zero_grad()
    policy.loss(batch, t=torch.linspace(0.1, 0.9, 8), noise=noise_for(policy, 8, 1)[:, 0]).scalar.backward()
    return {name: p.grad.abs().max().item() for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_two_instructions_for_the_same_picture_are_told_apart_by_training(toys):
    policy, data = toys.vla(instructions=(RED, BLUE))
    batch = toys.batch(data, policy.spec)
    same = {key: value[:1].repeat(8, *[1] * (value.ndim - 1)) for key, value in batch.items() if key != "task"}
    same["task"] = [RED, BLUE] * 4
    same["action"] = torch.tensor([0.5, -0.5] * 4)[:, None, None].expand_as(batch["action"]).clone()
    same["action_is_pad"] = torch.zeros_like(batch["action_is_pad"])
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    stream = torch.Generator().manual_seed(0)
    for _ in range(120):
        drawn = policy.draw(8, stream)
        optimizer.zero_grad()
        policy.loss(policy.augment(same, drawn), t=drawn["t"], noise=drawn["noise"]).scalar.backward()
        optimizer.step()
    actions = policy.sample(policy.encode(same), noise=noise_for(policy, 8, 1)).actions
    assert (actions[:, 0] - same["action"]).abs().mean() < 0.1


def test_more_draws_are_the_mean_of_single_ones(made):
    policy, batch = made
    drawn = policy.draw(8, torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = policy.loss(policy.augment(batch, drawn), t=drawn["t"], noise=drawn["noise"]).per_sample
        times, noises = [drawn["t"], *drawn["more_t"].unbind(1)], [drawn["noise"], *drawn["more_noise"].unbind(1)]
        single = [policy.loss(batch, t=t, noise=noise).per_sample for t, noise in zip(times, noises, strict=True)]
    assert len(single) == policy.config.draws == 4
    torch.testing.assert_close(whole, torch.stack(single).mean(0))


def test_insulation_stops_the_flow_at_the_backbone_and_not_the_discrete_actions(toys):
    def reached(**settings):
        policy, data = toys.vla(**settings)
        return {name.split(".")[0] for name in gradients(policy, toys.batch(data, policy.spec))}

    assert reached() == {"encoder", "net"}
    assert reached(discrete_weight=0.5, insulate=True) == {"encoder", "net", "head"}
    assert reached(insulate=True, train="frozen") == {"net"}
    # What reaches the backbone under insulation is the discrete actions' gradient alone.
    policy, data = toys.vla(discrete_weight=0.5, insulate=True)
    batch = toys.batch(data, policy.spec)
    told = gradients(policy, batch)
    policy.zero_grad()
    (0.5 * policy.head(policy.encoder, batch)[1].mean()).backward()
    alone = {name: p.grad.abs().max().item() for name, p in policy.named_parameters() if p.grad is not None}
    names = [name for name in told if name.startswith("encoder")]
    assert names and all(math.isclose(told[name], alone[name], rel_tol=1e-4) for name in names)


def test_discrete_actions_leave_the_prefix_as_it_is_and_are_learned(toys):
    policy, data = toys.vla(discrete_weight=1.0, discrete_scale=4.0)
    batch = toys.batch(data, policy.spec)
    with torch.no_grad():
        ctx, first = policy.head(policy.encoder, batch)
        for ours, plain in zip(ctx.keys + ctx.values, policy.encode(batch).keys + policy.encode(batch).values, strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        policy.head(policy.encoder, batch)[1].mean().backward()
        optimizer.step()
    assert policy.head(policy.encoder, batch)[1].mean() < 0.1 * first.mean()


def test_the_loss_of_discrete_actions_does_not_depend_on_longer_instructions_beside_it(toys):
    policy, data = toys.vla(discrete_weight=1.0)
    batch = toys.batch(data, policy.spec, 2)
    batch["task"] = ["Go.", "Go to the red square that is nearest to the hand, and stay there."]
    alone = {key: value[:1] for key, value in batch.items()}
    with torch.no_grad():
        _, together = policy.head(policy.encoder, batch)
        _, single = policy.head(policy.encoder, alone)
    torch.testing.assert_close(together[:1], single, rtol=0, atol=1e-5)


def test_only_adapters_and_expert_learn_with_lora_and_merged_they_act_the_same(toys, tmp_path):
    policy, data = toys.vla(train="lora")
    batch, noise = toys.batch(data, policy.spec), noise_for(policy, 8, 2)
    parts = {name for name, p in policy.named_parameters() if p.requires_grad and name.startswith("encoder")}
    assert parts and all(name.endswith((".down", ".up")) for name in parts)
    for name, parameter in policy.named_parameters():
        if name in parts:
            torch.nn.init.normal_(parameter, std=0.1)
    before = policy.sample(policy.encode(batch), n=2, noise=noise).actions
    policies.save(policy, tmp_path / "run")
    loaded = policies.load(tmp_path / "run")
    assert torch.equal(loaded.sample(loaded.encode(batch), n=2, noise=noise).actions, before)
    policy.merge_adapters()
    torch.testing.assert_close(policy.sample(policy.encode(batch), n=2, noise=noise).actions, before, rtol=0, atol=1e-5)
    policies.save(policy, tmp_path / "merged")
    merged = policies.load(tmp_path / "merged")
    torch.testing.assert_close(merged.sample(merged.encode(batch), n=2, noise=noise).actions, before, rtol=0, atol=1e-5)


def test_a_loaded_policy_has_its_tokenizer_and_needs_no_network(made, tmp_path, monkeypatch):
    policy, batch = made
    policies.save(policy, tmp_path / "run")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    loaded = policies.load(tmp_path / "run")
    noise = noise_for(policy, 8, 1)
    for text in (RED, BLUE, "Fasse den roten Knopf an — 触れ"):
        one, two = (p.sample(p.encode(told(batch, text)), noise=noise).actions for p in (policy, loaded))
        assert torch.equal(one, two)


# ---------------------------------------------------------------- refusals


def test_a_missing_instruction_or_camera_is_told(made):
    policy, batch = made
    with pytest.raises(InputError, match='the observation has no "task", a list of 8 strings'):
        policy.encode({key: value for key, value in batch.items() if key != "task"})
    with pytest.raises(InputError, match='"task" holds 2 entries of str, expected a list of 8 strings'):
        policy.encode({**batch, "task": [RED, BLUE]})
    with pytest.raises(InputError, match=r"the policy looks at 'observation\.images\.front' and the observation has observation\.state"):
        policy.encode({key: value for key, value in batch.items() if "images" not in key})


def test_observations_of_another_shape_or_number_of_steps_are_told(made):
    policy, batch = made
    seen = {key: batch[key] for key in (*policy.spec.observation, "task")}
    twice = {key: value if key == "task" else torch.cat([value, value], dim=1) for key, value in seen.items()}
    with pytest.raises(SpecError, match="give it all steps, in that shape"):
        policy.encode(twice)
    camera = policy.spec.observation.images[0]
    with pytest.raises(SpecError, match=f"{camera!r} has shape"):
        policy.encode({**seen, camera: seen[camera].movedim(-1, -3)})
    with pytest.raises(SpecError, match=r"has shape \(8, 1, .*the policy looks at \(batch, "):
        policy.observe(seen)


def test_settings_that_contradict_each_other_are_refused(toys):
    with pytest.raises(SpecError, match="dtype='bfloat16' is too coarse for training all of the backbone"):
        VlaConfig(dtype="bfloat16")
    with pytest.raises(SpecError, match="without any gradient: give discrete_weight > 0"):
        VlaConfig(insulate=True)
    with pytest.raises(SpecError, match="expert_width, expert_mlp_ratio and deviation"):
        VlaConfig(expert_width=0.0)
    with pytest.raises(SpecError, match=r"needs a camera; the observation has observation\.state"):
        policies.make("vla", toys.policy_spec(), toys.ToyData().stats(), VlaConfig(backbone="tiny"))
