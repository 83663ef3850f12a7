"""Several probes on one model: their scores side by side, and what each choice of heads is worth after training.

    rows of the moments' text  =  held out (a fifth)  +  the rest, which probes read and training learns from
    worth of a choice          =  NLL and perplexity of the held-out rows (and of text of another kind) after training
                                  the chosen heads alone, everything else equal; one run per seed

The references are all heads, trained alike, and the pruned model as it is. `random` draws another choice per seed; the
other probes score once. Every difference is paired: same seed, same training rows in the same order, same tokens.

The moments, and so the components, are those of all rows, held-out ones included; every choice has the same ones.

Each finished probe and training run is a file in `OUT.work`, under the fingerprint of all that went into it: a killed
comparison goes on behind the last one, and choices that turn out the same are trained once.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifacts import (
    Progress,
    SilentProgress,
    atomic_directory,
    atomic_write_json,
    fingerprint,
    read_json,
    versions,
)
from .compensation import sparse_output_projections
from .evaluation import NllResult, token_nll
from .heat_map import save_heat_map, title_of
from .pairs import PairSet
from .probe_agreement import decided_agreement, overlap, spearman
from .probe_compare_tables import markdown
from .probe_sources import ProbeSources
from .probes import HeadScores, head_scores, probe_tokens, select_heads
from .resume import is_finished, mark_finished, only_call
from .text import TokenSet
from .training import TrainingSettings, train_compensation

__all__ = ["CompareSettings", "compare_probes", "pairs_apart"]

FORMAT, VERSION = "restorelcc-probe-comparison", 0
_LONG_ANSWER = 8  # tokens; that a shorter one occurs twice says nothing


@dataclass(frozen=True)
class CompareSettings:
    """probes: names from `PROBES`. seeds: training runs per choice, from `seed` on. share: of heads that are chosen.

    tokens: of text that the probes read, the same for all; by default what the most expensive of them reads alone.
    train_tokens, train_steps: bounds of the training. memory: bytes for each probe. heldout: share of the rows.
    """

    probes: tuple[str, ...]
    contrast: str = "text"
    share: float = 0.25
    seeds: int = 3
    seed: int = 0
    tokens: int | None = None
    train_tokens: int | None = None
    train_steps: int | None = None
    memory: int = 2 << 30
    heldout: float = 0.2


def compare_probes(
    given: ProbeSources,
    out: Path,
    settings: CompareSettings,
    *,
    eval_text: TokenSet | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The report, which is also written: `out` gets report.json, table.md, and scores and a heat map of every probe.

    Args:
        given: the pruned model and all that the probes read; the model's output projections become `SparseLinear`.
        eval_text: text of another kind to measure on, besides the held-out rows.

    Raises:
        ValueError: as the probes and the training; too few rows to hold some out; nothing is written to `out` then.
    """
    out = Path(out)
    if settings.seeds < 1 or not settings.probes:
        raise ValueError("a comparison needs at least one probe and one seed")
    with only_call(out.with_name(out.name + ".work"), out):
        work = _Work(given, out.with_name(out.name + ".work"), settings, eval_text, progress or SilentProgress())
        scores = work.scores()
        chosen = {kind: select_heads(found.scores, settings.share) for kind, found in scores.items()}
        report = {
            "format": FORMAT, "version": VERSION, "settings": asdict(settings), "files": given.record.get("files", {}),
            "texts": work.texts(), "heads": {"count": given.components.unit.numel(),
                                             "chosen": int(next(iter(chosen.values())).sum())},
            "probes": {kind: _probe_entry(found, chosen[kind], chosen.get("perplexity"))
                       for kind, found in scores.items()},
            "spearman": {a: {b: spearman(scores[a].scores, scores[b].scores) for b in scores} for a in scores},
            "overlap": {a: {b: overlap(chosen[a], chosen[b]) for b in scores} for a in scores},
            **work.worth(chosen), "versions": versions(),
        }  # fmt: skip
        with atomic_directory(out, overwrite=overwrite) as partial:
            atomic_write_json(partial / "report.json", report)
            (partial / "table.md").write_text(markdown(report), encoding="utf-8")
            for kind, found in scores.items():
                shutil.copyfile(work.score_file(kind), partial / f"{kind}.safetensors")
                save_heat_map(
                    partial / f"{kind}.png", found.scores.tolist(), found.unit, title=title_of(found),
                    chosen=chosen[kind].tolist(),
                    undecided=found.undecided.tolist() if found.undecided is not None else None,
                )  # fmt: skip
    return report


def _probe_entry(found: HeadScores, chosen: Tensor, exact: Tensor | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "unit": found.unit, "seconds": found.record["seconds"], "memory_used": found.record["memory_used"],
        "numbers": found.numbers, "scores": found.scores.tolist(), "chosen": chosen.tolist(),
    }  # fmt: skip
    undecided = found.undecided
    if undecided is not None:
        entry["undecided"] = float(undecided.double().mean())
        if exact is not None:
            entry["decided_agreement"] = decided_agreement(chosen, undecided, exact)
    return entry


