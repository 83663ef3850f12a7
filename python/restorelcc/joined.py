"""Projections of one input, computed by one call: q, k and v; gate and up.

    [y_q; y_k; y_v] = [W_q; W_k; W_v] x        the first of them computes all, the others take their rows of it

What it replaces: a call for each. At one row of x a small product takes 20 to 60 us, and 20 of them go to Python,
torch's dispatcher and waking the threads. The stock model still calls each projection by its own name, so nothing of
it changes; a projection takes what a sibling left only where it is asked with the very same, unchanged tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from restorelcc import ops
from restorelcc.frozen_graphs import is_tracing_frozen
from restorelcc.packed import PackedWeight, Snapshot, stack_rows
from restorelcc.sparse_linear import SparseLinear

__all__ = ["JoinedLinear", "join", "joinable", "joint_name", "joint_weight"]

# Last names of modules that the stock classes call with one tensor; where one does not, each computes its own.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

# Above, the product takes so long that a call less does not show, and slices of y would have to be copied.
JOINED_ROWS = 16


def joinable(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Which of the modules `names` are siblings, all members of a family present: [(q, k, v), (gate, up), ...]."""
    known = dict.fromkeys(names)
    families = []
    for name in known:
        parent, dot, leaf = name.rpartition(".")
        for family in SIBLINGS:
            members = tuple(f"{parent}{dot}{sibling}" for sibling in family)
            if leaf == family[0] and all(member in known for member in members):
                families.append(members)
    return families


def joint_name(members: Sequence[str]) -> str:
    """`layers.0.self_attn.q_proj+k_proj+v_proj`: what the file calls the joint weight of these modules."""
    return "+".join([members[0], *(member.rpartition(".")[2] for member in members[1:])])


class _Family:
    """What siblings share: the joint weight, and in each thread what the last call left for those who ask next."""

    def __init__(self, joint: PackedWeight | None) -> None:
        self.joint = joint
        self.members: list[JoinedLinear] = []
        self.merged = False  # whether graphs of frozen weights may join; see `merge_in_graphs`
        self._sizes: list[int] = []
        self._buffers: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        self._snapshot: Snapshot | None = None
        self._bias: tuple[Snapshot, Tensor] | None = None
        self._left = threading.local()

    def complete(self, members: list[JoinedLinear]) -> None:
        """To be called once, with the members in the order of their rows."""
        self.members, self._sizes = members, [member.out_features for member in members]
        names = ("mask", "values", "row_offsets", "scales")
        self._buffers = [(member._buffers, name, member._buffers[name]) for member in members for name in names]
        # Masks, values and scales are views of the joint ones and share their versions; the offsets are copies.
        if self.joint is not None:
            joint = [part for part in self.joint.tensors[:4] if part is not None]
            self._snapshot = Snapshot(*joint, *(member.row_offsets for member in members))

    def take(self, member: JoinedLinear, x: Tensor) -> Tensor | None:
        """The rows of y that are the member's; None where it has to compute them itself."""
        left = getattr(self._left, "of", None)
        if left is not None and member.place in left[2]:
            self._left.of = None
            if left[0] is not x or left[1] != (x._version, torch.is_grad_enabled()):
                self.joint = None  # this model does not ask its siblings with one tensor: joining would cost it more
                return None
            y: Tensor = left[2].pop(member.place)
            if left[2]:
                self._left.of = left
            return y
        if not self.holds():
            return None
        y = self._all_rows(x)
        # unsafe_split: autograd lets a caller write into these; that they share memory is nobody's concern but theirs.
        split = torch.unsafe_split_with_sizes(y, self._sizes, -1)
        rows = split if x.numel() == member.in_features else [part.contiguous() for part in split]
        parts = dict(enumerate(rows))
        mine = parts.pop(member.place)
        self._left.of = (x, (x._version, torch.is_grad_enabled()), parts)
        return mine

    def rows_in_graph(self, member: JoinedLinear, x: Tensor) -> Tensor:
        """The same in a graph, where each member asks for the whole product, and `MergeProducts` leaves one of them."""
        return torch.split(self._all_rows(x), self._sizes, -1)[member.place]

    def _all_rows(self, x: Tensor) -> Tensor:
        joint = self.joint
        assert joint is not None
        return ops.sparse_linear_native(x, joint.tensors, bias=self._joint_bias(), trusted=True)

    def _joint_bias(self) -> Tensor | None:
        """The biases one after the other: the kept ones where they still hold and no gradient of them is asked for."""
        biases: list[Tensor] = [sibling.bias for sibling in self.members if sibling.bias is not None]
        if not biases:
            return None
        if self._bias is not None and is_tracing_frozen():
            return self._bias[1]
        if torch.compiler.is_compiling() or any(bias.requires_grad for bias in biases):
            return torch.cat(biases)
        if self._bias is None or not self._bias[0].unchanged(*biases):
            with torch.inference_mode(False):  # so that the kept one serves every mode
                self._bias = (Snapshot(*biases), torch.cat(biases))
        return self._bias[1]

    def holds(self) -> bool:
        """Whether every member still has its rows of the joint weight; a conversion or an edit may have ended that."""
        for buffers, name, tensor in self._buffers:
            if buffers[name] is not tensor or (tensor is not None and tensor.requires_grad):
                return False
        return self.joint is not None and self._snapshot is not None and self._snapshot.still_unchanged()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the members of a copy have weights of their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(None)  # type: ignore[misc]


