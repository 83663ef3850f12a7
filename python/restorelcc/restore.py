"""The whole restoration, step by step; each step leaves a file that the next reads and a repeated call reuses.

    text → moments → components → head scores → training → fold

A step's file carries the fingerprint of everything that went into it (checkpoints by content, text, settings).
A killed call, repeated, goes on behind its last finished step (inside `moments`: its last finished layer) and
writes the same bits as an undisturbed one, given the same seed, threads, CPU and versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import save_adapter
from .artifacts import Progress, SilentProgress, atomic_write_json, fingerprint, read_json, refuse_inputs, versions
from .compensation import Compensation
from .components import COMPONENTS, Components, lost_components
from .fold import FOLDS, fold
from .fold_target import FoldTarget, fold_target
from .models import check_pair, load_model
from .moments import POSITIONS, Moments, collect_moments
from .probes import PROBES, HeadScores, head_scores, select_heads
from .probes import probe_tokens as probe_tokens_of
from .pruning import sparsity_table
from .resume import is_finished, mark_finished, only_call
from .text import TokenSet, load_text, write_own_text
from .training import TrainingResult, TrainingSettings, closed_form, train_compensation

__all__ = ["RestoreReport", "restore", "train_control", "training_text"]

TRAINERS = ("lm", "none")
ALWAYS_SCORED = ("attribution", "random")  # cheap, and in need of nothing but the text


@dataclass
class RestoreReport:
    """What was done and what came of it. NLLs are means in nats per token on the held-out training rows."""

    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    heldout: dict[str, float] = field(default_factory=dict)
    fold: dict[str, Any] = field(default_factory=dict)
    head_scores: dict[str, list[list[float]]] = field(default_factory=dict)
    score_units: dict[str, str] = field(default_factory=dict)
    selected: list[list[bool]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    search: list[dict[str, float]] = field(default_factory=list)
    sparsity: list[dict[str, Any]] = field(default_factory=list)
    text: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def training_text(
    dense: Path,
    *,
    data: Path | None,
    tokens: int,
    window: int,
    seed: int,
    cache: Path,
    progress: Progress | None = None,
) -> TokenSet:
    """The text to calibrate and train on: `data`, or text that the dense model writes itself.

    The dense model's own text is seeded, and cached at `cache`.

    Raises:
        ValueError: text that is empty or shorter than a window.
    """
    stamp = fingerprint(dense=Path(dense), data=data, tokens=tokens, window=window, seed=seed)
    mark = cache.with_suffix(".json")
    if is_finished(mark, stamp, cache):
        return TokenSet.load(cache)
    loaded = load_model(dense)
    if data is not None:
        text = load_text(data, loaded.tokenizer, window=window, max_tokens=tokens, seed=seed)
    else:
        text = write_own_text(
            loaded.model, loaded.tokenizer, tokens=tokens, window=window, seed=seed, progress=progress
        )
    text.save(cache)
    mark_finished(mark, stamp, cache)
    return text


class _Steps:
    """Files of finished steps in a work directory, each beside the fingerprint of what went into it."""

    def __init__(self, work: Path, timings: dict[str, float]) -> None:
        self.work, self.timings = work, timings
        work.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def timed(self, name: str) -> Any:
        begin = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - begin

    def run(
        self, name: str, stamp: str, make: Callable[[Path], Any], load: Callable[[Path], Any], *beside: Path
    ) -> Any:
        """make(path) writes the step's file (and those `beside`) and returns its value, unless a finished one has
        this stamp and its files are as they were left."""
        path, mark = self.work / f"{name}.safetensors", self.work / f"{name}.json"
        with self.timed(name):
            if is_finished(mark, stamp, path, *beside):
                return load(path)
            value = make(path)
            mark_finished(mark, stamp, path, *beside)
        return value


def restore(
    dense: Path,
    pruned: Path,
    out: Path,
    *,
    probe: str = "attribution",
    heads: str | float = "all",
    components: str = "svd",
    train: str = "lm",
    data: Path | None = None,
    fold_into: str = "o_proj",
    positions: str = "all",
    skip_first: int = 1,
    tokens: int = 16384,
    window: int = 256,
    probe_tokens: int | None = None,
    training: TrainingSettings | None = None,
    seed: int = 0,
    work: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RestoreReport:
    """c = argmin NLL(pruned model with W_o c added to its output projections); written to `out`.

    Args:
        dense, pruned: checkpoint directories with the same shapes; the pruned one has zeros.
        out: the restored checkpoint (or adapter directory); whole or absent.
        probe: which heads are worth it (see `probes.PROBES`); matters when `heads` is a share.
        heads: `all`, or a share in (0, 1].
        components: `svd` or `mean`. train: `lm`, or `none` for the line-searched closed form.
        data: .txt or .jsonl; without it the dense model writes its own text.
        probe_tokens: of the text, for the head scores; each probe's own default otherwise (`probes.probe_tokens`).
            They are means over tokens, so a part will do.
        fold_into: `o_proj` for a stock checkpoint, `none` for an adapter directory.
        work: where the steps leave their files; `out` + ".work" by default.

    Raises:
        ValueError: unknown choices, models that do not fit each other, a pruned model without zeros, NaN
            weights, or text that is too short. Nothing is written to `out` then.
    """
    for value, allowed, name in (
        (probe, tuple(PROBES), "probe"),
        (components, COMPONENTS, "components"),
        (train, TRAINERS, "train"),
        (fold_into, FOLDS, "fold"),
        (positions, POSITIONS, "positions"),
    ):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    if probe == "linear":
        raise ValueError("restore has no pairs of right and wrong answers for the linear probe; choose another probe")
    select_heads(torch.zeros(1, 1), heads)  # refuses a bad share before any work
    dense, pruned, out = Path(dense), Path(pruned), Path(out)
    refuse_inputs(out, dense, pruned, *([Path(data)] if data is not None else []))
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not overwrite):
        raise ValueError(f"{out} exists and is not empty; pass --overwrite or another --out")
    progress = progress or SilentProgress()
    settings = replace(training or TrainingSettings(), seed=seed)
    report = RestoreReport(versions=versions())
    place = Path(work) if work is not None else out.with_name(out.name + ".work")
    with only_call(place, out):
        _restore(
            report, dense, pruned, out, _Steps(place, report.timings), settings, progress, probe=probe, heads=heads,
            components=components, train=train, data=data, fold_into=fold_into, positions=positions,
            skip_first=skip_first, tokens=tokens, window=window, probe_tokens=probe_tokens, seed=seed,
            overwrite=overwrite,
        )  # fmt: skip
    return report


def _restore(
    report: RestoreReport, dense: Path, pruned: Path, out: Path, steps: _Steps, settings: TrainingSettings,
    progress: Progress, *, probe: str, heads: str | float, components: str, train: str, data: Path | None,
    fold_into: str, positions: str, skip_first: int, tokens: int, window: int, probe_tokens: int | None, seed: int,
    overwrite: bool,
) -> None:
    """The steps, with what `restore` has checked; fills the report."""
    with steps.timed("check"):
        check_pair(dense, pruned)
        target = fold_target(pruned)
        report.sparsity = sparsity_table(pruned)
    if fold_into == "o_proj" and target.kind == "adapter":
        report.warnings.append(f"No stock checkpoint can hold this compensation: {target.reason}.")

    with steps.timed("text"):
        text = training_text(
            dense, data=data, tokens=tokens, window=window, seed=seed, cache=steps.work / "text.safetensors",
            progress=progress,
        )
    moment_stamp = fingerprint(
        dense=dense, pruned=pruned, text=text.fingerprint(), positions=positions, skip_first=skip_first
    )
    moments: Moments = steps.run(
        "moments", moment_stamp,
        lambda path: collect_moments(
            dense, pruned, text, out=path, positions=positions, skip_first=skip_first, progress=progress
        ),
        Moments.load,
    )
    lost = lost_components(moments, kind=components)
    lost.save(steps.work / "components.safetensors")

    loaded = load_model(pruned)  # only now: the moments need two layers, not two models
    model = loaded.model
    scores = {
        kind: _scores(steps, kind, model, text, probe_tokens, lost, moment_stamp, components, seed, progress)
        for kind in dict.fromkeys((probe, *ALWAYS_SCORED))
    }
    chosen = select_heads(scores[probe].scores, heads)
    result = _trained(steps, model, text, lost, chosen, train, settings, moment_stamp, components, progress)
    with steps.timed("fold"):
        report.fold = _write(pruned, result.compensation, out, target, fold_into, overwrite)

    report.settings = {
        "dense": str(dense), "pruned": str(pruned), "out": str(out), "probe": probe, "heads": heads,
        "components": components, "train": train, "data": str(data) if data else "written by the dense model",
        "fold": fold_into, "positions": positions, "skip_first": skip_first, "tokens": tokens, "window": window,
        "probe_tokens": probe_tokens, "seed": seed, "training": asdict(settings), "source": loaded.source.note,
    }
    report.text = {"name": text.name, "rows": int(text.ids.shape[0]), "tokens": text.tokens}
    report.heldout = {"pruned": result.heldout_before, "restored": result.heldout_after}
    report.head_scores = {kind: value.scores.tolist() for kind, value in scores.items()}
    report.score_units = {kind: value.unit for kind, value in scores.items()}
    report.selected = chosen.tolist()
    report.history, report.search = result.history, result.search
    report.peak_rss_bytes = _peak_rss_bytes()
    if not result.heldout_after < result.heldout_before:
        report.warnings.insert(
            0,
            f"Nothing was gained: on held-out text the restored model has NLL {result.heldout_after:.4f}, its input "
            f"{result.heldout_before:.4f}; the compensation written is the best one found, which may be zero.",
        )
    atomic_write_json(steps.work / "report.json", report.to_dict())


def _scores(
    steps: _Steps, kind: str, model: Any, text: TokenSet, tokens: int | None, lost: Components, moment_stamp: str,
    components: str, seed: int, progress: Progress,
) -> HeadScores:
    count = probe_tokens_of(kind) if tokens is None else tokens

    def make(path: Path) -> HeadScores:
        scores = head_scores(kind, model, text.first(count), lost, seed=seed, scratch=steps.work, progress=progress)
        scores.save(path)
        return scores

    stamp = fingerprint(moments=moment_stamp, probe=kind, components=components, seed=seed, tokens=count)
    value: HeadScores = steps.run(f"scores_{kind}", stamp, make, HeadScores.load)
    return value


def _trained(
    steps: _Steps, model: Any, text: TokenSet, lost: Components, chosen: Tensor, train: str,
    settings: TrainingSettings, moment_stamp: str, components: str, progress: Progress,
) -> TrainingResult:
    record = steps.work / "training.json"

    def make(path: Path) -> TrainingResult:
        if train == "lm":
            result = train_compensation(model, text, lost, chosen, settings, progress=progress)
        else:
            result = closed_form(
                model, text, lost, chosen, heldout_share=settings.heldout_share, seed=settings.seed, progress=progress
            )
        rest = {key: value for key, value in vars(result).items() if key != "compensation"}
        atomic_write_json(record, rest)
        result.compensation.save(path)
        return result

    stamp = fingerprint(
        moments=moment_stamp, heads=chosen.tolist(), components=components, train=train, settings=asdict(settings),
        threads=torch.get_num_threads(),
    )
    value: TrainingResult = steps.run(
        "compensation", stamp, make, lambda path: TrainingResult(Compensation.load(path), **read_json(record)), record
    )
    return value


def _write(
    pruned: Path, compensation: Compensation, out: Path, target: FoldTarget, fold_into: str, overwrite: bool
) -> dict[str, Any]:
    if fold_into == "none" or target.kind == "adapter":
        save_adapter(pruned, compensation, out, overwrite=overwrite)
        return {"kind": "adapter", "reason": target.reason if fold_into != "none" else "asked for by --fold none"}
    return asdict(fold(pruned, compensation, out, overwrite=overwrite))


def train_control(
    dense: Path,
    out: Path,
    text: TokenSet,
    components: Components,
    *,
    settings: TrainingSettings,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """The dense model given the very same training: what adaptation to the text alone is worth.

    Same code path, directions, units, text and settings as the pruned model's training; all heads.
    Written to `out` as a folded checkpoint where the architecture allows, else as an adapter directory.
    """
    model = load_model(dense).model
    heads = torch.ones(components.unit.shape, dtype=torch.bool)
    result = train_compensation(model, text, components, heads, settings, progress=progress)
    _write(Path(dense), result.compensation, Path(out), fold_target(model.config), "o_proj", overwrite)
    return result


def _peak_rss_bytes() -> int:
    """Peak resident memory of this process so far; 0 where the system does not tell."""
    try:
        import resource
        import sys
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
