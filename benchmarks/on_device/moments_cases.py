"""head_moments: |gram − gram64| <= 10⁻⁶ Σ|dz_i dz_j|, |total − total64| <= 10⁻⁶ Σ|dz_d|, as restorelcc/cuda.h
promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from on_device.abi import Library
from on_device.problem import TORCH, Output, Problem, Struct, normal

RELATIVE = 1e-6


@dataclass(frozen=True)
class MomentsCase:
    """z [T, H D] with `gap` elements between tokens."""

    tokens: int
    heads: int
    head_dim: int
    dtype: str
    gap: int

    def __str__(self) -> str:
        return f"T={self.tokens} H={self.heads} D={self.head_dim} {self.dtype} gap {self.gap}"


def moments(library: Library, case: MomentsCase) -> Problem:
    """Added to what is there already, which is symmetric."""
    random = torch.Generator().manual_seed(sum(str(case).encode()) * 15485863 % 2**31)
    T, H, D = case.tokens, case.heads, case.head_dim
    dense = normal(random, T, H * D, case.gap, TORCH[case.dtype])
    pruned = normal(random, T, H * D, 0, TORCH[case.dtype])
    d = torch.arange(D)
    arrays = {
        "z_dense": dense, "z_pruned": pruned,
        "total": (torch.arange(H * D) % 5 - 2.0).double().reshape(H, D),
        "gram": (d[:, None] * d[None, :] % 7 - 3.0).double().expand(H, D, D).contiguous(),
    }  # fmt: skip
    numbers = {
        "tokens": T, "heads": H, "head_dim": D, "dense_token_stride": H * D + case.gap, "dense_head_stride": D,
        "pruned_token_stride": H * D, "pruned_head_stride": D, "dtype": library.dtypes[case.dtype],
    }  # fmt: skip
    size = (dense[:, : H * D].double() - pruned.double()).abs().reshape(T, H, D)
    outputs = {
        "total": Output(RELATIVE * size.sum(0) + 1e-14),
        "gram": Output(RELATIVE * torch.einsum("thi,thj->hij", size, size) + 1e-14, symmetric=True),
    }
    return Problem("head_moments", str(case), Struct("rlcc_head_moments_params", numbers, arrays), outputs)


def cases(quick: bool) -> Iterator[MomentsCase]:
    tokens = (0, 1, 13, 100) if quick else (0, 1, 2, 12, 13, 48, 49, 100, 331, 2048)
    dims = (1, 17, 65) if quick else (1, 2, 3, 17, 32, 33, 64, 65, 128, 130)
    for turn, (T, D) in enumerate(product(tokens, dims)):
        yield MomentsCase(T, 1 + turn % 3, D, ("fp32", "bf16", "fp16")[turn % 3], gap=turn % 5)
    if not quick:
        yield MomentsCase(4096, 32, 128, "bf16", 0)
        yield MomentsCase(50, 513, 1, "fp16", 0)


def problems(library: Library, op: str, quick: bool) -> Iterator[Callable[[], Problem]]:
    """Of head_moments, made when asked for."""
    assert op == "head_moments"
    for case in cases(quick):
        yield _bound(library, case)


def _bound(library: Library, case: MomentsCase) -> Callable[[], Problem]:
    return lambda: moments(library, case)


OPS = ("head_moments",)
