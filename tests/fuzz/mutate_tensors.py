"""Lies in packed.safetensors: of its header alone, and of tensors in a file that is well formed otherwise."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from mutate_json import HUGE, any_value

_DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U16": 2,
    "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8, "F4": 1, "F6_E2M3": 1, "": 1, "f32": 4,
}  # fmt: skip
_NAMES = (
    "", "x", "../../x", "/x", "a\nb", "\x1b[2J", "\u202e", "x" * 400, "__metadata__", "model.norm.weight",
    "lm_head.weight",
    "compensation.../x", "compensation.law", "model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.mask",
)  # fmt: skip
Tensor = dict[str, Any]  # {"dtype": str, "shape": list[int], "data": bytearray}
Tensors = dict[str, Tensor]


def read(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, what follows it)."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(header: dict[str, Any], rest: bytes, *, length: int | None = None, alignment: int = 64) -> bytes:
    """The inverse; length: what is said instead of the header's own."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % alignment)
    return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + rest


def garble_header(data: bytes, random: Random) -> bytes:
    """Offsets, shapes, types, names and the header's length, without a look at what follows."""
    header, rest = read(data)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(random.choice((1, 1, 2))):
        name, other = random.choice(names), random.choice(names)
        kind = random.randrange(12)
        if kind == 0:
            size = len(data) - len(rest) - 8
            return write(header, rest, length=random.choice((size + 1, size - 1, size + 64, 0, 1, 10**8 + 1, *HUGE)))
        if kind == 1:
            text = json.dumps(header)  # two entries of one name
            doubled = text[:-1] + "," + json.dumps(name) + ":" + json.dumps(header[other]) + "}"
            return struct.pack("<Q", len(doubled.encode())) + doubled.encode() + rest
        if kind == 2:
            header["__metadata__"] = any_value(random)
        elif kind == 3:
            header[random.choice(_NAMES)] = header.pop(name)
            names = [name for name in header if name != "__metadata__"]
        elif kind == 4:
            header[name], header[other] = header[other], header[name]
        elif kind == 5:
            header[name] = any_value(random) if random.random() < 0.3 else dict(header[other])
        else:
            _garble_entry(header, name, other, random)
    return write(header, rest)


def _garble_entry(header: dict[str, Any], name: str, other: str, random: Random) -> None:
    entry = header[name]
    if not isinstance(entry, dict) or not isinstance(header[other], dict):
        return
    kind = random.randrange(7)
    offsets, shape = entry.get("data_offsets"), entry.get("shape")
    if kind == 0:
        entry["dtype"] = random.choice(sorted(_DTYPES))
    elif kind == 1:
        entry["data_offsets"] = random.choice(
            (header[other].get("data_offsets"), [0, 0], [1, 0], [-1, 1], [0, random.choice(HUGE)], [0], [], "x",
             [random.choice(HUGE)] * 2, [0.5, 1.5], [2**64 - 8, 8], None)
        )  # fmt: skip
    elif kind == 2 and isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[0], int):
        step = random.choice((1, -1, 8, -8, 64, 4096))
        offsets[random.randrange(2)] += step
    elif kind == 3:
        entry["shape"] = random.choice(
            ([], [0], [-1], [1] * 50, [random.choice(HUGE)], [2**32, 2**32], [2**63, 2], [0, 2**62], "x", None, [1.5])
        )
    elif kind == 4 and isinstance(shape, list) and shape and isinstance(shape[0], int):
        place = random.randrange(len(shape))
        shape[place] = random.choice((shape[place] + 1, shape[place] - 1, shape[place] * 2, -shape[place], 0))
    elif kind == 5:
        entry.pop(random.choice(("dtype", "shape", "data_offsets")), None)
    else:
        entry["x"] = any_value(random)


def tensors_of(data: bytes) -> Tensors:
    """Every tensor with its bytes."""
    header, rest = read(data)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data": bytearray(rest[begin:end])}
    return found


