"""Masked tuning: the surviving weights (and biases) trained by gradient descent; what is zero stays zero.

    min over the surviving w and the biases:   (1 − a) NLL(labels)  +  a KL(dense ‖ tuned)  +  m ‖h − h_d‖² / ‖h_d‖²
    a = 1 on text that the dense model wrote itself: its words are draws from the distribution that the KL knows whole

Every projection is a `SparseLinear`, whose gradient is that of the surviving values alone, in the packed order: mask
bits cannot change, and gradient and optimiser state exist for survivors only. a: share of the distillation from the
dense model's next-token distribution, on every token; m: weight of the distance to its last hidden state.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import layers_left_out
from .artifacts import Progress, SilentProgress
from .distillation import Head, distillation_losses, other_head
from .evaluation import token_nll
from .layers import LayerStream
from .lm_head import LanguageHead, head_input, language_head, token_losses
from .models import prunable_linears, replace_module
from .packed import pack
from .sparse_linear import SparseLinear
from .text import TokenSet
from .token_set import join_rows
from .training_checkpoint import TrainingCheckpoint
from .training_loop import TrainingSettings, batch_of, fit, schedule, shuffled_rows

__all__ = ["TuningObjective", "TuningResult", "check_teacher", "objective_loss", "teacher_states", "tune"]

WEIGHT_RATES = (0.0005, 0.001, 0.002)


@dataclass(frozen=True)
class TuningObjective:
    """distill: a, 0 to 1. hidden: m. Both need the dense model's hidden states."""

    distill: float = 0.0
    hidden: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.distill <= 1:
            raise ValueError(f"distill is {self.distill}; it must lie between 0 and 1")
        if not 0 <= self.hidden < float("inf"):
            raise ValueError(f"hidden is {self.hidden}; it must be a finite number, 0 or more")

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model takes part."""
        return self.distill > 0 or self.hidden > 0


@dataclass(frozen=True)
class TuningResult:
    """tensors: name -> weight [N, K] or bias [N], float32. NLLs are means in nats per token on the held-out rows."""

    tensors: dict[str, Tensor]
    heldout_before: float
    heldout_after: float
    rate: float
    history: list[dict[str, float]] = field(default_factory=list)
    search: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0


@torch.no_grad()
def teacher_states(dense: Any, tokens: TokenSet, *, batch: int = 8, progress: Progress | None = None) -> Tensor:
    """h_d [n, T, E]: what enters the dense model's LM head, zero at padding. Memory: as many float32 numbers.

    Raises:
        ValueError: no text, or a model whose logits are no linear function of h_d.
    """
    _refuse_scaled(dense)
    states: Tensor | None = None
    row = 0
    with (progress or SilentProgress()).task("teacher", len(tokens)) as advance:
        for part in tokens.batches(batch):
            with head_input(dense) as seen:
                dense(input_ids=part.ids, attention_mask=part.attention_mask, use_cache=False)
            if states is None:
                states = seen[0].new_zeros(*tokens.ids.shape, seen[0].shape[-1])
            states[row : row + len(part), : part.ids.shape[1]] = seen[0] * part.attention_mask[..., None]
            row += len(part)
            advance(len(part))
    if states is None:
        raise ValueError("there is no text to learn from")
    return states


def _refuse_scaled(model: Any) -> None:
    if not language_head(model).plain:
        raise ValueError(
            f"{type(model).__name__} scales or caps its logits, which distillation does not know; tune with the "
            "language-model loss alone (--set distill=0)"
        )


@torch.no_grad()
def check_teacher(dense: Path) -> None:
    """Refuses a checkpoint that `teacher_states` would, before any work: its head alone is read.

    Raises:
        ValueError: a model whose logits are no linear function of what enters its head.
    """
    stream = LayerStream(dense)
    stream.read_head()
    width = int(stream.config.get_text_config(decoder=True).hidden_size)
    with layers_left_out(stream.model) as answer:
        answer(torch.zeros(1, 2, width))
        _refuse_scaled(stream.model)


class _Survivors:
    """The projections of `model` as trainable `SparseLinear`, and where their values and biases began."""

    def __init__(self, model: nn.Module, biased: Collection[str], fixed: Collection[str] = ()) -> None:
        """fixed: names of projections whose bias is not trained."""
        self.fixed = fixed
        self.modules: dict[str, SparseLinear] = {}
        for name, linear in prunable_linears(model):
            module = SparseLinear(pack(linear.weight.float()), _bias(linear, name in biased))
            replace_module(model, name, module.requires_grad_(False))
            self.modules[name] = module
        leaves = {name: self._leaves(name, module) for name, module in self.modules.items()}
        self.leaves = [leaf for found in leaves.values() for leaf in found]
        self.start = [leaf.detach().clone() for leaf in self.leaves]
        self.units = [_unit(self.modules[name]) for name, found in leaves.items() for _ in found]

    def _leaves(self, name: str, module: SparseLinear) -> list[Tensor]:
        return [module.values] if module.bias is None or name in self.fixed else [module.values, module.bias]

    def restore(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for leaf, value in zip(self.leaves, values, strict=True):
                leaf.copy_(value)

    def tensors(self, values: list[Tensor]) -> dict[str, Tensor]:
        self.restore(values)
        found = {}
        for name, module in self.modules.items():
            found[f"{name}.weight"] = module.packed.unpack()
            if module.bias is not None:
                found[f"{name}.bias"] = module.bias.detach().clone()
        return found


def _bias(linear: Any, wanted: bool) -> Tensor | None:
    if linear.bias is not None:
        held: Tensor = linear.bias.detach().float()
        return held
    return torch.zeros(linear.out_features) if wanted else None


def _unit(module: SparseLinear) -> float:
    """Root mean square of the surviving weights: rates are in units of it, so that one suits every matrix."""
    values = module.packed.unpack()
    return float((values.double().square().sum() / max(1, module.packed.nnz)).sqrt()) or 1.0


def tune(
    model: Any,
    tokens: TokenSet,
    *,
    extra: TokenSet | None = None,
    biased: Collection[str] = (),
    fixed: Collection[str] = (),
    dense: Any = None,
    objective: TuningObjective | None = None,
    settings: TrainingSettings | None = None,
    progress: Progress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> TuningResult:
    """Trains the surviving weights of every projection, and its bias where it has one or may have one.

    Args:
        model: the pruned model, float32, refitted or not. Its projections become `SparseLinear` in place; afterwards
            they hold what is returned.
        tokens: text; the NLL is that of `tokens.labels`, distillation sees every token.
        extra: text of the dense model's own to learn from as well, none of it held out; where the objective distils,
            by distillation alone.
        biased: names of projections that may get a bias that they have not.
        fixed: names of projections whose bias stays as it is.
        dense: the model before pruning, where the objective asks for it; asked once for every row, before anything is
            changed, so that it may be `model` itself.
        settings: rates are in units of a matrix's root mean square weight.
        checkpoint: where a killed run goes on from (see `fit`); its stamp covers all of the above. On disk up to 16
            bytes for every survivor.

    Memory: the model, and 24 bytes for every survivor. The same seed, threads, CPU and versions give the same bits.

    Raises:
        ValueError: fewer than two rows, no steps, text of another model, a loss that is not finite, an objective out
            of range, or one that asks for a dense model that is not given or whose logits are scaled or capped.
    """
    objective, settings = objective or TuningObjective(), settings or TrainingSettings(learning_rates=WEIGHT_RATES)
    progress = progress or SilentProgress()
    settings.check(len(tokens))
    tokens.check_model(model)
    if objective.needs_teacher and dense is None:
        raise ValueError("distillation needs the dense model; pass dense=")
    train, heldout = tokens.split(settings.heldout_share, seed=settings.seed)
    given = len(train)
    if extra is not None:
        extra.check_model(model)
        train = join_rows(train, extra)
    states = teacher_states(dense, train, progress=progress) if objective.needs_teacher else None
    theirs = None if states is None else other_head(dense, model)
    task = _Task(model, _Survivors(model, biased, fixed), objective, train, states, given, theirs)
    found = fit(
        lambda rate, steps: _Trainer(task, rate, steps), shuffled_rows(train, settings)[: settings.steps],
        lambda: token_nll(model, heldout, batch=4).mean, settings, progress, checkpoint,
    )  # fmt: skip
    tensors = task.survivors.tensors(found.state)
    return TuningResult(tensors, found.before, found.after, found.rate, found.history, found.search, train.tokens)


class _Task:
    """The loss of some rows of `train`."""

    def __init__(
        self, model: Any, survivors: _Survivors, objective: TuningObjective, train: TokenSet, states: Tensor | None,
        given: int | None = None, teacher_head: Head | None = None,
    ) -> None:  # fmt: skip
        """given: so many rows of `train` are not the dense model's own (all of them, if None)."""
        self.teacher_head = teacher_head
        self.model, self.survivors, self.objective, self.train, self.states = model, survivors, objective, train, states
        self.given = len(train) if given is None or objective.distill == 0 else given
        self.head = language_head(model)

    def loss(self, rows: list[int]) -> Tensor:
        batch = batch_of(self.train, rows)
        if self.states is None:
            return token_losses(self.model, batch).mean()
        given = torch.tensor([row < self.given for row in rows])
        return objective_loss(
            self.model, self.head, batch, self.states[rows], given, self.objective, self.teacher_head
        )


