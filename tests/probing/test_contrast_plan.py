"""Batch sizes of the exact contrasts: what they promise for every size of row and memory."""

from __future__ import annotations

import pytest

from restorelcc.contrast_plan import ContrastPlan, RowCost, plan_batches

ROW = RowCost(flight=15_000_000, states=35_000_000)  # about 256 tokens of a model of 135M parameters


@pytest.mark.parametrize("memory", [15_000_000, 40_000_000, 10**8, 10**9, 10**11])
@pytest.mark.parametrize("edits", [1, 9, 32])
@pytest.mark.parametrize("length", [1, 2, 31, 256, 3000])
def test_a_plan_keeps_to_its_memory(length: int, edits: int, memory: int) -> None:
    plan = plan_batches(ROW, rows=40, length=length, edits=edits, memory=memory)
    kept = 0 if plan.spill else plan.rows * ROW.states
    assert kept + plan.rows * plan.edits * ROW.flight <= memory
    assert 1 <= plan.rows <= 40
    assert 1 <= plan.edits <= edits
    assert plan.rows == 1 or plan.edits == edits


def test_known_plans() -> None:
    assert plan_batches(ROW, rows=8, length=256, edits=9, memory=2 << 30) == ContrastPlan(1, 9, False)
    assert plan_batches(ROW, rows=8, length=32, edits=9, memory=4 << 30) == ContrastPlan(8, 9, False)
    assert plan_batches(ROW, rows=8, length=256, edits=2, memory=2 << 30) == ContrastPlan(8, 2, False)
    assert plan_batches(ROW, rows=8, length=256, edits=9, memory=50_000_000) == ContrastPlan(1, 3, True)


def test_too_little_memory_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"a row of 256 tokens needs about 15.0 MB, but only 14.0 MB are"):
        plan_batches(ROW, rows=1, length=256, edits=9, memory=14_000_000)
