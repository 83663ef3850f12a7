"""The shapes, contents and layouts on which the cross entropies are tested, and how far off they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EPS32 = torch.finfo(F32).eps


@dataclass(frozen=True)
class Case:
    """One call of linear_cross_entropy."""

    name: str
    leading: tuple[int, ...]  # of h; M is their product
    vocabulary: int
    columns: int
    dtype: torch.dtype = F32
    bias: torch.dtype | None = None
    layout: str = "contiguous"  # of h and W: contiguous | strided | transposed | expanded
    fill: str = "normal"  # normal | peaked | identical | masked | tiny
    ignored: float = 0.2  # share of the rows
    ignore_index: int = -100


CASES = [
    Case("aligned", (32,), 256, 64),
    Case("aligned_bf16", (32,), 256, 64, BF16),
    Case("ragged", (17,), 131, 67, bias=F32),
    Case("ragged_bf16", (33,), 509, 97, BF16, F32),
    Case("ragged_f16", (33,), 509, 97, F16, F16),
    Case("more_rows_than_a_tile", (131,), 67, 24, BF16),
    Case("long_columns", (3,), 40, 1134, BF16, BF16),
    Case("long_vocabulary", (2,), 5003, 31, F32, BF16),
    Case("three_dimensions", (2, 3, 5), 61, 40, BF16),
    Case("no_leading_dimension", (), 61, 40, ignored=0.0),
    Case("one_row", (1,), 1009, 65, BF16, ignored=0.0),
    Case("one_word", (9,), 1, 33),
    Case("one_word_bf16", (9,), 1, 33, BF16, F32),
    Case("two_words", (9,), 2, 33, F16),
    Case("one_column", (9,), 101, 1),
    Case("one_column_bf16", (9,), 101, 1, BF16),
    Case("no_columns", (4,), 11, 0, bias=F32),
    Case("no_rows", (0,), 11, 8),
    Case("no_rows_3d", (2, 0), 11, 8, BF16),
    Case("all_ignored", (20,), 61, 40, BF16, ignored=1.0),
    Case("none_ignored", (20,), 61, 40, ignored=0.0),
    Case("ignored_word", (50,), 7, 40, ignored=0.0, ignore_index=3),
    Case("peaked", (19,), 131, 67, fill="peaked"),
    Case("peaked_bf16", (19,), 131, 67, BF16, fill="peaked"),
    Case("peaked_f16", (19,), 131, 67, F16, fill="peaked"),
    Case("identical_logits", (19,), 131, 67, fill="identical"),
    Case("identical_logits_bf16", (19,), 131, 67, BF16, fill="identical"),
    Case("masked_words", (19,), 131, 67, BF16, F32, fill="masked"),
    Case("tiny", (19,), 131, 67, fill="tiny"),
    Case("strided", (21,), 77, 50, layout="strided"),
    Case("strided_bf16", (21,), 77, 50, BF16, layout="strided"),
    Case("transposed", (21,), 77, 50, BF16, layout="transposed"),
    Case("expanded", (21,), 77, 50, layout="expanded"),
]
COUNTED = [case for case in CASES if 0 not in case.leading and case.ignored < 1]


def name_of(case: Case) -> str:
    return case.name


class Inputs(NamedTuple):
    """What linear_cross_entropy takes."""

    h: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor | None
    ignore_index: int

    def widened(self, dtype: torch.dtype) -> Inputs:
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(h=self.h.to(dtype), weight=self.weight.to(dtype), bias=bias)


def laid_out(matrix: Tensor, layout: str) -> Tensor:
    """The same numbers in another layout; `expanded` has its first row everywhere."""
    rows, columns = matrix.shape
    if layout == "strided":
        wide = torch.full((rows, columns + 13), torch.nan, dtype=matrix.dtype)
        wide[:, 5 : 5 + columns] = matrix
        return wide[:, 5 : 5 + columns]
    if layout == "transposed":
        return matrix.t().contiguous().t()
    return matrix[:1].expand(rows, columns) if layout == "expanded" else matrix


def inputs_of(case: Case) -> Inputs:
    """Logits of a few units, so that many words share the probability, unless the fill says otherwise."""
    rows = torch.Size(case.leading).numel()
    h = torch.randn(rows, case.columns)
    weight = torch.randn(case.vocabulary, case.columns) * 3 / max(1, case.columns) ** 0.5
    bias = None if case.bias is None else torch.randn(case.vocabulary)
    if case.fill == "peaked":  # one logit of 1e4 in every row
        h[:, 0], weight[:, 0], weight[case.vocabulary // 3, 0] = 100.0, 0.0, 100.0
    elif case.fill == "identical":
        weight[:] = weight[:1].clone()
    elif case.fill == "masked" and bias is not None:
        bias[::2] = -torch.inf
    elif case.fill == "tiny":
        h *= 1e-20
    labels = torch.randint(0, case.vocabulary, (rows,))
    if case.fill == "masked":
        labels = labels // 2 * 2 + 1
    labels[torch.rand(rows) < case.ignored] = case.ignore_index
    return Inputs(
        laid_out(h.to(case.dtype), case.layout).view(*case.leading, case.columns),
        laid_out(weight.to(case.dtype), case.layout),
        labels.reshape(case.leading),
        None if bias is None else bias.to(case.bias),
        case.ignore_index,
    )


def logits_of(inputs: Inputs) -> Tensor:
    """[M, V] in the dtype of h, which the ops never hold."""
    logits = inputs.h.reshape(inputs.labels.numel(), inputs.weight.shape[1]) @ inputs.weight.T
    return logits if inputs.bias is None else logits + inputs.bias.to(logits.dtype)


def plain_torch(inputs: Inputs) -> Tensor:
    """The naive nll: logits in the dtype of h, the loss at least in float32."""
    logits = logits_of(inputs)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = functional.cross_entropy(
        logits, inputs.labels.reshape(-1), ignore_index=inputs.ignore_index, reduction="none"
    )
    return nll.reshape(inputs.labels.shape)


def magnitude_of(inputs: Inputs) -> Tensor:
    """max_v Σ_e |h| |W| + |bias| of each row, float64: what the rounding of a logit is relative to."""
    bias = None if inputs.bias is None else inputs.bias.double().nan_to_num(0.0, 0.0, 0.0).abs()
    wide = inputs.widened(torch.float64)
    terms = logits_of(wide._replace(h=wide.h.abs(), weight=wide.weight.abs(), bias=bias))
    return terms.amax(-1).reshape(inputs.labels.shape)


def assert_within(ours: Tensor, plain: Tensor, truth: Tensor, slack: Tensor | float) -> None:
    """|ours - truth| <= max |plain - truth| + slack, element by element; infinities and NaNs in the same places
    first."""
    assert ours.shape == truth.shape
    assert torch.equal(ours.isnan(), truth.isnan())
    assert torch.equal(ours.isposinf(), truth.isposinf())
    assert torch.equal(ours.isneginf(), truth.isneginf())
    finite = truth.isfinite()
    if not finite.any():
        return
    allowed = (plain.double() - truth)[finite].abs().max()
    found = (ours.double() - truth)[finite].abs()
    over = found - allowed - torch.as_tensor(slack, dtype=torch.float64).expand(truth.shape)[finite]
    worst = int(over.argmax())
    assert over[worst] <= 0, f"off by {found[worst]:.3g}, {over[worst]:.3g} too much; plain torch by {allowed:.3g}"
