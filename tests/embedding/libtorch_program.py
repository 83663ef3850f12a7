"""Builds examples/libtorch, runs it and its export.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from decode_program import written
from torch import Tensor

import restorelcc

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "libtorch"
PACKAGE = Path(restorelcc.__file__).parent
LIBRARIES = PACKAGE / "_lib"
# Of the program: nothing of Python's environment.
CLEAN = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "TMPDIR": os.environ.get("TMPDIR", "")}


def compiler() -> str:
    """A C++ compiler; without one the test is skipped."""
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no C++ compiler on the PATH")
    return found


@dataclass(frozen=True)
class Program:
    """`logits` of examples/libtorch."""

    path: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.path), *map(str, words)],
            capture_output=True,
            text=True,
            env={name: value for name, value in CLEAN.items() if value},
            check=False,
            timeout=600,
        )

    def logits(self, package: Path, ids: Sequence[int], out: Path, *words: object) -> Tensor:
        """[T, V] float64, teacher-forced."""
        done = self.run(package, "--prompt-ids", written(ids), "--logits", out, *words)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in out.parent.glob(f"{out.name}*")] == [out.name]
        return torch.from_numpy(np.fromfile(out, dtype="<f4")).view(len(ids), -1).double()

    def generate(self, package: Path, ids: Sequence[int], tokens: int) -> list[int]:
        done = self.run(package, "--prompt-ids", written(ids), "--tokens", tokens)
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split(",")]


def build(folder: Path) -> Program:
    """By CMake, against the torch of this Python."""
    compiler()
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if cmake is None:
        pytest.skip("no cmake on the PATH")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for words in (
        [cmake, "-S", str(EXAMPLE), "-B", str(folder), prefix, f"-DRESTORELCC_LIB={LIBRARIES}"],
        [cmake, "--build", str(folder)],
    ):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Program(folder / "logits")


def export(packed: Path, out: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`export.py PACKED OUT ...`, in a process of its own as a reader would run it."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE / "export.py"), str(packed), str(out), *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        check=False,
    )
