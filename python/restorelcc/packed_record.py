"""What stands in `restorelcc.json`: the part of a packed model on disk that says what the rest is.

    restorelcc.json        format, version, value kind, the packed matrices, the compensations
    packed.safetensors     the tensors (see packed_file)
    config.json ...        the stock configuration, generation settings and tokenizer

A directory with this record has no model.safetensors: stock loaders refuse it, they cannot mistake it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .artifacts import atomic_write_json, read_json
from .wording import one_line

__all__ = ["DTYPES", "PACKED_FILE", "RECORD_FILE", "Matrix", "PackedRecord", "check_name", "is_packed"]

FORMAT, VERSION = "restorelcc-packed", 1  # frozen: docs/format.md
RECORD_FILE, PACKED_FILE = "restorelcc.json", "packed.safetensors"
NOTE = "A packed model. Load it with restorelcc.load(DIRECTORY) or run `restorelcc generate DIRECTORY PROMPT`."

# Value kind -> the data type the model runs in: that of every parameter that is not packed, and of activations.
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "int8": torch.bfloat16}

_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def is_packed(path: str | Path) -> bool:
    """Whether `path` is the directory of a packed model."""
    return (Path(path).expanduser() / RECORD_FILE).is_file()


def check_name(name: str) -> str:
    """`name` where it can name a compensation. ValueError otherwise."""
    if not _NAME.fullmatch(name) or name == "none":
        raise ValueError(f"{name!r} cannot name a compensation; use letters, digits, '_', '.', '-', and not 'none'")
    return name


@dataclass(frozen=True)
class Matrix:
    """A prunable matrix [rows, columns]: its module's name, and how many weights are not zero."""

    name: str
    rows: int
    columns: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return 1.0 - self.nonzero / max(self.rows * self.columns, 1)


@dataclass(frozen=True)
class PackedRecord:
    """values: key of DTYPES; packed and dense: the prunable matrices that are and are not stored as bitmask.

    default: the compensation that a sequence takes when none is chosen; None: none.
    head: the LM head, where it is packed as int8 too (with all its weights); None: it is dense.
    joined: names of packed matrices whose rows stand one after the other in one weight; none is in two of them.
    """

    values: str
    packed: tuple[Matrix, ...]
    dense: tuple[Matrix, ...] = ()
    compensations: tuple[str, ...] = ()
    default: str | None = None
    head: Matrix | None = None
    joined: tuple[tuple[str, ...], ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Of everything that is not packed."""
        return DTYPES[self.values]

    @property
    def value_dtype(self) -> torch.dtype:
        """Of the packed values."""
        return torch.int8 if self.values == "int8" else self.dtype

    def write(self, path: Path) -> None:
        """Writes restorelcc.json in the directory `path`."""
        marks = {"format": FORMAT, "version": VERSION, "note": NOTE}
        atomic_write_json(path / RECORD_FILE, {**marks, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> PackedRecord:
        """From the directory `path`.

        Raises:
            ValueError: no such file, another format or version, or an entry that is not what it should be.
        """
        file = path / RECORD_FILE
        entries = read_json(file)
        if entries.get("format") != FORMAT or entries.get("version") != VERSION:
            said = [one_line(repr(entries.get(key)), 80) for key in ("format", "version")]
            raise ValueError(
                f"{file} has format {said[0]} version {said[1]}; this release reads {FORMAT!r} version {VERSION}, "
                "pack the model again"
            )
        try:
            return cls._parse(entries)
        except (KeyError, TypeError, ValueError) as error:
            what = one_line(f"lacks {error}" if isinstance(error, KeyError) else error, 400)
            raise ValueError(f"{file} is damaged: {what}; pack the model again") from error

    @classmethod
    def _parse(cls, entries: dict[str, Any]) -> PackedRecord:
        values, default = entries["values"], entries["default"]
        if values not in list(DTYPES):
            raise ValueError(f"values is {values!r}, not one of {', '.join(DTYPES)}")
        names = _list(entries, "compensations")
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"the compensation name {name!r} is not a string")
            check_name(name)
        if len(set(names)) < len(names) or (default is not None and default not in names):
            raise ValueError(f"compensations are {names} with the default {default!r}")
        packed, dense = (tuple(map(_matrix, _list(entries, key))) for key in ("packed", "dense"))
        head = None if entries.get("head") is None else _matrix(entries["head"])
        modules = [matrix.name for matrix in (*packed, *dense, *([] if head is None else [head]))]
        if len(set(modules)) < len(modules):
            raise ValueError("a matrix is listed twice")
        joined = _joined(entries, {matrix.name: matrix.columns for matrix in packed})
        return cls(values, packed, dense, tuple(names), default, head, joined)


def _joined(entries: dict[str, Any], columns: dict[str, int]) -> tuple[tuple[str, ...], ...]:
    families = _list(entries, "joined")
    for family in families:
        if not isinstance(family, list) or len(family) < 2 or not all(isinstance(name, str) for name in family):
            raise TypeError(f"joined has {family!r}, not a list of names")
        if len({columns.get(name) for name in family}) != 1 or family[0] not in columns:
            raise ValueError(f"the matrices {', '.join(family)} cannot be one: not packed, or of different columns")
    names = [name for family in families for name in family]
    if len(set(names)) < len(names):
        raise ValueError("a matrix is joined twice")
    return tuple(tuple(family) for family in families)


def _list(entries: dict[str, Any], key: str) -> list[Any]:
    value = entries[key]
    if not isinstance(value, list):
        raise TypeError(f"{key} is a {type(value).__name__}, not a list")
    return value


def _matrix(entry: Any) -> Matrix:
    if not isinstance(entry, dict):
        raise TypeError(f"a matrix is a {type(entry).__name__}, not an object")
    name, sizes = entry["name"], [entry[key] for key in ("rows", "columns", "nonzero")]
    if not isinstance(name, str) or not _MODULE.fullmatch(name):
        raise TypeError(f"{name!r} is no name of a module")
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise TypeError(f"the matrix {name!r} has the sizes {sizes}")
    return Matrix(name, *sizes)
