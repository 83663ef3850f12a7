"""Pictures of the report, as inline SVG that follows the page's light or dark colours.

Text, axes and grid are drawn in two marker colours which become CSS variables, so one picture reads
well on either background. Nothing here computes a result; every function takes finished numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GRID = "#010203", "#040506"  # become var(--ink) and var(--rule)
SERIES = {"dense": "#4c78a8", "pruned": "#d1605e", "restored": "#3f9b6c", "control": "#8f7fb8"}


# mind: matplotlib reads these when an artist is made, so a whole picture is drawn under rc_context
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "restorelcc",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
}


@contextmanager
def _canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes; all drawing and saving happens inside the with block."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the HTML report needs matplotlib; run: pip install matplotlib") from error

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element whose ids start with `name` and whose colours are CSS variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'xlink:href="#{name}-')
    svg = svg.replace(_INK, "var(--ink)").replace(_GRID, "var(--rule)")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    svg = re.sub(r'\swidth="[\d.]+pt" height="[\d.]+pt"|\sheight="[\d.]+pt" width="[\d.]+pt"', "", svg, count=1)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def quality_bars(results: Sequence[Mapping[str, Any]]) -> str:
    """Held-out NLL of each model with its bootstrap interval; the perplexity stands beside the bar."""
    with _canvas(5.2, 0.55 + 0.42 * len(results)) as (figure, axes):
        right = max(float(row.get("nll_high") or row["nll"]) for row in results)
        for place, row in enumerate(results):
            nll = float(row["nll"])
            axes.barh(place, nll, height=0.62, color=SERIES.get(str(row["key"]), "#888888"))
            low, high = row.get("nll_low"), row.get("nll_high")
            if low is not None and high is not None:
                spread = [[max(0.0, nll - low)], [max(0.0, high - nll)]]
                axes.errorbar(nll, place, xerr=spread, color=_INK, capsize=3, linewidth=1)
            end = float(high if high is not None else nll)
            axes.text(end + 0.02 * right, place, f"perplexity {row['perplexity']:.4g}", va="center")
        axes.set_yticks(range(len(results)), [str(row["label"]) for row in results])
        axes.invert_yaxis()
        axes.set_xlim(0, right * 1.32)
        axes.set_xlabel("negative log-likelihood, nats per token (lower is better)")
        axes.tick_params(length=0)
        return _svg(figure, "quality", "Held-out negative log-likelihood of each model")


def training_curve(
    train: Sequence[Sequence[float]], heldout: Sequence[Sequence[float]], start: float | None, objective: str
) -> str:
    """The tuning over its steps: its objective on the training batches, the NLL of the held-out part, which begins
    where the refit ended, and that of the pruned model as a line."""
    with _canvas(5.2, 3.0) as (figure, axes):
        if train:
            axes.plot(
                *zip(*train, strict=True),
                color=SERIES["dense"],
                linewidth=1,
                alpha=0.8,
                label="objective, mean since the last point",
            )
        if heldout:
            steps, values = zip(*heldout, strict=True)
            axes.plot(steps, values, color=SERIES["restored"], marker="o", markersize=3, label="held-out part, NLL")
        if start is not None:
            axes.axhline(start, color=SERIES["pruned"], linestyle="--", linewidth=1, label="pruned, held-out part, NLL")
        axes.set_xlabel("step")
        axes.set_ylabel("nats per token")
        axes.grid(axis="y")
        # above the axes: inside, it lies on the line of the pruned model, which is the highest of all
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2,
                    borderaxespad=0.2)  # fmt: skip
        return _svg(figure, "training", f"Objective ({objective}) and held-out NLL over the steps of the tuning")


def head_heatmap(name: str, title: str, scores: Sequence[Sequence[float]], unit: str) -> str:
    """Scores [L, H] as `heat_map` draws them."""
    from restorelcc.heat_map import draw_heads, map_size

    with _canvas(*map_size(len(scores), len(scores[0]))) as (figure, axes):
        draw_heads(figure, axes, scores, unit, title=title, ink=_INK, rule=_GRID)
        return _svg(figure, name, f"{title}, layers by heads")
