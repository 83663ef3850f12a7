"""Files that are whole or absent, the fingerprints that let a step resume, and progress.

    write(temporary name) -> fsync -> rename           never: open(final name, "w")

A reader therefore never meets half a file: a killed or failed writer leaves at most a `*.partial-<pid>` beside
the target, which the next writer of the same target removes once that process is gone.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from .output_places import refuse_place
from .tensor_memory import apart

if TYPE_CHECKING:
    import rich.progress

__all__ = [
    "MOST_JSON_BYTES", "Progress", "RichProgress", "SilentProgress", "atomic_directory", "atomic_file",
    "atomic_write_json", "atomic_write_tensors", "fingerprint", "read_json", "reserve",
    "versions",
]  # fmt: skip

# Far more than a record, a configuration or a report has: what is larger is not read into memory.
MOST_JSON_BYTES = 64 << 20

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Progress(Protocol):
    """What a long step tells about itself: named tasks with a total, advanced in steps."""

    def task(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A context that yields `advance(n)`; `total` is in the task's own units (rows, layers, tokens)."""
        ...


class SilentProgress:
    """Says nothing."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A task that shows nothing."""
        del description, total
        yield lambda _: None


class RichProgress:
    """Bars on stderr, drawn by rich; tasks may nest, and the bar of an inner one goes when it ends."""

    def __init__(self) -> None:
        self._display: rich.progress.Progress | None = None
        self._depth = 0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar with its count, the time it took and the time it will take."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if self._display is None:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._display = Progress(*columns, console=Console(stderr=True))
            self._display.start()
        display = self._display
        self._depth += 1
        identity = display.add_task(description, total=total)
        try:
            yield lambda count: display.advance(identity, count)
        finally:
            self._depth -= 1
            if self._depth:
                display.remove_task(identity)
            else:
                display.stop()
                self._display = None


_being_written: set[Path] = set()


