"""head_contrast against its equation in float64: segments, weights, layouts, instruction sets, refused inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cross_entropy_cases import BF16, EPS32, F16, F32, Inputs, laid_out, magnitude_of, plain_torch
from torch import Tensor

from restorelcc import ops


@dataclass(frozen=True)
class Case:
    """One call of head_contrast."""

    name: str
    groups: int
    rows: int
    vocabulary: int = 61
    columns: int = 40
    dtype: torch.dtype = F32
    bias: torch.dtype | None = None
    segments: int = 0  # 0: none given
    weights: str = "none"  # none | random | zeros | some_zeros
    layout: str = "contiguous"  # of h_edited: contiguous | strided | rows_first | expanded | transposed
    ignored: float = 0.2
    ignore_index: int = -100


CASES = [
    Case("aligned", 4, 32, 256, 64),
    Case("aligned_bf16", 4, 32, 256, 64, BF16, segments=2),
    Case("ragged", 3, 17, 131, 67, bias=F32, segments=3, weights="random"),
    Case("ragged_bf16", 5, 33, 509, 97, BF16, BF16, segments=4, weights="random"),
    Case("ragged_f16", 5, 33, 509, 97, F16, segments=4, weights="some_zeros"),
    Case("one_of_each", 1, 1, 1, 1, ignored=0.0),
    Case("one_word", 3, 9, 1, 33, segments=2),
    Case("one_column", 3, 9, 101, 1, BF16, weights="random"),
    Case("no_groups", 0, 9, segments=2),
    Case("no_rows", 3, 0, segments=2),
    Case("all_ignored", 3, 9, segments=2, ignored=1.0),
    Case("ignored_word", 3, 40, 7, ignored=0.0, ignore_index=3),
    Case("weights_of_zero", 3, 9, segments=2, weights="zeros"),
    Case("many_segments", 2, 50, segments=40),
    Case("strided", 3, 21, layout="strided", segments=2),
    Case("rows_first", 3, 21, dtype=BF16, layout="rows_first", segments=2),
    Case("expanded", 3, 21, layout="expanded", segments=2),
    Case("transposed", 3, 21, dtype=BF16, layout="transposed"),
]


def edited_of(case: Case) -> Tensor:
    """h_edited [G, M, E]: one base, edited a little differently in each group."""
    h = torch.randn(case.rows, case.columns)
    edited = (h + 0.1 * torch.randn(case.groups, case.rows, case.columns)).to(case.dtype)
    if case.layout == "strided":
        wide = edited.new_full((case.groups + 1, case.rows + 2, case.columns + 3), torch.nan)
        view = wide[1:, 1:-1, 2:-1]
        return view.copy_(edited)
    if case.layout == "rows_first":
        return edited.transpose(0, 1).contiguous().transpose(0, 1)
    if case.layout == "transposed":
        return edited.transpose(1, 2).contiguous().transpose(1, 2)
    return edited[:1].expand(edited.shape) if case.layout == "expanded" else edited


def arguments_of(case: Case) -> dict[str, Any]:
    """The arguments by their names."""
    weight = (torch.randn(case.vocabulary, case.columns) * 3 / case.columns**0.5).to(case.dtype)
    labels = torch.randint(0, case.vocabulary, (case.rows,))
    labels[torch.rand(case.rows) < case.ignored] = case.ignore_index
    weights = {
        "none": None,
        "random": torch.rand(case.rows) + 0.1,
        "zeros": torch.zeros(case.rows),
        "some_zeros": torch.rand(case.rows) * (torch.rand(case.rows) > 0.5),
    }[case.weights]
    return {
        "h_edited": edited_of(case),
        "weight": laid_out(weight, "strided" if case.layout == "strided" else "contiguous"),
        "labels": labels,
        "base_nll": torch.rand(case.rows) * 5,
        "segments": torch.randint(-1, case.segments, (case.rows,)) if case.segments else None,
        "segment_count": case.segments or None,
        "weights": weights,
        "bias": None if case.bias is None else torch.randn(case.vocabulary).to(case.bias),
        "ignore_index": case.ignore_index,
    }


def inputs_of_edit(a: dict[str, Any], g: int) -> Inputs:
    return Inputs(a["h_edited"][g], a["weight"], a["labels"], a["bias"], a["ignore_index"])


def equation(a: dict[str, Any], nll_of: Callable[[Inputs], Tensor]) -> Tensor:
    """The contrast [G, S] as a loop over edits, segments and tokens; nll_of gives the nll of one edit."""
    groups, rows = a["h_edited"].shape[:2]
    count = a["segment_count"] or 1
    result = torch.full((groups, count), torch.nan, dtype=torch.float64)
    for g in range(groups):
        nll = nll_of(inputs_of_edit(a, g)).double() if rows else torch.zeros(0)
        for s in range(count):
            total = weight = 0.0
            for m in range(rows):
                w = 1.0 if a["weights"] is None else float(a["weights"][m])
                inside = a["segments"] is None or int(a["segments"][m]) == s
                if inside and int(a["labels"][m]) != a["ignore_index"] and w > 0:
                    total += w * (float(nll[m]) - float(a["base_nll"][m]))
                    weight += w
            if weight > 0:
                result[g, s] = total / weight
    return result


def contrast_of(a: dict[str, Any], **changes: Any) -> Tensor:
    arguments = {**a, **changes}
    tensors = [arguments.pop(name) for name in ("h_edited", "weight", "labels", "base_nll")]
    return ops.head_contrast(*tensors, **arguments)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_within_the_error_of_plain_float32(case: Case, isa: str) -> None:
    a = arguments_of(case)
    found = contrast_of(a)
    truth = equation(a, lambda inputs: plain_torch(inputs.widened(torch.float64)))
    assert found.dtype == torch.float64
    assert found.shape == ((case.groups, case.segments) if case.segments else (case.groups,))
    found = found.reshape(truth.shape)
    assert torch.equal(found.isnan(), truth.isnan())
    kept = ~truth.isnan()
    if not kept.any():
        return
    plain = equation(a, lambda inputs: plain_torch(inputs.widened(F32)))
    magnitude = max(float(magnitude_of(inputs_of_edit(a, g)).max()) for g in range(case.groups))
    allowed = (plain - truth)[kept].abs().max() + 8 * EPS32 * (magnitude + 1)
    assert (found - truth)[kept].abs().max() <= allowed


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_reference_is_the_equation(case: Case) -> None:
    a = arguments_of(case)
    found = contrast_of(a, impl="reference")
    truth = equation(a, lambda inputs: plain_torch(inputs.widened(torch.float64)))
    assert torch.allclose(found.reshape(truth.shape), truth, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_an_edit_that_changes_nothing_contrasts_with_nothing(isa: str) -> None:
    """Against its own base the change is a rounding of float32 at most."""
    case = Case("", 1, 40, dtype=BF16, segments=3)
    a = arguments_of(case)
    base = ops.linear_cross_entropy(a["h_edited"][0], a["weight"], a["labels"])
    assert isinstance(base, Tensor)
    assert contrast_of(a, base_nll=base).abs().max() <= EPS32 * base.max()


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_what_does_not_count_may_be_anything(impl: str) -> None:
    """Tokens that are ignored, of weight 0 or in no segment: their hidden states and base are not looked at."""
    a = arguments_of(Case("", 3, 60, segments=2, weights="some_zeros"))
    idle = (a["labels"] == -100) | (a["segments"] < 0) | (a["weights"] == 0)
    spoiled = {**a, "h_edited": a["h_edited"].clone(), "base_nll": a["base_nll"].clone()}
    spoiled["h_edited"][:, idle], spoiled["base_nll"][idle] = torch.nan, torch.nan
    found = contrast_of(a, impl=impl)
    assert found.isfinite().all()
    assert torch.equal(contrast_of(spoiled, impl=impl), found)
    spoiled["base_nll"][int((~idle).nonzero()[0])] = torch.nan
    assert contrast_of(spoiled, impl=impl).isnan().any()


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_the_number_of_segments(impl: str) -> None:
    a = arguments_of(Case("", 2, 12, ignored=0.0))
    segments = torch.tensor([0, 2, 2, 0, -1, -5, 2, 0, 0, 0, 0, 2])
    found = contrast_of(a, segments=segments, impl=impl)
    assert found.shape == (2, 3)
    assert torch.equal(found.isnan(), torch.tensor([[False, True, False]] * 2))
    wider = contrast_of(a, segments=segments, segment_count=5, impl=impl)
    assert torch.equal(wider[:, :3].nan_to_num(9.0), found.nan_to_num(9.0))
    assert wider[:, 3:].isnan().all()
    nowhere = contrast_of(a, segments=torch.full((12,), -1), impl=impl)
    assert nowhere.shape == (2, 1)
    assert nowhere.isnan().all()
    whole = contrast_of(a, impl=impl)
    assert torch.allclose(contrast_of(a, segments=torch.zeros(12).long(), impl=impl)[:, 0], whole, rtol=1e-12)


def test_narrow_bases_and_weights_are_widened() -> None:
    a = arguments_of(Case("", 2, 12, segments=2, weights="random"))
    narrow = {**a, "base_nll": a["base_nll"].bfloat16(), "weights": a["weights"].half()}
    wide = {**a, "base_nll": narrow["base_nll"].float(), "weights": narrow["weights"].float()}
    assert torch.equal(contrast_of(narrow), contrast_of(wide))


@pytest.mark.parametrize("case", [c for c in CASES if c.groups and c.rows and c.ignored < 1], ids=lambda c: c.name)
def test_the_bits_do_not_depend_on_threads(case: Case, isa: str) -> None:
    a = arguments_of(case)
    found = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        found.append(contrast_of(a).nan_to_num(9.0))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_no_gradient_flows_through() -> None:
    a = arguments_of(Case("", 2, 12))
    a["h_edited"].requires_grad_()
    assert not contrast_of(a).requires_grad
    assert not contrast_of(a, impl="reference").requires_grad


@dataclass(frozen=True)
class Refused:
    name: str
    sentence: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    reference_too: bool = True


def weights_with(weight: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda a: {"weights": torch.tensor([1.0, 0.0, weight, 1.0, 1.0])}


REFUSED = [
    Refused("rank", r"h_edited has shape \[5, 70\]; it must be \[G, M, 70\]", lambda a: {"h_edited": a["h_edited"][0]}),
    Refused("columns", r"h_edited has shape .*; it must be \[G, M, 69\]", lambda a: {"weight": a["weight"][:, 1:]}),
    Refused("weight_dtype", "weight has dtype .*float16; it must be", lambda a: {"weight": a["weight"].half()}),
    Refused("labels_dtype", "labels has dtype .*int32; it must be .*int64", lambda a: {"labels": a["labels"].int()}),
    Refused("labels_shape", r"labels has shape \[4\]; it must be \[5\]", lambda a: {"labels": a["labels"][:4]}),
    Refused("label", r"labels\[3\] is 9, must be in \[0, 9\), .* ignore_index \(-100\)", lambda a: {
        "labels": torch.tensor([0, 8, -100, 9, 9])}),
    Refused("base_shape", r"base_nll has shape \[4\]; it must be \[5\]", lambda a: {"base_nll": a["base_nll"][:4]}),
    Refused("base_dtype", "base_nll has dtype float64; it must", lambda a: {"base_nll": a["base_nll"].double()}, False),
    Refused("segments_shape", r"segments has shape \[4\]; it must be \[5\]", lambda a: {"segments": a["segments"][:4]}),
    Refused("segments_dtype", "segments has dtype .*int32; it must be", lambda a: {"segments": a["segments"].int()}),
    Refused("segment", r"segments\[1\] is 3, must be below segment_count, 3 \(negative: in no segment\)", lambda a: {
        "segments": torch.tensor([0, 3, -1, 1, 2])}),
    Refused("segment_count", "segment_count is 0; it must be at least 1", lambda a: {"segment_count": 0}),
    Refused("segments_missing", "segment_count is 3, but segments is None", lambda a: {"segments": None}),
    Refused("weights_shape", r"weights has shape \[4\]; it must be \[5\]", lambda a: {"weights": torch.ones(4)}),
    Refused("weight_negative", r"weights\[2\] is -0.5, must be finite and at least 0", weights_with(-0.5)),
    Refused("weight_infinite", r"weights\[2\] is inf, must be finite", weights_with(torch.inf)),
    Refused("weight_nan", r"weights\[2\] is nan, must be finite", weights_with(torch.nan)),
    Refused("bias", r"bias has shape \[8\]; it must be \[9\]", lambda a: {"bias": torch.ones(8)}),
    Refused("impl", "impl is 'fast'; it must be 'auto' or 'reference'", lambda a: {"impl": "fast"}),
]  # fmt: skip


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: r.name)
def test_refused(refused: Refused, impl: str) -> None:
    a = {**arguments_of(Case("", 2, 5, 9, 70, segments=3)), "impl": impl}
    if impl == "reference" and not refused.reference_too:
        assert contrast_of(a, **refused.change(a)).shape == (2, 3)
        return
    with pytest.raises(ValueError, match=refused.sentence):
        contrast_of(a, **refused.change(a))
