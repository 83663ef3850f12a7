"""Memory in pages of 2 MiB, for weights that every token reads whole.

With pages of 4 KiB each 4 KiB of a weight costs a walk through the page tables, under a hypervisor through two of them.
Measured on a virtual machine (docs/performance.md), two cores read 31 GB/s so, and 55 GB/s with pages of 2 MiB.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["HugePages", "huge_pages_offered"]

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ALIGNMENT = 64


def huge_pages_offered() -> bool:
    """Whether the system gives pages of 2 MiB to who asks (Linux: transparent huge pages at `madvise` or `always`)."""
    try:
        return hasattr(mmap, "MADV_HUGEPAGE") and "[never]" not in _SWITCH.read_text()
    except OSError:
        return False


class HugePages:
    """`nbytes` bytes, zero until written, to be filled with copies of tensors.

    Where the system does not offer huge pages it is ordinary memory. It lives as long as a tensor in it.
    """

    def __init__(self, nbytes: int) -> None:
        self._used = 0
        self._size = nbytes
        # Private: shared memory has a switch of its own for huge pages, which is mostly off.
        memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge_pages_offered():
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memory

    @staticmethod
    def room(nbytes: int) -> int:
        """What a tensor of nbytes takes of it: it begins at a multiple of 64."""
        return -(-nbytes // _ALIGNMENT) * _ALIGNMENT

    def copy(self, tensor: Tensor) -> Tensor:
        """The same values, dtype and shape, in this memory; contiguous. ValueError where there is no room left."""
        begin, end = self._used, self._used + self.room(tensor.nbytes)
        if end > self._size:
            raise ValueError(f"{tensor.nbytes} bytes do not fit: {self._size - begin} of {self._size} are left")
        if tensor.numel() == 0:
            return tensor.clone()
        self._used = end
        # Not views of one tensor: they would share a version counter, and writing the next would look like an edit of
        # all before it.
        place = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
        return place.view(tensor.shape).copy_(tensor)
