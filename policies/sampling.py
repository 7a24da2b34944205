"""The exchange format between denoisers, and the sampler that works for any of them.

A variance-exploding denoiser D(x; sigma) estimates the clean chunk a from x = a + sigma * eps. Every denoising policy
offers one, whatever it was trained as, so that policies of different kinds can be mixed, guided and distilled. The
score is (D - x) / sigma^2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor


def sigma_to_time(sigma: Tensor) -> Tensor:
    """Noise level → time t = sigma / (1 + sigma) of the straight path y = t eps + (1 - t) a, with y = x / (1 + sigma)."""
    return sigma / (1 + sigma)


def time_to_sigma(t: Tensor) -> Tensor:
    """Time t in [0, 1) of the straight path → noise level t / (1 - t)."""
    return t / (1 - t)


def euler(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor) -> Tensor:
    """Sample by Euler steps of the probability flow: x' = D + (x - D) sigma' / sigma.

    The straight path and this path differ by a change of variables under which Euler steps map to Euler steps, so a
    flow policy sampled here and natively over the same noise levels gives the same chunk.

    Args:
        denoise: (x (B, H, A), sigma (B,)) → clean estimate (B, H, A).
        noise: (B, H, A), N(0, I).
        sigmas: (steps + 1,) falling noise levels; the last may be 0.

    Returns:
        (B, H, A) chunk, not yet limited to [-1, 1].

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 without the correction; equals DDIM.
    """
    x = noise * sigmas[0]
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, sigma.expand(x.shape[0]))
        x = clean + (x - clean) * (following / sigma)
    return x
