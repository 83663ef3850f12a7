"""SparseLinear: torch.nn.Linear on a packed weight, with lost component compensation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from restorelcc import ops
from restorelcc.frozen_graphs import is_tracing_frozen
from restorelcc.packed import PackedWeight, Snapshot, pack

_PACKED = ("mask", "values", "row_offsets", "scales")


class SparseLinear(nn.Module):
    """y = x Wᵀ + P[comp_index] + bias (+ residual),  P = comp Wᵀ  (arXiv 2510.21834)

    Buffers      mask, values, row_offsets, scales (int8 values only): W [N, K], frozen, see PackedWeight
    Parameters   bias [N] or None; comp [K] or [G, K] float32 or None; shift [N] or [G, N] float32 or None

    shift stands in comp's place: P = shift, a vector added to the output rather than to the input of the projection.

    Where no gradient of comp is asked for, P is computed once and kept until comp or W changes:
    by an optimizer or another in-place edit, .to(), load_state_dict or assignment. Edits through
    `.data` or numpy are invisible to torch's version counter: call forget() after them. In a graph
    made by torch.compile P is computed in each call, unless it was made by `compile_decode`.

    comp and shift stay float32 through .to(dtype): they are small against x and y, and rounding them would lose digits.
    """

    mask: Tensor
    values: Tensor
    row_offsets: Tensor
    scales: Tensor | None

    def __init__(
        self, packed: PackedWeight, bias: Tensor | None = None, *, comp: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out_features, self.in_features = packed.shape
        for name in _PACKED:
            self.register_buffer(name, getattr(packed, name))
        if bias is not None and list(bias.shape) != [self.out_features]:
            raise ValueError(f"bias has shape {list(bias.shape)}; it must be [{self.out_features}]")
        if comp is not None and (comp.dim() not in (1, 2) or comp.shape[-1] != self.in_features):
            raise ValueError(
                f"comp has shape {list(comp.shape)}; it must be [{self.in_features}] or [G, {self.in_features}]"
            )
        if shift is not None and (comp is not None or shift.dim() not in (1, 2) or shift.shape[-1] != packed.shape[0]):
            raise ValueError(
                f"shift has shape {list(shift.shape)}; it must be [{self.out_features}] or [G, {self.out_features}], "
                "and comp must be None"
            )
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.comp = None if comp is None else nn.Parameter(comp.detach().float().clone())
        self.shift = None if shift is None else nn.Parameter(shift.detach().float().clone())
        self._packed: PackedWeight | None = packed
        self._rows: tuple[PackedWeight, Snapshot, Tensor] | None = None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, comp: Tensor | None = None, *, values: str | None = None, shift: Tensor | None = None
    ) -> SparseLinear:
        """The same projection with its zeros packed away: a copy of a float32, bfloat16 or float16 weight.

        values: None, or "int8" to round the survivors (see `pack`).
        """
        return cls(pack(linear.weight, values=values), linear.bias, comp=comp, shift=shift)

    @property
    def packed(self) -> PackedWeight:
        """The weight. Checked again (ValueError) where a buffer was replaced or written to."""
        kept, buffers = self._packed, self._buffers
        same = kept is not None and all(getattr(kept, name) is buffers[name] for name in _PACKED)
        if kept is None or not (same and kept.trusted):
            shape = (self.out_features, self.in_features)
            kept = self._packed = PackedWeight(self.mask, self.values, self.row_offsets, shape, self.scales)
        return kept

    def forget(self) -> None:
        """Drop what was derived from comp and the buffers; the next call derives it again."""
        self._packed = None
        self._rows = None

    def forward(self, x: Tensor, comp_index: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x [..., K] -> y [..., N]; comp_index int64, one of the G compensations for each row of x."""
        comp, rows = self.comp, None if self.shift is None else self.shift.float().reshape(-1, self.out_features)
        if torch.compiler.is_compiling():
            weight = (self.mask, self.values, self.row_offsets, self.scales, self.in_features)
            trusted = self._packed is not None
            if comp is not None and self._rows is not None and is_tracing_frozen():
                rows = self._rows[2]
            elif comp is not None:
                rows = ops.sparse_linear_native(self._vectors(comp), weight, trusted=trusted, exact_x=True)
        else:
            packed = self.packed
            weight, trusted = packed.tensors, True
            if comp is not None:
                rows = self._compensation_rows(comp, packed)
        return ops.sparse_linear_native(x, weight, rows, comp_index, self.bias, residual, trusted=trusted)

    def _vectors(self, comp: Tensor) -> Tensor:
        return comp.float().reshape(-1, self.in_features)

    def _compensation_rows(self, comp: Tensor, packed: PackedWeight) -> Tensor:
        """P [G, N]: the kept one where it still holds and no gradient of comp is asked for."""
        if comp.requires_grad and torch.is_grad_enabled():
            return ops.sparse_linear_native(self._vectors(comp), packed.tensors, trusted=True, exact_x=True)
        if self._rows is not None:
            made_for, snapshot, rows = self._rows
            if made_for is packed and snapshot.unchanged(comp):
                return rows
        with torch.inference_mode(False), torch.no_grad():  # so that the kept P serves every mode
            rows = ops.sparse_linear_native(self._vectors(comp), packed.tensors, trusted=True, exact_x=True)
        self._rows = (packed, Snapshot(comp), rows)
        return rows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        # .to(dtype) on the values would break their alignment (4 float32 are 16 bytes, 8 bfloat16
        # are), so a new dtype goes through the dense weight; comp keeps its own (see the class), and so do
        # int8 values with their scales.
        dtype = fn(self.values.new_empty(0)).dtype
        if dtype != self.values.dtype:
            repacked = pack(self.packed.unpack().cpu().to(dtype))
            self.mask, self.values, self.row_offsets = repacked.mask, repacked.values, repacked.row_offsets
        added = [parameter for parameter in (self.comp, self.shift) if parameter is not None]
        keep = [t for t in (*added, *(parameter.grad for parameter in added), self.scales) if t is not None]

        def apply(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            kept = moved.dtype != tensor.dtype and any(tensor is t for t in keep)
            return tensor.to(moved.device) if kept else moved

        self.forget()
        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        if self.values.device.type != "meta":
            _ = self.packed  # so that a graph compiled from here on starts from checked buffers
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        values = state_dict.get(prefix + "values")
        if values is not None and (values.shape != self.values.shape or values.dtype != self.values.dtype):
            self.values = torch.empty_like(values, device=self.values.device)  # another mask keeps another number
        if values is not None:
            scales = state_dict.get(prefix + "scales")
            self.scales = None if scales is None else torch.empty_like(scales, device=self.values.device)
        self.forget()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.values.device.type != "meta":
            try:
                _ = self.packed
            except ValueError as error:
                error_msgs.append(f"{prefix.removesuffix('.') or 'SparseLinear'}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None, "_rows": None}

    def extra_repr(self) -> str:
        """What print() shows of the layer."""
        added = self.comp if self.shift is None else self.shift
        groups = None if added is None else (1 if added.dim() == 1 else added.shape[0])
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"dtype={str(self.values.dtype).removeprefix('torch.')}, bias={self.bias is not None}, "
            f"{'comp' if self.shift is None else 'shift'}={groups}"
        )
