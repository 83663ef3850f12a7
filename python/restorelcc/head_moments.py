"""What a head lost, as moments: count, mean and Gram matrix of ΔZ = Z_dense − Z_pruned, streamed.

The components of arXiv 2510.21834 (an SVD of ΔZ) are eigenvectors of the Gram matrix, so these
moments replace the stored activations. Lives here: the accumulation; no eigenvectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from restorelcc import _native


@dataclass
class HeadMoments:
    """count; total = Σ_t ΔZ[t] and gram = Σ_t ΔZ[t]ᵀ ΔZ[t] of each head, not centred.

    count  tokens seen
    total  float64 [H, D]
    gram   float64 [H, D, D], exactly symmetric
    """

    count: int
    total: Tensor
    gram: Tensor

    @classmethod
    def zeros(cls, heads: int, head_dim: int) -> HeadMoments:
        """No tokens yet."""
        gram = torch.zeros(heads, head_dim, head_dim, dtype=torch.float64)
        return cls(0, torch.zeros(heads, head_dim, dtype=torch.float64), gram)

    @property
    def mean(self) -> Tensor:
        """total / count, float64 [H, D]. ValueError before the first token."""
        if self.count == 0:
            raise ValueError("no token has been seen yet, so there is no mean")
        return self.total / self.count

    def merge(self, other: HeadMoments) -> HeadMoments:
        """The moments of both sets of tokens together, as a new object."""
        if self.gram.shape != other.gram.shape:
            raise ValueError(
                f"moments of [H, D] = {list(self.total.shape)} and {list(other.total.shape)} cannot be merged"
            )
        return HeadMoments(self.count + other.count, self.total + other.total, self.gram + other.gram)


def head_moments(
    z_dense: Tensor, z_pruned: Tensor, state: HeadMoments | None = None, *, impl: str = "auto"
) -> HeadMoments:
    """count += T;  total += Σ_t ΔZ[t];  gram += Σ_t ΔZ[t]ᵀ ΔZ[t],   ΔZ = z_dense − z_pruned

    z_dense, z_pruned  [T, H, D] float32 or bfloat16 (the same one): the head outputs of the dense
                       and of the pruned model on the same tokens; widened to float64 first
    state              accumulated into IN PLACE and returned; None starts at zero

    impl="auto" (compiled; the bits do not depend on the number of threads) or "reference" (plain
    torch). ValueError for shapes, dtypes and devices that do not fit; state is then as it was.
    """
    if z_dense.dim() != 3:
        raise ValueError(f"z_dense has shape {list(z_dense.shape)}; it must be [T, H, D]")
    tokens, heads, head_dim = z_dense.shape
    if state is None:
        state = HeadMoments.zeros(heads, head_dim)
    if list(state.gram.shape) != [heads, head_dim, head_dim]:
        raise ValueError(
            f"state holds moments of [H, D] = {list(state.total.shape)}, but z_dense has [{heads}, {head_dim}]"
        )
    if impl == "auto":
        _native.require()
        torch.ops.restorelcc.head_moments_(z_dense.detach(), z_pruned.detach(), state.total, state.gram)
    elif impl == "reference":
        _head_moments_reference(z_dense.detach(), z_pruned.detach(), state)
    else:
        raise ValueError(f"impl is {impl!r}; it must be 'auto' or 'reference'")
    state.count += tokens
    return state


def _head_moments_reference(z_dense: Tensor, z_pruned: Tensor, state: HeadMoments) -> None:
    if z_pruned.shape != z_dense.shape or z_pruned.dtype != z_dense.dtype:
        raise ValueError(
            f"z_pruned is {z_pruned.dtype} {list(z_pruned.shape)}; it must be {z_dense.dtype} {list(z_dense.shape)}"
        )
    lost = (z_dense.double() - z_pruned.double()).transpose(0, 1)  # [H, T, D]
    gram = lost.transpose(1, 2) @ lost
    state.total += lost.sum(1)
    state.gram += (gram + gram.transpose(1, 2)) / 2  # matmul may differ from its transpose in the last bit
