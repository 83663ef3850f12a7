"""report.json -> one self-contained report.html, and the result table of the README.

The JSON holds every number; this file computes none, it only lays them out. Run as a program:

    python -m restorelcc.report runs/demo/report.json                     # writes report.html beside it
    python -m restorelcc.report runs/demo/report.json --readme README.md  # refreshes the table there
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = "restorelcc-report"
VERSION = 0
BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"
_KEYS = ("model", "results", "gap", "control", "evaluation", "training", "sparsity", "settings", "versions", "timings")


def load_report(path: Path) -> dict[str, Any]:
    """Read and check a report.json; ValueError when it is something else or not whole."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); write it again with `restorelcc demo`") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ValueError(f'{path} is not a report: "format" is not {FORMAT!r}')
    if report.get("version") != VERSION:
        raise ValueError(f"{path} has report version {report.get('version')}; this program reads version {VERSION}")
    missing = [key for key in _KEYS if key not in report]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; write it again with `restorelcc demo`")
    return report


def alarm(report: Mapping[str, Any]) -> str | None:
    """The sentence that must come first when the restored model is no better than its input."""
    gap = report["gap"]
    if gap["improvement"] < 0:
        return (
            f"WORSE THAN ITS INPUT: the restored model loses {-gap['improvement']:.4f} nats per token against "
            "the pruned model on held-out text; use the pruned model"
        )
    if gap["improvement_low"] <= 0:
        return (
            f"NO CERTAIN GAIN: the improvement of {gap['improvement']:.4f} nats per token has a 95% interval "
            f"from {gap['improvement_low']:.4f}, which includes 0"
        )
    return None


def headline(report: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    rows = {row["key"]: row for row in report["results"]}
    gap = report["gap"]
    return (
        f"Perplexity {number(rows['pruned']['perplexity'])} after pruning, {number(rows['restored']['perplexity'])} "
        f"restored, {number(rows['dense']['perplexity'])} dense: {percent(gap['value'])} of the gap closed, "
        "every zero kept"
    )


def number(value: float) -> str:
    """Three to four figures that a person reads: 44.12, 176.2, 12752."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float | None, digits: int = 0) -> str:
    """0.529 as 53%; "undefined" for what is no number."""
    return f"{100 * value:.{digits}f}%" if value is not None and math.isfinite(value) else "undefined"


def thousands(value: float) -> str:
    """16384 with a thin space before the last three digits."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def render(report: Mapping[str, Any]) -> str:
    """The whole page, without any reference to another file."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the HTML report needs jinja2; run: pip install jinja2") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, percent=percent, thousands=thousands)
    control = next((row for row in report["results"] if row["key"] == "control"), {"label": "control"})
    return environment.get_template("report.html.j2").render(
        report={
            "quick": False, "reused": [], "warnings": [], "peak_rss_bytes": None, "verification": None,
            "step_timings": {}, **report,
        },
        alarm=alarm(report),
        headline=headline(report),
        control=control,
        charts=_charts(report),
    )


def _charts(report: Mapping[str, Any]) -> dict[str, Any]:
    from restorelcc import charts

    training, heads = report["training"], report.get("heads") or {}
    return {
        "quality": charts.quality_bars(report["results"]),
        "training": charts.training_curve(
            training["steps"], training["heldout"], training.get("start_nll"), training["objective"]
        )
        if training.get("steps") or training.get("heldout")
        else None,
        "heads": charts.head_heatmap("heads", "what heads lost: attribution", heads["scores"], heads["unit"])
        if heads
        else None,
    }


def write_report(report: Mapping[str, Any], out: Path) -> Path:
    """Write out/report.json and out/report.html, each whole or not at all; returns the HTML path."""
    from restorelcc.artifacts import atomic_write_json

    page = render(report)
    atomic_write_json(out / "report.json", dict(report))
    path = out / "report.html"
    _write_whole(path, page)
    return path


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def readme_table(report: Mapping[str, Any]) -> str:
    """The before/after table in Markdown, with what was measured, on what, by which command."""
    gap, rows = report["gap"], []
    for row in report["results"]:
        closed = "–"
        if row["key"] == "restored":
            closed = f"**{percent(gap['value'])}** ({percent(gap['low'])} to {percent(gap['high'])})"
        quality = f"{number(row['perplexity'])} | {row['nll']:.3f}"
        rows.append(f"| {row['label']} | {quality} | {closed} | {percent(row['sparsity'])} |")
    evaluation, training = report["evaluation"], report["training"]
    notes = (
        f"Measured by `{report['reproduce'].splitlines()[0]}` on {report['versions'].get('cpu', 'a CPU')} "
        f"({report['versions'].get('threads', '?')} threads), {thousands(evaluation['tokens'])} tokens of "
        f"{evaluation['name']}; recipe `{report['settings']['recipe']}` on {thousands(training['tokens'])} tokens "
        f"({training['name']}). "
        f"Dense is {report['model']['note']}. Intervals: 95%, paired bootstrap over windows. "
        f"Masks of {report['sparsity']['matrices']} matrices compared bit by bit: "
        f"{'identical' if report['sparsity']['identical'] else 'CHANGED'}. "
        f"The dense model trained on the same text changes by {-report['control']['gain']:+.3f} nats."
    )
    head = "| model | perplexity | NLL, nats per token | gap closed (95% interval) | zeros |\n|---|---|---|---|---|"
    return "\n".join([head, *rows, "", notes])


def refresh_readme(readme: Path, table: str) -> None:
    """Replace what stands between the two marker comments of `readme` by `table`."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} needs the lines {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    _write_whole(readme, f"{before}{BEGIN}\n{table}\n{END}{after}")


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m restorelcc.report", description="report.json to report.html")
    parser.add_argument("report", type=Path, help="report.json written by `restorelcc demo`")
    parser.add_argument("--readme", type=Path, help="refresh the table in this Markdown file instead")
    options = parser.parse_args(arguments)
    try:
        report = load_report(options.report)
        if options.readme is not None:
            refresh_readme(options.readme, readme_table(report))
        else:
            _write_whole(options.report.with_suffix(".html"), render(report))
    except (ValueError, OSError, ImportError) as error:
        print(f"restorelcc: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
