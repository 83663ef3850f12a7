"""The loop of every training here: a rate from a short search, steps, and the best state that held-out text has seen.

    rate  = the one of `learning_rates` with the lowest held-out NLL after a run of `search_steps` steps from the start,
            over which the rate falls as it does in a whole run: a high rate pays off only then
    state = the one with the lowest held-out NLL among the start and `evaluations` moments of the run

So training never returns something worse, on the held-out part, than what it was given. What is trained, and by which
loss, is the business of the `Trainer` that the caller makes. With a `TrainingCheckpoint` a killed run, repeated, goes
on from the last measurement that was saved, and ends with the same bits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from .artifacts import Progress
from .text import TokenSet
from .training_checkpoint import Standing, TrainingCheckpoint

__all__ = [
    "LoopResult", "Trainer", "TrainingSettings", "batch_of", "ceiling", "check_start", "fit", "schedule",
    "seeded_batches", "shuffled_rows",
]  # fmt: skip


Batch = TypeVar("Batch", contravariant=True)


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. Learning rates are in units of what is trained (of u for a compensation), per step.

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

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("search_steps", "batch_tokens", "evaluations", "patience")}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be 1 or more")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"learning_rates are {self.learning_rates}; give one or more, each above 0")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs is {self.epochs}; it must be more than 0")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share is {self.heldout_share}; it must lie between 0 and 1, both left out")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"training of {self.steps} steps learns nothing; make at least 1")

    def check(self, rows: int) -> None:
        """Raises ValueError where nothing could be held out of `rows` rows."""
        if rows < 2:
            raise ValueError(f"training needs at least 2 rows of text, one of them held out; got {rows}")


class Trainer(Protocol[Batch]):
    """One run from the start: `step` learns from a batch, `install` puts what was learnt where `measure` sees it.

    All that a step changes is in the leaves and the state of `optimiser`, and in `schedule`: a checkpoint saves these.
    """

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """Of this run alone."""
        ...

    @property
    def schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        """Of the optimiser's rates."""
        ...

    def step(self, batch: Batch) -> float:
        """One update; returns the mean loss of the batch before it."""
        ...

    def install(self) -> None:
        """Makes the model what was learnt so far."""
        ...

    def state(self) -> list[Tensor]:
        """A copy of what was learnt so far."""
        ...


@dataclass(frozen=True)
class LoopResult:
    """The best state, its held-out NLL and that of the start, in nats per token, and how it came about."""

    state: list[Tensor]
    before: float
    after: float
    rate: float
    history: list[dict[str, float]] = field(default_factory=list)
    search: list[dict[str, float]] = field(default_factory=list)


