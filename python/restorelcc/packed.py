"""The `bitmask` form of a pruned weight: a bit for each place, and the values that survived.

The layout is drawn in restorelcc/params.h. Lives here: packing, unpacking and checking, by the
compiled ops where they are there and in plain torch where not; no product is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from restorelcc import _native

WORD_BITS = 64
VALUE_ALIGNMENT_BYTES = 16
VALUE_PADDING_BYTES = 64
PACKED_DTYPES = (torch.float32, torch.bfloat16)

PackedTensors: TypeAlias = tuple[Tensor, Tensor, Tensor, int]  # mask, values, row_offsets, K


class Snapshot:
    """Remembers tensors as they are, to notice a write to them later.

    A write through torch advances a tensor's version; the alias kept here keeps its memory from
    being handed to another tensor. A write through `.data` or numpy advances nothing and goes
    unseen; so tensors made in inference mode, which have no version, never count as unchanged.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._kept = [(t, t.detach(), None if t.is_inference() else t._version, t.data_ptr()) for t in tensors]

    def unchanged(self, *tensors: Tensor) -> bool:
        """Whether these are the tensors of the snapshot, not written to since."""
        for tensor, (kept, _, version, pointer) in zip(tensors, self._kept, strict=True):
            if tensor is not kept or version is None or tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return True


class PackedWeight:
    """W [N, K] as (mask, values, row_offsets): only what survived the pruning is stored.

    mask         int64 [N, ceil(K / 64)]; bit i of word j of row n  <=>  W[n, 64 j + i] survived
    values       float32 or bfloat16 [V]; the survivors, row after row in column order, padded
    row_offsets  int64 [N + 1]; row n starts at values[row_offsets[n]]

    Building one from tensors checks every index, so that no kernel can be made to read outside
    them; ValueError says what is wrong. The tensors must not be written to afterwards: the ops
    notice (see Snapshot) and check again in each call until validate() has said yes.
    """

    def __init__(self, mask: Tensor, values: Tensor, row_offsets: Tensor, shape: tuple[int, int]) -> None:
        self.mask = mask
        self.values = values
        self.row_offsets = row_offsets
        rows, columns = shape
        self.shape: tuple[int, int] = (int(rows), int(columns))
        self._snapshot: Snapshot | None = None
        self.validate()

    def validate(self) -> None:
        """Check every index in the tensors; afterwards they are trusted. ValueError where one is wrong."""
        rows, columns = self.shape
        if self.mask.dim() != 2 or self.mask.shape[0] != rows:
            raise ValueError(f"mask has shape {list(self.mask.shape)}, but the weight has {rows} rows")
        if _native.available():
            torch.ops.restorelcc.packed_validate(self.mask, self.values, self.row_offsets, columns)
        else:
            _validate_reference(self.mask, self.values, self.row_offsets, columns)
        self._snapshot = Snapshot(self.mask, self.values, self.row_offsets)

    @property
    def trusted(self) -> bool:
        """Whether the tensors are still the ones that validate() accepted."""
        if self._snapshot is None:
            return False
        # A compiled graph cannot ask for versions: it keeps what held when it was traced.
        return torch.compiler.is_compiling() or self._snapshot.unchanged(self.mask, self.values, self.row_offsets)

    @property
    def tensors(self) -> PackedTensors:
        """(mask, values, row_offsets, K): what the ops take."""
        return self.mask, self.values, self.row_offsets, self.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the values: torch.float32 or torch.bfloat16."""
        return self.values.dtype

    @cached_property
    def nnz(self) -> int:
        """How many weights survived."""
        return int(_bits(self.mask, self.shape[1]).sum())

    @property
    def sparsity(self) -> float:
        """Share of the N K weights that are pruned, 0 to 1."""
        total = self.shape[0] * self.shape[1]
        return 1.0 - self.nnz / total if total else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of mask, values and row_offsets."""
        return self.mask.nbytes + self.values.nbytes + self.row_offsets.nbytes

    def unpack(self) -> Tensor:
        """W [N, K], the same bits; pruned places are +0.0."""
        columns = self.shape[1]
        if _native.available():
            weight: Tensor = torch.ops.restorelcc.unpack(self.mask, self.values, self.row_offsets, columns)
            return weight
        return _unpack_reference(self.mask, self.values, self.row_offsets, columns)

    def describe(self) -> str:
        """One line for people."""
        rows, columns = self.shape
        weights = max(rows * columns, 1)
        return (
            f"{rows} x {columns} {str(self.dtype).removeprefix('torch.')}, {100 * self.sparsity:.1f} % zeros: "
            f"{self.nbytes:,} bytes, {self.nbytes / weights:.3f} a weight (dense: {self.values.element_size()})"
        )

    def __repr__(self) -> str:
        return f"PackedWeight({self.describe()})"

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors to save: mask, values, row_offsets, and shape as int64 [2]."""
        return {
            "mask": self.mask,
            "values": self.values,
            "row_offsets": self.row_offsets,
            "shape": torch.tensor(self.shape, dtype=torch.int64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PackedWeight:
        """The inverse of to_tensors; checks what it is given (KeyError names a missing tensor)."""
        rows, columns = tensors["shape"].tolist()
        return cls(tensors["mask"], tensors["values"], tensors["row_offsets"], (rows, columns))


def pack(weight: Tensor) -> PackedWeight:
    """weight [N, K], float32 or bfloat16 with zeros -> its bitmask form.

    Pruned means == 0, so -0.0 counts as pruned (and unpacks as +0.0); NaN and Inf survive. The
    weight is read, not kept. ValueError for another dtype, rank or device.
    """
    weight = weight.detach()
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [N, K]")
    if weight.dtype not in PACKED_DTYPES:
        raise ValueError(f"weight has dtype {weight.dtype}; it must be torch.float32 or torch.bfloat16")
    if weight.device.type != "cpu":
        raise ValueError(f"weight is on {weight.device}; packing runs on the CPU, so move it with .cpu()")
    tensors = torch.ops.restorelcc.pack(weight) if _native.available() else _pack_reference(weight)
    mask, values, row_offsets = tensors
    return PackedWeight(mask, values, row_offsets, (weight.shape[0], weight.shape[1]))


def _bits(mask: Tensor, columns: int) -> Tensor:
    """bool [N, K] from the words."""
    shifts = torch.arange(WORD_BITS, dtype=torch.int64)
    return ((mask.unsqueeze(-1) >> shifts) & 1).bool().flatten(1)[:, :columns]


def _positions(bits: Tensor, row_offsets: Tensor) -> Tensor:
    """Where each survivor's value is, for the set places of bits in row order."""
    return (row_offsets[:-1, None] + bits.cumsum(1) - 1)[bits]


