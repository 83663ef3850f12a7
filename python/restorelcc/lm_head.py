"""The loss of a stock model on a batch, through `linear_cross_entropy`: the one place where the product computes it.

    h = what enters the LM head [n, T, E],   l = h Wᵀ + bias,   nll = −log softmax(l)[label]

A stock forward gives h; a hook on the LM head keeps its input and lets only one position pass, so that logits
[n, T, V] never exist. Stock classes whose logits are more than that product (soft-capping, scaling, a head that is no
nn.Linear) are found by asking them once, and get their own logits and torch's cross_entropy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import ops
from .token_set import TokenSet

__all__ = ["LanguageHead", "head_input", "language_head", "logit_losses", "token_losses"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the compiled op
_CHUNK_ELEMENTS = 1 << 24  # of float32 logits at once, where there are any: 64 MiB


@dataclass(frozen=True)
class LanguageHead:
    """How a model's logits come from h. `plain`: they are module.weight, module.bias and nothing else."""

    module: Any
    plain: bool
    last: bool  # nothing happens to the logits behind the module

    def takes(self, hidden: Tensor) -> bool:
        """Whether the compiled op computes what the module's logits of `hidden` would give."""
        return self.plain and hidden.dtype == self.module.weight.dtype and hidden.dtype in _DTYPES

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """nll [M] float32 of hidden [M, E] against labels [M]; gradients flow to hidden (and to the head's weight)."""
        if self.takes(hidden):
            nll = ops.linear_cross_entropy(hidden, self.module.weight, labels, bias=self.module.bias)
            assert isinstance(nll, Tensor)
            return nll
        step = max(1, _CHUNK_ELEMENTS // max(1, int(getattr(self.module, "out_features", 1))))
        parts = [
            logit_losses(self.module(hidden[begin : begin + step]), labels[begin : begin + step])
            for begin in range(0, hidden.shape[0], step)
        ]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


_heads: WeakKeyDictionary[nn.Module, LanguageHead] = WeakKeyDictionary()


def logit_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """nll [M] float32 of logits [M, V] that a stock class computed itself."""
    return nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def language_head(model: Any) -> LanguageHead:
    """The model's head, asked for once per model (and again when another module has taken its place)."""
    module = model.get_output_embeddings()
    known = _heads.get(model)
    if known is not None and known.module is module:
        return known
    last = _nothing_behind(model, module)
    _heads[model] = LanguageHead(module, last and type(module) is nn.Linear, last)
    return _heads[model]


@torch.no_grad()
def _nothing_behind(model: Any, module: nn.Module) -> bool:
    """Whether what the head gives is what the model gives: the head's output is replaced by known numbers."""
    planted: list[Tensor] = []

    def plant(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        ramp = torch.linspace(-64, 64, output.shape[-1], device=output.device, dtype=torch.float32)
        planted.append(ramp.to(output.dtype).expand_as(output))
        return planted[-1]

    handle = module.register_forward_hook(plant)
    try:
        ids = torch.zeros(1, 2, dtype=torch.long)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        handle.remove()
    return len(planted) == 1 and torch.equal(logits.float(), planted[0].float())


@contextmanager
def head_input(model: Any) -> Iterator[list[Tensor]]:
    """Inside, every forward of `model` adds what enters its LM head, [n, T, E], and forms the logits of one token."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (args[0][:1, -1:], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def token_losses(model: Any, batch: TokenSet) -> Tensor:
    """nll [counted] float32, nats, of the tokens of `batch` that count, row after row.

    Where gradients are on they flow into the model. Raises what the stock forward raises.
    """
    labels = batch.labels[:, 1:]
    counted = labels != -100
    arguments = {"input_ids": batch.ids, "attention_mask": batch.attention_mask, "use_cache": False}
    head = language_head(model)
    if not head.last:
        return logit_losses(model(**arguments).logits[:, :-1][counted], labels[counted])
    with head_input(model) as seen:
        model(**arguments)
    return head.losses(seen[0][:, :-1][counted], labels[counted])
