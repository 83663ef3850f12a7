"""What a repeated call may reuse, and that only one call works in a place.

    mark.json = {"fingerprint": of all that went into a step, "contents": of the files that it left, "code": of the
                 package that made them}

A step is finished when all three are as they should be: a file that was damaged or replaced since is made again, and so
is one that another version of the package left.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from .artifacts import atomic_write_json, fingerprint, read_json

__all__ = ["code_stamp", "contents", "is_finished", "mark_finished", "only_call", "read_record"]

_PRESENTATION = ("charts.py", "cli.py", "cli_options.py", "cli_steps.py", "compare.py", "demo_report.py", "doctor.py",
                 "heat_map.py", "report.py")  # fmt: skip


@cache
def code_stamp() -> str:
    """Of everything in this package that a number could depend on, as it was when first asked for."""
    folder = Path(__file__).parent
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".so")]
    return fingerprint(**{str(f.relative_to(folder)): f for f in files if f.name not in _PRESENTATION})


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, a record that a call can make again: empty when it is absent or damaged."""
    try:
        return read_json(path)
    except (ValueError, OSError):
        return {}


def contents(*files: Path) -> str | None:
    """Fingerprint of what is in `files` (files or directories); None when one of them is not there."""
    return fingerprint(files=list(files)) if all(file.exists() for file in files) else None


def is_finished(mark: Path, stamp: str, *files: Path) -> bool:
    """Whether `mark` says that a step of this fingerprint left exactly these files."""
    record, found = read_record(mark), contents(*files)
    return found is not None and record == _mark(stamp, found)


def mark_finished(mark: Path, stamp: str, *files: Path) -> None:
    """Writes what `is_finished` reads."""
    atomic_write_json(mark, _mark(stamp, contents(*files)))


def _mark(stamp: str, found: str | None) -> dict[str, Any]:
    return {"fingerprint": stamp, "contents": found, "code": code_stamp()}


@contextmanager
def only_call(work: Path, out: Path) -> Iterator[None]:
    """Refuses a second call that works in `work` at the same time. The system lets go of it when a call dies.

    Raises:
        ValueError: another process works there.
    """
    try:
        import fcntl
    except ImportError:  # a system without flock: two calls there are the user's own care
        yield
        return
    made = not work.exists()
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"another process is making {out} now (it works in {work}); wait for it or pass another --out"
                ) from None
        yield
    finally:
        if made:
            with suppress(OSError):  # not empty: it is of use to the next call
                work.rmdir()
        os.close(descriptor)
