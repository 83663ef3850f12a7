"""What torch must know of linear_cross_entropy and head_contrast beside their CPU kernels.

Lives here: the rules of shapes and dtypes, which the reference and the fake kernels (shapes without data) share, and
the gradients. The equations stand in restorelcc/params.h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _require(condition: bool, sentence: str) -> None:
    torch._check_value(condition, lambda: sentence)  # type: ignore[no-untyped-call]


def _check_head(h: Tensor, h_name: str, weight: Tensor, bias: Tensor | None) -> None:
    _require(h.is_floating_point(), f"{h_name} has dtype {h.dtype}; it must be a floating point type")
    _require(weight.dtype == h.dtype, f"weight has dtype {weight.dtype}; it must be {h.dtype} like {h_name}")
    _require(weight.dim() == 2, f"weight has shape {list(weight.shape)}; it must be [V, E]")
    if bias is not None:
        vocabulary = weight.shape[0]
        _require(
            bias.dim() == 1 and bias.shape[0] == vocabulary,
            f"bias has shape {list(bias.shape)}; it must be [{vocabulary}]",
        )


def _check_rows(tensor: Tensor, name: str, shape: torch.Size, dtype: torch.dtype | None = torch.int64) -> None:
    if dtype is not None:
        _require(tensor.dtype == dtype, f"{name} has dtype {tensor.dtype}; it must be {dtype}")
    _require(
        tensor.dim() == len(shape) and all(a == b for a, b in zip(tensor.shape, shape, strict=True)),
        f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}",
    )


def check_linear_cross_entropy(h: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    """The shape rules of linear_cross_entropy, for what runs without the compiled op's own checks."""
    _check_head(h, "h", weight, bias)
    columns = weight.shape[1]
    _require(
        h.dim() >= 1 and h.shape[-1] == columns, f"h has shape {list(h.shape)}; its last dimension must be {columns}"
    )
    _check_rows(labels, "labels", h.shape[:-1])


def check_head_contrast(
    h_edited: Tensor,
    weight: Tensor,
    labels: Tensor,
    base_nll: Tensor,
    segments: Tensor | None,
    weights: Tensor | None,
    bias: Tensor | None,
) -> None:
    """The shape rules of head_contrast, for what runs without the compiled op's own checks."""
    _check_head(h_edited, "h_edited", weight, bias)
    columns = weight.shape[1]
    _require(
        h_edited.dim() == 3 and h_edited.shape[-1] == columns,
        f"h_edited has shape {list(h_edited.shape)}; it must be [G, M, {columns}]",
    )
    rows = h_edited.shape[1:2]
    _check_rows(labels, "labels", rows)
    _check_rows(base_nll, "base_nll", rows, None)
    if segments is not None:
        _check_rows(segments, "segments", rows)
    if weights is not None:
        _check_rows(weights, "weights", rows, None)


def _fake_linear_cross_entropy(
    h: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    with_lse: bool = False,
    with_grad_h: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    check_linear_cross_entropy(h, weight, labels, bias)
    return (
        h.new_empty(labels.shape, dtype=torch.float32),
        h.new_empty(labels.shape if with_lse else [0], dtype=torch.float32),
        h.new_empty(h.shape if with_grad_h else [0]),
    )


def _fake_linear_cross_entropy_backward(
    grad_nll: Tensor,
    h: Tensor,
    weight: Tensor,
    labels: Tensor,
    lse: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    with_grad_h: bool = True,
    with_grad_weight: bool = True,
    with_grad_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        h.new_empty(h.shape if with_grad_h else [0]),
        weight.new_empty(weight.shape if with_grad_weight else [0]),
        weight.new_empty(weight.shape[:1] if with_grad_bias else [0], dtype=torch.float32),
    )


def _fake_head_contrast(
    h_edited: Tensor,
    weight: Tensor,
    labels: Tensor,
    base_nll: Tensor,
    segments: Tensor | None = None,
    weights: Tensor | None = None,
    segment_count: int = 1,
    bias: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    check_head_contrast(h_edited, weight, labels, base_nll, segments, weights, bias)
    return h_edited.new_empty([h_edited.shape[0], segment_count], dtype=torch.float64)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    h, weight, labels, bias, ctx.ignore_index, with_lse, with_grad_h = inputs
    _, lse, grad_h = output
    ctx.mark_non_differentiable(lse, grad_h)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.with_lse, ctx.with_grad_h = with_lse, with_grad_h
    ctx.only_h = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    if with_grad_h and ctx.only_h:
        ctx.save_for_backward(grad_h)
    else:
        ctx.save_for_backward(h, weight, labels, bias, lse)


def _backward(ctx: Any, grad_nll: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph=True; what is kept of the forward pass has no graph
        raise RuntimeError("linear_cross_entropy has no second derivative; pass impl='reference' where one is needed")
    nothing = (None,) * 4
    if ctx.with_grad_h and ctx.only_h:
        (kept,) = ctx.saved_tensors
        return ((grad_nll.unsqueeze(-1) * kept).to(kept.dtype), None, None, None, *nothing[:3])
    h, weight, labels, bias, lse = ctx.saved_tensors
    needs_h, needs_weight, _, needs_bias = [*ctx.needs_input_grad, *[False] * 4][:4]
    if not ctx.with_lse:
        _, lse, _ = torch.ops.restorelcc.linear_cross_entropy(h, weight, labels, bias, ctx.ignore_index, True, False)
    grad_h, grad_weight, grad_bias = torch.ops.restorelcc.linear_cross_entropy_backward(
        grad_nll, h, weight, labels, lse, bias, ctx.ignore_index, needs_h, needs_weight, needs_bias
    )
    return (
        grad_h if needs_h else None,
        grad_weight if needs_weight else None,
        None,
        grad_bias.to(ctx.bias_dtype) if needs_bias else None,
        *nothing[:3],
    )


def register() -> None:
    """Tells torch; once, after the compiled ops were loaded."""
    torch.library.register_fake("restorelcc::linear_cross_entropy", _fake_linear_cross_entropy)
    torch.library.register_fake("restorelcc::linear_cross_entropy_backward", _fake_linear_cross_entropy_backward)
    torch.library.register_fake("restorelcc::head_contrast", _fake_head_contrast)
    torch.library.register_autograd("restorelcc::linear_cross_entropy", _backward, setup_context=_context)
