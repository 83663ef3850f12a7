"""The whole restoration, step by step; each step leaves a file that the next reads and a repeated call reuses.

    recipes best, fast            text → refit → tuning → stock checkpoint                       (`restore_weights`)
    recipes compensate, paper     text → moments → components → head scores → training → fold
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
from torch import Tensor

from .adapter import save_adapter
from .artifacts import Progress, SilentProgress, atomic_write_json, fingerprint, read_json, refuse_inputs, versions
from .choice_rows import ChoiceSet
from .compensation import Compensation
from .components import COMPONENTS, Components, lost_components
from .fold import FOLDS, fold
from .fold_target import FoldTarget, fold_target
from .models import check_pair, load_model, load_tokenizer
from .moments import POSITIONS, Moments, collect_moments
from .pairs import contrastive_pairs
from .probes import PROBES, HeadScores, head_scores, select_heads
from .probes import probe_tokens as probe_tokens_of
from .pruning import sparsity_table
from .recipes import DEFAULT, RECIPES, Recipe
from .resident_memory import peak_rss_bytes
from .restore_report import RestoreReport
from .restore_weights import restore_weights, weights_target
from .restored_checkpoint import write_restored
from .resume import is_finished, mark_finished, only_call
from .sites import ATTENTION, FFN, SITES, places_of
from .step_runner import Steps
from .structure import carried_files, read_structure, refuse_structured
from .task_training import TaskObjective, read_examples, train_for_task
from .text import TokenSet, load_text, write_own_text
from .token_set import padding_id
from .training import TrainingResult, TrainingSettings, check_vectors, closed_form, train_compensation
from .training_checkpoint import TrainingCheckpoint

__all__ = ["RestoreReport", "restore", "training_text"]

TRAINERS = ("lm", "choices", "none")
MAX_PAIRS = 500  # for the linear probe; its authors use as many
SAMPLES = 512  # tokens whose lost activation an autoencoder learns from


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
    stamp = fingerprint(dense=Path(dense), data=data, tokens=tokens, window=window, seed=seed, scripts=scripts)
    mark = cache.with_suffix(".json")
    if is_finished(mark, stamp, cache):
        return TokenSet.load(cache)
    if data is not None:
        text = load_text(data, load_tokenizer(dense), window=window, max_tokens=tokens, seed=seed)
    else:
        loaded = load_model(dense)
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
            or `both`. probe: which heads are worth it (see `probes.PROBES`); heads are scored when `heads` is a share,
            or when a probe is asked for here. heads: `all`, or a share in (0, 1]. components, rank: see
            `lost_components`. train: `lm`, `choices` (recipe `task` alone), or `none` for the line-searched closed
            form. fold_into: `o_proj` for a stock checkpoint, `none` for an adapter directory. probe_tokens: of the
            text, for the head scores; each probe's own default otherwise.
        examples: how many items of `data` recipe `task` learns from, drawn by `seed`; 100 by default.
        data: .txt or .jsonl; without it the dense model writes its own text. For `task` a .jsonl of multiple choice.
        training: of the compensation or the tuning; the recipe's own by default.
        work: where the steps leave their files; `out` + ".work" by default.

    Raises:
        ValueError: unknown choices, choices that the recipe does not read, models that do not fit each other, a pruned
            model without zeros, NaN weights, or text that is too short. Nothing is written to `out` then.
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
    dense, pruned, out = Path(dense), Path(pruned), Path(out)
    refuse_inputs(out, dense, pruned, *([Path(data)] if data is not None else []))
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
                refuse_structured(self.pruned, f"recipe {recipe.name}")
            check_pair(self.dense, self.pruned, read_structure(self.pruned))
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
            objective = recipe.objective and replace(recipe.objective, distill=1.0)
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
            structure=read_structure(self.pruned), progress=self.progress,
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
        report, steps, recipe = self.report, self.steps, self.recipe
        if recipe.fold == "o_proj" and target.kind == "adapter":
            report.warnings.append(f"No stock checkpoint can hold this compensation: {target.reason}.")
        samples = SAMPLES if recipe.components == "autoencoder" else 0
        stamp = fingerprint(
            dense=self.dense, pruned=self.pruned, text=text.fingerprint(), positions=self.recipe.positions,
            skip_first=self.recipe.skip_first, samples=samples,
            **({} if recipe.sites == ATTENTION else {"sites": recipe.sites}),
        )  # fmt: skip
        moments = steps.run(
            "moments", stamp,
            lambda path: collect_moments(
                self.dense, self.pruned, text, out=path, sites=recipe.sites, positions=recipe.positions,
                skip_first=recipe.skip_first,
                samples=samples, seed=self.seed, progress=self.progress,
            ),
            Moments.load,
        )  # fmt: skip
        lost = lost_components(
            moments, kind=recipe.components, rank=recipe.rank, seed=self.seed, progress=self.progress
        )
        lost.save(steps.work / "components.safetensors")

        loaded = load_model(self.pruned)  # only now: the moments need two layers, not two models
        scored = lost.place == ATTENTION and (self.scored or recipe.heads != "all")
        scores = self._scores(recipe.probe, loaded, text, lost, stamp) if scored else None
        chosen = select_heads(lost.unit if scores is None else scores.scores, recipe.heads)
        tied = target.tied if recipe.fold == "o_proj" else 1
        result = self._trained(loaded.model, text, lost, chosen, tied, stamp)
        with steps.timed("fold"):
            report.fold = _write(self.pruned, result.compensation, self.out, target, recipe.fold, self.overwrite)
        report.settings |= {
            "sites": recipe.sites, "probe": recipe.probe, "probe_outputs": recipe.probe_outputs, "heads": recipe.heads,
            "components": recipe.components,
            "rank": recipe.rank, "vectors": recipe.vectors, "train": recipe.train,
            "fold": recipe.fold, "positions": self.recipe.positions, "skip_first": self.recipe.skip_first,
            "probe_tokens": self.recipe.probe_tokens, "examples": recipe.examples, "source": loaded.source.note,
        }  # fmt: skip
        if recipe.train == "choices":
            report.heldout_unit = "choice loss and distillation, nats"
        report.heldout = {"pruned": result.heldout_before, "restored": result.heldout_after}
        if scores is not None:
            report.head_scores = {recipe.probe: scores.scores.tolist()}
            report.score_units = {recipe.probe: scores.unit}
        report.selected = result.compensation.heads.tolist()
        report.history, report.search = result.history, result.search

    @property
    def _directions(self) -> list[Any]:
        """All that decides the components, beside the moments."""
        return [self.recipe.components, self.recipe.rank, self.seed]

    def _scores(self, kind: str, loaded: Any, text: TokenSet, lost: Components, stamp: str) -> HeadScores:
        count = probe_tokens_of(kind) if self.recipe.probe_tokens is None else self.recipe.probe_tokens
        pairs, answers = None, "pruned"
        if kind == "linear":
            assert self.data is not None
            answers = self.recipe.probe_outputs
            pairs = contrastive_pairs(
                self.data, loaded.tokenizer, window=self.window, max_pairs=MAX_PAIRS, seed=self.seed
            )

        def make(path: Path) -> HeadScores:
            dense = load_model(self.dense, dtype=loaded.model.dtype).model if answers == "dense" else None
            scores = head_scores(
                kind, loaded.model, text.first(count), lost, seed=self.seed, scratch=self.steps.work, pairs=pairs,
                dense=dense, progress=self.progress,
            )  # fmt: skip
            scores.save(path)
            return scores

        own = fingerprint(
            moments=stamp, probe=kind, components=self._directions, seed=self.seed, tokens=count,
            pairs=None if pairs is None else pairs.fingerprint(),
            **({} if answers == "pruned" else {"answers": answers}),
        )  # fmt: skip
        return self.steps.run(f"scores_{kind}", own, make, HeadScores.load)

    def _trained(self, model: Any, text: TokenSet, lost: Components, chosen: Tensor, tied: int, stamp: str
    ) -> TrainingResult:
        settings = self.settings
        record = self.steps.work / "training.json"
        own = fingerprint(
            moments=stamp, heads=chosen.tolist(), components=self._directions, tied=tied, train=self.recipe.train,
            settings=asdict(settings), threads=torch.get_num_threads(), task=_plain(self.recipe.task),
            examples=self.report.text.get("examples"), data=self.data if self.examples is not None else None,
            **({} if self.recipe.vectors == "free" else {"vectors": self.recipe.vectors}),
        )  # fmt: skip
        checkpoint = self.steps.checkpoint("compensation", own)

        def make(path: Path) -> TrainingResult:
            if self.recipe.train == "choices":
                result = self._trained_for_task(model, lost, chosen, tied, checkpoint)
            elif self.recipe.train == "lm":
                result = train_compensation(
                    model, text, lost, chosen, settings, tied=tied, vectors=self.recipe.vectors,
                    progress=self.progress, checkpoint=checkpoint,
                )  # fmt: skip
            else:
                result = closed_form(
                    model, text, lost, chosen, heldout_share=settings.heldout_share, tied=tied, seed=settings.seed,
                    progress=self.progress,
                )  # fmt: skip
            atomic_write_json(record, {key: value for key, value in vars(result).items() if key != "compensation"})
            result.compensation.save(path)
            return result

        return self.steps.run(
            "compensation", own, make, lambda path: TrainingResult(Compensation.load(path), **read_json(record)), record
        )

    def _trained_for_task(
        self, model: Any, lost: Components, chosen: Tensor, tied: int, checkpoint: TrainingCheckpoint
    ) -> TrainingResult:
        assert self.examples is not None
        objective = self.recipe.task or TaskObjective()
        dense = load_model(self.dense).model if objective.distill else None
        return train_for_task(
            model, self.examples, lost, chosen, self.settings, dense=dense, objective=objective, tied=tied,
            vectors=self.recipe.vectors, progress=self.progress, checkpoint=checkpoint,
        )  # fmt: skip


def _plain(objective: TaskObjective | None) -> dict[str, float] | None:
    return None if objective is None else asdict(objective)


def _write(
    pruned: Path, compensation: Compensation, out: Path, target: FoldTarget, fold_into: str, overwrite: bool
) -> dict[str, Any]:
    if fold_into == "none" or target.kind == "adapter":
        save_adapter(pruned, compensation, out, overwrite=overwrite)
        return {"kind": "adapter", "reason": target.reason if fold_into != "none" else "asked for by --fold none"}
    return asdict(fold(pruned, compensation, out, overwrite=overwrite))


