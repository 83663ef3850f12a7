"""The lines of run.py as tables: share of the gap closed, accuracy, measures of answers; differences to a reference.

    gap closed = (NLL_pruned − NLL_method) / (NLL_pruned − NLL_dense)        on the same rows

    python benchmarks/quality/table.py quality.jsonl --against lora

Intervals: 95 %, bootstrap over rows (documents, items, prompts), the same ones for all methods, and over the seeds of
each method. Several files, or one of several pruned models, make a table for each pruned model.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DRAWS = 4000
ANSWERS = {  # name in a line -> (title, factor)
    "rouge_l": ("ROUGE-L", 100), "chrf": ("chrF", 100), "repetition": ("repeated 4-grams", 100),
    "distinct": ("distinct 2-grams", 100),
}  # fmt: skip
CHOICES = ("correct", "normalised")  # by summed log-probability, and per byte


def row_weights(rows: int, seed: int = 0) -> Tensor:
    """How often each row is in each bootstrap draw, [DRAWS, n]: the same for every method."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(rows, (DRAWS, rows), generator=generator)
    weights = torch.zeros(DRAWS, rows, dtype=torch.float64)
    return weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))


def _mean_of_seeds(each: Tensor, seed: int) -> Tensor:
    """[DRAWS, S] -> [DRAWS]: the mean over seeds, drawn anew in each draw."""
    count = each.shape[1]
    seeds = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(seed + 1))
    return each.gather(1, seeds).mean(1)


def closed(dense: Tensor, pruned: Tensor, method: Tensor, count: Tensor, seed: int = 0) -> tuple[float, Tensor]:
    """(share of the gap closed, its bootstrap draws [DRAWS]).

    Args:
        dense, pruned: Σ NLL of each row [n]. method: the same of each seed [S, n]. count: tokens of each row [n].
    """
    weights = row_weights(len(count), seed)
    tokens = weights @ count
    lost = (weights @ (pruned - dense)) / tokens
    each = (weights @ (pruned - method).T) / tokens[:, None]  # [DRAWS, S]
    value = float((pruned - method.mean(0)).sum() / (pruned - dense).sum())
    return value, _mean_of_seeds(each, seed) / lost


def ratio(method: Tensor, count: Tensor | None = None, seed: int = 0) -> tuple[float, Tensor]:
    """(Σ method / Σ count, its draws [DRAWS]); method, count: of each seed and item [S, n]; no count: the mean."""
    count = torch.ones_like(method) if count is None else count
    weights = row_weights(method.shape[1], seed)
    each = (weights @ method.T) / (weights @ count.T)
    return float((method.sum(1) / count.sum(1)).mean()), _mean_of_seeds(each, seed)


def interval(draws: Tensor) -> tuple[float, float]:
    """The middle 95 % of draws."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return low, high


def difference(value: tuple[float, Tensor], other: tuple[float, Tensor], factor: float, digits: int = 1) -> str:
    """value − other with the interval of the paired draws, times factor."""
    low, high = interval(value[1] - other[1])
    number = f"+.{digits}f"
    return f"{factor * (value[0] - other[0]):{number}} ({factor * low:{number}} to {factor * high:{number}})"


def groups(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The lines of each pair of models (and settings that all methods share), by seed, else in the order of the files:
    differences are paired by seed, and a run may have been shared among several calls.

    Raises:
        SystemExit: one method and seed twice in a group, measured differently.
    """
    found: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: int(line["seed"])):
        shared = line.get("shared", {})
        key = tuple(str(shared.get(name, "")) for name in ("dense", "pruned", "pruned_name", "sparsity"))
        found[key].append(line)
    for group in found.values():
        _one_line_each(group)
    return found


def title(lines: Sequence[dict[str, Any]]) -> str:
    """What a group of lines is about."""
    shared = lines[0].get("shared", {})
    if "pruned_name" not in shared:
        return ""
    return (
        f"### {shared['pruned_name']}: {100 * shared['sparsity']:.1f} % of the weights are zero; learnt from "
        f"{shared['tokens']} tokens of {shared['data']}, {shared['epochs']:g} epochs"
    )


