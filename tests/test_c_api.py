"""docs/c_api.md is what the headers say, and the examples of docs/embedding.md compile and run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADERS = ROOT / "csrc" / "include" / "restorelcc"
MODEL = ROOT / "tests" / "runtime" / "packed_v1" / "bf16"
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(c|cpp)\n(.*?)^```$", EMBEDDING, flags=re.M | re.S)
PRINTED = [r"llama, 2 layers: y\[0\] = -?\d+\.?\d*(e[+-]\d+)?", "the same bits: yes", r"queued|.*CUDA.*"]


def test_the_page_is_up_to_date() -> None:
    script = ROOT / "docs" / "write_c_api.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_has_every_function_of_the_headers() -> None:
    page = (ROOT / "docs" / "c_api.md").read_text(encoding="utf-8")
    text = "\n".join(path.read_text(encoding="utf-8") for path in HEADERS.glob("*.h"))
    names = re.findall(r"\b(rlcc_\w+)\(", re.sub(r"/\*.*?\*/", "", text, flags=re.S))
    assert len(names) > 50
    for name in names:
        assert re.search(rf"^### .*`{name}`", page, flags=re.M), name
        assert len(re.findall(rf"\b{name}\(", page)) >= 1
    assert page.count("**Threads.**") >= page.count("RLCC_API rlcc_status") / 4


def test_every_example_has_its_output() -> None:
    assert [language for language, _ in EXAMPLES] == ["c", "cpp", "cpp"]


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_examples_compile_and_run(index: int, tmp_path: Path) -> None:
    language, text = EXAMPLES[index]
    compiler = shutil.which("cc" if language == "c" else "c++")
    if compiler is None:
        pytest.skip("no compiler on the PATH")
    folder = library()
    source, program = tmp_path / f"example.{language}", tmp_path / "example"
    source.write_text(text)
    standard = "-std=c99" if language == "c" else "-std=c++17"
    flags = [standard, "-pedantic", "-Wall", "-Wextra", "-Werror", "-pthread", "-I", str(HEADERS.parent)]
    link = ["-L", str(folder), "-lrestorelcc", f"-Wl,-rpath,{folder}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program), *link], check=True)
    done = subprocess.run([str(program), str(MODEL)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(PRINTED[index], done.stdout.strip()), done.stdout


def library() -> Path:
    """The folder of librestorelcc: built by CMake alone, or installed into the package."""
    import restorelcc

    folders = [ROOT / "build" / "core", Path(restorelcc.__file__).parent / "_lib"]
    for folder in folders:
        if (folder / "librestorelcc.so").exists():
            return folder
    pytest.skip(f"no librestorelcc.so in {' or '.join(map(str, folders))}")
