"""Loads the compiled ops, and tells torch what it must know of them beside their CPU kernels.

Lives here: loading, `build_info`, the fake kernels (shapes without data) and the gradients. The
schemas stand in restorelcc_ext/library.cpp, the equations in restorelcc/params.h. What belongs to the cross entropies
is in cross_entropy_gradients.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restorelcc import cross_entropy_gradients

_LIBRARY = Path(__file__).parent / "_lib" / "librestorelcc_torch.so"
_why_missing: str | None = None

try:
    from restorelcc import _C

    torch.ops.load_library(str(_LIBRARY))  # type: ignore[no-untyped-call]
except (ImportError, OSError) as error:
    _why_missing = str(error)


def available() -> bool:
    """Whether the compiled ops are there (`impl="reference"` runs either way)."""
    return _why_missing is None


def require() -> None:
    """Raise ImportError, in one sentence, where the compiled ops are missing."""
    if _why_missing is not None:
        raise ImportError(
            f"the compiled ops of restorelcc are not available ({_why_missing}); build them with "
            "`pip install --no-build-isolation .`, or pass impl='reference'"
        )


def package_version() -> str:
    """The version of the installed package; CMakeLists.txt is the one place that sets it."""
    try:
        return metadata.version("restorelcc")
    except metadata.PackageNotFoundError:
        return "0+not.installed"


def build_info() -> dict[str, Any]:
    """What this installation is made of.

    Keys: `native` (bool), `backends`, `isa` (the one in use, None without the compiled ops),
    `cuda` (bool), `compiler`, `versions` (restorelcc, torch), and what the core reports of itself.
    """
    info: dict[str, Any] = {"native": available(), "backends": [], "isa": None, "compiler": None}
    if available():
        info.update(_C.build_info())
        info["isa"] = _C.isa()
    info["backends"] = [*info["backends"], "reference"]
    info["cuda"] = "cuda" in info["backends"]
    info["versions"] = {"restorelcc": package_version(), "torch": torch.__version__}
    return info


def check_sparse_linear(
    x: Tensor,
    outputs: int,
    columns: int,
    comp_rows: Tensor | None,
    comp_index: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    """The shape rules of sparse_linear, for what runs without the compiled op's own checks."""

    def require_that(condition: bool, sentence: str) -> None:
        torch._check_value(condition, lambda: sentence)  # type: ignore[no-untyped-call]

    if x.dim() < 1:
        raise ValueError(f"x has shape []; its last dimension must be {columns}")
    rows = math.prod(x.shape[:-1])  # of symbols too: numel() would make numbers of them
    require_that(
        x.shape[-1] == columns,
        f"x has shape {list(x.shape)}; its last dimension must be {columns}",
    )
    if comp_rows is not None:
        require_that(
            comp_rows.dim() == 2 and comp_rows.shape[-1] == outputs,
            f"comp_rows has shape {list(comp_rows.shape)}; it must be [G, {outputs}]",
        )
        require_that(
            comp_index is not None or comp_rows.shape[0] == 1,
            f"{comp_rows.shape[0]} compensations need a comp_index that picks one for each row of x",
        )
    if comp_index is not None:
        require_that(
            comp_rows is not None,
            "comp_index is set, but there is no compensation to pick from",
        )
        require_that(
            comp_index.dtype == torch.int64, f"comp_index has dtype {comp_index.dtype}; it must be torch.int64"
        )
        require_that(
            comp_index.numel() == rows,
            f"comp_index has {comp_index.numel()} entries; x has {rows} rows, and each needs one",
        )
    if bias is not None:
        require_that(
            bias.dim() == 1 and bias.shape[0] == outputs, f"bias has shape {list(bias.shape)}; it must be [{outputs}]"
        )
    if residual is not None:
        wanted = [*x.shape[:-1], outputs]
        require_that(
            residual.dim() == len(wanted) and all(a == b for a, b in zip(residual.shape, wanted, strict=True)),
            f"residual has shape {list(residual.shape)}; it must be {wanted}",
        )
        require_that(residual.dtype == x.dtype, f"residual has dtype {residual.dtype}; it must be {x.dtype} like x")