class _Work:
    """The steps and their files in the work directory."""

    def __init__(
        self, given: ProbeSources, folder: Path, settings: CompareSettings, eval_text: TokenSet | None,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.given, self.folder, self.settings, self.progress = given, folder, settings, progress
        rest, self.heldout = given.text.split(settings.heldout, seed=settings.seed)
        if len(rest) < 2:
            raise ValueError(
                f"{len(given.text)} rows of text are too few to compare probes on; make the moments with more --tokens"
            )
        tokens = settings.tokens or min(probe_tokens(kind) for kind in settings.probes)
        self.read = rest.first(tokens)
        self.train = rest if settings.train_tokens is None else _at_least_two(rest, settings.train_tokens)
        self.eval_text = eval_text
        self.pairs = None if given.pairs is None else pairs_apart(given.pairs, self.heldout)
        folder.mkdir(parents=True, exist_ok=True)
        sparse_output_projections(given.model)  # now, so that it is in no probe's memory
        self.sources = {name: entry["sha256"] for name, entry in given.record.get("files", {}).items()}
        self.base = fingerprint(
            pruned=self.sources.get("pruned"), basis=given.components.basis, unit=given.components.unit,
            vectors=given.components.vectors, heldout=self.heldout.fingerprint(),
        )  # fmt: skip

    def texts(self) -> dict[str, Any]:
        """What each part of the text is, for the report."""
        parts = {"probe": self.read, "training": self.train, "heldout": self.heldout, "other": self.eval_text}
        found: dict[str, Any] = {
            name: {"name": rows.name, "rows": len(rows), "tokens": rows.tokens, "fingerprint": rows.fingerprint()}
            for name, rows in parts.items()
            if rows is not None
        }
        if self.pairs is not None and self.given.pairs is not None:
            found["pairs"] = {
                "name": self.pairs.positive.name, "pairs": len(self.pairs), "fingerprint": self.pairs.fingerprint(),
                "left_out_for_held_out_rows": len(self.given.pairs) - len(self.pairs), "note": self.pairs.note,
            }  # fmt: skip
        return found

    def score_file(self, kind: str) -> Path:
        """Where the scores of a probe are kept."""
        return self.folder / f"scores_{kind}.safetensors"

    def scores(self) -> dict[str, HeadScores]:
        """Each probe's scores, one after the other."""
        found = {}
        with self.progress.task("probes", len(self.settings.probes)) as advance:
            for kind in self.settings.probes:
                found[kind] = self._scored(kind)
                advance(1)
        return found

    def _scored(self, kind: str) -> HeadScores:
        settings, path = self.settings, self.score_file(kind)
        mark = path.with_suffix(".json")
        stamp = fingerprint(
            base=self.base, probe=kind, contrast=settings.contrast, share=settings.share, seed=settings.seed,
            memory=settings.memory, text=self.read.fingerprint(), dense=self.sources.get("dense"),
            pairs=None if self.pairs is None else self.pairs.fingerprint(),
        )  # fmt: skip
        if is_finished(mark, stamp, path):
            return HeadScores.load(path)
        scores = head_scores(
            kind, self.given.model, self.read, self.given.components, seed=settings.seed, progress=self.progress,
            pairs=self.pairs, contrast=settings.contrast, share=settings.share, memory=settings.memory,
            scratch=self.folder, dense=self.given.dense, record=self.given.record,
        )  # fmt: skip
        scores.save(path)
        mark_finished(mark, stamp, path)
        return scores

    def worth(self, chosen: Mapping[str, Tensor]) -> dict[str, Any]:
        """{"worth": choice -> text -> numbers, "pruned": text -> numbers}."""
        settings = self.settings
        seeds = range(settings.seed, settings.seed + settings.seeds)
        choices: dict[str, list[Tensor]] = {}
        for kind, heads in chosen.items():
            choices[kind] = [heads] * len(seeds)
        if "random" in choices:
            choices["random"] = [select_heads(_drawn(heads.shape, seed), settings.share)
                                 for seed, heads in zip(seeds, choices["random"], strict=True)]  # fmt: skip
        choices["all"] = [torch.ones_like(next(iter(chosen.values())))] * len(seeds)
        pruned = self._pruned()
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in choices}
        with self.progress.task("training runs", len(choices) * len(seeds)) as advance:
            for index, seed in enumerate(seeds):  # all choices of a seed before the next: a stopped run has whole seeds
                for name, per_seed in choices.items():
                    runs[name].append(self._trained(per_seed[index], seed))
                    advance(1)
        return {
            "pruned": pruned,
            "worth": {name: _summary(found, runs.get("random")) for name, found in runs.items()},
            "runs": runs,
        }

    def _pruned(self) -> dict[str, Any]:
        path = self.folder / "pruned.json"
        mark = self.folder / "pruned.mark.json"
        stamp = fingerprint(base=self.base, other=self._other(), threads=torch.get_num_threads())
        if not is_finished(mark, stamp, path):
            sparse_output_projections(self.given.model)  # comp = 0
            atomic_write_json(path, self._measured())
            mark_finished(mark, stamp, path)
        return read_json(path)

    def _trained(self, heads: Tensor, seed: int) -> dict[str, Any]:
        """One training run of these heads, and what it is worth on each text."""
        training = TrainingSettings(seed=seed, steps=self.settings.train_steps)
        stamp = fingerprint(
            base=self.base, heads=heads.tolist(), training=asdict(training), text=self.train.fingerprint(),
            other=self._other(), threads=torch.get_num_threads(),
        )  # fmt: skip
        path = self.folder / f"run_{stamp[:16]}.json"
        mark = path.with_suffix(".mark.json")
        if is_finished(mark, stamp, path):
            return read_json(path)
        begin = time.perf_counter()
        result = train_compensation(
            self.given.model, self.train, self.given.components, heads, training, progress=self.progress
        )
        seconds = time.perf_counter() - begin
        record = {
            "seed": seed, "heads": int(heads.sum()), "seconds": seconds, "texts": self._measured(),
            "learning_rate": float(result.compensation.metadata["learning_rate"]),
            "steps": int(result.history[-1]["step"]), "training_heldout": [result.heldout_before, result.heldout_after],
        }  # fmt: skip
        sparse_output_projections(self.given.model)  # comp = 0 for whoever is next
        atomic_write_json(path, record)
        mark_finished(mark, stamp, path)
        return record

    def _other(self) -> str | None:
        return None if self.eval_text is None else self.eval_text.fingerprint()

    def _measured(self) -> dict[str, Any]:
        """NLL of each text with the compensation that the model holds now."""
        texts = {"heldout": self.heldout, "other": self.eval_text}
        return {
            name: _numbers(token_nll(self.given.model, rows, progress=self.progress))
            for name, rows in texts.items()
            if rows is not None
        }


