"""The loss of a language model's head without its logits, and the change of it for edited hidden states.

    l = h Wᵀ + bias [M, V]     lse = log Σ_v exp(l_v)     nll = lse − l[label]          (natural logarithm: nats)

The compiled ops form l tile by tile and keep none of it. impl="reference" is the naive code they replace, in float64,
a chunk of rows after the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from restorelcc import _native
from restorelcc.cross_entropy_gradients import check_head_contrast, check_linear_cross_entropy

__all__ = ["head_contrast", "linear_cross_entropy"]

_REFERENCE_LOGITS = 1 << 22  # float64 ones that the reference holds at once, or one row: 32 MiB


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
    """nll[m] = log Σ_v exp(l[m, v]) − l[m, labels[m]],   l = h Wᵀ + bias;   0 where labels[m] is ignore_index

    The same number as F.cross_entropy(h Wᵀ + bias, labels, reduction="none"), but the logits [M, V] are never held;
    they are summed in float32 and not rounded to h's dtype.

    h             [..., E]  float32, bfloat16 or float16; rows may be strided
    weight        W [V, E]  of h's dtype; rows may be strided
    labels        int64, h's leading shape; each in [0, V) or ignore_index, which may itself lie in [0, V)
    bias          [V]  float32, bfloat16 or float16
    ignore_index  the label of rows that do not count: nll 0, gradient 0, whatever their h
    returns       nll in nats, float32, h's leading shape; with return_lse (nll, lse), lse[m] = log Σ_v exp(l[m, v])
                  of every row, ignored ones too. Both are NaN where a logit is NaN or +inf, or all are −inf, as
                  torch's log_softmax; nll is inf where the label's logit alone is −inf

    Gradients flow to h, weight and bias, not from lse (it has none) and not twice (RuntimeError). Where only h asks
    for one, the forward pass forms d nll / d h beside the nll, in h's dtype, and backward just scales it; where weight
    or bias ask too, backward forms the logits once more.

    The bits do not depend on the number of threads. impl="auto" is the compiled op (ImportError where it is not
    built). impl="reference" is plain torch in float64, also for float64 inputs, and then returns float64.
    ValueError for shapes, dtypes, devices and labels that do not fit.
    """
    if impl == "reference":
        check_linear_cross_entropy(h, weight, labels, bias)
        dtype = h.dtype if h.dtype == torch.float64 else torch.float32
        nll = _reference_nll(h, weight, labels, bias, ignore_index).to(dtype)
        return (nll, _reference_lse(h, weight, bias).to(dtype)) if return_lse else nll
    if impl != "auto":
        raise ValueError(f"impl is {impl!r}; it must be 'auto' or 'reference'")
    _native.require()
    by_backward = _wants_gradient(weight) or (bias is not None and _wants_gradient(bias))
    nll, lse, _ = torch.ops.restorelcc.linear_cross_entropy(
        h, weight, labels, bias, ignore_index,
        return_lse or by_backward, _wants_gradient(h) and not by_backward,
    )  # fmt: skip
    return (nll, lse) if return_lse else nll


def head_contrast(
    h_edited: Tensor,
    weight: Tensor,
    labels: Tensor,
    base_nll: Tensor,
    *,
    segments: Tensor | None = None,
    segment_count: int | None = None,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    impl: str = "auto",
) -> Tensor:
    """contrast[g, s] = Σ_{m in s} w[m] (nll(h_edited[g, m]) − base_nll[m]) / Σ_{m in s} w[m]

    The mean change of the NLL, token by token against the same base, when edit g replaces the hidden states: negative
    where the edit lowers the perplexity. nll is that of `linear_cross_entropy`; the sums are float64.

    h_edited       [G, M, E]  float32, bfloat16 or float16: the last hidden states (after the final norm) of G edits
    weight, bias   W [V, E] of h_edited's dtype, bias [V]: the language model's head
    labels         int64 [M]; each in [0, V) or ignore_index, whose tokens do not count
    base_nll       [M]  float32, bfloat16 or float16, in nats: of the run without an edit
    segments       int64 [M]: the segment s of each token (a continuation, a text); negative: in none. None: one
                   segment of all tokens
    segment_count  S; None: the largest segment + 1 (which looks at the data: pass it where torch.compile traces)
    weights        w [M]  float32, bfloat16 or float16, finite and at least 0. None: all 1
    returns        float64, nats per token: [G] without segments, else [G, S]; NaN where no token of a segment counts

    No gradient flows through it. impl as in `linear_cross_entropy`.
    ValueError for shapes, dtypes, devices, labels, segments and weights that do not fit.
    """
    if segments is None:
        if segment_count not in (None, 1):
            raise ValueError(f"segment_count is {segment_count}, but segments is None; each token needs its segment")
        segment_count = 1
    elif segment_count is None:
        segment_count = max(1, int(segments.max()) + 1) if segments.numel() else 1
    with torch.no_grad():
        if impl == "reference":
            check_head_contrast(h_edited, weight, labels, base_nll, segments, weights, bias)
            _check_tokens(labels.shape[0], segments, segment_count, weights)
            contrast = _reference_contrast(
                h_edited, weight, labels, base_nll, segments, segment_count, weights, bias, ignore_index
            )
        elif impl == "auto":
            _native.require()
            contrast = torch.ops.restorelcc.head_contrast(
                h_edited, weight, labels, base_nll, segments, weights, segment_count, bias, ignore_index
            )
        else:
            raise ValueError(f"impl is {impl!r}; it must be 'auto' or 'reference'")
    return contrast[:, 0] if segments is None else contrast


def _wants_gradient(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def _check_labels(labels: Tensor, vocabulary: int, ignore_index: int) -> None:
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"labels[{row}] is {int(labels[row])}, must be in [0, {vocabulary}), the vocabulary, or ignore_index "
            f"({ignore_index})"
        )


def _check_tokens(rows: int, segments: Tensor | None, segment_count: int, weights: Tensor | None) -> None:
    if segment_count < 1:
        raise ValueError(f"segment_count is {segment_count}; it must be at least 1")
    if segments is not None and rows and int(segments.max()) >= segment_count:
        row = int(segments.argmax())
        raise ValueError(
            f"segments[{row}] is {int(segments[row])}, must be below segment_count, {segment_count} (negative: in no "
            "segment)"
        )
    if weights is not None and not bool((weights.isfinite() & (weights >= 0)).all()):
        row = int((~(weights.isfinite() & (weights >= 0))).nonzero()[0])
        raise ValueError(f"weights[{row}] is {float(weights[row])}, must be finite and at least 0")


def _logits(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = h.double() @ weight.T
    return logits if bias is None else logits + bias.double()


def _log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(top, log_rest) of each row, lse = top + log_rest: the maximum is taken out, so no exponential overflows."""
    if logits.shape[-1] == 0:
        return logits.new_full(logits.shape[:-1], -torch.inf), logits.new_zeros(logits.shape[:-1])
    top = logits.detach().amax(-1)
    return top, (logits - top[..., None]).exp().sum(-1).log()


