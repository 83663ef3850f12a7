"""examples/libtorch: export.py compiles a packed model with AOTInductor, the C++ program runs it, float64 judges.

Slow: AOTInductor compiles C++ for each model. The budgets are those of test_decode_example.py.
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from libtorch_program import LIBRARIES, Program, build, export
from llamas import Packed, load_stock, logits_of
from test_decode_example import error_of_positions, exact_logits, fp32_budget, some_ids, worst

Tiny = Callable[[str, str], Packed]
PROMPT = ("--prompt-ids", "1,5,9")
NAME = "law"  # of the compensation that the tiny package is exported with

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return build(tmp_path_factory.mktemp("libtorch"))


@pytest.fixture(scope="module")
def package(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in fp32 with biases and a compensation, for at most 256 tokens."""
    return exported(tiny("biased", "fp32"), tmp_path_factory.mktemp("tiny"), "--compensation", NAME)


def exported(model: Packed, folder: Path, *words: object) -> Path:
    out = folder / "model.pt2"
    done = export(model.packed, out, "--most-tokens", 256, *words)
    assert done.returncode == 0, done.stderr
    assert f"{out.stat().st_size:,} bytes, 1 to 256 tokens" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["model.pt2"]
    return out


def test_no_python_in_the_process(program: Program, package: Path, tmp_path: Path) -> None:
    """Neither the program nor the code of the package links to it."""
    if shutil.which("ldd") is None:
        pytest.skip("no ldd on the PATH")
    with zipfile.ZipFile(package) as archive:
        (code,) = (name for name in archive.namelist() if name.endswith(".so"))
        (tmp_path / "code.so").write_bytes(archive.read(code))
    for path in (program.path, tmp_path / "code.so", LIBRARIES / "librestorelcc_torch.so"):
        linked = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=True).stdout
        assert "libtorch_cpu.so" in linked
        assert "python" not in "".join(line.split("=>")[0] for line in linked.splitlines())


def test_logits(program: Program, package: Path, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("biased", "fp32")
    for tokens in (1, 16, 17, 200, 256):
        ids = some_ids(tokens)
        exact = exact_logits(model, ids, NAME)
        ours = program.logits(package, ids, tmp_path / "logits", "--threads", 2 if tokens > 16 else 1)
        assert worst(ours, exact) <= fp32_budget(model, ids, exact, name=NAME), tokens
    assert worst(exact_logits(model, ids), exact) > 1e-2  # the compensation shows


def test_greedy_tokens(program: Program, package: Path, tiny: Tiny) -> None:
    model, prompt, new = tiny("biased", "fp32"), some_ids(9), 40
    said = program.generate(package, prompt, new)
    ids = [*prompt, *said]
    exact = exact_logits(model, ids[:-1], NAME)
    budget = fp32_budget(model, ids[:-1], exact, name=NAME)
    best = exact[len(prompt) - 1 :].topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > 2 * budget
    assert len(said) == new
    assert int(clear.sum()) > new // 2
    assert torch.equal(torch.tensor(said)[clear], best.indices[:, 0][clear])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no model is given"),
        (("PACKAGE",), "no prompt is given"),
        (("PACKAGE", "--prompt-ids"), "--prompt-ids needs a value"),
        (("PACKAGE", "--prompt-ids", ""), 'an id of --prompt-ids is ""'),
        (("PACKAGE", "--prompt-ids", "1,,2"), 'an id of --prompt-ids is ""'),
        (("PACKAGE", "--prompt-ids", "1,-4"), '"-4"'),
        (("PACKAGE", "--prompt-ids", "99999999999999999999"), "whole number"),
        (("PACKAGE", "--prompt-ids", "1,320"), "token id 320 is not in the vocabulary, [0, 320)"),
        (("PACKAGE", *PROMPT, "--tokens", "255"), "257 tokens are more than the 256"),
        (("PACKAGE", *PROMPT, "--tokens", "0"), "--tokens is"),
        (("PACKAGE", *PROMPT, "--threads", "none"), "--threads is"),
        (("PACKAGE", *PROMPT, "--logits", "out", "--tokens", "3"), "--logits is of the prompt alone"),
        (("PACKAGE", *PROMPT, "--beam", "4"), "no option --beam"),
        (("PACKAGE", "other.pt2", *PROMPT), "two models"),
        (("no-such.pt2", *PROMPT), "no-such.pt2 cannot be read"),
        (("TEXT", *PROMPT), "is not a package of AOTInductor"),
        (("CUT", *PROMPT), "is not a package of AOTInductor"),
    ],
)
def test_what_the_program_refuses(
    words: tuple[str, ...], says: str, program: Program, package: Path, tmp_path: Path
) -> None:
    text, cut = tmp_path / "text.pt2", tmp_path / "cut.pt2"
    text.write_text("no package\n")
    cut.write_bytes(package.read_bytes()[:100_000])
    places = {"PACKAGE": str(package), "TEXT": str(text), "CUT": str(cut)}
    done = program.run(*(places.get(word, word) for word in words))
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("logits: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_logits_file_in_no_folder(program: Program, package: Path, tmp_path: Path) -> None:
    done = program.run(package, *PROMPT, "--logits", tmp_path / "missing" / "out")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr


def test_a_real_model(program: Program, real: Packed, tmp_path: Path) -> None:
    """SmolLM2-135M in bf16: as close to float64 as stock bf16 is, at the median position and the tenth worst."""
    ids = some_ids(vocabulary=49152)
    (tmp_path / "package").mkdir()
    package = exported(real, tmp_path / "package")
    exact = exact_logits(real, ids)
    ours = error_of_positions(program.logits(package, ids, tmp_path / "logits"), exact)
    stock = error_of_positions(logits_of(load_stock(real.checkpoint, torch.bfloat16, torch.bfloat16), ids), exact)
    places = torch.tensor([0.5, 0.9], dtype=torch.float64)
    assert bool((ours.quantile(places) <= torch.tensor([1.1, 1.5]) * stock.quantile(places)).all())
