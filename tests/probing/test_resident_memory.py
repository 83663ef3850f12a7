"""The peak of a part of a run: what it allots is counted, what was let go before it is not."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from restorelcc import resident_memory
from restorelcc.resident_memory import watched_peak

MUCH = 96 << 20


def test_a_part_counts_what_it_takes_alone() -> None:
    """Against what is resident while it is taken: the system may take other pages of the process back meanwhile.

    Mapped by hand: an allocator may serve an array from what earlier tests let go, and keep it afterwards.
    """
    with watched_peak() as first, mmap.mmap(-1, MUCH, access=mmap.ACCESS_COPY) as taken:
        for page in range(0, MUCH, mmap.PAGESIZE):
            taken[page] = 1
        with_it = resident_memory._status("VmRSS")
    if not first.own:
        pytest.skip("this system does not set the high-water mark back")
    assert first.peak > with_it - MUCH // 8
    with watched_peak() as second:
        pass
    assert second.peak < with_it - MUCH // 2


def test_a_system_without_the_mark_gives_that_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resident_memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(resident_memory, "_RESET", tmp_path / "no" / "none")
    with watched_peak() as found:
        pass
    assert not found.own
    assert found.before == 0
    assert found.peak > 1 << 20


def test_a_part_that_fails_is_counted_too() -> None:
    with pytest.raises(ZeroDivisionError), watched_peak() as found:
        raise ZeroDivisionError
    assert found.peak >= found.before