class JoinedLinear(SparseLinear):
    """A SparseLinear [N, K] whose weight is rows of a joint one; the same y, bit for bit.

    Joined for at most 16 rows of x, outside inference mode (whose tensors cannot tell that they were written to),
    and in graphs that `compile_decode` makes. After a conversion, an edit of a weight or a copy of the model each
    member computes its own again.
    """

    def __init__(self, packed: PackedWeight, bias: Tensor | None, family: _Family, place: int) -> None:
        super().__init__(packed, bias)
        self.family, self.place = family, place

    def forward(self, x: Tensor, comp_index: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x [..., K] -> y [..., N]"""
        alone = comp_index is not None or residual is not None
        if torch.compiler.is_compiling():
            if is_tracing_frozen() and not alone and self.family.merged:
                return self.family.rows_in_graph(self, x)
            return super().forward(x, comp_index, residual)
        if not alone and not x.is_inference() and 0 < x.numel() <= JOINED_ROWS * self.in_features:
            y = self.family.take(self, x)
            if y is not None:
                return y
        return super().forward(x, comp_index, residual)


def joint_weight(members: Sequence[SparseLinear]) -> PackedWeight:
    """[W_1; W_2; ...] of these members: the one they share, or where they do not any more, a copy."""
    first = members[0]
    if isinstance(first, JoinedLinear) and first.family.members == list(members) and first.family.holds():
        assert first.family.joint is not None
        return first.family.joint
    return stack_rows([member.packed for member in members])


def join(joint: PackedWeight, sizes: Sequence[int], biases: Sequence[Tensor | None]) -> list[JoinedLinear]:
    """The members whose weights are the next sizes[i] rows of the joint weight each; all with a bias, or none.

    ValueError where sizes do not add up to the rows, or some have a bias and some not.
    """
    if sum(sizes) != joint.shape[0] or len({bias is None for bias in biases}) != 1:
        raise ValueError(
            f"{len(sizes)} projections of {sum(sizes)} rows, {sum(bias is not None for bias in biases)} of them with "
            f"a bias, cannot share a weight of {joint.shape[0]} rows; all rows must be theirs, and all or none have one"
        )
    family, members, begin = _Family(joint), [], 0
    for place, (size, bias) in enumerate(zip(sizes, biases, strict=True)):
        member = JoinedLinear(joint.slice_rows(begin, begin + size), bias, family, place)
        members.append(member.requires_grad_(False))
        begin += size
    family.complete(members)
    return members
