"""The loss of a language model's head without its logits, and the change of it for edited hidden states.

    l = h Wᵀ + bias [M, V]     lse = log Σ_v exp(l_v)     nll = lse − l[label]          (natural logarithm: nats)

The compiled ops form l tile by tile and keep none of it; impl="reference" is the naive code they replace, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["head_contrast", "linear_cross_entropy"]


def linear_cross_entropy(
    h: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """nll[m] = log Σ_v exp(l[m, v]) − l[m, labels[m]],  l = h Wᵀ + bias; 0 where labels[m] = ignore_index."""
    logits = h.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    lse = logits.logsumexp(-1)
    counted = labels != ignore_index
    picked = logits.gather(-1, torch.where(counted, labels, 0)[:, None]).squeeze(-1)
    nll = torch.where(counted, lse - picked, 0.0).float()
    return (nll, lse.float()) if return_lse else nll


def head_contrast(
    h_edited: Tensor,
    weight: Tensor,
    labels: Tensor,
    base_nll: Tensor,
    *,
    segments: Tensor | None = None,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    impl: str = "auto",
) -> Tensor:
    """contrast[g, s] = Σ_{m in s} w[m] (nll(h_edited[g, m]) − base_nll[m]) / Σ_{m in s} w[m], float64."""
    groups, rows, _ = h_edited.shape
    flat = labels.repeat(groups)
    nll = linear_cross_entropy(
        h_edited.reshape(groups * rows, -1), weight, flat, bias=bias, ignore_index=ignore_index
    )
    assert isinstance(nll, Tensor)
    change = nll.double().reshape(groups, rows) - base_nll.double()
    w = torch.ones(rows, dtype=torch.float64) if weights is None else weights.double()
    w = torch.where(labels != ignore_index, w, 0.0)
    change = torch.where(w > 0, change, 0.0)  # an ignored token's change does not count, whatever it is
    index = torch.zeros(rows, dtype=torch.int64) if segments is None else segments
    count = 1 if segments is None else (int(index.max()) + 1 if rows else 0)
    kept = index >= 0
    sums = change.new_zeros(groups, count).index_add_(1, index[kept], (change * w)[:, kept])
    totals = w.new_zeros(count).index_add_(0, index[kept], w[kept])
    result = sums / totals
    return result[:, 0] if segments is None else result
