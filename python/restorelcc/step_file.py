"""Reading the files that the steps leave for each other; they may be truncated, of another step or made by hand.

    {"total": (torch.float64, "L H D"), "gram": (torch.float64, "L H D D")}      a letter is one size in the whole file

Everything that a reader relies on is checked here, so that no step begins to compute on a damaged file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["Fields", "read_step_file"]

Fields = Mapping[str, tuple[torch.dtype, str]]


def read_step_file(
    path: Path, kind: str, fields: Fields | Callable[[dict[str, str], list[str]], Fields], *, name: str, remedy: str,
    marks: Sequence[str] = (), others: Sequence[tuple[torch.dtype, str]] = (),
) -> tuple[dict[str, Tensor], dict[str, str]]:  # fmt: skip
    """(tensors, metadata) of a step's file of version 0.

    Args:
        kind: what the file's metadata must say it is.
        fields: tensor name -> (dtype, sizes as letters); equal letters are equal sizes, and all are at least 1. Or a
            function of the metadata and the tensors' names that says so, or raises ValueError with the reason.
        name, remedy: what the file is called and how to get one, for the error.
        marks: metadata that must be there besides `kind` and `version`.
        others: (dtype, sizes) that a tensor of any further name may have. Without it such tensors are not read.

    Raises:
        ValueError: no such file, a directory, truncated, of another kind or version, a tensor or a mark that is
            missing, another data type, sizes that do not fit, NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} {'is a directory' if path.is_dir() else 'does not exist'}; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("kind") != kind or metadata.get("version") != "0":
                raise ValueError(f"{path} is not a {name} file of version 0; {remedy}")
            if callable(fields):
                fields = _said_by(path, fields, metadata, sorted(file.keys()), remedy)
            missing = [key for key in fields if key not in set(file.keys())]
            missing += [key for key in marks if key not in metadata]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}; {remedy}")
            names = sorted(file.keys()) if others else list(fields)
            tensors = {key: file.get_tensor(key) for key in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); {remedy}") from error
    sizes: dict[str, int] = {}
    for key, (dtype, letters) in fields.items():
        _check(path, key, tensors[key], dtype, letters.split(), sizes, remedy)
    for key in (key for key in tensors if key not in fields):
        form = next((form for form in others if len(form[1].split()) == tensors[key].dim()), others[0])
        _check(path, key, tensors[key], form[0], form[1].split(), sizes, remedy)
    return tensors, metadata


def _said_by(
    path: Path, fields: Callable[[dict[str, str], list[str]], Fields], metadata: dict[str, str], names: list[str],
    remedy: str,
) -> Fields:  # fmt: skip
    try:
        return fields(metadata, names)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; {remedy}") from error


def _check(
    path: Path, key: str, tensor: Tensor, dtype: torch.dtype, letters: list[str], sizes: dict[str, int], remedy: str
) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{path} holds {key} as {tensor.dtype}, not {dtype}; {remedy}")
    fits = tensor.dim() == len(letters) and all(
        size >= 1 and sizes.setdefault(letter, size) == size
        for letter, size in zip(letters, tensor.shape, strict=True)
    )
    if not fits:
        known = ", ".join(f"{letter}={sizes[letter]}" for letter in dict.fromkeys(letters) if letter in sizes)
        raise ValueError(
            f"{path} holds {key} of shape {list(tensor.shape)}, not [{', '.join(letters)}]"
            f"{f' with {known}' if known else ''}; {remedy}"
        )
    if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        raise ValueError(f"{path} holds {bad} NaN or infinite values in {key}; {remedy}")
