"""A packed model as the C ABI hands it out (restorelcc/model.h), through ctypes."""

from __future__ import annotations

import ctypes as c
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import restorelcc

DTYPES = {0: torch.float32, 1: torch.bfloat16, 2: torch.float16, 3: torch.int8}
TYPES = {
    b"F64": torch.float64, b"F32": torch.float32, b"F16": torch.float16, b"BF16": torch.bfloat16, b"I64": torch.int64,
    b"I32": torch.int32, b"I16": torch.int16, b"I8": torch.int8, b"U8": torch.uint8, b"BOOL": torch.bool,
}  # fmt: skip


class _Config(c.Structure):
    _fields_ = [
        ("model_type", c.c_char_p), ("architecture", c.c_char_p), ("hidden_size", c.c_int64), ("layers", c.c_int64),
        ("heads", c.c_int64), ("kv_heads", c.c_int64), ("head_dim", c.c_int64), ("intermediate_size", c.c_int64),
        ("vocabulary", c.c_int64), ("max_positions", c.c_int64), ("norm_eps", c.c_double), ("rope_theta", c.c_double),
        ("rope_type", c.c_char_p), ("activation", c.c_char_p), ("attention_bias", c.c_int32), ("mlp_bias", c.c_int32),
        ("tied_head", c.c_int32), ("bos_token", c.c_int64), ("eos_tokens", c.POINTER(c.c_int64)),
        ("eos_token_count", c.c_int64), ("values", c.c_char_p), ("json", c.c_char_p), ("json_bytes", c.c_int64),
    ]  # fmt: skip


class _Tensor(c.Structure):
    _fields_ = [
        ("name", c.c_char_p), ("data", c.c_void_p), ("dtype", c.c_int32), ("dimensions", c.c_int32),
        ("shape", c.c_int64 * 4), ("type", c.c_char_p), ("bytes", c.c_int64),
    ]  # fmt: skip


class _Packed(c.Structure):
    _fields_ = [
        ("rows", c.c_int64), ("columns", c.c_int64), ("mask", c.c_void_p), ("values", c.c_void_p),
        ("value_count", c.c_int64), ("row_offsets", c.c_void_p), ("dtype", c.c_int32), ("trusted", c.c_int32),
        ("scales", c.c_void_p),
    ]  # fmt: skip


class _Weight(c.Structure):
    _fields_ = [
        ("name", c.c_char_p), ("joined", c.c_char_p), ("weight", _Packed), ("first_row", c.c_int64),
        ("rows", c.c_int64),
    ]  # fmt: skip


class _Compensation(c.Structure):
    _fields_ = [
        ("name", c.c_char_p), ("heads", c.c_void_p), ("heads_columns", c.c_int64), ("ffn", c.c_void_p),
        ("ffn_columns", c.c_int64), ("layers", c.c_int64),
    ]  # fmt: skip


def _library() -> Any:
    library = c.CDLL(str(Path(restorelcc.__file__).parent / "_lib" / "librestorelcc.so"))
    library.rlcc_last_error.restype = c.c_char_p
    for name in ("tensor_count", "weight_count", "compensation_count", "default_compensation"):
        getattr(library, f"rlcc_model_{name}").restype = c.c_int64
        getattr(library, f"rlcc_model_{name}").argtypes = [c.c_void_p]
    for name in ("tensor_at", "weight_at", "compensation_at"):
        getattr(library, f"rlcc_model_{name}").argtypes = [c.c_void_p, c.c_int64, c.c_void_p]
    library.rlcc_model_get_config.argtypes = [c.c_void_p, c.c_void_p]
    library.rlcc_model_open.argtypes = [c.c_char_p, c.c_void_p]
    library.rlcc_model_close.argtypes = [c.c_void_p]
    library.rlcc_model_close.restype = None
    library.rlcc_unpack.argtypes = [c.c_void_p, c.c_void_p, c.c_int64]
    return library


class CModel:
    """Open in a `with`; ValueError with the library's sentence where it refuses. What it gives are copies."""

    def __init__(self, directory: Path) -> None:
        self._library = _library()
        self._model = c.c_void_p()
        self._check(self._library.rlcc_model_open(str(directory).encode(), c.byref(self._model)))

    def __enter__(self) -> CModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.rlcc_model_close(self._model)

    def _check(self, status: int) -> None:
        if status:
            raise ValueError(self._library.rlcc_last_error().decode())

    def _all(self, kind: str, structure: type[c.Structure]) -> list[Any]:
        found = []
        for index in range(getattr(self._library, f"rlcc_model_{kind}_count")(self._model)):
            entry = structure()
            self._check(getattr(self._library, f"rlcc_model_{kind}_at")(self._model, index, c.byref(entry)))
            found.append(entry)
        return found

    def config(self) -> dict[str, Any]:
        """Strings decoded, eos_tokens a list."""
        found = _Config()
        self._check(self._library.rlcc_model_get_config(self._model, c.byref(found)))
        fields = {name: getattr(found, name) for name, *_ in _Config._fields_}
        fields["eos_tokens"] = found.eos_tokens[: found.eos_token_count]
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in fields.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The dense tensors, in the order of the file."""
        found = {}
        for entry in self._all("tensor", _Tensor):
            shape = list(entry.shape[: entry.dimensions])
            found[entry.name.decode()] = _copied(entry.data, TYPES[entry.type], shape)
            assert DTYPES.get(entry.dtype, TYPES[entry.type]) == TYPES[entry.type]
        return found

    def weights(self) -> dict[str, dict[str, Any]]:
        """Module -> joined, first_row, rows, mask, values, row_offsets, scales, and the module's own rows, `dense`."""
        found = {}
        for entry in self._all("weight", _Weight):
            packed, first = entry.weight, entry.first_row
            rows, columns, dtype = packed.rows, packed.columns, DTYPES[packed.dtype]
            dense = torch.empty(rows, columns, dtype=torch.float32 if dtype == torch.int8 else dtype)
            self._check(self._library.rlcc_unpack(c.byref(packed), dense.data_ptr(), columns))
            groups = [rows, -(-columns // 128)]
            found[entry.name.decode()] = {
                "joined": entry.joined.decode(), "trusted": packed.trusted,
                "mask": _copied(packed.mask, torch.int64, [rows, -(-columns // 64)]),
                "values": _copied(packed.values, dtype, [packed.value_count]),
                "row_offsets": _copied(packed.row_offsets, torch.int64, [rows + 1]),
                "scales": None if packed.scales is None else _copied(packed.scales, torch.bfloat16, groups),
                "first_row": first, "dense": dense[first : first + entry.rows],
            }  # fmt: skip
        return found

    def compensations(self) -> dict[str, dict[str, Tensor]]:
        """Name -> place -> c [L, width]."""
        found: dict[str, dict[str, Tensor]] = {}
        for entry in self._all("compensation", _Compensation):
            places = found.setdefault(entry.name.decode(), {})
            for place, data, columns in (
                ("attention", entry.heads, entry.heads_columns), ("ffn", entry.ffn, entry.ffn_columns),
            ):  # fmt: skip
                if data is not None:
                    places[place] = _copied(data, torch.float32, [entry.layers, columns])
        return found

    def default_compensation(self) -> str | None:
        """The name of the one that applies when none is chosen."""
        index = self._library.rlcc_model_default_compensation(self._model)
        return None if index < 0 else list(self.compensations())[index]


def _copied(data: int | None, dtype: torch.dtype, shape: list[int]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(c.string_at(data, count * dtype.itemsize)), dtype=dtype).reshape(shape)
