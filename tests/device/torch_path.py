"""CUDA tensors through the ops of torch, on the stand-in device of stand_in.cpp, whose kernels run in the emulator.

Run by test_torch_path.py, which prepares the package and preloads the stand-in; not collected by itself. Whether the
kernels are right is the question of tests/simt: here it is which tensors are taken, from where, with which scratch, on
which stream and device, and what is said where one is refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device.abi import Library
from sparse_cases import BF16, CASES, F32, Case, arguments_of, name_of, weight_of, x_of
from torch import Tensor

import restorelcc
from restorelcc import SparseLinear, ops

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
torch.cuda._initialized = True  # there is no torch.cuda to initialise

_PATH = Path(restorelcc.__file__).parent / "_lib" / "librestorelcc.so"
_LIBRARY = ctypes.CDLL(str(_PATH))
_STAND_IN = ctypes.CDLL(None)
_STAND_IN.stand_in_handle.restype = ctypes.c_void_p
_STAND_IN.stand_in_allocated.restype = ctypes.c_longlong
_WATCH = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Launch = tuple[int, int]  # current device, stream handle


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    """Every launch of the test."""
    seen: list[Launch] = []
    watch = _WATCH(lambda stream: seen.append((_STAND_IN.stand_in_current_device(), stream or 0)))
    _LIBRARY.rlcc_test_watch(watch)
    yield seen
    _LIBRARY.rlcc_test_watch(None)


def handle(device: int, stream: int = 0) -> int:
    found: int = _STAND_IN.stand_in_handle(device, ctypes.c_longlong(stream))
    return found


def placed(packed: restorelcc.PackedWeight, device: torch.device) -> restorelcc.PackedWeight:
    scales = None if packed.scales is None else packed.scales.to(device)
    parts = (packed.mask.to(device), packed.values.to(device), packed.row_offsets.to(device))
    return restorelcc.PackedWeight(*parts, packed.shape, scales)


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """A copy there of the same layout."""
    if tensor.device == device:
        return tensor
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == 0:
        return tensor.to(device)
    memory = tensor.detach().as_strided([span], [1], tensor.storage_offset()).to(device)
    return memory.as_strided(tensor.shape, tensor.stride())


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    if expected.numel():
        allowed = 8 * torch.finfo(found.dtype).eps * float(expected.detach().abs().max()) + 1e-5
        assert float((found.detach().cpu().double() - expected.detach().double()).abs().max()) <= allowed


def moved(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: on(device, value) for name, value in arguments.items()}


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("device", [FIRST, SECOND], ids=str)
def test_forward_and_gradients(case: Case, device: torch.device, launches: list[Launch]) -> None:
    """Every layout, dtype and addition that the CPU's ops are tested on; through torch's autograd engine."""
    weight, x, arguments = weight_of(case), x_of(case), arguments_of(case)
    there = placed(restorelcc.pack(weight), device)
    names = [name for name in ("comp", "bias", "residual") if name in arguments]
    exact = {name: value.double() if name in names else value for name, value in arguments.items()}
    grad_y = torch.randn(*case.leading, case.outputs).to(case.x_dtype)

    leaves = [x.double().requires_grad_(), *(exact[name].requires_grad_() for name in names)]
    expected = ops.sparse_linear(leaves[0], restorelcc.pack(weight), impl="reference", **exact)
    expected_gradients = torch.autograd.grad(expected, leaves, grad_y.double())

    given = moved(arguments, device)
    ours = [on(device, x).requires_grad_(), *(given[name].requires_grad_() for name in names)]
    y = ops.sparse_linear(ours[0], there, **given)
    assert (y.device, y.dtype) == (device, case.x_dtype)
    close(y, expected)
    for found, truth in zip(torch.autograd.grad(y, ours, grad_y.to(device)), expected_gradients, strict=True):
        assert found.device == device
        close(found, truth)
    assert {current for current, _ in launches} <= {device.index}
    assert {stream for _, stream in launches} <= {handle(device.index)}
    assert bool(launches) == (y.numel() > 0 or any(leaf.numel() for leaf in ours[1:]))


def test_int8_and_the_gradient_of_values(launches: list[Launch]) -> None:
    case = Case("", (40,), 48, 200, BF16, BF16)
    weight, x = weight_of(case), x_of(case)
    int8 = restorelcc.pack(weight.float(), values="int8")
    close(ops.sparse_linear(x.to(FIRST), placed(int8, FIRST)), ops.sparse_linear(x.double(), int8, impl="reference"))
    found = []
    for device in (CPU, FIRST):
        packed = placed(restorelcc.pack(weight), device)
        packed.values.requires_grad_()
        ops.sparse_linear(x.to(device), packed).float().pow(2).sum().backward()
        assert packed.values.grad is not None
        found.append(packed.values.grad)
    close(found[1], found[0])
    assert launches


def test_a_module_goes_to_the_device() -> None:
    module = SparseLinear(restorelcc.pack(weight_of(Case("", (1,), 12, 70))), torch.randn(12), comp=torch.randn(70))
    x = torch.randn(2, 70)
    expected = module(x)
    there = module.to(FIRST)
    close(there(x.to(FIRST)), expected)
    close(there.to(CPU)(x), expected)


def test_the_other_ops() -> None:
    h, weight = torch.randn(5, 16).to(BF16), torch.randn(70, 16).to(BF16)
    labels, z = torch.tensor([0, 69, -100, 3, 3]), torch.randn(6, 2, 8)
    found = []
    for device in (CPU, SECOND):
        leaves = [h.to(device).requires_grad_(), weight.to(device).requires_grad_()]
        nll = ops.linear_cross_entropy(*leaves, labels.to(device))
        gradients = torch.autograd.grad(nll.sum(), leaves)
        edited = torch.stack([h, h + 1]).to(device)
        arguments = (edited, leaves[1].detach(), labels.to(device), nll.detach())
        contrast = torch.ops.restorelcc.head_contrast(*arguments)
        total = torch.zeros(2, 8, dtype=torch.float64, device=device)
        gram = torch.zeros(2, 8, 8, dtype=torch.float64, device=device)
        # Heads before tokens: strided where they lie.
        torch.ops.restorelcc.head_moments_(
            z.transpose(0, 1).contiguous().to(device).transpose(0, 1), z.to(device) * 2, total, gram
        )
        found.append([nll, *gradients, contrast, total.float(), gram.float()])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours.device == SECOND
        close(ours, theirs)


def scratch_of(packed: restorelcc.PackedWeight, x: Tensor, y: Tensor) -> int:
    """What rlcc_cuda_sparse_linear_workspace asks for, in bytes."""
    library, bytes_needed = Library(_PATH), ctypes.c_size_t()
    params = library.struct(
        "rlcc_sparse_linear_params",
        {
            "weight.rows": packed.shape[0], "weight.columns": packed.shape[1], "weight.mask": packed.mask,
            "weight.values": packed.values, "weight.value_count": packed.values.numel(),
            "weight.row_offsets": packed.row_offsets, "weight.dtype": library.dtypes["fp32"], "weight.trusted": 1,
            "x": x, "x_rows": 1, "x_stride": x.stride(0), "x_dtype": library.dtypes["fp32"],
            "y": y, "y_stride": y.stride(0),
        },
    )  # fmt: skip
    library.call("rlcc_cuda_sparse_linear_workspace", ctypes.byref(params), ctypes.byref(bytes_needed))
    return bytes_needed.value


def test_scratch_is_torchs(launches: list[Launch]) -> None:
    """Few outputs and many inputs: partial sums, so a second kernel. All bytes come from torch's allocator."""
    packed = restorelcc.pack(weight_of(Case("", (1,), 3, 20_000)))
    x, there = torch.randn(1, 20_000), placed(packed, SECOND)
    x_there = x.to(SECOND)
    before = [_STAND_IN.stand_in_allocated(device) for device in (0, 1)]
    y = ops.sparse_linear(x_there, there)
    asked_for = [_STAND_IN.stand_in_allocated(device) - before[device] for device in (0, 1)]
    close(y, ops.sparse_linear(x.double(), packed, impl="reference"))
    assert launches == [(1, handle(1))] * 2
    scratch = scratch_of(there, x_there, y)
    assert scratch > 0
    assert asked_for == [0, y.numel() * y.element_size() + scratch]


