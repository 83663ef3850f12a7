"""The gradients of linear_cross_entropy: the reference by finite differences, the compiled op against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cross_entropy_cases import (
    COUNTED,
    EPS32,
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
from torch.utils._python_dispatch import TorchDispatchMode

from restorelcc import ops

Function = Callable[[Inputs], Tensor]
OPS = torch.ops.restorelcc


def ours(inputs: Inputs) -> Tensor:
    found = ops.linear_cross_entropy(
        inputs.h, inputs.weight, inputs.labels, bias=inputs.bias, ignore_index=inputs.ignore_index
    )
    assert isinstance(found, Tensor)
    return found


def reference(inputs: Inputs) -> Tensor:
    found = ops.linear_cross_entropy(
        inputs.h, inputs.weight, inputs.labels, bias=inputs.bias, ignore_index=inputs.ignore_index, impl="reference"
    )
    assert isinstance(found, Tensor)
    return found


def gradients(inputs: Inputs, grad_nll: Tensor, function: Function, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Of those inputs that are named and there."""
    leaves = {n: getattr(inputs, n).detach().requires_grad_() for n in names if getattr(inputs, n) is not None}
    nll = function(inputs._replace(**leaves))
    return dict(zip(leaves, torch.autograd.grad(nll, tuple(leaves.values()), grad_nll.to(nll.dtype)), strict=True))


def absolute_sums(inputs: Inputs, grad_nll: Tensor) -> dict[str, Tensor]:
    """Of the terms of each gradient, with probabilities in place of their differences from the label's 1."""
    wide = inputs.widened(torch.float64)
    labels = inputs.labels.reshape(-1)
    counted = labels != inputs.ignore_index
    shares = torch.softmax(logits_of(wide), -1)
    shares[counted, labels[counted]] += 1
    shares = shares * (counted * grad_nll.double().abs().reshape(-1))[:, None]
    h = wide.h.reshape(labels.shape[0], -1).abs()
    return {
        "h": (shares @ wide.weight.abs()).reshape(wide.h.shape),
        "weight": shares.T @ h,
        "bias": shares.sum(0),
    }


# Alone, h takes its gradient from the forward pass; beside the others, from backward.
@pytest.mark.parametrize("names", [("h",), ("h", "weight", "bias"), ("weight",)], ids="+".join)
@pytest.mark.parametrize("case", COUNTED, ids=name_of)
def test_within_the_error_of_plain_torch(case: Case, names: tuple[str, ...], isa: str) -> None:
    inputs = inputs_of(case)
    grad_nll = torch.randn(inputs.labels.shape)
    found = gradients(inputs, grad_nll, ours, names)
    plain = gradients(inputs, grad_nll, plain_torch, names)
    truth = gradients(inputs.widened(torch.float64), grad_nll, plain_torch, names)
    sums = absolute_sums(inputs, grad_nll)
    # A logit that is off by 8 units in the last place moves its probability by that much, relative; narrow
    # types round probability and result once each, and the result again where it is scaled.
    logits = 8 * EPS32 * (1 + float(magnitude_of(inputs).max()))
    assert found.keys() == plain.keys()
    for name, gradient in found.items():
        assert gradient.dtype == getattr(inputs, name).dtype
        eps = torch.finfo(gradient.dtype if name == "bias" else case.dtype).eps
        smallest = torch.finfo(gradient.dtype).smallest_normal * torch.finfo(gradient.dtype).eps
        slack = (logits + eps) * sums[name] + eps * truth[name].abs() + smallest
        assert_within(gradient, plain[name], truth[name], slack)


@pytest.mark.parametrize("name", ["h", "weight", "bias"])
def test_reference_by_finite_differences(name: str) -> None:
    inputs = inputs_of(Case("", (2, 3), 5, 4, bias=F32, ignored=0.3)).widened(torch.float64)

    def function(tensor: Tensor) -> Tensor:
        return reference(inputs._replace(**{name: tensor}))

    leaf = getattr(inputs, name).requires_grad_()
    assert torch.autograd.gradcheck(function, (leaf,))
    assert torch.autograd.gradgradcheck(function, (leaf,))


def test_reference_ignores_what_ignored_rows_hold() -> None:
    inputs = inputs_of(Case("", (4,), 5, 4, ignored=0.0)).widened(torch.float64)
    inputs.labels[1] = -100
    inputs.h[1] = torch.nan
    (grad,) = torch.autograd.grad(reference(inputs._replace(h=inputs.h.requires_grad_())).sum(), inputs.h)
    assert grad.isfinite().all()
    assert not grad[1].any()


class Calls(TorchDispatchMode):
    """Which ops of ours were called, with what."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "restorelcc":
            self.seen.append((func._opname, args))
        return func(*args, **(kwargs or {}))


def test_what_the_forward_pass_keeps() -> None:
    """Nothing without a gradient; d nll / d h where h alone asks; lse where the weight asks."""
    inputs = inputs_of(Case("", (6,), 11, 8))
    asking = inputs._replace(h=inputs.h.clone().requires_grad_())
    training = asking._replace(weight=inputs.weight.clone().requires_grad_())
    with Calls() as calls:
        ours(inputs)
        with torch.no_grad():
            ours(training)
        ours(asking).sum().backward()
        ours(training).sum().backward()
    # (with_lse, with_grad_h) are the last arguments; torch drops those that have their default.
    flags = [(*args[5:], False, False)[:2] for name, args in calls.seen if name == "linear_cross_entropy"]
    assert flags == [(False, False), (False, False), (False, True), (True, False)]
    assert [name for name, _ in calls.seen].count("linear_cross_entropy_backward") == 1


def test_the_op_alone_recomputes_what_it_was_not_asked_to_keep() -> None:
    inputs = inputs_of(Case("", (6,), 11, 8))
    wanted = gradients(inputs, torch.ones(6), ours, ("h", "weight"))
    for flags in [(False, False), (True, False), (False, True), (True, True)]:
        found = gradients(
            inputs,
            torch.ones(6),
            lambda i, flags=flags: OPS.linear_cross_entropy(i.h, i.weight, i.labels, None, -100, *flags)[0],
            ("h", "weight"),
        )
        for name, gradient in found.items():
            assert torch.allclose(gradient, wanted[name], rtol=1e-5, atol=1e-6), (name, flags)


@pytest.mark.parametrize("names", [("h",), ("h", "weight")], ids="+".join)
def test_no_gradient_of_lse_and_no_second_one(names: tuple[str, ...]) -> None:
    inputs = inputs_of(Case("", (6,), 11, 8))
    leaves = {name: getattr(inputs, name).clone().requires_grad_() for name in names}
    asking = inputs._replace(**leaves)
    nll, lse = ops.linear_cross_entropy(asking.h, asking.weight, asking.labels, return_lse=True)
    assert nll.requires_grad
    assert not lse.requires_grad
    with pytest.raises(RuntimeError, match="no second derivative; pass impl='reference'"):
        torch.autograd.grad(nll.sum(), tuple(leaves.values()), create_graph=True)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("rows", [0, 3])
def test_where_no_row_counts_gradients_are_zero(rows: int, impl: str) -> None:
    h = torch.randn(rows, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)
    labels = torch.full((rows,), -100)
    nll = ops.linear_cross_entropy(h, weight, labels, impl=impl)
    grad_h, grad_weight = torch.autograd.grad(nll.sum(), (h, weight))
    assert torch.equal(grad_h, torch.zeros(rows, 4))
    assert torch.equal(grad_weight, torch.zeros(5, 4))
