"""Pruning: which weights stay, layer by layer, in place, on the stock model.

    magnitude:  score_ij = |W_ij|                    compared within the matrix (N:M: within each group of M columns)
    wanda:      score_ij = |W_ij| * ||x_j||_2        compared within each output row i
    sparsegpt:  score_ij = W_ij² / [H⁻¹]_jj          and the weights that stay make up for those that go

where x_j is input column j of the projection over all calibration tokens, H = Σ x xᵀ (Wanda: arXiv 2306.11695;
SparseGPT: arXiv 2301.00774, see `sparsegpt`). Both go through the layers in order, and the activations of a layer are
those behind the already pruned earlier layers, as in the authors' code; within a layer all projections are looked at on
one pass before any of them is pruned, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import decoder_layers, prunable_linears, prunable_weights, record_layer_calls
from .artifacts import Progress, SilentProgress
from .layers import run_layer
from .pruning_pattern import Pattern, layer_patterns
from .sparsegpt import sparsegpt
from .text import TokenSet
from .wording import one_line

__all__ = [
    "Pattern", "PruneReport", "layer_patterns", "masks_equal", "prune_model", "rounded_survivors", "sparsity_table",
]  # fmt: skip

METHODS = ("magnitude", "wanda", "sparsegpt")


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
        method: "magnitude" needs no text; "wanda" and "sparsegpt" need `calibration`.
        pattern: a `Pattern` or its text, or a text of one pattern for each layer (see `layer_patterns`).
        calibration: ids [n, T]; padding is left out. Hidden states [n, T, E] are held in memory.
        batch: rows at once.

    Raises:
        ValueError: unknown method or pattern, calibration that is missing, columns not divisible by M, NaN or infinite
            weights (the matrix is named), or matrices that are no nn.Linear. Nothing has been pruned then.
    """
    del tokenizer
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    prefix, layers = decoder_layers(model)
    patterns = layer_patterns(pattern, len(layers))
    chosen = {name: patterns[int(name[len(prefix) + 1 :].split(".")[0])] for name, _ in prunable_linears(model)}
    if calibration is not None:
        calibration.check_model(model)
    _refuse_unprunable(model, chosen)
    progress = progress or SilentProgress()
    if method == "magnitude":
        linears = prunable_linears(model)
        with progress.task("magnitude", len(linears)) as advance:
            for name, linear in linears:
                _apply(linear, chosen[name].mask(linear.weight.detach().float().abs(), compare="matrix"))
                advance(1)
    elif calibration is None or calibration.ids.shape[0] == 0:
        raise ValueError(f"{method} needs calibration text; pass some, or use magnitude, which needs none")
    else:
        _layer_by_layer(model, _Wanda() if method == "wanda" else _SparseGpt(), chosen, calibration, batch, progress)
    table = sparsity_table(model)
    zeros, total = sum(row["zeros"] for row in table), sum(row["rows"] * row["columns"] for row in table)
    seen = 0 if method == "magnitude" or calibration is None else int(calibration.lengths.sum())
    return PruneReport(method, pattern if isinstance(pattern, str) else pattern.text, seen, zeros / total, table)


def _refuse_unprunable(model: nn.Module, patterns: Mapping[str, Pattern]) -> None:
    for name, weight in prunable_weights(model):
        pattern = patterns[name]
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


class _Wanda:
    """Statistic: Σ x_j² [K]."""

    def statistic(self, x: Tensor) -> Tensor:
        return x.double().square().sum(0)

    def prune(self, linear: nn.Linear, squares: Tensor, pattern: Pattern) -> None:
        _apply(linear, pattern.mask(linear.weight.abs().float() * squares.sqrt().float()))


class _SparseGpt:
    """Statistic: Σ x xᵀ [K, K]."""

    def statistic(self, x: Tensor) -> Tensor:
        return (x.T.float() @ x.float()).double()

    def prune(self, linear: nn.Linear, gram: Tensor, pattern: Pattern) -> None:
        linear.weight.copy_(sparsegpt(linear.weight, gram, pattern))


@torch.no_grad()
def _layer_by_layer(
    model: Any, method: _Wanda | _SparseGpt, patterns: Mapping[str, Pattern], calibration: TokenSet, batch: int,
    progress: Progress,
) -> None:  # fmt: skip
    prefix, layers = decoder_layers(model)
    linears = dict(prunable_linears(model))
    hidden, calls, masks = [], [], []
    for part in calibration.batches(batch):
        entered, layer_calls = record_layer_calls(model, part.ids, part.attention_mask)
        hidden.append(entered)
        calls.append(layer_calls)
        masks.append(part.attention_mask.bool().reshape(-1))
    with progress.task(type(method).__name__.lstrip("_").lower(), len(layers)) as advance:
        for index, layer in enumerate(layers):
            inside = {name: linear for name, linear in linears.items() if name.startswith(f"{prefix}.{index}.")}
            statistics = _InputStatistics(inside, method.statistic)
            with statistics:
                for state, layer_calls, mask in zip(hidden, calls, masks, strict=True):
                    statistics.next_batch(mask)
                    run_layer(layer, state, layer_calls[index])
            for name, linear in inside.items():
                try:
                    method.prune(linear, statistics.sums.pop(name), patterns[name])
                except (ValueError, RuntimeError) as error:
                    raise ValueError(f"{name} cannot be pruned: {one_line(error)}") from error
            for place, layer_calls in enumerate(calls):
                hidden[place] = run_layer(layer, hidden[place], layer_calls[index])
            advance(1)


class _InputStatistics:
    """Sums `statistic(x)` over the tokens that enter each projection, padding left out; once for those that share x."""

    def __init__(self, linears: dict[str, nn.Linear], statistic: Callable[[Tensor], Tensor]) -> None:
        self.linears, self.statistic = linears, statistic
        self.sums: dict[str, Tensor] = {}
        self._mask = torch.ones(0, dtype=torch.bool)
        self._last: tuple[Tensor, Tensor] | None = None
        self._handles: list[Any] = []

    def next_batch(self, mask: Tensor) -> None:
        """The rows of x that count in the coming call of the layer."""
        self._mask, self._last = mask, None

    def __enter__(self) -> _InputStatistics:
        for name, linear in self.linears.items():

            def note(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                if self._last is None or self._last[0] is not args[0]:
                    rows = args[0].reshape(-1, args[0].shape[-1])[self._mask]
                    self._last = (args[0], self.statistic(rows))
                found = self._last[1]
                self.sums[name] = self.sums[name] + found if name in self.sums else found

            self._handles.append(linear.register_forward_pre_hook(note))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def rounded_survivors(weight: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` as `dtype` holds it, in its own type; what the mask keeps stays different from 0, however small."""
    rounded = weight.to(dtype).to(weight.dtype)
    least = torch.tensor(torch.finfo(dtype).smallest_normal, dtype=weight.dtype)
    return torch.where(mask & (rounded == 0), least, rounded)


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
