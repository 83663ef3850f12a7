"""Pruning: which weights stay, layer by layer, in place, on the stock model.

    magnitude:  score_ij = |W_ij|                    compared within the matrix (N:M: within each group of M columns)
    wanda:      score_ij = |W_ij| * ||x_j||_2        compared within each output row i

where x_j is input column j of the projection over all calibration tokens (Wanda: arXiv 2306.11695). Wanda goes
through the layers in order, and the activations of a layer are those behind the already pruned earlier layers, as in
the authors' code; within a layer all projections are scored on one pass before any of them is pruned, as there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import decoder_layers, prunable_linears, prunable_weights, record_layer_calls
from .artifacts import Progress, SilentProgress
from .text import TokenSet

__all__ = ["Pattern", "PruneReport", "masks_equal", "prune_model", "sparsity_table"]

METHODS = ("magnitude", "wanda")


@dataclass(frozen=True)
class Pattern:
    """How many weights stay: a fraction (unstructured), or `keep` of every `group` columns of a row (N:M)."""

    text: str
    fraction: float  # share of weights pruned
    keep: int = 0
    group: int = 0  # 0: unstructured

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """ "0.5" prunes half of the weights; "2:4" keeps 2 of every 4 neighbours along a row.

        Raises:
            ValueError: neither form, a fraction outside of (0, 1), or N:M with N not in 1..M-1.
        """
        known = f"unknown pattern {text!r}; "
        pair = re.fullmatch(r"([0-9]+):([0-9]+)", text.strip())
        if pair:
            keep, group = int(pair[1]), int(pair[2])
            if not 0 < keep < group:
                raise ValueError(f"{known}N:M keeps N of every M weights and needs 0 < N < M, such as 2:4 or 4:8")
            return cls(text.strip(), 1 - keep / group, keep, group)
        try:
            fraction = float(text)
        except ValueError:
            raise ValueError(f"{known}give the share of weights to prune, such as 0.5, or N:M, such as 2:4") from None
        if not 0 < fraction < 1:
            raise ValueError(f"{known}the share of weights to prune lies between 0 and 1, such as 0.5")
        return cls(text.strip(), fraction)

    @property
    def sparsity(self) -> float:
        """Share of zeros this pattern makes."""
        return self.fraction

    def mask(self, scores: Tensor, *, compare: str = "row") -> Tensor:
        """Keep-mask [N, K] bool: the highest scores of each comparison group stay.

        Ties keep the lowest column (then row) index, so the mask is a function of the scores alone.

        Args:
            scores: [N, K], finite or infinite, not NaN.
            compare: "row" or "matrix", for unstructured patterns; int(size * fraction) weights of each group go.

        Raises:
            ValueError: K not divisible by M; NaN in the scores; another `compare`.
        """
        if compare not in ("row", "matrix"):
            raise ValueError(f"unknown comparison {compare!r}; scores are compared per row or per matrix")
        rows, columns = scores.shape
        if bool(torch.isnan(scores).any()):
            raise ValueError(f"{int(torch.isnan(scores).sum())} of the {scores.numel()} scores are NaN")
        if self.group:
            if columns % self.group:
                raise ValueError(
                    f"{columns} columns are not divisible by {self.group}, which pattern {self.text} needs; "
                    "use an unstructured pattern such as 0.5"
                )
            return _highest(scores.reshape(-1, self.group), self.keep).reshape(rows, columns)
        grouped = scores if compare == "row" else scores.reshape(1, -1)
        size = grouped.shape[1]
        return _highest(grouped, size - int(size * self.fraction)).reshape(rows, columns)


def _highest(scores: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` highest entries of each row [R, C]; of equal ones the first. O(C) a row, no sort."""
    if keep == scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(scores.shape[1] - keep + 1, dim=1, keepdim=True).values
    above, equal = scores > threshold, scores == threshold
    open_places = keep - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= open_places))


@dataclass(frozen=True)
class PruneReport:
    """What was pruned: method, pattern, calibration tokens seen, zeros over prunable weights, per matrix."""

    method: str
    pattern: str
    calibration_tokens: int
    sparsity: float
    table: list[dict[str, Any]] = field(repr=False)


def prune_model(
    model: Any,
    tokenizer: Any = None,
    *,
    method: str = "wanda",
    pattern: Pattern | str = "2:4",
    calibration: TokenSet | None = None,
    batch: int = 4,
    progress: Progress | None = None,
) -> PruneReport:
    """Prunes every nn.Linear inside the decoder layers of `model`, in place.

    Args:
        model: a stock causal language model.
        tokenizer: not used by the methods that are here; kept so that all steps are called alike.
        method: "magnitude" needs no text; "wanda" needs `calibration`.
        pattern: a `Pattern` or its text.
        calibration: ids [n, T]; padding is left out. Hidden states [n, T, E] are held in memory.
        batch: rows at once.

    Raises:
        ValueError: unknown method or pattern, wanda without text, columns not divisible by M, NaN or infinite
            weights (the matrix is named), or matrices that are no nn.Linear. Nothing has been pruned then.
    """
    del tokenizer
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    chosen = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    if calibration is not None:
        calibration.check_model(model)
    _refuse_unprunable(model, chosen)
    progress = progress or SilentProgress()
    if method == "magnitude":
        linears = prunable_linears(model)
        with progress.task("magnitude", len(linears)) as advance:
            for _, linear in linears:
                _apply(linear, chosen.mask(linear.weight.detach().float().abs(), compare="matrix"))
                advance(1)
    elif calibration is None or calibration.ids.shape[0] == 0:
        raise ValueError("wanda needs calibration text; pass some, or use magnitude, which needs none")
    else:
        _wanda(model, chosen, calibration, batch, progress)
    table = sparsity_table(model)
    zeros, total = sum(row["zeros"] for row in table), sum(row["rows"] * row["columns"] for row in table)
    seen = 0 if method == "magnitude" or calibration is None else int(calibration.lengths.sum())
    return PruneReport(method, chosen.text, seen, zeros / total, table)


