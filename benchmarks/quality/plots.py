"""Pictures of the lines of run.py, from one file or several: share of the gap closed, with 95 % intervals.

    python benchmarks/quality/plots.py quality.jsonl --out plots [--form svg] [--texts answers,wiki]

    methods           every method (without settings of its own, or those of --methods), a panel for each text
    choices           accuracy of every method, a panel for each set of items
    tokens, sparsity, heads, probes, components     how it changes along one axis, everything else equal

Points of one series differ in that axis alone; a picture is drawn where some method has two points or more on it.
--label "best, 24k=best:tokens=24576" gives a method a name of its own; where there are labels, the rest is left out.
Colours are those of Okabe and Ito, which the colour-blind tell apart; series also differ in their markers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from table import groups, interval, ratio, read_lines, shares, text_values

INK, RULE = "#1b1f24", "#d0d4da"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": "restorelcc", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip
PANEL_COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """One method on one text of one pruned model: what it is, and its share in per cent with the interval."""

    method: str
    text: str
    config: dict[str, Any]
    value: float
    low: float
    high: float


def points(lines: Sequence[dict[str, Any]]) -> list[Point]:
    """A point for every method and text of every pruned model; config: also `pruned` and `sparsity`."""
    found = []
    for group in groups(lines).values():
        shared = group[0].get("shared", {})
        configs = {line["method"]: line.get("config", {"name": line["method"]}) for line in group}
        for text, (values, tokens, _) in text_values(group).items():
            for method, (share, draws) in shares(values, tokens).items():
                low, high = interval(draws)
                config = {
                    **configs[method], "pruned": shared.get("pruned_name", "pruned"), "sparsity": shared.get("sparsity")
                }  # fmt: skip
                found.append(Point(method, text, config, 100 * share, 100 * low, 100 * high))
    return found


@dataclass(frozen=True)
class Axis:
    """What a picture shows the share against. place: of a config, None: it has none.

    within: keys of a config that the place already tells, or that follow from it, and so split no series.
    """

    name: str
    label: str
    place: Callable[[dict[str, Any]], Any]
    within: tuple[str, ...]
    log: bool = False


def _components(config: dict[str, Any]) -> str | None:
    if "components" not in config:
        return None
    return f"{config['components']}, rank {config['rank']}" if config.get("rank") else str(config["components"])


def _sites(config: dict[str, Any]) -> str | None:
    return str(config.get("sites", "attention")) if "probe" in config else None


def _heads(config: dict[str, Any]) -> float | None:
    if "heads" not in config:
        return None
    return 100.0 if config["heads"] == "all" else 100 * float(config["heads"])


def _sparsity(config: dict[str, Any]) -> str | None:
    share = config["sparsity"]
    return None if share is None else f"{config['pruned']}\n{100 * share:.0f} % zeros"


AXES = (
    Axis("tokens", "tokens to learn from", lambda config: config.get("tokens"), ("tokens",), log=True),
    Axis("sparsity", "pruned model", _sparsity, ("pruned", "sparsity")),
    Axis("heads", "heads that may change, %", _heads, ("heads",), log=True),
    Axis("probes", "probe", lambda config: config.get("probe"), ("probe",)),
    Axis("sites", "where vectors are added", _sites, ("sites",)),
    Axis("components", "directions", _components, ("components", "rank")),
)


def series(found: Sequence[Point], axis: Axis) -> dict[str, list[tuple[Any, Point]]]:
    """label -> (place, point) of points of one text whose configs differ in the axis alone; two places or more."""
    grouped: dict[str, dict[Any, Point]] = defaultdict(dict)
    keys: dict[str, dict[str, Any]] = {}
    for point in found:  # in their order, which is then that of the legend
        place = axis.place(point.config)
        if place is None:
            continue
        rest = {name: value for name, value in point.config.items() if name not in axis.within}
        if axis.name == "sparsity":
            rest = {name: rest.get(name) for name in ("tokens", "epochs")} | {"name": point.method}
        elif "probe" in point.config:
            rest["name"] = "compensate"  # `paper` is a compensation with settings of its own
        key = json.dumps(rest, sort_keys=True)
        keys[key] = rest
        held = grouped[key].get(place)
        if held is None or len(point.method) < len(held.method):  # of two names for one method the shorter
            grouped[key][place] = point
    kept = {key: places for key, places in grouped.items() if len(places) > 1}
    told = iter(_labels([keys[key] for key in kept]))
    alone = {key: {point.method for point in places.values()} for key, places in kept.items()}
    labels = [text if len(alone[key]) > 1 else next(iter(alone[key])) for key, text in zip(kept, told, strict=True)]
    order = {key: sorted(kept[key].items(), key=lambda item: _order(axis, item)) for key in kept}
    return dict(zip(labels, order.values(), strict=True))


def _order(axis: Axis, item: tuple[Any, Point]) -> tuple[Any, ...]:
    place, point = item
    return (point.config["sparsity"], place) if axis.name == "sparsity" else (place,)


def _labels(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The name of each, and those of its settings in which they are not all alike."""
    names = sorted({name for config in configs for name in config if name != "name"})
    alike = {name for name in names if len({json.dumps(config.get(name)) for config in configs}) == 1}
    peers: dict[str, int] = defaultdict(int)
    for config in configs:
        peers[str(config.get("name"))] += 1
    labels = []
    for config in configs:
        own = str(config.get("name"))
        told_by_name = {"sparsity"} if "pruned" not in alike else set()  # each pruned model has one
        differing = [
            name for name in names if name not in alike | told_by_name and (peers[own] > 1 or name == "pruned")
        ]
        told = [f"{name} {config[name]}" for name in differing if config.get(name) is not None]
        labels.append(", ".join([own, *told]))
    return labels


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure; all drawing and saving happens inside the with block."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> None:
    """Writes the picture, without dates."""
    unstamped = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=160, metadata=unstamped)


