"""The `bitmask` form of a pruned weight: a bit for each place, and the values that survived.

The layout is drawn in restorelcc/params.h. Lives here: packing, unpacking and checking, by the
compiled ops where they are there and in plain torch where not; no product is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from restorelcc import _native
from restorelcc.layout import choose_layout

WORD_BITS = 64
VALUE_ALIGNMENT_BYTES = 16
VALUE_PADDING_BYTES = 64
SCALE_COLUMNS = 128
DENSE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PACKED_DTYPES = (*DENSE_DTYPES, torch.int8)
VALUES = (None, "int8")

# mask, values, row_offsets, scales (int8 values only), K
PackedTensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None, int]


class Snapshot:
    """Remembers tensors as they are, to notice a write to them later.

    A write through torch advances a tensor's version; the alias kept here keeps its memory from
    being handed to another tensor. A write through `.data` or numpy advances nothing and goes
    unseen; so tensors made in inference mode, which have no version, never count as unchanged.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._kept = [(t, t.detach(), None if t.is_inference() else t._version, t.data_ptr()) for t in tensors]

    def __len__(self) -> int:
        return len(self._kept)

    def still_unchanged(self) -> bool:
        """Whether the tensors of the snapshot were not written to since; for one who knows that they are still his."""
        for kept, _, version, pointer in self._kept:
            if version is None or kept._version != version or kept.data_ptr() != pointer:
                return False
        return True

    def unchanged(self, *tensors: Tensor) -> bool:
        """Whether these are the tensors of the snapshot, not written to since."""
        for tensor, kept in zip(tensors, self._kept, strict=True):
            if tensor is not kept[0]:
                return False
        return self.still_unchanged()


