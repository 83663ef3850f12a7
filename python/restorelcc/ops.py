"""The ops, as functions of tensors. Equations first; `impl="reference"` runs without the compiled ops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from restorelcc import _native
from restorelcc.cross_entropy import head_contrast, linear_cross_entropy
from restorelcc.head_moments import HeadMoments, head_moments
from restorelcc.packed import PackedTensors, PackedWeight, unpack_reference

__all__ = [
    "HeadMoments", "compensation_rows", "head_contrast", "head_moments", "linear_cross_entropy", "sparse_linear",
]  # fmt: skip


def sparse_linear(
    x: Tensor,
    packed: PackedWeight,
    *,
    comp: Tensor | None = None,
    comp_index: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """y = x Wᵀ + P[comp_index] + bias + residual,  P = comp Wᵀ  (the injection of arXiv 2510.21834)

    The same number as F.linear(x + comp[comp_index], W, bias) + residual, but comp never meets x:
    P is formed in float32 and added to the float32 sum, so a small comp keeps all its digits.

    x           [..., K]  float32, bfloat16 or float16; rows may be strided
    packed      W [N, K]  its values get a gradient where they ask for one (not int8 ones): that of the surviving
                          weights under the mask, of `packed.values`' own shape and dtype
    comp        [K] or [G, K]  added to the input of every row; computed in float32
    comp_index  int64 [M] (M rows of x) or x's leading shape; which of the G each row takes; not needed when G = 1
    bias        [N]  float32, bfloat16 or float16
    residual    [..., N]  of x's dtype
    returns     [..., N]  of x's dtype

    With int8 values and at most 16 rows x is rounded to 8 bits as well, per row and 128 columns:
    |error| ≤ Σ_k |W[n, k]| max|x| / 254, the maximum over k's group of columns.

    impl="auto" is the compiled op (ImportError where it is not built); gradients flow to x, comp,
    bias, residual and the values. impl="reference" is plain torch on the unpacked weight: float64 throughout,
    rounded once to x's dtype, which may then also be float64.
    ValueError for shapes, dtypes, devices and indices that do not fit.
    """
    _check_comp(comp, packed)
    if impl == "reference":
        return _sparse_linear_reference(x, packed, comp, comp_index, bias, residual)
    if impl != "auto":
        raise ValueError(f"impl is {impl!r}; it must be 'auto' or 'reference'")
    _native.require()
    rows = None if comp is None else compensation_rows(comp, packed)
    return sparse_linear_native(x, packed.tensors, rows, comp_index, bias, residual, trusted=packed.trusted)


def compensation_rows(comp: Tensor, packed: PackedWeight) -> Tensor:
    """P = comp Wᵀ, [G, N] float32: what the injection of comp ([K] or [G, K]) adds to each output row.

    One sparse_linear of comp itself, so the gradient of comp runs through the same kernels.
    """
    _check_comp(comp, packed)
    _native.require()
    vectors = comp.float().reshape(-1, packed.shape[1])
    return sparse_linear_native(vectors, packed.tensors, trusted=packed.trusted, exact_x=True)


def sparse_linear_native(
    x: Tensor,
    weight: PackedTensors,
    comp_rows: Tensor | None = None,
    comp_index: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    trusted: bool,
    exact_x: bool = False,
) -> Tensor:
    """The compiled op itself; comp_rows is P [G, N], trusted says that the weight has been validated.

    exact_x: int8 values meet x as it is, not rounded to 8 bits; what P itself is computed with.
    """
    op = torch.ops.restorelcc.sparse_linear
    # torch calls Python to record the gradient of an op even where nothing needs one, which costs more than the op
    # on a small weight (measured: 10 of 30 us); so there its twin without a gradient is called.
    if forward_ad._current_level < 0 and not (
        torch.is_grad_enabled() and _any_gradient(x, weight, comp_rows, bias, residual)
    ):
        op = torch.ops.restorelcc.sparse_linear_inference
    y: Tensor = op.default(x, *weight, comp_rows, comp_index, bias, residual, trusted, exact_x)
    return y


def _any_gradient(x: Tensor, weight: PackedTensors, *others: Tensor | None) -> bool:
    return x.requires_grad or weight[1].requires_grad or any(t is not None and t.requires_grad for t in others)


def _check_comp(comp: Tensor | None, packed: PackedWeight) -> None:
    if comp is not None and (comp.dim() not in (1, 2) or comp.shape[-1] != packed.shape[1]):
        columns = packed.shape[1]
        raise ValueError(f"comp has shape {list(comp.shape)}; it must be [{columns}] or [G, {columns}]")


def _sparse_linear_reference(
    x: Tensor,
    packed: PackedWeight,
    comp: Tensor | None,
    comp_index: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; it must be a floating point type")
    outputs, columns = packed.shape
    weight = (unpack_reference(*packed.tensors) if packed.values.requires_grad else packed.unpack()).double()
    rows = None if comp is None else comp.double().reshape(-1, columns) @ weight.T
    _native.check_sparse_linear(x, outputs, columns, rows, comp_index, bias, residual)
    y = x.double() @ weight.T
    if rows is not None:
        index = torch.zeros(1, dtype=torch.int64) if comp_index is None else comp_index
        groups = rows.shape[0]
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < groups:
            raise ValueError(
                f"comp_index spans {int(index.min())} to {int(index.max())}; it must stay in [0, {groups})"
            )
        picked = rows[index.reshape(-1)]
        y = y + (picked if comp_index is None else picked.reshape(y.shape))
    if bias is not None:
        y = y + bias.double()
    if residual is not None:
        y = y + residual.double()
    return y.to(x.dtype)
