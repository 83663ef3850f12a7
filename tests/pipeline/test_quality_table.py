"""The intervals of benchmarks/quality/table.py on numbers whose answer is known, and which points plots.py joins."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"
FILE = FOLDER / "table.py"


@pytest.fixture(scope="module")
def table() -> Any:
    spec = importlib.util.spec_from_file_location("quality_table", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_constant_share_has_no_width(table: Any) -> None:
    dense, pruned = torch.rand(40, dtype=torch.float64), 2 + torch.rand(40, dtype=torch.float64)
    method = (pruned - 0.7 * (pruned - dense)).repeat(3, 1)
    count = torch.randint(5, 20, (40,)).double()
    value, draws = table.closed(dense * count, pruned * count, method * count, count)
    assert value == pytest.approx(0.7)
    torch.testing.assert_close(draws, torch.full_like(draws, 0.7))


def test_the_interval_covers_rows_and_seeds(table: Any) -> None:
    count = torch.full((400,), 10.0, dtype=torch.float64)
    dense, pruned = torch.zeros(400, dtype=torch.float64), count.clone()
    noise = torch.randn(400, dtype=torch.float64)
    rows = (5.0 + noise)[None]
    _, draws = table.closed(dense, pruned, rows, count)
    assert float(draws.std()) == pytest.approx(float(noise.std()) / 10 / 20, rel=0.15)  # s / sqrt(n), of a gap of 10
    seeds = torch.stack([rows[0] - 1, rows[0], rows[0] + 1])
    _, wider = table.closed(dense, pruned, seeds, count)
    spread = 0.1 * (2 / 3) ** 0.5 / 3**0.5  # of the mean of three drawn from -0.1, 0, 0.1
    assert float(wider.std()) == pytest.approx((float(draws.std()) ** 2 + spread**2) ** 0.5, rel=0.1)


def test_the_table_names_every_method_and_its_difference(table: Any) -> None:
    def line(method: str, seed: int, nll: float) -> dict[str, Any]:
        rows = {"nll_sum": [nll * c for c in (10, 20, 30)], "count": [10, 20, 30], "rows": "x"}
        return {"method": method, "seed": seed, "texts": {"answers": rows}}

    lines = [line("dense", 0, 2.0), line("pruned", 0, 4.0), line("best", 0, 2.5), line("best", 1, 2.5),
             line("lora", 0, 3.0)]  # fmt: skip
    text = table.tables(lines, "lora")
    assert "| best | 2 | 2.500 | 75.0 % | 75.0 to 75.0 | +25.0 (+25.0 to +25.0) |" in text
    assert "| lora | 1 | 3.000 | 50.0 % | 50.0 to 50.0 |  |" in text
    assert text.index("| best") < text.index("| lora") < text.index("| pruned")


def test_the_order_of_the_lines_is_nothing(table: Any) -> None:
    """A run may be shared among calls, whose files end in any order; differences stay paired by seed."""

    def line(method: str, seed: int, shift: float) -> dict[str, Any]:
        rows = {"nll_sum": [shift + 10.0 * row for row in range(1, 4)], "count": [10, 20, 30], "rows": "x"}
        return {"method": method, "seed": seed, "texts": {"answers": rows}}

    lines = [line("dense", 0, 0.0), line("pruned", 0, 60.0)]
    for seed in range(3):  # every seed of one is 3 better than the same of the other, whatever the seed is worth
        lines += [line("best", seed, 10.0 * seed), line("lora", seed, 10.0 * seed + 3)]
    shuffled = [lines[i] for i in (7, 2, 0, 5, 4, 1, 3, 6)]
    assert table.tables(shuffled, "lora") == table.tables(lines, "lora")
    assert "| +5.0 (+5.0 to +5.0) |" in table.tables(shuffled, "lora")
    with pytest.raises(SystemExit, match="needs the methods dense and pruned"):
        table.tables(lines[1:], "lora")


def choices(method: str, seed: int, correct: list[int], normalised: list[int]) -> dict[str, Any]:
    rows = {"nll_sum": [20.0, 30.0], "count": [10, 10], "rows": "x", "bytes": 40}
    items = {"correct": correct, "normalised": normalised, "items": "y"}
    return {"method": method, "seed": seed, "texts": {"answers": rows}, "choices": {"arc": items}}


def test_accuracies_are_paired_item_by_item(table: Any) -> None:
    """`best` is right wherever `lora` is and on 100 items more: the difference varies by those items alone."""
    many = 400
    lora = [1] * 200 + [0] * 200
    best = [1] * 300 + [0] * 100
    lines = [choices("lora", 0, lora, lora), choices("best", 0, best, lora)]
    lines += [choices(end, 0, lora, lora) for end in ("dense", "pruned")]
    lines[2]["texts"]["answers"] = {**lines[2]["texts"]["answers"], "nll_sum": [10.0, 10.0]}
    text = table.tables(lines, "lora")
    assert "**arc**: 400 items" in text
    row = next(line for line in text.splitlines() if line.startswith("| best | 75.0 % |"))
    _, draws = table.ratio(torch.tensor([best], dtype=torch.float64))
    low, high = table.interval(draws)
    assert f"| 75.0 % | {100 * low:.1f} to {100 * high:.1f} |" in row
    assert (low, high) == (pytest.approx(0.75 - 1.96 * (0.75 * 0.25 / many) ** 0.5, abs=0.005),
                           pytest.approx(0.75 + 1.96 * (0.75 * 0.25 / many) ** 0.5, abs=0.005))  # fmt: skip
    _, other = table.ratio(torch.tensor([lora], dtype=torch.float64))
    paired = (0.25 * 0.75 / many) ** 0.5
    assert float((draws - other).std()) == pytest.approx(paired, rel=0.1)
    assert float((draws - other).std()) < 0.8 * float((draws.var() + other.var()).sqrt())  # unpaired would be wider
    assert "| +25.0 (" in row
    assert row.rstrip().endswith("| +0.0 (+0.0 to +0.0) |")  # per byte they are the same


def test_all_sets_of_choices_are_counted_together(table: Any) -> None:
    """Items, not sets, weigh the same; noisy copies of a set do not count again; seeds keep to themselves."""
    lines = [choices(name, 0, [0, 1], [0, 0]) for name in ("dense", "pruned", "lora", "best")]
    lines.append(choices("best", 1, [0, 0], [0, 0]))
    for line, piqa in zip(lines, ([1] * 6, [0] * 6, [0] * 6, [1] * 6, [1, 1, 1, 0, 0, 0]), strict=True):
        line["choices"]["piqa"] = {"correct": piqa, "normalised": piqa, "items": "p"}
        line["choices"]["piqa+typos"] = {"correct": [0] * 50, "normalised": [0] * 50, "items": "t"}
    lines[0]["texts"]["answers"] = {**lines[0]["texts"]["answers"], "nll_sum": [10.0, 10.0]}
    part = table.tables(lines, "lora").split("**all of these sets**: 8 items")[1]
    assert "| dense | 87.5 % |" in part
    assert "| lora | 12.5 % |" in part
    assert "| best | 62.5 % |" in part  # of 7 and 3 right ones
    assert "| +50.0 (" in part


def test_bits_per_byte_stand_where_the_bytes_are_known(table: Any) -> None:
    lines = [choices(name, 0, [1], [1]) for name in ("dense", "pruned", "best")]
    lines[0]["texts"]["answers"] = {**lines[0]["texts"]["answers"], "nll_sum": [10.0, 10.0]}
    text = table.tables(lines, "lora")
    assert "| method | seeds | NLL | bits per byte | gap closed | 95 % | minus lora |" in text
    assert f"| dense |  | 1.000 | {20 / 0.6931471805599453 / 40:.3f} | 100 % |" in text
    for line in lines:
        del line["texts"]["answers"]["bytes"]
    assert "bits per byte" not in table.tables(lines, "lora")


def test_pruned_models_are_told_apart_and_repeats_refused(table: Any) -> None:
    lines = [choices(name, 0, [1], [1]) for name in ("dense", "pruned", "best")]
    lines[0]["texts"]["answers"] = {**lines[0]["texts"]["answers"], "nll_sum": [10.0, 10.0]}
    shared = {"dense": "d", "pruned": "a", "pruned_name": "p24", "sparsity": 0.5, "tokens": 9, "data": "x", "epochs": 1}
    both = [{**line, "shared": shared} for line in lines]
    both += [{**line, "shared": {**shared, "pruned": "b", "pruned_name": "p60", "sparsity": 0.6}} for line in lines]
    text = table.tables(both, "best")
    assert text.count("**answers**") == 2
    assert "### p60: 60.0 %" in text
    with pytest.raises(SystemExit, match="best of seed 0 is there twice"):
        table.tables([*both, {**both[2], "shared": {**shared, "tokens": 10}}], "best")
    other = {**lines[2], "choices": {"arc": {"correct": [1], "normalised": [1], "items": "z"}}}
    with pytest.raises(SystemExit, match="different items of arc"):
        table.tables([*lines[:2], other], "best")
    rows = {**lines[2], "texts": {"answers": {**lines[2]["texts"]["answers"], "rows": "windows of another draw"}}}
    with pytest.raises(SystemExit, match="different rows of answers"):
        table.tables([*lines[:2], rows], "best")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "r.jsonl does not exist; give what run.py wrote"),
        ("", "r.jsonl holds no results; run run.py first"),
        ("\n", "r.jsonl holds no results"),
        ("[1, 2", "line 1 of .*r.jsonl is no result of run.py; remove it or give another file"),
        ('\n{"a": 1}', "line 2 of .*r.jsonl is no result"),
        ('"words"', "line 1 of .*r.jsonl is no result"),
    ],
)
def test_files_that_hold_no_results(table: Any, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=message):
        table.read_lines([tmp_path / "r.jsonl"])


def test_a_reference_that_is_not_there(table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [choices(name, 0, [1], [1]) for name in ("dense", "pruned", "best")]
    lines[0]["texts"]["answers"] = {**lines[0]["texts"]["answers"], "nll_sum": [10.0, 10.0]}
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table.main([str(tmp_path / "r.jsonl")])
    assert "| best |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        table.main([str(tmp_path / "r.jsonl"), "--against", "lroa"])
    assert "--against lroa is not among the methods: best, dense, pruned" in capsys.readouterr().err


def test_series_differ_in_their_axis_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    plots = importlib.import_module("plots")

    def point(method: str, pruned: str = "p24", **config: Any) -> Any:
        given = {"name": method.split(":")[0], "tokens": 8, "pruned": pruned, "sparsity": 0.5, **config}
        return plots.Point(method, "answers", given, 50.0, 40.0, 60.0)

    def head(probe: str, heads: Any, components: str = "svd", rank: int | None = None, **more: Any) -> Any:
        method = f"compensate:probe={probe},heads={heads},components={components}"
        return point(method, probe=probe, heads=heads, components=components, rank=rank, **more)

    found = [
        head("linear", 0.25), head("linear", "all"), head("random", 0.25), head("random", 0.25, "mean"),
        head("random", 0.25, "svd", 16), head("linear", 0.5, tokens=16), point("lora", rank=8),
        point("lora:tokens=16", rank=8, tokens=16), point("lora", "p50", rank=8), point("lora:rank=16", rank=16),
        point("paper", probe="linear", heads=0.25, components="svd", rank=None), head("linear", "all", sites="both"),
    ]  # fmt: skip
    axes = {axis.name: axis for axis in plots.AXES}

    def joined(name: str) -> dict[str, list[Any]]:
        return {label: [place for place, _ in row] for label, row in plots.series(found, axes[name]).items()}

    assert joined("heads") == {"compensate": [25.0, 100.0]}
    assert joined("probes") == {"compensate": ["linear", "random"]}
    assert list(joined("sites").values()) == [["attention", "both"]]
    assert joined("components") == {"compensate": ["mean", "svd", "svd, rank 16"]}
    assert joined("tokens") == {"lora": [8, 16]}
    assert joined("sparsity") == {"lora": ["p24\n50 % zeros", "p50\n50 % zeros"]}
    assert plots.series(found, axes["probes"])["compensate"][0][1].method == "paper"
