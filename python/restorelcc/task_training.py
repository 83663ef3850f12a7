"""Learning a compensation for one task from a few of its multiple-choice items; the sparse weights stay as they are.

    min over c:   mean_i −log softmax_j( τ s_ij / bytes_ij )[right_i]   +   a · mean_t KL(dense ‖ compensated)_t

    s_ij     Σ log p(choice j of item i | its context), nats: what multiple choice compares (see `choice_rows`)
    bytes    of the choice, so that short ones have no start; of labels, which are the same in all items, their mean:
             those are compared by their sums. τ: so many bytes count, softer than a whole choice
    KL       on every token of contexts and choices, wrong ones too: what the dense model knows of text of this kind

c as in `training`: β and b per head, in units of what the head lost. A part of the items is held out; the sum on it
decides which state is kept, the start (no compensation) included. The choice loss alone would not do: on twenty items
it is noise, and it favours models that are sure of nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifacts import Progress, SilentProgress
from .choice_rows import ChoiceBatch, ChoiceSet, choice_scores
from .components import Components
from .distillation import distillation_losses, other_head
from .lm_head import language_head
from .text import ChoiceItem, load_choices
from .training import TrainingResult, TrainingSettings, trained_heads
from .training_checkpoint import TrainingCheckpoint
from .training_loop import seeded_batches

__all__ = ["TaskObjective", "choice_loss", "draw_examples", "read_examples", "train_for_task"]

_ITEMS = 4  # at once, where nothing is learnt


@dataclass(frozen=True)
class TaskObjective:
    """bytes: τ, above 0. distill: a, 0 or more; above 0 the dense model takes part."""

    bytes: float = 6.0
    distill: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.bytes < float("inf"):
            raise ValueError(f"the choice loss compares {self.bytes} bytes; it must be more than 0")
        if not 0 <= self.distill < float("inf"):
            raise ValueError(f"distill is {self.distill}; it must be 0 or more")


def draw_examples(items: list[ChoiceItem], count: int, seed: int) -> list[int]:
    """Indices of `count` items (all, where there are no more), drawn by `seed`, in file order."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return sorted(order[:count].tolist())


def read_examples(path: Path, tokenizer: Any, count: int, seed: int) -> tuple[ChoiceSet, list[int]]:
    """(`count` items of the file, drawn by `seed`, ready to be learnt from; their indices in it).

    Raises:
        ValueError: what `load_choices` refuses, or a single item.
    """
    items = load_choices(path)
    drawn = draw_examples(items, count, seed)
    if len(drawn) < 2:
        raise ValueError(f"{path} has {len(items)} item; give 2 or more, one of them is held out")
    examples = ChoiceSet.of([items[index] for index in drawn], tokenizer)
    labels = len({item.choices for item in items}) == 1
    return (examples.by_sum() if labels else examples), drawn


def choice_loss(batch: ChoiceBatch, scores: Tensor, size: float) -> Tensor:
    """Σ_i −log softmax_j(τ s_ij / bytes_ij)[right_i], float32 nats, of scores [S]; τ = size."""
    scaled = size * scores / batch.sizes
    losses = [
        -torch.log_softmax(scaled[begin:end], dim=0)[gold]
        for (begin, end), gold in zip(batch.spans, batch.gold, strict=True)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def teacher_of(dense: Any, examples: ChoiceSet, progress: Progress) -> list[Tensor]:
    """h_d [T_i, E] of each item: what enters the dense model's LM head, the tokens of its context once."""
    states = []
    with progress.task("teacher", len(examples)) as advance:
        for index in range(len(examples)):  # one item at a time: the tokens of one are then in one order for all
            batch = examples.subset([index]).batch(dense)
            states.append(_hidden(dense, batch)[1][batch.once].clone())
            advance(1)
    return states


def _hidden(model: Any, batch: ChoiceBatch) -> tuple[Tensor, Tensor]:
    scores, hidden = choice_scores(model, batch)
    if hidden is None or not language_head(model).plain:
        raise ValueError(
            f"{type(model).__name__} scales or caps its logits, which distillation does not know; learn from the "
            "choices alone (distill 0)"
        )
    return scores, hidden


def _rows(states: list[Tensor] | None, items: Sequence[int]) -> Tensor | None:
    return None if states is None else torch.cat([states[index] for index in items])


def train_for_task(
    model: Any,
    examples: ChoiceSet,
    components: Components,
    heads: Tensor,
    settings: TrainingSettings,
    *,
    dense: Any = None,
    objective: TaskObjective | None = None,
    tied: int = 1,
    vectors: str = "free",
    progress: Progress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> TrainingResult:
    """Trains β and b of the chosen heads on the items; what the result calls NLL is the objective on those held out.

    Args:
        model: the pruned model, its output projections `SparseLinear` afterwards (see `train_compensation`).
        examples: items, of which `settings.heldout_share` are held out.
        components, heads, tied, vectors, checkpoint: as for `train_compensation`.
        dense: the model before pruning, where the objective distils; asked once for every item.

    Raises:
        ValueError: fewer than two items, no steps, components or items of another model, no dense model, or a loss that
            is not finite.
    """
    objective, progress = objective or TaskObjective(), progress or SilentProgress()
    settings.check(len(examples))
    examples.check_model(model)
    train, heldout = examples.split(settings.heldout_share, seed=settings.seed)
    if objective.distill and dense is None:
        raise ValueError("distillation needs the dense model; pass dense=")
    states, held_states = (
        teacher_of(dense, part, progress) if objective.distill else None for part in (train, heldout)
    )
    head = language_head(model)
    theirs = other_head(dense, model) if objective.distill else None

    def summed(batch: ChoiceBatch, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
        """(Σ choice loss over items, Σ KL over tokens) of a batch."""
        if teacher is None:
            return choice_loss(batch, choice_scores(model, batch)[0], objective.bytes), torch.zeros(())
        scores, hidden = _hidden(model, batch)
        kl = distillation_losses(
            hidden[batch.once], teacher.to(hidden.dtype), head.module.weight, head.module.bias, theirs
        )
        return choice_loss(batch, scores, objective.bytes), kl.sum()

    def measure() -> float:
        choice = kl = 0.0
        for begin in range(0, len(heldout), _ITEMS):
            items = range(begin, min(begin + _ITEMS, len(heldout)))
            with torch.no_grad():
                both = summed(heldout.subset(items).batch(model), _rows(held_states, items))
            choice, kl = choice + float(both[0]), kl + float(both[1])
        return choice / len(heldout) + objective.distill * kl / heldout.tokens

    def loss(items: list[int]) -> Tensor:
        batch = train.subset(items).batch(model)
        choice, kl = summed(batch, _rows(states, items))
        return choice / len(items) + objective.distill * kl / int(batch.once.sum())

    sizes = [question.length for question in train.questions]
    return trained_heads(
        model, components, heads, loss, seeded_batches(sizes, settings), measure, settings,
        tied=tied, tokens=train.tokens, kind="choices", vectors=vectors, progress=progress,
        checkpoint=checkpoint,
    )  # fmt: skip