class PackedWeight:
    """W [N, K] as (mask, values, row_offsets, scales): only what survived the pruning is stored.

    mask         int64 [N, ceil(K / 64)]; bit i of word j of row n  <=>  W[n, 64 j + i] survived
    values       float32, bfloat16, float16 or int8 [V]; the survivors, row after row in column order, padded
    row_offsets  int64 [N + 1]; row n starts at values[row_offsets[n]]
    scales       bfloat16 [N, ceil(K / 128)] with int8 values: W[n, k] = value * scales[n, k // 128]; else None

    Building one from tensors checks every index (on the CPU, whatever device they are on), so that no
    kernel can be made to read outside them; ValueError says what is wrong. The tensors must not be
    written to afterwards: the ops notice (see Snapshot) and check again in each call until validate()
    has said yes.
    """

    def __init__(
        self,
        mask: Tensor,
        values: Tensor,
        row_offsets: Tensor,
        shape: tuple[int, int],
        scales: Tensor | None = None,
    ) -> None:
        self.mask = mask
        self.values = values
        self.row_offsets = row_offsets
        self.scales = scales
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
            torch.ops.restorelcc.packed_validate(*self._on_cpu)  # of a CUDA device, a copy: it is done once
        else:
            _validate_reference(self.mask, self.values, self.row_offsets, self.scales, columns)
        self._snapshot = Snapshot(*self._parts)

    @property
    def trusted(self) -> bool:
        """Whether the tensors are still the ones that validate() accepted."""
        if self._snapshot is None:
            return False
        # A compiled graph cannot ask for versions: it keeps what held when it was traced.
        return torch.compiler.is_compiling() or self._snapshot.unchanged(*self._parts)

    @property
    def _parts(self) -> list[Tensor]:
        return [self.mask, self.values, self.row_offsets, *([] if self.scales is None else [self.scales])]

    @property
    def tensors(self) -> PackedTensors:
        """(mask, values, row_offsets, scales, K): what the ops take."""
        return self.mask, self.values, self.row_offsets, self.scales, self.shape[1]

    @property
    def _on_cpu(self) -> PackedTensors:
        mask, values, row_offsets, scales, columns = self.tensors
        return mask.cpu(), values.cpu(), row_offsets.cpu(), None if scales is None else scales.cpu(), columns

    @property
    def dtype(self) -> torch.dtype:
        """Of the values: torch.float32, bfloat16, float16 or int8."""
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
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self._parts)

    def unpack(self) -> Tensor:
        """W [N, K], the same bits; pruned places are +0.0. Of int8 values: value * scale in float32, exact."""
        if _native.available():
            weight: Tensor = torch.ops.restorelcc.unpack(*self._on_cpu)
            return weight.to(self.values.device)
        return unpack_reference(*self.tensors)

    def slice_rows(self, begin: int, end: int) -> PackedWeight:
        """W[begin:end], in the memory of this weight (row_offsets apart, which begin at 0 again).

        The padding behind its values is what stands there: of stack_rows, a gap; else the next row, where there is one.
        """
        if not 0 <= begin <= end <= self.shape[0]:
            raise ValueError(f"rows {begin} to {end} are not within the {self.shape[0]} rows of the weight")
        offsets = self.row_offsets[begin : end + 1].clone()
        if end > begin:  # a gap behind the last row is none of its own
            aligned = VALUE_ALIGNMENT_BYTES // self.values.element_size()
            survivors = int(_bits(self.mask[end - 1 : end], self.shape[1]).sum())
            offsets[-1] = offsets[-2] + -(-survivors // aligned) * aligned
        first, padding = int(offsets[0]), VALUE_PADDING_BYTES // self.values.element_size()
        return PackedWeight(
            self.mask[begin:end],
            self.values[first : int(offsets[-1]) + padding],
            offsets - first,
            (end - begin, self.shape[1]),
            None if self.scales is None else self.scales[begin:end],
        )

    def describe(self) -> str:
        """One line for people."""
        rows, columns = self.shape
        weights = max(rows * columns, 1)
        better = choose_layout(rows, columns, self.nnz, self.dtype).kind
        return (
            f"{rows} x {columns} {str(self.dtype).removeprefix('torch.')}, {100 * self.sparsity:.1f} % zeros: "
            f"{self.nbytes:,} bytes, {self.nbytes / weights:.3f} a weight (dense: {max(self.dtype.itemsize, 2)}); "
            + ("faster than dense for few rows" if better == "bitmask" else "too few zeros: dense is faster")
        )

    def __repr__(self) -> str:
        return f"PackedWeight({self.describe()})"

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors to save: mask, values, row_offsets, shape as int64 [2], and scales where there are some."""
        return {
            "mask": self.mask,
            "values": self.values,
            "row_offsets": self.row_offsets,
            "shape": torch.tensor(self.shape, dtype=torch.int64),
            **({} if self.scales is None else {"scales": self.scales}),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PackedWeight:
        """The inverse of to_tensors; checks what it is given (KeyError names a missing tensor)."""
        rows, columns = tensors["shape"].tolist()
        return cls(tensors["mask"], tensors["values"], tensors["row_offsets"], (rows, columns), tensors.get("scales"))


def pack(weight: Tensor, *, values: str | None = None) -> PackedWeight:
    """weight [N, K], float32, bfloat16 or float16 with zeros -> its bitmask form.

    Pruned means == 0, so -0.0 counts as pruned (and unpacks as +0.0); NaN and Inf survive. The
    weight is read, not kept. ValueError for another dtype, rank or device.

    values  None keeps the survivors as they are; "int8" rounds them: value = round(W / scale) with one scale for
            each row and 128 columns, max |W| / 127 there, rounded up to bfloat16. A survivor may round to 0 and
            stays in the mask; NaN and Inf are refused.
    """
    weight = weight.detach()
    if values not in VALUES:
        raise ValueError(f"values is {values!r}; it must be None (the weight's own dtype) or 'int8'")
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [N, K]")
    if weight.dtype not in DENSE_DTYPES:
        raise ValueError(f"weight has dtype {weight.dtype}; it must be torch.float32, torch.bfloat16 or torch.float16")
    if weight.device.type != "cpu":
        raise ValueError(f"weight is on {weight.device}; packing runs on the CPU, so move it with .cpu()")
    int8 = values == "int8"
    tensors = torch.ops.restorelcc.pack(weight, int8) if _native.available() else _pack_reference(weight, int8)
    mask, kept, row_offsets, scales = tensors
    return PackedWeight(mask, kept, row_offsets, (weight.shape[0], weight.shape[1]), scales if int8 else None)


def stack_rows(weights: Sequence[PackedWeight]) -> PackedWeight:
    """[W_1; W_2; ...] of weights of one K and dtype, copied: one weight with the rows of all of them.

    Each keeps its padding, so that writing to the values of one (see slice_rows) does not touch another.
    ValueError where they differ.
    """
    kinds = {(weight.shape[1], weight.dtype) for weight in weights}
    if len(kinds) != 1:
        raise ValueError(f"weights of {len(kinds)} kinds (columns, dtype) cannot be stacked; they must be of one")
    padding = VALUE_PADDING_BYTES // weights[0].values.element_size()
    kept, offsets, end = [], [], 0
    for weight in weights:
        kept.append(weight.values[: int(weight.row_offsets[-1]) + padding])
        offsets.append(weight.row_offsets[:-1] + end)
        end += kept[-1].numel()
    return PackedWeight(
        torch.cat([weight.mask for weight in weights]),
        torch.cat(kept),
        torch.cat([*offsets, torch.tensor([end - padding])]),
        (sum(weight.shape[0] for weight in weights), weights[0].shape[1]),
        None if weights[0].scales is None else torch.cat([w.scales for w in weights if w.scales is not None]),
    )


def _bits(mask: Tensor, columns: int) -> Tensor:
    """bool [N, K] from the words."""
    shifts = torch.arange(WORD_BITS, dtype=torch.int64)
    return ((mask.unsqueeze(-1) >> shifts) & 1).bool().flatten(1)[:, :columns]


def _positions(bits: Tensor, row_offsets: Tensor) -> Tensor:
    """Where each survivor's value is, for the set places of bits in row order."""
    return (row_offsets[:-1, None] + bits.cumsum(1) - 1)[bits]


def _pack_reference(weight: Tensor, int8: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    words = -(-columns // WORD_BITS)
    bits = weight != 0
    padded = torch.zeros(rows, words * WORD_BITS, dtype=torch.int64)
    padded[:, :columns] = bits
    shifts = torch.arange(WORD_BITS, dtype=torch.int64)
    mask = (padded.view(rows, words, WORD_BITS) << shifts).sum(-1)
    scales = weight.new_empty(0, dtype=torch.bfloat16)
    if int8:
        wrong = ~weight.isfinite()
        if wrong.any():
            n, k = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"weight[{n}, {k}] is {float(weight[n, k])}, which int8 values cannot hold; keep the weight's own dtype"
            )
        scales = _scales_reference(weight)
        exact = weight.double() / _scale_of_columns(scales, columns)
        weight = torch.where(bits, exact, 0.0).round().clamp(-127, 127).to(torch.int8)
    aligned = VALUE_ALIGNMENT_BYTES // weight.element_size()
    lengths = -(-bits.sum(1) // aligned) * aligned
    row_offsets = torch.zeros(rows + 1, dtype=torch.int64)
    row_offsets[1:] = lengths.cumsum(0)
    values = weight.new_zeros(int(row_offsets[-1]) + VALUE_PADDING_BYTES // weight.element_size())
    values[_positions(bits, row_offsets)] = weight[bits]
    return mask, values, row_offsets, scales


def _scales_reference(weight: Tensor) -> Tensor:
    """max |W| / 127 of each row and group of columns, rounded up to bfloat16 [N, groups]."""
    rows, columns = weight.shape
    groups = -(-columns // SCALE_COLUMNS)
    padded = torch.zeros(rows, groups * SCALE_COLUMNS, dtype=torch.float64)
    padded[:, :columns] = weight.double().abs()
    largest = padded.view(rows, groups, SCALE_COLUMNS).amax(-1)
    below = ((largest / 127).float().view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)  # towards zero
    above = (below.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(127 * below.double() < largest, above, below)


def _scale_of_columns(scales: Tensor, columns: int) -> Tensor:
    """float64 [N, K]: the scale of each weight."""
    return scales.double().repeat_interleave(SCALE_COLUMNS, 1)[:, :columns]


def unpack_reference(mask: Tensor, values: Tensor, row_offsets: Tensor, scales: Tensor | None, columns: int) -> Tensor:
    """W [N, K] in plain torch, through which gradients reach the values."""
    bits = _bits(mask, columns)
    weight = values.new_zeros(bits.shape)
    weight[bits] = values[_positions(bits, row_offsets)]
    if scales is None:
        return weight
    return (weight.double() * _scale_of_columns(scales, columns)).float()


def _validate_reference(mask: Tensor, values: Tensor, row_offsets: Tensor, scales: Tensor | None, columns: int) -> None:
    rows, words = mask.shape[0], -(-columns // WORD_BITS)
    for name, tensor, shape in (("mask", mask, [rows, words]), ("row_offsets", row_offsets, [rows + 1])):
        if tensor.dtype != torch.int64 or list(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; it must be torch.int64 {shape}")
    if values.dtype not in PACKED_DTYPES or values.dim() != 1:
        raise ValueError(
            f"values is {values.dtype} {list(values.shape)}; it must be [V] float32, bfloat16, float16 or int8"
        )
    if (scales is not None) != (values.dtype == torch.int8):
        raise ValueError(f"values are {values.dtype}, scales are {'missing' if scales is None else 'set'}; "
                         "int8 values have scales, others have none")  # fmt: skip
    wanted = [rows, -(-columns // SCALE_COLUMNS)]
    if scales is not None and (scales.dtype != torch.bfloat16 or list(scales.shape) != wanted):
        raise ValueError(f"scales is {scales.dtype} {list(scales.shape)}; it must be torch.bfloat16 {wanted}")
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
