"""The steps of the recipes that change surviving weights: refit, then tuning (see `recipes`).

    text -> refit -> how much of it, by held-out text -> tuning -> what changed

Held-out rows of the text are neither calibrated nor trained on; nothing is kept that is worse on them than its start.
Each step leaves a file in the work directory under the fingerprint of all that went into it, as in `restore`; a killed
tuning goes on from the last measurement that it saved.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifacts import Progress, atomic_write_json, fingerprint, read_json
from .evaluation import token_nll
from .fold_target import FoldTarget, fold_target, skeleton_of, stored_config
from .layers import LayerStream
from .models import load_model
from .own_text import load_writer, tokens_beside, write_own_text
from .pruning import rounded_survivors
from .recipes import Recipe
from .refit import refit
from .restored_checkpoint import retargeted
from .resume import is_finished, mark_finished
from .sites import ATTENTION, FFN, model_sites
from .step_runner import Steps
from .streamed_nll import streamed_nll
from .structure import Structure
from .tensor_file import load_tensors, save_tensors
from .token_set import TokenSet, join_rows
from .training_loop import TrainingSettings, ceiling, check_start
from .tuning import TuningResult, tune

__all__ = ["RestoredWeights", "fixed_biases", "restore_weights", "weights_target"]

SCALES = (0.75, 0.5, 0.25)  # of a refit that helps less than nothing


@dataclass(frozen=True)
class RestoredWeights:
    """changed: name -> weight or bias. heldout: NLL of the pruned, refitted and restored model, nats per token."""

    changed: dict[str, Tensor]
    heldout: dict[str, float]
    search: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Given:
    dense: Path
    pruned: Path
    text: TokenSet
    recipe: Recipe
    settings: TrainingSettings
    target: FoldTarget
    steps: Steps
    structure: Structure | None
    window: int
    progress: Progress


def weights_target(pruned: Path, *, biases: bool) -> FoldTarget:
    """The class of the result: the pruned one's, or, where biases are added, one with as many as there can be."""
    if biases:
        target = fold_target(Path(pruned), everywhere=True)
        if target.kind in ("o_proj_bias", "llama_reexport"):
            return target
    config = stored_config(Path(pruned))
    return FoldTarget("unchanged", f"{config.model_type} as it is, no bias added", config)


def restore_weights(
    dense: Path, pruned: Path, text: TokenSet, recipe: Recipe, settings: TrainingSettings, target: FoldTarget,
    steps: Steps, *, structure: Structure | None = None, window: int, progress: Progress,
) -> RestoredWeights:  # fmt: skip
    """What `recipe` changes of the pruned model.

    Args:
        settings: of the tuning; their seed and held-out share also say which rows of `text` are held out.
        target: the class that will hold the result; its biases are solved for and trained.
        structure: what the pruned model kept, where heads or channels were removed.
        window: tokens a row at most of what the dense model writes itself.

    Raises:
        ValueError: what `refit` and `tune` refuse, or a pruned model whose held-out NLL is NaN or infinite.
    """
    given = _Given(dense, pruned, text, recipe, settings, target, steps, structure, window, progress)
    _, heldout = text.split(settings.heldout_share, seed=settings.seed)
    found: dict[str, float] = {}
    changed: dict[str, Tensor] = {}
    search: list[dict[str, float]] = []
    history: list[dict[str, float]] = []
    stamp = ""
    if recipe.refit is not None:
        solved, stamp = _refit(given)
        with steps.timed("refit scale"):
            changed, search = _line_search(pruned, solved, heldout, progress)
        found["pruned"] = search[0]["heldout_nll"]
        found["refitted"] = found["restored"] = min(row["heldout_nll"] for row in search)
    if recipe.tuning is not None:  # which trains the whole model; the refit never has it in memory
        model = load_model(pruned, dtype=torch.float32).model
        if recipe.refit is None:
            found["pruned"] = token_nll(model, heldout, batch=4).mean
        else:
            model = retargeted(model, changed, target)
        result = _tune(given, model, stamp)
        changed, history, search = result.tensors, result.history, [*search, *result.search]
        found["restored"] = result.heldout_after
    return RestoredWeights(changed, found, search, history)


def fixed_biases(target: FoldTarget, recipe: Recipe) -> list[str]:
    """Names of the projections that got a bias with the others' and are not to use it (`Recipe.biases`)."""
    if recipe.biases != "outputs":
        return []
    skeleton = skeleton_of(target.config)
    outputs = {site.name for place in (ATTENTION, FFN) for site in model_sites(skeleton, place)}
    return [name for name in (key.removesuffix(".bias") for key in target.new_parameters) if name not in outputs]


def _refit(given: _Given) -> tuple[dict[str, Tensor], str]:
    """(what the refit solved, the fingerprint of all that went into it)."""
    recipe, steps = given.recipe, given.steps
    assert recipe.refit is not None
    calibration = _calibration(given)
    stamp = fingerprint(dense=given.dense, pruned=given.pruned, text=calibration.fingerprint(),
                        refit=asdict(recipe.refit))  # fmt: skip
    layers = steps.work / "refit.layers"

    def make(path: Path) -> dict[str, Tensor]:
        solved = refit(
            given.dense, given.pruned, calibration, work=layers, structure=given.structure, settings=recipe.refit,
            progress=given.progress,
        )  # fmt: skip
        save_tensors(path, "refit", solved)
        return load_tensors(path, "refit")

    found = steps.run("refit", stamp, make, lambda path: load_tensors(path, "refit"))
    # only behind the mark: a call killed before it goes on from the layers; and nothing is mapped from them any more,
    # which a network file system would keep in the folder
    shutil.rmtree(layers, ignore_errors=True)
    return found, stamp


