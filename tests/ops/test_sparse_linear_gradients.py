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
from restorelcc.packed import unpack_reference

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


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
@pytest.mark.parametrize("strided", [False, True])
def test_the_sums_of_rows(dtype: torch.dtype, strided: bool, isa: str) -> None:
    """Of the gradients of comp and bias: fp32 sums in the order of the rows, as index_add_ forms them on one thread."""
    grad_y = torch.randn(5, 40, 130)[..., :129].to(dtype) if strided else torch.randn(5, 40, 129).to(dtype)
    index = torch.randint(0, 6, (5, 40))
    comp_rows, bias = torch.ops.restorelcc.sparse_linear_grad_comp(grad_y, index, 7, True)
    rows = grad_y.reshape(-1, 129).float()
    assert torch.equal(comp_rows, torch.zeros(7, 129).index_add_(0, index.reshape(-1), rows))
    assert torch.equal(bias, torch.zeros(1, 129).index_add_(0, torch.zeros(200, dtype=torch.int64), rows)[0])
    alone, nothing = torch.ops.restorelcc.sparse_linear_grad_comp(grad_y, None, 1)
    assert torch.equal(alone[0], bias)
    assert nothing.shape == (0,)
    empty = torch.ops.restorelcc.sparse_linear_grad_comp(grad_y[:0], index[:0], 7, True)
    assert not empty[0].any()
    assert not empty[1].any()


def test_sums_of_rows_that_are_refused() -> None:
    grad_y = torch.randn(4, 3)
    for arguments, sentence in {
        (torch.tensor([0, 1, 2, 3]), 3): r"comp_index\[3\] is 3, must be in \[0, 3\)",
        (torch.tensor([0, 1]), 3): "comp_index has 2 entries; grad_y has 4 rows, and each needs one",
        (torch.tensor([0, 1, 2, 3]), 0): "comp_index is set, but grad_comp_rows is null",
        (None, 2): "comp_index is null, but there are 2 groups",
        (None, -1): "groups is -1; it must be >= 0",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            torch.ops.restorelcc.sparse_linear_grad_comp(grad_y, *arguments)


@pytest.mark.parametrize("groups", [1, 4])
def test_second_derivative_of_comp_and_bias(groups: int) -> None:
    """Of a loss that is not linear in y, so that it reaches grad_y through both sums; of one group without an index."""
    case = Case("", (2, 3), 8, 70, groups=groups, bias=F32, residual=True)
    packed, x, given = restorelcc.pack(weight_of(case)), x_of(case), arguments_of(case)
    found = []
    for impl in ("auto", "reference"):
        leaves = {name: leaf(given[name]) for name in DIFFERENTIABLE}
        y = ops.sparse_linear(x, packed, comp_index=given.get("comp_index"), impl=impl, **leaves)
        firsts = torch.autograd.grad(y.pow(3).sum(), (leaves["comp"], leaves["bias"]), create_graph=True)
        loss = sum(first.pow(2).sum() for first in firsts)
        found.append(torch.autograd.grad(loss, list(leaves.values())))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


VALUES_CASES = [c for c in CASES if c.x_dtype == c.weight_dtype]


@pytest.mark.parametrize("case", VALUES_CASES, ids=name_of)
def test_gradient_of_the_values(case: Case, isa: str) -> None:
    """The dense product's gradient of W, at the survivors' places; zeros between the rows."""
    weight, x = weight_of(case), x_of(case)
    packed = restorelcc.pack(weight)
    packed.values.requires_grad_()
    grad_y = torch.randn(*case.leading, case.outputs).to(case.x_dtype)
    ops.sparse_linear(x, packed).backward(grad_y)
    found = packed.values.grad
    assert found.dtype == weight.dtype
    rows, columns = grad_y.reshape(-1, case.outputs).double(), x.reshape(-1, case.inputs).double()
    truth, magnitude = rows.T @ columns, rows.abs().T @ columns.abs()
    plain = (grad_y.reshape(-1, case.outputs).T @ x.reshape(-1, case.inputs)).to(weight.dtype)
    kept = weight != 0
    dense = unpack_reference(packed.mask, found, packed.row_offsets, None, case.inputs)
    if kept.any():
        assert_within_budget(dense[kept], plain[kept], truth[kept], magnitude[kept])
    assert not dense[~kept].any()
    assert int((found != 0).sum()) <= int(kept.sum())


def test_gradcheck_of_the_values_on_the_reference() -> None:
    packed = restorelcc.pack(weight_of(Case("", (1,), 5, 70)))
    x, comp = torch.randn(3, 70).double(), torch.randn(70).double()

    def product(values: Tensor) -> Tensor:
        moved = restorelcc.PackedWeight(packed.mask, values.float(), packed.row_offsets, packed.shape)
        moved.values = values  # float64 is for the reference alone
        return ops.sparse_linear(x, moved, comp=comp, impl="reference")

    assert torch.autograd.gradcheck(product, (packed.values.detach().double().requires_grad_(),))


def test_the_values_gradient_reaches_through_the_compensation() -> None:
    case = Case("", (6,), 8, 70, groups=2)
    x, arguments = x_of(case), arguments_of(case)
    arguments["comp"] *= 100
    weight = weight_of(case)
    gradients_of_both = []
    for impl in ("auto", "reference"):
        packed = restorelcc.pack(weight)
        packed.values.requires_grad_()
        ops.sparse_linear(x, packed, impl=impl, **arguments).pow(2).sum().backward()
        gradients_of_both.append(packed.values.grad)
    assert torch.allclose(*gradients_of_both, rtol=1e-4, atol=1e-3)


def test_second_derivatives_with_values() -> None:
    packed = restorelcc.pack(weight_of(Case("", (3,), 5, 70)))
    x, v = torch.randn(3, 70, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    packed.values.requires_grad_()
    found = []
    for impl in ("auto", "reference"):
        y = ops.sparse_linear(x, packed, impl=impl)
        firsts = torch.autograd.grad(y, (x, packed.values), v, create_graph=True)
        loss = firsts[0].pow(2).sum() + firsts[1].pow(2).sum()
        found.append(torch.autograd.grad(loss, (x, v, packed.values)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2)


def test_int8_values_have_no_gradient() -> None:
    packed = restorelcc.pack(torch.eye(8), values="int8")
    x = torch.ones(2, 8)
    with pytest.raises(ValueError, match="int8"):
        torch.ops.restorelcc.sparse_linear_grad_values(x, x, packed.mask, packed.values, packed.row_offsets)


def test_no_graph_where_none_is_needed() -> None:
    packed, x = restorelcc.pack(torch.eye(8)), torch.ones(1, 8, requires_grad=True)
    assert ops.sparse_linear(x, packed).requires_grad
    assert not ops.sparse_linear(x.detach(), packed).requires_grad
    with torch.no_grad():
        assert not ops.sparse_linear(x, packed).requires_grad
    with torch.inference_mode():
        assert not ops.sparse_linear(x, packed).requires_grad