def fit(
    start: Callable[[float, int], Trainer[Batch]],
    batches: Sequence[Batch],
    measure: Callable[[], float],
    settings: TrainingSettings,
    progress: Progress,
    checkpoint: TrainingCheckpoint | None = None,
) -> LoopResult:
    """The best state of one run over `batches`.

    Args:
        start: makes a trainer of a rate and a number of steps, whose first `install` restores the start.
        measure: the held-out NLL of what is installed.
        progress: gets one task, whose units are steps and measurements; what patience spares counts as made.
        checkpoint: where the run is saved after each rate of the search and, when it is due, after a measurement; what
            stands there of the same run is gone on from. The caller removes it when the result is safe.

    Raises:
        ValueError: a loss that is not finite, of the start or while training.
    """
    first = start(0.0, 1)
    first.install()
    best_state = first.state()
    saved = None if checkpoint is None else checkpoint.load(first.optimiser, best_state)
    del first
    rates = settings.learning_rates if len(settings.learning_rates) > 1 else ()
    probe_steps = min(settings.search_steps, len(batches))
    every = max(1, math.ceil(len(batches) / settings.evaluations))
    total = 1 + len(rates) * (probe_steps + 1) + len(batches) + math.ceil(len(batches) / every)
    with progress.task("training", total) as advance:
        if saved is None:
            before = check_start(measure(), "the model to start from")
            at = Standing(before, before, history=[{"step": 0.0, "heldout_nll": before}])
            advance(1)
        else:
            at = saved.standing
            best_state = saved.best() or best_state
            advance(1 + len(at.search) * (probe_steps + 1) + at.step + at.step // every)
        for rate in rates[len(at.search) :]:
            trial = start(rate, probe_steps)
            for batch in batches[:probe_steps]:
                trial.step(batch)
                advance(1)
            trial.install()
            at.search.append({"learning_rate": rate, "steps": probe_steps, "heldout_nll": ceiling(measure())})
            advance(1)
            del trial
            if checkpoint is not None:
                checkpoint.save(at)
        # every candidate that diverged has the same worst score; min() then takes the first, the smallest rate
        searched = min(at.search, key=lambda row: row["heldout_nll"]) if at.search else None
        rate = settings.learning_rates[0] if searched is None else searched["learning_rate"]

        trainer = start(rate, len(batches))
        if saved is not None and at.step:
            saved.put(trainer.optimiser, trainer.schedule)
        del saved
        losses: list[float] = []
        for batch in batches[at.step :]:
            losses.append(loss := trainer.step(batch))
            advance(1)
            at.step += 1
            if not math.isfinite(loss):
                raise ValueError(f"the training loss became {loss} at step {at.step}; use a smaller learning rate")
            if at.step % every and at.step != len(batches):
                continue
            trainer.install()
            now = ceiling(measure())
            advance(1)
            at.history.append({"step": float(at.step), "train_nll": sum(losses) / len(losses), "heldout_nll": now})
            losses = []
            if now < at.best:
                at.best, best_state, at.stale = now, trainer.state(), 0
            else:
                at.stale += 1
                if at.stale >= settings.patience:
                    left = len(batches) - at.step  # steps that are not made, and their measurements: the bar ends full
                    advance(left + math.ceil(left / every))
                    break
            if checkpoint is not None and checkpoint.due() and at.step != len(batches):
                better = at.best < at.before
                checkpoint.save_run(at, trainer.optimiser, trainer.schedule, best_state if better else None)
    return LoopResult(best_state, at.before, at.best, rate, at.history, at.search)


def schedule(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A short rise, then a cosine from the full rate down to a tenth of it over `steps`."""
    warmup = max(1, min(5, steps // 10))
    return torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / warmup) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, step / max(1, steps)))),
    )


def check_start(loss: float, model: str) -> float:
    """The held-out loss of `model`, which all others are compared with, as it is.

    Raises:
        ValueError: it is NaN or infinite; a comparison with it would choose anything.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"{model} has a held-out loss of {loss} before anything is changed, so nothing can be compared with it; "
            "its embeddings, norms or LM head hold NaN or infinity, or its activations overflow: make it again"
        )
    return loss


def ceiling(nll: float) -> float:
    """NaN and infinity as the largest float: a destroyed model compares as worst, and JSON can hold it."""
    return nll if math.isfinite(nll) else sys.float_info.max


def seeded_batches(sizes: Sequence[int], settings: TrainingSettings) -> list[list[int]]:
    """Numbers of the rows of each batch, of all epochs, in a seeded order; a fraction of an epoch takes its first rows.

    sizes: tokens of each row; a batch ends where it has about `batch_tokens` of them.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[Tensor] = []
    left = settings.epochs
    while left > 0:
        count = max(1, round(len(sizes) * min(1.0, left)))
        order.append(torch.randperm(len(sizes), generator=generator)[:count])
        left -= 1.0
    batches: list[list[int]] = []
    picked: list[int] = []
    for row in torch.cat(order).tolist():
        picked.append(row)
        if sum(sizes[r] for r in picked) >= 0.75 * settings.batch_tokens:
            batches.append(picked)
            picked = []
    return [rows for rows in (*batches, picked) if rows]


def shuffled_rows(train: TokenSet, settings: TrainingSettings) -> list[list[int]]:
    """`seeded_batches` of the rows of `train`, by their predicted tokens."""
    return seeded_batches((train.lengths - train.response_start).clamp(min=0).tolist(), settings)


def batch_of(train: TokenSet, rows: Sequence[int]) -> TokenSet:
    """These rows as one batch, no wider than the longest of them."""
    return next(iter(train.subset(rows).batches(len(rows))))