def _refuse_unprunable(model: nn.Module, pattern: Pattern) -> None:
    for name, weight in prunable_weights(model):
        if pattern.group and weight.shape[1] % pattern.group:
            raise ValueError(
                f"{name} has {weight.shape[1]} columns, not divisible by the {pattern.group} of pattern "
                f"{pattern.text}; use an unstructured pattern such as 0.5"
            )
        bad = weight.numel() - int(torch.isfinite(weight).sum())
        if bad:
            raise ValueError(f"{name} has {bad} NaN or infinite weights; it cannot be pruned")


def _apply(linear: nn.Linear, keep: Tensor) -> None:
    with torch.no_grad():
        linear.weight.masked_fill_(~keep, 0.0)


@torch.no_grad()
def _wanda(model: Any, pattern: Pattern, calibration: TokenSet, batch: int, progress: Progress) -> None:
    prefix, layers = decoder_layers(model)
    linears = dict(prunable_linears(model))
    hidden, calls, masks = [], [], []
    for part in calibration.batches(batch):
        entered, layer_calls = record_layer_calls(model, part.ids, part.attention_mask)
        hidden.append(entered)
        calls.append(layer_calls)
        masks.append(part.attention_mask.bool().reshape(-1))
    with progress.task("wanda", len(layers)) as advance:
        for index, layer in enumerate(layers):
            inside = {name: linear for name, linear in linears.items() if name.startswith(f"{prefix}.{index}.")}
            norms = _InputNorms(inside)
            with norms:
                for state, layer_calls, mask in zip(hidden, calls, masks, strict=True):
                    norms.mask = mask
                    _run(layer, state, layer_calls[index])
            for name, linear in inside.items():
                score = linear.weight.abs().float() * norms.squares[name].sqrt().float()
                _apply(linear, pattern.mask(score))
            for place, layer_calls in enumerate(calls):
                hidden[place] = _run(layer, hidden[place], layer_calls[index])
            advance(1)


def _run(layer: nn.Module, hidden: Tensor, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    """The hidden state after `layer`; some stock layers return it as the first of a tuple."""
    out = layer(hidden, *call[0], **call[1])
    state: Tensor = out[0] if isinstance(out, tuple) else out
    return state


class _InputNorms:
    """Collects Σ x_j² [K] float64 over the tokens that enter each projection, padding left out."""

    def __init__(self, linears: dict[str, nn.Linear]) -> None:
        self.linears = linears
        self.squares = {name: torch.zeros(linear.in_features, dtype=torch.float64) for name, linear in linears.items()}
        self.mask = torch.ones(0, dtype=torch.bool)
        self._handles: list[Any] = []

    def __enter__(self) -> _InputNorms:
        for name, linear in self.linears.items():

            def note(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                rows = args[0].reshape(-1, args[0].shape[-1])[self.mask]
                self.squares[name] += rows.double().square().sum(0)

            self._handles.append(linear.register_forward_pre_hook(note))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def sparsity_table(model: Path | nn.Module) -> list[dict[str, Any]]:
    """Per prunable matrix: name, rows (N), columns (K), zeros (count of weights equal to 0), sparsity (share)."""
    table = []
    for name, weight in prunable_weights(model):
        zeros = int((weight == 0).sum())
        table.append({
            "name": name, "rows": weight.shape[0], "columns": weight.shape[1],
            "zeros": zeros, "sparsity": zeros / weight.numel(),
        })  # fmt: skip
    return table


def masks_equal(before: Path | nn.Module, after: Path | nn.Module) -> None:
    """Proves that two models have their zeros in the same places, bit by bit, in every prunable matrix.

    Args:
        before, after: models or checkpoint directories (read one matrix at a time).

    Raises:
        ValueError: naming the first matrix whose zeros differ and how many, or that only one model has.
    """
    stream = prunable_weights(after)
    for name, weight in prunable_weights(before):
        other_name, other = next(stream, ("no matrix", weight))
        if other_name != name or other.shape != weight.shape:
            raise ValueError(
                f"{name} {list(weight.shape)} became {other_name} {list(other.shape)}; "
                "masks can be compared only between copies of one model"
            )
        filled = int(((weight == 0) & (other != 0)).sum())
        emptied = int(((weight != 0) & (other == 0)).sum())
        if filled or emptied:
            raise ValueError(
                f"the mask of {name} changed: {filled} pruned weights became non-zero and "
                f"{emptied} kept weights became zero"
            )
    extra = next(stream, None)
    if extra is not None:
        raise ValueError(f"{extra[0]} is new; masks can be compared only between copies of one model")
