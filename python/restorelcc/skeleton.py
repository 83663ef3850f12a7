"""The stock class that a packed model's config.json asks for, built without storage for its parameters.

    config.json -> shapes alone (meta) -> compared with the record and the file -> the class, with its buffers computed

A configuration may lie. The stock classes allocate what it says (a norm of a billion weights, rotary tables of a
head of a billion), so nothing is allocated before its shapes were compared with what is there to be loaded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .architectures import prunable_linears
from .artifacts import read_json
from .models import plain_errors
from .packed_file import PackedFile
from .packed_record import Matrix, PackedRecord
from .wording import one_line

__all__ = ["build_skeleton", "check_configuration", "check_matrix"]

# Rotary tables and the like, which no file holds: far more than the stock classes need.
_MOST_BUFFER_BYTES = 256 << 20
# Layers, or labels: the stock configurations make a list as long as they say.
_MOST_COUNTED = 10_000


def build_skeleton(path: Path, record: PackedRecord, file: PackedFile) -> Any:
    """The stock class with its buffers computed and its parameters without storage.

    Nothing that the directory names is fetched or run: no code of its own, no kernels of the hub.

    Raises:
        ValueError: no such class, or its shapes are not those of the record and the file.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import GenerationConfig

    with plain_errors(path):
        config = _stock_config(path, record)
        with torch.device("meta"):
            shapes = _stock_class(config, record)
    _check_shapes(shapes, record, file)
    with plain_errors(path):
        with _no_random_weights(), init_empty_weights(include_buffers=False):
            model = _stock_class(config, record)
        model.tie_weights()
        if (path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model


def check_configuration(path: Path) -> None:
    """Looks at config.json and generation_config.json in the directory `path` before the stock code does.

    Raises:
        ValueError: no such file, not JSON, or a count for which the stock configuration would make endless lists.
    """
    file = path / "config.json"
    if not file.is_file():  # nor a pipe, which would be waited for
        raise ValueError(f"{path} cannot be loaded: config.json is missing or no file; copy or pack the model again")
    _check_counts(file, read_json(file))
    if (path / "generation_config.json").is_file():
        read_json(path / "generation_config.json")


def _check_counts(file: Path, entries: Any) -> None:
    for key, value in entries.items() if isinstance(entries, dict) else enumerate(entries):
        if isinstance(value, dict | list):
            _check_counts(file, value)
        elif isinstance(value, int) and value > _MOST_COUNTED and any(word in str(key) for word in ("layer", "label")):
            raise ValueError(
                f"{file.parent} cannot be loaded: {one_line(key)} in config.json is {one_line(value)}, more than "
                f"{_MOST_COUNTED:,}; copy or pack the model again"
            )


def _stock_config(path: Path, record: PackedRecord) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if config._attn_implementation not in ("eager", "sdpa"):
        config._attn_implementation = None  # the stock choice; a file may name a kernel to be fetched from the hub
    layers, matrices = config.get_text_config(decoder=True).num_hidden_layers, len(record.packed + record.dense)
    if layers > matrices:  # before so many are built
        raise ValueError(f"config.json has {layers} layers, the record {matrices} matrices; pack the model again")
    return config


def _stock_class(config: Any, record: PackedRecord) -> Any:
    from transformers import AutoModelForCausalLM

    stock: Any = AutoModelForCausalLM
    return stock.from_config(config, dtype=record.dtype, trust_remote_code=False)


def _no_random_weights() -> AbstractContextManager[None]:
    """They would be made for parameters without storage, in most of the time that building takes."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # another release of transformers: slower
        return nullcontext()
    context: AbstractContextManager[None] = no_init_weights()
    return context


def check_matrix(matrix: Matrix, linear: nn.Linear | None, directory: Path) -> None:
    """ValueError where the packed `matrix` is not of the sizes of the stock projection that it stands for."""
    if linear is None or (linear.out_features, linear.in_features) != (matrix.rows, matrix.columns):
        has = "no such matrix" if linear is None else f"{linear.out_features} x {linear.in_features}"
        raise ValueError(
            f"{directory} packs {matrix.name} as {matrix.rows} x {matrix.columns}, its config.json has "
            f"{has}; its files are not of one model, pack it again"
        )


def _check_shapes(shapes: Any, record: PackedRecord, file: PackedFile) -> None:
    buffers = sum(buffer.nbytes for buffer in shapes.buffers())
    if buffers > _MOST_BUFFER_BYTES:
        raise ValueError(
            f"{file.path.parent} cannot be loaded: its config.json asks for tables of {buffers:,} bytes; "
            "copy or pack the model again"
        )
    packed = {matrix.name: matrix for matrix in record.packed}
    for name, linear in prunable_linears(shapes):
        if name in packed:
            check_matrix(packed[name], linear, file.path.parent)
    replaced = {f"{name}.weight" for name in packed} | ({f"{record.head.name}.weight"} if record.head else set())
    for name, parameter in shapes.named_parameters():
        if name not in replaced and name in file:
            file.check_shape(name, parameter.shape)
