"""The control: the dense model given the very same tuning, which tells adaptation to a text from restoration.

    restored = tune(refit(pruned)),     control = tune(dense)

Text, objective, biases, rates, steps and the choice by held-out rows are the same. A refit has nothing to solve here:
the dense model is its own target. What the control gains on a text, the restored model may owe to its training text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .artifacts import Progress
from .models import load_model
from .recipes import Recipe
from .restore_weights import fixed_biases, weights_target
from .restored_checkpoint import FoldReport, write_restored
from .text import TokenSet
from .training_loop import TrainingSettings
from .tuning import TuningResult, tune

__all__ = ["train_control", "tuned_dense"]


def tuned_dense(
    dense: Path, text: TokenSet, recipe: Recipe, settings: TrainingSettings, *, extra: TokenSet | None = None,
    progress: Progress | None = None,
) -> tuple[Any, TuningResult]:  # fmt: skip
    """(the tuned model, how it came about): float32, its projections are `SparseLinear`.

    Args:
        text, extra: what `restore` learns from, and what the dense model writes beside it (see `tune`).
        settings: of the tuning, as `restore` gets them, seed included.

    Memory: the model, and 24 bytes for every weight of its projections.

    Raises:
        ValueError: a recipe that tunes nothing, or what `tune` refuses.
    """
    if recipe.tuning is None:
        raise ValueError(
            f"recipe {recipe.name} tunes nothing, so it has no control; choose one that does, such as best"
        )
    model = load_model(dense, dtype=torch.float32).model
    target = weights_target(dense, biases=recipe.biases != "none")
    result = tune(
        model, text, extra=extra, biased=target.biased, fixed=fixed_biases(target, recipe), dense=model,
        objective=recipe.objective, settings=settings, progress=progress,
    )  # fmt: skip
    return model, result


def train_control(
    dense: Path, out: Path, text: TokenSet, recipe: Recipe, settings: TrainingSettings, *, overwrite: bool = False,
    progress: Progress | None = None,
) -> FoldReport:  # fmt: skip
    """Writes `tuned_dense` as a stock checkpoint to `out`, whole or not at all; what is zero in `dense` stays zero.

    Raises:
        ValueError: see `tuned_dense`; or `out` is there already, without `overwrite`.
    """
    _, result = tuned_dense(dense, text, recipe, settings, progress=progress)
    target = weights_target(dense, biases=recipe.biases != "none")
    return write_restored(dense, load_model(dense), result.tensors, target, out, overwrite=overwrite)
