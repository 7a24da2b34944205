import copy
import shutil
from itertools import pairwise

import pytest
import torch
from torch import nn

from rl.critic import Critic, EnsembleMLP, ScalarHead, polyak
from rl.engine import make_engine
from sinew.errors import InputError


def as_modules(net: EnsembleMLP) -> nn.ModuleList:
    """The same ensemble as a plain list of sequential networks."""
    heads = nn.ModuleList()
    for e in range(net.heads):
        layers: list[nn.Module] = []
        widths = (net.in_dim, *net.hidden, net.out_dim)
        for layer, (a, b) in enumerate(pairwise(widths)):
            linear = nn.Linear(a, b)
            linear.weight.data.copy_(net.weight[layer][e].t())
            linear.bias.data.copy_(net.bias[layer][e, 0])
            layers.append(linear)
            if layer < len(net.hidden):
                if net.layer_norm:
                    norm = nn.LayerNorm(b)
                    norm.weight.data.copy_(net.gain[layer][e, 0])
                    norm.bias.data.copy_(net.shift[layer][e, 0])
                    layers.append(norm)
                layers.append(nn.ReLU())
        heads.append(nn.Sequential(*layers))
    return heads


def difference(net: EnsembleMLP, modules: nn.ModuleList) -> float:
    """Largest difference of any weight."""
    net = copy.deepcopy(net).requires_grad_(False)
    modules = copy.deepcopy(modules).requires_grad_(False)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for e, head in enumerate(modules):
        assert isinstance(head, nn.Sequential)
        linears = [m for m in head if isinstance(m, nn.Linear)]
        norms = [m for m in head if isinstance(m, nn.LayerNorm)]
        for layer, m in enumerate(linears):
            pairs += [(net.weight[layer][e].t(), m.weight), (net.bias[layer][e, 0], m.bias)]
        for layer, m in enumerate(norms):
            pairs += [(net.gain[layer][e, 0], m.weight), (net.shift[layer][e, 0], m.bias)]
    return max(float((a - b).abs().max()) for a, b in pairs)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@pytest.mark.parametrize(
    ("engine", "hidden", "layer_norm"),
    [
        ("loop", (24, 16), True),
        ("loop", (24, 16), False),
        ("autograd", (24, 16), True),
        ("autograd", (24, 16), False),
        pytest.param("compile", (16,), True, marks=needs_compiler),
    ],
)
def test_every_engine_equals_a_module_list_over_200_updates(engine, hidden, layer_norm):
    torch.manual_seed(0)
    net = EnsembleMLP(9, hidden, 1, heads=5, layer_norm=layer_norm)
    target, modules = copy.deepcopy(net), as_modules(net)
    module_target = copy.deepcopy(modules)
    online, frozen, head = make_engine(net, engine), make_engine(target, engine), ScalarHead()
    ours, theirs = torch.optim.Adam(net.parameters(), 1e-3, fused=True), torch.optim.Adam(modules.parameters(), 1e-3, fused=True)
    g = torch.Generator().manual_seed(1)
    for _ in range(200):
        x, after, reward = torch.randn(32, 9, generator=g), torch.randn(32, 9, generator=g), torch.rand(32, generator=g)
        heads = torch.randperm(5, generator=g)[:2].tolist()
        y = reward + 0.97 * head.value(frozen.evaluate(after, heads)).amin(0)
        _, grad = head.loss(online.forward(x), y)
        online.backward(grad, parameters=True, inputs=False)
        ours.step()
        polyak(list(target.parameters()), list(net.parameters()), 0.01)
        with torch.no_grad():
            wanted = reward + 0.97 * torch.stack([module_target[e](after)[:, 0] for e in heads]).min(0).values
        loss = torch.stack([(m(x)[:, 0] - wanted).square().mean() for m in modules]).mean()
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        with torch.no_grad():
            for a, b in zip(module_target.parameters(), modules.parameters(), strict=True):
                a.lerp_(b, 0.01)
    assert difference(net, modules) < 1e-5
    assert difference(target, module_target) < 1e-5


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_loop_engine_gradients_equal_autograd(layer_norm, outputs):
    torch.manual_seed(0)
    net = EnsembleMLP(6, (16, 12, 8), outputs, heads=3, layer_norm=layer_norm)
    x, grad = torch.randn(20, 6), torch.randn(3, 20, outputs)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(net(leaf), [leaf, *net.parameters()], grad)
    engine = make_engine(net, "loop")
    torch.testing.assert_close(engine.forward(x), net(x), atol=1e-6, rtol=1e-5)
    into_x = engine.backward(grad.clone(), parameters=True, inputs=True)
    assert into_x is not None
    torch.testing.assert_close(into_x, expected[0], atol=1e-5, rtol=1e-4)
    for p, wanted in zip(net.parameters(), expected[1:], strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, wanted, atol=1e-5, rtol=1e-4)


