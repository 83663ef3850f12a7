"""The exact perplexity contrast of every head: its edit alone, measured, and no layer computed twice.

    contrast[l, h, s] = mean over tokens t of segment s of  nll(t | edit of head h of layer l) − nll(t | base)

RestoreLCC (arXiv 2510.21834, section 3), with every head's edit applied alone. What it replaces::

    for layer, head in all heads:                      # L·H full forwards
        with edit(layer, head):
            nll = cross_entropy(model(ids).logits)     # and as many [tokens, V] logits

The base runs once and keeps, per layer, its input and the input of its output projection. All edited heads of a
layer then go on from there as one batch (see `contrast_run`), and `head_contrast` ends the run without logits. Layers
before the edit are never recomputed, so for L equal layers and a head worth λ of them the work is
(L/2 + λ) / (L + λ) of the naive loop's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ops
from .architectures import attention_sites
from .artifacts import Progress, SilentProgress
from .compensation import sparse_output_projections
from .contrast_plan import ContrastPlan, contrast_plan
from .contrast_run import StateStore, continue_from, run_base
from .lm_head import LanguageHead, language_head, logit_losses
from .probe_input import EDITS
from .token_set import TokenSet

__all__ = ["Contrasts", "edited_compensation", "head_contrasts"]


@dataclass(frozen=True)
class Contrasts:
    """delta [L, H, S] float64: change of the weighted mean NLL, nats per token, NaN for heads not asked for.

    base_nll [S] float64: that mean in the base run. weight [S] float64: the sum of weights (tokens, where all are 1).
    forwards: rows run through a layer, over those of one forward of all rows: the work in forward passes.
    """

    delta: Tensor
    base_nll: Tensor
    weight: Tensor
    forwards: float


def edited_compensation(base: Tensor, vectors: Tensor, heads: Tensor, edit: str) -> Tensor:
    """[G, H·D]: the compensation of one layer under each head's edit alone.

    Args:
        base: [H·D] of the base run. vectors: [H, D], c_h. heads: int64 [G], the heads edited.
        edit: `inject` adds c_h in the head's slice; `ablate` sets the slice to zero.
    """
    comp = base.repeat(len(heads), 1).reshape(len(heads), *vectors.shape)
    place = torch.arange(len(heads))
    if edit == "inject":
        comp[place, heads] += vectors[heads].to(comp.dtype)
    else:
        comp[place, heads] = 0.0
    return comp.flatten(1)


@torch.no_grad()
def head_contrasts(
    model: Any,
    tokens: TokenSet,
    vectors: Tensor,
    *,
    base: Tensor | None = None,
    edit: str = "inject",
    heads: Tensor | None = None,
    segments: Tensor | None = None,
    segment_count: int = 1,
    weights: Tensor | None = None,
    memory: int = 2 << 30,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Contrasts:
    """delta[l, h, s] = mean NLL of segment s with head (l, h) edited alone, minus that of the base run.

    Args:
        model: a stock model. Its output projections become `SparseLinear` (in place, comp = 0 afterwards).
        tokens: ids [n, T]; the tokens that count are those of `tokens.labels`.
        vectors: c_h [L, H, D].
        base: [L, H·D], the compensation in the base run; zeros by default.
        edit: `inject`: base + c_h; `ablate`: base without head h's slice.
        heads: bool [L, H], which to run; all by default.
        segments: int64 [n, T], the segment of each predicted token, negative: in none. All are in 0 by default.
        weights: float [n, T], of each predicted token; 1 by default.
        memory: bytes for states and activations beside the model. Base states that do not fit go to files in
            `scratch` (the system's temporary folder by default), removed at the end.

    The scores do not depend on `memory` but for rounding.

    Raises:
        ValueError: shapes that do not fit the model, an unknown edit, no token to predict, or too little memory for
            one row and one edit.
        OSError: no room for the states.
    """
    sites = attention_sites(model)
    shape = (len(sites), sites[0].heads, sites[0].head_dim)
    _check(tokens, model, vectors, shape, base, edit, heads, segments, segment_count, weights)
    asked = torch.ones(shape[:2], dtype=torch.bool) if heads is None else heads
    installed = torch.zeros(shape[0], shape[1] * shape[2]) if base is None else base.float()
    edits = int(asked.sum(1).max())
    contrast_plan(model, int(tokens.lengths.max()), len(tokens), edits, memory)  # too little memory: said before work
    head = language_head(model)
    wanted = asked.any(1).nonzero().flatten().tolist()
    totals = _Totals(*shape[:2], segment_count)
    rows_run = 0.0
    projections = sparse_output_projections(model)
    try:
        for projection, vector in zip(projections, installed, strict=True):
            assert projection.comp is not None
            projection.comp.copy_(vector)
        with (progress or SilentProgress()).task("contrasts", len(tokens) * max(1, int(asked.sum()))) as advance:
            # Rows of like length together, so that little is padded; the longest first.
            order = tokens.lengths.argsort(descending=True, stable=True)
            begin = 0
            while begin < len(order):
                plan = contrast_plan(model, int(tokens.lengths[order[begin]]), len(order) - begin, edits, memory)
                rows = order[begin : begin + plan.rows]
                begin += len(rows)
                batch = next(tokens.subset(rows).batches(len(rows)))
                places = _Places(batch, segments, weights, rows)
                with StateStore(_spill_folder(plan, scratch)) as states:
                    run = run_base(model, sites, batch, states, wanted)
                    rows_run += len(batch) * len(sites)
                    losses = _losses(head, run.end[None], places)[0]
                    totals.add_base(losses, places)
                    for layer, picked in _groups(asked, plan.edits):
                        comp = edited_compensation(installed[layer], vectors[layer], picked, edit)
                        end = continue_from(model, sites[layer], run, comp)
                        change = _contrast(head, end, losses, places, segment_count)
                        totals.add(layer, picked, change, places)
                        rows_run += len(picked) * len(batch) * (len(sites) - layer)
                        advance(len(picked) * len(batch))
    finally:
        sparse_output_projections(model)  # comp = 0 again
    return totals.contrasts(asked, rows_run / (len(tokens) * len(sites)))


def _spill_folder(plan: ContrastPlan, scratch: Path | None) -> Path | None:
    if not plan.spill:
        return None
    import tempfile

    return scratch if scratch is not None else Path(tempfile.gettempdir())


def _groups(asked: Tensor, most: int) -> Iterator[tuple[int, Tensor]]:
    """(layer, heads) of at most `most` heads of one layer at a time."""
    for layer in range(asked.shape[0]):
        picked = asked[layer].nonzero().flatten()
        for begin in range(0, len(picked), most):
            yield layer, picked[begin : begin + most]


class _Places:
    """The counted tokens of a batch: where they are predicted, their labels, segments and weights, all [M]."""

    def __init__(self, batch: TokenSet, segments: Tensor | None, weights: Tensor | None, rows: Tensor) -> None:
        labels = batch.labels[:, 1:]
        self.counted = labels != -100  # [n, T - 1]: position t predicts token t + 1
        width = batch.ids.shape[1]
        self.labels = labels[self.counted]
        self.segments = (
            torch.zeros_like(self.labels) if segments is None else segments[rows, 1:width][self.counted]
        )
        self.weights = (
            torch.ones(self.labels.shape) if weights is None else weights[rows, 1:width][self.counted].float()
        )

    def pick(self, hidden: Tensor) -> Tensor:
        """[G, M, ...] of hidden [G, n, T, ...]."""
        return hidden[:, :, :-1][:, self.counted]

    def sums(self, values: Tensor, segment_count: int) -> Tensor:
        """Σ of values [M] by segment, [S] float64."""
        kept = self.segments >= 0
        sums = torch.zeros(segment_count, dtype=torch.float64)
        return sums.index_add_(0, self.segments[kept], values.double()[kept])


class _Totals:
    def __init__(self, layers: int, heads: int, segment_count: int) -> None:
        self.change = torch.zeros(layers, heads, segment_count, dtype=torch.float64)
        self.base = torch.zeros(segment_count, dtype=torch.float64)
        self.weight = torch.zeros(segment_count, dtype=torch.float64)

    def add_base(self, losses: Tensor, places: _Places) -> None:
        count = self.weight.shape[0]
        self.base += places.sums(losses.double() * places.weights, count)
        self.weight += places.sums(places.weights, count)

    def add(self, layer: int, heads: Tensor, change: Tensor, places: _Places) -> None:
        """change [G, S], means over the batch's tokens."""
        weight = places.sums(places.weights, self.weight.shape[0])
        self.change[layer, heads] += torch.where(weight > 0, change * weight, 0.0)

    def contrasts(self, asked: Tensor, forwards: float) -> Contrasts:
        delta = torch.where(asked[..., None], self.change / self.weight, torch.nan)
        return Contrasts(delta, self.base / self.weight, self.weight, forwards)


def _losses(head: LanguageHead, end: Tensor, places: _Places) -> Tensor:
    """nll [G, M] of end [G, n, T, E], or of logits [G, n, T, V] where the stock class made them."""
    picked = places.pick(end)
    flat, labels = picked.flatten(0, 1), places.labels.repeat(picked.shape[0])
    return (head.losses(flat, labels) if head.last else logit_losses(flat, labels)).reshape(picked.shape[:2])


def _contrast(
    head: LanguageHead, end: Tensor, base: Tensor, places: _Places, segment_count: int
) -> Tensor:
    """[G, S]: mean change of the NLL over this batch's tokens, by segment."""
    if head.takes(end):
        return ops.head_contrast(
            places.pick(end), head.module.weight, places.labels, base, segments=places.segments,
            segment_count=segment_count, weights=places.weights, bias=head.module.bias,
        )  # fmt: skip
    changes = (_losses(head, end, places).double() - base.double()) * places.weights
    return torch.stack([places.sums(change, segment_count) for change in changes]) / places.sums(
        places.weights, segment_count
    )


def _check(
    tokens: TokenSet, model: Any, vectors: Tensor, shape: tuple[int, int, int], base: Tensor | None, edit: str,
    heads: Tensor | None, segments: Tensor | None, segment_count: int, weights: Tensor | None,
) -> None:  # fmt: skip
    layers, count, size = shape
    if edit not in EDITS:
        raise ValueError(f"unknown edit {edit!r}; choose one of {', '.join(EDITS)}")
    for name, tensor, wanted in (
        ("vectors", vectors, [layers, count, size]),
        ("base", base, [layers, count * size]),
        ("heads", heads, [layers, count]),
        ("segments", segments, list(tokens.ids.shape)),
        ("weights", weights, list(tokens.ids.shape)),
    ):
        if tensor is not None and list(tensor.shape) != wanted:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {wanted}")
    if tokens.tokens == 0:
        raise ValueError(f"no token of {tokens.name} is to be predicted; give longer text")
    if segments is not None and int(segments.max()) >= segment_count:
        raise ValueError(f"segments go up to {int(segments.max())}; they must stay below {segment_count}")
    if weights is not None and not bool((weights.isfinite() & (weights >= 0)).all()):
        wrong = weights[~(weights.isfinite() & (weights >= 0))][0]
        raise ValueError(f"weights hold {float(wrong):g}; they must be finite and at least 0")
    if heads is not None and not bool(heads.any()):
        raise ValueError("heads asks for no head at all; set at least one")
    tokens.check_model(model)
