"""linear_cross_entropy, its gradient, and head_contrast.

Budget, as in tests/cpp/cross_entropy_cases.h: a logit may be off by 32 · 2⁻²⁴ max_v (Σ|h||W| + |bias|); a loss by as
much and its own rounding; a probability by twice as much, relative, and by a rounding to the dtype, and a gradient by
that share of its terms, where the probability and the label's 1 count apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from on_device.abi import Library
from on_device.problem import ROUNDING, SLACK, TORCH, Output, Problem, Struct, strided

IGNORED = -100
VANISHING = 2.0**-120  # a probability below it may be 0, or it
DTYPES = ("fp32", "bf16", "fp16")
# (M, V, E): whole tiles, ragged ones, 1 of each, nothing, long in each direction.
SHAPES = (
    (16, 256, 64), (0, 5, 3), (1, 1, 1), (1, 2, 1), (3, 1, 17), (2, 17, 1), (5, 131, 31), (17, 67, 64), (33, 509, 65),
    (7, 1009, 13), (65, 40, 24), (130, 70, 7), (4, 33, 576), (4, 9, 1134), (3, 11, 0), (2, 4099, 8), (32, 33, 32),
    (31, 63, 33), (8, 128, 16), (1, 300, 40), (9, 16, 129), (6, 15, 2), (15, 1000, 3), (129, 257, 72),
)  # fmt: skip
LARGE = ((16, 49152, 576), (200, 8192, 576), (64, 32000, 512))
QUICK = ((16, 256, 64), (0, 5, 3), (1, 2, 1), (5, 131, 31), (17, 67, 64), (3, 11, 0), (9, 16, 129))


@dataclass(frozen=True)
class LossCase:
    """wide: rows of h and W begin at multiples of 16 bytes."""

    rows: int
    vocabulary: int
    columns: int
    dtype: str
    bias: bool
    wide: bool
    groups: int = 1
    segments: int = 1
    gradient: bool = True

    def __str__(self) -> str:
        extras = [word for word in ("bias", "wide", "gradient") if getattr(self, word)]
        parts = [f"M={self.rows} V={self.vocabulary} E={self.columns} {self.dtype}", *extras]
        return " ".join(parts + ([f"G={self.groups} S={self.segments}"] if self.groups > 1 else []))


class Model:
    """What all three ops take, on the host, and what its logits may be off by."""

    def __init__(self, library: Library, case: LossCase, h_rows: int) -> None:
        self.random = torch.Generator().manual_seed(sum(str(case).encode()) * 104729 % 2**31)
        E, dtype = case.columns, TORCH[case.dtype]
        gap = -E % 8 if case.wide else 3
        self.h = self._logits(h_rows, E, gap, dtype, 1.0)
        self.weight = self._logits(case.vocabulary, E, gap + (0 if case.wide else 2), dtype, 2 / (E + 1) ** 0.5)
        bias = torch.randn(case.vocabulary, generator=self.random) if case.bias else None
        self.labels = torch.randint(0, max(case.vocabulary, 1), (case.rows,), generator=self.random)
        self.labels[torch.randint(0, 5, (case.rows,), generator=self.random) == 0] = IGNORED
        self.counted = self.labels != IGNORED
        self.numbers = {
            "head.vocabulary": case.vocabulary, "head.columns": E, "head.weight_stride": self.weight.shape[1],
            "head.dtype": library.dtypes[case.dtype], "rows": case.rows, "h_stride": self.h.shape[1],
            "ignore_index": IGNORED,
        }  # fmt: skip
        self.arrays: dict[str, Tensor] = {"head.weight": self.weight, "h": self.h, "labels": self.labels}
        if bias is not None:
            self.arrays["head.bias"] = bias
        h, w = self.h[:, :E].double(), self.weight[:, :E].double()
        added = torch.zeros(case.vocabulary, dtype=torch.float64) if bias is None else bias.double()
        self.logits = h @ w.T + added
        self.logit_error = SLACK * (h.abs() @ w.abs().T + added.abs()).amax(1)
        self.abs_h, self.abs_w = h.abs(), w.abs()

    def _logits(self, rows: int, columns: int, gap: int, dtype: torch.dtype, scale: float) -> Tensor:
        """Some of the numbers 4 times as large: a few words of a row share the probability."""
        storage, _ = strided(rows, columns, gap, dtype)
        numbers = scale * torch.randn(rows, columns, generator=self.random)
        large = torch.randint(0, 16, (rows, columns), generator=self.random) == 0
        storage[:, :columns] = torch.where(large, 4 * numbers, numbers).to(dtype)
        return storage

    def share_errors(self, relative: Tensor, scale: Tensor) -> Tensor:
        """[M, V]: what a logit's gradient may be off by; 0 where the row does not count."""
        shares = self.logits.softmax(1)
        shares[self.counted, self.labels[self.counted]] += 1
        errors = relative[:, None] * shares * scale.abs()[:, None] + VANISHING
        return torch.where(self.counted[:, None], errors, 0.0)


