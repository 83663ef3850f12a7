"""What the demo measured, laid out as a report: intervals, groups, samples. See report.py for the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .evaluation import NllResult, gap_closed
from .report import FORMAT, VERSION, alarm, number, percent, thousands

__all__ = ["assemble", "show"]

LABELS = {
    "dense": "dense", "pruned": "pruned", "restored": "restored", "control": "control (dense, trained on the text)",
}  # fmt: skip


def assemble(
    record: Mapping[str, Any],
    *,
    note: str,
    quick: bool,
    timings: list[dict[str, Any]],
    reused: list[str],
    settings: dict[str, Any],
    versions: dict[str, str],
    created: str,
    seed: int,
    reproduce: str,
) -> dict[str, Any]:
    """The report as plain data. `record` is what `demo` collected; nothing is measured here but intervals."""
    measured, restoration = record["measured"], record["restoration"]
    nll = {key: _nll(entry) for key, entry in measured.items()}
    gap = gap_closed(nll["dense"], nll["pruned"], nll["restored"], seed=seed)
    control = gap_closed(nll["dense"], nll["dense"], nll["control"], seed=seed)  # only its improvement is used
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": created,
        "quick": quick,
        "reproduce": reproduce,
        "model": {"name": note.split(",")[0], "note": note},
        "results": [_result(key, nll[key], measured[key]["sparsity"], seed) for key in LABELS],
        "gap": {
            "value": _finite(gap.value),
            "low": _finite(gap.low),
            "high": _finite(gap.high),
            "improvement": gap.improvement,
            "improvement_low": gap.improvement_low,
            "improvement_high": gap.improvement_high,
        },
        "control": {
            "gain": control.improvement,
            "gain_low": control.improvement_low,
            "gain_high": control.improvement_high,
        },
        "evaluation": record["prose"],
        "training": {**record["text"], **_training(restoration)},
        "heads": _heads(record["heads"], restoration["recipe"]),
        "sparsity": _sparsity(measured["pruned"]["sparsity"], measured["restored"]["sparsity"], restoration["fold"]),
        "verification": record["check"],
        "samples": [
            {
                "prompt": prompt,
                "new_tokens": record["new_tokens"],
                **{key: measured[key]["samples"][i] for key in ("dense", "pruned", "restored")},
            }
            for i, prompt in enumerate(record["prompts"])
        ],
        "timings": timings,
        "step_timings": restoration["timings"],
        "reused": reused,
        "peak_rss_bytes": restoration["peak_rss_bytes"],
        "warnings": restoration["warnings"],
        "settings": settings,
        "versions": versions,
    }


def _finite(value: float) -> float | None:
    """A share of a gap that is 0 is no number; JSON has null for that."""
    return value if math.isfinite(value) else None


def _nll(entry: Mapping[str, Any]) -> NllResult:
    return NllResult(torch.tensor(entry["nll_sum"], dtype=torch.float64), torch.tensor(entry["count"]))


def _result(key: str, nll: NllResult, sparsity: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    low, high = _interval(nll, seed)
    zeros, weights = _totals(sparsity)
    return {
        "key": key,
        "label": LABELS[key],
        "nll": nll.mean,
        "perplexity": nll.perplexity,
        "nll_low": low,
        "nll_high": high,
        "sparsity": zeros / weights,
    }


def _interval(nll: NllResult, seed: int, resamples: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval of one model's mean NLL over windows."""
    rows = nll.nll_sum.shape[0]
    draw = torch.randint(rows, (resamples, rows), generator=torch.Generator().manual_seed(seed))
    means = nll.nll_sum[draw].sum(1) / nll.count.double()[draw].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _totals(table: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    return sum(int(row["zeros"]) for row in table), sum(int(row["rows"]) * int(row["columns"]) for row in table)


def _sparsity(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], fold: Mapping[str, Any]
) -> dict[str, Any]:
    """Groups of matrices with the same role in their layer; `fold` is the proof that the masks are equal."""
    groups: dict[str, dict[str, Any]] = {}
    for old, new in zip(before, after, strict=True):
        role = re.sub(r"^.*?\.\d+\.", "", str(old["name"]))
        group = groups.setdefault(role, {"name": role, "count": 0, "weights": 0, "zeros_before": 0, "zeros_after": 0})
        group["count"] += 1
        group["weights"] += int(old["rows"]) * int(old["columns"])
        group["zeros_before"] += int(old["zeros"])
        group["zeros_after"] += int(new["zeros"])
    for group in groups.values():
        group["sparsity"] = group["zeros_after"] / group["weights"]
    zeros, weights = _totals(after)
    return {
        "overall": zeros / weights,
        "matrices": len(after),
        "identical": fold.get("matrices_compared") == len(after),
        "groups": list(groups.values()),
        "rows": list(after),
    }


