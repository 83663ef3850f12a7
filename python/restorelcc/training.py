"""Learning the compensation: c = u (Σ_i β_i v_i + b) per head, v_i fixed, β and b from zero, weights frozen.

    min over β, b of  mean NLL of the pruned model with c in its output projections, on the training text

RestoreLCC (arXiv 2510.21834) eq. 7-9. u is the head's root mean square of the lost activation, so that one
learning rate suits every head and layer. With the full basis, β and b span the same functions; the pair is one
preconditioned optimisation problem. A held-out part of the text chooses the learning rate and the step to keep,
step 0 (no compensation) included, so that training never returns something worse than its start there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .artifacts import Progress, SilentProgress
from .compensation import Compensation, sparse_output_projections
from .components import Components
from .evaluation import token_nll
from .lm_head import token_losses
from .models import attention_sites
from .text import TokenSet

__all__ = ["SCALES", "TrainingResult", "TrainingSettings", "closed_form", "summed_nll", "train_compensation"]

SCALES = (0.0, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. Learning rates are in units of u per step.

    A step takes rows (windows, or prompt-answer pairs) until `batch_tokens` tokens are predicted: small steps, because
    at a fixed amount of text their number matters more than their noise. `steps`: at most so many; the learning rate
    falls over those that are made.
    """

    learning_rates: tuple[float, ...] = (0.015, 0.03, 0.06)
    search_steps: int = 8
    epochs: float = 1.0
    batch_tokens: int = 256
    heldout_share: float = 0.1
    evaluations: int = 6
    patience: int = 3
    seed: int = 0
    steps: int | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The compensation, and how it came about. NLLs are means in nats per token on the held-out rows."""

    compensation: Compensation
    heldout_before: float
    heldout_after: float
    history: list[dict[str, float]] = field(default_factory=list)
    search: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0


def summed_nll(model: nn.Module, batch: TokenSet) -> tuple[Tensor, int]:
    """(Σ −log p(label), how many labels) of one batch, float32; labels of −100 do not count."""
    losses = token_losses(model, batch)
    return losses.sum(), losses.numel()


class _Heads(nn.Module):
    """β [L, H, R] and b [L, H, D] in units of u, and the vectors they make."""

    basis: Tensor
    unit: Tensor
    chosen: Tensor

    def __init__(self, components: Components, heads: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", components.basis.float())
        self.register_buffer("unit", components.unit.float()[..., None])
        self.register_buffer("chosen", heads.float()[..., None])
        layers, count, rank, head_dim = components.basis.shape
        self.beta = nn.Parameter(torch.zeros(layers, count, rank))
        self.b = nn.Parameter(torch.zeros(layers, count, head_dim))

    def vectors(self) -> Tensor:
        """c [L, H·D]."""
        c = self.unit * self.chosen * (torch.einsum("lhr,lhrd->lhd", self.beta, self.basis) + self.b)
        return c.flatten(1)


class _Trainer:
    """One optimisation run over batches of rows; the comp vectors of the projections are its leaves."""

    def __init__(self, model: nn.Module, components: Components, heads: Tensor, rate: float, steps: int) -> None:
        self.model = model
        self.comps = [p.comp for p in sparse_output_projections(model)]
        self.heads = _Heads(components, heads)
        self.optimiser = torch.optim.Adam(self.heads.parameters(), lr=rate, betas=(0.9, 0.95))
        warmup = max(1, min(5, steps // 10))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: min(1.0, (step + 1) / warmup)
            * (0.55 + 0.45 * math.cos(math.pi * min(1.0, step / max(1, steps)))),
        )

    def install(self) -> None:
        """Writes the current vectors into the projections."""
        with torch.no_grad():
            for comp, vector in zip(self.comps, self.heads.vectors(), strict=True):
                assert comp is not None
                comp.copy_(vector)

    def step(self, batch: TokenSet) -> float:
        """One update; returns the mean NLL of the batch before it, nats per token."""
        self.install()
        for comp in self.comps:
            assert comp is not None
            comp.requires_grad_(True)
        nll, count = summed_nll(self.model, batch)
        gradients = torch.autograd.grad(nll / max(1, count), self.comps)  # type: ignore[arg-type]
        for comp in self.comps:
            assert comp is not None
            comp.requires_grad_(False)
        self.optimiser.zero_grad()
        vectors = self.heads.vectors()
        torch.autograd.backward(vectors, torch.stack(gradients).to(vectors.dtype))
        self.optimiser.step()
        self.schedule.step()
        return float(nll.detach()) / max(1, count)


def train_compensation(
    model: nn.Module,
    tokens: TokenSet,
    components: Components,
    heads: Tensor,
    settings: TrainingSettings | None = None,
    *,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains β and b of the chosen heads on `tokens` (loss where `tokens.labels` count).

    Args:
        model: the pruned model (or, for the control, the dense one). Its output projections become
            `SparseLinear` in place; afterwards they hold the returned compensation.
        components: directions v_i and units u of every head.
        heads: bool [L, H], the heads that may change.

    The same seed, threads, CPU and versions give the same bits.

    Raises:
        ValueError: fewer than two rows (nothing could be held out), no steps, components or text of another model, or a
            loss that is not finite.
    """
    settings, progress = settings or TrainingSettings(), progress or SilentProgress()
    if tokens.ids.shape[0] < 2:
        raise ValueError(f"training needs at least 2 rows of text, one of them held out; got {tokens.ids.shape[0]}")
    if settings.steps is not None and settings.steps < 1:
        raise ValueError(f"training of {settings.steps} steps learns nothing; make at least 1")
    components.check_model(model)
    tokens.check_model(model)
    train, heldout = tokens.split(settings.heldout_share, seed=settings.seed)
    batches = _shuffled(train, settings)[: settings.steps]

    def measure() -> float:
        return token_nll(model, heldout, batch=4).mean

    _Trainer(model, components, heads, 0.0, 1).install()
    before = measure()
    search = []
    rates = settings.learning_rates
    probe_steps = min(settings.search_steps, len(batches))
    total = len(batches) + (probe_steps * len(rates) if len(rates) > 1 else 0)
    with progress.task("training", total) as advance:
        if len(rates) > 1:
            for rate in rates:
                trial = _Trainer(model, components, heads, rate, len(batches))
                for batch in batches[:probe_steps]:
                    trial.step(batch)
                    advance(1)
                trial.install()
                search.append({"learning_rate": rate, "steps": probe_steps, "heldout_nll": _ceiling(measure())})
        # every candidate that diverged has the same worst score; min() then takes the first, the smallest rate
        rate = min(search, key=lambda row: row["heldout_nll"])["learning_rate"] if search else rates[0]

        trainer = _Trainer(model, components, heads, rate, len(batches))
        best, best_vectors = before, trainer.heads.vectors().detach().clone()
        history = [{"step": 0.0, "heldout_nll": before}]
        every = max(1, math.ceil(len(batches) / settings.evaluations))
        losses: list[float] = []
        stale = 0
        for index, batch in enumerate(batches, start=1):
            losses.append(trainer.step(batch))
            advance(1)
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the training loss became {losses[-1]} at step {index}; use a smaller learning rate")
            if index % every and index != len(batches):
                continue
            trainer.install()
            now = _ceiling(measure())
            history.append({"step": float(index), "train_nll": sum(losses) / len(losses), "heldout_nll": now})
            losses = []
            if now < best:
                best, best_vectors, stale = now, trainer.heads.vectors().detach().clone(), 0
            else:
                stale += 1
                if stale >= settings.patience:
                    break
    names = [site.name for site in attention_sites(model)]
    result = Compensation(best_vectors, heads.clone(), names, {"train": "lm", "learning_rate": repr(rate)})
    _install(model, result.vectors)
    return TrainingResult(result, before, best, history, search, train.tokens)