def loss(library: Library, case: LossCase) -> Problem:
    """nll, lse, and grad_h in the same pass."""
    model, dtype = Model(library, case, case.rows), TORCH[case.dtype]
    grad_h, inside = strided(case.rows, case.columns, 1, dtype)
    numbers = {**model.numbers, "grad_h_stride": case.columns + 1}
    arrays = {**model.arrays, "nll": torch.full((case.rows,), -7.0), "lse": torch.full((case.rows,), -7.0)}
    # The rounding of values: at most as many units as nll itself has, so nll and lse get the larger of both budgets.
    size = model.logits.logsumexp(1).abs() + model.logits.abs().amax(1)
    allowed = model.logit_error + 2.0**-22 * size
    outputs = {"nll": Output(torch.where(model.counted, allowed, 0.0)), "lse": Output(allowed)}
    if case.gradient:
        arrays["grad_h"] = grad_h
        relative = 2 * model.logit_error + ROUNDING[dtype]
        errors = model.share_errors(relative, torch.ones(case.rows, dtype=torch.float64))
        outputs["grad_h"] = Output(errors @ model.abs_w, inside)
    return Problem(
        "linear_cross_entropy", str(case), Struct("rlcc_linear_cross_entropy_params", numbers, arrays), outputs
    )


def loss_backward(library: Library, case: LossCase) -> Problem:
    """Gradients of h, W and the bias from lse."""
    model, dtype = Model(library, case, case.rows), TORCH[case.dtype]
    M, V, E = case.rows, case.vocabulary, case.columns
    lse = model.logits.logsumexp(1).float()
    grad_nll = torch.randn(M, generator=model.random)
    grad_h, inside_h = strided(M, E, 1, dtype)
    grad_weight, inside_weight = strided(V, E, 2, dtype)
    numbers = {**model.numbers, "grad_h_stride": E + 1, "grad_weight_stride": E + 2}
    arrays = {
        **model.arrays, "lse": lse, "grad_nll": grad_nll, "grad_h": grad_h, "grad_weight": grad_weight,
        "grad_bias": torch.full((V,), -7.0),
    }  # fmt: skip
    # lse comes rounded to fp32, which moves every probability of the row alike.
    relative = 2 * model.logit_error + 2 * 2.0**-24 * lse.double().abs() + ROUNDING[dtype]
    errors = model.share_errors(relative, grad_nll.double())
    return Problem(
        "linear_cross_entropy_backward", str(case),
        Struct("rlcc_linear_cross_entropy_backward_params", numbers, arrays),
        {
            "grad_h": Output(errors @ model.abs_w, inside_h),
            "grad_weight": Output(errors.T @ model.abs_h, inside_weight),
            "grad_bias": Output(errors.sum(0) * (1 + 2.0**-10)),
        },
    )  # fmt: skip


def contrast(library: Library, case: LossCase) -> Problem:
    """The mean change of the NLL, per group of edited hidden states and segment."""
    model, M = Model(library, case, case.groups * case.rows), case.rows
    numbers = {
        **model.numbers, "groups": case.groups, "group_stride": M * model.h.shape[1], "segment_count": case.segments,
    }  # fmt: skip
    arrays = {
        **model.arrays,
        "base_nll": 5 * torch.rand(M, generator=model.random),
        "contrast": torch.full((case.groups, case.segments), -7.0, dtype=torch.float64),
    }
    if case.segments > 1:
        arrays["segments"] = torch.randint(-1, case.segments, (M,), generator=model.random)
        weights = torch.rand(M, generator=model.random)
        weights[torch.randint(0, 4, (M,), generator=model.random) == 0] = 0
        arrays["weights"] = weights
    # A mean is off by no more than its terms are.
    worst = model.logit_error.reshape(case.groups, M).amax(1) if M else torch.zeros(case.groups, dtype=torch.float64)
    allowed = (worst + 2.0**-18)[:, None].expand(case.groups, case.segments)
    return Problem(
        "head_contrast", str(case), Struct("rlcc_head_contrast_params", numbers, arrays), {"contrast": Output(allowed)}
    )


def _cases(quick: bool, contrasts: bool) -> Iterator[LossCase]:
    shapes = QUICK if quick else (*SHAPES, *LARGE)
    for turn, ((M, V, E), dtype) in enumerate(product(shapes, DTYPES)):
        groups, segments = ((1, 1), (2, 3), (4, 1))[turn % 3] if contrasts else (1, 1)
        if contrasts and M * V * E * groups > 10**9:
            continue
        yield LossCase(M, V, E, dtype, turn % 2 == 0, turn % 3 != 0, groups, segments, gradient=turn % 4 != 0)


def problems(library: Library, op: str, quick: bool) -> Iterator[Callable[[], Problem]]:
    """Of one of this file's ops, made when asked for."""
    make = {"linear_cross_entropy": loss, "linear_cross_entropy_backward": loss_backward, "head_contrast": contrast}[op]
    for case in _cases(quick, op == "head_contrast"):
        yield _bound(make, library, case)


def _bound(make: Callable[..., Problem], library: Library, case: LossCase) -> Callable[[], Problem]:
    return lambda: make(library, case)


OPS = ("linear_cross_entropy", "linear_cross_entropy_backward", "head_contrast")
