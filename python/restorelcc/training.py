"""Learning the compensation: c = u (Σ_i β_i v_i + b) per head, v_i fixed, β and b from zero, weights frozen.

    min over β, b of  mean NLL of the pruned model with c in its output projections, on the training text

RestoreLCC (arXiv 2510.21834) eq. 7-9. Of FFNs the same, c [E] at the output of each: one unit a layer; heads and FFNs
are trained together where there are components of both. u is the head's (or the FFN's) root mean square of the lost
activation, so that one learning rate suits every unit and layer. With the full basis, β and b span the same functions;
the pair is one preconditioned optimisation problem. Vectors that are `spanned` have no b: c is then made of the v_i
alone, which is what tells components of a lower rank apart. A held-out part of the text chooses the learning rate and
the step to keep, step 0 (no compensation) included, so that training never returns something worse than its start
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .artifacts import Progress, SilentProgress
from .compensation import Compensation, install_vectors, vector_slots
from .components import Components
from .evaluation import token_nll
from .lm_head import token_losses
from .sites import ATTENTION, chained, model_sites
from .text import TokenSet
from .training_checkpoint import TrainingCheckpoint
from .training_loop import TrainingSettings, batch_of, ceiling, check_start, fit, schedule, shuffled_rows

__all__ = [
    "SCALES", "VECTORS", "TrainingResult", "TrainingSettings", "check_vectors", "closed_form", "summed_nll",
    "train_compensation", "trained_heads",
]  # fmt: skip

Batch = TypeVar("Batch")

VECTORS = ("free", "spanned")
SCALES = (0.0, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TrainingResult:
    """The compensation, and how it came about. NLLs are means in nats per token on the held-out rows."""

    compensation: Compensation
    heldout_before: float
    heldout_after: float
    history: list[dict[str, float]] = field(default_factory=list)
    search: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0


def check_vectors(vectors: str, kind: str) -> None:
    """Raises ValueError where such vectors cannot be made of components of this kind."""
    if vectors not in VECTORS:
        raise ValueError(f"unknown vectors {vectors!r}; choose one of {', '.join(VECTORS)}")
    if vectors == "spanned" and kind == "none":
        raise ValueError("components none have no directions, so they span no vector; train free ones")


def summed_nll(model: nn.Module, batch: TokenSet) -> tuple[Tensor, int]:
    """(Σ −log p(label), how many labels) of one batch, float32; labels of −100 do not count."""
    losses = token_losses(model, batch)
    return losses.sum(), losses.numel()


class _Units(nn.Module):
    """β [L, H, R] and b [L, H, D] in units of u, of the units of one place, and the vectors they make."""

    basis: Tensor
    unit: Tensor
    chosen: Tensor

    def __init__(self, components: Components, heads: Tensor, tied: int, free: bool) -> None:
        super().__init__()
        self.tied = tied
        self.register_buffer("basis", components.basis.float())
        self.register_buffer("unit", components.unit.float()[..., None])
        self.register_buffer("chosen", heads.float()[..., None])
        layers, count, rank, head_dim = components.basis.shape
        self.beta = nn.Parameter(torch.zeros(layers, count, rank))
        self.b = nn.Parameter(torch.zeros(layers, count, head_dim)) if free else None

    def vectors(self) -> Tensor:
        """c [L, H·D]."""
        along = torch.einsum("lhr,lhrd->lhd", self.beta, self.basis)
        c = self.unit * self.chosen * (along if self.b is None else along + self.b)
        return shared_by_heads(c, self.tied).flatten(1)


class _Trainer(Generic[Batch]):
    """One optimisation run over batches; the vectors that the projections hold are its leaves.

    chosen: the units that may change, of each part of the components. loss: the mean of a batch, through the model.
    """

    def __init__(
        self, model: nn.Module, components: Components, chosen: Sequence[Tensor], loss: Callable[[Batch], Tensor],
        tied: int, free: bool, rate: float, steps: int,
    ) -> None:  # fmt: skip
        self.loss = loss
        self.slots = [slot for part in components.parts for slot in vector_slots(model, part.place)]
        self.units = nn.ModuleList(
            _Units(part, units, _tied(part.place, tied), free)
            for part, units in zip(components.parts, chosen, strict=True)
        )
        self.optimiser = torch.optim.Adam(self.units.parameters(), lr=rate, betas=(0.9, 0.95))
        self.schedule = schedule(self.optimiser, steps)

    def _vectors(self) -> list[Tensor]:
        return [unit.vectors() for unit in self.units if isinstance(unit, _Units)]

    def install(self) -> None:
        """Writes the current vectors into the projections."""
        with torch.no_grad():
            rows = [vector for vectors in self._vectors() for vector in vectors]
            for slot, vector in zip(self.slots, rows, strict=True):
                slot.copy_(vector)

    def state(self) -> list[Tensor]:
        """The current vectors c [L, width] of each part."""
        return [vectors.detach().clone() for vectors in self._vectors()]

    def step(self, batch: Batch) -> float:
        """One update; returns the mean loss of the batch before it."""
        self.install()
        for slot in self.slots:
            slot.requires_grad_(True)
        loss = self.loss(batch)
        gradients = iter(torch.autograd.grad(loss, self.slots))
        for slot in self.slots:
            slot.requires_grad_(False)
        self.optimiser.zero_grad()
        made = self._vectors()
        towards = [torch.stack([next(gradients) for _ in vectors]).to(vectors.dtype) for vectors in made]
        torch.autograd.backward(made, towards)
        self.optimiser.step()
        self.schedule.step()
        return float(loss.detach())


def train_compensation(
    model: nn.Module,
    tokens: TokenSet,
    components: Components,
    heads: Tensor,
    settings: TrainingSettings | None = None,
    *,
    tied: int = 1,
    vectors: str = "free",
    progress: Progress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> TrainingResult:
    """Trains β and b of the chosen heads on `tokens` (loss where `tokens.labels` count).

    Args:
        model: the pruned model (or, for the control, the dense one). Its output projections become
            `SparseLinear` in place; afterwards they hold the returned compensation.
        components: directions v_i and units u of every head, or FFN, or of both.
        heads: bool [L, H], the heads that may change; [L, 1] of FFNs alone. With heads, all FFNs may change.
        tied: so many neighbouring heads share one vector (see `FoldTarget`); all of them change where one may.
        vectors: `free`, c = u (Σ β_i v_i + b), or `spanned`, c = u Σ β_i v_i.
        checkpoint: where a killed run goes on from (see `fit`); its stamp covers all of the above.

    The same seed, threads, CPU and versions give the same bits.

    Raises:
        ValueError: fewer than two rows (nothing could be held out), no steps, components or text of another model,
            components without directions for vectors that they span, or a loss that is not finite.
    """
    settings = settings or TrainingSettings()
    settings.check(len(tokens))
    tokens.check_model(model)
    train, heldout = tokens.split(settings.heldout_share, seed=settings.seed)

    def loss(batch: TokenSet) -> Tensor:
        nll, count = summed_nll(model, batch)
        return nll / max(1, count)

    batches = [batch_of(train, rows) for rows in shuffled_rows(train, settings)]
    return trained_heads(
        model, components, heads, loss, batches, lambda: token_nll(model, heldout, batch=4).mean, settings,
        tied=tied, tokens=train.tokens, kind="lm", vectors=vectors, progress=progress, checkpoint=checkpoint,
    )  # fmt: skip


def trained_heads(
    model: nn.Module,
    components: Components,
    heads: Tensor,
    loss: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    measure: Callable[[], float],
    settings: TrainingSettings,
    *,
    tied: int,
    tokens: int,
    kind: str,
    vectors: str = "free",
    progress: Progress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> TrainingResult:
    """β and b of the chosen heads by any loss: the one path of `train_compensation` and `train_for_task`.

    Args:
        model, components, heads, tied, vectors, checkpoint: see `train_compensation`.
        loss: mean loss of a batch, through the model. measure: the held-out loss of what the model holds.
        tokens: of one pass over the training rows; kind: of the loss; both are noted in the result.
    """
    components.check_model(model)
    check_vectors(vectors, components.kind)
    chosen = _chosen_units(components, heads, tied)
    found = fit(
        lambda rate, steps: _Trainer(model, components, chosen, loss, tied, vectors == "free", rate, steps),
        batches[: settings.steps], measure, settings, progress or SilentProgress(), checkpoint,
    )  # fmt: skip
    marks = {"train": kind, "learning_rate": repr(found.rate)}
    result = _installed(model, components, found.state, chosen, marks)
    return TrainingResult(result, found.before, found.after, found.history, found.search, tokens)


def closed_form(
    model: nn.Module,
    tokens: TokenSet,
    components: Components,
    heads: Tensor,
    *,
    heldout_share: float = 0.1,
    scales: Sequence[float] = SCALES,
    tied: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainingResult:
    """c = s Σ_i (mean(ΔZ)·v_i) v_i, without training; s by a line search on held-out text, 0 included.

    One s for all heads and FFNs. A full-scale shift of means can destroy a model, so s = 0 (no change) is always among
    the candidates.

    Raises:
        ValueError: fewer than two rows, components or text of another model, components without directions, scales
            without 0, or a model whose held-out NLL is NaN or infinite.
    """
    if 0.0 not in scales:
        raise ValueError(f"scales are {tuple(scales)}; 0 must be among them, so that nothing can get worse")
    if tokens.ids.shape[0] < 2:
        raise ValueError(f"the line search needs at least 2 rows of text; got {tokens.ids.shape[0]}")
    components.check_model(model)
    if components.kind == "none":
        raise ValueError("components none have no directions, so no closed form; train with the language-model loss")
    _, heldout = tokens.split(heldout_share, seed=seed)
    chosen = _chosen_units(components, heads, tied)
    full = [
        shared_by_heads(part.vectors * units[..., None], _tied(part.place, tied)).flatten(1).float()
        for part, units in zip(components.parts, chosen, strict=True)
    ]
    search = []
    with (progress or SilentProgress()).task("line search", len(scales)) as advance:
        for scale in scales:
            for part, vectors in zip(components.parts, full, strict=True):
                install_vectors(model, part.place, scale * vectors)
            nll = token_nll(model, heldout, batch=4).mean
            if scale == 0:
                check_start(nll, "the model to start from")
            search.append({"scale": float(scale), "heldout_nll": ceiling(nll)})
            advance(1)
    before = next(row["heldout_nll"] for row in search if row["scale"] == 0.0)
    best = min(search, key=lambda row: (row["heldout_nll"], row["scale"]))
    marks = {"train": "none", "scale": repr(best["scale"])}
    result = _installed(model, components, [best["scale"] * vectors for vectors in full], chosen, marks)
    return TrainingResult(result, before, best["heldout_nll"], [], search, 0)


def _chosen_units(components: Components, heads: Tensor, tied: int) -> list[Tensor]:
    """bool [L, units] of each part: `heads` and those tied to them of the first one, all units of another."""
    first, *others = components.parts
    return [
        tied_heads(heads, _tied(first.place, tied)),
        *(torch.ones(part.unit.shape, dtype=torch.bool) for part in others),
    ]


def _tied(place: str, tied: int) -> int:
    """Neighbouring units that share a vector: an FFN has one unit and nothing to share it with."""
    return tied if place == ATTENTION else 1


def _installed(
    model: nn.Module, components: Components, vectors: Sequence[Tensor], chosen: Sequence[Tensor], marks: dict[str, str]
) -> Compensation:
    """The compensation of these vectors [L, width] of each part, which the model holds from now on."""
    records: list[Compensation] = []
    for part, own, units in zip(components.parts, vectors, chosen, strict=True):
        names = [site.name for site in model_sites(model, part.place)]
        records.append(Compensation(own, units.clone(), names, {} if records else marks, part.place))
        install_vectors(model, part.place, own)
    return chained(records)


def shared_by_heads(vectors: Tensor, tied: int) -> Tensor:
    """[L, H, D] -> [L, H, D]: each group of `tied` neighbouring heads gets the mean of its vectors."""
    if tied == 1:
        return vectors
    layers, heads, size = vectors.shape
    groups = vectors.reshape(layers, heads // tied, tied, size)
    return groups.mean(2, keepdim=True).expand_as(groups).reshape(layers, heads, size)


def tied_heads(heads: Tensor, tied: int) -> Tensor:
    """bool [L, H]: the heads, and those that are tied to one of them."""
    groups = heads.reshape(heads.shape[0], -1, tied)
    return groups.any(-1, keepdim=True).expand_as(groups).reshape(heads.shape)
