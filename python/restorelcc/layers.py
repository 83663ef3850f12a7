"""One decoder layer of a checkpoint resident at a time, run by the stock module with the stock arguments.

What it replaces::

    model = AutoModelForCausalLM.from_pretrained(path)          # every layer in memory
    h = model.model.layers[i](h, **whatever_the_stock_model_passes)

The skeleton of the model stands on the meta device (shapes, no storage); everything outside the decoder
layers of the base model (embeddings, rotary tables) is loaded, the layers are not. The arguments a layer
gets from its stock model (masks, positions, rotary embeddings) are recorded from a stock forward (see
`architectures.record_layer_calls`), so nothing of the model is computed by our own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import decoder_layers, record_layer_calls, stored_tensor, tensor_files
from .models import load_model, plain_errors

__all__ = ["LayerStream"]


class LayerStream:
    """The decoder layers of a Hugging Face checkpoint directory, one resident at a time.

    Args:
        path: directory with config.json and model.safetensors (or its shards and index).
        dtype: computation type; weights are widened or narrowed as they are read. float32 by default,
            because the lost activation is a small difference of two large numbers.

    Raises:
        ValueError: the directory lacks safetensors weights, or lacks a tensor that the stock class needs.
    """

    def __init__(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        from accelerate import init_empty_weights  # type: ignore[import-untyped]
        from transformers import AutoConfig, AutoModelForCausalLM

        self.path = Path(path)
        self.dtype = dtype
        with plain_errors(self.path):
            config = AutoConfig.from_pretrained(self.path, local_files_only=True)
            config.use_cache = False
            with init_empty_weights(include_buffers=False):
                model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        self.model = model.eval().requires_grad_(False)
        self.config = config
        self._files = tensor_files(self.path)
        self.prefix, self._layers = decoder_layers(self.model)
        self.layer_count = len(self._layers)
        base = self.model.base_model
        base_name = self.model.base_model_prefix
        for name, _ in list(base.named_parameters()):
            full = f"{base_name}.{name}"
            if not full.startswith(self.prefix + "."):
                self._materialise(self.model, full, self.read(full))

    def read_head(self) -> None:
        """Loads what stands outside of the base model too: the LM head, or the embedding that it is tied to."""
        head, tied = self.model.get_output_embeddings(), getattr(self.config, "tie_word_embeddings", False)
        for name, parameter in list(self.model.named_parameters()):
            if not parameter.is_meta or name.startswith(self.prefix + "."):
                continue
            if name in self._files:
                value = self.read(name)
            elif tied and parameter is head.weight:
                value = self.model.get_input_embeddings().weight
            else:  # stored under an older name, as GPT-NeoX's head is: the stock loader knows it
                value = load_model(self.path).model.get_parameter(name).to(self.dtype)
            self._materialise(self.model, name, value)

    def stored_dtype(self, name: str) -> torch.dtype:
        """The type in which the file holds this parameter; its values are not read."""
        return self._stored(name).dtype

    def read(self, name: str) -> Tensor:
        """The parameter as the file holds it, in the computation type."""
        return self._stored(name).to(self.dtype)

    def _stored(self, name: str) -> Tensor:
        """Mapped, not read: pages come with their first use, and the system may take them back."""
        file = self._files.get(name)
        if file is None:
            raise ValueError(
                f"{self.path} has no tensor named {name}, which the stock {type(self.model).__name__} needs; "
                "load it with transformers and save_pretrained() it once to bring its names up to date"
            )
        value = stored_tensor(file, name)
        shape = self.model.get_parameter(name).shape
        if value.shape != shape:
            raise ValueError(
                f"{self.path} holds {name} of shape {list(value.shape)}, its config.json asks for {list(shape)}; "
                "weights and configuration are not of the same model"
            )
        return value

    @staticmethod
    def _materialise(root: nn.Module, name: str, value: Tensor) -> None:
        owner_name, _, leaf = name.rpartition(".")
        owner = root.get_submodule(owner_name)
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    def embed(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[Any]]:
        """(hidden [B, T, E] entering layer 0, the (args, kwargs) of each layer) for ids [B, T]."""
        return record_layer_calls(self.model, ids, attention_mask)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The stock layer `index` with its weights resident; they are dropped when the block ends."""
        layer = self._layers[index]
        names = [name for name, _ in layer.named_parameters()]
        try:
            for name in names:
                self._materialise(layer, name, self.read(f"{self.prefix}.{index}.{name}"))
            yield layer
        finally:
            for name in names:
                meta = torch.empty_like(layer.get_parameter(name), device="meta")
                self._materialise(layer, name, meta)


def run_layer(layer: nn.Module, hidden: Tensor, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    """The layer's output hidden state [B, T, E]; some stock layers return it as the first of a tuple."""
    args, kwargs = call
    out = layer(hidden, *args, **kwargs)
    state: Tensor = out[0] if isinstance(out, tuple) else out
    return state
