"""sparse_linear, its 2:4 form and its gradients: ragged shapes, all value types, patterns, specials.

Budget, as in tests/cpp/sparse_linear_cases.h: |y − y64| <= 32 · 2⁻²⁴ S + the rounding of both, S = Σ|x||w| + |comp| +
|bias| + |residual|. x is never rounded to 8 bits on a device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from on_device.abi import Library
from on_device.problem import SLACK, TORCH, Output, Problem, Struct, normal, strided

VALUES = ("fp32", "bf16", "fp16", "int8")
DTYPES = ("fp32", "bf16", "fp16")
Pattern = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # n [N, 1], k [1, K] -> which survive


def half(n: Tensor, k: Tensor, random: torch.Generator) -> Tensor:
    """Half of the places at random, but row 0 full and row 1 empty."""
    chosen = torch.randint(0, 2, (n.shape[0], k.shape[1]), generator=random).bool()
    return torch.where(n == 0, torch.ones_like(chosen), torch.where(n == 1, torch.zeros_like(chosen), chosen))


def two_of_four(n: Tensor, k: Tensor, random: torch.Generator) -> Tensor:
    """Two of each four neighbours, sometimes fewer."""
    rows, columns = n.shape[0], k.shape[1]
    order = torch.rand(rows, -(-columns // 4), 4, generator=random).argsort(-1).argsort(-1)
    fewer = torch.rand(rows, -(-columns // 4), 1, generator=random) < 0.2
    return (order < torch.where(fewer, 1, 2)).reshape(rows, -1)[:, :columns]


PATTERNS: dict[str, Pattern] = {
    "none": lambda n, k, _: (n < 0) & (k < 0),
    "all": lambda n, k, _: (n >= 0) & (k >= 0),
    "first two of four": lambda n, k, _: (n >= 0) & (k % 4 < 2),
    "diagonal": lambda n, k, _: n == k,
    "from column 128": lambda n, k, _: (n >= 0) & (k >= 128),
    "last of each 512": lambda n, k, _: (n >= 0) & (k % 512 == 511),
}


@dataclass(frozen=True)
class LinearCase:
    """values, x: names of dtypes. groups: of compensations."""

    rows: int
    outputs: int
    columns: int
    values: str
    x: str
    groups: int = 0
    bias: bool = False
    residual: bool = False
    pattern: str = "half"
    special: bool = False  # Inf, NaN and zeros in W and x
    gap: int = 3  # between the rows of x

    def __str__(self) -> str:
        parts = [f"M={self.rows} N={self.outputs} K={self.columns} values={self.values} x={self.x}"]
        parts += [f"G={self.groups}"] if self.groups else []
        parts += [word for word in ("bias", "residual", "special") if getattr(self, word)]
        return " ".join([*parts, f"gap {self.gap}", self.pattern])


class Packed:
    """A weight in the bitmask format, on the host. dense: what it stands for, in float64."""

    def __init__(self, library: Library, weight: Tensor, values: str) -> None:
        rows, columns = weight.shape
        dtype, packed_dtype = library.dtypes[_name(weight)], library.dtypes[values]
        count = ctypes.c_int64()
        library.call(
            "rlcc_pack_count", weight.data_ptr(), rows, columns, columns, dtype, packed_dtype, ctypes.byref(count)
        )
        self.arrays = {
            "mask": torch.zeros(rows, -(-columns // 64), dtype=torch.int64),
            "values": torch.zeros(count.value, dtype=TORCH[values]),
            "row_offsets": torch.zeros(rows + 1, dtype=torch.int64),
        }
        if values == "int8":
            self.arrays["scales"] = torch.zeros(rows, -(-columns // 128), dtype=torch.bfloat16)
        self.numbers = {
            "rows": rows, "columns": columns, "value_count": count.value, "dtype": packed_dtype, "trusted": 1,
        }  # fmt: skip
        a = self.arrays
        library.call(
            "rlcc_pack", weight.data_ptr(), rows, columns, columns, dtype, packed_dtype, a["mask"].data_ptr(),
            a["values"].data_ptr(), count.value, a["row_offsets"].data_ptr(),
            a["scales"].data_ptr() if values == "int8" else None,
        )  # fmt: skip
        self.struct = library.struct("rlcc_packed_weight", {**self.numbers, **a})
        library.call("rlcc_packed_validate", library.address(self.struct))
        unpacked = torch.zeros(rows, columns, dtype=torch.float32 if values == "int8" else weight.dtype)
        library.call("rlcc_unpack", library.address(self.struct), unpacked.data_ptr(), columns)
        self.dense = unpacked.double()
        shifts = torch.arange(64)
        bits = (self.arrays["mask"][:, :, None] >> shifts & 1).bool().reshape(rows, -1)
        self.survives = bits[:, :columns]

    def fields(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Of a params struct that holds the weight."""
        return (
            {f"weight.{name}": value for name, value in self.numbers.items()},
            {f"weight.{name}": tensor for name, tensor in self.arrays.items()},
        )

    def places(self) -> Tensor:
        """[survivors]: where each is in `values`, row after row."""
        before = self.survives.cumsum(1) - 1
        return (self.arrays["row_offsets"][:-1, None] + before)[self.survives]

    def for_tensor_cores(self, library: Library) -> Struct:
        """The repacking for mma.sp; at most two of each four columns survive."""
        values, metadata = ctypes.c_int64(), ctypes.c_int64()
        weight = library.address(self.struct)
        library.call("rlcc_cuda_pack_2to4_counts", weight, ctypes.byref(values), ctypes.byref(metadata))
        arrays = {
            "values": torch.zeros(values.value, dtype=self.arrays["values"].dtype),
            "metadata": torch.zeros(metadata.value, dtype=torch.int32),
        }
        library.call(
            "rlcc_cuda_pack_2to4", weight, arrays["values"].data_ptr(), values.value, arrays["metadata"].data_ptr(),
            metadata.value,
        )  # fmt: skip
        numbers = {name: self.numbers[name] for name in ("rows", "columns", "dtype")}
        return Struct("rlcc_cuda_weight_2to4", numbers, arrays)