def tables(lines: list[dict[str, Any]], against: str) -> str:
    """Markdown: for each pruned model a table for each text, one for each set of choices, and one of answers."""
    parts = []
    for group in groups(lines).values():
        parts += [part for part in (title(group), *text_tables(group, against), *choice_tables(group, against),
                                    answer_table(group, against)) if part]  # fmt: skip
    return "\n\n".join(parts)


def _one_line_each(lines: Sequence[dict[str, Any]]) -> None:
    seen: dict[tuple[str, int], Any] = {}
    for line in lines:
        key, shared = (line["method"], line["seed"]), line.get("shared")
        if key in seen:
            raise SystemExit(
                f"{key[0]} of seed {key[1]} is there twice for one pruned model, with other settings; give each "
                "variant a name of its own (NAME:KEY=VALUE), or a file of its own"
            )
        seen[key] = shared


def text_values(lines: Sequence[dict[str, Any]]) -> dict[str, tuple[dict[str, Tensor], Tensor, int]]:
    """text -> ({method: Σ NLL [S, n]}, tokens [n], bytes; 0 where the line does not say).

    Raises:
        SystemExit: lines that were measured on different rows, or without both ends of the scale.
    """
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    count: dict[str, Tensor] = {}
    size: dict[str, int] = {}
    marks: dict[str, str] = {}  # fingerprints of the rows: windows of other text have the same lengths
    for line in lines:
        for text, rows in line["texts"].items():
            found[text][line["method"]][line["seed"]] = rows["nll_sum"]
            tokens = torch.tensor(rows["count"], dtype=torch.float64)
            size.setdefault(text, rows.get("bytes", 0))
            mark = rows.get("rows", "")
            if not torch.equal(count.setdefault(text, tokens), tokens) or marks.setdefault(text, mark) != mark:
                raise SystemExit(f"the lines were measured on different rows of {text}; measure them in one run")
    result = {}
    for text, methods in found.items():
        values = {name: torch.tensor(list(seeds.values()), dtype=torch.float64) for name, seeds in methods.items()}
        if not {"dense", "pruned"} <= values.keys():
            raise SystemExit("the file needs the methods dense and pruned")
        result[text] = (values, count[text], size[text])
    return result


def shares(values: dict[str, Tensor], tokens: Tensor) -> dict[str, tuple[float, Tensor]]:
    """method -> (share of the gap closed, its draws), by falling share."""
    found = {
        name: closed(values["dense"][0], values["pruned"][0], value, tokens)
        for name, value in values.items()
        if name not in ("dense", "pruned")
    }
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def text_tables(lines: Sequence[dict[str, Any]], against: str) -> list[str]:
    """A table for each text, methods by falling gap closed."""
    parts = []
    for text, (values, tokens, size) in text_values(lines).items():
        total = float(tokens.sum())

        def line(name: str, *rest: str, values=values, total=total, size=size) -> str:  # type: ignore[no-untyped-def]
            nll = float(values[name].mean(0).sum())
            bits = [f"{nll / math.log(2) / size:.3f}"] if size else []
            seeds = "" if name in ("dense", "pruned") else str(len(values[name]))
            return "| " + " | ".join([name, seeds, f"{nll / total:.3f}", *bits, *rest]) + " |"

        found = shares(values, tokens)
        bits = " bits per byte |" if size else ""
        rows = [f"**{text}**: {int(total)} tokens in {len(tokens)} rows", "",
                f"| method | seeds | NLL |{bits} gap closed | 95 % | minus {against} |",
                "|---|---|---|---|---|---|" + ("---|" if size else ""), line("dense", "100 %", "", "")]  # fmt: skip
        for name, (share, draws) in found.items():
            low, high = interval(draws)
            minus = ""
            if against in found and name != against:
                minus = difference((share, draws), found[against], 100)
            rows.append(line(name, f"{100 * share:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}", minus))
        parts.append("\n".join([*rows, line("pruned", "0 %", "", "")]))
    return parts


