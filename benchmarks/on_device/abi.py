"""The C ABI of librestorelcc through ctypes. Structs, constants and functions are read from the headers, not
re-typed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEADERS = tuple(ROOT / "csrc" / "include" / "restorelcc" / name for name in ("params.h", "restorelcc.h", "cuda.h"))

OK = 0
_SCALARS: Mapping[str, type] = {
    "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t,
    "float": ctypes.c_float, "double": ctypes.c_double, "rlcc_dtype": ctypes.c_int32,
    "rlcc_task": ctypes.c_void_p,  # of a function
}  # fmt: skip


class HeaderError(ValueError):
    """A line of a header that this reader does not understand."""


class CallError(RuntimeError):
    """A function did not answer RLCC_OK; the message is the library's own."""


@dataclass
class Interface:
    """What the headers declare."""

    structs: dict[str, type[ctypes.Structure]] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    functions: dict[str, tuple[type, ...]] = field(default_factory=dict)  # argument types, of those giving a status

    def cuda_ops(self) -> list[str]:
        """Every OP with rlcc_cuda_OP_workspace and rlcc_cuda_OP."""
        found = (re.fullmatch(r"rlcc_cuda_(\w+)_workspace", name) for name in self.functions)
        return [match[1] for match in found if match and f"rlcc_cuda_{match[1]}" in self.functions]


def read_headers(paths: tuple[Path, ...] = HEADERS) -> Interface:
    """All three headers, in the order in which they include each other."""
    interface = Interface()
    for path in paths:
        text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for name, value in re.findall(r"\b(RLCC_\w+)\s*=\s*(\d+)", text):
            interface.constants[name] = int(value)
        for name, value in re.findall(r"^#define (RLCC_\w+) (\d+)\s*$", text, flags=re.MULTILINE):
            interface.constants[name] = int(value)
        for name, body in re.findall(r"typedef struct (rlcc_\w+) \{(.*?)\} \1;", text, flags=re.DOTALL):
            fields = list(_fields(name, body, interface.structs))
            interface.structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
        for name, arguments in re.findall(r"RLCC_API\s+rlcc_status\s+(rlcc_\w+)\s*\(([^)]*)\)", text):
            interface.functions[name] = tuple(_arguments(name, arguments))
    return interface


def _fields(struct: str, body: str, structs: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    for declaration in filter(None, (" ".join(part.split()) for part in body.split(";"))):
        if function := re.fullmatch(r"void \(\*(\w+)\)\(.*\)", declaration):
            yield function[1], ctypes.c_void_p
        elif pointer := re.fullmatch(r"(?:const )?\w+\s?\*\s?(?:const )?(\w+)", declaration):
            yield pointer[1], ctypes.c_void_p
        elif (plain := re.fullmatch(r"(\w+) (\w+)", declaration)) and (plain[1] in _SCALARS or plain[1] in structs):
            yield plain[2], _SCALARS.get(plain[1]) or structs[plain[1]]
        else:
            raise HeaderError(f"{struct}: not understood: {declaration}")


def _arguments(function: str, text: str) -> Iterator[type]:
    for argument in filter(None, (" ".join(part.split()) for part in text.split(","))):
        kind = argument.split(" ")[0]
        if "*" in argument:
            yield ctypes.c_void_p
        elif kind in _SCALARS:
            yield _SCALARS[kind]
        elif argument != "void":
            raise HeaderError(f"{function}: not understood: {argument}")


class Library:
    """librestorelcc, or the emulator that has the same functions."""

    def __init__(self, path: Path, interface: Interface | None = None) -> None:
        self.interface = interface or read_headers()
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        self._functions.rlcc_last_error.restype = ctypes.c_char_p
        self._functions.rlcc_build_info.restype = ctypes.c_char_p
        for name, arguments in self.interface.functions.items():
            function = getattr(self._functions, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self.dtypes = {
            name: self.interface.constants[f"RLCC_{constant}"]
            for name, constant in (("fp32", "F32"), ("bf16", "BF16"), ("fp16", "F16"), ("int8", "I8"))
        }

    def call(self, name: str, *arguments: Any) -> None:
        """Raises CallError unless the function answers RLCC_OK."""
        if getattr(self._functions, name)(*arguments) != OK:
            raise CallError(f"{name}: {self._functions.rlcc_last_error().decode()}")

    @staticmethod
    def address(struct: ctypes.Structure) -> Any:
        """Of a struct, as an argument."""
        return ctypes.byref(struct)

    def build_info(self) -> str:
        """Of the library: JSON."""
        text: bytes = self._functions.rlcc_build_info()
        return text.decode()

    def struct(self, name: str, values: Mapping[str, Any]) -> ctypes.Structure:
        """A zeroed struct with these fields; "weight.rows" is a field of a field, and a tensor stands for its
        address.
        """
        made = self.interface.structs[name]()
        for path, value in values.items():
            *outer, last = path.split(".")
            place: Any = made
            for part in outer:
                place = getattr(place, part)
            if last not in {field_name for field_name, _ in place._fields_}:
                raise KeyError(f"{name} has no field {path}")
            setattr(place, last, value.data_ptr() if hasattr(value, "data_ptr") else value)
        return made