def objective_loss(
    model: Any, head: LanguageHead, batch: TokenSet, teacher: Tensor, given: Tensor, objective: TuningObjective,
    teacher_head: Head | None = None,
) -> Tensor:  # fmt: skip
    """s (1 − a) NLL + mean over tokens of a_t KL_t (+ the hidden states' part), of one batch.

    s: share of the tokens whose rows are given. a_t: a on given rows, 1 on the dense model's own, whose words are but
    draws from the distribution that the KL knows whole; so they have no NLL.

    Args:
        teacher: h_d [n, T, E] of the dense model, T at least the batch's width. given: bool [n], one for each row.
        teacher_head: see `other_head`.
    """
    with head_input(model) as seen:
        model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
    tokens = batch.attention_mask.bool()
    ours, theirs = seen[0][tokens], teacher[:, : batch.ids.shape[1]][tokens]
    share = tokens[given].sum() / tokens.sum()
    a = objective.distill
    total = ours.new_zeros(())
    labels = batch.labels[given, 1:]
    counted = labels != -100
    if a < 1 and bool(counted.any()):
        nll = head.losses(seen[0][given, :-1][counted], labels[counted])
        total = total + (1 - a) * share * nll.mean()
    if a > 0:
        kl = distillation_losses(ours, theirs, head.module.weight, head.module.bias, teacher_head)
        weight = torch.where(given, a, 1.0)[:, None].expand_as(tokens)[tokens]
        total = total + (weight * kl).mean()
    if objective.hidden > 0:
        total = total + objective.hidden * (ours - theirs).square().sum() / theirs.square().sum()
    return total


class _Trainer:
    """One run; the survivors are the model's own, so nothing has to be installed."""

    def __init__(self, task: _Task, rate: float, steps: int) -> None:
        self.task = task
        survivors = task.survivors
        survivors.restore(survivors.start)
        groups = [
            {"params": [leaf], "lr": rate * unit} for leaf, unit in zip(survivors.leaves, survivors.units, strict=True)
        ]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)
        self.schedule = schedule(self.optimiser, steps)

    def install(self) -> None:
        """Nothing to do: the leaves are the model's own."""

    def state(self) -> list[Tensor]:
        """Copies of the leaves."""
        return [leaf.detach().clone() for leaf in self.task.survivors.leaves]

    def step(self, rows: list[int]) -> float:
        """One update; returns the loss before it."""
        leaves = self.task.survivors.leaves
        for leaf in leaves:
            leaf.requires_grad_(True)
        loss = self.task.loss(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        for leaf in leaves:
            leaf.requires_grad_(False)
        return float(loss.detach())
