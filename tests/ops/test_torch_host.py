"""librestorelcc_torch.so in a C++ program with torch and without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import restorelcc


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler named c++")
def test_the_ops_load_and_run_without_python(tmp_path):
    libraries, torch_folder = Path(restorelcc.__file__).parent / "_lib", Path(torch.__file__).parent
    program = tmp_path / "torch_host"
    build = [
        "c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", str(Path(__file__).with_name("torch_host.cpp")),
        "-isystem", str(torch_folder / "include"), "-DTORCH_TARGET_VERSION=0x020d000000000000",
        f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl",
        "-o", str(program),
    ]  # fmt: skip
    subprocess.run(build, check=True)
    run = subprocess.run(
        [program, libraries / "librestorelcc_torch.so"], capture_output=True, text=True, check=False, env={}
    )
    assert (run.returncode, run.stdout) == (0, "201 30\n"), run.stderr
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libpython" not in linked
