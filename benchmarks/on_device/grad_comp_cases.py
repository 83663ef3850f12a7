"""sparse_linear_grad_comp: |sum − sum64| <= 32 · 2⁻²⁴ Σ|grad_y| over the rows of a group, or over all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from on_device.abi import Library
from on_device.problem import SLACK, TORCH, Output, Problem, Struct, normal


@dataclass(frozen=True)
class GradCompCase:
    """grad_y [M, N] with `gap` elements between the rows. groups 0: of the bias alone."""

    rows: int
    outputs: int
    groups: int
    dtype: str
    indexed: bool
    bias: bool
    gap: int = 0

    def __str__(self) -> str:
        words = [word for word in ("indexed", "bias") if getattr(self, word)]
        shape = f"M={self.rows} N={self.outputs} G={self.groups} {self.dtype}"
        return " ".join([shape, *words, f"gap {self.gap}"])


def grad_comp(library: Library, case: GradCompCase) -> Problem:
    """The last of several groups has no row."""
    random = torch.Generator().manual_seed(sum(str(case).encode()) * 32452843 % 2**31)
    M, N, G = case.rows, case.outputs, case.groups
    grad_y = normal(random, M, N, case.gap, TORCH[case.dtype])
    numbers = {
        "rows": M, "columns": N, "grad_y_stride": N + case.gap, "dtype": library.dtypes[case.dtype], "groups": G,
    }  # fmt: skip
    arrays, outputs = {"grad_y": grad_y}, {}
    size = grad_y[:, :N].double().abs()
    index = torch.randint(0, max(G - 1, 1), (M,), generator=random)
    if case.indexed:
        arrays["comp_index"] = index
    if G:
        arrays["grad_comp_rows"] = torch.full((G, N), float("nan"))
        outputs["grad_comp_rows"] = Output(SLACK * torch.zeros(G, N).double().index_add_(0, index, size))
    if case.bias:
        arrays["grad_bias"] = torch.full((N,), float("nan"))
        outputs["grad_bias"] = Output(SLACK * size.sum(0))
    params = Struct("rlcc_sparse_linear_grad_comp_params", numbers, arrays)
    return Problem("sparse_linear_grad_comp", str(case), params, outputs)


def cases(quick: bool) -> Iterator[GradCompCase]:
    rows = (1, 33, 700) if quick else (1, 2, 31, 128, 129, 1000, 5000)
    outputs = (7, 264) if quick else (1, 7, 255, 256, 264, 1536)
    groups = (0, 1, 9) if quick else (0, 1, 2, 8, 9, 100)
    for turn, (M, N, G) in enumerate(product(rows, outputs, groups)):
        shape = turn // len(groups)  # each G meets every dtype, with wide reads (no gap) and without
        indexed = G > 1 or (G == 1 and shape % 2 == 0)
        dtype, gap = ("fp32", "bf16", "fp16")[(turn + shape) % 3], (0, 8, 1)[(turn // 2 + shape // 3) % 3]
        yield GradCompCase(M, N, G, dtype, indexed, G == 0 or turn % 4 < 3, gap)
    if not quick:
        for G in (1, 4, 64):  # real layers, aligned
            yield GradCompCase(4096, 4096, G, "bf16", True, True)
            yield GradCompCase(8192, 576, G, "bf16", True, True)


def problems(library: Library, op: str, quick: bool) -> Iterator[Callable[[], Problem]]:
    """Of sparse_linear_grad_comp, made when asked for."""
    assert op == "sparse_linear_grad_comp"
    for case in cases(quick):
        yield _bound(library, case)


def _bound(library: Library, case: GradCompCase) -> Callable[[], Problem]:
    return lambda: grad_comp(library, case)


OPS = ("sparse_linear_grad_comp",)
