"""`sparse_linear` with compensation against torch's dense `F.linear` with the folded bias, at half the weights.

The baseline is the strongest plain way to run a restored model: the dense matrix with its zeros and one bias. Both
run in one process on the same inputs; every result is checked against float64 before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from shapes import O_PROJ, ROWS, Shape
from torch import Tensor

import restorelcc

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _check(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """|y − exact| within twice the plain product's own error, plus one rounding of the output's type."""
    exact = x.double() @ weight.double().T + bias.double()
    plain = functional.linear(x, weight, bias.to(x.dtype)).double()
    slack = torch.finfo(x.dtype).eps * float(exact.abs().max())
    assert float((y.double() - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + slack


@pytest.mark.parametrize("shape", O_PROJ, ids=lambda shape: shape.model)
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"M{rows}")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", ["dense", "sparse"])
def bench_o_proj(benchmark: Any, what: str, dtype: str, rows: int, shape: Shape) -> None:
    benchmark.group = f"{shape.model} {dtype} M={rows}"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape.outputs, shape.inputs, generator=generator)
    weight = (weight * (torch.rand(weight.shape, generator=generator) < 0.5)).to(DTYPES[dtype])
    x = torch.randn(rows, shape.inputs, generator=generator).to(DTYPES[dtype])
    comp = 0.1 * torch.randn(shape.inputs, generator=generator)
    folded = weight.float() @ comp
    packed = restorelcc.pack(weight)
    bias = folded.to(x.dtype)
    runs: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: functional.linear(x, weight, bias),
        "sparse": lambda: restorelcc.ops.sparse_linear(x, packed, bias=folded),
    }
    with torch.inference_mode():
        _check(runs[what](), x, weight, folded)
        benchmark(runs[what])