Values = dict[str, tuple[float, float, float]]  # method -> (value, its interval)


def draw_bars(path: Path, panels: dict[str, dict[str, Values]], label: str, ends: bool) -> None:
    """A panel for each text: a point and an interval for each method and pruned model, by the first model's values.

    panels: text -> pruned model -> values. ends: 0 and 100 are the pruned and the dense model.
    """
    models = list(dict.fromkeys(model for found in panels.values() for model in found))
    everything: Values = {}
    for model in reversed(models):
        everything |= next(iter(panels.values())).get(model, {})
    methods = sorted(everything, key=lambda name: everything[name][0])
    columns = min(PANEL_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = rows * (0.9 + 0.24 * len(methods) * (0.6 + 0.4 * len(models)))
    with canvas(1.6 + 2.6 * columns, height + 0.2 * (len(models) > 1)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        handles: dict[str, Any] = {}
        for index, panel in enumerate(axes.flat):
            if index >= len(panels):
                panel.set_visible(False)
                continue
            text, found = list(panels.items())[index]
            for which, (model, values) in enumerate((model, found.get(model, {})) for model in models):
                shift = ((len(models) - 1) / 2 - which) * 0.56 / len(models)
                for name, (value, low, high) in values.items():
                    handles[model] = panel.errorbar(
                        value, methods.index(name) + shift, xerr=[[value - low], [high - value]],
                        fmt=MARKERS[which % len(MARKERS)], markersize=4.5, color=COLOURS[which % len(COLOURS)],
                        elinewidth=1.4, capsize=2.5,
                    )  # fmt: skip
            if ends:
                panel.axvline(0, color=INK, linewidth=0.8)
                if panel.get_xlim()[1] > 90:
                    panel.axvline(100, color=INK, linewidth=0.8, linestyle=":")
            panel.set_title(text, fontsize=9.5)
            panel.set_yticks(range(len(methods)), methods)
            panel.set_ylim(-0.6, len(methods) - 0.4)
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="both")
        figure.supxlabel(label, fontsize=9)
        if len(models) > 1:
            figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(models),
                          frameon=False, fontsize=8)  # fmt: skip
        save(figure, path)


