"""Which heads are worth restoring: one score per head, larger = more worth restoring.

    perplexity    the contrast of every head with its edit alone, exact
    adaptive      who is in the best share, for a fraction of that work
    attribution   its first-order estimate, all heads from one forward and backward pass
    linear        how well the head's output tells right answers from wrong ones; the paper's
    random        s_h ~ U(0, 1), the baseline that every probe has to beat

A probe is a function of a `ProbeInput` that gives a `ProbeResult`; add one to PROBES and every verb offers it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .artifacts import Progress, SilentProgress, fingerprint, versions
from .components import Components
from .pairs import PairSet
from .probe_adaptive import adaptive
from .probe_attribution import attribution
from .probe_input import CONTRASTS, EDITS, ProbeInput, ProbeResult
from .probe_linear import linear_probe
from .probe_perplexity import perplexity
from .resident_memory import watched_peak
from .score_file import HeadScores
from .sites import ATTENTION
from .text import TokenSet

__all__ = ["PROBES", "HeadScores", "ProbeInput", "ProbeResult", "head_scores", "probe_tokens", "select_heads"]


def _random(given: ProbeInput) -> ProbeResult:
    generator = torch.Generator().manual_seed(given.seed)
    return ProbeResult(torch.rand(given.components.vectors.shape[:2], generator=generator, dtype=torch.float64))


PROBES: dict[str, tuple[Callable[[ProbeInput], ProbeResult], str]] = {
    "attribution": (attribution, "predicted change of the contrast, nats per token"),
    "adaptive": (adaptive, "estimated change of the contrast, nats per token"),
    "perplexity": (perplexity, "change of the contrast, nats per token"),
    "linear": (linear_probe, "validation accuracy of a linear probe"),
    "random": (_random, "uniform random number"),
}


def probe_tokens(kind: str) -> int:
    """How many tokens of text a probe reads unless it is told: few for the exact one, whose cost is their number
    times half the heads."""
    return 1024 if kind == "perplexity" else 4096


def head_scores(
    kind: str,
    model: nn.Module,
    tokens: TokenSet,
    components: Components,
    *,
    seed: int = 0,
    batch: int = 4,
    progress: Progress | None = None,
    pairs: PairSet | None = None,
    contrast: str = "text",
    edit: str = "inject",
    compensation: Tensor | None = None,
    share: float = 0.25,
    memory: int = 2 << 30,
    scratch: Path | None = None,
    dense: nn.Module | None = None,
    record: Mapping[str, Any] | None = None,
) -> HeadScores:
    """Scores [L, H] of every head by the probe `kind`; how they came about is in their record.

    Args:
        model: the pruned model; its output projections become `SparseLinear` (in place, comp = 0 afterwards).
        tokens: calibration text; the loss counts where `tokens.labels` do.
        components: the lost components c_h.
        pairs, contrast, edit, compensation, share, memory, scratch, dense: see `ProbeInput`.
        record: what only the caller knows, such as fingerprints of the files that these arguments are from.

    Raises:
        ValueError: an unknown probe, contrast or edit; components, text, pairs or a compensation of another model, or
            missing ones; too little memory.
    """
    if kind not in PROBES:
        raise ValueError(f"unknown probe {kind!r}; choose one of {', '.join(PROBES)}")
    for value, allowed, name in ((contrast, CONTRASTS, "contrast"), (edit, EDITS, "edit")):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    if components.place != ATTENTION:
        raise ValueError(f"probes score attention heads, and these components are of {components.where} alone")
    components.check_model(model)
    tokens.check_model(model)
    if pairs is not None:
        pairs.check_model(model)
    probe, unit = PROBES[kind]
    given = ProbeInput(
        model, tokens, components, seed=seed, batch=batch, progress=progress or SilentProgress(), pairs=pairs,
        contrast=contrast, edit=edit, compensation=compensation, share=share, memory=memory, scratch=scratch,
        dense=dense,
    )  # fmt: skip
    begin = time.perf_counter()
    with watched_peak() as peak:
        result = probe(given)
    seconds = time.perf_counter() - begin
    return HeadScores(
        kind, unit, result.scores, result.details,
        {**(record or {}), **_record(kind, given), "seconds": seconds, "memory_used": asdict(peak)},
    )  # fmt: skip


def _record(kind: str, given: ProbeInput) -> dict[str, Any]:
    """Everything that decides the scores: the settings, and fingerprints of what was read."""
    pairs, rows = given.pairs, given.tokens
    return {
        "probe": kind, "contrast": given.contrast, "edit": given.edit, "share": given.share, "seed": given.seed,
        "batch": given.batch, "memory": given.memory, "components": given.components.kind,
        "dense": given.dense is not None,
        "components_fingerprint": fingerprint(vectors=given.components.vectors),
        "text": {"name": rows.name, "rows": len(rows), "tokens": rows.tokens, "fingerprint": rows.fingerprint()},
        "pairs": None if pairs is None else {
            "name": pairs.positive.name, "pairs": len(pairs), "note": pairs.note, "similarity": pairs.similarity,
            "fingerprint": pairs.fingerprint(),
        },
        "compensation_fingerprint": None if given.compensation is None else fingerprint(vectors=given.compensation),
        "versions": versions(),
    }  # fmt: skip


def select_heads(scores: Tensor, share: float | str) -> Tensor:
    """The best `share` of all heads, bool [L, H]; "all", or a number in (0, 1].

    At least one head is chosen; ties go to the lower layer, then the lower head.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if share == "all":
        return torch.ones_like(scores, dtype=torch.bool)
    try:
        value = float(share)
    except ValueError:
        raise ValueError(f"heads is {share!r}; give `all` or a share such as 0.25") from None
    if not 0 < value <= 1:
        raise ValueError(f"heads is {value:g}; give `all` or a share greater than 0 and at most 1")
    count = max(1, round(value * scores.numel()))
    order = torch.argsort(scores.flatten(), descending=True, stable=True)
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.reshape(scores.shape)
