"""What else gives a pruned model its quality back by training: the peers, by the same loop on the same rows.

    lora, dora   low-rank updates of every projection (peft); merged, they fill the zeros, so the mask is lost
    lofit        offsets of the outputs of chosen attention heads, which are biases of the output projections

Each changes the model it is given into the one that would be used. LoRA's rate is the best of three over whole runs, as
ours is, and DoRA has it too; LoFiT's are searched by a few steps each on the same held-out rows. The best state on
them is kept, the start included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from restorelcc.artifacts import SilentProgress
from restorelcc.distillation import other_head
from restorelcc.evaluation import token_nll
from restorelcc.lm_head import language_head, token_losses
from restorelcc.models import attention_sites, get_module, prunable_linears
from restorelcc.probes import select_heads
from restorelcc.text import TokenSet
from restorelcc.token_set import join_rows
from restorelcc.training_loop import LoopResult, TrainingSettings, batch_of, fit, schedule, shuffled_rows
from restorelcc.tuning import TuningObjective, objective_loss, teacher_states

RATE = 0.003  # of Adam on low-rank factors; the best of 0.001, 0.003 and 0.005 over whole runs
SCALING_RATES = (0.002, 0.005, 0.02)  # LoFiT's authors: 0.005 and 0.001
OFFSET_RATES = (0.003, 0.01, 0.03)  # LoFiT's authors: 0.01 and 0.02


@dataclass(frozen=True)
class Extra:
    """What our recipes learn from beside the text's labels, so that a peer can have it too.

    rows: text of the dense model's own, none of it held out. distill: a of the very objective of `restorelcc.tuning`,
    so that own text has the KL alone. dense: the model before pruning, where a > 0.
    """

    rows: TokenSet | None = None
    distill: float = 0.0
    dense: Any = None


def low_rank(
    model: Any, text: TokenSet, settings: TrainingSettings, *, rank: int = 8, rate: float = RATE, dora: bool = False,
    extra: Extra | None = None,
) -> LoopResult:  # fmt: skip
    """LoRA (or DoRA) of all projections inside the decoder layers, alpha = 2 r, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, _ in prunable_linears(model)]
    torch.manual_seed(settings.seed)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, use_dora=dora), model)
    leaves = [value for name, value in model.named_parameters() if "lora_" in name]
    return _trained(model, text, replace(settings, learning_rates=(rate,)), leaves, extra=extra)


@dataclass(frozen=True)
class LofitResult:
    """The two trainings, ‖A‖ of every head and the heads chosen by it, both [L, H], and the offsets v [L, H·D]."""

    selection: LoopResult
    tuning: LoopResult
    norms: Tensor
    heads: Tensor
    offsets: Tensor


