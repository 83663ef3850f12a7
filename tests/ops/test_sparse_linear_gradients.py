"""The gradients of sparse_linear: the reference by finite differences, the compiled op against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_cases import BF16, CASES, F32, Case, arguments_of, assert_within_budget, name_of, weight_of, x_of
from torch import Tensor
from torch.nn import functional

import restorelcc
from restorelcc import ops

DIFFERENTIABLE = ("comp", "bias", "residual")


def leaf(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A leaf of the same layout that asks for its gradient."""
    detached = tensor.detach() if dtype is None else tensor.detach().to(dtype)
    return detached.requires_grad_()


@pytest.mark.parametrize("weight_dtype", [F32, BF16])
def test_reference_by_finite_differences(weight_dtype: torch.dtype) -> None:
    case = Case("", (2, 2), 4, 7, weight_dtype=weight_dtype, groups=3, bias=F32, residual=True)
    packed, arguments = restorelcc.pack(weight_of(case)), arguments_of(case)
    index = arguments.pop("comp_index")

    def function(x: Tensor, comp: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return ops.sparse_linear(x, packed, comp=comp, comp_index=index, bias=bias, residual=residual, impl="reference")

    leaves = [leaf(x_of(case), torch.float64), *(leaf(arguments[name], torch.float64) for name in DIFFERENTIABLE)]
    assert torch.autograd.gradcheck(function, leaves)


def gradients(x: Tensor, arguments: dict[str, Any], grad_y: Tensor, function: Any) -> dict[str, Tensor]:
    leaves = {"x": leaf(x), **{name: leaf(arguments[name]) for name in DIFFERENTIABLE if name in arguments}}
    others = {name: value for name, value in arguments.items() if name not in leaves}
    y = function(**leaves, **others)
    y.backward(grad_y)
    return {name: t.grad for name, t in leaves.items() if t.grad is not None}


def plain(weight: Tensor, x: Tensor, comp: Tensor | None = None, comp_index: Tensor | None = None,
          bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:  # fmt: skip
    """The same in plain torch, in the dtype of x."""
    weight = weight.to(x.dtype)
    y = functional.linear(x, weight)
    if comp is not None:
        rows = functional.linear(comp.to(x.dtype).reshape(-1, weight.shape[1]), weight)
        y = y + (rows[0] if comp_index is None else rows[comp_index])
    y = y if bias is None else y + bias
    return (y if residual is None else y + residual).to(x.dtype)


@pytest.mark.parametrize("case", [c for c in CASES if 0 not in c.leading], ids=name_of)
def test_within_the_error_of_plain_torch(case: Case, isa: str) -> None:
    weight, x, arguments = weight_of(case), x_of(case), arguments_of(case)
    packed = restorelcc.pack(weight)
    grad_y = torch.randn(*case.leading, case.outputs).to(case.x_dtype)
    ours = gradients(x, arguments, grad_y, lambda **a: ops.sparse_linear(a.pop("x"), packed, **a))
    theirs = gradients(x, arguments, grad_y, lambda **a: plain(weight, **a))

    double = {k: v if k == "comp_index" else v.double() for k, v in arguments.items()}
    truth = gradients(
        x.double(), double, grad_y.double(), lambda **a: ops.sparse_linear(a.pop("x"), packed, impl="reference", **a)
    )
    absolute = {k: v if k == "comp_index" else v.abs() for k, v in double.items()}
    magnitude = gradients(
        x.double().abs(),
        absolute,
        grad_y.double().abs(),
        lambda **a: ops.sparse_linear(a.pop("x"), restorelcc.pack(weight.abs()), impl="reference", **a),
    )
    assert ours.keys() == theirs.keys() == truth.keys()
    for name in ours:
        assert ours[name].dtype == (x if name == "x" else arguments[name]).dtype
        if case.x_dtype == BF16 and name in ("comp", "bias"):
            # Plain torch sums the rows in bfloat16 here and there; ours are float32 sums: hold them to that.
            allowed = 8 * torch.finfo(F32).eps * case.weight_dtype.itemsize * magnitude[name].max()
            rounding = torch.finfo(ours[name].dtype).eps / 2 * truth[name].abs().max()
            assert (ours[name].double() - truth[name]).abs().max() <= allowed + rounding
        else:
            assert_within_budget(ours[name], theirs[name], truth[name], magnitude[name])


def test_only_what_is_asked_for() -> None:
    case = Case("", (6,), 8, 70, groups=2, bias=F32, residual=True)
    packed, x, arguments = restorelcc.pack(weight_of(case)), x_of(case), arguments_of(case)
    arguments["comp"].requires_grad_()
    ops.sparse_linear(x, packed, **arguments).sum().backward()
    index = arguments["comp_index"]
    counts = torch.bincount(index, minlength=2).float()
    wanted = counts[:, None] * packed.unpack().sum(0)
    assert torch.allclose(arguments["comp"].grad, wanted, rtol=1e-5, atol=1e-5)
    assert x.grad is None


def test_second_derivative() -> None:
    """The gradient of x is linear in grad_y, and differentiable in it."""
    packed = restorelcc.pack(weight_of(Case("", (3,), 5, 70)))
    x, v = torch.randn(3, 70, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    y = ops.sparse_linear(x, packed)
    (grad_x,) = torch.autograd.grad(y, x, v, create_graph=True)
    (grad_v,) = torch.autograd.grad(grad_x.pow(2).sum(), v)
    weight = packed.unpack()
    assert torch.allclose(grad_v, 2 * (v @ weight @ weight.T), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("prefill", "prefill_bf16", "all_bf16")], ids=name_of)
def test_the_bits_do_not_depend_on_threads(case: Case) -> None:
    packed, x, arguments = restorelcc.pack(weight_of(case)), x_of(case), arguments_of(case)
    grad_y = torch.randn(*case.leading, case.outputs).to(case.x_dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients(x, arguments, grad_y, lambda **a: ops.sparse_linear(a.pop("x"), packed, **a)))
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name
        assert torch.equal(results[0][name], results[2][name]), name


def test_values_get_no_gradient() -> None:
    packed = restorelcc.pack(torch.eye(8))
    values = packed.values.clone().requires_grad_()
    with pytest.raises(ValueError, match="values requires a gradient, but the packed weight is frozen"):
        torch.ops.restorelcc.sparse_linear(torch.ones(1, 8), packed.mask, values, packed.row_offsets, 8)


def test_no_graph_where_none_is_needed() -> None:
    packed, x = restorelcc.pack(torch.eye(8)), torch.ones(1, 8, requires_grad=True)
    assert ops.sparse_linear(x, packed).requires_grad
    assert not ops.sparse_linear(x.detach(), packed).requires_grad
    with torch.no_grad():
        assert not ops.sparse_linear(x, packed).requires_grad
    with torch.inference_mode():
        assert not ops.sparse_linear(x, packed).requires_grad
