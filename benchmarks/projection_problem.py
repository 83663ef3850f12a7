"""One projection to time: its weight, its inputs, the exact result, and how far from it a contender may be.

Everything is a bfloat16 number (held in float32), so that fp32, bf16 and fp16 contenders multiply the same numbers and
one float64 product judges them all. numpy only, so that any rival's Python can import it; the same seed gives the
same numbers everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Exact = NDArray[np.float64]

COLD_ROWS = 16
CHECKED_ROWS = 16
EPSILON = {"fp32": 2.0**-23, "bf16": 2.0**-7, "fp16": 2.0**-10}


@dataclass(frozen=True)
class Case:
    """y [M, N] = x [M, K] Wᵀ + bias, or (op "grad_x") [M, K] = grad_y [M, N] W.

    pattern: share of zeros, or "2:4". groups: compensations that a comp_index chooses among for each row, 0 for none.
    cold_bytes: of distinct weights to go round, so that a product of few rows finds its weight in memory.
    """

    outputs: int
    inputs: int
    pattern: str
    rows: int
    op: str = "forward"
    groups: int = 0
    cold_bytes: int = 256 << 20

    def copies(self, nbytes: int) -> int:
        """How many weights of so many bytes to go round; with many rows arithmetic takes the time, and two will do."""
        return max(2, -(-self.cold_bytes // nbytes)) if self.rows <= COLD_ROWS else 2


@dataclass(frozen=True)
class Problem:
    """weight [N, K]; given: x [M, K], or grad_y [M, N]; bias [N], which is comp Wᵀ folded; comp [G, K]; index [M]."""

    case: Case
    weight: Array
    given: Array
    bias: Array
    comp: Array
    index: NDArray[np.int64]
    exact: Exact  # of the first and last rows, see `checked`

    def turned(self, i: int) -> tuple[Array, Array]:
        """(weight, bias) with their outputs moved by i: as fast, but no bytes that an engine could share between copies
        (DeepSparse does).
        """
        return np.roll(self.weight, i, axis=0), np.roll(self.bias, i)

    @property
    def checked(self) -> NDArray[np.int64]:
        """The rows of the result that are compared with float64."""
        rows = self.case.rows
        half = CHECKED_ROWS // 2
        return np.unique(np.r_[0 : min(half, rows), max(0, rows - half) : rows])

    def allowed(self, kind: str, x_kind: str) -> float:
        """The largest error that passes: one rounding of the output, a float32 sum in any order, and with int8 values
        six standard deviations of their rounding and of that of x.
        """
        case = self.case
        terms = case.inputs if case.op == "forward" else case.outputs
        size = float(np.sqrt(np.mean(self.weight**2)) * np.sqrt(np.mean(self.given**2)))
        allowed = EPSILON[x_kind] * float(np.abs(self.exact).max()) + 4 * 2.0**-23 * terms * size
        if kind.startswith("int8"):
            w, x = self.weight, self.given
            steps = float(np.abs(w).max() * np.sqrt(np.mean(x**2)) + np.sqrt(np.mean(w**2)) * np.abs(x).max()) / 127
            allowed += 6 * steps * float(terms / 12) ** 0.5
        return allowed

    def check(self, result: NDArray[np.float32], kind: str, x_kind: str) -> dict[str, float]:
        """{"error", "allowed"}; ValueError where a result is further from float64 than allowed."""
        if result.shape[0] != self.case.rows:
            raise ValueError(f"the result has {result.shape[0]} rows, not {self.case.rows}")
        error = float(np.abs(result[self.checked].astype(np.float64) - self.exact).max())
        allowed = self.allowed(kind, x_kind)
        if not error <= allowed:
            raise ValueError(f"the result is {error:.3g} from float64, more than the {allowed:.3g} allowed")
        return {"error": error, "allowed": allowed}


def bfloat16_values(values: Array) -> Array:
    """The nearest bfloat16 numbers, ties to even, as float32 (finite numbers only)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


@lru_cache(maxsize=1)
def pruned_weight(outputs: int, inputs: int, pattern: str) -> Array:
    """W [N, K], normal, pruned at random places."""
    random = np.random.default_rng(0)
    weight = bfloat16_values(random.standard_normal((outputs, inputs), dtype=np.float32))
    chance = random.random((outputs, inputs), dtype=np.float32)
    if pattern == "2:4":
        order = chance.reshape(outputs, inputs // 4, 4).argsort(-1).argsort(-1)
        kept = (order < 2).reshape(weight.shape)
    else:
        kept = chance >= float(pattern)
    return weight * kept


@lru_cache(maxsize=1)
def problem(case: Case) -> Problem:
    """The numbers of a case."""
    weight = pruned_weight(case.outputs, case.inputs, case.pattern)
    random = np.random.default_rng(1)
    width = case.inputs if case.op == "forward" else case.outputs
    given = bfloat16_values(random.standard_normal((case.rows, width), dtype=np.float32))
    comp = 0.1 * random.standard_normal((max(case.groups, 1), case.inputs), dtype=np.float32)
    index = random.integers(0, max(case.groups, 1), case.rows)
    bias = bfloat16_values(weight @ comp[0])
    blank = Problem(case, weight, given, bias, comp, index, np.empty(0))
    rows = given[blank.checked].astype(np.float64)
    if case.op == "forward":
        exact = np.concatenate([rows @ part.astype(np.float64).T for part in _parts(weight)], axis=1)
        if case.groups:
            exact += (comp.astype(np.float64) @ weight.astype(np.float64).T)[index[blank.checked]]
        else:
            exact += bias
    else:
        exact = np.zeros((len(rows), case.inputs))
        begin = 0
        for part in _parts(weight):
            exact += rows[:, begin : begin + len(part)] @ part.astype(np.float64)
            begin += len(part)
    return Problem(case, weight, given, bias, comp, index, exact)


def _parts(weight: Array) -> list[Array]:
    """A thousand rows at a time, so that no float64 copy of the whole exists."""
    return [weight[begin : begin + 1024] for begin in range(0, len(weight), 1024)]