def lofit(
    model: Any, text: TokenSet, settings: TrainingSettings, *, heads: float | str = 0.1, l1: float = 5e-4,
    extra: Extra | None = None,
) -> LofitResult:  # fmt: skip
    """LoFiT (arXiv 2406.01563, and its authors' code) on the outputs z [H·D] of attention heads, weights frozen:

        1. z ← (1 + A) ⊙ z     min over A of  NLL + λ ‖A‖₁;  the heads with the largest ‖A_h‖₂ are chosen, A is dropped
        2. z ← z + v           min over v of the chosen heads of  NLL

    As theirs: where A and v act (before the output projection), the penalty, the choice, that only v is kept, a
    training each over the same rows. Not as theirs: A and v start at 0 rather than at N(0, 0.001²), so that the start
    is the pruned model; the rates are searched, and the best held-out state is kept, as for all methods here. Their
    tasks need 3 to 10 % of the heads; `heads` is a share of your choice.

    v is constant over tokens, so W_o v goes into the bias of the output projection, where this function leaves it.
    """
    sites = attention_sites(model)
    projections: list[Any] = [get_module(model, site.name) for site in sites]
    scaling = [torch.zeros(site.inputs) for site in sites]
    offsets = [torch.zeros(site.inputs) for site in sites]
    allowed = [torch.ones(site.inputs) for site in sites]

    def edit(place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda _, args: (args[0] * (1 + scaling[place]) + offsets[place] * allowed[place], *args[1:])

    handles = [layer.register_forward_pre_hook(edit(place)) for place, layer in enumerate(projections)]
    try:
        first = _trained(
            model, text, replace(settings, learning_rates=SCALING_RATES), scaling, extra=extra,
            penalty=lambda: l1 * torch.stack([leaf.abs().sum() for leaf in scaling]).sum(),
        )  # fmt: skip
        norms = torch.stack([
            leaf.reshape(site.heads, site.head_dim).norm(dim=-1) for leaf, site in zip(scaling, sites, strict=True)
        ])  # fmt: skip
        chosen = select_heads(norms, heads)
        for place, site in enumerate(sites):
            scaling[place].zero_()
            allowed[place].copy_(chosen[place].float().repeat_interleave(site.head_dim))
        second = _trained(model, text, replace(settings, learning_rates=OFFSET_RATES), offsets, extra=extra)
    finally:
        for handle in handles:
            handle.remove()
    vectors = torch.stack([offset * mask for offset, mask in zip(offsets, allowed, strict=True)])
    for layer, vector in zip(projections, vectors, strict=True):
        add_bias(layer, layer.weight.double() @ vector.double())
    return LofitResult(first, second, norms, chosen, vectors)


def add_bias(linear: Any, bias: Tensor) -> None:
    """linear.bias += bias [N]; a linear without one gets it."""
    held = 0 if linear.bias is None else linear.bias.detach().double()
    linear.bias = nn.Parameter((bias + held).to(linear.weight.dtype), requires_grad=False)


def _trained(
    model: Any, text: TokenSet, settings: TrainingSettings, leaves: list[Tensor],
    penalty: Callable[[], Tensor] | None = None, extra: Extra | None = None,
) -> LoopResult:  # fmt: skip
    """The best `leaves` for the NLL, or the objective of `restorelcc.tuning`, + penalty, left in place."""
    extra = extra or Extra()
    train, heldout = text.split(settings.heldout_share, seed=settings.seed)
    given = len(train)
    if extra.rows is not None:
        train = join_rows(train, extra.rows)
    states = teacher_states(extra.dense, train) if extra.distill > 0 else None
    theirs = None if states is None else other_head(extra.dense, model)
    start = [leaf.detach().clone() for leaf in leaves]
    objective = TuningObjective(distill=extra.distill)

    class Trainer:
        def __init__(self, rate: float, steps: int) -> None:
            put(leaves, start)
            self.optimiser = torch.optim.Adam(leaves, lr=rate, betas=(0.9, 0.95))
            self.schedule = schedule(self.optimiser, steps)

        def install(self) -> None:
            pass

        def state(self) -> list[Tensor]:
            return [leaf.detach().clone() for leaf in leaves]

        def step(self, rows: list[int]) -> float:
            for leaf in leaves:
                leaf.requires_grad_(True)
            batch = batch_of(train, rows)
            loss = (
                token_losses(model, batch).mean() if states is None
                else objective_loss(model, language_head(model), batch, states[rows],
                                    torch.tensor([row < given for row in rows]), objective, theirs)
            )  # fmt: skip
            if penalty is not None:
                loss = loss + penalty()
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            self.optimiser.zero_grad()
            for leaf in leaves:
                leaf.requires_grad_(False)
            return float(loss.detach())

    found = fit(
        Trainer, shuffled_rows(train, settings)[: settings.steps],
        lambda: token_nll(model, heldout, batch=4).mean, settings, SilentProgress(),
    )  # fmt: skip
    put(leaves, found.state)
    return found


def put(leaves: list[Tensor], values: list[Tensor]) -> None:
    """Writes `values` into `leaves`."""
    with torch.no_grad():
        for leaf, value in zip(leaves, values, strict=True):
            leaf.copy_(value)
