"""What is timed: our kernels and the strongest plain rivals on one problem, each checked against float64 first.

A contest is one op on one shape with one number of rows. Rivals that a machine lacks (semi-structured weights, Liger,
cut-cross-entropy) or that refuse a shape are named with the reason, never silently left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from on_device import floors
from on_device.device import Queue, on
from on_device.floors import Cost
from on_device.linear_cases import Packed
from on_device.problem import ROUNDING, SLACK, TORCH

CHECKED_ROWS = 16


class RefusedError(RuntimeError):
    """Why a contender does not take part."""


@dataclass
class Contender:
    """call() does the work once. result: what it wrote or returned last, [rows, ...]; None: not compared. slack: of
    the sum of sizes, what it may be off by beside the rounding of the result. truth: (exact, sizes), where not the
    contest's.
    """

    call: Callable[[], Any]
    cost: Cost
    ours: bool = False
    result: Callable[[], Tensor] | None = None
    slack: float = SLACK
    truth: tuple[Tensor, Tensor] | None = None


@dataclass
class Contest:
    """exact, sizes: float64, of `checked` rows of the result; sizes = Σ|terms|. against: whose time is compared with
    ours.
    """

    op: str
    shape: Mapping[str, Any]
    contenders: dict[str, Contender] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    exact: Tensor | None = None
    sizes: Tensor | None = None
    checked: Tensor | None = None
    baseline: str = ""  # ours that rivals are compared with

    def add(self, name: str, make: Callable[[], Contender]) -> None:
        """The contender, or why not."""
        try:
            self.contenders[name] = make()
        except (RefusedError, ImportError, RuntimeError, TypeError, ValueError) as error:
            self.refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def wrong(self, name: str) -> str | None:
        """What is wrong with a contender's result, or None."""
        contender = self.contenders[name]
        contender.call()
        exact, sizes = contender.truth or (self.exact, self.sizes)
        if contender.result is None or exact is None or sizes is None:
            return None
        result = contender.result()
        rows = self.checked if self.checked is not None else torch.arange(len(result))
        got = result.detach()[rows.to(result.device)].double().cpu()
        allowed = 2 * ROUNDING[result.dtype] * exact.abs() + contender.slack * sizes
        error = (got - exact).abs()
        if bool((error <= allowed).all()):
            return None
        worst = (error / allowed).nan_to_num(nan=torch.inf).argmax()
        return f"{float(error.reshape(-1)[worst]):.3g} from float64, {float(allowed.reshape(-1)[worst]):.3g} allowed"


@dataclass(frozen=True)
class LinearShape:
    """y [M, N] = x [M, K] Wᵀ."""

    model: str
    outputs: int
    inputs: int
    rows: int


def checked_rows(rows: int) -> Tensor:
    """The first and the last ones."""
    half = CHECKED_ROWS // 2
    chosen: Tensor = torch.unique(torch.cat([torch.arange(min(half, rows)), torch.arange(max(0, rows - half), rows)]))
    return chosen


