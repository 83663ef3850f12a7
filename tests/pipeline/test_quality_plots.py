"""Pictures of benchmarks/quality/plots.py of made-up lines: which are drawn, of what, against what."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"
SHARED = {"dense": "d", "tokens": 8192, "data": "train.jsonl", "epochs": 1}
PRUNED = (("p24", 0.5), ("p60", 0.6))


def line(method: str, share: float, pruned: tuple[str, float], **config: Any) -> dict[str, Any]:
    """What run.py writes of a method that closes this share of the gap between 2 and 4 nats, on two texts."""
    name, zeros = pruned
    rows = {"nll_sum": [count * (4 - 2 * share) for count in (10, 20, 30)], "count": [10, 20, 30], "rows": "x"}
    return {
        "method": method, "seed": 0, "texts": {"answers": rows, "wiki": rows},
        "config": {"name": method.partition(":")[0], **config},
        "shared": {**SHARED, "pruned": name, "pruned_name": name, "sparsity": zeros},
    }  # fmt: skip


def compensation(share: float, **given: Any) -> dict[str, Any]:
    settings = {"probe": "attribution", "heads": "all", "components": "svd", "rank": None, "sites": "attention"}
    method = ":".join(["compensate", *([",".join(f"{k}={v}" for k, v in given.items())] if given else [])])
    return line(method, share, PRUNED[0], tokens=8192, **{**settings, **given})


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    ends = [line(name, share, pruned) for pruned in PRUNED for name, share in (("dense", 1.0), ("pruned", 0.0))]
    return [
        *ends,
        *(line("best", share, pruned, tokens=8192) for share, pruned in zip((0.7, 0.6), PRUNED, strict=True)),
        line("best:tokens=2048", 0.5, PRUNED[0], tokens=2048), line("lora", 0.4, PRUNED[0], tokens=8192),
        compensation(0.45), compensation(0.3, probe="linear", heads=0.25), compensation(0.35, heads=0.25),
        compensation(0.2, components="autoencoder", rank=16), compensation(0.25, components="mean"),
        compensation(0.42, sites="ffn"), compensation(0.47, sites="both"),
    ]  # fmt: skip


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("plots")


EXPECTED = {  # picture -> its label, and all that stands at its axis or in its legend
    "methods": ("gap closed, % (0: pruned, 100: dense)", {"best", "lora", "compensate", "p24", "p60"}),
    "tokens": ("tokens to learn from", {"best", "2,048", "8,192"}),
    "sparsity": ("pruned model", {"best", "p24", "p60", "50 % zeros", "60 % zeros"}),
    "heads": ("heads that may change, %", {"compensate", "25", "100"}),
    "probes": ("probe", {"compensate", "attribution", "linear"}),
    "sites": ("where vectors are added", {"compensate", "attention", "ffn", "both"}),
    "components": ("directions", {"compensate", "svd", "mean", "autoencoder, rank 16"}),
}


def test_each_picture_has_its_axis_and_series(lines: list[dict[str, Any]], plots: Any, tmp_path: Path) -> None:
    """Text is text in an SVG, so that what is drawn can be read."""
    made = plots.draw_all(lines, tmp_path, form="svg")
    assert [path.stem for path in made] == list(EXPECTED)
    for path in made:
        texts = [found.strip() for found in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())]
        label, wanted = EXPECTED[path.stem]
        assert {label, "answers", "wiki", *wanted} <= set(texts), path.stem
        if path.stem != "methods":
            assert texts.count(label) == texts.count("gap closed, %") == 1
            assert "lora" not in texts  # it has one point only, which is no series
        for name in wanted & {"best", "compensate"} if path.stem != "methods" else ():
            assert texts.count(name) == 1, "one legend for both panels"


def test_pictures_are_whole_and_points_lie_where_they_were_measured(
    lines: list[dict[str, Any]], plots: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    stock = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (seen.update({path.stem: figure}), stock(figure, path)))
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    plots.main([str(file), "--out", str(tmp_path / "plots")])
    for name, figure in seen.items():
        height, width, _ = imread(tmp_path / "plots" / f"{name}.png").shape
        assert (height, width) == tuple(round(160 * float(inches)) for inches in figure.get_size_inches()[::-1]), name
        box = figure.get_tightbbox()
        assert box.x0 >= -0.05, f"{name} is cut"
        assert box.x1 <= figure.get_size_inches()[0] + 0.05, f"{name} is cut"

    def drawn(name: str) -> list[tuple[float, float]]:
        """(x, y) of all points of the first panel, by its series."""
        containers = seen[name].axes[0].containers
        return [pair for each in containers for pair in zip(*each.lines[0].get_data(), strict=True)]

    tokens = drawn("tokens")
    assert [x for x, _ in tokens] == pytest.approx([2048, 8192])
    assert [y for _, y in tokens] == pytest.approx([50, 70])
    assert [y for _, y in drawn("sparsity")] == pytest.approx([70, 60])
    assert drawn("heads") == [pytest.approx((25, 35)), pytest.approx((100, 45))]
    assert sorted(y for _, y in drawn("probes")) == pytest.approx([30, 35])
    assert sorted(y for _, y in drawn("sites")) == pytest.approx([42, 45, 47])
    assert sorted(y for _, y in drawn("components")) == pytest.approx([20, 25, 45])
    ticks = [text.get_text() for text in seen["sites"].axes[0].get_xticklabels()]
    assert ticks == ["attention", "both", "ffn"]


def test_no_axis_is_drawn_without_two_points(lines: list[dict[str, Any]], plots: Any, tmp_path: Path) -> None:
    of_one = [each for each in lines if each["shared"]["pruned"] == "p24"]
    few = [each for each in of_one if each["method"] in ("dense", "pruned", "lora")]
    assert [path.name for path in plots.draw_all(few, tmp_path)] == ["methods.png"]
    with pytest.raises(SystemExit, match="no result of news is there; the lines hold answers, wiki"):
        plots.draw_all(few, tmp_path, texts=["news"])