def _spans(rows: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, _REFERENCE_LOGITS // max(1, vocabulary))
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def _reference_nll(h: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, ignore_index: int) -> Tensor:
    flat = labels.reshape(-1)
    _check_labels(flat, weight.shape[0], ignore_index)
    # Only the rows that count enter, so that what the others hold, NaN included, has no gradient.
    counted = (flat != ignore_index).nonzero().squeeze(-1)
    rows, targets, wide = h.reshape(flat.shape[0], h.shape[-1])[counted], flat[counted], weight.double()
    found = []
    for span in _spans(rows.shape[0], weight.shape[0]):
        logits = _logits(rows[span], wide, bias)
        top, log_rest = _log_sum(logits)
        picked = logits.gather(-1, targets[span, None]).squeeze(-1)
        found.append(log_rest - (picked - top))
    nll = torch.zeros(flat.shape, dtype=torch.float64)
    if not found:  # no row counts: zeros all the same, whose gradients are zeros
        return (nll + rows.double().sum() + wide[:0].sum()).reshape(labels.shape)
    return nll.index_put((counted,), torch.cat(found)).reshape(labels.shape)


@torch.no_grad()
def _reference_lse(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide, rows = weight.double(), h.reshape(h.shape[:-1].numel(), h.shape[-1])
    lse = torch.empty(rows.shape[0], dtype=torch.float64)
    for span in _spans(rows.shape[0], weight.shape[0]):
        top, log_rest = _log_sum(_logits(rows[span], wide, bias))
        lse[span] = top + log_rest
    return lse.reshape(h.shape[:-1])


def _reference_contrast(
    h_edited: Tensor,
    weight: Tensor,
    labels: Tensor,
    base_nll: Tensor,
    segments: Tensor | None,
    segment_count: int,
    weights: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
) -> Tensor:
    groups, rows, _ = h_edited.shape
    nll = _reference_nll(h_edited, weight, labels.expand(groups, rows), bias, ignore_index)
    segment = torch.zeros(rows, dtype=torch.int64) if segments is None else segments
    w = torch.ones(rows, dtype=torch.float64) if weights is None else weights.double()
    counted = ((labels != ignore_index) & (segment >= 0) & (w > 0)).nonzero().squeeze(-1)
    segment, w = segment[counted], w[counted]
    change = nll[:, counted] - base_nll.double()[counted]
    sums = change.new_zeros(groups, segment_count).index_add_(1, segment, change * w)
    return sums / w.new_zeros(segment_count).index_add_(0, segment, w)
