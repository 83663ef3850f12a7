"""pack and unpack bit by bit, with and without the compiled ops; hostile tensors are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import restorelcc
from restorelcc import PackedWeight, _native, ops

SHAPES = [(1, 1), (1, 64), (3, 65), (7, 63), (5, 128), (16, 200), (0, 10), (4, 0)]


@pytest.fixture(params=["native", "plain_torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled ops, and as if they were not built."""
    if request.param == "plain_torch":
        monkeypatch.setattr(_native, "_why_missing", "hidden by a test")
    return request.param


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def pruned(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(rows, columns) * (torch.rand(rows, columns) > 0.5)
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip_keeps_every_bit(shape: tuple[int, int], dtype: torch.dtype, either: str) -> None:
    weight = pruned(*shape, dtype)
    packed = restorelcc.pack(weight)
    assert torch.equal(bits(packed.unpack()), bits(weight + 0.0))  # + 0.0: -0.0 comes back as +0.0
    assert packed.shape == shape
    assert packed.dtype == dtype
    assert packed.nnz == int((weight != 0).sum())
    assert packed.trusted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_special_values(dtype: torch.dtype, either: str) -> None:
    specials = [torch.nan, torch.inf, -torch.inf, -0.0, 0.0, torch.finfo(dtype).tiny, torch.finfo(dtype).max]
    weight = torch.tensor([specials * 10], dtype=dtype)
    weight[0, 5] = torch.finfo(dtype).smallest_normal / 2  # subnormal: not a zero
    packed = restorelcc.pack(weight)
    assert packed.nnz == 50
    wanted = torch.where(weight == 0, torch.zeros((), dtype=dtype), weight)
    assert torch.equal(bits(packed.unpack()), bits(wanted))


@pytest.mark.parametrize("values", [None, "int8"])
def test_both_packers_write_the_same_tensors(values: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = pruned(19, 210, torch.bfloat16)
    native = restorelcc.pack(weight, values=values).to_tensors()
    monkeypatch.setattr(_native, "_why_missing", "hidden by a test")
    plain = restorelcc.pack(weight, values=values).to_tensors()
    assert native.keys() == plain.keys()
    for name in native:
        assert torch.equal(native[name], plain[name]), name


def test_strided_and_transposed_weights() -> None:
    weight = pruned(40, 70)
    assert torch.equal(restorelcc.pack(weight[::2, 3:67]).unpack(), weight[::2, 3:67])
    assert torch.equal(restorelcc.pack(weight.t()).unpack(), weight.t())


def test_sizes_and_description() -> None:
    packed = restorelcc.pack(torch.eye(128, dtype=torch.bfloat16))
    assert packed.sparsity == pytest.approx(1 - 1 / 128)
    # mask 128 x 2 words; a row of one survivor takes 16 bytes; 64 bytes of padding; 129 offsets
    assert packed.nbytes == 128 * 2 * 8 + 128 * 16 + 64 + 129 * 8
    assert "128 x 128 bfloat16, 99.2 % zeros" in packed.describe()
    assert packed.describe() in repr(packed)


def test_saved_and_loaded(either: str) -> None:
    packed = restorelcc.pack(pruned(9, 100))
    again = PackedWeight.from_tensors({name: t.clone() for name, t in packed.to_tensors().items()})
    assert torch.equal(again.unpack(), packed.unpack())
    with pytest.raises(KeyError, match="mask"):
        PackedWeight.from_tensors({"shape": torch.tensor([9, 100])})


@dataclass(frozen=True)
class Hostile:
    name: str
    change: Callable[[dict[str, Tensor]], None]


def write(name: str, index: int, value: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[index] = value

    return change


def replace(name: str, with_what: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = with_what(tensors[name])

    return change


HOSTILE = [
    Hostile("mask_all_ones", replace("mask", lambda t: torch.full_like(t, -1))),
    Hostile("mask_bit_beyond_the_columns", write("mask", 1, 1 << 40)),
    Hostile("mask_too_narrow", replace("mask", lambda t: t[:, :1].contiguous())),
    Hostile("mask_of_more_rows", replace("mask", lambda t: torch.cat([t, t]))),
    Hostile("mask_int32", replace("mask", lambda t: t.int())),
    Hostile("mask_flat", replace("mask", lambda t: t.flatten())),
    Hostile("offset_negative", write("row_offsets", 0, -16)),
    Hostile("offset_far", write("row_offsets", 3, 1 << 40)),
    Hostile("offset_near_the_largest_integer", write("row_offsets", 3, (1 << 63) - 16)),
    Hostile("offset_smallest_integer", write("row_offsets", 3, -(1 << 63))),
    Hostile("offset_not_aligned", write("row_offsets", 2, 3)),
    Hostile("offset_back", write("row_offsets", 4, 0)),
    Hostile("offsets_missing_one", replace("row_offsets", lambda t: t[:-1].clone())),
    Hostile("offsets_int32", replace("row_offsets", lambda t: t.int())),
    Hostile("end_beyond_the_values", write("row_offsets", -1, 1 << 20)),
    Hostile("values_truncated", replace("values", lambda t: t[:-1].clone())),
    Hostile("values_empty", replace("values", lambda t: t[:0].clone())),
    Hostile("values_half", replace("values", lambda t: t.half()[:-200].clone())),
    Hostile("values_float64", replace("values", lambda t: t.double())),
    Hostile("values_int8_without_scales", replace("values", lambda t: t.to(torch.int8))),
    Hostile("values_2d", replace("values", lambda t: t.view(1, -1))),
    Hostile("values_of_the_other_dtype", replace("values", lambda t: t.bfloat16()[: t.numel() // 2].clone())),
    Hostile("shape_of_more_columns", write("shape", 1, 200)),
    Hostile("shape_of_fewer_columns", write("shape", 1, 66)),
    Hostile("shape_of_other_rows", write("shape", 0, 9)),
    Hostile("shape_negative", write("shape", 1, -70)),
]


HOSTILE_SCALES = [
    Hostile("scales_missing", lambda tensors: tensors.update(scales=None)),
    Hostile("scales_float32", replace("scales", lambda t: t.float())),
    Hostile("scales_of_more_rows", replace("scales", lambda t: torch.cat([t, t]))),
    Hostile("scales_of_more_groups", replace("scales", lambda t: torch.cat([t, t], 1))),
    Hostile("values_of_another_dtype", replace("values", lambda t: t.float())),
    Hostile("values_truncated", replace("values", lambda t: t[:-1].clone())),
]


@pytest.mark.parametrize("hostile", HOSTILE_SCALES, ids=lambda h: h.name)
def test_hostile_int8_tensors_are_refused(hostile: Hostile, either: str) -> None:
    tensors = {name: t.clone() for name, t in restorelcc.pack(pruned(10, 200), values="int8").to_tensors().items()}
    hostile.change(tensors)
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        PackedWeight.from_tensors(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_values(dtype: torch.dtype, either: str) -> None:
    """Within half a step of the scale; scales bfloat16, no quotient above 127; the mask is the weight's."""
    weight = pruned(7, 300, dtype)
    weight[0, :128] = 0  # a group without survivors
    packed = restorelcc.pack(weight, values="int8")
    scale = packed.scales.float().repeat_interleave(128, 1)[:, :300]
    assert packed.dtype == torch.int8
    assert packed.nnz == int((weight != 0).sum())
    assert ((packed.unpack() - weight.float()).abs() <= scale / 2).all()
    largest = weight.float().abs()[:, :128].amax(1)
    assert (packed.scales[:, 0].float() * 127 >= largest).all()
    assert (packed.scales[:, 0].float() * 127 <= largest * 1.01).all()
    assert PackedWeight.from_tensors(packed.to_tensors()).unpack().equal(packed.unpack())


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: h.name)
def test_hostile_tensors_are_refused(hostile: Hostile, either: str) -> None:
    tensors = {name: t.clone() for name, t in restorelcc.pack(pruned(10, 100)).to_tensors().items()}
    hostile.change(tensors)
    with pytest.raises(ValueError, match=r"\w+ \w+ .*[0-9]"):
        PackedWeight.from_tensors(tensors)


def test_a_write_after_validation_is_noticed() -> None:
    packed, x = restorelcc.pack(pruned(10, 100)), torch.randn(2, 100)
    good = packed.row_offsets.clone()
    packed.row_offsets[3] = 1 << 40
    assert not packed.trusted
    for call in (lambda: ops.sparse_linear(x, packed), packed.unpack, packed.validate):
        with pytest.raises(ValueError, match=r"row_offsets\[3\]"):
            call()
    packed.row_offsets.copy_(good)
    ops.sparse_linear(x, packed)
    assert not packed.trusted
    packed.validate()
    assert packed.trusted


def test_the_op_itself_refuses_untrusted_tensors() -> None:
    packed, x = restorelcc.pack(pruned(10, 100)), torch.randn(2, 100)
    mask = torch.full_like(packed.mask, -1)
    for op, rows in ((torch.ops.restorelcc.sparse_linear, x), (torch.ops.restorelcc.sparse_linear_grad_x, x[:, :10])):
        with pytest.raises(ValueError, match="mask"):
            op(rows, mask, *packed.tensors[1:])
    with pytest.raises(ValueError, match="contiguous"):
        torch.ops.restorelcc.sparse_linear(x, packed.mask.t().contiguous().t(), *packed.tensors[1:])


def test_what_cannot_be_packed(either: str) -> None:
    with pytest.raises(ValueError, match=r"weight has shape \[3\]; it must be \[N, K\]"):
        restorelcc.pack(torch.ones(3))
    with pytest.raises(ValueError, match=r"weight has dtype torch.float64; it must be"):
        restorelcc.pack(torch.ones(3, 3).double())
    with pytest.raises(ValueError, match=r"values is 'int4'; it must be None .* or 'int8'"):
        restorelcc.pack(torch.ones(3, 3), values="int4")
    weight = torch.ones(3, 3)
    weight[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"weight\[1, 2\] is inf, which int8 values cannot hold"):
        restorelcc.pack(weight, values="int8")


def test_without_the_compiled_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_why_missing", "hidden by a test")
    packed, x = restorelcc.pack(pruned(10, 100)), torch.randn(2, 100)
    y = ops.sparse_linear(x, packed, impl="reference")
    assert torch.allclose(y, x @ packed.unpack().T, atol=1e-4)
    assert restorelcc.build_info()["backends"] == ["reference"]
    with pytest.raises(ImportError, match=r"not available \(hidden by a test\); build them with .* impl='reference'"):
        ops.sparse_linear(x, packed)
