"""A packed model directory (docs/format.md) as arrays, with numpy and librestorelcc alone.

The library opens the directory first and checks all of it; what it accepts is read here from the mapped file.
"""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "PackedDirectory", "PackedWeight", "RefusedError"]

Array = NDArray[Any]
_NUMBERS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "U64": np.uint64, "I64": np.int64}
_SCALE_COLUMNS = 128


class RefusedError(ValueError):
    """What is wrong with a model or a call, in one sentence."""


@dataclass(frozen=True)
class PackedWeight:
    """W [N, K] of one module, or of joined ones whose rows stand one after the other.

    name: of the tensors; modules: (name, rows) in the order of the rows; values: fp32, bf16, fp16 or int8.
    """

    name: str
    modules: tuple[tuple[str, int], ...]
    rows: int
    columns: int
    values: str
    parts: dict[str, Array]  # mask uint64 [N, words], values, row_offsets int64 [N + 1], with int8 scales (bf16)

    def times(self, vector: Array) -> Array:
        """W c [N] float64 of c [K]: sum_k W[n, k] c[k] over the survivors."""
        mask = np.ascontiguousarray(self.parts["mask"]).view(np.uint8).reshape(self.rows, -1)
        kept = np.unpackbits(mask, axis=1, bitorder="little")[:, : self.columns].astype(bool)
        scales = self._scales()
        product = np.zeros(self.rows)
        for row, begin in enumerate(self.parts["row_offsets"][:-1]):
            columns = np.flatnonzero(kept[row])
            weights = widened(self.parts["values"][begin : begin + len(columns)], self.values).astype(np.float64)
            if scales is not None:
                weights = weights * scales[row, columns // _SCALE_COLUMNS]
            product[row] = weights @ vector[columns].astype(np.float64)
        return product

    def _scales(self) -> Array | None:
        if self.values != "int8":
            return None
        return widened(self.parts["scales"], "bf16").astype(np.float64).reshape(self.rows, -1)


def widened(array: Array, kind: str) -> Array:
    """float32 of fp32, bf16 (held as uint16), fp16 or int8."""
    if kind == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


class PackedDirectory:
    """The record, config.json and tensors of a directory that `restorelcc pack` wrote.

    Args:
        directory: of the model.
        library: librestorelcc, or a library linked with it; it checks the directory before anything is read.
    """

    def __init__(self, directory: Path, library: Path) -> None:
        _check(directory, library)
        self.directory = directory
        self.record: dict[str, Any] = json.loads((directory / "restorelcc.json").read_text(encoding="utf-8"))
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._tensors = _mapped(directory / "packed.safetensors")
        self._weights = {}
        sizes = {one["name"]: one for one in [*self.record["packed"], self.record["head"]] if one is not None}
        joined = {name: tuple(names) for names in self.record["joined"] for name in names}
        for name in sizes:
            names = joined.get(name, (name,))
            if names[0] in self._weights:
                self._weights[name] = self._weights[names[0]]
                continue
            self._weights[name] = self._weight(names, sizes)

    def _weight(self, names: tuple[str, ...], sizes: dict[str, Any]) -> PackedWeight:
        common = names[0].rpartition(".")[0]
        stored = "+".join([names[0], *(name.removeprefix(f"{common}.") for name in names[1:])])
        found = ("mask", "values", "row_offsets", "scales")
        parts = {part: self.tensor(f"{stored}.{part}")[0] for part in found if self.has(f"{stored}.{part}")}
        kind = self._tensors[f"{stored}.values"][1]
        values = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "I8": "int8"}[kind]
        modules = tuple((name, int(sizes[name]["rows"])) for name in names)
        rows = sum(rows for _, rows in modules)
        return PackedWeight(stored, modules, rows, int(sizes[names[0]]["columns"]), values, parts)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._tensors

    def tensor(self, name: str) -> tuple[Array, str]:
        """(array, "fp32" | "bf16" | "fp16" | another type as the file names it); bf16 is held as uint16."""
        if name not in self._tensors:
            raise RefusedError(f"{self.directory / 'packed.safetensors'} has no tensor {name}")
        array, kind = self._tensors[name]
        return array, {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}.get(kind, kind)

    def floats(self, name: str) -> Array:
        """The tensor in float32."""
        return widened(*self.tensor(name))

    def weight(self, module: str) -> PackedWeight | None:
        """The packed weight that the module's rows stand in; None: it is dense."""
        return self._weights.get(module)

    def compensation(self, chosen: str | None) -> str | None:
        """The compensation of that name; None: the model's default, which may be none; "none": none."""
        names = self.record["compensations"]
        if chosen is None:
            default: str | None = self.record["default"]
            return default
        if chosen == "none":
            return None
        if chosen not in names:
            raise RefusedError(f'{self.directory} has no compensation "{chosen}"; it has {", ".join(names) or "none"}')
        return chosen


def _check(directory: Path, library: Path) -> None:
    try:
        functions = ctypes.CDLL(str(library.resolve()))
        opening, closing, error = functions.rlcc_model_open, functions.rlcc_model_close, functions.rlcc_last_error
    except (OSError, AttributeError) as problem:
        raise RefusedError(f"{library} is no library of restorelcc: {problem}") from None
    opening.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
    closing.argtypes, closing.restype = [ctypes.c_void_p], None
    error.restype = ctypes.c_char_p
    model = ctypes.c_void_p()
    if opening(os.fsencode(directory), ctypes.byref(model)) != 0:
        raise RefusedError(error().decode("utf-8", "replace"))
    closing(model)


def _mapped(path: Path) -> dict[str, tuple[Array, str]]:
    """Every tensor of a safetensors file, in place."""
    file = np.memmap(path, dtype=np.uint8, mode="r")
    begin = 8 + int.from_bytes(file[:8].tobytes(), "little")
    header = json.loads(file[8:begin].tobytes())
    found = {}
    for name, about in header.items():
        if name == "__metadata__" or about["dtype"] not in _NUMBERS:
            continue
        first, end = about["data_offsets"]
        raw = file[begin + first : begin + end]
        found[name] = (np.frombuffer(raw, _NUMBERS[about["dtype"]]).reshape(about["shape"]), about["dtype"])
    return found
