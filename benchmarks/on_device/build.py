"""Builds librestorelcc and the instruction tests for one architecture; finds what was built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from on_device.abi import ROOT

Runner = Callable[[Sequence[str]], None]


class BuildError(RuntimeError):
    """One sentence about what failed, and what to do."""


@dataclass(frozen=True)
class Libraries:
    """product: librestorelcc, with CUDA. instructions: of tests/device; on the emulator the same file."""

    product: Path
    instructions: Path


def run_loudly(command: Sequence[str]) -> None:
    """The command, its output on the screen; BuildError where it fails."""
    print("+", " ".join(command), file=sys.stderr, flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError(f"{' '.join(command[:3])} ... failed; its own message stands above")


def commands(folder: Path, architecture: str, jobs: int) -> list[list[str]]:
    """architecture: "90". Ninja where it is."""
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DRLCC_BUILD_TESTS=ON"]
    configure += ["-DRLCC_BUILD_FUZZ=OFF", "-DRLCC_CUDA=ON", f"-DRLCC_CUDA_ARCHITECTURES={architecture}"]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    configure += os.environ.get("CMAKE_ARGS", "").split()
    build = [cmake, "--build", str(folder), "--parallel", str(jobs), "--target", "restorelcc", "rlcc_cuda_instructions"]
    return [configure, build]


def built(folder: Path) -> Libraries:
    """What is in a build folder; BuildError names what is not."""
    found = Libraries(folder / "librestorelcc.so", folder / "tests" / "device" / "librlcc_cuda_instructions.so")
    for path in (found.product, found.instructions):
        if not path.exists():
            raise BuildError(f"{path} is not there; run without --skip-build")
    return found


def build(folder: Path, architecture: str, run: Runner = run_loudly) -> Libraries:
    """Configures and builds."""
    for command in commands(folder, architecture, os.cpu_count() or 1):
        run(command)
    return built(folder)