@contextmanager
def atomic_directory(out: Path, *, overwrite: bool = False, needed: int = 0) -> Iterator[Path]:
    """A directory that appears complete under its name, or not at all.

    Args:
        out: the final directory. Its parents are made. A symbolic link is followed.
        overwrite: replace an existing non-empty `out`. The old one is kept until the new one is complete.
        needed: bytes that will be written, if known: too little room is then said before any work is done.

    Yields:
        `<out>.partial-<pid>`, empty, to write into.

    Raises:
        ValueError: `out` is not empty and `overwrite` is false; `out` is a file; `out` is the current or the
            home directory or holds one of them; this process already writes `out`.
        OSError: no space left, said with the bytes written and the bytes free; nothing is left behind.
    """
    out = Path(out).expanduser().resolve()
    if out in _being_written:
        raise ValueError(f"{out} is already being written by this process; pass another --out")
    _sweep(out)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} exists and is not empty; pass --overwrite or another --out")
    refuse_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_room(out, needed)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    _being_written.add(out)
    try:
        with _disk_full_said(out, needed, lambda: _tree_bytes(partial)):
            yield partial
            for file in sorted(partial.rglob("*")):
                _sync(file)
            _sync(partial)
            _swap(partial, out, overwrite)
    finally:
        _being_written.discard(out)
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, out: Path, overwrite: bool) -> None:
    """partial takes the name of out; an old out is moved aside first and removed last."""
    aside = out.with_name(f"{out.name}.replaced-{os.getpid()}")
    if out.exists():
        if not overwrite and (out.is_file() or any(out.iterdir())):
            raise ValueError(f"{out} appeared while it was being made; pass --overwrite or another --out")
        os.rename(out, aside)
    try:
        os.rename(partial, out)
    except OSError:
        if aside.exists():
            os.rename(aside, out)
        raise
    _sync(out.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Removes what dead writers of `out` left; puts back an old directory that one had only moved aside."""
    pattern = re.compile(re.escape(out.name) + r"\.(partial|replaced)-(\d+)")
    for path in sorted(out.parent.iterdir()) if out.parent.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "replaced" and not out.exists():
            os.rename(path, out)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Whether another process `pid` runs. Our own number is a leftover of an earlier container: dead."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tree_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _check_room(out: Path, needed: int) -> None:
    free = _free_bytes(out.parent)
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{out} needs {needed:,} bytes and {free:,} are free; free some or pass another --out"
        )


@contextmanager
def _disk_full_said(out: Path, needed: int, written: Callable[[], int]) -> Iterator[None]:
    """Turns 'no space left' of the system, safetensors or tokenizers into one sentence with the numbers."""
    try:
        yield
    except Exception as error:  # tokenizers raises a plain Exception
        code = error.errno if isinstance(error, OSError) else _code_in_text(str(error))
        if code not in _FULL:
            raise
        amount = f"at least {needed:,} bytes needed" if needed else f"{written():,} bytes were written"
        raise OSError(
            code, f"no room to write {out}: {amount}, {_free_bytes(out.parent):,} free; free some or write elsewhere"
        ) from error


def _code_in_text(message: str) -> int | None:
    match = re.search(r"os error (\d+)", message)
    return int(match[1]) if match else None


@contextmanager
def atomic_file(path: Path, needed: int = 0) -> Iterator[Path]:
    """A file that appears complete under its name, or not at all; an old one is replaced.

    Yields:
        `<path>.partial-<pid>`, to be written.

    Raises:
        ValueError: `path` is a directory.
        OSError: no space left, said with the bytes; the old file, if any, is untouched.
    """
    path = Path(path).expanduser().resolve()
    if path.is_dir():
        raise ValueError(f"{path} is a directory; pass the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    _check_room(path, needed)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with _disk_full_said(path, needed, lambda: partial.stat().st_size if partial.exists() else 0):
            yield partial
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def reserve(files: Sequence[Path], size: int) -> None:
    """Makes files of `size` zero bytes each that own their room on the disk: one without room kills whoever maps it.

    Raises:
        OSError: no space left, said with the bytes needed and free; nothing is left behind.
    """
    if not files:
        return
    needed = len(files) * size
    _check_room(files[0], needed)
    try:
        for path in files:
            with _disk_full_said(path, needed, lambda: 0), path.open("wb") as file:
                if hasattr(os, "posix_fallocate") and size:
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
    except OSError:
        for path in files:
            path.unlink(missing_ok=True)
        raise


def atomic_write_json(path: Path, obj: Any) -> None:
    """Writes `obj` as indented JSON with sorted keys, whole or not at all.

    Raises:
        ValueError: NaN or infinity in `obj` (they are not JSON).
        OSError: no space left; the old file, if any, is untouched.
    """
    text = json.dumps(obj, indent=1, sort_keys=True, allow_nan=False, default=_plain) + "\n"
    data = text.encode()
    with atomic_file(path, len(data)) as partial:
        partial.write_bytes(data)


def atomic_write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all. Tensors of any device and stride; metadata are strings.

    Raises:
        OSError: no space left, said with the bytes needed and free; the old file, if any, is untouched.
    """
    ready = apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_file(path, sum(tensor.nbytes for tensor in ready.values())) as partial:
        save_file(ready, partial, metadata=dict(metadata))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ValueError: no such file, truncated or not JSON, or not an object.
    """
    try:
        size = Path(path).stat().st_size
        if size > MOST_JSON_BYTES:
            raise ValueError(f"{size:,} bytes")
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; a JSON file is expected") from None
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8, numbers of 5,000 digits
        raise ValueError(f"{path} is truncated or not JSON ({error}); write it again") from error
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; an object is expected")
    return value


def _plain(value: Any) -> Any:
    """JSON for what json does not know, by value and independent of the process."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON; convert it to plain numbers and strings")


def fingerprint(**settings: Any) -> str:
    """sha256 over the canonical JSON of `settings`: equal for equal settings, in any process.

    A `Path` stands for its contents: of a file the bytes, of a directory the name, size and sha256 of each
    *.safetensors and *.json in it; a tensor stands for its dtype, shape and bytes. Digests of files are kept
    per process by (path, mtime_ns, size).

    Raises:
        ValueError: a path that does not exist, NaN or infinity.
        TypeError: a value that has no canonical form.
    """
    text = json.dumps(_canonical(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Path):
        return {"contents": _digest(value)}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": digest}
    if isinstance(value, Mapping):
        return {str(key): _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no fingerprint; pass a finite number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return _canonical(_plain(value))


def _digest(path: Path) -> Any:
    if path.is_dir():
        files = sorted(file for suffix in ("*.safetensors", "*.json") for file in path.glob(suffix) if file.is_file())
        return [[file.name, file.stat().st_size, _file_digest(file)] for file in files]
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return _file_digest(path)


_digests: dict[tuple[Path, int, int], str] = {}


def _file_digest(path: Path) -> str:
    status = path.stat()
    key = (path.resolve(), status.st_mtime_ns, status.st_size)
    if key not in _digests:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        _digests[key] = digest.hexdigest()
    return _digests[key]


def versions() -> dict[str, str]:
    """What a number depends on besides the settings: packages, Python, processor, threads, vector extension."""
    found = {"python": platform.python_version()}
    for package in ("restorelcc", "torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "source tree"
    found["cpu"] = _processor()
    found["threads"] = str(torch.get_num_threads())
    found["isa"] = torch.backends.cpu.get_cpu_capability()
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
