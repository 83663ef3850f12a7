"""Which heads are worth restoring: one score per head, larger = more worth restoring.

    attribution   s_h = − <Σ_t dNLL/dz_{t,h}, c_h> / tokens     predicted fall of the mean NLL, nats per token
    linear        share of right and wrong answers told apart   validation accuracy of one classifier per head
    random        s_h ~ U(0, 1)                                 the baseline that every probe has to beat

A probe is a function of a `ProbeInput` that gives a `ProbeResult`; add one to PROBES and every verb offers it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .artifacts import Progress, SilentProgress, atomic_write_tensors
from .components import Components
from .pairs import PairSet
from .probe_attribution import attribution
from .probe_input import ProbeInput, ProbeResult
from .probe_linear import linear_probe
from .step_file import read_step_file
from .text import TokenSet

__all__ = ["PROBES", "HeadScores", "ProbeInput", "ProbeResult", "head_scores", "select_heads"]


@dataclass(frozen=True)
class HeadScores:
    """scores [L, H] float64, larger = more worth restoring; `unit` says what the number means."""

    kind: str
    unit: str
    scores: Tensor

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Writes the file that load() reads, whole or not at all."""
        marks = {"kind": "head_scores", "version": "0", "probe": self.kind, "unit": self.unit}
        atomic_write_tensors(path, {"scores": self.scores}, {**(metadata or {}), **marks})

    @classmethod
    def load(cls, path: Path) -> HeadScores:
        """Raises ValueError when the file is missing, damaged or not a score file of this version."""
        found, metadata = read_step_file(
            path, "head_scores", {"scores": (torch.float64, "L H")}, name="head score",
            remedy="make one with `restorelcc probe`", marks=("probe", "unit"),
        )  # fmt: skip
        return cls(metadata["probe"], metadata["unit"], found["scores"])


def _random(given: ProbeInput) -> ProbeResult:
    generator = torch.Generator().manual_seed(given.seed)
    return ProbeResult(torch.rand(given.components.vectors.shape[:2], generator=generator, dtype=torch.float64))


PROBES: dict[str, tuple[Callable[[ProbeInput], ProbeResult], str]] = {
    "attribution": (attribution, "predicted fall of the mean NLL, nats per token"),
    "linear": (linear_probe, "validation accuracy of a linear probe"),
    "random": (_random, "uniform random number"),
}


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
) -> HeadScores:
    """Scores [L, H] of every head by the probe `kind`.

    Args:
        model: the pruned model; its output projections become `SparseLinear` (in place, comp = 0 afterwards).
        tokens: calibration text; the loss counts where `tokens.labels` do.
        components: the lost components c_h.
        pairs: right and wrong answers, for the linear probe.

    Raises:
        ValueError: an unknown probe, or components or text of another model.
    """
    if kind not in PROBES:
        raise ValueError(f"unknown probe {kind!r}; choose one of {', '.join(PROBES)}")
    components.check_model(model)
    tokens.check_model(model)
    probe, unit = PROBES[kind]
    given = ProbeInput(
        model, tokens, components, seed=seed, batch=batch, progress=progress or SilentProgress(), pairs=pairs
    )
    return HeadScores(kind, unit, probe(given).scores)


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
