"""Habits of the stock GGUF reader that its settings do not reach: two put right for the duration of a call, one found.

It draws its bar with plain tqdm; and it parses the file anew for the tokenizer, the configuration and the weights, and
maps the names of all tensors anew for each submodule: two thirds of the time of reading a 135M model. And it makes a
Llama without biases of any file, so what `restorelcc export` writes would lose its restoration.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def no_bar_of_gguf() -> Iterator[None]:
    """Nothing drawn by the stock GGUF reader inside."""
    from transformers import modeling_gguf_pytorch_utils as reader

    stock: Any = reader
    drawn = getattr(stock, "tqdm", None)
    if drawn is None:
        yield
        return
    stock.tqdm = functools.partial(drawn, disable=True)
    try:
        yield
    finally:
        stock.tqdm = drawn


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """Each GGUF file is parsed once inside, and its names are mapped once; nothing is kept afterwards."""
    import gguf

    package: Any = gguf  # the stock code imports these names at each call
    reader, name_map = package.GGUFReader, package.get_tensor_name_map
    package.GGUFReader = functools.lru_cache(reader)
    package.get_tensor_name_map = functools.lru_cache(name_map)
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map = reader, name_map


def refuse_lost_biases(file: Path, model: Any) -> None:
    """Refuses a Llama file with biases that `model`, which the stock reader made of it, has not.

    Raises:
        ValueError: with their number.
    """
    import gguf

    package: Any = gguf
    if getattr(model.config, "model_type", "") != "llama":
        return
    stored = sum(tensor.name.endswith(".bias") for tensor in package.GGUFReader(file).tensors)
    kept = sum(name.endswith(".bias") for name, _ in model.named_parameters())
    if stored > kept:
        raise ValueError(
            f"{file} holds {stored} biases, and transformers reads {kept} of them from a GGUF file of a Llama; pass "
            "the checkpoint directory that it was made from"
        )
