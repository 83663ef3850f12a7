"""What torch asks of an op: schemas, fake kernels, tracing, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_cases import BF16, F32, Case, arguments_of, weight_of, x_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

import restorelcc
from restorelcc import SparseLinear, ops

OPS = torch.ops.restorelcc
SPARSE_LINEAR = (
    "(Tensor x, Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, "
    "SymInt columns, Tensor? comp_rows=None, Tensor? comp_index=None, Tensor? bias=None, Tensor? residual=None, "
    "bool trusted=False, bool exact_x=False) -> Tensor"
)
SCHEMAS = {
    "sparse_linear": SPARSE_LINEAR,
    "sparse_linear_inference": SPARSE_LINEAR,
    "sparse_linear_grad_x": "(Tensor grad_y, Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, "
    "SymInt columns, bool trusted=False) -> Tensor",
    "sparse_linear_grad_values": "(Tensor grad_y, Tensor x, Tensor mask, Tensor values, Tensor row_offsets, "
    "bool trusted=False) -> Tensor",
    "sparse_linear_grad_comp": "(Tensor grad_y, Tensor? comp_index, SymInt groups, bool with_bias=False) -> "
    "(Tensor grad_comp_rows, Tensor grad_bias)",
    "head_moments_": "(Tensor z_dense, Tensor z_pruned, Tensor(a!) total, Tensor(b!) gram) -> ()",
    "pack": "(Tensor weight, bool int8=False) -> (Tensor mask, Tensor values, Tensor row_offsets, Tensor scales)",
    "unpack": "(Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, SymInt columns) -> Tensor",
    "packed_validate": "(Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, SymInt columns) -> ()",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    assert str(getattr(OPS, name).default._schema) == f"restorelcc::{name}{SCHEMAS[name]}"


def packed_of(dtype: torch.dtype = F32, values: str | None = None) -> restorelcc.PackedWeight:
    return restorelcc.pack(weight_of(Case("", (1,), 12, 70, weight_dtype=dtype)), values=values)


def sparse_linear_samples() -> list[tuple[Any, ...]]:
    plain, full = packed_of(), packed_of(BF16)
    rows, index = torch.randn(2, 12, requires_grad=True), torch.tensor([0, 1, 1, 0, 0, 1])
    return [
        (torch.randn(4, 70), *plain.tensors),
        (torch.randn(2, 3, 70, requires_grad=True), *plain.tensors, rows, index, torch.randn(12, requires_grad=True),
         torch.randn(2, 3, 12, requires_grad=True), True),
        (torch.randn(2, 3, 70).bfloat16().requires_grad_(), *full.tensors, rows, index.view(2, 3)),
        (torch.randn(0, 70, requires_grad=True), *plain.tensors),
        (torch.randn(4, 70, requires_grad=True), *packed_of(values="int8").tensors),
        (torch.randn(4, 70, requires_grad=True), plain.mask, plain.values.clone().requires_grad_(),
         *plain.tensors[2:]),
    ]  # fmt: skip


@pytest.mark.parametrize("sample", range(6))
def test_opcheck_sparse_linear(sample: int) -> None:
    torch.library.opcheck(OPS.sparse_linear, sparse_linear_samples()[sample])


@pytest.mark.parametrize("sample", range(6))
def test_opcheck_its_twin_without_gradients(sample: int) -> None:
    detached = [v.detach() if isinstance(v, Tensor) else v for v in sparse_linear_samples()[sample]]
    torch.library.opcheck(OPS.sparse_linear_inference, tuple(detached))


def test_which_twin_is_called() -> None:
    called: list[Any] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    packed, x = packed_of(), torch.randn(2, 70)
    with Names():
        ops.sparse_linear(x, packed)
        ops.sparse_linear(x, packed, bias=torch.zeros(12, requires_grad=True))
        ops.sparse_linear(x.requires_grad_(), packed)
        with torch.no_grad():
            ops.sparse_linear(x, packed)
    plain, twin = OPS.sparse_linear.default, OPS.sparse_linear_inference.default
    assert [func for func in called if func in (plain, twin)] == [twin, plain, plain, twin]


def test_opcheck_the_others() -> None:
    packed, weight = packed_of(), weight_of(Case("", (1,), 12, 70))
    z = torch.randn(5, 2, 4)
    moments = (torch.zeros(2, 4).double(), torch.zeros(2, 4, 4).double())
    torch.library.opcheck(OPS.sparse_linear_grad_x, (torch.randn(4, 12, requires_grad=True), *packed.tensors))
    grad_y, x = torch.randn(4, 12, requires_grad=True), torch.randn(4, 70, requires_grad=True)
    torch.library.opcheck(OPS.sparse_linear_grad_values, (grad_y, x, *packed.tensors[:3]))
    for arguments in ((torch.tensor([1, 0, 1, 2]), 4, True), (None, 1), (None, 0, True)):
        torch.library.opcheck(OPS.sparse_linear_grad_comp, (grad_y, *arguments))
    torch.library.opcheck(OPS.head_moments_, (z, z + 1, *moments))
    torch.library.opcheck(OPS.pack, (weight,))
    torch.library.opcheck(OPS.pack, (weight, True))
    torch.library.opcheck(OPS.unpack, packed.tensors)
    torch.library.opcheck(OPS.packed_validate, packed.tensors)


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    packed = packed_of()
    x = torch.randn(2, 3, 70)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        tensors = [mode.from_tensor(t) for t in (packed.mask, packed.values, packed.row_offsets)]
        weight = (*tensors, None, 70)
        y = OPS.sparse_linear(mode.from_tensor(x), *weight)
        assert (y.shape, y.dtype) == ((2, 3, 12), F32)
        assert OPS.sparse_linear_grad_x(y.bfloat16(), *weight).shape == (2, 3, 70)
        assert OPS.sparse_linear_grad_values(y, mode.from_tensor(x), *tensors).shape == packed.values.shape
        grad_comp_rows, grad_bias = OPS.sparse_linear_grad_comp(y.bfloat16(), None, 1, True)
        assert (grad_comp_rows.shape, grad_comp_rows.dtype, grad_bias.shape) == ((1, 12), F32, (12,))
        assert OPS.unpack(*weight).shape == (12, 70)
        mask, values, row_offsets, scales = OPS.pack(torch.empty(12, 70, dtype=BF16))
        assert (mask.shape, mask.dtype) == ((12, 2), torch.int64)
        assert (scales.shape, scales.dtype) == ((0,), BF16)
        assert (row_offsets.shape, values.dtype, values.dim()) == ((13,), BF16, 1)
        with pytest.raises(ValueError, match=r"x has shape \[2, 69\]; its last dimension must be 70"):
            OPS.sparse_linear(torch.empty(2, 69), *weight)


def full_call(x: Tensor, packed: restorelcc.PackedWeight, arguments: dict[str, Any]) -> Tensor:
    return torch.sin(ops.sparse_linear(torch.cos(x), packed, **arguments))


def assert_compiles(backend: str, dynamic: bool | None) -> None:
    case = Case("", (2, 5), 12, 70, groups=3, bias=F32, residual=True)
    packed, x, arguments = packed_of(), x_of(case), arguments_of(case)
    for tensor in (x, arguments["comp"]):
        tensor.requires_grad_()
    compiled = torch.compile(full_call, backend=backend, fullgraph=True, dynamic=dynamic)
    expected = full_call(x, packed, arguments)
    found = compiled(x, packed, arguments)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    wanted = torch.autograd.grad(expected.sum(), (x, arguments["comp"]))
    for ours, theirs in zip(torch.autograd.grad(found.sum(), (x, arguments["comp"])), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_into_one_graph(dynamic: bool | None) -> None:
    assert_compiles("aot_eager", dynamic)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")  # torch's own, inside inductor
def test_compiles_with_inductor() -> None:
    assert_compiles("inductor", None)


@pytest.mark.parametrize("grad", [False, True])
def test_the_module_compiles_into_one_graph(grad: bool) -> None:
    module = SparseLinear(packed_of(), torch.randn(12), comp=torch.randn(70))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 70)
    with torch.set_grad_enabled(grad):
        assert torch.allclose(compiled(x), module(x), rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            module.comp.mul_(2)
        assert torch.allclose(compiled(x), module(x), rtol=1e-5, atol=1e-6)
