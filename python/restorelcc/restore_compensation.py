"""The steps of the recipes that learn a compensation and leave the weights alone (see `recipes`).

    text -> moments -> components -> head scores, where heads are chosen -> training or closed form -> fold

Each step leaves a file in the work directory under the fingerprint of all that went into it, as in `restore`; a killed
collection of moments goes on behind its last layer, a killed training from the last measurement that it saved.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import save_adapter
from .artifacts import Progress, atomic_write_json, fingerprint, read_json
from .choice_rows import ChoiceSet
from .compensation import Compensation
from .components import Components, check_rank, lost_components
from .fold import fold
from .fold_target import FoldTarget, skeleton_of, stored_config
from .models import LoadedModel, load_model, plain_errors
from .moments import Moments, collect_moments
from .pairs import contrastive_pairs
from .probes import HeadScores, head_scores, probe_tokens, select_heads
from .recipes import Recipe
from .sites import ATTENTION, places_of
from .step_runner import Steps
from .structure import refuse_structured
from .task_training import TaskObjective, train_for_task
from .token_set import TokenSet
from .training import TrainingResult, TrainingSettings, closed_form, train_compensation
from .training_checkpoint import TrainingCheckpoint

__all__ = ["LearnedCompensation", "check_compensation", "restore_compensation", "write_compensation"]

MAX_PAIRS = 500  # for the linear probe; its authors use as many
SAMPLES = 512  # tokens whose lost activation an autoencoder learns from


@dataclass(frozen=True)
class LearnedCompensation:
    """result: of the training, or of the closed form. scores: None where no head was scored.

    source: the note of the pruned model (see `ModelSource`).
    """

    result: TrainingResult
    scores: HeadScores | None
    source: str


@dataclass(frozen=True)
class _Given:
    dense: Path
    pruned: Path
    text: TokenSet
    recipe: Recipe
    settings: TrainingSettings
    steps: Steps
    data: Path | None
    window: int
    seed: int
    examples: ChoiceSet | None
    drawn: list[int] | None
    progress: Progress

    @property
    def directions(self) -> list[Any]:
        """All that decides the components, beside the moments."""
        return [self.recipe.components, self.recipe.rank, self.seed]


def check_compensation(pruned: Path, recipe: Recipe) -> None:
    """Refuses, by the configuration of the pruned model alone, what would end only behind the first steps.

    Raises:
        ValueError: heads or channels were removed, or a unit has fewer directions than the recipe's rank.
    """
    refuse_structured(pruned, f"recipe {recipe.name}")
    if recipe.rank is None:
        return
    config = stored_config(pruned)
    with plain_errors(pruned):
        skeleton = skeleton_of(config)
    check_rank(skeleton, places_of(recipe.sites), recipe.rank)


def restore_compensation(
    dense: Path, pruned: Path, text: TokenSet, recipe: Recipe, settings: TrainingSettings, target: FoldTarget,
    steps: Steps, *, data: Path | None, window: int, seed: int, scored: bool = False,
    examples: ChoiceSet | None = None, drawn: list[int] | None = None, progress: Progress,
) -> LearnedCompensation:  # fmt: skip
    """The vectors of the heads and FFNs that `recipe` compensates.

    Args:
        settings: of the training; their seed and held-out share also say which rows of `text` are held out.
        target: where the vectors will live, which may tie heads.
        data: the file that `text` or `examples` are from, for the pairs of the linear probe, cut to `window` tokens.
        scored: heads are scored, though all of them are taken.
        examples: the items of a task to learn from, where the recipe does; drawn: their indices in `data`.

    Raises:
        ValueError: what `collect_moments`, `lost_components`, `head_scores` and the training refuse.
    """
    given = _Given(dense, pruned, text, recipe, settings, steps, data, window, seed, examples, drawn, progress)
    moments, stamp = _moments(given)
    lost = lost_components(moments, kind=recipe.components, rank=recipe.rank, seed=seed, progress=progress)
    lost.save(steps.work / "components.safetensors")

    loaded = load_model(pruned)  # only now: the moments need two layers, not two models
    scored = lost.place == ATTENTION and (scored or recipe.heads != "all")
    scores = _scores(given, loaded, lost, stamp) if scored else None
    chosen = select_heads(lost.unit if scores is None else scores.scores, recipe.heads)
    tied = target.tied if recipe.fold == "o_proj" else 1
    result = _trained(given, loaded.model, lost, chosen, tied, stamp)
    return LearnedCompensation(result, scores, loaded.source.note)


def write_compensation(
    pruned: Path, compensation: Compensation, out: Path, target: FoldTarget, fold_into: str, *, overwrite: bool
) -> dict[str, Any]:
    """Folds the compensation into a stock checkpoint at `out`, or writes an adapter directory; returns what was done.

    An adapter where `fold_into` is `none`, and where no stock class can hold the vectors.
    """
    if fold_into == "none" or target.kind == "adapter":
        save_adapter(pruned, compensation, out, overwrite=overwrite)
        return {"kind": "adapter", "reason": target.reason if fold_into != "none" else "asked for by --fold none"}
    return asdict(fold(pruned, compensation, out, overwrite=overwrite))


def _moments(given: _Given) -> tuple[Moments, str]:
    """(the moments, the fingerprint of all that went into them)."""
    recipe = given.recipe
    samples = SAMPLES if recipe.components == "autoencoder" else 0
    stamp = fingerprint(
        dense=given.dense, pruned=given.pruned, text=given.text.fingerprint(), positions=recipe.positions,
        skip_first=recipe.skip_first, samples=[samples, given.seed] if samples else 0,
        **({} if recipe.sites == ATTENTION else {"sites": recipe.sites}),
    )  # fmt: skip

    layers = given.steps.work / "moments.safetensors.work"

    def make(path: Path) -> Moments:
        return collect_moments(
            given.dense, given.pruned, given.text, out=path, work=layers, sites=recipe.sites,
            positions=recipe.positions, skip_first=recipe.skip_first, samples=samples, seed=given.seed,
            progress=given.progress,
        )  # fmt: skip

    found = given.steps.run("moments", stamp, make, Moments.load)
    shutil.rmtree(layers, ignore_errors=True)  # only behind the mark: a call killed before it goes on from the layers
    return found, stamp


def _scores(given: _Given, loaded: LoadedModel, lost: Components, moments_stamp: str) -> HeadScores:
    recipe, kind = given.recipe, given.recipe.probe
    count = probe_tokens(kind) if recipe.probe_tokens is None else recipe.probe_tokens
    pairs, answers = None, "pruned"
    if kind == "linear":
        assert given.data is not None
        answers = recipe.probe_outputs
        pairs = contrastive_pairs(
            given.data, loaded.tokenizer, window=given.window, max_pairs=MAX_PAIRS, seed=given.seed
        )

    def make(path: Path) -> HeadScores:
        dense = load_model(given.dense, dtype=loaded.model.dtype).model if answers == "dense" else None
        scores = head_scores(
            kind, loaded.model, given.text.first(count), lost, seed=given.seed, scratch=given.steps.work, pairs=pairs,
            dense=dense, progress=given.progress,
        )  # fmt: skip
        scores.save(path)
        return scores

    stamp = fingerprint(
        moments=moments_stamp, probe=kind, components=given.directions, seed=given.seed, tokens=count,
        pairs=None if pairs is None else pairs.fingerprint(),
        **({} if answers == "pruned" else {"answers": answers}),
    )  # fmt: skip
    return given.steps.run(f"scores_{kind}", stamp, make, HeadScores.load)


def _trained(
    given: _Given, model: Any, lost: Components, chosen: Tensor, tied: int, moments_stamp: str
) -> TrainingResult:
    recipe, settings, steps = given.recipe, given.settings, given.steps
    record = steps.work / "training.json"
    stamp = fingerprint(
        moments=moments_stamp, heads=chosen.tolist(), components=given.directions, tied=tied, train=recipe.train,
        settings=asdict(settings), threads=torch.get_num_threads(),
        task=None if recipe.task is None else asdict(recipe.task),
        examples=given.drawn, data=None if given.examples is None else given.data,
        **({} if recipe.vectors == "free" else {"vectors": recipe.vectors}),
    )  # fmt: skip
    checkpoint = steps.checkpoint("compensation", stamp)

    def make(path: Path) -> TrainingResult:
        if recipe.train == "choices":
            result = _trained_for_task(given, model, lost, chosen, tied, checkpoint)
        elif recipe.train == "lm":
            result = train_compensation(
                model, given.text, lost, chosen, settings, tied=tied, vectors=recipe.vectors, progress=given.progress,
                checkpoint=checkpoint,
            )  # fmt: skip
        else:
            result = closed_form(
                model, given.text, lost, chosen, heldout_share=settings.heldout_share, tied=tied, seed=settings.seed,
                progress=given.progress,
            )  # fmt: skip
        atomic_write_json(record, {key: value for key, value in vars(result).items() if key != "compensation"})
        result.compensation.save(path)
        return result

    return steps.run(
        "compensation", stamp, make, lambda path: TrainingResult(Compensation.load(path), **read_json(record)), record
    )


def _trained_for_task(
    given: _Given, model: Any, lost: Components, chosen: Tensor, tied: int, checkpoint: TrainingCheckpoint
) -> TrainingResult:
    assert given.examples is not None
    objective = given.recipe.task or TaskObjective()
    dense = load_model(given.dense).model if objective.distill else None
    return train_for_task(
        model, given.examples, lost, chosen, given.settings, dense=dense, objective=objective, tied=tied,
        vectors=given.recipe.vectors, progress=given.progress, checkpoint=checkpoint,
    )  # fmt: skip
