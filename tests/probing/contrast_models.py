"""Random models of every kind of layer that the exact contrasts have to continue, and the naive loop they replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from restorelcc.compensation import sparse_output_projections
from restorelcc.text import TokenSet

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mha": {"model_type": "llama"},
    "gqa": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "sliding": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5},
    "some_sliding": {
        "model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5,
        "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 10},
    # attention between two norms, soft-capped scores and soft-capped logits
    "gemma2": {
        "model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5,
        "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0,
    },
    # the head of a layer norm's model has a projection in front of it
    "opt": {"model_type": "opt", "ffn_dim": 40, "word_embed_proj_dim": 16},
    "gpt_neox": {"model_type": "gpt_neox"},  # attention and MLP side by side
    "falcon": {"model_type": "falcon", "bias": True},  # the same, and layers that return tuples
    "phi": {"model_type": "phi"},  # the same, and an LM head with a bias
    "bloom": {"model_type": "bloom", "n_layer": 4, "n_head": 4},  # adds the residual inside attention
    "cohere": {"model_type": "cohere", "logit_scale": 0.25},  # scales its logits
}  # fmt: skip


def contrast_model(kind: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose weights are large enough that an edit of any head is seen in the losses."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SIZES, **MODELS[kind]}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(len(kind))
    model: Any = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.25) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype)


def contrast_text(*, ragged: bool = True, seed: int = 0) -> TokenSet:
    """Seven rows of up to 14 tokens, of which the answers count; one row has no counted token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([14, 9, 14, 5, 11, 6, 3]) if ragged else torch.full((7,), 14)
    starts = torch.tensor([1, 3, 6, 2, 10, 4, 3])
    ids = torch.randint(3, VOCABULARY, (7, 14), generator=generator)
    ids = torch.where(torch.arange(14) < lengths[:, None], ids, 0)
    return TokenSet(ids, lengths, starts, "random")


def naive_nll(model: Any, tokens: TokenSet, comp: Tensor) -> Tensor:
    """NLL [n, T] of the predicted tokens, float64 log-softmax of the stock model with comp [L, K] installed."""
    for projection, vector in zip(sparse_output_projections(model), comp, strict=True):
        projection.comp.copy_(vector)
    with torch.no_grad():
        logits = model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False).logits.double()
    picked = logits.log_softmax(-1)[:, :-1].gather(-1, tokens.ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(-picked, (1, 0))


def naive_contrasts(
    model: Any, tokens: TokenSet, vectors: Tensor, *, base: Tensor | None = None, edit: str = "inject",
    segments: Tensor | None = None, segment_count: int = 1, weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(delta [L, H, S], base NLL [S]): one full stock forward for each head."""
    layers, heads, head_dim = vectors.shape
    base = torch.zeros(layers, heads * head_dim) if base is None else base.float()
    segments = torch.zeros_like(tokens.ids) if segments is None else segments
    weights = torch.ones(tokens.ids.shape) if weights is None else weights
    weight = torch.where(tokens.labels != -100, weights.double(), 0.0)
    masks = torch.stack([weight * (segments == s) for s in range(segment_count)])  # [S, n, T]

    def mean(nll: Tensor) -> Tensor:
        return (masks * nll).sum((1, 2)) / masks.sum((1, 2))

    before = naive_nll(model, tokens, base)
    delta = torch.empty(layers, heads, segment_count, dtype=torch.float64)
    for layer in range(layers):
        for head in range(heads):
            comp = base.clone().view(layers, heads, head_dim)
            comp[layer, head] = 0.0 if edit == "ablate" else comp[layer, head] + vectors[layer, head].float()
            delta[layer, head] = mean(naive_nll(model, tokens, comp.flatten(1)) - before)
    sparse_output_projections(model)
    return delta, mean(before)