def closed_form(
    model: nn.Module,
    tokens: TokenSet,
    components: Components,
    heads: Tensor,
    *,
    heldout_share: float = 0.1,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainingResult:
    """c = s Σ_i (mean(ΔZ)·v_i) v_i, without training; s by a line search on held-out text, 0 included.

    A full-scale shift of means can destroy a model, so s = 0 (no change) is always among the candidates.

    Raises:
        ValueError: fewer than two rows, components or text of another model, or scales without 0.
    """
    if 0.0 not in scales:
        raise ValueError(f"scales are {tuple(scales)}; 0 must be among them, so that nothing can get worse")
    if tokens.ids.shape[0] < 2:
        raise ValueError(f"the line search needs at least 2 rows of text; got {tokens.ids.shape[0]}")
    components.check_model(model)
    _, heldout = tokens.split(heldout_share, seed=seed)
    sparse_output_projections(model)
    full = (components.vectors * heads[..., None]).flatten(1).float()
    search = []
    with (progress or SilentProgress()).task("line search", len(scales)) as advance:
        for scale in scales:
            _install(model, scale * full)
            search.append({"scale": float(scale), "heldout_nll": _ceiling(token_nll(model, heldout, batch=4).mean)})
            advance(1)
    before = next(row["heldout_nll"] for row in search if row["scale"] == 0.0)
    best = min(search, key=lambda row: (row["heldout_nll"], row["scale"]))
    names = [site.name for site in attention_sites(model)]
    result = Compensation(best["scale"] * full, heads.clone(), names, {"train": "none", "scale": repr(best["scale"])})
    _install(model, result.vectors)
    return TrainingResult(result, before, best["heldout_nll"], [], search, 0)


def _ceiling(nll: float) -> float:
    """NaN and infinity as the largest float: a destroyed model compares as worst, and JSON can hold it."""
    return nll if math.isfinite(nll) else sys.float_info.max


def _install(model: nn.Module, vectors: Tensor) -> None:
    for projection, vector in zip(sparse_output_projections(model), vectors, strict=True):
        assert projection.comp is not None
        with torch.no_grad():
            projection.comp.copy_(vector)


def _shuffled(train: TokenSet, settings: TrainingSettings) -> list[TokenSet]:
    """The batches of all epochs, rows in a seeded order; a fraction of an epoch takes its first rows."""
    generator = torch.Generator().manual_seed(settings.seed)
    rows = train.ids.shape[0]
    order: list[Tensor] = []
    left = settings.epochs
    while left > 0:
        count = max(1, round(rows * min(1.0, left)))
        order.append(torch.randperm(rows, generator=generator)[:count])
        left -= 1.0
    batches: list[list[int]] = []
    picked: list[int] = []
    predicted = (train.lengths - train.response_start).clamp(min=0).tolist()
    for row in torch.cat(order).tolist():
        picked.append(row)
        if sum(predicted[r] for r in picked) >= 0.75 * settings.batch_tokens:
            batches.append(picked)
            picked = []
    return [batch for rows in (*batches, picked) if rows for batch in train.subset(rows).batches(len(rows))]
