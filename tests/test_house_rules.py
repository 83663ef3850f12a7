"""What a grep can check, so that nobody has to remember it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = (".cpp", ".cc", ".c", ".cu", ".h", ".cuh", ".inl", ".py")
LONGEST = 450


def files() -> list[Path]:
    """What git tracks, and what is new and not ignored; everything below the root where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)


def offences(pattern: str, chosen: list[Path]) -> list[str]:
    """`file:line: text` of every line that matches."""
    found = re.compile(pattern)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in chosen
        for number, line in lines(path)
        if found.search(line)
    ]


def sources(*folders: str) -> list[Path]:
    return [
        path
        for path in files()
        if path.suffix in SOURCE and (not folders or path.relative_to(ROOT).parts[0] in folders)
    ]


def test_there_is_something_to_check() -> None:
    assert len(sources("csrc")) > 3
    assert len(sources("python")) > 10


def test_no_torch_and_no_python_in_the_core() -> None:
    assert offences(r'#\s*include\s*[<"](torch|ATen|c10|pybind11|Python\.h)', sources("csrc")) == []


def test_the_core_links_without_torch_and_python() -> None:
    text = (ROOT / "cmake" / "RestorelccSources.cmake").read_text(encoding="utf-8")
    listed = set(re.findall(r"\b[\w/.]+\.(?:cpp|cc|c)\b", text))
    assert listed
    assert all(name.startswith("csrc/") for name in listed)


def test_every_core_source_is_in_the_one_list() -> None:
    text = (ROOT / "cmake" / "RestorelccSources.cmake").read_text(encoding="utf-8")
    for path in sources("csrc"):
        if path.suffix in (".cpp", ".cc", ".c"):
            assert str(path.relative_to(ROOT)) in text, f"{path.name} is compiled by nobody"


def test_no_paths_of_one_machine() -> None:
    places = "|".join(["/" + "work/", "/" + "home/", "/" + "root/", "/" + "tmp/", "/" + "Users/"])
    text = [p for p in files() if p.suffix in (*SOURCE, ".md", ".toml", ".txt", ".cmake", ".j2", ".in", "")]
    assert offences(rf"(?<![\w.}}])({places})", [p for p in text if p.name != "LICENSE"]) == []


def test_no_file_is_too_long() -> None:
    long = {str(path.relative_to(ROOT)): sum(1 for _ in lines(path)) for path in sources()}
    assert {name: count for name, count in long.items() if count > LONGEST} == {}


def test_names_say_something() -> None:
    empty = re.compile(r"^(utils?|helpers?|common|misc|stuff)$")
    assert [str(path) for path in files() if empty.match(path.stem)] == []


def test_no_notes_to_self() -> None:
    words = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"])
    assert offences(rf"\b({words})\b", sources()) == []


def test_readme_shows_the_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("make demo", "make test"):
        assert command in readme
        assert command in ci


def test_the_makefile_has_the_promised_targets() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "bench", "lint", "clean"):
        assert re.search(rf"^{target}:", text, flags=re.M), target


def test_warnings_are_errors() -> None:
    assert 'filterwarnings = ["error"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