def _calibration(given: _Given) -> TokenSet:
    """The rows that are not held out, and the dense model's own text."""
    train, _ = given.text.split(given.settings.heldout_share, seed=given.settings.seed)
    own = _own_text(given)
    return train if own is None else join_rows(train, own)


def _own_text(given: _Given) -> TokenSet | None:
    """What the dense model writes itself, as much as the recipe asks for beside the given text.

    Text of one kind alone fits the weights to that kind; what the model writes itself is of all kinds.
    """
    train, _ = given.text.split(given.settings.heldout_share, seed=given.settings.seed)
    tokens = tokens_beside(train, given.recipe.own_text)
    if tokens == 0:
        return None
    window, seed = given.window, given.settings.seed
    cache = given.steps.work / "own_text.safetensors"
    mark, scripts = cache.with_suffix(".json"), given.recipe.scripts
    stamp = fingerprint(dense=given.dense, tokens=tokens, window=window, seed=seed, scripts=scripts)
    if is_finished(mark, stamp, cache):
        given.steps.timings.setdefault("own text", 0.0)  # asked for twice; what the first call took stays
        return TokenSet.load(cache)
    with given.steps.timed("own text"):
        loaded = load_writer(given.dense)
        own = write_own_text(
            loaded.model, loaded.tokenizer, tokens=tokens, window=window, seed=seed, scripts=scripts,
            progress=given.progress,
        )  # fmt: skip
        own.save(cache)
        mark_finished(mark, stamp, cache)
    return own


def _line_search(
    pruned: Path, solved: Mapping[str, Tensor], heldout: TokenSet, progress: Progress
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The best w° + s (w − w°): all of it where that is better than nothing, else the best of some scales, 0 included.

    A weight that is refitted by a part is no solution of anything, so parts are tried only where the whole fails.
    Layer by layer: neither the model nor a second copy of what was solved is in memory, but for the part that is kept.

    Raises:
        ValueError: the NLL of the pruned model itself is NaN or infinite.
    """

    def measured(scale: float) -> dict[str, float]:
        def changed(name: str, start: Tensor) -> Tensor:
            return start if scale == 0 or name not in solved else _between(start, solved[name], scale)

        return {"refit_scale": scale, "heldout_nll": streamed_nll(pruned, heldout, changed=changed).mean}

    with progress.task("refit scale", 2 + len(SCALES)) as advance:
        search = [measured(0.0)]
        check_start(search[0]["heldout_nll"], f"the pruned model {pruned}")
        advance(1)
        for scale in (1.0, *SCALES):
            search.append(measured(scale))
            search[-1]["heldout_nll"] = ceiling(search[-1]["heldout_nll"])
            advance(1)
            if scale == 1.0 and search[-1]["heldout_nll"] < search[0]["heldout_nll"]:
                advance(len(SCALES))  # no part is measured
                return dict(solved), search
    best = min(search, key=lambda row: (row["heldout_nll"], row["refit_scale"]))["refit_scale"]
    stream = LayerStream(pruned)
    return {name: _kept(stream.read(name), value, best) for name, value in solved.items()}, search


def _kept(start: Tensor, solved: Tensor, scale: float) -> Tensor:
    """As `_between`; a weight that the refit turned round, which a half of it would cancel, stays a survivor."""
    made = _between(start, solved, scale)
    return rounded_survivors(made, (start != 0) & (solved != 0), made.dtype)


def _between(start: Tensor, solved: Tensor, scale: float) -> Tensor:
    """start + scale (solved − start), float32."""
    return start + scale * (solved.float() - start)


def _tune(given: _Given, model: Any, refit_stamp: str) -> TuningResult:
    recipe, steps = given.recipe, given.steps
    assert recipe.objective is not None
    objective, fixed = recipe.objective, fixed_biases(given.target, recipe)
    own = _own_text(given)
    stamp = fingerprint(
        dense=given.dense, pruned=given.pruned, refit=refit_stamp, text=given.text.fingerprint(),
        own=None if own is None else own.fingerprint(), settings=asdict(given.settings),
        objective=asdict(objective), biased=given.target.biased, fixed=fixed, threads=torch.get_num_threads(),
    )  # fmt: skip
    record = steps.work / "tuning.report.json"
    leave = 2 * sum(parameter.nbytes for parameter in model.parameters())  # for the step's file and for OUT

    def make(path: Path) -> TuningResult:
        dense = load_model(given.dense, dtype=torch.float32).model if objective.needs_teacher else None
        result = tune(
            model, given.text, extra=own, biased=given.target.biased, fixed=fixed, dense=dense,
            objective=objective, settings=given.settings, progress=given.progress,
            checkpoint=steps.checkpoint("tuning", stamp, leave=leave),
        )  # fmt: skip
        atomic_write_json(record, {key: value for key, value in vars(result).items() if key != "tensors"})
        save_tensors(path, "tuning", result.tensors)
        return result

    return steps.run(
        "tuning", stamp, make, lambda path: TuningResult(load_tensors(path, "tuning"), **read_json(record)), record
    )
