"""Reads shapes.txt: the layer shapes, rows and patterns that rlcc_bench reads too."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("shapes.txt")


class Shape(NamedTuple):
    """One projection: y [M, N] = x [M, K] Wᵀ."""

    model: str
    layer: str
    outputs: int
    inputs: int

    def __str__(self) -> str:
        return f"{self.model}-{self.layer}-{self.outputs}x{self.inputs}"


def read(path: Path = FILE) -> tuple[list[Shape], list[int], list[str]]:
    """(shapes, rows, patterns); ValueError names the line that is not understood."""
    shapes: list[Shape] = []
    rows: list[int] = []
    patterns: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match line.split():
            case []:
                continue
            case [word, *_] if word.startswith("#"):
                continue
            case ["shape", model, layer, outputs, inputs]:
                shapes.append(Shape(model, layer, int(outputs), int(inputs)))
            case ["rows", *values]:
                rows.extend(int(value) for value in values)
            case ["pattern", *values]:
                patterns.extend(values)
            case _:
                raise ValueError(f"{path.name}:{number}: not understood: {line}")
    return shapes, rows, patterns


SHAPES, ROWS, PATTERNS = read()