def _pack_reference(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    words = -(-columns // WORD_BITS)
    bits = weight != 0
    padded = torch.zeros(rows, words * WORD_BITS, dtype=torch.int64)
    padded[:, :columns] = bits
    shifts = torch.arange(WORD_BITS, dtype=torch.int64)
    mask = (padded.view(rows, words, WORD_BITS) << shifts).sum(-1)
    aligned = VALUE_ALIGNMENT_BYTES // weight.element_size()
    lengths = -(-bits.sum(1) // aligned) * aligned
    row_offsets = torch.zeros(rows + 1, dtype=torch.int64)
    row_offsets[1:] = lengths.cumsum(0)
    values = weight.new_zeros(int(row_offsets[-1]) + VALUE_PADDING_BYTES // weight.element_size())
    values[_positions(bits, row_offsets)] = weight[bits]
    return mask, values, row_offsets


def _unpack_reference(mask: Tensor, values: Tensor, row_offsets: Tensor, columns: int) -> Tensor:
    bits = _bits(mask, columns)
    weight = values.new_zeros(bits.shape)
    weight[bits] = values[_positions(bits, row_offsets)]
    return weight


def _validate_reference(mask: Tensor, values: Tensor, row_offsets: Tensor, columns: int) -> None:
    rows, words = mask.shape[0], -(-columns // WORD_BITS)
    for name, tensor, shape in (("mask", mask, [rows, words]), ("row_offsets", row_offsets, [rows + 1])):
        if tensor.dtype != torch.int64 or list(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; it must be torch.int64 {shape}")
    if values.dtype not in PACKED_DTYPES or values.dim() != 1:
        raise ValueError(f"values is {values.dtype} {list(values.shape)}; it must be [V] float32 or bfloat16")
    survivors = _bits(mask, words * WORD_BITS)
    if survivors[:, columns:].any():
        raise ValueError(f"mask has bits set at columns >= {columns}")
    aligned = VALUE_ALIGNMENT_BYTES // values.element_size()
    capacity = values.numel() - VALUE_PADDING_BYTES // values.element_size()
    wrong = (row_offsets < 0) | (row_offsets > capacity) | (row_offsets % aligned != 0)
    wrong[1:] |= row_offsets[1:] - row_offsets[:-1] < survivors.sum(1)
    if wrong.any():
        n = int(wrong.nonzero()[0])
        raise ValueError(
            f"row_offsets[{n}] is {int(row_offsets[n])}; rows must follow each other, aligned to {aligned} elements, "
            f"and end within the {capacity} values (truncated, or the padding is missing)"
        )
