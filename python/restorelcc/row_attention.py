"""Attention of one new token over a static cache, as sums that a compiled graph fuses.

    p = softmax(q Kᵀ / √d + mask),  y = p V        q [B, H, 1, D];  K, V [B, G, L, D], H / G heads of q to each of K

What it replaces in a graph: torch's flash attention, preceded by a copy of K and V for each head of q. For one row that
is more work than the attention. Everything else (prompts, softcaps, sinks) goes to the stock function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["attention_of_rows", "row_attention"]

_NAME = "restorelcc_rows"
_STOCK_ARGUMENTS = frozenset({"is_causal", "position_ids", "use_cache", "sliding_window", "output_attentions"})


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """[B, 1, H, D], as an attention function of transformers; sums and softmax in float32."""
    strange = {name for name, argument in others.items() if argument is not None} - _STOCK_ARGUMENTS
    if query.shape[2] != 1 or attention_mask is None or dropout or strange:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return found
    batch, heads, _, size = query.shape
    groups = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    rows = query.reshape(batch, groups, heads // groups, 1, size).float() * scale
    scores = (rows * key[:, :, None].float()).sum(-1)  # [B, G, H / G, L]
    mask = attention_mask[..., : key.shape[2]]  # [B, 1, 1, L]
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    chances = torch.softmax(scores, -1)
    y = (chances[..., None] * value[:, :, None].float()).sum(-2)
    return y.to(query.dtype).reshape(batch, 1, heads, value.shape[-1]), None


@contextmanager
def attention_of_rows(model: Any) -> Iterator[None]:
    """Inside, a model whose attention is torch's (sdpa) is traced with `row_attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != "sdpa":
        yield
        return
    AttentionInterface.register(_NAME, row_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