def _sparse_linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mask, values, row_offsets, scales, columns, comp_rows, comp_index, bias, _, trusted, _ = inputs
    # x is only needed for the gradient of the values, and keeping it can cost more than the op.
    kept_x = x if values.requires_grad else None
    ctx.save_for_backward(kept_x, mask, values, row_offsets, scales, comp_index)
    ctx.columns, ctx.trusted = columns, trusted
    ctx.comp_rows = None if comp_rows is None else (comp_rows.shape[0], comp_rows.dtype)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _sparse_linear_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, mask, values, row_offsets, scales, comp_index = ctx.saved_tensors
    # Arguments left at their defaults at the end of a call are not in needs_input_grad.
    needs = [*ctx.needs_input_grad, *[False] * 12]
    grad_x = grad_values = grad_comp_rows = grad_bias = None
    if needs[0]:
        grad_x = torch.ops.restorelcc.sparse_linear_grad_x(
            grad_y, mask, values, row_offsets, scales, ctx.columns, ctx.trusted
        )
    if needs[2]:
        grad_values = torch.ops.restorelcc.sparse_linear_grad_values(grad_y, x, mask, values, row_offsets, ctx.trusted)
    if needs[6] or needs[8]:
        groups, dtype = ctx.comp_rows if needs[6] else (0, None)
        found = torch.ops.restorelcc.sparse_linear_grad_comp(
            grad_y, comp_index if needs[6] else None, groups, needs[8]
        )
        grad_comp_rows = found[0].to(dtype) if needs[6] else None
        grad_bias = found[1].to(ctx.bias_dtype) if needs[8] else None
    grad_residual = grad_y if needs[9] else None
    return (grad_x, None, grad_values, None, None, None, grad_comp_rows, None, grad_bias, grad_residual, None, None)


def _grad_x_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, mask, values, row_offsets, scales, columns, trusted = inputs
    ctx.save_for_backward(grad_y if values.requires_grad else None, mask, values, row_offsets, scales)
    ctx.columns, ctx.trusted = columns, trusted


def _grad_x_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # grad_x = grad_y W is linear in grad_y, so its gradient is grad Wᵀ: sparse_linear again. It is linear in W too.
    grad_y, mask, values, row_offsets, scales = ctx.saved_tensors
    needs = [*ctx.needs_input_grad, *[False] * 7]
    grad_grad_y = grad_values = None
    if needs[0]:
        grad_grad_y = torch.ops.restorelcc.sparse_linear(
            grad, mask, values, row_offsets, scales, ctx.columns, trusted=ctx.trusted, exact_x=True
        )
    if needs[2]:
        grad_values = torch.ops.restorelcc.sparse_linear_grad_values(
            grad_y, grad, mask, values, row_offsets, ctx.trusted
        )
    return (grad_grad_y, None, grad_values, None, None, None, None)


def _grad_values_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, x, mask, _, row_offsets, trusted = inputs
    ctx.save_for_backward(grad_y, x, mask, row_offsets)
    ctx.trusted = trusted


def _grad_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Bilinear in grad_y and x; `grad` takes the place of the weight's values. The values themselves do not enter.
    grad_y, x, mask, row_offsets = ctx.saved_tensors
    weight, columns = (mask, grad.contiguous(), row_offsets, None), x.shape[-1]
    grad_grad_y = torch.ops.restorelcc.sparse_linear(x, *weight, columns, trusted=ctx.trusted)
    grad_x = torch.ops.restorelcc.sparse_linear_grad_x(grad_y, *weight, columns, ctx.trusted)
    return (grad_grad_y, grad_x, None, None, None, None)


def _grad_comp_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_y, comp_index, ctx.groups, ctx.with_bias = (*inputs, False)[:4]
    ctx.save_for_backward(comp_index)
    ctx.shape, ctx.dtype = grad_y.shape, grad_y.dtype


