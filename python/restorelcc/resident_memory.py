"""How much memory a part of a run takes: the peak of the resident set since the part began.

Linux keeps a high-water mark of the resident set and lets a process set it back. Elsewhere the mark is that of the
whole process, and `Peak.own` says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Peak", "peak_rss_bytes", "watched_peak"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """before, peak: resident bytes at the beginning and at most since then; 0 where the system does not tell.

    own: whether `peak` is of this part alone, and not of all that the process did before.
    """

    before: int = 0
    peak: int = 0
    own: bool = False


@contextmanager
def watched_peak() -> Iterator[Peak]:
    """Yields a `Peak` whose `peak` is filled when the block ends. Parts do not nest: each sets the mark back."""
    found = Peak(_status("VmRSS"))
    try:
        _RESET.write_text("5")
        found.own = True
    except OSError:  # not Linux, or a system that does not allow it
        pass
    try:
        yield found
    finally:
        # the system counts in batches of pages: a part that takes nothing may seem to end below its beginning
        found.peak = max(found.before, _status("VmHWM") or peak_rss_bytes())


def _status(key: str) -> int:
    """Bytes of a line such as `VmHWM:   1234 kB`."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
