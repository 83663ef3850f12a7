"""Which layout is chosen: a pure function, and what `describe` says of it."""

from __future__ import annotations

import pytest
import torch

import restorelcc
from restorelcc.layout import choose_layout

F32, BF16, F16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8


@pytest.mark.parametrize("dtype", [F32, BF16, F16, INT8])
@pytest.mark.parametrize("shape", [(576, 576), (4096, 11008), (1000, 130)], ids=str)
def test_half_of_the_weights_is_worth_it_and_none_is_not(shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows, columns = shape
    half, full = (choose_layout(rows, columns, count, dtype) for count in (rows * columns // 2, rows * columns))
    assert half.kind == "bitmask"
    assert half.ratio < 0.7
    assert full.kind == ("bitmask" if dtype == INT8 else "dense")  # int8 against a dense bfloat16 matrix
    kinds = [choose_layout(rows, columns, round(rows * columns * kept / 100), dtype).kind for kept in range(101)]
    assert kinds == sorted(kinds)  # "bitmask" up to some share of survivors, "dense" from there on


@pytest.mark.parametrize(("dtype", "sparsity"), [(F32, 0.26), (BF16, 0.06), (F16, 0.06)])
def test_break_even(dtype: torch.dtype, sparsity: float) -> None:
    size = 4096
    for zeros, kind in ((sparsity - 0.02, "dense"), (sparsity + 0.02, "bitmask")):
        assert choose_layout(size, size, round(size * size * (1 - zeros)), dtype).kind == kind


def test_small_shapes_pay_for_their_words_and_offsets() -> None:
    assert choose_layout(100, 2, 100, F32).kind == "dense"  # a word of mask and an offset for two columns
    assert choose_layout(0, 0, 0, F32).kind == "dense"
    assert choose_layout(8, 6400, 0, BF16).kind == "bitmask"


@pytest.mark.parametrize("dtype", [F32, BF16, F16, INT8])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_the_bytes_are_those_of_the_tensors(dtype: torch.dtype, kept: float) -> None:
    weight = torch.randn(64, 700) * (torch.rand(64, 700) < kept)
    packed = restorelcc.pack(weight.to(F32 if dtype == INT8 else dtype), values="int8" if dtype == INT8 else None)
    layout = choose_layout(64, 700, packed.nnz, dtype)
    assert layout.bitmask_bytes == pytest.approx(packed.nbytes, rel=0.02, abs=80)
    said = "faster than dense" if layout.kind == "bitmask" else "dense is faster"
    assert said in packed.describe()


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"5 survivors in \[2, 2\]; there must be 0 to 4"):
        choose_layout(2, 2, 5, F32)
    with pytest.raises(ValueError, match=r"values are torch\.float64"):
        choose_layout(2, 2, 1, torch.float64)
