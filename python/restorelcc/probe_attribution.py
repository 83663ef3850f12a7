"""The first-order probe: all heads from one forward and one backward pass.

    s_h ≈ <Σ_t a_t dnll_t/dz_h, d_h>        a_t: the contrast (see `contrast`), d_h: how the edit moves head h

The first-order estimate of the perplexity contrast of RestoreLCC (arXiv 2510.21834, section 3). The edit adds the
same vector at every position, so the derivative is summed over positions; it is taken row by row, which costs no more
and lets `adaptive` correct exact contrasts of a few rows by the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .compensation import sparse_output_projections
from .contrast import ContrastText, contrast_text, edit_vectors
from .lm_head import language_head, token_losses
from .probe_input import ProbeInput, ProbeResult

__all__ = ["attribution", "row_attributions"]


def attribution(given: ProbeInput) -> ProbeResult:
    """s_h [L, H]: the predicted change of the contrast when head h alone is edited."""
    return ProbeResult(row_attributions(given, contrast_text(given)).sum(0))


def row_attributions(given: ProbeInput, text: ContrastText) -> Tensor:
    """[n, L, H] float64: what each row of `text` adds to the predicted s_h."""
    base, direction = edit_vectors(given)
    projections = sparse_output_projections(given.model)
    moves: list[Tensor] = []  # zero, of the batch's rows and no positions: its gradient is summed over positions

    def move(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        z = args[0]
        moves.append(torch.zeros(z.shape[0], 1, z.shape[2], dtype=z.dtype, requires_grad=True))
        return (z + moves[-1], *args[1:])

    found, begin = [], 0
    language_head(given.model)  # asked now: it runs the model, and the hooks would take that run for a batch's
    handles = [projection.register_forward_pre_hook(move) for projection in projections]
    try:
        _install(projections, base)
        with torch.enable_grad(), given.progress.task("attribution", len(text.tokens)) as advance:
            for batch in text.tokens.batches(given.batch):
                rows = slice(begin, begin + len(batch))
                counted = batch.labels[:, 1:] != -100
                weights = text.coefficients[rows, 1 : batch.ids.shape[1]][counted]
                losses = token_losses(given.model, batch)
                gradients = torch.autograd.grad((losses.double() * weights).sum(), moves)
                per_head = torch.stack(gradients, 1).double().reshape(len(batch), *direction.shape)
                found.append((per_head * direction.double()).sum(-1))
                moves.clear()
                begin += len(batch)
                advance(len(batch))
    finally:
        for handle in handles:
            handle.remove()
        _install(projections, torch.zeros_like(base))
    return torch.cat(found)


@torch.no_grad()
def _install(projections: list[Any], vectors: Tensor) -> None:
    for projection, vector in zip(projections, vectors, strict=True):
        projection.comp.copy_(vector)