def _training(restoration: Mapping[str, Any]) -> dict[str, Any]:
    """What the held-out rows of the training text say of the refit and of the tuning behind it."""
    history, heldout, objective = restoration["history"], restoration["heldout"], restoration["settings"]["objective"]
    rates = [row for row in restoration["search"] if "learning_rate" in row]  # the others are scales of the refit
    best = min(rates, key=lambda row: row["heldout_nll"]) if rates else None
    return {
        "steps": [[row["step"], row["train_nll"]] for row in history if "train_nll" in row],
        "heldout": [[row["step"], row["heldout_nll"]] for row in history],
        "objective": f"{percent(1 - objective['distill'])} NLL, {percent(objective['distill'])} KL to the dense model",
        "start_nll": heldout["pruned"],
        "refitted_nll": heldout["refitted"],
        "restored_nll": heldout["restored"],
        "learning_rates": [
            {"rate": row["learning_rate"], "nll": row["heldout_nll"], "steps": row["steps"], "chosen": row is best}
            for row in rates
        ],
    }


def _heads(found: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    return {
        **found,
        "explanation": (
            "What a head lost is the mean of its output in the dense minus in the pruned model. The map shows, to "
            "first order, by how much the NLL of the pruned model falls (blue) or rises (red) when that head alone "
            f"gets it back, on {thousands(found['tokens'])} tokens of the training text. It is a diagnosis and decided "
            f"nothing: recipe {recipe} solved and tuned the projections of all layers alike."
        ),
    }


def show(report: Mapping[str, Any], page: object) -> None:
    """The result on stdout: first of all whether it is bad, then one table and where the report is."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    bad = alarm(report)
    if bad:
        console.print(bad, style="bold red", markup=False)
    gap = report["gap"]
    table = Table(
        title=f"{report['settings']['method']} {report['settings']['pattern']}, recipe {report['settings']['recipe']}, "
        f"{report['evaluation']['name']}"
    )
    for name in ("model", "perplexity", "NLL", "gap closed [95%]", "zeros"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in report["results"]:
        closed = "-"
        if row["key"] == "restored":
            closed = f"{percent(gap['value'], 1)} \\[{percent(gap['low'], 1)}, {percent(gap['high'], 1)}]"
        table.add_row(row["label"], number(row["perplexity"]), f"{row['nll']:.4f}", closed, percent(row["sparsity"], 1))
    console.print(table)
    training, control, check = report["training"], report["control"], report["verification"]
    console.print(
        f"Held-out rows of the training text, NLL: {training['start_nll']:.3f} pruned, "
        f"{training['refitted_nll']:.3f} refitted, {training['restored_nll']:.3f} tuned. "
        f"The control changes by {-control['gain']:+.3f} on the evaluation text.",
        markup=False,
    )
    console.print(
        f"Masks of {report['sparsity']['matrices']} matrices: "
        f"{'identical' if report['sparsity']['identical'] else 'CHANGED'}. Stock transformers {check['transformers']} "
        f"against the sparse kernels: logits differ by at most {check['kernel_error']:.2g}, budget "
        f"{check['budget']:.2g}.",
        markup=False,
    )
    console.print(f"Dense is {report['model']['note']}.", markup=False)
    for warning in report["warnings"]:
        console.print(f"Note: {warning}", markup=False)
    console.print(f"Report: {page}", markup=False, soft_wrap=True)
