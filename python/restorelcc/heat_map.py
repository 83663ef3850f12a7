"""Head scores [L, H] as a picture: heads across, layers down.

    scores that are changes (in nats)     from red below 0 over white to blue above: 0 is white in every picture; a few
                                          far outliers are beyond the scale, and its ends are then pointed
    all others (accuracies, random)       from white at the smallest to green at the largest

Chosen heads are outlined, undecided ones hatched. `charts.head_heatmap` puts the same drawing into the report.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .score_file import HeadScores

__all__ = ["draw_heads", "has_zero", "map_size", "save_heat_map", "title_of"]

_INK, _RULE, _MISSING = "#1b1f24", "#d0d4da", "#b9bdc3"
_FORMS = (".png", ".svg")
_WITHIN = 0.98  # of the heads, whose colours tell them apart

Marks = Sequence[Sequence[bool]]


def has_zero(unit: str) -> bool:
    """Whether 0 means something in scores of this unit: changes of an NLL are in nats, and nothing else is."""
    return "nats" in unit


def title_of(scores: HeadScores) -> str:
    """What a picture of these scores shows, in a few words."""
    contrast, edit = scores.record.get("contrast"), scores.record.get("edit")
    if not has_zero(scores.unit) or not isinstance(contrast, str):
        return f"{scores.kind} scores"
    over = {"text": "NLL of text", "margin": "margin of right over wrong answers"}.get(contrast, contrast)
    return f"{scores.kind}: {over}{', heads taken out' if edit == 'ablate' else ''}"


def map_size(layers: int, heads: int) -> tuple[float, float]:
    """(width, height) in inches of a map with its labels and its colour bar."""
    return min(8.0, max(3.7, 1.5 + 0.17 * heads)), min(8.0, max(2.8, 1.3 + 0.16 * layers))


def draw_heads(
    figure: Figure, axes: Axes, scores: Sequence[Sequence[float]], unit: str, *, title: str,
    chosen: Marks | None = None, undecided: Marks | None = None, ink: str = _INK, rule: str = _RULE,
) -> None:  # fmt: skip
    """Draws scores [L, H] into `axes`. Scores that are no numbers are grey.

    Args:
        chosen, undecided: bool [L, H]; outlines are left out where all heads are chosen.
        ink, rule: colours of marks and of the grid.
    """
    import numpy as np
    from matplotlib.colors import Normalize, TwoSlopeNorm

    values = np.ma.masked_invalid(np.asarray(scores, dtype=np.float64))
    low, high = (float(values.min()), float(values.max())) if values.count() else (0.0, 1.0)
    norm: Normalize
    extend = "neither"
    if has_zero(unit):
        limit = largest = max(abs(low), abs(high)) or 1.0
        if values.count():
            most = float(np.quantile(np.abs(values.compressed()), _WITHIN))
            if 0 < 1.5 * most < largest:
                limit = most
        below, above = low < -limit, high > limit
        extend = "both" if below and above else "min" if below else "max" if above else "neither"
        colours, norm = "RdBu", TwoSlopeNorm(vcenter=0.0, vmin=-limit, vmax=limit)
    else:
        colours, norm = "Greens", Normalize(vmin=low, vmax=high if high > low else low + 1.0)
    axes.set_facecolor(_MISSING)
    mesh = axes.pcolormesh(values, cmap=colours, norm=norm, edgecolors=rule, linewidth=0.15)
    layers, heads = values.shape
    axes.set_xticks([h + 0.5 for h in _few(heads, 12)], [str(h) for h in _few(heads, 12)])
    axes.set_yticks([y + 0.5 for y in _few(layers, 16)], [str(y) for y in _few(layers, 16)])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.spines[:].set_visible(False)  # they would lie on the outlines
    width, height = figure.get_size_inches()
    figure.suptitle(textwrap.fill(title, round(12 * width)), fontsize=9.5)
    _mark(figure, axes, chosen, undecided, ink)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.08, pad=0.03, aspect=40, extend=extend)
    bar.set_label(textwrap.fill(unit, round(8 * height)), fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.ax.ticklabel_format(style="sci", scilimits=(-2, 3))


def _mark(figure: Figure, axes: Axes, chosen: Marks | None, undecided: Marks | None, ink: str) -> None:
    """The outlines, the hatches, and below the map what they mean."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Patch, Rectangle

    legend = []
    if chosen is not None and not all(map(all, chosen)):
        lines = LineCollection(_outline(chosen), colors=ink, linewidths=1.2, capstyle="projecting", zorder=3)
        lines.set_clip_on(False)
        axes.add_collection(lines)
        legend.append(Patch(fill=False, edgecolor=ink, linewidth=1.2, label=f"chosen ({sum(map(sum, chosen))})"))
    if undecided is not None and any(map(any, undecided)):
        hatch: dict[str, Any] = {"fill": False, "hatch": "/////", "edgecolor": ink, "linewidth": 0}
        for layer, row in enumerate(undecided):
            for head in (head for head, marked in enumerate(row) if marked):
                axes.add_patch(Rectangle((head, layer), 1, 1, **hatch))
        legend.append(Patch(**hatch, label=f"undecided ({sum(map(sum, undecided))})"))
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=ink)


def _outline(chosen: Marks) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The edges between cells that are chosen and cells that are not; what lies outside is not."""
    layers, heads = len(chosen), len(chosen[0])

    def inside(layer: int, head: int) -> bool:
        return 0 <= layer < layers and 0 <= head < heads and bool(chosen[layer][head])

    flat = [((h, y), (h + 1, y)) for y in range(layers + 1) for h in range(heads) if inside(y - 1, h) != inside(y, h)]
    tall = [((h, y), (h, y + 1)) for y in range(layers) for h in range(heads + 1) if inside(y, h - 1) != inside(y, h)]
    return flat + tall


def _few(count: int, most: int) -> list[int]:
    """0, step, 2 step, ... below count: at most `most` tick places, a round step."""
    least = math.ceil(count / most)
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step >= least), least)
    return list(range(0, count, step))


def save_heat_map(
    path: Path, scores: Sequence[Sequence[float]], unit: str, *, title: str, chosen: Marks | None = None,
    undecided: Marks | None = None,
) -> None:  # fmt: skip
    """Writes the picture as .png or .svg by the name of `path`, whole or not at all; see `draw_heads`.

    Raises:
        ValueError: another suffix, or no scores.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    form = path.suffix.lower()
    if form not in _FORMS:
        raise ValueError(f"{path} is neither {' nor '.join(_FORMS)}; end its name in one of them")
    if not scores or not scores[0]:
        raise ValueError(f"there is no score to draw into {path}; give scores of at least one layer and one head")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a heat map needs matplotlib; run: pip install matplotlib") from error
    style: dict[Any, Any] = {
        "font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": "restorelcc", "hatch.linewidth": 0.5,
        "axes.edgecolor": _RULE, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=map_size(len(scores), len(scores[0])), layout="constrained", facecolor="white")
        draw_heads(figure, figure.subplots(), scores, unit, title=title, chosen=chosen, undecided=undecided)
        with atomic_file(path) as partial:
            unstamped = {"Date": None, "Creator": None} if form == ".svg" else {"Software": None}
            figure.savefig(partial, format=form[1:], dpi=160, metadata=unstamped)
