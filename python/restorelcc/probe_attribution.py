"""The first-order probe: all heads from one forward and one backward pass.

    s_h = − <Σ_t dNLL/dz_{t,h}, c_h> / tokens        predicted fall of the mean NLL, nats per token

The first-order estimate of the perplexity contrast of RestoreLCC (arXiv 2510.21834, section 3): what happens to
the NLL when head h alone gets its lost component back. The gradient of a projection's comp vector *is* Σ_t dNLL/dz_t.
"""

from __future__ import annotations

import torch

from .compensation import sparse_output_projections
from .probe_input import ProbeInput, ProbeResult
from .training import summed_nll

__all__ = ["attribution"]


def attribution(given: ProbeInput) -> ProbeResult:
    """s_h [L, H]: the predicted fall of the mean NLL when head h alone gets its lost component back."""
    projections = sparse_output_projections(given.model)
    comps = [projection.comp for projection in projections]
    for comp in comps:
        assert comp is not None
        comp.requires_grad_(True)
        comp.grad = None
    counted = 0
    try:
        with given.progress.task("attribution", given.tokens.ids.shape[0]) as advance:
            for batch in given.tokens.batches(given.batch):
                nll, count = summed_nll(given.model, batch)
                nll.backward()  # type: ignore[no-untyped-call]
                counted += count
                advance(batch.ids.shape[0])
        gradient = torch.stack([comp.grad for comp in comps if comp is not None and comp.grad is not None])
    finally:
        for comp in comps:
            assert comp is not None
            comp.requires_grad_(False)
            comp.grad = None
    vectors = given.components.vectors
    per_head = gradient.double().reshape(vectors.shape)
    return ProbeResult(-(per_head * vectors).sum(-1) / counted)
