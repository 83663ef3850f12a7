"""The intervals of benchmarks/quality/table.py on numbers whose answer is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "quality" / "table.py"


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
    with pytest.raises(SystemExit, match="needs the methods dense and pruned"):
        table.tables(lines[1:], "lora")
