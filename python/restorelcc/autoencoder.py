"""A small non-linear autoencoder of each head's lost activation; its decoder's columns are directions to learn along.

    min over the weights of every head:  mean ‖ x − W_d tanh(W_e x + b_e) − b_d ‖²,      x = ΔZ rows / their rms

W_e [R, D], W_d [D, R]. What the singular vectors are for a linear code, the columns of W_d are for this one. All heads
are trained together by batched products, from one seed, on the rows that `collect_moments` sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .artifacts import Progress, SilentProgress

__all__ = ["Autoencoders", "fit_autoencoders"]


@dataclass(frozen=True)
class Autoencoders:
    """basis [G, R, D] float64: orthonormal rows that span W_d's columns. loss [G]: share of Σ ‖x‖² that is missed."""

    basis: Tensor
    loss: Tensor


def fit_autoencoders(
    samples: Tensor, rank: int, *, steps: int = 500, rate: float = 0.01, batch: int = 256, seed: int = 0,
    progress: Progress | None = None,
) -> Autoencoders:  # fmt: skip
    """One autoencoder for each of G heads.

    Args:
        samples: ΔZ rows [G, S, D].
        rank: R, the size of the code, 1 to D.
        steps, rate, batch: of Adam; rows of a step are drawn by seed, the same for all heads.

    Raises:
        ValueError: a rank outside of 1..D, or no rows.
    """
    heads, rows, size = samples.shape
    if not 1 <= rank <= size:
        raise ValueError(f"rank {rank} is outside 1..{size}, the head size")
    if rows < 1:
        raise ValueError("there are no sampled rows of the lost activation to learn from")
    generator = torch.Generator().manual_seed(seed)
    unit = samples.float().square().mean((1, 2), keepdim=True).sqrt()
    x = samples.float() / unit.clamp(min=torch.finfo(torch.float32).tiny)
    scale = size**-0.5
    encoder = (scale * torch.randn(heads, size, rank, generator=generator)).requires_grad_(True)
    decoder = (scale * torch.randn(heads, rank, size, generator=generator)).requires_grad_(True)
    shift = torch.zeros(heads, 1, rank, requires_grad=True)
    mean = x.mean(1, keepdim=True).detach().clone().requires_grad_(True)
    leaves = [encoder, decoder, shift, mean]
    optimiser = torch.optim.Adam(leaves, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with (progress or SilentProgress()).task("autoencoders", steps) as advance, torch.enable_grad():
        for _ in range(steps):
            part = x[:, torch.randint(rows, (min(batch, rows),), generator=generator)]
            made = torch.baddbmm(mean, torch.tanh(torch.baddbmm(shift, part, encoder)), decoder)
            optimiser.zero_grad()
            # heads are apart: the sum over them leaves each the gradient of its own mean
            (made - part).square().mean((1, 2)).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            advance(1)
    with torch.no_grad():
        made = torch.baddbmm(mean, torch.tanh(torch.baddbmm(shift, x, encoder)), decoder)
        loss = (made - x).square().sum((1, 2)) / x.square().sum((1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
        basis = torch.linalg.qr(decoder.double().transpose(-1, -2)).Q.transpose(-1, -2).contiguous()
    return Autoencoders(basis, loss)
