"""Who is in the best share of heads, for a fraction of the exact probe's work.

    s_h = Σ_u x_{h,u}      x: exact contrast of head h in unit u (a row, or a pair of answers); y: its first order

Attribution gives y for all heads and units at once. Exact contrasts are measured on a growing random sample of units,
and only of the heads that the sample leaves undecided (successive halving). Each score is a regression estimate,

    ŝ_h = β Σ_u y_{h,u} + U · mean over the n sampled u of r_{h,u},    r = x − β y,

β one number a layer, fitted on all that was measured: what the first order already explains needs no sampling. Its
half-width is t · U · sqrt((1 − n/U) v_h / n), v_h the variance of r_h, drawn towards its layer's while n is small; t is
Student's for the given confidence, and 1 − n/U is there because the exact score is of these U units and no others.
A head whose interval lies on one side of the cut between the best share and the rest is settled. The cut is that of the
current estimates. Sampling: Särndal, Swensson, Wretman, Model Assisted Survey Sampling, 1992, chapter 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .contrast import ContrastText, contrast_text
from .probe_attribution import row_attributions
from .probe_input import ProbeInput, ProbeResult
from .probe_perplexity import unit_contrasts

__all__ = ["AdaptiveSettings", "Estimate", "adaptive", "estimate", "settle"]


@dataclass(frozen=True)
class AdaptiveSettings:
    """work: at most this part of the exact probe's. first: part of the units that every head sees, at least 2 units.
    growth: by how much the sample grows each round. confidence: of each interval. band: stop when no more than this
    part of the heads is undecided.
    """

    work: float = 0.17
    first: float = 0.06
    growth: float = 1.5
    confidence: float = 0.95
    band: float = 0.05


@dataclass(frozen=True)
class Estimate:
    """score and half_width [L, H] float64; a half-width of 0 is an exact score."""

    score: Tensor
    half_width: Tensor


def estimate(exact: Tensor, first_order: Tensor, confidence: float) -> Estimate:
    """Scores and intervals from what was measured.

    Args:
        exact: x [L, H, U] float64, NaN where a unit was not measured; every head has at least 2 units.
        first_order: y [L, H, U] float64.
    """
    known = ~exact.isnan()
    units, count = exact.shape[-1], known.sum(-1)  # [L, H]
    x = torch.where(known, exact, 0.0)
    y = torch.where(known, first_order, 0.0)
    slope = (x * y).sum((1, 2)) / (y * y).sum((1, 2)).clamp(min=1e-300)  # [L]
    rest = torch.where(known, exact - slope[:, None, None] * first_order, 0.0)
    mean = rest.sum(-1) / count
    score = slope[:, None] * first_order.sum(-1) + units * mean
    squares = torch.where(known, (rest - mean[..., None]) ** 2, 0.0).sum(-1)
    freedom = (count - 1).clamp(min=1)
    layer = squares.sum(1, keepdim=True) / freedom.sum(1, keepdim=True)  # variance, pooled over the layer's heads
    prior = 4.0  # as many observations as the layer's variance is worth
    variance = (squares + prior * layer) / (freedom + prior)
    width = _student(confidence, freedom + prior) * units * ((1 - count / units) * variance / count).sqrt()
    return Estimate(score, width)


def _student(confidence: float, freedom: Tensor) -> Tensor:
    """Student's quantile by its expansion around the normal one (Abramowitz and Stegun 26.7.5); freedom >= 5."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
    n = freedom.double()
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / n + second / n**2


def settle(found: Estimate, chosen: int) -> tuple[Tensor, Tensor]:
    """(in the best `chosen`, undecided), bool [L, H]: undecided where the interval holds the cut.

    The cut lies half-way between the last head inside and the first outside.
    """
    flat = found.score.flatten()
    order = flat.argsort(descending=True, stable=True)
    inside = torch.zeros_like(flat, dtype=torch.bool)
    inside[order[:chosen]] = True
    if chosen == len(flat):
        return inside.reshape(found.score.shape), torch.zeros_like(found.score, dtype=torch.bool)
    cut = (flat[order[chosen - 1]] + flat[order[chosen]]) / 2
    return inside.reshape(found.score.shape), (found.score - cut).abs() <= found.half_width


def adaptive(given: ProbeInput, settings: AdaptiveSettings | None = None) -> ProbeResult:
    """Estimated s_h [L, H]; details: half_width, undecided (1 where the interval straddles the cut), units measured.

    `given.share` is the share whose members are to be settled. The sample of units is drawn by `given.seed`.
    """
    settings = settings or AdaptiveSettings()
    text = contrast_text(given)
    units = text.units
    first_order = _by_unit(row_attributions(given, text), text)
    exact = torch.full_like(first_order, torch.nan)
    layers, heads, _ = exact.shape
    chosen = max(1, round(given.share * layers * heads))
    order = torch.randperm(units, generator=torch.Generator().manual_seed(given.seed))
    undecided = torch.ones(layers, heads, dtype=torch.bool)
    whole = _work(undecided, units)
    spent, taken, wanted = 0.0, 0, max(2, math.ceil(settings.first * units))
    while True:
        wanted = min(wanted, units)
        picked = order[taken:wanted]
        if len(picked):
            spent += _work(undecided, len(picked))
            part, _ = unit_contrasts(replace(given, seed=given.seed), text.of_units(picked), undecided)
            exact[..., picked] = torch.where(undecided[..., None], part, exact[..., picked])
            taken = wanted
        found = estimate(exact, first_order, settings.confidence)
        inside, straddling = settle(found, chosen)
        undecided = straddling
        left = settings.work * whole - spent
        if taken == units or int(undecided.sum()) <= settings.band * layers * heads:
            break
        affordable = int(left / _work(undecided, 1))
        if affordable < 1:
            break
        wanted = taken + min(affordable, max(1, math.ceil((settings.growth - 1) * taken)))
    return ProbeResult(
        found.score,
        {
            "half_width": found.half_width, "undecided": straddling.to(torch.float64),
            "inside": inside.to(torch.float64), "units": (~exact.isnan()).sum(-1).double(),
            "work": torch.tensor(spent / whole, dtype=torch.float64),
        },
    )  # fmt: skip


def _by_unit(rows: Tensor, text: ContrastText) -> Tensor:
    """[L, H, U] of [n, L, H]."""
    sums = rows.new_zeros(text.units, *rows.shape[1:]).index_add_(0, text.unit, rows)
    return sums.permute(1, 2, 0)


def _work(heads: Tensor, units: int) -> float:
    """Layers that run for these heads' edits on so many units: those from each edit's own on."""
    layers = heads.shape[0]
    left = torch.arange(layers, 0, -1, dtype=torch.float64)
    return float((heads.sum(1) * left).sum()) * units