def draw_axis(path: Path, axis: Axis, panels: dict[str, dict[str, list[tuple[Any, Point]]]]) -> None:
    """A panel for each text: lines where places are numbers, points side by side where they are words."""
    labels = list(dict.fromkeys(label for found in panels.values() for label in found))
    places = list(dict.fromkeys(place for found in panels.values() for row in found.values() for place, _ in row))
    words = any(isinstance(place, str) for place in places)
    columns = min(PANEL_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = max(2.9, 0.5 * len(places) * (0.6 + 0.18 * len(labels))) if words else 2.9
    beside = max(1, int(width * columns / (0.6 + 0.075 * max(map(len, labels)))))  # inches of a name in the legend
    lines = math.ceil(len(labels) / beside)
    with canvas(0.5 + width * columns, 0.7 + 2.4 * rows + 0.2 * lines) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        handles: dict[str, Any] = {}
        for index, panel in enumerate(axes.flat):
            if index >= len(panels):
                panel.set_visible(False)
                continue
            title, found = list(panels.items())[index]
            for label, row in found.items():
                which = labels.index(label)
                shift = (which - (len(labels) - 1) / 2) * 0.7 / max(1, len(labels)) if words else 0.0
                # beside each other, so that intervals do not hide each other
                aside = 1.03 ** (which - (len(labels) - 1) / 2)
                xs = [places.index(place) + shift if words else float(place) * aside for place, _ in row]
                values = [point.value for _, point in row]
                spread = [[point.value - point.low for _, point in row], [point.high - point.value for _, point in row]]
                handles[label] = panel.errorbar(
                    xs, values, yerr=spread, marker=MARKERS[(which + which // len(COLOURS)) % len(MARKERS)],
                    color=COLOURS[which % len(COLOURS)], linestyle="none" if words else "-", markersize=4.5,
                    linewidth=1.3, elinewidth=1.1, capsize=2.5,
                )  # fmt: skip
            panel.axhline(0, color=INK, linewidth=0.8)
            panel.set_title(title, fontsize=9.5)
            panel.grid(axis="y")
            if words:
                panel.set_xticks(range(len(places)), [str(place) for place in places])
                if axis.name != "sparsity" and max(len(str(place)) for place in places) > 9:
                    # each on one line: beneath each other and turned, two lines of one run into the next place's
                    panel.tick_params(axis="x", labelrotation=50)
                    for text in panel.get_xticklabels():
                        text.set(ha="right", rotation_mode="anchor")
                panel.set_xlim(-0.6, len(places) - 0.4)
                panel.tick_params(axis="x", length=0)
            else:
                if axis.log:
                    panel.set_xscale("log", base=2)
                panel.set_xticks(sorted(places), [f"{place:,.6g}" for place in sorted(places)])
                panel.minorticks_off()
        figure.supxlabel(axis.label, fontsize=9)
        figure.supylabel("gap closed, %", fontsize=9)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center",
                      ncols=math.ceil(len(labels) / lines), frameon=False, fontsize=8)  # fmt: skip
        save(figure, path)


def accuracies(lines: Sequence[dict[str, Any]]) -> dict[str, Values]:
    """items -> method -> (accuracy in per cent, its interval)."""
    found: dict[str, dict[str, list[list[int]]]] = defaultdict(lambda: defaultdict(list))
    marks: dict[str, str] = {}
    for line in lines:
        for name, items in line.get("choices", {}).items():
            if marks.setdefault(name, items["items"]) != items["items"]:
                raise SystemExit(f"the lines were measured on different items of {name}; measure them in one run")
            found[name][line["method"]].append(items["correct"])
    panels: dict[str, Values] = {}
    for name, methods in found.items():
        panels[name] = {}
        for method, correct in methods.items():
            value, draws = ratio(torch.tensor(correct, dtype=torch.float64))
            low, high = interval(draws)
            panels[name][method] = (100 * value, 100 * low, 100 * high)
    return panels


def draw_all(
    lines: list[dict[str, Any]], out: Path, *, form: str = "png", texts: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[Path]:
    """All pictures that the lines allow; returns their paths.

    Args:
        texts: of these alone. methods: in the pictures of methods and choices; those without settings by default.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = [point for point in points(lines) if not texts or point.text in texts]
    if not found:
        raise SystemExit(f"no result of {', '.join(texts)} is there; the lines hold {', '.join(lines[0]['texts'])}")
    names = list(dict.fromkeys(point.text for point in found))
    made = []

    def wanted(method: str) -> bool:
        return method in methods if methods else ":" not in method

    bars: dict[str, dict[str, Values]] = {text: {} for text in names}
    choices: dict[str, dict[str, Values]] = defaultdict(dict)
    for group in groups(lines).values():
        pruned = group[0].get("shared", {}).get("pruned_name", "pruned")
        for point in points(group):
            if wanted(point.method) and point.text in bars:
                values = bars[point.text].setdefault(pruned, {})
                values[point.method] = (point.value, point.low, point.high)
        for name, accuracy in accuracies(group).items():
            choices[name][pruned] = {method: value for method, value in accuracy.items() if wanted(method)}
    if any(values for each in bars.values() for values in each.values()):
        made.append(out / f"methods.{form}")
        draw_bars(made[-1], bars, "gap closed, % (0: pruned, 100: dense)", ends=True)
    if any(values for each in choices.values() for values in each.values()):
        made.append(out / f"choices.{form}")
        draw_bars(made[-1], choices, "accuracy, %", ends=False)
    for axis in AXES:
        panels_of = {text: series([point for point in found if point.text == text], axis) for text in names}
        if any(panels_of.values()):
            made.append(out / f"{axis.name}.{form}")
            draw_axis(made[-1], axis, panels_of)
    return made


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--form", choices=("png", "svg"), default="png")
    parser.add_argument("--texts", default="", help="NAME,NAME: these alone")
    parser.add_argument("--methods", action="append", default=[], help="one to show, settings included; repeatable")
    parser.add_argument("--label", action="append", default=[], metavar="TEXT=METHOD", help="repeatable")
    options = parser.parse_args(arguments)
    lines = read_lines(options.file)
    labels = _labelled(parser, options.label, {line["method"] for line in lines})
    if labels:
        ends = {"dense": "dense", "pruned": "pruned"}
        known = {**ends, **labels}
        lines = [{**line, "method": known[line["method"]]} for line in lines if line["method"] in known]
    texts = [name for name in options.texts.split(",") if name]
    methods = [*options.methods, *labels.values()]
    for path in draw_all(lines, options.out, form=options.form, texts=texts, methods=methods):
        print(path)


def _labelled(parser: argparse.ArgumentParser, given: Sequence[str], known: set[str]) -> dict[str, str]:
    """method -> label."""
    labels = {}
    for each in given:
        text, equals, method = each.partition("=")
        if not text or not equals or method not in known:
            parser.error(f"--label {each!r} is no TEXT=METHOD of the lines; they hold {', '.join(sorted(known))}")
        labels[method] = text
    return labels


if __name__ == "__main__":
    main()