def _grad_comp_backward(
    ctx: Any, grad_comp_rows: Tensor, grad_bias: Tensor
) -> tuple[Tensor | None, None, None, None]:
    # Sums over rows: each row's gradient is that of its group's sum, and of the sum of all.
    (comp_index,) = ctx.saved_tensors
    terms = []
    if ctx.groups > 0:
        terms.append(grad_comp_rows[0 if comp_index is None else comp_index.reshape(-1)])
    if ctx.with_bias:
        terms.append(grad_bias)
    if not terms or not ctx.needs_input_grad[0]:
        return None, None, None, None
    total = sum(terms[1:], terms[0]).to(ctx.dtype)
    rows = total.expand(ctx.shape[:-1].numel(), ctx.shape[-1])
    return rows.reshape(ctx.shape), None, None, None


def _fake_sparse_linear(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    scales: Tensor | None,
    columns: int,
    comp_rows: Tensor | None = None,
    comp_index: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    trusted: bool = False,
    exact_x: bool = False,
) -> Tensor:
    check_sparse_linear(x, mask.shape[0], columns, comp_rows, comp_index, bias, residual)
    return x.new_empty([*x.shape[:-1], mask.shape[0]])


def _fake_sparse_linear_grad_x(
    grad_y: Tensor,
    mask: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    scales: Tensor | None,
    columns: int,
    trusted: bool = False,
) -> Tensor:
    return grad_y.new_empty([*grad_y.shape[:-1], columns])


def _fake_sparse_linear_grad_values(
    grad_y: Tensor, x: Tensor, mask: Tensor, values: Tensor, row_offsets: Tensor, trusted: bool = False
) -> Tensor:
    return values.new_empty(values.shape)


def _fake_sparse_linear_grad_comp(
    grad_y: Tensor, comp_index: Tensor | None, groups: int, with_bias: bool = False
) -> tuple[Tensor, Tensor]:
    columns = grad_y.shape[-1]
    return (
        grad_y.new_empty([groups, columns], dtype=torch.float32),
        grad_y.new_empty([columns if with_bias else 0], dtype=torch.float32),
    )


def _fake_head_moments(z_dense: Tensor, z_pruned: Tensor, total: Tensor, gram: Tensor) -> None:
    return None


def _fake_pack(weight: Tensor, int8: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    survivors = torch.library.get_ctx().new_dynamic_size()  # known only from the data
    return (
        weight.new_empty([rows, (columns + 63) // 64], dtype=torch.int64),
        weight.new_empty([survivors], dtype=torch.int8 if int8 else weight.dtype),
        weight.new_empty([rows + 1], dtype=torch.int64),
        weight.new_empty([rows, (columns + 127) // 128] if int8 else [0], dtype=torch.bfloat16),
    )


def _fake_unpack(mask: Tensor, values: Tensor, row_offsets: Tensor, scales: Tensor | None, columns: int) -> Tensor:
    dtype = torch.float32 if values.dtype == torch.int8 else values.dtype
    return values.new_empty([mask.shape[0], columns], dtype=dtype)


def _fake_packed_validate(
    mask: Tensor, values: Tensor, row_offsets: Tensor, scales: Tensor | None, columns: int
) -> None:
    return None


def _register() -> None:
    fakes: dict[str, Callable[..., Any]] = {
        "sparse_linear": _fake_sparse_linear,
        "sparse_linear_inference": _fake_sparse_linear,
        "sparse_linear_grad_x": _fake_sparse_linear_grad_x,
        "sparse_linear_grad_values": _fake_sparse_linear_grad_values,
        "sparse_linear_grad_comp": _fake_sparse_linear_grad_comp,
        "head_moments_": _fake_head_moments,
        "pack": _fake_pack,
        "unpack": _fake_unpack,
        "packed_validate": _fake_packed_validate,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"restorelcc::{name}", fake)
    torch.library.register_autograd(
        "restorelcc::sparse_linear", _sparse_linear_backward, setup_context=_sparse_linear_context
    )
    torch.library.register_autograd("restorelcc::sparse_linear_grad_x", _grad_x_backward, setup_context=_grad_x_context)
    torch.library.register_autograd(
        "restorelcc::sparse_linear_grad_values", _grad_values_backward, setup_context=_grad_values_context
    )
    torch.library.register_autograd(
        "restorelcc::sparse_linear_grad_comp", _grad_comp_backward, setup_context=_grad_comp_context
    )
    cross_entropy_gradients.register()


if available():
    _register()