def test_bfloat16_products_stay_close_to_float32():
    torch.manual_seed(0)
    net = EnsembleMLP(6, (64, 64), 1, heads=3)
    x, grad = torch.randn(40, 6), torch.randn(3, 40, 1)
    exact, half = make_engine(net, "loop"), make_engine(net, "loop_bf16")
    assert exact.forward(x).dtype == half.forward(x).dtype == torch.float32
    torch.testing.assert_close(half.forward(x), exact.forward(x), atol=0.03, rtol=0.03)
    torch.testing.assert_close(half.evaluate(x, [2]), exact.evaluate(x, [2]), atol=0.03, rtol=0.03)
    results = []
    for engine in (exact, half):
        engine.forward(x)
        into_x = engine.backward(grad.clone(), parameters=True, inputs=True)
        results.append([into_x, *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.99


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(1)
    net = EnsembleMLP(4, (8,), 1, heads=2).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    engine = make_engine(net, "loop")
    engine.forward(x)
    gradient = engine.backward(torch.ones(2, 3, 1, dtype=torch.float64), parameters=False, inputs=True)
    assert gradient is not None
    step = 1e-6
    for i in range(4):
        shifted = torch.zeros_like(x)
        shifted[:, i] = step
        numeric = (net(x + shifted) - net(x - shifted)).sum(0)[:, 0] / (2 * step)
        torch.testing.assert_close(gradient[:, i], numeric, atol=1e-6, rtol=1e-5)


def test_actor_gradient_leaves_the_critic_without_gradients():
    net = EnsembleMLP(4, (8,), 1, heads=2)
    engine = make_engine(net, "loop")
    engine.forward(torch.randn(5, 4))
    engine.backward(torch.ones(2, 5, 1), parameters=False, inputs=True)
    assert all(p.grad is None for p in net.parameters())


def test_one_backward_per_forward():
    for name in ("loop", "autograd"):
        engine = make_engine(EnsembleMLP(4, (8,), 1, heads=2), name)  # type: ignore[arg-type]
        engine.forward(torch.randn(5, 4))
        engine.backward(torch.ones(2, 5, 1), parameters=False, inputs=True)
        with pytest.raises(RuntimeError, match="forward"):
            engine.backward(torch.ones(2, 5, 1), parameters=False, inputs=True)


def test_a_subset_of_heads_is_those_heads():
    net = EnsembleMLP(4, (8,), 2, heads=5)
    x, all_heads = torch.randn(6, 4), None
    everything = net(x, all_heads)
    torch.testing.assert_close(net(x, torch.tensor([3, 1])), everything[[3, 1]])
    torch.testing.assert_close(make_engine(net, "loop").evaluate(x, [3, 1]), everything[[3, 1]])
    per_head = torch.randn(5, 6, 4)
    torch.testing.assert_close(net(per_head)[2], net(per_head[2])[2])


def test_a_critic_computes_only_the_heads_it_is_asked_for():
    net = EnsembleMLP(4, (8,), 1, heads=5)
    for p in net.parameters():
        p.data[4].fill_(float("nan"))
    assert torch.isfinite(net(torch.randn(6, 4), [0, 2])).all()
    assert torch.isfinite(make_engine(net, "loop").evaluate(torch.randn(6, 4), [0, 2])).all()


def test_polyak_is_a_weighted_mean():
    a, b = torch.tensor([1.0]), torch.tensor([3.0])
    polyak([a], [b], 0.25)
    assert float(a) == 1.5


def test_unknown_engines_and_empty_ensembles_are_refused():
    with pytest.raises(InputError, match="unknown engine"):
        make_engine(EnsembleMLP(4, (8,), 1, heads=2), "turbo")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to compute"):
        EnsembleMLP(4, (8,), 1, heads=0)


def test_critic_values_have_one_row_per_head():
    assert Critic(4, (8,), heads=3)(torch.randn(6, 4)).shape == (3, 6)
