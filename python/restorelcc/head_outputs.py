"""What every attention head of a model puts out at one token of every row, from a forward pass without logits.

z[l, h, i] = input of the output projection of layer l at token at[i] of row i, columns h·D to (h + 1)·D
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .models import attention_sites, get_module
from .token_set import TokenSet

__all__ = ["head_outputs"]


@torch.no_grad()
def head_outputs(
    model: nn.Module, rows: TokenSet, at: Tensor, *, batch: int = 4, advance: Callable[[int], None] = lambda _: None
) -> Tensor:
    """z [L, H, n, D] in the model's own type.

    Args:
        model: a stock model, or one whose output projections are `SparseLinear`; hooks go on and off again.
        at: int64 [n], the token of each row that is looked at.
        advance: told how many rows are through.

    Rows go through in order of length, so that little padding does.

    Raises:
        ValueError: a layer whose output projection was not called, or not in this shape.
    """
    sites = attention_sites(model)
    heads, size = sites[0].heads, sites[0].head_dim
    if any((site.heads, site.head_dim) != (heads, size) for site in sites):
        raise ValueError("the layers have heads of different sizes; the probe needs them equal")
    found: Tensor | None = None
    index = places = torch.empty(0, dtype=torch.long)
    seen = 0

    def keep(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal found, seen
            z: Tensor = args[0]
            if found is None:
                found = z.new_empty(len(sites), heads, len(rows), size)
            picked = z[torch.arange(len(index)), places]
            found[layer][:, index] = picked.view(len(index), heads, size).transpose(0, 1)
            seen += 1

        return hook

    handles = [get_module(model, site.name).register_forward_pre_hook(keep(site.layer)) for site in sites]
    base: Any = model.base_model
    try:
        order = torch.argsort(rows.lengths, stable=True)
        for begin in range(0, len(order), batch):
            index = order[begin : begin + batch]
            places = at[index]
            (part,) = rows.subset(index).batches(len(index))
            base(input_ids=part.ids, attention_mask=part.attention_mask, use_cache=False)
            advance(len(index))
    finally:
        for handle in handles:
            handle.remove()
    if found is None or seen != len(sites) * -(-len(rows) // batch):
        raise ValueError(f"{type(model).__name__} does not call each output projection once; it cannot be probed so")
    return found
