"""How networks are evaluated and differentiated. The mathematics is one; which way is fastest depends on the machine.

- `loop` (CPU): network after network, forward and backward written out over buffers made once (`rl.loop_engine`).
- `loop_bf16` (CPU): the same with bfloat16 factors in the products between hidden layers; faster, not the same numbers.
- `autograd`: batched products under PyTorch's autograd. The reference, and the way on an accelerator.
- `compile`: the same through `torch.compile`; the first call takes a while and needs a C++ compiler on a CPU.
- `graph` (CUDA): the same, and the whole update is recorded once and replayed (`rl.graph`).

All of them compute the one update of `rl.learner`, and so do the actor's plain networks while they are entered (`Swapped`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rl.critic import EnsembleMLP
from rl.loop_engine import Bfloat16LoopEngine, LoopEngine, PlainForward, PlainNetwork
from sinew.errors import InputError

EngineName = Literal["auto", "loop", "loop_bf16", "autograd", "compile", "graph"]
LOOPS = {"loop": LoopEngine, "loop_bf16": Bfloat16LoopEngine}


class Engine(Protocol):
    """Evaluates one ensemble whose parameters change in place."""

    def evaluate(self, x: Tensor, heads: Tensor | Sequence[int] | None = None) -> Tensor:
        """(B, in) → (K, B, out) without any gradient; overwritten by the next call."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) → (E, B, out), keeping what `backward` needs; overwritten by the next call."""
        ...

    def backward(self, grad: Tensor, *, parameters: bool, inputs: bool) -> Tensor | None:
        """Gradient (E, B, out) of the last `forward` → `.grad` of the parameters (overwritten) and (B, in) of its input."""
        ...


def resolve(name: EngineName, device: torch.device) -> EngineName:
    """The engine that `name` is on `device`: "auto" is `loop` on a CPU and `autograd` elsewhere.

    Raises:
        InputError: no such engine, or not there.
    """
    on_cpu = device.type == "cpu"
    if name == "auto":
        return "loop" if on_cpu else "autograd"
    if name in LOOPS and not on_cpu:
        raise InputError(f"engine {name!r} is for the CPU but the networks are on {device}; use 'autograd', 'compile' or 'graph'")
    if name == "graph" and device.type != "cuda":
        raise InputError(f"engine 'graph' records CUDA graphs but the networks are on {device}; use 'loop' or 'compile', or --device cuda")
    if name not in (*LOOPS, "autograd", "compile", "graph"):
        raise InputError(f"unknown engine {name!r}: known are auto, loop, loop_bf16, autograd, compile, graph")
    return name


def make_engine(net: EnsembleMLP, name: EngineName = "auto") -> Engine:
    """The engine called `name` for an ensemble.

    Raises:
        InputError: see `resolve`.
    """
    name = resolve(name, net.weight[0].device)
    return LOOPS[name](net) if name in LOOPS else AutogradEngine(net, compiled=name == "compile")


class AutogradEngine:
    """Batched products under autograd, compiled or not."""

    def __init__(self, net: EnsembleMLP, *, compiled: bool = False) -> None:
        self.net = net
        self._call = torch.compile(net, dynamic=False) if compiled else net
        self._parameters = list(net.parameters())
        self._x: Tensor | None = None
        self._out: Tensor | None = None

    def evaluate(self, x: Tensor, heads: Tensor | Sequence[int] | None = None) -> Tensor:
        """See `Engine`. Heads come as an index: inductor of PyTorch 2.13 fails where a drawn permutation takes all of them."""
        index = None if heads is None or len(heads) == self.net.heads else torch.as_tensor(heads, device=x.device)
        with torch.no_grad():
            return self._call(x, index)

    def forward(self, x: Tensor) -> Tensor:
        """See `Engine`."""
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            out = self._call(self._x)
        self._out = out
        return out.detach()

    def backward(self, grad: Tensor, *, parameters: bool, inputs: bool) -> Tensor | None:
        """See `Engine`."""
        if self._out is None or self._x is None:
            raise RuntimeError("backward needs a forward before it, and each forward has one backward")
        wanted = [*(self._parameters if parameters else ()), *((self._x,) if inputs else ())]
        grads = torch.autograd.grad(self._out, wanted, grad)
        self._out = None
        if parameters:
            for p, g in zip(self._parameters, grads, strict=False):
                p.grad = g
        return grads[-1] if inputs else None


class Swapped:
    """While entered, the plain networks inside a module run in the engine's way; outside, the module is as it was.

    Args:
        module: any module; what is no plain network in it (`rl.loop_engine.PlainNetwork`) is left alone.
        name: engine.
    """

    def __init__(self, module: nn.Module, name: EngineName = "auto") -> None:
        parameter = next(module.parameters(), None)
        name = resolve(name, torch.device("cpu") if parameter is None else parameter.device)
        make: Callable[[Any], Callable[[Tensor], Tensor]] | None = None
        if name in LOOPS:
            make = lambda plain: PlainForward(plain, LOOPS[name])  # noqa: E731
        elif name == "compile":
            make = lambda plain: torch.compile(nn.Sequential.forward.__get__(plain), dynamic=False)  # noqa: E731
        self._pairs = [(m, make(m)) for m in module.modules() if PlainNetwork.fits(m)] if make else []

    def __enter__(self) -> None:
        for module, call in self._pairs:
            module.__dict__["forward"] = call

    def __exit__(self, *error: object) -> None:
        for module, _ in self._pairs:
            del module.__dict__["forward"]
