"""The path of CUDA tensors from torch to the kernels, without a GPU: torch_path.py on a stand-in device.

librestorelcc_torch is the installed one; beside it lies, in place of librestorelcc, the emulator's library of the
same C ABI; and stand_in.cpp is preloaded, which makes host memory a CUDA device of torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import restorelcc

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(
    os.environ.get("RLCC_SIMT_LIBRARY", ROOT / "build" / "simt" / "tests" / "device" / "librlcc_cuda_simt.so")
)


def compile_stand_in(folder: Path) -> Path:
    headers, libraries = (Path(torch.__file__).parent / name for name in ("include", "lib"))
    made = folder / "libstand_in.so"
    command = [
        "c++", "-std=c++20", "-O0", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
        str(Path(__file__).with_name("stand_in.cpp")), "-isystem", str(headers), f"-L{libraries}",
        f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10", "-o", str(made),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return made


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA: a GPU takes the stand-in's place")
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler named c++")
def test_the_path_of_cuda_tensors(tmp_path: Path) -> None:
    if not EMULATOR.exists() and "RLCC_CUDA_LANE" not in os.environ:  # which has built it
        pytest.skip(f"the emulator's library is not built ({EMULATOR.name}: make test-cuda, or RLCC_SIMT_LIBRARY)")
    installed = Path(restorelcc.__file__).parent
    if not (installed / "_lib").is_dir():
        pytest.skip("restorelcc is installed without its compiled ops")
    package = tmp_path / "package"
    shutil.copytree(installed, package / "restorelcc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EMULATOR, package / "restorelcc" / "_lib" / "librestorelcc.so")
    stand_in = compile_stand_in(tmp_path)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, ROOT / "tests" / "ops", ROOT / "benchmarks"))),
        "LD_PRELOAD": str(stand_in), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    tests = Path(__file__).with_name("torch_path.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, str(tests)], env=environment, cwd=package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
