"""benchmarks/quality/tasks.py: disjoint items, resuming, and intervals on outcomes whose answer is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from restorelcc.evaluation import accuracy_gain

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "quality" / "tasks.py"


@pytest.fixture(scope="module")
def tasks() -> Any:
    spec = importlib.util.spec_from_file_location("quality_tasks", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["quality_tasks"] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_examples_and_items_share_no_query(tasks: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"query": f"q{index // 2}", "choices": ["a", f"b{index}"], "gold": 0} for index in range(400)]  # twins
    path.write_text("\n".join(map(json.dumps, rows)))
    task = tasks.Task.parse(f"t={path}:bytes")
    test, rest = task.split(40)
    assert len(test) == 40
    assert not {item.query for item in test} & {item.query for item in rest}
    assert task.split(40) == (test, rest)
    with pytest.raises(ValueError, match="too few for 350 and 100 examples"):
        task.split(350)


@pytest.mark.parametrize("given", ["t", "t=x.jsonl", "t=x.jsonl:acc", "=x.jsonl:sum"])
def test_a_task_says_which_accuracy_counts(tasks: Any, given: str) -> None:
    with pytest.raises(ValueError, match="is no task; give NAME"):
        tasks.Task.parse(given)


def line(task: str, method: str, seed: int, outcomes: list[int]) -> dict[str, Any]:
    return {
        "task": task, "method": method, "seed": seed, "metric": "sum", "items": len(outcomes), "correct": outcomes,
        "correct_by_bytes": [0] * len(outcomes), "shared": {"recipe": 1},
    }  # fmt: skip


def test_the_table_shows_paired_gains(tasks: Any) -> None:
    lines = [
        line("one", "pruned", 0, [0] * 100), line("one", "task", 0, [1] * 100), line("one", "dense", 0, [1] * 100),
        line("one", "control", 0, [1] * 50 + [0] * 50),
    ]  # fmt: skip
    rows = tasks.table(lines).splitlines()
    assert "| one | sum | 100 | task | 1 | 100.0 % | +100.0 (+100.0 to +100.0) |" in rows
    assert "| one | sum | 100 | pruned | 1 | 0.0 % |  |" in rows
    (control,) = [row for row in rows if "control" in row]
    assert "50.0 % | -50.0 (" in control  # against dense, not against pruned
    other = [{**each, "shared": {"recipe": 1, "pruned": "another"}} for each in lines if each["method"] == "task"]
    assert "| one | sum | 100 | task | 1 | 100.0 % |  |" in tasks.table([*lines, *other])  # its base is not there
    newer = {**line("one", "task", 0, [0] * 100), "shared": {"recipe": 2}}
    assert "| one | sum | 100 | task | 1 | 0.0 % | +0.0 (+0.0 to +0.0) |" in tasks.table([*lines, newer])


def test_half_a_line_is_none(tasks: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = line("one", "pruned", 0, [1, 0])
    path.write_text(json.dumps(whole) + "\n" + json.dumps(line("one", "task", 0, [1, 1]))[:40])
    assert tasks.read_lines(path) == [whole]
    assert tasks.read_lines(tmp_path / "absent.jsonl") == []


def test_pairs_make_the_interval_narrow() -> None:
    """The same answers with 20 of 400 mended: the spread is that of the difference, not that of two accuracies."""
    other = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.5).bool()
    mine = other.clone()
    mine[(~other).nonzero()[:20, 0]] = True
    found = accuracy_gain(mine, other)
    assert found.value == pytest.approx(0.05)
    spread = (0.05 * 0.95 / 400) ** 0.5
    assert found.low == pytest.approx(0.05 - 1.96 * spread, abs=0.004)
    assert found.high == pytest.approx(0.05 + 1.96 * spread, abs=0.004)
    assert accuracy_gain(other, other).low == accuracy_gain(other, other).high == 0
    with pytest.raises(ValueError, match="400 and 399 answers do not pair"):
        accuracy_gain(mine, other[:399])


def test_seeds_that_disagree_widen_the_interval() -> None:
    other = torch.zeros(1000, dtype=torch.bool)
    good, bad = torch.ones(1000, dtype=torch.bool), torch.zeros(1000, dtype=torch.bool)
    found = accuracy_gain(torch.stack([good, bad]), other)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (0.0, 1.0)
    assert accuracy_gain(good[None], other).low == 1.0
