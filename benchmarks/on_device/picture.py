"""Draws what gpu.py measured: one row against the memory's bandwidth; time over rows; the share of the floor of each
op.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "ours bf16": "#08519c", "ours fp16": "#3182bd", "ours int8": "#6baed6", "ours fp32": "#9ecae1",
    "ours 2:4 bf16": "#006d2c", "torch bf16": "#636363", "torch fp16": "#969696", "torch fp32": "#bdbdbd",
    "torch 2:4 cuSPARSELt bf16": "#a63603", "torch 2:4 CUTLASS bf16": "#e6550d",
}  # fmt: skip


def draw(run: dict[str, Any], path: Path) -> bool:
    """False where nothing was timed."""
    results = run.get("times", [])
    forward = [result for result in results if result["op"] == "sparse_linear"]
    if not results or not forward:
        return False
    figure, axes = plt.subplots(1, 3, figsize=(16.5, 4.8))
    one_row(axes[0], [result for result in forward if result["shape"]["rows"] == 1], run["roof"]["bandwidth"])
    over_rows(axes[1], forward)
    shares(axes[2], results)
    device = run["device"]
    words = f"{device['name']}, driver {device.get('nvidia_smi', {}).get('driver_version', '?')}"
    figure.suptitle("THE EMULATOR: TIMES MEAN NOTHING" if device["emulated"] else words, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def one_row(axes: Axes, results: list[dict[str, Any]], bandwidth: float) -> None:
    """Bytes moved at least over median time."""
    names = [name for name in COLOURS if any(name in result["contenders"] for result in results)]
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        places, rates, spread = [], [], [[], []]  # type: ignore[var-annotated]
        for at, result in enumerate(results):
            if name not in result["contenders"]:
                continue
            row = result["contenders"][name]
            s = row["seconds"]
            places.append(at + (i - (len(names) - 1) / 2) * width)
            rates.append(row["bytes"] / s["median"] * 1e-9)
            spread[0].append(rates[-1] - row["bytes"] / s["q3"] * 1e-9)
            spread[1].append(row["bytes"] / s["q1"] * 1e-9 - rates[-1])
        axes.bar(places, rates, width * 0.92, color=COLOURS[name], label=name)
        axes.errorbar(places, rates, yerr=spread, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=2)
    axes.axhline(bandwidth * 1e-9, color="#cb181d", linewidth=1.6, label="bandwidth, same run")
    labels = [f"{r['shape']['model']}\n{r['shape']['outputs']} × {r['shape']['inputs']}" for r in results]
    axes.set_xticks(range(len(results)), labels, fontsize=7)
    axes.set_ylabel("bytes moved at least / median time, GB/s")
    axes.set_title("one row (M = 1), cold cache", fontsize=10)
    axes.legend(fontsize=6.5, frameon=False)
    _plain(axes)


def over_rows(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Of the first shape."""
    first = results[0]["shape"]["model"]
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for result in results:
        if result["shape"]["model"] == first:
            for name, row in result["contenders"].items():
                lines[name].append((result["shape"]["rows"], row["seconds"]["median"] * 1e6))
    for name, points in lines.items():
        style = "-" if name.startswith("ours") else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, color=COLOURS.get(name), label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("rows M")
    axes.set_ylabel("median, µs")
    axes.set_title(first, fontsize=10)
    axes.legend(fontsize=6.5, frameon=False)
    _plain(axes)


def shares(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Floor over median, of ours, where each op does best and worst."""
    found: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for name, row in result["contenders"].items():
            if name.startswith("ours"):
                found[f"{result['op']}{' 2:4' if '2:4' in name else ''}"].append(100 * row["share_of_floor"])
    for at, values in enumerate(found.values()):
        axes.plot([at, at], [min(values), max(values)], color="#08519c", linewidth=6, alpha=0.35)
        axes.plot([at] * len(values), values, "o", color="#08519c", markersize=3)
    axes.axhline(100, color="#cb181d", linewidth=1.2)
    axes.set_xticks(range(len(found)), list(found), rotation=25, ha="right", fontsize=7)
    axes.set_ylabel("floor / median, %")
    axes.set_title("ours against the roof of the same run", fontsize=10)
    _plain(axes)