def _name(tensor: Tensor) -> str:
    return next(name for name, dtype in TORCH.items() if dtype == tensor.dtype)


def pruned(case: LinearCase, random: torch.Generator) -> Tensor:
    """W [N, K] of the dtype that is packed."""
    dtype = torch.float32 if case.values == "int8" else TORCH[case.values]
    weight = normal(random, case.outputs, case.columns, 0, dtype)
    n, k = torch.arange(case.outputs)[:, None], torch.arange(case.columns)[None, :]
    pattern = PATTERNS.get(case.pattern) or {"half": half, "2:4": two_of_four}[case.pattern]
    weight[~pattern(n, k, random)] = 0
    if case.special and case.values != "int8":
        for i, value in enumerate(_SPECIALS):
            weight[(i + 2) % case.outputs, 100 * i % case.columns] = value
    return weight.contiguous()


_SPECIALS = (float("inf"), float("-inf"), float("nan"), 0.0, -0.0)


def _seed(case: object) -> torch.Generator:
    return torch.Generator().manual_seed(sum(str(case).encode()) * 7919 % 2**31)


def forward(library: Library, case: LinearCase, op: str = "sparse_linear") -> Problem:
    """y = x Wᵀ + comp_rows[comp_index] + bias + residual."""
    random = _seed(case)
    packed = Packed(library, pruned(case, random), case.values)
    M, N, K, dtype = case.rows, case.outputs, case.columns, TORCH[case.x]
    x, residual = normal(random, M, K, case.gap, dtype), normal(random, M, N, 1, dtype)
    if case.special:
        for m in range(M):
            x[m, (77 * m + 3) % K] = _SPECIALS[m % 5]
    y, inside = strided(M, N, 5, dtype)
    numbers, arrays = packed.fields()
    numbers |= {"x_rows": M, "x_stride": K + case.gap, "x_dtype": library.dtypes[case.x], "y_stride": N + 5}
    arrays |= {"x": x, "y": y}
    sums = x[:, :K].double().abs() @ packed.dense.abs().T
    if case.groups:
        arrays["comp_rows"] = torch.randn(case.groups, N, generator=random)
        index = torch.randint(0, case.groups, (M,), generator=random)
        if case.groups > 1:
            arrays["comp_index"] = index
        numbers["groups"] = case.groups
        sums += arrays["comp_rows"].double().abs()[index]
    if case.bias:
        arrays["bias"] = torch.randn(N, generator=random)
        sums += arrays["bias"].double().abs()
    if case.residual:
        arrays["residual"] = residual
        numbers["residual_stride"] = N + 1
        sums += residual[:, :N].double().abs()
    return Problem(
        op, str(case), Struct("rlcc_sparse_linear_params", numbers, arrays), {"y": Output(SLACK * sums, inside)},
        extra=(packed.for_tensor_cores(library),) if op == "sparse_linear_2to4" else (), reference="sparse_linear",
    )  # fmt: skip


