"""Files are whole or absent; fingerprints tell contents; progress draws on stderr only."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from restorelcc.artifacts import (
    RichProgress,
    SilentProgress,
    atomic_directory,
    atomic_write_json,
    atomic_write_tensors,
    fingerprint,
    read_json,
    reserve,
    versions,
)
from restorelcc.output_places import refuse_inputs


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes fails as a full disk does (EFBIG), for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_directory_appears_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_directory(out) as partial:
        (partial / "a").write_text("1")
        assert not out.exists()
        assert partial.name == f"out.partial-{os.getpid()}"
    assert (out / "a").read_text() == "1"
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "a").write_text("1")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert os.listdir(tmp_path) == []


def test_an_existing_directory_is_refused_or_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic_directory(out) as partial:  # empty: nothing to lose
        (partial / "old").write_text("1")
    with pytest.raises(ValueError, match="--overwrite"), atomic_directory(out):
        pass
    with pytest.raises(KeyError), atomic_directory(out, overwrite=True):
        raise KeyError
    assert os.listdir(out) == ["old"]
    with atomic_directory(out, overwrite=True) as partial:
        (partial / "new").write_text("2")
    assert os.listdir(out) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_not_ours_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="is a file"), atomic_directory(file, overwrite=True):
        pass
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="current directory"), atomic_directory(tmp_path, overwrite=True):
        pass
    assert file.exists()
    monkeypatch.chdir("/")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "here")
    with pytest.raises(ValueError, match="home directory"), atomic_directory(tmp_path, overwrite=True):
        pass


def test_one_directory_has_one_writer(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out"):
        with pytest.raises(ValueError, match="already being written"), atomic_directory(tmp_path / "out"):
            pass
        with atomic_directory(tmp_path / "other"):
            pass
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_leftovers_of_dead_writers_are_swept(tmp_path: Path) -> None:
    dead = dead_pid()
    stale, alive = tmp_path / f"out.partial-{dead}", tmp_path / f"out.partial-{os.getppid()}"
    for path in (stale, alive):
        path.mkdir()
        (path / "half").write_text("x")
    other = tmp_path / f"another.partial-{dead}"
    other.mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert not stale.exists()
    assert alive.exists()
    assert other.exists()


def test_a_killed_replacement_is_undone(tmp_path: Path) -> None:
    aside = tmp_path / f"out.replaced-{dead_pid()}"
    aside.mkdir()
    (aside / "old").write_text("1")
    with pytest.raises(ValueError, match="--overwrite"):  # the old contents are back, and protected
        atomic_directory(tmp_path / "out").__enter__()
    assert os.listdir(tmp_path / "out") == ["old"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(1000):
        message = r"no room to write .*out: 1,000 bytes were written, [\d,]+ free"
        with pytest.raises(OSError, match=message) as caught, atomic_directory(tmp_path / "out") as partial:
            (partial / "big").write_bytes(bytes(5000))
        assert caught.value.errno == errno.EFBIG
        with pytest.raises(OSError, match="40,000 bytes needed"):
            atomic_write_tensors(tmp_path / "t.safetensors", {"x": torch.zeros(10000)}, {})
        with pytest.raises(OSError, match="bytes needed"):
            atomic_write_json(tmp_path / "a.json", {"x": "y" * 5000})
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_said_beforehand(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="needs 1,152,921,504,606,846,976 bytes and") as caught:
        atomic_directory(tmp_path / "out", needed=1 << 60).__enter__()
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_another_error_of_the_system_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=r"^no$"), atomic_directory(tmp_path / "out"):
        raise PermissionError("no")


def test_json_is_whole_and_canonical(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    atomic_write_json(path, {"b": torch.tensor([1, 2]), "a": Path("x"), "c": torch.float32})
    assert read_json(path) == {"a": "x", "b": [1, 2], "c": "torch.float32"}
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(path, {"a": float("nan")})
    assert read_json(path)["a"] == "x"
    path.write_text(json.dumps({"a": [1, 2, 3]})[:-4])
    with pytest.raises(ValueError, match="truncated or not JSON"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds a JSON list"):
        read_json(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_tensors_of_any_stride_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    atomic_write_tensors(tmp_path / "t.safetensors", {"t": base.T, "same": base, "again": base}, {"kind": "x"})
    found = load_file(tmp_path / "t.safetensors")
    assert torch.equal(found["t"], base.T)
    assert torch.equal(found["again"], base)
    assert os.listdir(tmp_path) == ["t.safetensors"]


def test_fingerprints_follow_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in "ab":
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "note.txt").write_text(name)
    assert fingerprint(model=tmp_path / "a", x=1) == fingerprint(x=1, model=tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{ }")
    assert fingerprint(model=tmp_path / "a") != fingerprint(model=tmp_path / "b")
    assert fingerprint(t=torch.ones(2)) != fingerprint(t=torch.ones(2, dtype=torch.float64))
    assert fingerprint(t=torch.ones(4)) != fingerprint(t=torch.ones(2, 2))
    assert fingerprint(t=(1, None, "x", {"a": 1.5})) == fingerprint(t=[1, None, "x", {"a": 1.5}])
    assert fingerprint(t=torch.ones(2, dtype=torch.bfloat16)) != fingerprint(t=torch.ones(2, dtype=torch.float16))
    with pytest.raises(ValueError, match="does not exist"):
        fingerprint(model=tmp_path / "none")
    with pytest.raises(ValueError, match="finite"):
        fingerprint(x=float("inf"))
    with pytest.raises(TypeError, match="object"):
        fingerprint(x=object())


def test_progress_nests_and_keeps_stdout_clean(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RichProgress()
    with progress.task("outer", 2) as advance:
        advance(1)
        with progress.task("inner", 1) as further:
            further(1)
    with progress.task("next", 1) as advance, SilentProgress().task("silent", 1) as quiet:
        advance(1)
        quiet(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "outer" in captured.err
    assert "next" in captured.err


def test_versions_are_strings() -> None:
    found = versions()
    assert set(found) == {"python", "restorelcc", "torch", "transformers", "cpu", "threads", "isa"}
    assert all(isinstance(value, str) and value for value in found.values())


def test_reserved_files_own_their_room(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    reserve(files, 1 << 16)
    assert [file.stat().st_blocks * 512 >= 1 << 16 for file in files] == [True, True], "a sparse file owns nothing"
    for size in (1 << 20, 1 << 60):
        with largest_file(1 << 19), pytest.raises(OSError, match=f"{2 * size:,} bytes") as caught:
            reserve(files, size)
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
        assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_in_the_tokenizer_is_said(tmp_path: Path) -> None:
    """tokenizers raises a plain Exception, which is neither an OSError nor a SafetensorError."""

    def full() -> None:
        with atomic_directory(tmp_path / "out", needed=10):
            raise Exception("No space left on device (os error 28)")

    with pytest.raises(OSError, match="no room to write") as caught:
        full()
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a directory"):
        atomic_write_json(tmp_path, {})


@pytest.mark.parametrize(("out", "word"), [(".", "holds"), ("in", "is"), ("in/side", "is inside")])
def test_inputs_are_not_replaced(out: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f" {word} .*read to make it"):
        refuse_inputs(tmp_path / out, tmp_path / "other", tmp_path / "in")
    refuse_inputs(tmp_path / "out", tmp_path / "in")
