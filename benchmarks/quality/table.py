"""The lines of run.py as a table: share of the gap closed, with intervals, and the difference to a reference method.

    gap closed = (NLL_pruned − NLL_method) / (NLL_pruned − NLL_dense)        on the same rows

    python benchmarks/quality/table.py quality.jsonl --against lora

Intervals: 95 %, bootstrap over rows (documents), the same rows for all methods, and over the seeds of each method.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DRAWS = 4000


def closed(dense: Tensor, pruned: Tensor, method: Tensor, count: Tensor, seed: int = 0) -> tuple[float, Tensor]:
    """(share of the gap closed, its bootstrap draws [DRAWS]).

    Args:
        dense, pruned: Σ NLL of each row [n]. method: the same of each seed [S, n]. count: tokens of each row [n].
    """
    generator = torch.Generator().manual_seed(seed)  # the same rows for every method
    rows = len(count)
    picks = torch.randint(rows, (DRAWS, rows), generator=generator)
    weights = torch.zeros(DRAWS, rows, dtype=torch.float64)
    weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    seeds = torch.randint(len(method), (DRAWS, len(method)), generator=torch.Generator().manual_seed(seed + 1))
    tokens = weights @ count
    lost = (weights @ (pruned - dense)) / tokens
    each = (weights @ (pruned - method).T) / tokens[:, None]  # [DRAWS, S]
    gained = each.gather(1, seeds).mean(1)
    value = float((pruned - method.mean(0)).sum() / (pruned - dense).sum())
    return value, gained / lost


def interval(draws: Tensor) -> tuple[float, float]:
    """The middle 95 % of draws."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return low, high


def tables(lines: list[dict[str, Any]], against: str) -> str:
    """Markdown, a table for each text, methods by falling gap closed."""
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    count: dict[str, Tensor] = {}
    for line in lines:
        for text, rows in line["texts"].items():
            found[text][line["method"]][line["seed"]] = rows["nll_sum"]
            tokens = torch.tensor(rows["count"], dtype=torch.float64)
            if not torch.equal(count.setdefault(text, tokens), tokens):
                raise SystemExit(f"the lines were measured on different rows of {text}; measure them in one run")
    parts = []
    for text, methods in found.items():
        values = {name: torch.tensor(list(seeds.values()), dtype=torch.float64) for name, seeds in methods.items()}
        if not {"dense", "pruned"} <= values.keys():
            raise SystemExit("the file needs the methods dense and pruned")
        dense, pruned, tokens = values["dense"][0], values["pruned"][0], count[text]
        shares = {
            name: closed(dense, pruned, value, tokens)
            for name, value in values.items()
            if name not in ("dense", "pruned")
        }
        rows = [f"**{text}**: {int(tokens.sum())} tokens in {len(tokens)} rows", "",
                f"| method | seeds | NLL | gap closed | 95 % | minus {against} |", "|---|---|---|---|---|---|",
                f"| dense | | {float(dense.sum() / tokens.sum()):.3f} | 100 % | | |"]  # fmt: skip
        for name, (share, draws) in sorted(shares.items(), key=lambda item: -item[1][0]):
            low, high = interval(draws)
            difference = ""
            if against in shares and name != against:
                minus = draws - shares[against][1]
                difference = f"{100 * (share - shares[against][0]):+.1f} ({100 * interval(minus)[0]:+.1f} to " \
                             f"{100 * interval(minus)[1]:+.1f})"  # fmt: skip
            nll = float(values[name].mean(0).sum() / tokens.sum())
            rows.append(f"| {name} | {len(values[name])} | {nll:.3f} | {100 * share:.1f} % | {100 * low:.1f} to "
                        f"{100 * high:.1f} | {difference} |")  # fmt: skip
        rows.append(f"| pruned | | {float(pruned.sum() / tokens.sum()):.3f} | 0 % | | |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--against", default="lora")
    options = parser.parse_args()
    print(tables([json.loads(line) for line in options.file.read_text().splitlines()], options.against))


if __name__ == "__main__":
    main()
