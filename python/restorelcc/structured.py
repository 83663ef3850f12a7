"""Structured pruning: whole attention heads and FFN channels go, and the model becomes a smaller stock model.

    S_j  = Σ_m (x_mj − mean_j)² · ‖W_:,j‖²      of input column j of o_proj [N, H·D] and of down_proj [N, F]
    head = mean of S_j over its D columns;       the lowest heads of each key-value group, the lowest channels go
    bias = W[:, removed] mean[removed]  [N]      mean compensation: what the removed ones gave on average

FLAP (An and others, arXiv 2312.11983): a column that hardly fluctuates is replaced by its mean, so what matters is its
variance. x are inputs in the dense model over all calibration tokens. The sums S count position 0, an attention sink:
the few channels that make it are large there alone, and without them the model breaks. The means leave it out.

The same number of heads and channels goes in each layer, so that a stock configuration describes the result. Heads:
of every key-value group equally many, or whole groups, or none: what loses the smallest part of S in attention and
FFN. Sums are float64, O(H·D + F) a layer; no Gram matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import AttentionSite, attention_sites, prunable_linears
from .artifacts import Progress, SilentProgress
from .fold_target import fold_target
from .restored_checkpoint import retargeted
from .structure import Structure
from .structured_sizes import ROUND_CHANNELS, LayerSizes, is_loadable, layer_sizes, size_choices, small_config
from .text import TokenSet

__all__ = ["StructuredReport", "check_share", "prune_structured"]


@dataclass(frozen=True)
class StructuredReport:
    """share: of the decoder layers' projection weights that went, biases not counted. notes: what to tell the user."""

    share: float
    heads: int
    key_value_heads: int
    channels: int
    calibration_tokens: int
    biases: int
    notes: list[str]


def prune_structured(
    model: Any,
    *,
    share: float,
    calibration: TokenSet | None,
    heads: int | None = None,
    batch: int = 4,
    progress: Progress | None = None,
) -> tuple[Any, Structure, StructuredReport]:
    """(a smaller stock model, what it kept, the report); `model` stays as it is, and shares what was not cut.

    Args:
        model: a stock causal language model with q, k, v, o and gate, up, down projections.
        share: of the decoder layers' projection weights that goes, as nearly as whole heads and channels allow.
        calibration: ids [n, T]; padding is left out.
        heads: query heads that stay in each layer; by default what costs least by the scores.
        batch: rows at once.

    Raises:
        ValueError: a share outside of (0, 1) or too large, no text, text of another model, weights or activations that
            are not finite, or a class that cannot be told to have fewer heads or channels.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of weights to remove is {share}; it lies between 0 and 1, such as 0.2")
    if calibration is None or len(calibration) == 0:
        raise ValueError("structured pruning needs calibration text; pass some")
    calibration.check_model(model)
    sites = attention_sites(model)
    full = layer_sizes(model)
    for name, linear in prunable_linears(model):
        bad = linear.weight.numel() - int(torch.isfinite(linear.weight).sum())
        if bad:
            raise ValueError(f"{name} has {bad} NaN or infinite weights; it cannot be pruned")
    choices = _asked_for(full, share, heads)
    columns = _column_sums(model, sites, calibration, batch, progress or SilentProgress())
    small, structure = _cheapest(model, sites, full, choices, columns)
    made = _cut(model, structure, small)
    notes = []
    biases = _mean_biases(model, sites, structure, columns)
    target = fold_target(made.config, everywhere=True)
    wanted = set(target.biased)
    held = {name: value for name, value in biases.items() if name.removesuffix(".bias") in wanted}
    if held:
        made = retargeted(made, held, target)
    if len(held) < len(biases):
        notes.append(
            f"the stock {made.config.model_type} class has room for {len(held)} of the {len(biases)} biases that make "
            "up for the means of what was removed"
        )
    before, after = _weights(model), _weights(made)
    report = StructuredReport(
        1 - after / before, small.heads, small.key_value_heads, small.channels,
        int(calibration.lengths.sum()), len(held), notes,
    )  # fmt: skip
    return made, structure, report


def _weights(model: nn.Module) -> int:
    return sum(linear.weight.numel() for _, linear in prunable_linears(model))


@dataclass
class _ColumnSums:
    """Of one projection's input, float64: count and Σ x² of all tokens; count and Σ x of those but the first."""

    tokens: int
    squares: Tensor
    total: Tensor
    later: int
    later_total: Tensor

    @property
    def fluctuation(self) -> Tensor:
        """Σ_m (x_mj − mean_j)² [K], position 0 included."""
        return (self.squares - self.total.square() / max(1, self.tokens)).clamp(min=0)

    @property
    def mean(self) -> Tensor:
        """Σ x / count [K], position 0 left out."""
        return self.later_total / max(1, self.later)


