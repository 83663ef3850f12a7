"""What else gives a pruned model its quality back: the peers, trained by the same loop on the same rows.

    lora, dora       low-rank updates of every projection (peft); merged, they fill the zeros, so the mask is lost
    dense_lora       control: the dense model given the LoRA training, which is adaptation alone

Each returns the model as it would be used. Learning rates are searched like ours: a few steps each on the same held-out
rows; the best state on them is kept, the start included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from restorelcc.artifacts import SilentProgress
from restorelcc.evaluation import token_nll
from restorelcc.lm_head import token_losses
from restorelcc.models import prunable_linears
from restorelcc.text import TokenSet
from restorelcc.training_loop import LoopResult, TrainingSettings, batch_of, fit, schedule, shuffled_rows

RATES = (0.0003, 0.001, 0.003)  # of Adam on low-rank factors


def low_rank(
    model: Any, text: TokenSet, settings: TrainingSettings, *, rank: int = 8, dora: bool = False
) -> LoopResult:
    """LoRA (or DoRA) of all projections inside the decoder layers, alpha = 2 r, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, _ in prunable_linears(model)]
    torch.manual_seed(settings.seed)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, use_dora=dora), model)
    leaves = [value for name, value in model.named_parameters() if "lora_" in name]
    return _trained(model, text, settings, leaves)


def _trained(model: Any, text: TokenSet, settings: TrainingSettings, leaves: list[Tensor]) -> LoopResult:
    train, heldout = text.split(settings.heldout_share, seed=settings.seed)
    start = [leaf.detach().clone() for leaf in leaves]

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
            loss = token_losses(model, batch_of(train, rows)).mean()
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
