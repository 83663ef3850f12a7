"""Whether a matrix is faster as a bitmask or dense: a pure function of its shape, its zeros and its type.

    bitmask: N (8 ceil(K/64) + 8) + nonzero * e bytes (and rows aligned to 16)        dense: N K e bytes

A product with few rows of x takes the time of reading W, so bytes decide; but for float32 the bitmask kernel reads more
slowly than the dense product of torch does (docs/performance.md), and has to read that much less to be worth it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Layout", "choose_layout"]

# Bytes a second of the bitmask kernel over those of torch's dense product at M = 1, one thread, measured with AVX2:
# 15 GB/s over 19.5. In 16 bits torch's dense product on such a CPU is slower than ours at any sparsity.
_READ_RATE = {torch.float32: 0.77, torch.bfloat16: 1.0, torch.float16: 1.0, torch.int8: 1.0}


@dataclass(frozen=True)
class Layout:
    """kind: "bitmask" or "dense"; bytes of both. With int8 values, dense is bfloat16: there is no dense int8 here."""

    kind: str
    bitmask_bytes: int
    dense_bytes: int

    @property
    def ratio(self) -> float:
        """bitmask_bytes / dense_bytes; infinity for an empty matrix."""
        return self.bitmask_bytes / self.dense_bytes if self.dense_bytes else float("inf")


def choose_layout(rows: int, columns: int, nonzero: int, values: torch.dtype) -> Layout:
    """The faster layout for W [rows, columns] with `nonzero` survivors stored as `values`, for few rows of x.

    Raises:
        ValueError: more survivors than places, negative sizes, or a type that cannot be packed.
    """
    if values not in _READ_RATE:
        raise ValueError(f"values are {values}; they must be one of {', '.join(map(str, _READ_RATE))}")
    if rows < 0 or columns < 0 or not 0 <= nonzero <= rows * columns:
        raise ValueError(f"{nonzero} survivors in [{rows}, {columns}]; there must be 0 to {rows * columns}")
    element, words, groups = values.itemsize, -(-columns // 64), -(-columns // 128)
    aligning = min(rows, nonzero) * (16 - element) // 2  # half of the most that a row can waste
    bitmask = rows * (8 * words + 8) + nonzero * element + aligning + (2 * rows * groups if element == 1 else 0)
    dense = rows * columns * max(element, 2)
    kind = "bitmask" if bitmask < _READ_RATE[values] * dense else "dense"
    return Layout(kind, bitmask, dense)
