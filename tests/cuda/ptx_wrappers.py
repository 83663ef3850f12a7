"""Reads inline assembly: the wrappers of csrc/cuda/device/*.cuh, the emulator's stand-ins, and CUTLASS's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Assembly:
    """One asm statement: a template, and what its %0, %1 ... are."""

    template: str  # one space where there was any, no ";" at the end
    outputs: tuple[str, ...]  # '=r r[0]': constraint and expression
    inputs: tuple[str, ...]
    memory: bool  # "memory" is clobbered
    volatile: bool


@dataclass(frozen=True)
class Function:
    """A function's name, its parameters' types and names, and its body."""

    name: str
    parameters: str
    body: str


def preprocessed(path: Path) -> str:
    """The file itself with its macros expanded: includes are left out, so no CUDA header is needed."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not re.match(r"\s*#\s*(include|pragma)\b", line))
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler, "a C++ compiler is needed to expand macros"
    done = subprocess.run(
        [compiler, "-E", "-P", "-x", "c++", "-"], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes; strings are passed over."""
    pairs = {"(": ")", "{": "}"}
    opening, closing = text[start], pairs[text[start]]
    depth, at = 0, start
    while True:
        if text[at] == '"':
            at = text.index('"', at + 1)
        depth += (text[at] == opening) - (text[at] == closing)
        if depth == 0:
            return at
        at += 1


def functions(text: str, qualifier: str) -> list[Function]:
    """The functions that begin with `qualifier`, a regular expression that ends where the return type begins."""
    found = []
    for match in re.finditer(rf"{qualifier}\s+[\w:]+\s+(\w+)\s*\(", text):
        end = _closing(text, match.end() - 1)
        parameters = " ".join(text[match.end() : end].split())
        brace = text.index("{", end)
        if text[end + 1 : brace].strip():
            continue  # a declaration
        found.append(Function(match[1], parameters, text[brace + 1 : _closing(text, brace)]))
    return found


def _split(text: str, separator: str) -> list[str]:
    """At separators outside of brackets and strings."""
    parts, depth, quoted, begin = [], 0, False, 0
    for at, letter in enumerate(text):
        quoted ^= letter == '"'
        if not quoted:
            depth += (letter in "([{") - (letter in ")]}")
            if depth == 0 and letter == separator:
                parts.append(text[begin:at])
                begin = at + 1
    return [*parts, text[begin:]]


def _strings(text: str) -> str:
    return "".join(re.findall(r'"([^"]*)"', text))


def _operands(text: str) -> tuple[str, ...]:
    """'"=r"(r[0]), "=r"(r[1])' -> ('=r r[0]', '=r r[1]')."""
    given = [part.strip() for part in _split(text, ",") if part.strip()]
    found = [re.fullmatch(r'"([^"]+)"\s*\((.*)\)', part, flags=re.S) for part in given]
    assert all(found), text
    return tuple(f"{one[1]} {''.join(one[2].split())}" for one in found if one)


def normalised(template: str) -> str:
    """Spaces only after commas and before operands, no end of line."""
    text = template.replace("\\n", " ").strip().rstrip(";").strip()
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"\s*,\s*", ", ", re.sub(r"\{\s*", "{", text))


def assemblies(body: str) -> list[Assembly]:
    """Every asm statement of a function."""
    found = []
    for match in re.finditer(r"\basm\b\s*(volatile)?\s*\(", body):
        inside = body[match.end() : _closing(body, match.end() - 1)]
        parts = [part.strip() for part in _split(inside, ":")]
        parts += [""] * (4 - len(parts))
        found.append(
            Assembly(
                normalised(_strings(parts[0])),
                _operands(parts[1]),
                _operands(parts[2]),
                '"memory"' in parts[3],
                match[1] is not None,
            )
        )
    return found
