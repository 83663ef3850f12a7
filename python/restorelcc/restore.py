"""The whole restoration, step by step; each step leaves a file that the next reads and a repeated call reuses.

    recipes best, fast            text → refit → tuning → stock checkpoint                       (`restore_weights`)
    recipes compensate, paper     text → moments → components → head scores → training → fold  (`restore_compensation`)
    recipe task                   the same, text and training from items of the task → adapter directory

A step's file carries the fingerprint of everything that went into it (checkpoints by content, text, settings).
A killed call, repeated, goes on behind its last finished step (inside `moments` and `refit`: its last finished layer;
inside a training: a held-out measurement, saved when a minute has passed since the save before) and writes the same
bits as an undisturbed one, given the same seed, threads, CPU and versions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .artifacts import Progress, SilentProgress, atomic_write_json, fingerprint, versions
from .choice_rows import ChoiceSet
from .components import COMPONENTS
from .fold import FOLDS
from .fold_target import FoldTarget, fold_target
from .models import check_pair, load_model, load_tokenizer
from .moments import POSITIONS
from .output_places import refuse_inputs
from .own_text import load_writer
from .probes import PROBES, select_heads
from .pruning import sparsity_table
from .recipes import DEFAULT, RECIPES, Recipe
from .resident_memory import peak_rss_bytes
from .restore_compensation import check_compensation, restore_compensation, write_compensation
from .restore_report import RestoreReport
from .restore_weights import restore_weights, weights_target
from .restored_checkpoint import write_restored
from .resume import is_finished, mark_finished, only_call
from .sites import FFN, SITES, places_of
from .step_runner import Steps
from .structure import carried_files, read_structure
from .task_training import read_examples
from .text import TokenSet, load_text, write_own_text
from .token_set import padding_id
from .training import TrainingSettings, check_vectors
from .tuning import check_teacher

__all__ = ["RestoreReport", "restore", "training_text"]

TRAINERS = ("lm", "choices", "none")


def training_text(
    dense: Path,
    *,
    data: Path | None,
    tokens: int,
    window: int,
    seed: int,
    cache: Path,
    scripts: float = 0.0,
    progress: Progress | None = None,
) -> TokenSet:
    """The text to calibrate and train on: `data`, or text that the dense model writes itself.

    The dense model's own text is seeded, and cached at `cache`. scripts: of it, see `write_own_text`.

    Raises:
        ValueError: text that is empty or shorter than a window.
    """
    data = None if data is None else Path(data)
    stamp = fingerprint(
        dense=Path(dense), data=data, form=None if data is None else data.suffix.lower(), tokens=tokens, window=window,
        seed=seed, scripts=scripts,
    )  # fmt: skip
    mark = cache.with_suffix(".json")
    if is_finished(mark, stamp, cache):
        return TokenSet.load(cache)
    if data is not None:
        text = load_text(data, load_tokenizer(dense), window=window, max_tokens=tokens, seed=seed)
    else:
        loaded = load_writer(dense)
        text = write_own_text(
            loaded.model, loaded.tokenizer, tokens=tokens, window=window, seed=seed, scripts=scripts, progress=progress
        )
    text.save(cache)
    mark_finished(mark, stamp, cache)
    return text


def restore(
    dense: Path,
    pruned: Path,
    out: Path,
    *,
    recipe: str | Recipe = DEFAULT,
    sites: str | None = None,
    probe: str | None = None,
    heads: str | float | None = None,
    components: str | None = None,
    rank: int | None = None,
    train: str | None = None,
    fold_into: str | None = None,
    positions: str | None = None,
    skip_first: int | None = None,
    probe_tokens: int | None = None,
    examples: int | None = None,
    data: Path | None = None,
    tokens: int = 16384,
    window: int = 256,
    training: TrainingSettings | None = None,
    seed: int = 0,
    work: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RestoreReport:
    """The pruned model with its quality back, every zero kept; written to `out`.

    Args:
        dense, pruned: checkpoint directories with the same shapes; the pruned one has zeros. Or the pruned one is of
            `structured`, smaller, with its structure file.
        out: the restored checkpoint (or adapter directory); whole or absent.
        recipe: a name of `recipes.RECIPES`, or a `Recipe` of your own. `best` and `fast` change surviving weights and
            biases; `compensate` and `paper` learn c = argmin NLL(pruned model with W_o c added to its output
            projections, c to its FFNs); so does `task`, by the choices of a few multiple-choice items.
        sites, probe, heads, components, rank, train, fold_into, positions, skip_first, probe_tokens: of the recipes
            that learn c alone; the recipe's own choice by default. sites: where vectors are added, `attention`, `ffn`
            (there no head is scored) or `both`. probe: which heads are worth it (see `probes.PROBES`); heads are scored
            when `heads` is a share, or when a probe is asked for here. heads: `all`, or a share in (0, 1]. components,
            rank: see `lost_components`. train: `lm`, `choices` (recipe `task` alone), or `none` for the line-searched
            closed form. fold_into: `o_proj` for a stock checkpoint, `none` for an adapter directory. probe_tokens: of
            the text, for the head scores; each probe's own default otherwise.
        examples: how many items of `data` recipe `task` learns from, drawn by `seed`; 100 by default.
        data: .txt or .jsonl; without it the dense model writes its own text. For `task` a .jsonl of multiple choice.
        training: of the compensation or the tuning; the recipe's own by default.
        work: where the steps leave their files; `out` + ".work" by default.

    Raises:
        ValueError: unknown choices, choices that the recipe does not read, a rank above the head size (or the width of
            the FFNs' outputs), models that do not fit each other, a pruned model without zeros, NaN weights, or text
            that is too short. Nothing is written to `out` then.
    """
    asked = {
        "sites": sites, "probe": probe, "heads": heads, "components": components, "rank": rank, "train": train,
        "fold": fold_into,
        "positions": positions, "skip_first": skip_first, "probe_tokens": probe_tokens,
        "examples": examples,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    chosen = _chosen(recipe, given)
    for value, allowed, name in (
        (chosen.sites, SITES, "sites"),
        (chosen.probe, tuple(PROBES), "probe"),
        (chosen.components, COMPONENTS, "components"),
        (chosen.train, TRAINERS, "train"),
        (chosen.fold, FOLDS, "fold"),
        (chosen.positions, POSITIONS, "positions"),
    ):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    check_vectors(chosen.vectors, chosen.components)
    if chosen.train == "none" and chosen.components == "none":
        raise ValueError("--components none leaves no directions, so no closed form; use --train lm, or another kind")
    if chosen.rank is not None and chosen.components in ("mean", "none"):
        raise ValueError(f"components {chosen.components} have no rank to choose; leave --rank out")
    if chosen.probe == "linear" and (data is None or Path(data).suffix.lower() != ".jsonl"):
        raise ValueError(
            "the linear probe tells right answers from wrong ones: give --data FILE.jsonl of text and label, or choose "
            "another probe"
        )
    if chosen.examples is not None and (data is None or Path(data).suffix.lower() != ".jsonl"):
        raise ValueError(
            f"recipe {chosen.name} learns from the items of one task: give --data FILE.jsonl of query, choices and gold"
        )
    select_heads(torch.zeros(1, 1), chosen.heads)  # refuses a bad share before any work
    if chosen.sites == FFN and chosen.heads != "all":
        raise ValueError(
            f"--sites ffn gives each layer one vector and its heads none, so no share of {chosen.heads} can be chosen; "
            "use --heads all, or --sites both"
        )
    if chosen.heads == "all" and "probe_tokens" in given and "probe" not in given:
        raise ValueError(
            f"probe_tokens={chosen.probe_tokens} is of the scores of heads, and all are taken unscored; give heads as "
            "a share, or a probe"
        )
    unread = [name for name in ("probe", "probe_tokens") if name in given]
    if chosen.sites == FFN and unread:
        raise ValueError(
            "--sites ffn gives each layer one vector and its heads none, so no head is scored and nothing reads "
            f"{', '.join(unread)}; leave that out, or use --sites both"
        )
    dense, pruned, out, data = Path(dense), Path(pruned), Path(out), None if data is None else Path(data)
    if data is None and chosen.own_text != _default(chosen).own_text:
        raise ValueError(
            f"own_text={chosen.own_text:g} is a share beside --data, and without --data all text is the dense model's "
            "own; leave own_text out, or give --data"
        )
    refuse_inputs(out, dense, pruned, *([data] if data is not None else []))
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not overwrite):
        raise ValueError(f"{out} exists and is not empty; pass --overwrite or another --out")
    progress = progress or SilentProgress()
    settings = replace(training or chosen.tuning or chosen.training or TrainingSettings(), seed=seed)
    report = RestoreReport(recipe=chosen.name, versions=versions())
    place = Path(work) if work is not None else out.with_name(out.name + ".work")
    with only_call(place, out):
        job = _Job(
            dense, pruned, out, chosen, settings, Steps(place, report.timings), progress, report, data=data,
            tokens=tokens, window=window, seed=seed, overwrite=overwrite, scored="probe" in given,
        )  # fmt: skip
        job.run()
    return report


def _needs_teacher(recipe: Recipe) -> bool:
    if recipe.tuning is not None and recipe.objective is not None:
        return recipe.objective.needs_teacher
    return recipe.train == "choices" and recipe.task is not None and recipe.task.distill > 0


def _default(recipe: Recipe) -> Recipe:
    """What the recipe is before anybody sets anything; itself where it is none of ours."""
    return RECIPES.get(recipe.name, recipe)


def _chosen(asked: str | Recipe, given: dict[str, Any]) -> Recipe:
    """The recipe, with what the caller chose in its place."""
    recipe = asked if isinstance(asked, Recipe) else RECIPES.get(asked)
    if recipe is None:
        raise ValueError(f"unknown recipe {asked!r}; choose one of {', '.join(RECIPES)}")
    if given and recipe.changes_weights:
        raise ValueError(
            f"recipe {recipe.name} makes no compensation, so it reads no {', '.join(given)}; "
            f"leave that out or choose recipe {'task' if 'examples' in given else 'compensate'}"
        )
    chosen = replace(recipe, **given)
    if (chosen.task is None and chosen.train == "choices") or (recipe.examples is None and chosen.examples is not None):
        raise ValueError(
            f"recipe {recipe.name} learns from text, not from items of a task; choose recipe task for that"
        )
    if chosen.examples is not None and chosen.examples < 2:
        raise ValueError(f"{chosen.examples} examples leave nothing to hold out; give 2 or more")
    return chosen


@dataclass
class _Job:
    """One call of `restore`, with what it has checked; fills the report."""

    dense: Path
    pruned: Path
    out: Path
    recipe: Recipe
    settings: TrainingSettings
    steps: Steps
    progress: Progress
    report: RestoreReport
    data: Path | None
    tokens: int
    window: int
    seed: int
    overwrite: bool
    scored: bool  # heads, though all of them are taken
    examples: ChoiceSet | None = None

    def run(self) -> None:
        """All steps of the recipe."""
        report, steps, recipe = self.report, self.steps, self.recipe
        with steps.timed("check"):
            if not recipe.changes_weights:
                check_compensation(self.pruned, recipe)
            check_pair(self.dense, self.pruned, read_structure(self.pruned))
            if _needs_teacher(recipe):
                check_teacher(self.dense)
            target = self._target()
            report.sparsity = sparsity_table(self.pruned)
        with steps.timed("text"):
            text = self._text()
        report.text |= {"name": text.name, "rows": int(text.ids.shape[0]), "tokens": text.tokens}
        report.settings = {
            "dense": str(self.dense), "pruned": str(self.pruned), "out": str(self.out), "recipe": recipe.name,
            "data": str(self.data) if self.data else "written by the dense model", "tokens": self.tokens,
            "window": self.window, "seed": self.seed, "training": asdict(self.settings),
        }  # fmt: skip
        if self.data is None:  # all text is the dense model's own, and the KL knows all that its words could tell
            objective, usual = recipe.objective, _default(recipe).objective
            if objective is not None and usual is not None and objective.distill == usual.distill:  # not one asked for
                objective = replace(objective, distill=1.0)
            self.recipe = recipe = replace(recipe, own_text=0.0, objective=objective)
        if recipe.changes_weights:
            self._restore_weights(text, target)
        else:
            self._compensate(text, target)
        report.peak_rss_bytes = peak_rss_bytes()
        after, before = report.heldout["restored"], report.heldout["pruned"]
        if not after < before:
            report.warnings.insert(
                0,
                f"Nothing was gained: held out, the restored model has {after:.4f} ({report.heldout_unit}), its input "
                f"{before:.4f}; "
                "what was written is the best one found, which may be the input itself.",
            )
        atomic_write_json(steps.work / "report.json", report.to_dict())

    def _text(self) -> TokenSet:
        if self.recipe.examples is None:
            return training_text(
                self.dense, data=self.data, tokens=self.tokens, window=self.window, seed=self.seed,
                cache=self.steps.work / "text.safetensors", scripts=0.0 if self.data else self.recipe.scripts,
                progress=self.progress,
            )  # fmt: skip
        assert self.data is not None
        tokenizer = load_tokenizer(self.dense)
        self.examples, drawn = read_examples(self.data, tokenizer, self.recipe.examples, self.seed)
        self.report.text["examples"] = drawn
        return self.examples.right_answers(pad=padding_id(tokenizer), name=Path(self.data).name)

    def _target(self) -> FoldTarget:
        if self.recipe.changes_weights:
            return weights_target(self.pruned, biases=self.recipe.tuning is not None and self.recipe.biases != "none")
        return fold_target(self.pruned, places=places_of(self.recipe.sites))

    def _restore_weights(self, text: TokenSet, target: FoldTarget) -> None:
        report, recipe = self.report, self.recipe
        found = restore_weights(
            self.dense, self.pruned, text, recipe, self.settings, target, self.steps,
            structure=read_structure(self.pruned), window=self.window, progress=self.progress,
        )  # fmt: skip
        with self.steps.timed("write"):
            report.fold = asdict(write_restored(
                self.pruned, load_model(self.pruned), found.changed, target, self.out,
                extra_files=carried_files(self.pruned), overwrite=self.overwrite,
            ))  # fmt: skip
        report.heldout, report.history, report.search = found.heldout, found.history, found.search
        report.settings |= {
            "refit": None if recipe.refit is None else asdict(recipe.refit), "own_text": recipe.own_text,
            "scripts": recipe.scripts,
            "objective": None if recipe.objective is None else asdict(recipe.objective),
        }  # fmt: skip

    def _compensate(self, text: TokenSet, target: FoldTarget) -> None:
        report, recipe = self.report, self.recipe
        if recipe.fold == "o_proj" and target.kind == "adapter":
            report.warnings.append(f"No stock checkpoint can hold this compensation: {target.reason}.")
        found = restore_compensation(
            self.dense, self.pruned, text, recipe, self.settings, target, self.steps, data=self.data,
            window=self.window, seed=self.seed, scored=self.scored, examples=self.examples,
            drawn=report.text.get("examples"), progress=self.progress,
        )  # fmt: skip
        result, scores = found.result, found.scores
        with self.steps.timed("fold"):
            report.fold = write_compensation(
                self.pruned, result.compensation, self.out, target, recipe.fold, overwrite=self.overwrite
            )
        report.settings |= {
            "sites": recipe.sites, "probe": recipe.probe, "probe_outputs": recipe.probe_outputs, "heads": recipe.heads,
            "components": recipe.components,
            "rank": recipe.rank, "vectors": recipe.vectors, "train": recipe.train,
            "fold": recipe.fold, "positions": recipe.positions, "skip_first": recipe.skip_first,
            "probe_tokens": recipe.probe_tokens, "examples": recipe.examples, "source": found.source,
        }  # fmt: skip
        if recipe.train == "choices":
            report.heldout_unit = "choice loss and distillation, nats"
        report.heldout = {"pruned": result.heldout_before, "restored": result.heldout_after}
        if scores is not None:
            report.head_scores = {recipe.probe: scores.scores.tolist()}
            report.score_units = {recipe.probe: scores.unit}
        report.selected = result.compensation.heads.tolist()
        report.history, report.search = result.history, result.search