@torch.no_grad()
def _column_sums(
    model: Any, sites: list[AttentionSite], calibration: TokenSet, batch: int, progress: Progress
) -> dict[str, _ColumnSums]:
    """name -> sums, of every o_proj and down_proj; one stock forward of the decoder over the text."""
    sums: dict[str, _ColumnSums] = {}
    names = [name for site in sites for name in (site.name, _down(site))]
    with progress.task("structured", len(calibration)) as advance:
        for part in calibration.batches(batch):
            with _noting(model, names, part.attention_mask.bool(), sums):
                model.base_model(input_ids=part.ids, attention_mask=part.attention_mask, use_cache=False)
            advance(len(part))
    for name, found in sums.items():
        if not bool(torch.isfinite(found.squares).all()):
            raise ValueError(f"{name} cannot be pruned: the activations it was calibrated with are not finite")
    return sums


def _down(site: AttentionSite) -> str:
    return f"{site.name.rsplit('.', 2)[0]}.mlp.down_proj"


@contextmanager
def _noting(model: nn.Module, names: list[str], mask: Tensor, sums: dict[str, _ColumnSums]) -> Iterator[None]:
    later = mask.clone()
    later[:, 0] = False

    def hook(name: str) -> Any:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(*mask.shape, -1)
            rows, behind = x[mask].double(), x[later].double()
            new = _ColumnSums(len(rows), rows.square().sum(0), rows.sum(0), len(behind), behind.sum(0))
            old = sums.get(name)
            sums[name] = new if old is None else _ColumnSums(
                old.tokens + new.tokens, old.squares + new.squares, old.total + new.total, old.later + new.later,
                old.later_total + new.later_total,
            )  # fmt: skip

        return note

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_share(model: Any, share: float, heads: int | None = None) -> None:
    """Raises the ValueError of `prune_structured` for a share or a number of heads that cannot be, before any text."""
    _asked_for(layer_sizes(model), share, heads)


def _asked_for(full: LayerSizes, share: float, heads: int | None) -> list[LayerSizes]:
    choices = size_choices(full, share)
    if not choices:
        raise ValueError(
            f"{share:.2%} of the weights of a layer cannot be made of whole heads and {ROUND_CHANNELS} channels at a "
            f"time such that any of its {full.channels} channels stay; ask for another share"
        )
    found = [sizes for sizes in choices if heads in (None, sizes.heads)]
    if not found:
        known = ", ".join(str(number) for number in sorted({sizes.heads for sizes in choices}))
        raise ValueError(
            f"{heads} heads in each layer are no choice when {share:.2%} of the weights go; choose of {known}"
        )
    return found


