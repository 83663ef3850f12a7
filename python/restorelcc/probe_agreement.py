"""How far two rankings of the heads agree.

    spearman(a, b)         correlation of ranks; equal scores share the mean of their ranks
    overlap(A, B)          |A ∩ B| / |A|                       of two equally large choices of heads
    decided_agreement      of the heads that a probe calls decided, the share that it places as the exact choice does
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["decided_agreement", "overlap", "spearman"]


def spearman(first: Tensor, second: Tensor) -> float | None:
    """Rank correlation of two score tensors of one shape, any dtype; None where one of them is constant.

    Raises:
        ValueError: different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"scores of shape {list(first.shape)} and {list(second.shape)} have no rank correlation")
    a, b = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length > 0 else None


def _ranks(scores: Tensor) -> Tensor:
    """Ranks from 0, float64 [numel]; ties share their mean."""
    _, group, size = torch.unique(scores.flatten(), return_inverse=True, return_counts=True)
    end = size.cumsum(0).double()
    ranks: Tensor = (end - (size + 1) / 2)[group]
    return ranks


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of the heads of `first`, bool [L, H], that are in `second` too; `first` holds at least one."""
    return float((first & second).sum() / first.sum())


def decided_agreement(chosen: Tensor, undecided: Tensor, exact: Tensor) -> float | None:
    """All bool [L, H]; None where no head is decided."""
    decided = ~undecided
    return float((chosen == exact)[decided].double().mean()) if bool(decided.any()) else None
