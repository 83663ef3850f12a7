"""The NLL of a checkpoint on some text, one decoder layer resident at a time.

    h = embedding of the text                                [n, T, E] float32, all rows
    for i in layers:   h = layer_i(h)
    nll = −log softmax(head(h))[label]                       the bits of `token_nll` of the whole model in float32

Weights can be given in the place of the stored ones, layer by layer, so that a changed model is measured before it is
written and never stands in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import layers_left_out
from .evaluation import NllResult, check_counted, row_sums
from .layers import LayerStream
from .lm_head import language_head
from .token_set import TokenSet

__all__ = ["streamed_nll"]


@torch.no_grad()
def streamed_nll(
    path: Path, tokens: TokenSet, *, changed: Callable[[str, Tensor], Tensor] | None = None, batch: int = 4
) -> NllResult:
    """NLL of the counted tokens of each row, as `token_nll`.

    Args:
        path: checkpoint directory.
        changed: (name, value float32) of each parameter of a layer -> what stands in its place, float32.
        batch: rows at once.

    Memory: one layer, the embeddings and the LM head in float32, the hidden state of all rows.

    Raises:
        ValueError: no token counts, rows longer than the model's context, or a checkpoint that lacks tensors.
    """
    stream = LayerStream(path)
    model = stream.model
    check_counted(model, tokens)
    stream.read_head()
    parts = list(tokens.batches(batch))
    outputs: list[Any] = []
    calls = []
    for part in parts:
        entered, arguments = stream.embed(part.ids, part.attention_mask)
        outputs.append(entered)
        calls.append(arguments)
    for index in range(stream.layer_count):
        with stream.layer(index) as layer:
            if changed is not None:
                _change(layer, f"{stream.prefix}.{index}", changed)
            for place, call in enumerate(calls):
                args, kwargs = call[index]
                outputs[place] = layer(_state(outputs[place]), *args, **kwargs)
    sums = []
    with layers_left_out(model) as answer:
        small = _state(outputs[0])[:1, :2]  # the head is asked what kind it is by the logits of all that it is shown
        answer((small,) if isinstance(outputs[0], tuple) else small)
        language_head(model)
        for part, output in zip(parts, outputs, strict=True):
            answer(output)
            sums.append(row_sums(model, part))
    return NllResult(torch.cat(sums), (tokens.lengths - tokens.response_start).clamp(min=0))


def _state(output: Any) -> Tensor:
    """The hidden state in what a stock layer returns."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def _change(layer: nn.Module, prefix: str, changed: Callable[[str, Tensor], Tensor]) -> None:
    for name, parameter in list(layer.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value = changed(f"{prefix}.{name}", parameter)
        layer.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
