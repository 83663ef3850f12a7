"""Several compensations side by side in one model: each sequence of a batch takes its own.

    y[m] = W z[m] + P[g(m)] + bias        P = [0, W c_1, W c_2, ...]  [G + 1, N],  g(m) chosen by the sequence of row m
                                          P = [0, c_1, c_2, ...] where W is the last projection of an FFN

What it replaces: one copy of the model for each compensation, and one run for each copy. Row 0 of P is zero, so a
sequence may also run without any. The stock model calls its projections with the activations alone, so what it
chose stands in a `CompensationChoice` that all output projections of a model share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .packed import PackedWeight
from .sites import ATTENTION
from .sparse_linear import SparseLinear

__all__ = ["CompensatedLinear", "CompensationChoice", "compensation_names", "compensations"]


class CompensationChoice:
    """Which of the named compensations each sequence of the coming batches takes.

    names      of the compensations; the g-th is row g + 1 of every projection's comp
    default    the one that sequences take outside of `compensations(...)`; None: none

    One choice at a time: two threads that run the same model see each other's.
    """

    def __init__(self, names: Sequence[str], default: str | None = None) -> None:
        self.names = tuple(names)
        self.default = default
        self._picked = self._rows_of([default])  # [S], one for each sequence chosen for
        self._index: Tensor | None = None  # of the last batch, so that the layers of one pass share it

    def _rows_of(self, names: Sequence[str | None]) -> Tensor:
        unknown = [name for name in names if name is not None and name not in self.names]
        if unknown:
            raise ValueError(
                f"there is no compensation {unknown[0]!r} in this model; it has {', '.join(self.names)}, "
                "and None stands for no compensation"
            )
        if not names:
            raise ValueError("no compensation was chosen for any sequence; give one for each sequence, or one for all")
        with torch.inference_mode(False):  # so that it serves every mode
            return torch.tensor([0 if name is None else 1 + self.names.index(name) for name in names])

    @contextmanager
    def picking(self, names: Sequence[str | None]) -> Iterator[None]:
        """Sequence s of a batch takes names[s] inside; as before after."""
        before, picked = self._picked, self._rows_of(names)
        self._picked, self._index = picked, None
        try:
            yield
        finally:
            self._picked, self._index = before, None

    def index(self, x: Tensor) -> Tensor:
        """comp_index [M] for x [B, T, K] or [M, K], rows in the order of their sequences.

        B may be a multiple of the sequences chosen for: beams and returned sequences stand side by side.
        """
        rows, sequences, batch = math.prod(x.shape[:-1]), len(self._picked), x.shape[0]
        if batch % sequences:
            raise ValueError(
                f"compensations were chosen for {sequences} sequences, the batch has {batch}; "
                "choose one for each sequence of the batch, or one for all"
            )
        if torch.compiler.is_compiling():
            return self._picked.to(x.device).repeat_interleave(rows // sequences)
        kept = self._index
        if kept is None or kept.numel() != rows or kept.device != x.device:
            with torch.inference_mode(False):
                kept = self._index = self._picked.to(x.device).repeat_interleave(rows // sequences)
        return kept


class CompensatedLinear(SparseLinear):
    """A SparseLinear whose rows take the compensation that `choice` says.

    Args:
        vectors: c [G, K] float32, one row for each of choice.names; comp becomes [G + 1, K] with zeros in front.
        place: `ffn` for c [G, N] added to the output: shift becomes [G + 1, N].
    """

    def __init__(
        self, packed: PackedWeight, bias: Tensor | None, vectors: Tensor, choice: CompensationChoice,
        place: str = ATTENTION,
    ) -> None:  # fmt: skip
        if vectors.dim() != 2 or vectors.shape[0] != len(choice.names):
            raise ValueError(f"{len(choice.names)} names and vectors of shape {list(vectors.shape)}; give one for each")
        rows = torch.cat([torch.zeros_like(vectors[:1]), vectors])
        comp, shift = (rows, None) if place == ATTENTION else (None, rows)
        super().__init__(packed, bias, comp=comp, shift=shift)
        self.choice, self.place = choice, place

    @property
    def vectors(self) -> Tensor:
        """c [G, width], one row for each of choice.names."""
        rows = self.comp if self.shift is None else self.shift
        assert rows is not None
        return rows.detach()[1:]

    def forward(self, x: Tensor, comp_index: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x [..., K] -> y [..., N]; without comp_index the rows take what was chosen."""
        return super().forward(x, self.choice.index(x) if comp_index is None else comp_index, residual)


def _choice(model: nn.Module) -> CompensationChoice | None:
    return next((module.choice for module in model.modules() if isinstance(module, CompensatedLinear)), None)


def compensation_names(model: nn.Module) -> list[str]:
    """The names that `compensations` accepts for this model; empty where it has none."""
    choice = _choice(model)
    return [] if choice is None else list(choice.names)


@contextmanager
def compensations(model: nn.Module, names: str | Sequence[str | None] | None) -> Iterator[None]:
    """Inside, sequence s of every batch takes the compensation names[s]; None is none, one name is for all.

        with restorelcc.compensations(model, ["law", "medicine", None]):
            model.generate(**tokenizer(three_prompts, return_tensors="pt", padding=True))

    A batch of B sequences takes B names (or a number that divides it: beams of a sequence take its compensation).

    Raises:
        ValueError: an unknown name, a model without compensations, or, in the call, a batch that does not fit.
    """
    choice = _choice(model)
    if choice is None:
        raise ValueError(
            "this model has no compensations to choose from; pack them into one with "
            "`restorelcc pack DIR --compensation NAME=DIR --out DIR`"
        )
    with choice.picking([names] if names is None or isinstance(names, str) else list(names)):
        yield
