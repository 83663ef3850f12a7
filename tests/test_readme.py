"""The README's own snippets, extracted and run, and the commands it promises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands in for runs/demo/restored: a random Llama with output-projection biases."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_bias=True,
    )
    path = tmp_path_factory.mktemp("restored")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny_packed(tiny_checkpoint: Path) -> Path:
    """Stands in for runs/demo/packed: the same model with zeros, and a compensation of its own."""
    import torch
    from transformers import LlamaForCausalLM

    import restorelcc
    from restorelcc.compensation import Compensation
    from restorelcc.models import attention_sites, prunable_linears, quiet_transformers
    from restorelcc.packed_model import save_packed

    with quiet_transformers():
        model = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    for _, linear in prunable_linears(model):
        linear.weight.data[:, ::2] = 0
    names = [site.name for site in attention_sites(model)]
    default = Compensation(torch.ones(1, 16), torch.ones(1, 2, dtype=torch.bool), names)
    save_packed(restorelcc.pack_model(model, compensations={"law": default}), None, tiny_checkpoint / "packed")
    return tiny_checkpoint / "packed"


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_blocks_run(
    index: int, tiny_checkpoint: Path, tiny_packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = blocks("python")[index].replace('"runs/demo/restored"', repr(str(tiny_checkpoint)))
    source = source.replace('"packed"', repr(str(tiny_packed)))
    exec(compile(source, f"README.md python block {index}", "exec"), {"__name__": "__main__"})
    capsys.readouterr()


def test_there_are_snippets_of_both_languages() -> None:
    assert len(blocks("python")) >= 2
    assert len(blocks("cpp")) >= 1


def _library() -> Path:
    """The folder of librestorelcc: built by CMake alone, or installed into the package."""
    import restorelcc

    folders = [ROOT / "build" / "core", Path(restorelcc.__file__).parent / "_lib"]
    for folder in folders:
        if (folder / "librestorelcc.so").exists():
            return folder
    pytest.skip(f"no librestorelcc.so in {' or '.join(map(str, folders))}")


@pytest.mark.parametrize("index", range(len(blocks("cpp"))))
def test_cpp_blocks_compile_and_print_what_they_say(index: int, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on the PATH")
    source, program, folder = tmp_path / "snippet.cpp", tmp_path / "snippet", _library()
    text = blocks("cpp")[index]
    source.write_text(text)
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "csrc" / "include")]
    link = [str(source), "-L", str(folder), "-lrestorelcc", f"-Wl,-rpath,{folder}", "-o", str(program)]
    subprocess.run([*command, *link], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    (promised,) = re.findall(r"printf\(.*?//\s*(.+)$", text, flags=re.M)
    assert done.stdout.strip() == promised.strip()


def test_both_commands_are_shown() -> None:
    assert re.search(r"^    make demo\b", README, flags=re.M)
    assert re.search(r"^    make test\b", README, flags=re.M)


def test_every_verb_is_documented() -> None:
    from restorelcc.cli import cli

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, verb in cli.commands.items():
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
        assert section is not None, f"docs/cli.md has no section on {name}"
        for parameter in verb.params:
            for option in parameter.opts:
                if option.startswith("--") and option != "--help":
                    assert option in section[1] or option in text.split("\n## ")[0], f"{option} of {name}"


def test_relative_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "csrc" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
