"""The shapes, contents and layouts on which sparse_linear is tested, and how far off it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import restorelcc

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    """One call of sparse_linear."""

    name: str
    leading: tuple[int, ...]  # of x; M is their product
    outputs: int
    inputs: int
    x_dtype: torch.dtype = F32
    weight_dtype: torch.dtype = F32
    fill: str = "half"  # of the weight: half | full | empty | empty_rows | outliers | two_four
    layout: str = "contiguous"  # of x: contiguous | strided | transposed | expanded | heads
    groups: int = 0  # compensations; 0 for none, -1 for one of shape [K]
    bias: torch.dtype | None = None
    residual: bool = False


CASES = [
    Case("aligned", (4,), 64, 128),
    Case("aligned_bf16", (4,), 64, 128, BF16, BF16),
    Case("decode", (1,), 129, 257, BF16, BF16, bias=F32),
    Case("decode_no_rows_dimension", (), 65, 100, bias=F32),
    Case("one_by_one", (1,), 1, 1),
    Case("one_output", (3,), 1, 65, BF16, BF16, groups=-1),
    Case("one_input", (3,), 5, 1, residual=True),
    Case("last_bit_of_a_word", (2,), 7, 64, fill="full"),
    Case("first_bit_of_a_word", (2,), 7, 65, fill="full"),
    Case("no_rows", (0,), 12, 70, groups=-1, bias=F32),
    Case("no_rows_3d", (2, 0), 12, 70, residual=True),
    Case("nothing_survived", (5,), 9, 130, fill="empty", groups=-1, bias=F32),
    Case("everything_survived", (5,), 9, 130, BF16, BF16, fill="full"),
    Case("empty_rows", (17,), 33, 190, fill="empty_rows"),
    Case("two_four", (16,), 48, 192, BF16, BF16, fill="two_four"),
    Case("three_dimensions", (2, 9), 40, 96, groups=3, bias=BF16, residual=True),
    Case("all_bf16", (3, 5), 31, 127, BF16, BF16, groups=4, bias=BF16, residual=True),
    Case("prefill", (130,), 70, 200, groups=1, bias=F32),
    Case("prefill_bf16", (67,), 130, 320, BF16, BF16, groups=5, residual=True),
    Case("f32_rows_of_a_bf16_weight", (6,), 50, 77, F32, BF16, groups=2),
    Case("bf16_rows_of_a_f32_weight", (6,), 50, 77, BF16, F32, bias=F32),
    Case("strided", (20,), 24, 90, layout="strided", residual=True),
    Case("transposed", (11,), 24, 90, BF16, BF16, layout="transposed"),
    Case("expanded", (6,), 24, 90, layout="expanded"),
    Case("heads", (3, 7), 24, 96, layout="heads", groups=2),
    Case("outliers", (8,), 40, 512, BF16, BF16, fill="outliers", groups=-1),
    Case("decode_f16", (1,), 129, 257, F16, F16, bias=F32),
    Case("all_f16", (3, 5), 31, 127, F16, F16, groups=4, bias=F16, residual=True),
    Case("prefill_f16", (67,), 130, 320, F16, F16, groups=5, residual=True),
    Case("f16_rows_of_a_bf16_weight", (6,), 50, 77, F16, BF16, groups=2),
    Case("f32_rows_of_a_f16_weight", (40,), 50, 77, F32, F16),
]


def name_of(case: Case) -> str:
    return case.name


def weight_of(case: Case) -> Tensor:
    """W [N, K] with zeros."""
    weight = torch.randn(case.outputs, case.inputs)
    if case.fill == "half":
        weight *= torch.rand_like(weight) > 0.5
    elif case.fill == "empty":
        weight.zero_()
    elif case.fill == "empty_rows":
        weight[::3] = 0
    elif case.fill == "outliers":
        weight *= torch.rand_like(weight) > 0.5
        weight[:, 7] = 300.0
    elif case.fill == "two_four":
        kept = weight.abs().view(case.outputs, -1, 4).argsort(-1, descending=True)[..., :2]
        weight = weight * torch.zeros(case.outputs, case.inputs // 4, 4).scatter_(-1, kept, 1.0).view_as(weight)
    return weight.to(case.weight_dtype)


def x_of(case: Case) -> Tensor:
    """x [..., K] in the layout of the case."""
    shape = (*case.leading, case.inputs)
    if case.layout == "strided":
        return torch.randn(*case.leading, case.inputs + 13).to(case.x_dtype)[..., 5 : 5 + case.inputs]
    if case.layout == "transposed":
        return torch.randn(case.inputs, *case.leading).to(case.x_dtype).t()
    if case.layout == "expanded":
        return torch.randn(1, case.inputs).to(case.x_dtype).expand(shape)
    if case.layout == "heads":  # [batch, heads, tokens, D] seen as [batch, tokens, heads * D]: strides do not collapse
        batch, tokens = case.leading
        return torch.randn(tokens, batch, case.inputs).to(case.x_dtype).transpose(0, 1)
    return torch.randn(shape).to(case.x_dtype)


def arguments_of(case: Case) -> dict[str, Any]:
    """The keyword arguments of sparse_linear."""
    arguments: dict[str, Any] = {}
    if case.groups:
        shape = (case.inputs,) if case.groups < 0 else (case.groups, case.inputs)
        arguments["comp"] = torch.randn(shape) * 0.01  # small against x, as a compensation is
    if case.groups > 1:
        arguments["comp_index"] = torch.randint(0, case.groups, case.leading)
    if case.bias is not None:
        arguments["bias"] = torch.randn(case.outputs).to(case.bias)
    if case.residual:
        arguments["residual"] = torch.randn(*case.leading, case.outputs).to(case.x_dtype)
    return arguments


def exact(x: Tensor, weight: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The answer in float64, not rounded."""
    arguments = dict(arguments)
    if "residual" in arguments:
        arguments["residual"] = arguments["residual"].double()
    return restorelcc.ops.sparse_linear(x.double(), restorelcc.pack(weight), impl="reference", **arguments)