def file_of(tensors: Tensors, *, alignment: int = 64) -> bytes:
    """A well-formed file of these tensors, in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "restorelcc-packed", "version": "1"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor["data"])
        header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [begin, end]}
    return write(header, b"".join(tensor["data"] for tensor in tensors.values()), alignment=alignment)


def garble_tensors(data: bytes, random: Random) -> bytes:
    """One to three tensors changed, in a file that says so."""
    tensors = tensors_of(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        change = random.choice(_CHANGES)
        change(tensors, random.choice(list(tensors)), random)
        if not tensors:
            break
    return file_of(tensors, alignment=random.choice((64, 64, 64, 8, 1, 2)))


def _rename(tensors: Tensors, name: str, random: Random) -> None:
    tensors[random.choice(_NAMES)] = tensors.pop(name)


def _drop(tensors: Tensors, name: str, random: Random) -> None:
    del tensors[name]


def _add(tensors: Tensors, name: str, random: Random) -> None:
    tensors[random.choice(_NAMES)] = {key: value[:] for key, value in tensors[name].items()}


def _exchange(tensors: Tensors, name: str, random: Random) -> None:
    kind = name.rpartition(".")[2]
    other = random.choice([key for key in tensors if key.endswith(kind) or random.random() < 0.1] or [name])
    tensors[name], tensors[other] = tensors[other], tensors[name]


def _reorder(tensors: Tensors, name: str, random: Random) -> None:
    names = list(tensors)
    random.shuffle(names)
    for key in names:
        tensors[key] = tensors.pop(key)


def _retype(tensors: Tensors, name: str, random: Random) -> None:
    tensor = tensors[name]
    dtype = random.choice(sorted(_DTYPES))
    tensor["dtype"] = dtype
    tensor["shape"] = [*tensor["shape"][:-1], -1] if len(tensor["shape"]) > 1 else [-1]
    leading = tensor["shape"][0] if len(tensor["shape"]) > 1 else 1
    tensor["shape"][-1] = len(tensor["data"]) // max(leading * _DTYPES[dtype], 1)


def _reshape(tensors: Tensors, name: str, random: Random) -> None:
    shape = tensors[name]["shape"]
    count = 1
    for size in shape:
        count *= size
    tensors[name]["shape"] = random.choice(([count], [1, count], [count, 1], shape[::-1], [1, *shape], [*shape, 1]))


def _resize(tensors: Tensors, name: str, random: Random) -> None:
    tensor = tensors[name]
    width = _DTYPES.get(tensor["dtype"], 1)
    count = len(tensor["data"]) // width
    shorter = random.choice((0, 1, max(count - 1, 0), count // 2, count + 1, count + 64, max(count - 64, 0)))
    tensor["data"] = (tensor["data"] + bytes(64 * width))[: shorter * width]
    tensor["shape"] = [len(tensor["data"]) // width]


def _write_numbers(tensors: Tensors, name: str, random: Random) -> None:
    """Numbers of the tensor's own kind that mean something: offsets, bits, NaN."""
    choices = [key for key in tensors if key.endswith((".row_offsets", ".mask", ".scales", ".shape", ".values"))]
    name = random.choice(choices or [name])
    tensor = tensors[name]
    width = _DTYPES.get(tensor["dtype"], 1)
    count = len(tensor["data"]) // width
    for _ in range(random.choice((1, 1, 2, 8)) if count else 0):
        place = random.randrange(count) * width
        old = int.from_bytes(tensor["data"][place : place + width], "little", signed=True)
        units = 2 ** (8 * width)
        new = random.choice(
            (0, -1, 1, old + 1, old - 1, old + 8, old + 16, old - 16, old ^ (1 << random.randrange(8 * width)), -old,
             units // 2, units // 2 - 1, 0x7FC0, 0x7F80, 0xFF80, 2**40, old + 2**32, random.getrandbits(64))
        ) % units  # fmt: skip
        tensor["data"][place : place + width] = new.to_bytes(width, "little")


def _flip_bits(tensors: Tensors, name: str, random: Random) -> None:
    data = tensors[name]["data"]
    for _ in range(random.choice((1, 2, 8, 64)) if data else 0):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _fill(tensors: Tensors, name: str, random: Random) -> None:
    data = tensors[name]["data"]
    data[:] = bytes([random.choice((0, 0xFF, 0x7F, 0x80, 1))]) * len(data)


_CHANGES: tuple[Callable[[Tensors, str, Random], None], ...] = (
    _rename, _drop, _add, _exchange, _reorder, _retype, _reshape, _resize, _write_numbers, _write_numbers,
    _write_numbers, _write_numbers, _write_numbers, _flip_bits, _flip_bits, _fill,
)  # fmt: skip
