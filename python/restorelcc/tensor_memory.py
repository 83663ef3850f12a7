"""Tensors that share memory, which safetensors does not write.

    apart({"w": w, "same": w, "u": u})      "same" is copied; w and u, mapped from a file or not, stay where they are
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["apart"]


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The contiguous CPU tensors, those copied that overlap one whose memory begins before."""
    found, end = dict(tensors), 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        if size and begin < end:
            found[name] = tensor.clone()
        end = max(end, begin + size)
    return found