def _at_least_two(rows: TokenSet, tokens: int) -> TokenSet:
    """The first rows of about so many tokens; two at least, since training holds one out."""
    found = rows.first(tokens)
    return found if len(found) >= 2 else rows.subset(range(2))


def _drawn(shape: torch.Size, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _numbers(found: NllResult) -> dict[str, Any]:
    """NaN and infinity as the largest float: a destroyed model compares as worst, and JSON can hold it."""
    nll, perplexity = (value if math.isfinite(value) else sys.float_info.max
                       for value in (found.mean, found.perplexity))  # fmt: skip
    return {"nll": nll, "perplexity": perplexity, "tokens": int(found.count.sum())}


def _summary(runs: Sequence[Mapping[str, Any]], random: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """Per text: every seed's numbers, their mean and standard deviation, and the NLL minus random's, seed by seed."""
    found: dict[str, Any] = {"heads": runs[0]["heads"]}
    for text in runs[0]["texts"]:
        nll = [run["texts"][text]["nll"] for run in runs]
        found[text] = {
            "nll": _spread(nll),
            "perplexity": _spread([run["texts"][text]["perplexity"] for run in runs]),
            "nll_minus_random": None if random is None else _spread(
                [mine - theirs["texts"][text]["nll"] for mine, theirs in zip(nll, random, strict=True)]
            ),
        }  # fmt: skip
    return found


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """std: of the sample (n − 1); None for one value."""
    return {
        "values": list(values), "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }  # fmt: skip


def pairs_apart(pairs: PairSet, heldout: TokenSet) -> PairSet:
    """The pairs that show nothing of the held-out rows: neither such a row as the right one, nor its answer as wrong.

    Rows are the same when one begins with all of the other; answers of fewer than 8 tokens are not looked for.

    Raises:
        ValueError: no pair is left.
    """
    rows = _rows(heldout)
    long = {row[start:] for row, start in rows if len(row) - start >= _LONG_ANSWER}
    kept = []
    for index, ((right, _), (wrong, start)) in enumerate(
        zip(_rows(pairs.positive), _rows(pairs.negative), strict=True)
    ):
        seen = any(right[: len(row)] == row[: len(right)] for row, _ in rows)
        if not seen and wrong[start:] not in long:
            kept.append(index)
    if not kept:
        raise ValueError(f"all {len(pairs)} pairs are rows that are held out to judge by; give pairs of other rows")
    return pairs if len(kept) == len(pairs) else pairs.subset(kept)


def _rows(tokens: TokenSet) -> list[tuple[tuple[int, ...], int]]:
    """(ids, first counted token) of each row."""
    return [
        (tuple(row[:length]), start)
        for row, length, start in zip(
            tokens.ids.tolist(), tokens.lengths.tolist(), tokens.response_start.tolist(),
            strict=True,
        )
    ]  # fmt: skip