def _cheapest(
    model: Any, sites: list[AttentionSite], full: LayerSizes, choices: list[LayerSizes], sums: dict[str, _ColumnSums]
) -> tuple[LayerSizes, Structure]:
    """The choice that loses the smallest part of its own S in attention and FFN, of those that stock classes load.

    cost = Σ over o_proj and down_proj of all layers:  Σ_removed S_j / Σ_j S_j
    """
    scores = {name: _scores(model, name, sums) for site in sites for name in (site.name, _down(site))}
    found = []
    for sizes in choices:
        structure = _lowest_removed(sites, full, sizes, scores)
        cost = 0.0
        for site in sites:
            for name in (site.name, _down(site)):
                score = scores[name]
                kept = score[structure.columns(site.layer, name)].sum()
                cost += 1 - float(kept / score.sum()) if float(score.sum()) > 0 else 0.0
        found.append((cost, sizes, structure))
    for _, sizes, structure in sorted(found, key=lambda choice: choice[0]):
        if is_loadable(model, full, sizes):
            return sizes, structure
    heads = " or ".join(str(number) for number in sorted({sizes.heads for sizes in choices}))
    raise ValueError(
        f"the stock {type(model).__name__} class cannot be told to have {heads} heads of size {full.head_dim} and "
        "fewer channels; ask for other heads, or use --method wanda or sparsegpt"
    )


def _lowest_removed(
    sites: list[AttentionSite], full: LayerSizes, small: LayerSizes, scores: dict[str, Tensor]
) -> Structure:
    heads, channels = [], []
    for site in sites:
        score = scores[site.name].reshape(full.key_value_heads, full.group, site.head_dim).mean(2)
        groups = _highest(score.mean(1), small.key_value_heads)
        within = [_highest(score[group], small.group) for group in groups]
        heads.append(tuple(
            group * full.group + head for group, kept in zip(groups, within, strict=True) for head in kept
        ))  # fmt: skip
        channels.append(tuple(_highest(scores[_down(site)], small.channels)))
    return Structure(
        sites[0].head_dim, sites[0].heads, full.key_value_heads, full.channels, tuple(heads), tuple(channels)
    )


def _scores(model: nn.Module, name: str, sums: dict[str, _ColumnSums]) -> Tensor:
    weight: Any = model.get_submodule(name).weight
    found: Tensor = sums[name].fluctuation * weight.detach().double().square().sum(0)
    return found


def _highest(scores: Tensor, keep: int) -> list[int]:
    """Indices of the `keep` highest, rising; of equal ones the first."""
    order = scores.argsort(descending=True, stable=True)[:keep]
    return [int(index) for index in order.sort().values]


def _mean_biases(
    model: nn.Module, sites: list[AttentionSite], structure: Structure, sums: dict[str, _ColumnSums]
) -> dict[str, Tensor]:
    """name -> bias [N] float32 where columns went: W[:, removed] mean[removed], and the bias that was there."""
    biases = {}
    for site in sites:
        for name in (site.name, _down(site)):
            linear: Any = model.get_submodule(name)
            kept = structure.columns(site.layer, name)
            assert kept is not None  # of these two projections columns are kept
            if len(kept) == linear.in_features:
                continue
            removed = sums[name].mean.clone()
            removed[kept] = 0.0
            bias = linear.weight.detach().double() @ removed
            biases[f"{name}.bias"] = (bias if linear.bias is None else bias + linear.bias.detach().double()).float()
    return biases


def _cut(model: Any, structure: Structure, small: LayerSizes) -> Any:
    """A stock model of the smaller configuration with the kept rows and columns."""
    from transformers import AutoModelForCausalLM

    config = small_config(model, small)
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype)  # type: ignore[no-untyped-call]
    projections = {name for name, _ in prunable_linears(model)}
    state = {
        name: structure.cut(owner, value).contiguous() if (owner := name.rpartition(".")[0]) in projections else value
        for name, value in model.state_dict().items()
    }
    made.load_state_dict(state, assign=True)
    for name, buffer in model.named_buffers():  # the rotary tables, which a state dict leaves out
        owner, _, leaf = name.rpartition(".")
        made.get_submodule(owner)._buffers[leaf] = buffer
    made.tie_weights()
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.eval().requires_grad_(False)
