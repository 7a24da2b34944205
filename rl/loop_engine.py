"""Ensembles on a CPU, network after network, over buffers made once, forward and backward written out.

On a CPU the products are bound by arithmetic, so batching them gains nothing; what costs besides is fresh memory for activations
and gradients (page faults), gradients nobody asked for, and bookkeeping. This does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rl.critic import LAYER_NORM_EPS

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class Network(Protocol):
    """What the loop computes: `rl.critic.EnsembleMLP`, or `PlainNetwork`."""

    heads: int
    hidden: tuple[int, ...]
    out_dim: int
    layer_norm: bool
    weight: Any
    """(E, in, out) per layer."""
    bias: Any
    """(E, 1, out) per layer."""
    gain: Any
    """(E, 1, width) per hidden layer, of its layer norm."""
    shift: Any
    """The same."""


class LoopEngine:
    """Head after head over buffers made once, backward written out; an `rl.engine.Engine`."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.depth = len(net.hidden)
        heads = range(net.heads)
        with torch.no_grad():
            self._w = [[w[e] for w in net.weight] for e in heads]
            self._wt = [[w[e].t() for w in net.weight] for e in heads]
            self._b = [[b[e] for b in net.bias] for e in heads]
            self._g = [[g[e, 0] for g in net.gain] for e in heads]
            self._s = [[s[e, 0] for s in net.shift] for e in heads]
        self._batch, self.forwards = -1, 0
        self._kept = False
        self._gradients: list[list[list[Tensor]]] | None = None
        self.stacked: list[list[Tensor]] = []

    def _buffers(self, batch: int) -> None:
        """Buffers for batches of this size, where they differ from the last."""
        if batch == self._batch:
            return
        net, new = self.net, self.net.weight[0].new_empty
        self._batch, self._kept = batch, False
        # one buffer per layer, shared by all heads, so that it stays in the cache
        self._scratch = [new(batch, h) for h in net.hidden]
        self._value = new(net.heads, batch, net.out_dim)
        self._out = new(net.heads, batch, net.out_dim)
        self._z = [[new(batch, h) for h in net.hidden] for _ in range(net.heads)]
        self._h: list[list[Tensor]] = [[new(0)] * self.depth for _ in range(net.heads)]
        self._stats: list[list[tuple[Tensor, Tensor]]] = [[(new(0), new(0))] * self.depth for _ in range(net.heads)]

    @torch.no_grad()
    def evaluate(self, x: Tensor, heads: Tensor | Sequence[int] | None = None) -> Tensor:
        """See `rl.engine.Engine`."""
        self._buffers(x.shape[0])
        chosen = range(self.net.heads) if heads is None else heads.tolist() if isinstance(heads, Tensor) else heads
        norm, widths, last = self.net.layer_norm, self.net.hidden, self.depth
        for k, e in enumerate(chosen):
            h, w, b = x, self._w[e], self._b[e]
            for layer, width in enumerate(widths):
                z = self._affine(e, layer, h, self._scratch[layer])
                h = (
                    torch.native_layer_norm(z, (width,), self._g[e][layer], self._s[e][layer], LAYER_NORM_EPS)[0].relu_()
                    if norm
                    else z.relu_()
                )
            torch.addmm(b[last], h, w[last], out=self._value[k])
        return self._value[: len(chosen)]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """See `rl.engine.Engine`."""
        self._buffers(x.shape[0])
        norm, widths, last = self.net.layer_norm, self.net.hidden, self.depth
        for e in range(self.net.heads):
            h, w, b, kept = x, self._w[e], self._b[e], self._h[e]
            for layer, width in enumerate(widths):
                h = self._affine(e, layer, h, self._z[e][layer])
                if norm:
                    h, mean, rstd = torch.native_layer_norm(h, (width,), self._g[e][layer], self._s[e][layer], LAYER_NORM_EPS)
                    self._stats[e][layer] = (mean, rstd)
                kept[layer] = h.relu_()
            torch.addmm(b[last], h, w[last], out=self._out[e])
        self._x, self._kept = x, True
        self.forwards += 1
        return self._out

    @torch.no_grad()
    def backward(self, grad: Tensor, *, parameters: bool, inputs: bool) -> Tensor | None:
        """See `rl.engine.Engine`."""
        if not self._kept:
            raise RuntimeError("backward needs a forward before it, and each forward has one backward")
        self._kept = False
        if parameters:
            self._set_gradients()
        grad_x = None
        for e in range(self.net.heads):
            g = self._head_backward(e, grad[e], parameters, inputs)
            if inputs:
                grad_x = g if grad_x is None else grad_x.add_(g)
        return grad_x

    def _set_gradients(self) -> None:
        """Point `.grad` of every parameter to its buffer, made once."""
        net = self.net
        if self._gradients is None:
            groups = (net.weight, net.bias, net.gain, net.shift)
            self.stacked = [[torch.zeros_like(p) for p in group] for group in groups]
            self._gradients = [[[g[e] for g in group] for e in range(net.heads)] for group in self.stacked]
        for group, grads in zip((net.weight, net.bias, net.gain, net.shift), self.stacked, strict=True):
            for p, g in zip(group, grads, strict=True):
                p.grad = g

    def _head_backward(self, e: int, g: Tensor, parameters: bool, inputs: bool) -> Tensor:
        kept, wt, norm = self._h[e], self._wt[e], self.net.layer_norm
        grads = self._gradients
        for layer in range(self.depth, -1, -1):
            if layer < self.depth:
                h = kept[layer]
                g = _threshold_backward(g, h, 0.0, grad_input=g)
                if norm:
                    mean, rstd = self._stats[e][layer]
                    mask = [True, parameters, parameters]
                    g, g_gain, g_shift = _layer_norm_backward(
                        g, self._z[e][layer], (g.shape[1],), mean, rstd, self._g[e][layer], self._s[e][layer], mask
                    )
                    if parameters and grads is not None:
                        grads[2][e][layer].copy_(g_gain)
                        grads[3][e][layer].copy_(g_shift)
            below = kept[layer - 1] if layer else self._x
            if parameters and grads is not None:
                self._weight_gradient(layer, below, g, grads[0][e][layer])
                torch.sum(g, 0, keepdim=True, out=grads[1][e][layer])
            if not layer:
                return torch.mm(g, wt[0]) if inputs else g
            g = self._input_gradient(e, layer, g, self._scratch[layer - 1])  # free here: only `evaluate` uses it besides
        return g

    # the products that cost the time

    def _affine(self, e: int, layer: int, h: Tensor, out: Tensor) -> Tensor:
        """Hidden layer `layer` of head `e` before its norm: h w + b."""
        return torch.addmm(self._b[e][layer], h, self._w[e][layer], out=out)

    def _weight_gradient(self, layer: int, below: Tensor, g: Tensor, out: Tensor) -> None:
        """Transposed `below` times g; below (B, in), g (B, out)."""
        torch.mm(below.t(), g, out=out)

    def _input_gradient(self, e: int, layer: int, g: Tensor, out: Tensor) -> Tensor:
        """Gradient g (B, out) times the transposed weights of layer `layer` in head `e`."""
        return torch.mm(g, self._wt[e][layer], out=out)