def grad_x(library: Library, case: LinearCase) -> Problem:
    """grad_x = grad_y W; case.x is the dtype of both."""
    random = _seed(case)
    packed = Packed(library, pruned(case, random), case.values)
    M, N, K, dtype = case.rows, case.outputs, case.columns, TORCH[case.x]
    grad_y = normal(random, M, N, 2, dtype)
    result, inside = strided(M, K, 7, dtype)
    numbers, arrays = packed.fields()
    numbers |= {"y_rows": M, "grad_y_stride": N + 2, "dtype": library.dtypes[case.x], "grad_x_stride": K + 7}
    arrays |= {"grad_y": grad_y, "grad_x": result}
    allowed = SLACK * (grad_y[:, :N].double().abs() @ packed.dense.abs())
    params = Struct("rlcc_sparse_linear_grad_x_params", numbers, arrays)
    return Problem("sparse_linear_grad_x", str(case), params, {"grad_x": Output(allowed, inside)})


def grad_values(library: Library, case: LinearCase) -> Problem:
    """The gradient of the survivors; what lies between the rows of values stays."""
    random = _seed(case)
    packed = Packed(library, pruned(case, random), case.values)
    M, N, K, dtype = case.rows, case.outputs, case.columns, TORCH[case.x]
    x, grad_y = normal(random, M, K, case.gap, dtype), normal(random, M, N, 4, dtype)
    result = torch.full_like(packed.arrays["values"], 7.0)
    inside = torch.zeros(result.shape, dtype=torch.bool)
    inside[packed.places()] = True
    numbers, arrays = packed.fields()
    numbers |= {
        "rows": M, "x_stride": K + case.gap, "grad_y_stride": N + 4, "dtype": library.dtypes[case.x],
    }  # fmt: skip
    arrays |= {"x": x, "grad_y": grad_y, "grad_values": result}
    sums = grad_y[:, :N].double().abs().T @ x[:, :K].double().abs()
    params = Struct("rlcc_sparse_linear_grad_values_params", numbers, arrays)
    return Problem(
        "sparse_linear_grad_values", str(case), params, {"grad_values": Output(SLACK * sums[packed.survives], inside)}
    )


# ---- Which


def _ragged(rows: tuple[int, ...], outputs: tuple[int, ...], columns: tuple[int, ...]) -> Iterator[LinearCase]:
    """All combinations; what is added, and the dtype of x, take turns."""
    for turn, (values, K, N, M) in enumerate(product(VALUES, columns, outputs, rows)):
        yield LinearCase(
            M, N, K, values, DTYPES[turn % 3], groups=M % 4, bias=M % 3 != 0, residual=N != 17, gap=(3, 0, 8)[turn % 3]
        )