class Weights:
    """W of a layer, pruned at random places and by 2:4, in all forms; made once per layer."""

    def __init__(self, queue: Queue, outputs: int, inputs: int) -> None:
        random = torch.Generator().manual_seed(0)
        dense = torch.randn(outputs, inputs, generator=random).bfloat16()  # exact in all types but fp16's small ones
        self.half = torch.where(torch.rand(outputs, inputs, generator=random) < 0.5, dense, 0).float()
        chance = torch.rand(outputs, -(-inputs // 4), 4, generator=random)
        kept = (chance.argsort(-1).argsort(-1) < 2).reshape(outputs, -1)[:, :inputs]
        self.two_of_four = torch.where(kept, dense, 0).float()
        self.bias = torch.randn(outputs, generator=random)
        self._queue, self._packed = queue, dict[str, tuple[dict[str, int], dict[str, Tensor], Packed]]()

    def packed(self, values: str) -> tuple[dict[str, int], dict[str, Tensor], Packed]:
        """(numbers, arrays on the device, on the host) of the unstructured one."""
        if values not in self._packed:
            weight = self.half if values == "int8" else self.half.to(TORCH[values])
            packed = Packed(self._queue.library, weight.contiguous(), values)
            numbers, arrays = packed.fields()
            self._packed[values] = numbers, on(self._queue.device, arrays), packed
        return self._packed[values]


def linear(queue: Queue, weights: Weights, shape: LinearShape) -> Contest:
    """sparse_linear with a folded bias against F.linear with the folded bias."""
    library, place = queue.library, queue.device.place
    N, K, M = shape.outputs, shape.inputs, shape.rows
    random = torch.Generator().manual_seed(1)
    x32 = torch.randn(M, K, generator=random).bfloat16().float()
    rows = checked_rows(M)
    picked = x32[rows].double()
    contest = Contest("sparse_linear", vars(shape), baseline="ours bf16", checked=rows)

    def truth(weight: Tensor) -> tuple[Tensor, Tensor]:
        w, b = weight.double(), weights.bias.double()
        return picked @ w.T + b, picked.abs() @ w.abs().T + b.abs()

    contest.exact, contest.sizes = truth(weights.half)
    of_2to4 = truth(weights.two_of_four)

    def ours(values: str, x_kind: str) -> Contender:
        numbers, arrays, packed = weights.packed(values)
        x = x32.to(place, TORCH[x_kind])
        y, bias = torch.empty(M, N, dtype=x.dtype, device=place), weights.bias.to(place)
        numbers = numbers | {"x_rows": M, "x_stride": K, "x_dtype": library.dtypes[x_kind], "y_stride": N}
        tensors = {**arrays, "x": x, "bias": bias, "y": y}
        call = queue.prepared("sparse_linear", library.struct("rlcc_sparse_linear_params", {**numbers, **tensors}))
        cost = floors.sparse_linear(N, K, M, values, x_kind)
        rounded = truth(packed.dense) if values == "int8" else None  # as it is after rounding to int8
        return Contender(keeping(call, tensors), cost, ours=True, result=lambda: y, truth=rounded)

    def ours_2to4() -> Contender:
        if "sparse_linear_2to4" not in library.interface.cuda_ops():
            raise RefusedError("this library has no sparse_linear_2to4")
        packed = Packed(library, weights.two_of_four.bfloat16(), "bf16")
        repacked = packed.for_tensor_cores(library)
        numbers, arrays = packed.fields()
        x = x32.to(place, torch.bfloat16)
        y, bias = torch.empty(M, N, dtype=x.dtype, device=place), weights.bias.to(place)
        numbers |= {"x_rows": M, "x_stride": K, "x_dtype": library.dtypes["bf16"], "y_stride": N}
        tensors = {**on(queue.device, arrays), "x": x, "bias": bias, "y": y}
        kept = on(queue.device, dict(repacked.arrays))
        params = library.struct("rlcc_sparse_linear_params", {**numbers, **tensors})
        call = queue.prepared("sparse_linear_2to4", params, repacked.built(library, kept))
        cost = floors.sparse_linear_2to4(N, K, M)
        return Contender(keeping(call, tensors, kept), cost, ours=True, result=lambda: y, truth=of_2to4)

    def torch_dense(kind: str) -> Contender:
        x, w, b = (t.to(place, TORCH[kind]) for t in (x32, weights.half, weights.bias))
        out: list[Tensor] = [x]

        def call() -> None:
            out[0] = functional.linear(x, w, b)

        # A rival may round the sum before the bias is added, too.
        slack = SLACK + 2 * ROUNDING[x.dtype]
        return Contender(call, floors.dense_linear(N, K, M, kind), result=lambda: out[0], slack=slack)

    def torch_2to4(cusparselt: bool) -> Contender:
        from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

        if place.type != "cuda":
            raise RefusedError("semi-structured weights need a CUDA device")
        form = SparseSemiStructuredTensorCUSPARSELT if cusparselt else SparseSemiStructuredTensorCUTLASS
        w = form.from_dense(weights.two_of_four.to(place, torch.bfloat16))
        x, b = x32.to(place, torch.bfloat16), weights.bias.to(place, torch.bfloat16)
        out = [functional.linear(x, w, b)]  # refuses here, if it does

        def call() -> None:
            out[0] = functional.linear(x, w, b)

        cost, slack = floors.sparse_linear_2to4(N, K, M), SLACK + 2 * ROUNDING[torch.bfloat16]
        return Contender(call, cost, result=lambda: out[0], slack=slack, truth=of_2to4)

    for values in ("bf16", "fp16", "int8"):
        contest.add(f"ours {values}", partial(ours, values, "bf16" if values == "int8" else values))
    contest.add("ours 2:4 bf16", ours_2to4)
    for kind in ("bf16", "fp16"):
        contest.add(f"torch {kind}", partial(torch_dense, kind))
    contest.add("torch 2:4 cuSPARSELt bf16", lambda: torch_2to4(True))
    contest.add("torch 2:4 CUTLASS bf16", lambda: torch_2to4(False))
    if M <= 16:
        contest.add("ours fp32", lambda: ours("fp32", "fp32"))
        contest.add("torch fp32", lambda: torch_dense("fp32"))
    return contest


def gradients(queue: Queue, weights: Weights, shape: LinearShape) -> Iterator[Contest]:
    """grad_x and grad_values in bf16 against the dense products."""
    library, place = queue.library, queue.device.place
    N, K, M = shape.outputs, shape.inputs, shape.rows
    random = torch.Generator().manual_seed(2)
    grad_y32 = torch.randn(M, N, generator=random).bfloat16().float()
    x32 = torch.randn(M, K, generator=random).bfloat16().float()
    grad_y, x = grad_y32.to(place, torch.bfloat16), x32.to(place, torch.bfloat16)
    numbers, arrays, _ = weights.packed("bf16")
    dense = weights.half.to(place, torch.bfloat16)

    def torch_product(a: Tensor, b: Tensor, cost: Cost) -> Contender:
        out: list[Tensor] = [a]

        def call() -> None:
            out[0] = a @ b

        return Contender(call, cost, result=lambda: out[0], slack=SLACK + 2 * ROUNDING[a.dtype])

    if "sparse_linear_grad_x" in library.interface.cuda_ops():
        contest = Contest("sparse_linear_grad_x", vars(shape), baseline="ours bf16", checked=checked_rows(M))
        picked = grad_y32[contest.checked].double()
        contest.exact = picked @ weights.half.double()
        contest.sizes = picked.abs() @ weights.half.double().abs()
        grad_x = torch.empty(M, K, dtype=torch.bfloat16, device=place)

        def ours_x() -> Contender:
            given = {"y_rows": M, "grad_y_stride": N, "dtype": library.dtypes["bf16"], "grad_x_stride": K}
            tensors = {**arrays, "grad_y": grad_y, "grad_x": grad_x}
            struct = library.struct("rlcc_sparse_linear_grad_x_params", {**numbers, **given, **tensors})
            call = keeping(queue.prepared("sparse_linear_grad_x", struct), tensors)
            return Contender(call, floors.sparse_linear_grad_x(N, K, M), ours=True, result=lambda: grad_x)

        contest.add("ours bf16", ours_x)
        contest.add("torch bf16", lambda: torch_product(grad_y, dense, floors.dense_linear(N, K, M)))
        yield contest
    if "sparse_linear_grad_values" in library.interface.cuda_ops():
        contest = Contest("sparse_linear_grad_values", vars(shape), baseline="ours bf16")
        values = torch.empty_like(arrays["weight.values"])

        def ours_values() -> Contender:
            given = {"rows": M, "x_stride": K, "grad_y_stride": N, "dtype": library.dtypes["bf16"]}
            tensors = {**arrays, "x": x, "grad_y": grad_y, "grad_values": values}
            struct = library.struct("rlcc_sparse_linear_grad_values_params", {**numbers, **given, **tensors})
            call = keeping(queue.prepared("sparse_linear_grad_values", struct), tensors)
            return Contender(call, floors.sparse_linear_grad_values(N, K, M), ours=True)

        contest.add("ours bf16", ours_values)
        contest.add("torch bf16, dense", lambda: torch_product(grad_y.T, x, floors.dense_linear(N, K, M)))
        yield contest


def row_sums(queue: Queue, shape: LinearShape, groups: int = 4) -> Contest:
    """The gradients of comp and bias in bf16 against torch's ways to the same sums; N and M of the shape count."""
    library, place = queue.library, queue.device.place
    N, M = shape.outputs, shape.rows
    random = torch.Generator().manual_seed(3)
    host = torch.randn(M, N, generator=random).bfloat16()
    index = torch.randint(0, groups, (M,), generator=random)
    tensors = {
        "grad_y": host.to(place), "comp_index": index.to(place),
        "grad_comp_rows": torch.empty(groups, N, device=place), "grad_bias": torch.empty(N, device=place),
    }  # fmt: skip
    grad_y, comp_index = tensors["grad_y"], tensors["comp_index"]
    contest = Contest("sparse_linear_grad_comp", {**vars(shape), "groups": groups}, baseline="ours bf16")

    def sums(rows: Tensor) -> Tensor:
        of_groups = torch.zeros(groups, N, dtype=torch.float64).index_add_(0, index, rows)
        return torch.cat([of_groups, rows.sum(0, keepdim=True)])

    contest.exact, contest.sizes = sums(host.double()), sums(host.double().abs())
    cost = floors.sparse_linear_grad_comp(N, M, groups)

    def ours() -> Contender:
        numbers = {"rows": M, "columns": N, "grad_y_stride": N, "dtype": library.dtypes["bf16"], "groups": groups}
        struct = library.struct("rlcc_sparse_linear_grad_comp_params", {**numbers, **tensors})
        call = keeping(queue.prepared("sparse_linear_grad_comp", struct), tensors)
        written = tensors["grad_comp_rows"], tensors["grad_bias"][None]
        return Contender(call, cost, ours=True, result=lambda: torch.cat(written))

    def rival(of_groups: Callable[[], Tensor]) -> Contender:
        out: list[Tensor] = []

        def call() -> None:
            out[:] = [of_groups(), grad_y.sum(0, keepdim=True, dtype=torch.float32)]

        return Contender(call, cost, result=lambda: torch.cat(out))

    def by_atomics() -> Tensor:  # in any order
        return torch.zeros(groups, N, device=place).index_add_(0, comp_index, grad_y.float())

    def by_product() -> Tensor:
        selects = comp_index == torch.arange(groups, device=place)[:, None]
        return selects.float() @ grad_y.float()

    contest.add("ours bf16", ours)
    contest.add("torch index_add_ and sum", lambda: rival(by_atomics))
    contest.add("torch product and sum", lambda: rival(by_product))
    return contest


def keeping(call: Callable[[], None], *held: Mapping[str, Tensor]) -> Callable[[], None]:
    """The call; the tensors, to which its struct only has pointers, live as long as it does."""
    return partial(_call, call, held)


def _call(call: Callable[[], None], _held: object) -> None:
    call()