class Bfloat16LoopEngine(LoopEngine):
    """`LoopEngine` whose products between hidden layers take bfloat16 factors; sums, norms, weights and updates stay float32.

    About half the cost per product on a CPU with AVX-512 BF16 or AMX, slower on others. Values differ in the third digit.
    """

    def __init__(self, net: Network) -> None:
        super().__init__(net)
        self._whalf = [[torch.empty_like(w, dtype=torch.bfloat16) for w in head] for head in self._w]

    def _buffers(self, batch: int) -> None:
        if batch == self._batch:
            return
        super()._buffers(batch)
        shapes = {(batch, h) for h in self.net.hidden} | {tuple(w.shape) for w in self._w[0]}
        # a factor of each shape, and a result of each
        self._left, self._right, self._result = ({s: torch.empty(s, dtype=torch.bfloat16) for s in shapes} for _ in range(3))

    def _inner(self, layer: int) -> bool:
        return 0 < layer < self.depth

    def _affine(self, e: int, layer: int, h: Tensor, out: Tensor) -> Tensor:
        if not self._inner(layer):
            return super()._affine(e, layer, h, out)
        w = self._whalf[e][layer].copy_(self._w[e][layer])  # `backward` uses it again: weights do not change in between
        result = torch.mm(self._left[tuple(h.shape)].copy_(h), w, out=self._result[tuple(out.shape)])
        return out.copy_(result).add_(self._b[e][layer])

    def _weight_gradient(self, layer: int, below: Tensor, g: Tensor, out: Tensor) -> None:
        if not self._inner(layer):
            super()._weight_gradient(layer, below, g, out)
            return
        left, right = self._left[tuple(below.shape)].copy_(below), self._right[tuple(g.shape)].copy_(g)
        out.copy_(torch.mm(left.t(), right, out=self._result[tuple(out.shape)]))

    def _input_gradient(self, e: int, layer: int, g: Tensor, out: Tensor) -> Tensor:
        if not self._inner(layer):
            return super()._input_gradient(e, layer, g, out)
        right = self._right[tuple(g.shape)].copy_(g)
        return out.copy_(torch.mm(right, self._whalf[e][layer].t(), out=self._result[tuple(out.shape)]))