def forward_cases(quick: bool) -> Iterator[LinearCase]:
    if quick:
        chosen = list(_ragged((1, 2, 5, 17), (1, 17, 70), (1, 65, 449, 1134)))
        yield from chosen[:: 5 if len(chosen) > 60 else 1]
        yield LinearCase(33, 40, 130, "bf16", "bf16", bias=True)  # tensor cores
        yield LinearCase(70, 129, 96, "fp16", "fp16", groups=3)
        yield LinearCase(20, 65, 260, "int8", "bf16", residual=True)
        yield LinearCase(0, 3, 5, "fp32", "fp32")
    else:
        rows = (0, 1, 2, 5, 16, 17, 64, 65, 129, 300)
        yield from _ragged(rows, (1, 2, 17, 129, 520), (1, 2, 63, 64, 129, 449, 576, 1134, 2304))
        for values, M in product(VALUES, (1, 3, 16, 17, 200, 512)):  # real layers, aligned, and split over blocks
            same = "bf16" if values == "int8" else values
            yield LinearCase(M, 1536, 576, values, same, bias=True, gap=0)
            yield LinearCase(M, 576, 1536, values, same, groups=4, residual=True, gap=0)
            yield LinearCase(M, 5, 9000, values, same)
        for values, M in product(("bf16", "int8"), (1, 16, 64)):
            yield LinearCase(M, 4096, 4096, values, "bf16", bias=True, gap=0)
    for pattern, values in product(PATTERNS, VALUES if not quick else ("bf16", "int8")):
        yield from (LinearCase(M, 6, 1300, values, "bf16", pattern=pattern) for M in ((1,) if quick else (1, 3, 40)))
    for dtype in DTYPES:
        yield from (LinearCase(M, 12, 600, dtype, dtype, special=True) for M in ((5,) if quick else (1, 5, 40)))


def sparse_cases(quick: bool) -> Iterator[LinearCase]:
    """Of the 2:4 form: 16-bit values of x's dtype."""
    rows, shapes = (1, 17, 70, 300), ((1, 4), (17, 66), (129, 64), (130, 200), (64, 576), (300, 1134), (1024, 4096))
    for turn, (M, (N, K), dtype) in enumerate(product(rows, shapes, ("bf16", "fp16"))):
        if quick and (M * N * K > 300_000 or turn % 3):
            continue
        yield LinearCase(
            M, N, K, dtype, dtype, groups=M % 4, bias=turn % 2 == 0, residual=turn % 3 == 0, gap=turn % 4, pattern="2:4"
        )


def gradient_cases(quick: bool) -> Iterator[LinearCase]:
    """Of both gradients; int8 values have one for x only."""
    rows, outputs, columns = (1, 5, 33, 130), (1, 17, 130), (1, 65, 200, 576)
    for turn, (values, M, N, K) in enumerate(product(VALUES, rows, outputs, columns)):
        if quick and (M * N * K > 600_000 or turn % 5):
            continue
        yield LinearCase(M, N, K, values, DTYPES[turn // 2 % 3] if turn % 2 else _same(values), gap=turn % 4)
    if not quick:
        for values, M in product(VALUES, (16, 256)):
            yield LinearCase(M, 1536, 576, values, _same(values), gap=0)
            yield LinearCase(M, 576, 1536, values, _same(values), gap=0)


def _same(values: str) -> str:
    return "bf16" if values == "int8" else values


def problems(library: Library, op: str, quick: bool) -> Iterator[Callable[[], Problem]]:
    """Of one of this file's ops, made when asked for."""
    makers: dict[str, tuple[Callable[..., Problem], Callable[[bool], Iterator[LinearCase]]]] = {
        "sparse_linear": (forward, forward_cases),
        "sparse_linear_2to4": (lambda at, case: forward(at, case, "sparse_linear_2to4"), sparse_cases),
        "sparse_linear_grad_x": (grad_x, gradient_cases),
        "sparse_linear_grad_values": (grad_values, gradient_cases),
    }
    make, cases = makers[op]
    for case in cases(quick):
        if op == "sparse_linear_grad_values" and case.values == "int8":
            continue
        yield _bound(make, library, case)


def _bound(make: Callable[..., Problem], library: Library, case: Any) -> Callable[[], Problem]:
    return lambda: make(library, case)


OPS = ("sparse_linear", "sparse_linear_2to4", "sparse_linear_grad_x", "sparse_linear_grad_values")
