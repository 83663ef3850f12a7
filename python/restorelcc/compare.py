"""Models side by side on the same windows of text: what `restorelcc eval` does.

gap closed = (NLL_pruned − NLL_model) / (NLL_pruned − NLL_dense)        paired bootstrap over windows
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compensated import compensations
from .evaluation import (
    ChoiceResult,
    NllResult,
    accuracy_gain,
    gap_closed,
    multiple_choice,
    predicted_bytes,
    token_nll,
)
from .harness import HarnessSettings, HarnessTasks, TaskResult, score_gains
from .loading import kind_of, load, tokenizer_of
from .models import load_model
from .noisy_text import Noise
from .text import load_choices, load_text, prose_windows

if TYPE_CHECKING:
    from .artifacts import Progress

__all__ = ["compare", "summary"]


def compare(
    specs: Sequence[str],
    *,
    text: Path | None = None,
    choices: Path | None = None,
    harness: HarnessSettings | None = None,
    tokens: int = 16384,
    window: int = 512,
    seed: int = 0,
    noise: Noise | None = None,
    compensation: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """NLL and perplexity of every model, and of the first against the others, window by window.

    Args:
        specs: the model to judge, then up to two to compare with: any one, or the dense and the pruned model.
            Adapter directories are loaded with their compensation, packed ones with their default compensation.
        text: .txt or .jsonl; English prose of the Python documentation without it.
        noise: put on prompts and questions, the same for all models.
        choices: multiple-choice items; accuracy with its standard error for every model, and of the first the paired
            gain over the others.
        harness: tasks of lm-evaluation-harness, likewise; without noise.
        compensation: of the first model, a packed one with several: the name of the one to judge, or `none`.

    Raises:
        ValueError: more than three models, vocabularies that differ, unusable text, or a task that cannot be had.
        MissingExtraError: `harness` without the package lm_eval.
    """
    if len(specs) > 3:
        raise ValueError(f"{len(specs) - 1} models to compare with; give at most two: the dense and the pruned one")
    if noise is not None and text is None and choices is None:
        raise ValueError("noise is for prompts and questions; give --text FILE.jsonl or --choices")
    if noise is not None and harness is not None:
        raise ValueError("noise is for --text and --choices, and tasks of the harness get none; leave one of them out")
    first = tokenizer_of(specs[0])
    tasks = HarnessTasks(harness, progress=progress) if harness is not None else None
    rows = (
        load_text(text, first, window=window, max_tokens=tokens, seed=seed, noise=noise)
        if text is not None
        else prose_windows(first, window=window, max_tokens=tokens)
    )
    size = predicted_bytes(rows, first)
    items = load_choices(choices, noise=noise) if choices is not None else None
    measured: list[NllResult] = []
    answers: list[ChoiceResult] = []
    found: list[dict[str, TaskResult]] = []
    models: list[dict[str, Any]] = []
    for spec in specs:
        tokenizer = tokenizer_of(spec)
        if tokenizer.get_vocab() != first.get_vocab():
            raise ValueError(f"{spec} and {specs[0]} have different vocabularies; their perplexities do not compare")
        model, note = _model(spec)
        chosen = compensation if not models else None
        if chosen is not None:
            note = f"{note}, compensation {chosen}"
        with nullcontext() if chosen is None else compensations(model, None if chosen == "none" else chosen):
            nll = token_nll(model, rows, progress=progress)
            if items is not None:
                answers.append(multiple_choice(model, tokenizer, items, progress=progress))
            if tasks is not None:
                found.append(tasks.measure(model, tokenizer, progress=progress))
        entry: dict[str, Any] = {"model": spec, "nll": nll.mean, "perplexity": nll.perplexity, "source": note}
        entry["bits_per_byte"] = nll.bits_per_byte(size) if size else None
        if items is not None:
            answer = answers[-1]
            entry["choices"] = {
                "items": len(items),
                "accuracy": answer.accuracy,
                "accuracy_normalised": answer.accuracy_normalised,
                "stderr": answer.stderr,
            }
        if tasks is not None:
            entry["harness"] = {name: task.to_dict() for name, task in found[-1].items()}
        measured.append(nll)
        models.append(entry)
    text_record = {
        "name": rows.name, "tokens": rows.tokens, "bytes": size, "windows": int(rows.ids.shape[0]), "window": window,
    }  # fmt: skip
    result: dict[str, Any] = {
        "text": text_record, "noise": None, "models": models, "differences": [], "gap": None,
    }  # fmt: skip
    if noise is not None:  # running prose, which is read without --text, gets none
        hit = [name for name, given in (("prompts", text), ("questions", choices)) if given is not None]
        result["noise"] = {**asdict(noise), "on": hit}
    if tasks is not None:
        result["harness"] = {"version": tasks.version, "limit": tasks.settings.limit}
    for spec, other in zip(specs[1:], measured[1:], strict=True):
        paired = gap_closed(measured[0], other, measured[0], seed=seed)  # only its improvement is used
        result["differences"].append(
            {
                "against": spec,
                "improvement": paired.improvement,
                "low": paired.improvement_low if len(rows) > 1 else None,
                "high": paired.improvement_high if len(rows) > 1 else None,
            }
        )
    for row, right in zip(result["differences"], answers[1:], strict=False):
        row["choices"] = {
            "accuracy": asdict(accuracy_gain(answers[0].correct, right.correct, seed=seed)),
            "accuracy_normalised": asdict(
                accuracy_gain(answers[0].correct_normalised, right.correct_normalised, seed=seed)
            ),
        }
    for row, other_tasks in zip(result["differences"], found[1:], strict=False):
        row["harness"] = score_gains(found[0], other_tasks, seed=seed)
    if len(specs) == 3:
        gap = gap_closed(measured[1], measured[2], measured[0], seed=seed)
        low, high = (gap.low, gap.high) if len(rows) > 1 else (None, None)
        result["gap"] = {"dense": specs[1], "pruned": specs[2], "value": gap.value, "low": low, "high": high}
    return result


def _model(spec: str) -> tuple[Any, str]:
    kind = kind_of(spec)
    if kind:
        return load(spec), kind
    loaded = load_model(spec)
    return loaded.model, loaded.source.note


def summary(result: dict[str, Any]) -> list[str]:
    """The result in lines for a person; a model worse than what it is compared with comes first."""
    name = result["models"][0]["model"]
    lines = [
        f"WORSE: {name} loses {-row['improvement']:.4f} nats per token against {row['against']}"
        for row in result["differences"][-1:]
        if row["improvement"] < 0
    ]
    text = result["text"]
    lines.append(f"{text['name']}: {text['tokens']} predicted tokens in {text['windows']} windows of {text['window']}")
    noise = result["noise"]
    if noise is not None:
        words = f"{100 * noise['rate']:.3g} % of the words of {' and '.join(noise['on'])}"
        lines.append(f"noise: {noise['kind']}, {words}, seed {noise['seed']}")
    for row in result["models"]:
        note = f"  ({row['source']})" if row["source"] else ""
        line = f"{row['model']}: perplexity {row['perplexity']:.4g}, NLL {row['nll']:.4f} nats per token"
        if row["bits_per_byte"] is not None:
            line += f", {row['bits_per_byte']:.4f} bits per byte"
        line += note
        if "choices" in row:
            answer = row["choices"]
            line += (
                f"; accuracy {answer['accuracy']:.3f} ± {answer['stderr']:.3f}, by length "
                f"{answer['accuracy_normalised']:.3f}, on {answer['items']} items"
            )
        lines.append(line)
        lines += [_task_line(row["model"], name, task) for name, task in row.get("harness", {}).items()]
    for row in result["differences"]:
        word, sign = ("better", 1) if row["improvement"] >= 0 else ("worse", -1)
        interval = "one window, no interval"
        if row["low"] is not None:
            low, high = sorted((sign * row["low"], sign * row["high"]))
            interval = f"95% interval {low:.4f} to {high:.4f}"
        lines.append(f"{word} than {row['against']} by {abs(row['improvement']):.4f} nats per token ({interval})")
        for key, words in (("accuracy", "accuracy"), ("accuracy_normalised", "accuracy by length")):
            if "choices" in row:
                lines.append(_gain_line(words, row["against"], row["choices"][key]))
        for name, gains in row.get("harness", {}).items():
            lines += [_gain_line(f"{name} {metric}", row["against"], gain) for metric, gain in gains.items()]
    gap = result["gap"]
    if gap is not None and math.isfinite(gap["value"]):
        interval = "one window, no interval"
        if gap["low"] is not None:
            interval = f"95% interval {gap['low']:.1%} to {gap['high']:.1%}"
        lines.append(f"gap closed: {gap['value']:.1%} ({interval})")
    return lines


def _task_line(model: str, name: str, task: dict[str, Any]) -> str:
    metrics = [
        f"{metric} {row['value']:.3f}" + (f" ± {row['stderr']:.3f}" if row["stderr"] is not None else "")
        for metric, row in task["metrics"].items()
    ]
    shots = f", {task['shots']} examples before each" if task["shots"] else ""
    return f"{model}, {name}: {', '.join(metrics)} on {task['items']} items{shots}"


def _gain_line(words: str, against: str, gain: dict[str, float]) -> str:
    return (
        f"{words} against {against}: {gain['value']:+.3f} "
        f"(paired 95% interval {gain['low']:+.3f} to {gain['high']:+.3f})"
    )