def choice_tables(lines: Sequence[dict[str, Any]], against: str) -> list[str]:
    """A table for each set of multiple-choice items, and one of all: both accuracies, paired differences in points."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for name, items in line.get("choices", {}).items():
            found[name][line["method"]].append(items)
    for name, methods in found.items():
        if len({items["items"] for seeds in methods.values() for items in seeds}) > 1:
            raise SystemExit(f"the lines were measured on different items of {name}; measure them in one run")
    parts = [_choice_table(name, methods, against) for name, methods in found.items()]
    plain = [methods for name, methods in found.items() if "+" not in name]  # without noise on the questions
    counts = {name: len(seeds) for name, seeds in plain[0].items()} if plain else {}
    if len(plain) > 1 and all({name: len(seeds) for name, seeds in methods.items()} == counts for methods in plain):
        together = {
            method: [
                {kind: [right for sets in seeds for right in sets[kind]] for kind in CHOICES}
                for seeds in zip(*(methods[method] for methods in plain), strict=True)
            ]
            for method in plain[0]
        }
        parts.append(_choice_table("all of these sets", together, against))
    return parts


def _choice_table(name: str, methods: dict[str, list[dict[str, Any]]], against: str) -> str:
    rows = [f"**{name}**: {len(next(iter(methods.values()))[0]['correct'])} items", "",
            f"| method | accuracy | 95 % | minus {against}, points | per byte | 95 % | minus {against}, points |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    scores = {
        method: [ratio(torch.tensor([items[kind] for items in seeds], dtype=torch.float64)) for kind in CHOICES]
        for method, seeds in methods.items()
    }
    for method, both in sorted(scores.items(), key=lambda item: -item[1][0][0]):
        cells = [method]
        for place, (value, draws) in enumerate(both):
            low, high = interval(draws)
            cells += [f"{100 * value:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"]
            other = scores.get(against)
            cells.append("" if other is None or method == against
                         else difference((value, draws), other[place], 100))  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def answer_table(lines: Sequence[dict[str, Any]], against: str) -> str:
    """The measures of answers; NLL under the dense model is that of the answer, the reference's stands above."""
    methods: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line.get("answers"):
            methods[line["method"]].append(line["answers"])
    if not methods:
        return ""
    first = next(iter(methods.values()))[0]
    if len({(each["prompts"], each["new_tokens"]) for seeds in methods.values() for each in seeds}) > 1:
        raise SystemExit("the lines hold answers to different prompts; measure them in one run")
    reference = sum(first["reference_sum"]) / sum(first["reference_count"])
    titles = [f"{name} | minus {against}" for name, _ in ANSWERS.values()]
    rows = [f"**answers**: {len(first['rouge_l'])} prompts, greedily, at most {first['new_tokens']} tokens; the "
            f"reference answers have NLL {reference:.3f} under the dense model", "",
            f"| method | {' | '.join(titles)} | NLL under dense | minus {against} |",
            "|" + "---|" * (2 * len(titles) + 3)]  # fmt: skip

    def stacked(method: str, key: str) -> Tensor:
        return torch.tensor([seed[key] for seed in methods[method]], dtype=torch.float64)

    def value(method: str, key: str) -> tuple[float, Tensor]:
        if key == "judged":
            return ratio(stacked(method, "judged_sum"), stacked(method, "judged_count"))
        return ratio(stacked(method, key))

    for method in methods:
        cells = [method]
        for key, factor, digits in [*((key, factor, 1) for key, (_, factor) in ANSWERS.items()), ("judged", 1, 2)]:
            own = value(method, key)
            cells.append(f"{factor * own[0]:.{digits}f}")
            known = against in methods and method != against
            cells.append(difference(own, value(against, key), factor, digits) if known else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def read_lines(files: Sequence[Path]) -> list[dict[str, Any]]:
    """All lines of all files; a line that two files share counts once.

    Raises:
        SystemExit: a file that is missing, empty or no result of run.py.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        if not file.is_file():
            raise SystemExit(f"{file} does not exist; give what run.py wrote")
        held = 0
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if not isinstance(record, dict) or not {"method", "seed", "texts"} <= record.keys():
                raise SystemExit(f"line {number} of {file} is no result of run.py; remove it or give another file")
            found[line], held = record, held + 1
        if not held:
            raise SystemExit(f"{file} holds no results; run run.py first")
    return list(found.values())


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="+")
    parser.add_argument("--against", metavar="METHOD", help="what differences are taken to; lora where it is there")
    options = parser.parse_args(arguments)
    lines = read_lines(options.file)
    known = sorted({line["method"] for line in lines})
    if options.against is not None and options.against not in known:
        parser.error(f"--against {options.against} is not among the methods: {', '.join(known)}")
    print(tables(lines, options.against or "lora"))


if __name__ == "__main__":
    main()
