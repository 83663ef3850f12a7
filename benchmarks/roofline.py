"""Draws the JSON of rlcc_bench: bytes a second of the products of one row, under the bandwidth of the same run.

python benchmarks/roofline.py run.json --out roofline.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

DTYPES = ("fp32", "bf16", "fp16", "int8")
OURS = {"fp32": "#08519c", "bf16": "#3182bd", "fp16": "#6baed6", "int8": "#9ecae1"}
DENSE = {"fp32": "#636363", "bf16": "#969696", "int8": "#bdbdbd"}
GB = 1e-9


def series(results: list[dict[str, Any]], threads: int) -> tuple[list[str], dict[tuple[str, str], dict[str, Any]]]:
    """The shapes, in order, and {(shape, "forward/bf16"): result} of one row and no compensation."""
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    shapes: list[str] = []
    for result in results:
        if result["rows"] != 1 or result["threads"] != threads or result["op"] not in ("forward", "dense", "read"):
            continue
        if result["seconds"]["interrupted"]:  # of another program as much as of ours
            continue
        shape = f"{result['model']} {result['layer']}\n{result['outputs']} × {result['inputs']}, {result['pattern']}"
        if shape not in shapes:
            shapes.append(shape)
        chosen[shape, f"{result['op']}/{result['dtype']}"] = result
    return shapes, chosen


def draw(axes: Axes, results: list[dict[str, Any]], threads: int) -> None:
    shapes, chosen = series(results, threads)
    bars = [(f"forward/{d}", f"sparse {d}", OURS[d]) for d in DTYPES]
    bars += [(f"dense/{d}", f"our dense {d}", DENSE[d]) for d in DENSE]
    bars = [bar for bar in bars if any((shape, bar[0]) in chosen for shape in shapes)]
    width = 0.8 / len(bars)
    for i, (key, label, colour) in enumerate(bars):
        places = [s + (i - (len(bars) - 1) / 2) * width for s, shape in enumerate(shapes) if (shape, key) in chosen]
        found = [chosen[shape, key] for shape in shapes if (shape, key) in chosen]
        rates = [r["bytes"] / r["seconds"]["median"] * GB for r in found]
        low = [rate - r["bytes"] / r["seconds"]["q3"] * GB for rate, r in zip(rates, found, strict=True)]
        high = [r["bytes"] / r["seconds"]["q1"] * GB - rate for rate, r in zip(rates, found, strict=True)]
        axes.bar(places, rates, width * 0.92, label=label, color=colour)
        axes.errorbar(places, rates, yerr=[low, high], fmt="none", ecolor="#222222", elinewidth=0.8, capsize=2)
    for s, shape in enumerate(shapes):
        if (shape, "read/") not in chosen:
            continue
        bandwidth = chosen[shape, "read/"]["read_bytes_per_second"] * GB
        axes.plot([s - 0.45, s + 0.45], [bandwidth] * 2, color="#cb181d", linewidth=1.8,
                  label="read bandwidth, same run" if s == 0 else None)  # fmt: skip
    axes.set_xticks(range(len(shapes)), shapes, fontsize=8)
    axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="what rlcc_bench --json wrote")
    parser.add_argument("--out", type=Path, default=Path("roofline.png"))
    arguments = parser.parse_args()
    run = json.loads(arguments.json.read_text(encoding="utf-8"))
    all_threads = sorted({r["threads"] for r in run["results"] if r["rows"] == 1 and r["op"] == "forward"})
    if not all_threads:
        parser.error(f"{arguments.json} has no forward product of one row; run rlcc_bench with M1 among its cases")
    figure, axes = plt.subplots(1, len(all_threads), figsize=(5.4 * len(all_threads), 4.2), sharey=True, squeeze=False)
    for place, threads in zip(axes[0], all_threads, strict=True):
        draw(place, run["results"], threads)
    best = max(r["bytes"] / r["seconds"]["q1"] for r in run["results"] if r["rows"] == 1)
    axes[0][0].set_ylim(0, best * GB * 1.05)
    axes[0][0].set_ylabel("bytes moved at least / median time, GB/s")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(len(labels), 4), fontsize=8, frameon=False)
    figure.suptitle(f"One row (M = 1), cold weights: {run['cpu']}, {run['isa']}", fontsize=11)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
