"""Named tensors of a step, in a file that is whole or absent: what a refit or a tuning changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .artifacts import atomic_write_tensors

__all__ = ["load_tensors", "save_tensors"]


def save_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes the file that `load_tensors` reads."""
    atomic_write_tensors(path, {name: value.contiguous() for name, value in tensors.items()},
                         {"kind": kind, "version": "0"})  # fmt: skip


def load_tensors(path: Path, kind: str) -> dict[str, Tensor]:
    """name -> tensor, mapped from the file: pages come with their first use, and the system may take them back.

    Whether names and shapes fit a model, the caller finds out (see `retargeted`).

    Raises:
        ValueError: missing, damaged, of another kind or version, or holding NaN or infinity.
    """
    remedy = "run `restorelcc restore` again"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != kind or metadata.get("version") != "0":
                raise ValueError(f"{path} is not a {kind} file of version 0; {remedy}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); {remedy}") from error
    for name, value in tensors.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path} holds values in {name} that are no finite numbers; {remedy}")
    return tensors