class PlainNetwork:
    """A `nn.Sequential` of linear, maybe layer norm, ReLU, …, linear as an ensemble of one; its weights are views of the module's."""

    def __init__(self, module: nn.Sequential) -> None:
        self.linears = [m for m in module if isinstance(m, nn.Linear)]
        self.norms = [m for m in module if isinstance(m, nn.LayerNorm)]
        self.heads, self.layer_norm = 1, bool(self.norms)
        self.hidden, self.out_dim = tuple(m.out_features for m in self.linears[:-1]), self.linears[-1].out_features
        self.weight = [m.weight.detach().t()[None] for m in self.linears]
        self.bias = [m.bias.detach()[None, None] for m in self.linears]
        self.gain = [m.weight.detach()[None, None] for m in self.norms]
        self.shift = [m.bias.detach()[None, None] for m in self.norms]

    @property
    def parameters(self) -> list[Tensor]:
        """Of the module, in the order of `gradients`."""
        return [p for m in (*self.linears, *self.norms) for p in (m.weight, m.bias)]

    def gradients(self, stacked: list[list[Tensor]]) -> list[Tensor]:
        """The engine's gradients of weights, biases, gains and shifts, in the module's shapes and memory of their own."""
        weight, *others = stacked
        bias, gain, shift = ([g[0, 0].clone() for g in group] for group in others)
        pairs = zip((*(g[0].t().clone() for g in weight), *gain), (*bias, *shift), strict=True)
        return [g for pair in pairs for g in pair]

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is such a network, in float32."""
        if not isinstance(module, nn.Sequential) or len(module) < 3 or not isinstance(module[-1], nn.Linear):
            return False
        norm = isinstance(module[1], nn.LayerNorm)
        block = (nn.Linear, nn.LayerNorm, nn.ReLU) if norm else (nn.Linear, nn.ReLU)
        kinds = block * (len(module) // len(block))
        if len(module) != len(kinds) + 1 or not all(type(m) is kind for m, kind in zip(module, kinds, strict=False)):
            return False
        norms = [m for m in module if isinstance(m, nn.LayerNorm)]
        if not all(m.eps == LAYER_NORM_EPS and len(m.normalized_shape) == 1 and m.bias is not None for m in norms):
            return False
        biased = all(m.bias is not None for m in module if isinstance(m, nn.Linear))
        return biased and all(p.dtype == torch.float32 for p in module.parameters())


class PlainForward:
    """Calls a plain network in the loop, within PyTorch's autograd."""

    def __init__(self, module: nn.Sequential, engine: type[LoopEngine] = LoopEngine) -> None:
        self.net = PlainNetwork(module)
        self.engine = engine(self.net)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) → (B, out)."""
        if torch.is_grad_enabled():
            return _PlainFunction.apply(x, self, *self.net.parameters)  # type: ignore[return-value]
        return self.engine.evaluate(x)[0].clone()


class _PlainFunction(torch.autograd.Function):
    """Forward and backward of a plain network; gradients are handed on as copies, so that several may add up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: PlainForward, *parameters: Tensor) -> Tensor:
        ctx.call, ctx.x = call, x.detach()
        out = call.engine.forward(ctx.x)[0].clone()
        ctx.number = call.engine.forwards
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        engine, net = ctx.call.engine, ctx.call.net
        if engine.forwards != ctx.number:  # another call has used the buffers since
            engine.forward(ctx.x)
        into_x = engine.backward(grads[0][None], parameters=True, inputs=ctx.needs_input_grad[0])
        return into_x, None, *net.gradients(engine.stacked)
