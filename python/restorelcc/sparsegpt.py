"""SparseGPT: which weights go, and how those to the right of each make up for it, column by column.

    with H = Σ x xᵀ + damp mean(diag) I,   U = upper Cholesky factor of H⁻¹,   d_k = U_kk
    score_nk = w_nk² / d_k²        the lowest go: within a block of columns, or within each group of M columns (N:M)
    e_nk     = (w_nk − ŵ_nk) / d_k,      w_n,j ← w_n,j − e_nk U_kj    for all j > k

Frantar and Alistarh, arXiv 2301.00774, algorithm 1: blocks of `block` columns, the update behind a block made lazily
as one product. Unstructured, the same share goes in each block of columns, over all rows together, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pruning_pattern import Pattern

__all__ = ["sparsegpt"]


def sparsegpt(weight: Tensor, gram: Tensor, pattern: Pattern, *, block: int = 128, damp: float = 0.01) -> Tensor:
    """The pruned weight [N, K], float32.

    Args:
        weight: W [N, K].
        gram: Σ x xᵀ [K, K] over the calibration tokens.
        damp: share of the mean of the diagonal that is added to it.

    Columns whose input is always zero go first: their score is 0, and they move nothing.

    Raises:
        ValueError: K not divisible by M, or a Gram matrix that is not finite.
    """
    columns = weight.shape[1]
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("the activations it was calibrated with are not finite")
    w, h = weight.float().clone(), gram.double().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    w[:, dead] = 0.0
    h.diagonal().add_(damp * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    # whole groups of N:M in each block
    block = max(1, block // pattern.group) * pattern.group if pattern.group else block
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        part, factor = w[:, begin:end].clone(), upper[begin:end, begin:end]
        errors = torch.zeros_like(part)
        diagonal = factor.diagonal()
        keep = None if pattern.group else pattern.mask((part / diagonal).square(), compare="matrix")
        for column in range(end - begin):
            if pattern.group and column % pattern.group == 0:
                group = slice(column, column + pattern.group)
                found = pattern.mask((part[:, group] / diagonal[group]).square())
                keep = found if keep is None or column == 0 else torch.cat([keep, found], dim=1)
            assert keep is not None
            kept = torch.where(keep[:, column], part[:, column], 0.0)
            errors[:, column] = (part[:, column] - kept) / diagonal[column]
            part[:, column:] -= torch.outer(errors[:, column], factor[column, column:])
            part[:, column] = kept
        w[:, begin:end] = part
        w[:, end:] -= errors @ upper[begin:end, end:]
    return w
