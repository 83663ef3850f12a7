"""How far the student's next-token distribution is from its teacher's, without keeping logits.

    kl_m = Σ_v p_mv (log p_mv − log q_mv),     p = softmax(h_t W_tᵀ + bias_t),   q = softmax(h_s Wᵀ + bias)

h_t and h_s [M, E] enter the LM head W [V, E], which pruning leaves alone, so teacher and student share it unless the
pruned model was trained since, and a token's whole teacher is h_t. Row blocks hold [rows, V] at a time; the gradient of
h_s, (q − p) W, is computed with the block, because W is frozen: what autograd would keep, logits of all rows, never
exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .lm_head import language_head

__all__ = ["Head", "distillation_losses", "other_head"]

Head = tuple[Tensor, Tensor | None]  # W [V, E], bias [V]

_BLOCK_ELEMENTS = 1 << 23  # of float32 logits at once: 32 MiB for each of the four buffers


def distillation_losses(
    student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor | None = None, teacher_head: Head | None = None
) -> Tensor:
    """kl [M] float32, nats; gradients flow to `student` alone.

    Args:
        student, teacher: h_s and h_t [M, E] of one floating type.
        weight: W [V, E] of that type, frozen. bias: [V] or None.
        teacher_head: W_t [V, E] of that type and its bias, where the teacher's are others.

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
    theirs = (weight.detach(), bias) if teacher_head is None else teacher_head
    if theirs[0].shape != weight.shape or theirs[0].dtype != weight.dtype:
        raise ValueError(
            f"the teacher's head {list(theirs[0].shape)} {theirs[0].dtype} is not like the student's "
            f"{list(weight.shape)} {weight.dtype}; give one of its shape and type"
        )
    losses: Tensor = _Distillation.apply(student, teacher.detach(), weight.detach(), bias, *theirs)  # type: ignore[no-untyped-call]
    return losses


def other_head(dense: Any, model: Any) -> Head | None:
    """(W [V, E], bias [V] or None) of the dense model's LM head where it is not `model`'s, as after a training of the
    pruned model that did not leave it alone; None where they are the same, as pruning leaves them."""
    theirs, ours = language_head(dense).module, language_head(model).module
    pairs = ((theirs.weight, ours.weight), (theirs.bias, ours.bias))
    if all(a is b if a is None or b is None else torch.equal(a, b.to(a.dtype)) for a, b in pairs):
        return None
    bias = None if theirs.bias is None else theirs.bias.detach().to(ours.weight.dtype).clone()
    return theirs.weight.detach().to(ours.weight.dtype).clone(), bias


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor | None, teacher_weight: Tensor,
        teacher_bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        wanted = ctx.needs_input_grad[0]
        rows = max(1, _BLOCK_ELEMENTS // max(1, weight.shape[0]))
        losses = torch.empty(len(student), dtype=torch.float32)
        gradient = torch.empty_like(student) if wanted else None
        for begin in range(0, len(student), rows):
            end = min(begin + rows, len(student))
            q = _log_softmax(student[begin:end], weight, bias)
            p = _log_softmax(teacher[begin:end], teacher_weight, teacher_bias)
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
            return (None,) * 6
        return grads[0][:, None].to(gradient.dtype) * gradient, None, None, None, None, None


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits += bias.float()
    return torch.log_softmax(logits, dim=-1)
