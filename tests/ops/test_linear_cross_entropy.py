"""linear_cross_entropy against float64: every dtype, layout, instruction set; what must be refused is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cross_entropy_cases import (
    BF16,
    CASES,
    COUNTED,
    EPS32,
    F16,
    F32,
    Case,
    Inputs,
    assert_within,
    inputs_of,
    logits_of,
    magnitude_of,
    name_of,
    plain_torch,
)
from torch import Tensor

from restorelcc import cross_entropy, ops


def call(inputs: Inputs, **options: Any) -> Any:
    return ops.linear_cross_entropy(
        inputs.h, inputs.weight, inputs.labels, bias=inputs.bias, ignore_index=inputs.ignore_index, **options
    )


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_within_the_error_of_plain_float32(case: Case, isa: str) -> None:
    """Narrower inputs too: their products are exact in float32, and the logits are not rounded to their dtype."""
    inputs = inputs_of(case)
    nll, lse = call(inputs, return_lse=True)
    assert nll.dtype == lse.dtype == F32
    assert nll.shape == lse.shape == inputs.labels.shape
    if nll.numel() == 0:
        return
    wide, single = inputs.widened(torch.float64), inputs.widened(F32)
    truth = plain_torch(wide)
    slack = 8 * EPS32 * magnitude_of(inputs) + EPS32 * truth.abs().nan_to_num(posinf=0.0)
    assert_within(nll, plain_torch(single), truth, slack)
    lse64 = logits_of(wide).logsumexp(-1).reshape(lse.shape)
    lse32 = logits_of(single).logsumexp(-1).reshape(lse.shape)
    assert_within(lse, lse32, lse64, 8 * EPS32 * magnitude_of(inputs) + EPS32 * lse64.abs())
    ignored = inputs.labels == inputs.ignore_index
    assert not nll[ignored].any()
    assert torch.equal(call(inputs), nll), "lse changes the nll"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_reference_is_the_equation(case: Case) -> None:
    inputs = inputs_of(case).widened(torch.float64)
    nll, lse = call(inputs, return_lse=True, impl="reference")
    assert nll.dtype == lse.dtype == torch.float64
    if nll.numel():
        assert torch.allclose(nll, plain_torch(inputs), rtol=1e-12, atol=1e-12)
        assert torch.allclose(lse, logits_of(inputs).logsumexp(-1).reshape(lse.shape), rtol=1e-13, atol=1e-13)
    rounded = call(inputs_of(case), impl="reference")
    assert rounded.dtype == F32


def test_the_chunks_of_the_reference_are_its_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(Case("", (23,), 61, 40, bias=F32))
    whole = call(inputs, return_lse=True, impl="reference")
    monkeypatch.setattr(cross_entropy, "_REFERENCE_LOGITS", 5 * 61)
    for one, other in zip(whole, call(inputs, return_lse=True, impl="reference"), strict=True):
        assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_one_logit_of_1e30(dtype: torch.dtype, isa: str) -> None:
    h, weight = torch.randn(6, 33), torch.randn(101, 33)
    h[:, 0], weight[:, 0], weight[40, 0] = 1e15, 0.0, 1e15
    labels = torch.tensor([40, 0, 40, 100, -100, 40])
    h, weight = h.to(dtype), weight.to(dtype)
    huge = float(h[0, 0]) * float(weight[40, 0])
    nll, lse = ops.linear_cross_entropy(h, weight, labels, return_lse=True)
    assert torch.equal(nll[labels == 40], torch.zeros(3))
    assert nll[4] == 0
    assert torch.allclose(nll[[1, 3]], torch.tensor(huge), rtol=1e-6)
    assert torch.allclose(lse, torch.tensor(huge), rtol=1e-6)
    # The probability is 1 there, so the gradient is a difference of rows of W.
    leaf = h.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ops.linear_cross_entropy(leaf, weight, labels).sum(), leaf)
    wanted = torch.stack([weight[40] - weight[label] for label in (40, 0, 40, 100, 40, 40)])
    assert torch.allclose(grad, wanted, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_large_logit_keeps_the_digits_of_the_rest(isa: str) -> None:
    """lse − l[label] would cancel: the spacing of float32 near 1e5 is 0.008."""
    bias = torch.tensor([1e5, 1e5 - 3, 1e5 - 4])
    h, weight = torch.ones(3, 1), torch.zeros(3, 1)
    nll = ops.linear_cross_entropy(h, weight, torch.tensor([0, 1, 2]), bias=bias)
    wanted = torch.tensor([0.0, 3.0, 4.0]) + math.log1p(math.exp(-3) + math.exp(-4))
    assert torch.allclose(nll, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("vocabulary", [1, 2, 97, 4099])
def test_identical_logits_share_the_probability(vocabulary: int, dtype: torch.dtype, isa: str) -> None:
    h, labels = torch.randn(5, 18).to(dtype), torch.randint(0, vocabulary, (5,))
    weight = torch.randn(1, 18).to(dtype).repeat(vocabulary, 1)
    nll = ops.linear_cross_entropy(h, weight, labels)
    assert torch.allclose(nll, torch.tensor(math.log(vocabulary)), rtol=4 * EPS32, atol=4 * EPS32)


def with_gradients(inputs: Inputs, function: Callable[[Inputs], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """nll, and the gradients of its sum with respect to h and W."""
    leaves = inputs._replace(h=inputs.h.detach().requires_grad_(), weight=inputs.weight.detach().requires_grad_())
    nll = function(leaves)
    return (nll.detach(), *torch.autograd.grad(nll.sum(), (leaves.h, leaves.weight)))


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_infinities_and_nans_go_where_torch_puts_them(dtype: torch.dtype, isa: str) -> None:
    inputs = inputs_of(Case("", (23,), 131, 67, dtype, ignored=0.0))
    inputs.h[2, 5], inputs.h[7, 66], inputs.h[11, 0] = torch.nan, torch.inf, -torch.inf
    truth = plain_torch(inputs.widened(torch.float64))
    assert truth.isnan().sum() == 3
    nll, lse = call(inputs, return_lse=True)
    assert torch.equal(nll.isnan(), truth.isnan())
    assert torch.equal(lse.isnan(), truth.isnan())
    assert nll[~truth.isnan()].isfinite().all()
    _, of_h, of_weight = with_gradients(inputs, call)
    _, theirs_h, theirs_weight = with_gradients(inputs.widened(torch.float64), plain_torch)
    assert torch.equal(of_h.isnan(), theirs_h.isnan())
    assert torch.equal(of_weight.isnan(), theirs_weight.isnan())
    (fused,) = torch.autograd.grad(call(inputs._replace(h=(leaf := inputs.h.clone().requires_grad_()))).sum(), leaf)
    assert torch.equal(fused.isnan(), theirs_h.isnan())


@pytest.mark.parametrize(
    "bias", [[-torch.inf, 0.0, 1.0], [-torch.inf] * 3, [torch.inf, 0.0, 1.0], [torch.nan, 0.0, 1.0]], ids=str
)
def test_a_bias_that_is_not_finite(bias: list[float], isa: str) -> None:
    inputs = Inputs(torch.randn(4, 5), torch.randn(3, 5), torch.tensor([0, 1, 2, -100]), torch.tensor(bias), -100)
    nll, of_h, of_weight = with_gradients(inputs, call)
    truth, truth_h, truth_weight = with_gradients(inputs.widened(torch.float64), plain_torch)
    assert_within(nll, truth, truth, 1e-5)
    counted = slice(0, 3)  # torch's gradient of an ignored row is 0 times NaN there; ours is 0
    assert_within(of_h[counted], truth_h[counted], truth_h[counted], 1e-5)
    assert not of_h[3].any()
    if not truth.isnan().any():
        assert_within(of_weight, truth_weight, truth_weight, 1e-5)


def test_ignored_rows_cost_nothing_and_spoil_nothing(isa: str) -> None:
    inputs = inputs_of(Case("", (30,), 61, 40, ignored=0.5))
    ignored = inputs.labels == -100
    assert 0 < int(ignored.sum()) < 30
    spoiled = inputs._replace(h=inputs.h.clone())
    spoiled.h[ignored] = torch.nan
    clean, wrong = with_gradients(inputs, call), with_gradients(spoiled, call)
    for one, other in zip(clean, wrong, strict=True):
        assert torch.equal(one, other)
    assert not clean[1][ignored].any()
    nll, lse = call(spoiled, return_lse=True)
    assert torch.equal(nll, clean[0])
    assert torch.equal(lse.isnan(), ignored)


@pytest.mark.parametrize("case", COUNTED, ids=name_of)
def test_the_bits_do_not_depend_on_threads(case: Case, isa: str) -> None:
    inputs = inputs_of(case)
    found = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        leaf = inputs.h.detach().requires_grad_()
        nll, lse = call(inputs._replace(h=leaf), return_lse=True)
        found.append((nll.detach(), lse, *torch.autograd.grad(nll.sum(), leaf), *with_gradients(inputs, call)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@dataclass(frozen=True)
class Refused:
    name: str
    sentence: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    reference_too: bool = True


def labels_with(label: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda a: {"labels": torch.tensor([0, -100, label, 8, 1])}


REFUSED = [
    Refused("columns", r"h has shape \[5, 69\]; its last dimension must be 70", lambda a: {"h": torch.ones(5, 69)}),
    Refused("scalar", r"h has shape \[\]", lambda a: {"h": torch.ones(())}),
    Refused("weight_rank", r"weight has shape \[70\]; it must be \[V, E\]", lambda a: {"weight": torch.ones(70)}),
    Refused(
        "weight_dtype",
        "weight has dtype .*bfloat16; it must be .*float32",
        lambda a: {"weight": a["weight"].bfloat16()},
    ),
    Refused("integer_h", "h has dtype .*int32; it must be", lambda a: {"h": a["h"].int(), "weight": a["weight"].int()}),
    Refused(
        "float64",
        "h has dtype float64; it must be float32, bfloat16 or float16",
        lambda a: {"h": a["h"].double(), "weight": a["weight"].double()},
        False,
    ),
    Refused("label_high", r"labels\[2\] is 9, must be in \[0, 9\), the vocabulary, or ignore_index", labels_with(9)),
    Refused("label_low", r"labels\[2\] is -1, must be in \[0, 9\)", labels_with(-1)),
    Refused("label_overflow", rf"labels\[2\] is {2**62}, must be in \[0, 9\)", labels_with(2**62)),
    Refused("label_of_another_rule", r"labels\[1\] is -100, .* ignore_index \(4\)", lambda a: {
        "labels": torch.tensor([0, -100, 2, 3, 4]), "ignore_index": 4}),
    Refused("no_vocabulary", r"labels\[0\] is .*, must be in \[0, 0\)", lambda a: {
        "weight": torch.ones(0, 70), "bias": None}),
    Refused("labels_shape", r"labels has shape \[4\]; it must be \[5\]", lambda a: {"labels": a["labels"][:4]}),
    Refused("labels_dtype", "labels has dtype .*int32; it must be .*int64", lambda a: {"labels": a["labels"].int()}),
    Refused("bias", r"bias has shape \[8\]; it must be \[9\]", lambda a: {"bias": torch.ones(8)}),
    Refused("bias_rank", r"bias has shape \[1, 9\]; it must be \[9\]", lambda a: {"bias": torch.ones(1, 9)}),
]  # fmt: skip


def good_arguments() -> dict[str, Any]:
    inputs = inputs_of(Case("", (5,), 9, 70, bias=F32, ignored=0.0))
    return {"h": inputs.h, "weight": inputs.weight, "labels": inputs.labels, "bias": inputs.bias}


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: r.name)
def test_refused(refused: Refused, impl: str) -> None:
    arguments = good_arguments()
    arguments.update(refused.change(arguments))
    tensors = [arguments.pop(name) for name in ("h", "weight", "labels")]
    if impl == "reference" and not refused.reference_too:
        assert ops.linear_cross_entropy(*tensors, impl=impl, **arguments).dtype == torch.float64
        return
    with pytest.raises(ValueError, match=refused.sentence):
        ops.linear_cross_entropy(*tensors, impl=impl, **arguments)


def test_refused_impl_and_device() -> None:
    h, weight, labels = torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="impl is 'fast'; it must be 'auto' or 'reference'"):
        ops.linear_cross_entropy(h, weight, labels, impl="fast")
    kernel = torch.ops.restorelcc.linear_cross_entropy.default._op_dk
    for name, arguments in {
        "h": (h.to("meta"), weight, labels),
        "weight": (h, weight.to("meta"), labels),
        "labels": (h, weight, labels.to("meta")),
        "bias": (h, weight, labels, weight[:, 0].to("meta")),
    }.items():
        sentence = "neither on the CPU nor on a CUDA device" if name == "h" else "not on the CPU, where h is"
        with pytest.raises(ValueError, match=f"^{name} is {sentence}"):
            kernel(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)
