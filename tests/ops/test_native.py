"""What the installation says of itself, the instruction sets, and what happens where nothing is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import restorelcc
from restorelcc import _C


def test_build_info() -> None:
    info = restorelcc.build_info()
    assert info["native"] is True
    cuda = bool(info["cuda_architectures"])  # whether nvcc was found by the build
    assert info["backends"] == ["cpu", *(["cuda"] if cuda else []), "reference"]
    assert info["cuda"] is cuda
    assert info["isa"] in info["isas_available"]
    assert info["versions"] == {"restorelcc": restorelcc.__version__, "torch": torch.__version__}
    assert info["version"] == restorelcc.__version__  # CMakeLists.txt names it once
    assert info["compiler"]


def test_every_op_has_kernels() -> None:
    """An instruction set lists what it computes in another way than the one below it: of sparse_linear, some in each."""
    rows = _C.kernels()
    compiled = _C.build_info()["isas_compiled"]
    assert {row["isa"] for row in rows if row["op"] == "sparse_linear"} == set(compiled)
    for op in ("sparse_linear_grad_x", "sparse_linear_grad_values", "linear_cross_entropy", "head_moments"):
        found = {row["isa"] for row in rows if row["op"] == op}
        assert {"scalar"} <= found <= set(compiled)
        assert ("avx512f" in compiled) == ("avx512f" in found)
    for row in rows:
        assert row["name"].startswith(row["op"])
        assert row["name"].endswith(f"__{row['isa']}")
        assert row["available"] is (row["isa"] in _C.build_info()["isas_available"])


def test_forcing_an_instruction_set(isa: str) -> None:
    assert _C.isa() == isa
    assert restorelcc.build_info()["isa"] == isa
    _C.force_isa(None)
    assert _C.isa() == restorelcc.build_info()["isa"] != ""


def test_forcing_what_is_not_there() -> None:
    before = _C.isa()
    for name in {"scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16"} - set(_C.build_info()["isas_available"]):
        with pytest.raises(RuntimeError, match=name):
            _C.force_isa(name)
    with pytest.raises((ValueError, RuntimeError), match="sse9"):
        _C.force_isa("sse9")
    assert _C.isa() == before


def test_the_library_has_a_pool_of_its_own() -> None:
    before = _C.get_num_threads()
    _C.set_num_threads(2)
    assert _C.get_num_threads() == 2
    with pytest.raises(ValueError, match="0"):
        _C.set_num_threads(0)
    assert _C.get_num_threads() == 2
    _C.set_num_threads(before)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = restorelcc.lod


def run_python(script: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=environment, cwd=folder)


def test_sources_alone_run_the_reference(tmp_path: Path) -> None:
    """A tree in which nothing was compiled: the import works and is light, the reference runs."""
    package = tmp_path / "restorelcc"
    package.mkdir()
    for source in Path(restorelcc.__file__).parent.glob("*.py"):
        (package / source.name).symlink_to(source.resolve())
    run_python(
        "import sys, torch, restorelcc\n"
        f"assert restorelcc.__path__ == [{str(package)!r}]\n"
        "assert 'transformers' not in sys.modules\n"
        "assert restorelcc.build_info()['native'] is False\n"
        "packed = restorelcc.pack(torch.eye(3))\n"
        "assert torch.equal(restorelcc.ops.sparse_linear(torch.eye(3), packed, impl='reference'), torch.eye(3))\n",
        tmp_path,
    )
