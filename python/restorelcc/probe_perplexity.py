"""The exact probe: the contrast of every head, measured with its edit alone.

    s_h = Σ_t a_t (nll_t(edit of head h) − nll_t(base))        see `contrast` for a_t, `contrast_engine` for how
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contrast import ContrastText, contrast_text, edit_vectors
from .contrast_engine import Contrasts, head_contrasts
from .probe_input import ProbeInput, ProbeResult

__all__ = ["perplexity", "unit_contrasts"]


def unit_contrasts(given: ProbeInput, text: ContrastText, heads: Tensor | None = None) -> tuple[Tensor, Contrasts]:
    """([L, H, U] float64, what each unit of `text` adds to s_h; the run). NaN for heads not asked for.

    Within a unit, tokens that raise the score and tokens that lower it are segments of their own, since the op's
    weights are not negative.
    """
    base, direction = edit_vectors(given)
    units = text.units
    segments = text.unit[:, None] + units * (text.coefficients < 0)
    run = head_contrasts(
        given.model, text.tokens, direction, base=base, edit=given.edit, heads=heads,
        segments=torch.where(text.coefficients == 0, -1, segments), segment_count=2 * units,
        weights=text.coefficients.abs().float(), memory=given.memory, scratch=given.scratch, progress=given.progress,
    )  # fmt: skip
    sums = torch.where(run.weight > 0, run.delta * run.weight, 0.0)  # an empty segment has no mean
    sums = torch.where(run.delta.isnan().all(-1, keepdim=True), torch.nan, sums)
    return sums[..., :units] - sums[..., units:], run


def perplexity(given: ProbeInput) -> ProbeResult:
    """s_h [L, H], exact: every head's contrast over all of the text."""
    shares, run = unit_contrasts(given, contrast_text(given))
    return ProbeResult(shares.sum(-1), {"forward_passes": torch.tensor(run.forwards, dtype=torch.float64)})
