"""An extension built with nvcc on a machine without a GPU: it loads, says what it holds, and is the CPU's as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "build/cuda/package"
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "compute_100"]

PROGRAM = """
import ctypes, json, sys, torch, restorelcc
from restorelcc import ops
from restorelcc.sparse_linear import SparseLinear

torch.manual_seed(0)
linear = torch.nn.Linear(200, 130)
linear.weight.data[torch.rand_like(linear.weight) < 0.5] = 0
x = torch.randn(3, 200)
layer = SparseLinear.from_linear(linear)
exact = ops.sparse_linear(x.double(), layer.packed, bias=layer.bias.double(), impl="reference")
error = float((layer(x) - exact).abs().max())
library = ctypes.CDLL(restorelcc.__path__[0] + "/_lib/librestorelcc.so")
library.rlcc_last_error.restype = ctypes.c_char_p
info = restorelcc.build_info()
status = library.rlcc_cuda_sparse_linear(None, None, ctypes.c_size_t(0), None)
sentence = library.rlcc_last_error().decode()
print(json.dumps({"info": info, "error": error, "status": status, "sentence": sentence, "file": restorelcc.__file__}))
"""


@pytest.fixture(scope="module")
def package() -> Path:
    if not os.environ.get("RLCC_CUDA_LANE"):
        pytest.skip("`make test-cuda` builds the extension and tests it; an earlier run's may be of older sources")
    assert (PACKAGE / "restorelcc/_lib/librestorelcc.so").is_file(), f"{PACKAGE} holds no extension"
    return PACKAGE


def run(package: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True, cwd=package
    ).stdout


def test_it_loads_and_names_its_architectures(package: Path) -> None:
    found = json.loads(run(package, "-c", PROGRAM))
    assert found["file"].startswith(str(package))
    assert found["info"]["cuda"]
    assert found["info"]["cuda_architectures"] == ARCHITECTURES
    assert found["error"] < 1e-5
    assert found["status"] == 1  # RLCC_INVALID_ARGUMENT
    assert found["sentence"] == "params is null"


def test_the_cpu_ops_are_as_before(package: Path) -> None:
    """The tests of the ops, against this extension."""
    tests = [str(ROOT / "tests/ops" / name) for name in ("test_sparse_linear.py", "test_native.py")]
    output = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), *tests)
    assert " passed" in output
    assert "failed" not in output
