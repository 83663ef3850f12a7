"""`packed.safetensors`: tensors laid out so that they can be used where they are mapped.

    <module>.mask  .values  .row_offsets  .shape  [.scales]      a packed matrix (PackedWeight.to_tensors)
    compensation.<name>                                          c [L, K] float32, of attention
    ffn_compensation.<name>                                      c [L, E] float32, of FFNs
    <stock name>                                                 every other parameter and persistent buffer

An ordinary safetensors file whose tensors stand in an order of our own. safetensors allows no gaps between tensors,
but vector loads want values at multiples of 16 bytes. So tensors come by the largest power of two (64 at most) that
divides their size, larger ones first, after a header padded to 64 bytes: then each begins at a multiple of that power.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .huge_pages import HugePages
from .wording import one_line

__all__ = ["PackedFile", "write_aligned"]

_ALIGNMENT = 64
_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_aligned(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file in the order described above, one tensor in memory at a time beside the given ones.

    Raises:
        ValueError: a data type that safetensors files of this project do not hold.
    """
    order = sorted(tensors, key=lambda name: (-math.gcd(tensors[name].nbytes, _ALIGNMENT), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{name} has dtype {tensor.dtype}, which {path.name} cannot hold")
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            plain = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(plain.view(torch.uint8).numpy().data)


class PackedFile:
    """An open packed.safetensors: a tensor is mapped when it is asked for, and read when its bytes are used.

    Notes which tensors were asked for, so that unknown ones are found. Use it in a `with`. With huge_pages a tensor is
    not mapped but copied into memory of large pages.
    """

    def __init__(self, path: Path, *, huge_pages: bool = False) -> None:
        self.path = path
        self._huge_pages = huge_pages
        self._memory: HugePages | None = None
        self._stack = ExitStack()
        self._names: set[str] = set()
        self._left: set[str] = set()

    def __enter__(self) -> PackedFile:
        if not self.path.exists():
            raise ValueError(f"{self.path} does not exist; copy the packed model again, with all its files")
        if not self.path.is_file():  # to open a pipe would be to wait for its writer
            raise ValueError(f"{self.path} is not a file; copy or pack the model again")
        try:
            self._file = self._stack.enter_context(safe_open(self.path, framework="pt"))
            self._names = set(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{self.path} is truncated or not a safetensors file ({one_line(error)}); copy or pack it again"
            ) from error
        self._left = set(self._names)
        if self._huge_pages:  # each tensor may begin at a multiple of 64
            self._memory = HugePages(self.path.stat().st_size + HugePages.room(1) * len(self._names))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str) -> Tensor:
        """The tensor `name`, mapped. ValueError where the file has none."""
        if name not in self._names:
            raise ValueError(f"{self.path} lacks the tensor {name}; copy or pack it again")
        self._left.discard(name)
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except Exception as error:  # safetensors names data types and shapes that this torch cannot make
            why = f"{one_line(name)} cannot be read ({one_line(error)})"
            raise ValueError(f"{self.path}: {why}; pack the model again") from error
        return tensor if self._memory is None else self._memory.copy(tensor)

    def take_as(self, name: str, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The same, of that shape and dtype. ValueError where the file has another."""
        tensor = self.take(name)
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            raise ValueError(
                f"{self.path} holds {name} as {tensor.dtype} {list(tensor.shape)}, the model needs {dtype} "
                f"{list(shape)}; its files are not of one model, pack it again"
            )
        return tensor

    def check_shape(self, name: str, shape: torch.Size) -> None:
        """ValueError where the tensor `name`, which is not read, has another shape."""
        stored = list(self._file.get_slice(name).get_shape())
        if stored != list(shape):
            raise ValueError(
                f"{self.path} holds {name} of shape {stored}, the model needs {list(shape)}; its files are not of one "
                "model, pack it again"
            )

    def finish(self) -> None:
        """ValueError where a tensor was never asked for: the file belongs to another model."""
        if self._left:
            raise ValueError(
                f"{self.path} holds {len(self._left)} tensors that the model has no place for, such as "
                f"{one_line(min(self._left))}; its files are not of one model, pack it again"
            )
