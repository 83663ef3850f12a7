"""The report of a comparison of probes as tables, for a terminal and as Markdown. No number is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Rows", "markdown", "show", "tables"]

_TEXTS = {"heldout": "held out", "other": "other text"}
_NOTE = "note"  # the one column of words besides the first


@dataclass(frozen=True)
class Rows:
    """A table: its title, the names of its columns (the first is left-aligned), and its cells."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(report: Mapping[str, Any]) -> list[Rows]:
    """All tables of a report, the most important one first."""
    return [_worth(report), _probes(report), _matrix(report, "spearman", "Spearman's rank correlation"),
            _matrix(report, "overlap", f"Shared heads of the best {report['settings']['share']:.0%}")]  # fmt: skip


def _worth(report: Mapping[str, Any]) -> Rows:
    texts = [name for name in _TEXTS if name in report["pruned"]]
    columns = ["choice", "heads"]
    for name in texts:
        columns += [f"perplexity, {_TEXTS[name]}", "NLL − random's"]
    untouched: list[str] = ["untouched", "0"]
    for name in texts:
        untouched += [f"{report['pruned'][name]['perplexity']:.4g}", ""]
    rows = [tuple(untouched)]
    for choice in (*report["settings"]["probes"], "all"):
        found = report["worth"][choice]
        row = [choice, str(found["heads"])]
        for name in texts:
            difference = found[name]["nll_minus_random"]
            shown = "" if difference is None or choice == "random" else _spread(difference, "+.3f", ".3f")
            row += [_spread(found[name]["perplexity"], ".4g", ".2g"), shown]
        rows.append(tuple(row))
    seeds = report["settings"]["seeds"]
    over = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ± standard deviation"
    return Rows(f"What each choice is worth after training ({over})", tuple(columns), rows)


def _spread(found: Mapping[str, Any], mean: str, std: str) -> str:
    return format(found["mean"], mean) + ("" if found["std"] is None else f" ± {found['std']:{std}}")


def _probes(report: Mapping[str, Any]) -> Rows:
    rows: list[tuple[str, ...]] = []
    for kind in report["settings"]["probes"]:
        entry = report["probes"][kind]
        memory, numbers = entry["memory_used"], entry["numbers"]
        more = max(0, memory["peak"] - memory["before"])
        notes = [f"{numbers['forward_passes']:.4g} forward passes"] if "forward_passes" in numbers else []
        notes += [f"{numbers['work']:.1%} of the exact work"] if "work" in numbers else []
        notes += [f"{entry['undecided']:.1%} of the heads undecided"] if "undecided" in entry else []
        if entry.get("decided_agreement") is not None:
            notes.append(f"{entry['decided_agreement']:.1%} of the others as perplexity has them")
        rows.append((kind, f"{entry['seconds']:.3g}", f"{memory['peak'] / 1e6:,.0f}" if memory["own"] else "",
                     f"{more / 1e6:,.0f}" if memory["own"] else "", "; ".join(notes)))  # fmt: skip
    return Rows("Probes", ("probe", "seconds", "peak MB", "of it new", _NOTE), rows)


def _matrix(report: Mapping[str, Any], key: str, title: str) -> Rows:
    names = report["settings"]["probes"]
    rows: list[tuple[str, ...]] = [
        (a, *("–" if report[key][a][b] is None else f"{report[key][a][b]:.2f}" for b in names)) for a in names
    ]
    return Rows(title, ("", *names), rows)


def markdown(report: Mapping[str, Any]) -> str:
    """All tables, each under its title."""
    parts = []
    for table in tables(report):
        rule = ["---:" if index and name != _NOTE else "---" for index, name in enumerate(table.columns)]
        lines = [table.columns, rule, *table.rows]
        parts.append("\n".join([f"## {table.title}", "", *(f"| {' | '.join(row)} |" for row in lines), ""]))
    return "\n".join(parts)


def show(report: Mapping[str, Any], notes: Sequence[str]) -> None:
    """The tables and a few lines below them on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for found in tables(report):
        table = Table(title=found.title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for index, name in enumerate(found.columns):
            words = name == _NOTE
            table.add_column(
                name.replace(", ", ",\n").replace("− ", "−\n"), no_wrap=not words,
                justify="right" if index and not words else "left",
            )  # fmt: skip
        for row in found.rows:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
