"""How far the student's next-token distribution is from its teacher's, without keeping logits.

    kl_m = Σ_v p_mv (log p_mv − log q_mv),     p = softmax(h_t Wᵀ + bias),   q = softmax(h_s Wᵀ + bias)

h_t and h_s [M, E] enter the LM head W [V, E], which pruning left alone, so teacher and student share it and a token's
whole teacher is h_t. Row blocks hold [rows, V] at a time; the gradient of h_s, (q − p) W, is computed with the block,
because W is frozen: what autograd would keep, logits of all rows, never exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["distillation_losses"]

_BLOCK_ELEMENTS = 1 << 23  # of float32 logits at once: 32 MiB for each of the four buffers


def distillation_losses(student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """kl [M] float32, nats; gradients flow to `student` alone.

    Args:
        student, teacher: h_s and h_t [M, E] of one floating type.
        weight: W [V, E] of that type, frozen. bias: [V] or None.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    if student.shape != teacher.shape or student.dim() != 2 or student.shape[1] != weight.shape[1]:
        raise ValueError(
            f"student {list(student.shape)}, teacher {list(teacher.shape)} and head {list(weight.shape)} do not fit; "
            "they must be [M, E], [M, E] and [V, E]"
        )
    if not student.dtype == teacher.dtype == weight.dtype:
        raise ValueError(f"student is {student.dtype}, teacher {teacher.dtype} and head {weight.dtype}; use one type")
    losses: Tensor = _Distillation.apply(student, teacher.detach(), weight.detach(), bias)  # type: ignore[no-untyped-call]
    return losses


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        rows = max(1, _BLOCK_ELEMENTS // max(1, weight.shape[0]))
        losses = torch.empty(len(student), dtype=torch.float32)
        gradient = torch.empty_like(student) if wanted else None
        for begin in range(0, len(student), rows):
            end = min(begin + rows, len(student))
            q = _log_softmax(student[begin:end], weight, bias)
            p = _log_softmax(teacher[begin:end], weight, bias)
            kept = p.exp()
            losses[begin:end] = (kept * p.sub_(q)).sum(1)
            if gradient is not None:
                gradient[begin:end] = q.exp_().sub_(kept).to(weight.dtype) @ weight
        ctx.gradient = gradient
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = ctx.gradient
        if gradient is None:
            return None, None, None, None
        return grads[0][:, None].to(gradient.dtype) * gradient, None, None, None


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits += bias.float()
    return torch.log_softmax(logits, dim=-1)