def plain_torch(x: Tensor, weight: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The same in plain torch, in the dtype of x (float32 where the weight has another)."""
    dtype = x.dtype if x.dtype == weight.dtype else F32
    y = functional.linear(x.to(dtype), weight.to(dtype))
    comp, index = arguments.get("comp"), arguments.get("comp_index")
    if comp is not None:
        rows = functional.linear(comp.reshape(-1, weight.shape[1]), weight.float())
        y = y + (rows[0] if index is None else rows[index])
    for name in ("bias", "residual"):
        if name in arguments:
            y = y + arguments[name]
    return y.to(x.dtype)


def assert_within_budget(ours: Tensor, plain: Tensor, truth: Tensor, magnitude: Tensor) -> None:
    """|ours - truth| <= max |plain - truth| + slack, infinities and NaNs in the same places first.

    slack: rounding the result once (half an ulp of the largest one), and 4 float32 ulps of
    `magnitude`, the sum of the absolute terms.
    """
    assert ours.shape == truth.shape
    assert ours.dtype == plain.dtype
    finite = truth.isfinite()
    assert torch.equal(ours.isnan(), truth.isnan())
    assert torch.equal(ours.isposinf(), truth.isposinf())
    assert torch.equal(ours.isneginf(), truth.isneginf())
    if not finite.any():
        return
    found = (ours.double() - truth)[finite].abs().max().item()
    allowed = (plain.double() - truth)[finite].abs().max().item()
    slack = torch.finfo(ours.dtype).eps / 2 * truth[finite].abs().max().item()
    slack += 4 * torch.finfo(F32).eps * magnitude.max().item()
    assert found <= allowed + slack, f"off by {found:.3g}; plain torch is off by {allowed:.3g}, slack {slack:.3g}"


def magnitude_of(x: Tensor, weight: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Sum of the absolute terms of each output."""
    absolute = {k: v if k == "comp_index" else v.abs() for k, v in arguments.items()}
    return exact(x.abs(), weight.abs(), absolute).nan_to_num(0.0, 0.0, 0.0)
