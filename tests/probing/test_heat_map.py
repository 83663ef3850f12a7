"""Heat maps: both forms, which colours for which unit, outlines and hatches, and the same drawing in the report."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from restorelcc import charts
from restorelcc.heat_map import draw_heads, has_zero, save_heat_map, title_of
from restorelcc.probes import PROBES
from restorelcc.score_file import HeadScores

NATS = "change of the contrast, nats per token"
SCORES = [[0.5, -0.25, 0.0], [0.1, 0.2, -0.3]]
CHOSEN = [[True, False, False], [False, True, True]]
UNDECIDED = [[False, True, False], [False, False, True]]


def drawn(scores: list[list[float]], unit: str, **more: object) -> tuple[object, object]:
    """(figure, mesh) of one drawing."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    draw_heads(figure, axes, scores, unit, title="t", **more)  # type: ignore[arg-type]
    return figure, axes.collections[0]


def test_png_and_svg(tmp_path: Path) -> None:
    for name in ("a.png", "a.SVG"):
        save_heat_map(tmp_path / name, SCORES, NATS, title="what it is", chosen=CHOSEN, undecided=UNDECIDED)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert min(width, height) > 300
    svg = (tmp_path / "a.SVG").read_text()
    for words in ("what it is", "contrast", "layer", "head", "chosen (3)", "undecided (2)", "<pattern"):
        assert words in svg
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.SVG", "a.png"]


def test_marks_are_there_only_where_there_is_something_to_mark(tmp_path: Path) -> None:
    everything, nothing = [[True] * 3] * 2, [[False] * 3] * 2
    save_heat_map(tmp_path / "a.svg", SCORES, NATS, title="t", chosen=everything, undecided=nothing)
    svg = (tmp_path / "a.svg").read_text()
    assert "chosen" not in svg
    assert "undecided" not in svg
    assert "<pattern" not in svg


def test_the_same_scores_give_the_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save_heat_map(tmp_path / name, SCORES, NATS, title="t", undecided=UNDECIDED)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_colours_say_whether_zero_means_something() -> None:
    assert {kind for kind, (_, unit) in PROBES.items() if has_zero(unit)} == {"attribution", "adaptive", "perplexity"}
    for scores in (SCORES, [[0.25, 0.5]], [[-0.25, -0.5]], [[0.0, 0.0]]):
        _, mesh = drawn(scores, NATS)
        assert mesh.cmap.name == "RdBu"
        assert mesh.norm.vcenter == 0
        assert mesh.norm.vmin == -mesh.norm.vmax
        assert mesh.norm.vmax > 0
    for unit in ("uniform random number", "validation accuracy of a linear probe"):
        _, mesh = drawn([[0.5, 0.75, 1.0]], unit)
        assert mesh.cmap.name == "Greens"
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0.5, 1.0)
        _, mesh = drawn([[0.5, 0.5]], unit)
        assert mesh.norm.vmin < mesh.norm.vmax


def test_an_outlier_leaves_the_others_their_colours() -> None:
    scores = torch.linspace(0.0, 0.01, 200).reshape(20, 10)
    assert drawn(scores.tolist(), NATS)[1].norm.vmax == pytest.approx(0.01)
    scores[3, 4] = 7.0
    _, mesh = drawn(scores.tolist(), NATS)
    assert mesh.norm.vmax < 0.02
    assert mesh.colorbar.extend == "max"


def test_scores_that_are_no_numbers_are_left_out() -> None:
    _, mesh = drawn([[float("nan"), 0.5, -1.0]], NATS)
    assert mesh.norm.vmax == 1.0
    _, mesh = drawn([[float("nan")]], NATS)
    assert mesh.norm.vmax > 0


def test_outlines_go_around_the_chosen_heads() -> None:
    figure, _ = drawn(SCORES, NATS, chosen=[[True, True, False], [False, False, False]])
    lines = figure.axes[0].collections[1]
    assert len(lines.get_segments()) == 6  # two cells side by side share no edge


def test_titles_say_what_was_measured() -> None:
    scores = torch.zeros(1, 1, dtype=torch.float64)
    margin = HeadScores("perplexity", NATS, scores, {}, {"contrast": "margin", "edit": "ablate"})
    assert title_of(margin) == "perplexity: margin of right over wrong answers, heads taken out"
    assert title_of(HeadScores("random", "uniform", scores, {}, {"contrast": "text"})) == "random scores"
    assert title_of(HeadScores("attribution", NATS, scores)) == "attribution scores"


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for name in ("a.pdf", "a", "a.png.txt"):
        with pytest.raises(ValueError, match=r"neither \.png nor \.svg"):
            save_heat_map(tmp_path / name, SCORES, NATS, title="t")
    with pytest.raises(ValueError, match="no score to draw"):
        save_heat_map(tmp_path / "a.png", [], NATS, title="t")
    assert list(tmp_path.iterdir()) == []


def test_the_report_draws_the_same_map() -> None:
    svg = charts.head_heatmap("h", "attribution", [[0.1, 0.9]], "predicted fall of the NLL, nats per token")
    assert svg.startswith("<svg ")
    assert "NLL, nats per token" in svg
    assert "chosen" not in svg  # it is a diagnosis: the recipe chose no heads by it
    assert "#010203" not in svg
    assert "var(--ink)" in svg
