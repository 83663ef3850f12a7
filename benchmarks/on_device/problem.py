"""One call of an op on the device, held against the library's own float64 reference on the host.

Numbers, arrays and what an output may be off by are data; `check` runs the same steps for every op: reference on the
host, the op on copies in device memory, NaN and Inf by position, the rest within its budget, nothing written between
rows, the same bits the second time and from a captured graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from on_device.abi import CallError, Library
from on_device.device import DeviceLostError, EmulatedDevice, Queue, on
from on_device.verdict import Verdict

SLACK = 32 * 2.0**-24  # of Σ|terms|: fp32 sums in whatever order (kSlack of tests/cpp/sparse_linear_cases.h)
TORCH: Mapping[str, torch.dtype] = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TORCH.items()}
# Half a unit in the last place, relative; and the smallest positive number, below which rounding is absolute.
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SMALLEST = {torch.float64: 1e-300, torch.float32: 1e-37, torch.bfloat16: 1e-37, torch.float16: 2.0**-24}


@dataclass(frozen=True)
class Output:
    """allowed [as `inside` picks]: beside the rounding of both. inside: which places of the array are the output.

    symmetric: exactly, in the last two axes.
    """

    allowed: Tensor
    inside: Tensor | None = None  # bool, of the array's shape; None: all
    symmetric: bool = False


@dataclass(frozen=True)
class Struct:
    """A parameter struct: its numbers, and its arrays on the host."""

    name: str
    numbers: Mapping[str, int]
    arrays: Mapping[str, Tensor]

    def built(self, library: Library, arrays: Mapping[str, Tensor]) -> Any:
        return library.struct(self.name, {**self.numbers, **arrays})


@dataclass(frozen=True)
class Problem:
    """op: of rlcc_cuda_OP. outputs: by the array's name in `params`. extra: further structs after params."""

    op: str
    case: str
    params: Struct
    outputs: Mapping[str, Output]
    extra: tuple[Struct, ...] = ()
    reference: str = ""  # of rlcc_..._reference; empty: op
    host_only: Mapping[str, int] = field(default_factory=dict)  # numbers that the reference alone gets


def strided(rows: int, columns: int, gap: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(storage [rows, columns + gap] full of NaN, which places are inside)."""
    storage = torch.full((rows, columns + gap), float("nan"), dtype=dtype)
    inside = torch.zeros(storage.shape, dtype=torch.bool)
    inside[:, :columns] = True
    return storage, inside


def normal(random: torch.Generator, rows: int, columns: int, gap: int, dtype: torch.dtype) -> Tensor:
    """Strided storage of normal numbers; a few of them large, so that a dropped or misplaced term shows."""
    storage, _ = strided(rows, columns, gap, dtype)
    numbers = torch.randn(rows, columns, generator=random)
    large = torch.randint(0, 64, (rows, columns), generator=random) == 0
    storage[:, :columns] = torch.where(large, 100 * numbers, numbers).to(dtype)
    return storage


def check(problem: Problem, queue: Queue, verdict: Verdict) -> None:
    """One check of kind problem.op in the verdict."""
    try:
        verdict.add(problem.op, problem.case, _run(problem, queue, verdict))
    except (CallError, RuntimeError) as error:  # torch reports a kernel's fault as a RuntimeError
        verdict.add(problem.op, problem.case, " ".join(str(error).split()))
        try:
            queue.device.wait()
        except RuntimeError as lost:
            what = f"the device was lost in {problem.op}, {problem.case}; what follows was not run"
            raise DeviceLostError(what) from lost


def _run(problem: Problem, queue: Queue, verdict: Verdict) -> str | None:
    """What is wrong, or None."""
    device, library = queue.device, queue.library
    arrays = {name: tensor.clone() for name, tensor in problem.params.arrays.items()}
    expected = {name: arrays[name] for name in problem.outputs}
    reference = library.struct(problem.params.name, {**problem.params.numbers, **problem.host_only, **arrays})
    library.call(f"rlcc_{problem.reference or problem.op}_reference", library.address(reference))

    places = on(device, dict(problem.params.arrays))
    kept = [on(device, dict(extra.arrays)) for extra in problem.extra]
    structs = [problem.params.built(library, places)]
    structs += [extra.built(library, tensors) for extra, tensors in zip(problem.extra, kept, strict=True)]
    call = queue.prepared(problem.op, *structs)

    def again(run: Any) -> dict[str, Tensor]:
        for name in problem.outputs:
            places[name].copy_(problem.params.arrays[name])
        run()
        device.wait()
        return {name: places[name].to("cpu", copy=True) for name in problem.outputs}

    got = again(call)
    for name, output in problem.outputs.items():
        wrong = compare(got[name], expected[name], output, problem.params.arrays[name])
        if wrong.problem is not None:
            return f"{name}: {wrong.problem}"
        verdict.error(problem.op, wrong.share)
    if isinstance(device, EmulatedDevice):  # another schedule
        device.emulate(order=1, eager_copies=True)
    second = again(call)
    if isinstance(device, EmulatedDevice):
        device.emulate()
    if differing := _differing(got, second):
        return f"{differing}: a second call gives other bits"
    replay = device.captured(call)
    if replay is not None and (differing := _differing(got, again(replay))):
        return f"{differing}: a captured graph gives other bits"
    return None


def _differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    return ", ".join(name for name in a if not _same_bits(a[name], b[name]))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if a.numel() else True


@dataclass(frozen=True)
class Comparison:
    """problem: None where all is well. share: the largest error over what is allowed."""

    problem: str | None
    share: float = 0.0


def compare(got: Tensor, expected: Tensor, output: Output, before: Tensor) -> Comparison:
    """got and expected: whole arrays; what lies outside of the output must be as before, bit by bit."""
    inside = torch.ones(got.shape, dtype=torch.bool) if output.inside is None else output.inside
    if not _same_bits(got[~inside], before[~inside]):
        return Comparison("something was written between the rows")
    if output.symmetric and not _same_bits(got, got.mT):
        return Comparison("not exactly symmetric")
    g, e = got[inside].double(), expected[inside].double()
    if g.numel() == 0:
        return Comparison(None)
    both = 2 * ROUNDING[got.dtype] * e.abs() + SMALLEST[got.dtype]  # ours and the reference's
    allowed = output.allowed.reshape(-1).double() + both
    finite = torch.isfinite(e)
    errors = torch.where(finite, (g - e).abs(), 0.0)
    wrong = torch.where(finite, ~(errors <= allowed), ~((g == e) | (g.isnan() & e.isnan())))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        place = [int(i) for i in inside.nonzero()[first]]
        return Comparison(
            f"{int(wrong.sum())} of {g.numel()} are wrong, the first at {place}: {float(g[first]):.9g} for "
            f"{float(e[first]):.9g}, allowed {float(allowed[first]):.3g}"
        )
    return Comparison(None, float(torch.where(finite, errors / allowed, 0.0).max()))
