"""Bytes and FLOPs of each op, and what no kernel can go below with them: standard library only.

A floor is max(bytes / bandwidth, FLOPs / rate): each array once through memory, each multiply-add once through the
unit that the kernel uses. FLOPs count pruned places too, which the decode and tile kernels multiply; the 2:4 kernel's
are those of the dense product at twice the dense rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
LANES = 32


@dataclass(frozen=True)
class Cost:
    """unit: "fma" (fp32 lanes), "tensor" (16-bit, fp32 sums) or "sparse" (2:4, counted as dense)."""

    bytes: float
    flops: float
    unit: str

    def seconds(self, roof: Roof) -> float:
        return max(self.bytes / roof.bandwidth, self.flops / roof.rate(self.unit))

    def bound(self, roof: Roof) -> str:
        return "memory" if self.bytes / roof.bandwidth >= self.flops / roof.rate(self.unit) else self.unit


@dataclass(frozen=True)
class Roof:
    """Of a device: bytes/s; FLOP/s of 16-bit tensor cores, dense, and of fp32 lanes."""

    name: str
    bandwidth: float
    tensor: float
    fma: float

    def rate(self, unit: str) -> float:
        return {"tensor": self.tensor, "sparse": 2 * self.tensor, "fma": self.fma}[unit]


@dataclass(frozen=True)
class Card:
    """A device of the data sheets: its roof, and what issue depends on."""

    roof: Roof
    architecture: str
    multiprocessors: int
    clock: float  # Hz; of the limit on issue

    def lane_instructions_per_weight(self, bytes_per_weight: float) -> float:
        """What a multiprocessor's four schedulers can issue, a warp instruction a clock each, while memory brings a
        weight.
        """
        issued = self.multiprocessors * 4 * LANES * self.clock
        return issued * bytes_per_weight / self.roof.bandwidth


# NVIDIA's data sheets: A100 80 GB PCIe/SXM (its bandwidth rounded down to that of the PCIe card), H100 SXM, RTX 4090
# (tensor cores with fp32 sums run at half of the rate with fp16 sums).
CARDS = (
    Card(Roof("A100", 2.0e12, 312e12, 19.5e12), "sm_80", 108, 1.41e9),
    Card(Roof("H100 SXM", 3.35e12, 989e12, 66.9e12), "sm_90", 132, 1.755e9),
    Card(Roof("RTX 4090", 1.01e12, 165e12, 82.6e12), "sm_89", 128, 2.52e9),
)


def weight_bytes(outputs: int, inputs: int, values: str, density: float = 0.5) -> float:
    """Of the bitmask format: mask, values, row offsets, scales."""
    mask = outputs * ceil(inputs / 64) * 8
    scales = outputs * ceil(inputs / 128) * 2 if values == "int8" else 0
    return mask + outputs * inputs * density * BYTES[values] + (outputs + 1) * 8 + scales


def sparse_linear(
    outputs: int, inputs: int, rows: int, values: str = "bf16", x: str = "bf16", density: float = 0.5
) -> Cost:
    """Up to 16 rows the decode kernel, in fp32 lanes; above, tensor cores where x has 16 bits and W is exact in its
    type.
    """
    moved = weight_bytes(outputs, inputs, values, density) + rows * (inputs + outputs) * BYTES[x]
    tensor = rows > 16 and x != "fp32" and values in (x, "int8")
    return Cost(moved, 2.0 * rows * outputs * inputs, "tensor" if tensor else "fma")


def sparse_linear_2to4(outputs: int, inputs: int, rows: int, x: str = "bf16") -> Cost:
    """Two of four values, and two bits for each."""
    moved = outputs * inputs * (0.5 * BYTES[x] + 1 / 8) + rows * (inputs + outputs) * BYTES[x]
    return Cost(moved, 2.0 * rows * outputs * inputs, "sparse")


def dense_linear(outputs: int, inputs: int, rows: int, x: str = "bf16") -> Cost:
    """F.linear."""
    moved = (outputs * inputs + rows * (inputs + outputs)) * BYTES[x]
    return Cost(moved, 2.0 * rows * outputs * inputs, "tensor" if x != "fp32" else "fma")


def sparse_linear_grad_x(outputs: int, inputs: int, rows: int, values: str = "bf16", x: str = "bf16") -> Cost:
    """grad_y W, by tiles whatever the rows; int8 values times their scales need two bf16 each."""
    moved = weight_bytes(outputs, inputs, values) + rows * (inputs + outputs) * BYTES[x]
    tensor = x != "fp32" and (values == x or (values == "int8" and x == "bf16"))
    products = 2 if values == "int8" and tensor else 1
    return Cost(moved, 2.0 * rows * outputs * inputs * products, "tensor" if tensor else "fma")


def sparse_linear_grad_values(outputs: int, inputs: int, rows: int, values: str = "bf16", x: str = "bf16") -> Cost:
    """grad_yᵀ x at the survivors: the whole product is formed, half of it is written."""
    moved = weight_bytes(outputs, inputs, values) + rows * (inputs + outputs) * BYTES[x]
    return Cost(moved, 2.0 * rows * outputs * inputs, "tensor" if x != "fp32" else "fma")


def sparse_linear_grad_comp(outputs: int, rows: int, groups: int, x: str = "bf16") -> Cost:
    """Both gradients by one index: two additions for each number read, and each takes the slot of a multiply-add."""
    moved = rows * outputs * BYTES[x] + rows * 8 + (groups + 1) * outputs * 4
    return Cost(moved, 4.0 * rows * outputs, "fma")


def linear_cross_entropy(rows: int, vocabulary: int, columns: int, gradient: bool, dtype: str = "bf16") -> Cost:
    """Logits once; with grad_h their exponentials times W as well."""
    moved = (vocabulary * columns + rows * columns * (2 if gradient else 1)) * BYTES[dtype] + rows * 16
    flops = (4.0 if gradient else 2.0) * rows * vocabulary * columns
    return Cost(moved, flops, "tensor" if dtype != "fp32" else "fma")


def linear_cross_entropy_backward(rows: int, vocabulary: int, columns: int, dtype: str = "bf16") -> Cost:
    """Logits again, then both gradients."""
    moved = 2.0 * (vocabulary + rows) * columns * BYTES[dtype] + rows * 16 + vocabulary * 4
    return Cost(moved, 6.0 * rows * vocabulary * columns, "tensor" if dtype != "fp32" else "fma")


def head_contrast(groups: int, rows: int, vocabulary: int, columns: int, dtype: str = "bf16") -> Cost:
    """The loss of groups x rows hidden states."""
    return linear_cross_entropy(groups * rows, vocabulary, columns, False, dtype)


def head_moments(tokens: int, heads: int, head_dim: int, dtype: str = "bf16") -> Cost:
    """Half of each symmetric Gram matrix, in fp32 lanes; differences and sums are little beside it."""
    moved = 2.0 * tokens * heads * head_dim * BYTES[dtype] + 2 * heads * head_dim * (head_dim + 1) * 8
    return Cost(moved, float(tokens * heads * head_dim * (head_dim + 1)), "fma")
