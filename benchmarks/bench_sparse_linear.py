"""`sparse_linear` against torch: the dense `F.linear` with the folded bias, and torch's own CSR product.

The dense product with its zeros and one bias is the strongest plain way to run a restored model. All contenders of a
group run in one process on the same weight; each result is checked against float64 before it is timed.

By default only one small and one large shape at half the weights run (`make bench`). Everything of shapes.txt:
RLCC_BENCH_ALL=1, with -k to choose.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as functional
from shapes import PATTERNS, SHAPES, Shape
from torch import Tensor

import restorelcc

ALL = bool(os.environ.get("RLCC_BENCH_ALL"))
DEFAULT = {("SmolLM2-135M", "o_proj"), ("Llama-2-7B", "q_proj")}
ROWS = (1, 4, 16, 256)  # one token, small batches, a prompt
CHOSEN_SHAPES = [shape for shape in SHAPES if ALL or (shape.model, shape.layer) in DEFAULT]
CHOSEN_PATTERNS = PATTERNS if ALL else PATTERNS[:1]
# Distinct weights to go round, so that one token's product finds its weight in memory and not in a cache.
COLD_BYTES = 256 << 20


class Contender(NamedTuple):
    """Who multiplies, in which dtype of values, and beside which dtype of x."""

    who: str
    values: str
    x: torch.dtype


CONTENDERS = [
    Contender("torch", "fp32", torch.float32),
    Contender("torch", "bf16", torch.bfloat16),
    Contender("torch_csr", "fp32", torch.float32),
    Contender("ours", "fp32", torch.float32),
    Contender("ours", "bf16", torch.bfloat16),
    Contender("ours", "fp16", torch.float16),
    Contender("ours", "int8", torch.bfloat16),
    Contender("openvino", "bf16", torch.bfloat16),
    Contender("deepsparse", "fp32", torch.float32),
]
NOT_OURS_TO_RUN = {
    "openvino": "openvino is measured by projection_rivals.py, in turns with ours: docs/rivals.md",
    "deepsparse": "deepsparse is measured by projection_rivals.py, in an environment of its own: docs/rivals.md",
}


@lru_cache(maxsize=1)
def _weight(shape: Shape, pattern: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape.outputs, shape.inputs, generator=generator)
    if pattern == "2:4":
        fours = weight.view(-1, 4)
        kept = torch.rand(fours.shape, generator=generator).topk(2, dim=1).indices
        return torch.zeros_like(fours).scatter(1, kept, fours.gather(1, kept)).view_as(weight)
    return weight * (torch.rand(weight.shape, generator=generator) >= float(pattern))


def _copies(weight: Tensor, bytes_each: int, rows: int) -> int:
    """How many weights to go round; with many rows the arithmetic takes the time, and two will do."""
    return max(2, COLD_BYTES // bytes_each) if rows <= 16 else 2


def _run(contender: Contender, weight: Tensor, rows: int, x: Tensor, folded: Tensor) -> Callable[[], Tensor]:
    """One product, on the next copy of the weight at each call."""
    turn = 0

    def rotate(products: list[Callable[[], Tensor]]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            nonlocal turn
            turn += 1
            return products[turn % len(products)]()

        return run

    def product(w: Any) -> Callable[[], Tensor]:
        if contender.who == "ours":
            return lambda: restorelcc.ops.sparse_linear(x, w, bias=folded)
        bias = folded.to(x.dtype)
        if contender.who == "torch_csr":
            return lambda: functional.linear(x, w) + bias
        return lambda: functional.linear(x, w, bias)

    if contender.who == "ours":
        kept = weight if contender.values == "int8" else weight.to(x.dtype)
        first = restorelcc.pack(kept, values="int8" if contender.values == "int8" else None)
        count = _copies(weight, first.nbytes, rows)
        others = [
            restorelcc.PackedWeight.from_tensors({name: part.clone() for name, part in first.to_tensors().items()})
            for _ in range(count - 1)
        ]
        return rotate([product(w) for w in (first, *others)])
    if contender.who == "torch_csr":
        sparse = weight.to_sparse_csr()
        bytes_each = sparse.values().nbytes + sparse.col_indices().nbytes
        return rotate([product(sparse.clone()) for _ in range(_copies(weight, bytes_each, rows))])
    dense = weight.to(x.dtype)
    return rotate([product(dense.clone()) for _ in range(_copies(weight, dense.nbytes, rows))])


def _check(contender: Contender, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """|y − exact| within twice the plain product's own error plus one rounding of the output's type; int8 values also
    within half a step of W and of x."""
    kept = weight.to(x.dtype)
    exact = x.double() @ kept.double().T + bias.double()
    plain = functional.linear(x, kept, bias.to(x.dtype)).double()
    allowed = 2 * float((plain - exact).abs().max()) + torch.finfo(x.dtype).eps * float(exact.abs().max())
    if contender.who == "torch_csr":
        allowed *= 32  # it adds along K in one chain
    if contender.values == "int8":  # |W| |x| (1/254 + 1/254), summed as independent errors, ten of them
        allowed += 10 * float(weight.abs().max() * x.abs().max()) / 127 * weight.shape[1] ** 0.5
    assert float((y.double() - exact).abs().max()) <= allowed


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("pattern", CHOSEN_PATTERNS)
@pytest.mark.parametrize("shape", CHOSEN_SHAPES, ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"M{rows}")
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: f"{contender.who}_{contender.values}")
def bench_projection(benchmark: Any, contender: Contender, rows: int, shape: Shape, pattern: str) -> None:
    if contender.who in NOT_OURS_TO_RUN:
        pytest.skip(NOT_OURS_TO_RUN[contender.who])
    benchmark.group = f"{shape} {pattern} M={rows}, {torch.get_num_threads()} threads"
    weight = _weight(shape, pattern)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, shape.inputs, generator=generator).to(contender.x)
    folded = weight @ (0.1 * torch.randn(shape.inputs, generator=generator))
    run = _run(contender, weight, rows, x, folded)
    # Not inference_mode: tensors made in it have no version, so our weights would be validated in each call, and torch
    # 2.13 cannot multiply by a CSR matrix in it.
    with torch.no_grad():
        _check(contender, run(), x, weight, folded)
        benchmark(run)