def test_second_derivatives() -> None:
    """Through both gradients of x and the sums of rows, with an index and without; as on the CPU."""
    for groups in (1, 4):
        case = Case("", (2, 3), 8, 70, groups=groups, bias=F32)
        packed, x, arguments = restorelcc.pack(weight_of(case)), x_of(case), arguments_of(case)
        found = []
        for device in (CPU, FIRST):
            given = moved(arguments, device)
            leaves = [on(device, leaf).requires_grad_() for leaf in (x, given["comp"], given["bias"])]
            y = ops.sparse_linear(
                leaves[0], placed(packed, device), comp=leaves[1], bias=leaves[2], comp_index=given.get("comp_index")
            )
            firsts = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum(first.pow(2).sum() for first in firsts), leaves))
        assert ("comp_index" in arguments) == (groups > 1)
        for ours, theirs in zip(found[1], found[0], strict=True):
            assert ours.device == FIRST
            assert float((ours.cpu() - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


def test_the_stream_and_the_device_are_those_of_the_tensors(launches: list[Launch]) -> None:
    packed = placed(restorelcc.pack(torch.eye(8)), SECOND)
    _STAND_IN.stand_in_set_stream(1, ctypes.c_longlong(5))
    try:
        ops.sparse_linear(torch.ones(1, 8, device=SECOND), packed)
    finally:
        _STAND_IN.stand_in_set_stream(1, ctypes.c_longlong(0))
    assert launches == [(1, handle(1, 5))]
    assert _STAND_IN.stand_in_current_device() == 0  # as it was before


def test_refused() -> None:
    packed = restorelcc.pack(torch.eye(8))
    first, second = placed(packed, FIRST), placed(packed, SECOND)
    x = torch.ones(1, 8)
    with pytest.raises(ValueError, match=r"^mask is on CUDA device 1, x on 0; move it with \.to\(x\.device\)"):
        ops.sparse_linear(x.to(FIRST), second)
    with pytest.raises(
        ValueError, match=r"^mask is not on the CUDA device, where x is; move it with \.to\(x\.device\)"
    ):
        ops.sparse_linear(x.to(FIRST), packed)
    with pytest.raises(ValueError, match=r"^mask is not on the CPU, where x is"):
        ops.sparse_linear(x, first)
    with pytest.raises(ValueError, match=r"^bias is not on the CUDA device, where x is"):
        ops.sparse_linear(x.to(FIRST), first, bias=x[0])
    with pytest.raises(ValueError, match="packing runs on the CPU"):
        restorelcc.pack(torch.eye(8).to(FIRST))
    with pytest.raises(ValueError, match=r"^mask is not on the CPU, where weights are packed, unpacked and checked"):
        torch.ops.restorelcc.packed_validate(*first.tensors)
    with pytest.raises(ValueError, match=r"weight\.trusted is 0, must be 1 for a weight in device memory"):
        torch.ops.restorelcc.sparse_linear(x.to(FIRST), *first.tensors)


def test_a_weight_that_was_written_to_is_refused_until_it_is_validated() -> None:
    packed, x = placed(restorelcc.pack(torch.eye(8)), FIRST), torch.ones(1, 8, device=FIRST)
    before = packed.row_offsets.clone()
    packed.row_offsets[3] += 1_000_000
    with pytest.raises(ValueError, match=r"weight\.trusted is 0"):
        ops.sparse_linear(x, packed)
    with pytest.raises(ValueError, match="row_offsets"):
        packed.validate()
    packed.row_offsets.copy_(before)
    packed.validate()
    assert bool((ops.sparse_linear(x, packed) == 1).all())


def test_an_index_from_outside_is_nan() -> None:
    """Which on the CPU is refused: a host does not look into device memory."""
    packed = placed(restorelcc.pack(torch.eye(8)), FIRST)
    x, index = torch.ones(2, 8, device=FIRST), torch.tensor([0, 7], device=FIRST)
    comp = torch.ones(2, 8, device=FIRST).requires_grad_()
    y = ops.sparse_linear(x, packed, comp=comp, comp_index=index)
    assert y.isnan().any(-1).tolist() == [False, True]
    grad_comp_rows, _ = torch.ops.restorelcc.sparse_linear_grad_comp(y.detach(), index, 2)
    assert grad_comp_rows.isnan().all()


def test_a_library_without_code_for_the_device() -> None:
    packed, x = placed(restorelcc.pack(torch.eye(8)), FIRST), torch.ones(1, 8, device=FIRST)
    _LIBRARY.rlcc_test_capability(90)
    try:
        with pytest.raises(RuntimeError, match=r"compute capability 9\.0, and this library was built for sm_80"):
            ops.sparse_linear(x, packed)
    finally:
        _LIBRARY.rlcc_test_capability(80)


def test_no_rows_launch_nothing(launches: list[Launch]) -> None:
    packed = placed(restorelcc.pack(torch.eye(8)), FIRST)
    assert ops.sparse_linear(torch.empty(0, 8, device=FIRST), packed, bias=torch.ones(8, device=FIRST)).shape == (0, 8)
    assert launches == []
    assert packed.unpack().device == FIRST
    assert packed.dtype == F32
