"""The report page: self-contained, honest about bad results, right numbers in the README table."""

from __future__ import annotations

import html.parser
import json
import math
from pathlib import Path
from typing import Any

import pytest

from restorelcc import report as report_module

jinja2 = pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def sample_report(layers: int = 30, heads: int = 9) -> dict[str, Any]:
    """A synthetic report with the shape of the real one; its numbers are invented and only for tests."""
    wave = [[math.sin(0.9 * y) * math.cos(1.7 * h) / (1 + 0.2 * y) for h in range(heads)] for y in range(layers)]
    matrices = [
        {
            "name": f"model.layers.{y}.{part}",
            "rows": rows,
            "columns": columns,
            "zeros": rows * columns // 2,
            "sparsity": 0.5,
        }
        for y in range(layers)
        for part, rows, columns in (("self_attn.q_proj", 576, 576), ("mlp.down_proj", 576, 1536))
    ]
    groups = [
        {
            "name": name,
            "count": layers,
            "weights": layers * size,
            "zeros_before": layers * size // 2,
            "zeros_after": layers * size // 2,
            "sparsity": 0.5,
        }
        for name, size in (("self_attn.q_proj", 576 * 576), ("mlp.down_proj", 576 * 1536))
    ]
    rows = [
        ("dense", "dense", 3.4),
        ("pruned", "pruned", 5.1),
        ("restored", "restored", 4.2),
        ("control", "dense, same training", 3.38),
    ]
    return {
        "format": report_module.FORMAT,
        "version": report_module.VERSION,
        "created": "2000-01-01 00:00 UTC",
        "reproduce": "make demo",
        "model": {"name": "Sample-1M", "note": "Sample-1M, invented for tests"},
        "results": [
            {
                "key": key,
                "label": label,
                "nll": nll,
                "perplexity": math.exp(nll),
                "nll_low": nll - 0.15,
                "nll_high": nll + 0.17,
                "sparsity": 0.0 if key in ("dense", "control") else 0.5,
            }
            for key, label, nll in rows
        ],
        "gap": {
            "value": 0.529,
            "low": 0.5,
            "high": 0.56,
            "improvement": 0.9,
            "improvement_low": 0.85,
            "improvement_high": 0.95,
        },
        "control": {"gain": 0.02, "gain_low": -0.01, "gain_high": 0.05},
        "evaluation": {"name": "prose for tests", "tokens": 12288, "windows": 24, "window": 512},
        "training": {
            "name": "text for tests",
            "tokens": 16384,
            "heldout_tokens": 2048,
            "steps": [[i, 4 + math.exp(-i / 30)] for i in range(100)],
            "heldout": [[i, 4.1 + math.exp(-i / 30)] for i in range(0, 100, 10)],
            "objective": "50% NLL, 50% KL to the dense model",
            "start_nll": 5.6,
            "refitted_nll": 5.1,
            "restored_nll": 4.1,
            "learning_rates": [{"rate": 1e-3, "nll": 4.5, "chosen": False}, {"rate": 1e-2, "nll": 4.2, "chosen": True}],
        },
        "heads": {
            "scores": wave,
            "unit": "nats per token, first order",
            "tokens": 512,
            "explanation": "Blue: the lost component lowers the loss.",
        },
        "sparsity": {"overall": 0.5, "identical": True, "matrices": len(matrices), "groups": groups, "rows": matrices},
        "verification": {
            "transformers": "0.0",
            "logits": 49152 * 512,
            "kernel_error": 1.1e-4,
            "stock_error": 9e-5,
            "budget": 2.8e-4,
            "largest_logit": 31.0,
            "within_budget": True,
            "biases": 60,
        },
        "samples": [
            {
                "prompt": "Why <is> the sky blue?",
                "dense": "Because of light.",
                "pruned": "sky sky",
                "restored": "Light & air.",
                "new_tokens": 40,
            }
        ],
        "timings": [{"step": "dense", "seconds": 40.0}, {"step": "restore", "seconds": 200.0}],
        "step_timings": {"refit": 120.0, "tuning": 75.0},
        "settings": {"method": "wanda", "pattern": "2:4", "recipe": "best", "seed": 0},
        "versions": {"python": "3.x", "cpu": "a test CPU", "threads": "2"},
    }


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value:
                self.links.append(value)
        if tag not in ("meta", "br", "link", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_page_is_self_contained_and_well_formed() -> None:
    page = report_module.render(sample_report())
    parser = _Links()
    parser.feed(page)
    assert parser.open == []
    assert [link for link in parser.links if not link.startswith(("#", "data:"))] == []
    assert "<script" not in page
    assert "@import" not in page
    assert "url(http" not in page
    assert "Why &lt;is&gt; the sky blue?" in page
    assert page.count("<svg") == 3
    assert "invented for tests" in page
    assert "5.6000 pruned, 5.1000 refitted, 4.1000 tuned" in page
    assert page.index("of it: refit") > page.index("<td>restore</td>")


def test_page_does_not_depend_on_the_moment() -> None:
    assert report_module.render(sample_report()) == report_module.render(sample_report())


@pytest.mark.parametrize(
    ("improvement", "low", "words"),
    [(-0.1, -0.2, "WORSE THAN ITS INPUT"), (0.01, -0.02, "NO CERTAIN GAIN"), (0.9, 0.85, None)],
)
def test_a_bad_result_comes_first(improvement: float, low: float, words: str | None) -> None:
    report = sample_report()
    report["gap"].update(improvement=improvement, improvement_low=low, low=low)
    page = report_module.render(report)
    if words is None:
        assert 'class="alarm"' not in page
    else:
        assert words in page
        assert page.index(words) < page.index("<h1>")


@pytest.mark.parametrize(
    ("gain", "low", "words"),
    [
        (0.0, 0.0, "It gained nothing"),
        (0.3, 0.2, "Up to 33% of the improvement may therefore be adaptation"),
        (-0.1, -0.2, "It lost 0.1000 nats"),
    ],
)
def test_the_control_is_explained(gain: float, low: float, words: str) -> None:
    report = sample_report()
    report["control"].update(gain=gain, gain_low=low, gain_high=-low if gain < 0 else low)
    assert words in " ".join(report_module.render(report).split())


def test_missing_parts_still_make_a_page() -> None:
    report = sample_report(layers=5, heads=8)
    del report["heads"], report["step_timings"]
    report["samples"] = []
    report["verification"] = None
    report["training"].update(steps=[], heldout=[])
    page = report_module.render(report)
    assert "Which heads" not in page
    assert page.count("<svg") == 1


def test_readme_table(tmp_path: Path) -> None:
    report_path, readme = tmp_path / "report.json", tmp_path / "README.md"
    report_path.write_text(json.dumps(sample_report()))
    readme.write_text(f"before\n{report_module.BEGIN}\nold\n{report_module.END}\nafter\n")
    for _ in range(2):
        assert report_module.main([str(report_path), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| restored | 66.69 | 4.200 | **53%** (50% to 56%) | 50% |" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("[]", "is not a report"), ('{"format": "restorelcc-report", "version": 7}', "version 7")],
)
def test_refuses_what_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    assert report_module.main([str(path)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_the_legend_of_the_training_curve_hides_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pruned model's line is the highest: a legend inside the axes lies on it."""
    from restorelcc import charts

    figures: list[Any] = []
    stock = charts._svg

    def keep(figure: Any, *rest: Any) -> str:
        axes = figure.axes[0]
        figure.canvas.draw()
        figures.append((axes.get_legend().get_window_extent().y0, axes.get_window_extent().y1))
        return stock(figure, *rest)

    monkeypatch.setattr(charts, "_svg", keep)
    charts.training_curve([[8, 3.5], [16, 3.6], [43, 2.9]], [[0, 3.79], [43, 2.92]], 3.79, "50% NLL, 50% KL")
    assert [legend >= top for legend, top in figures] == [True]
