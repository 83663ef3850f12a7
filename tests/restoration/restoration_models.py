"""Small models to restore: random ones of every architecture that the fold knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def small_config(kind: str) -> object:
    """A random tiny model of each architecture the fold knows; hidden 32, 2 layers, 4 heads."""
    from transformers import (
        BloomConfig,
        FalconConfig,
        GPTNeoXConfig,
        LlamaConfig,
        MistralConfig,
        OPTConfig,
        Qwen2Config,
        Qwen3Config,
    )  # fmt: skip

    llama_like = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }
    makers: dict[str, Callable[[], object]] = {
        "llama-gqa": lambda: LlamaConfig(**llama_like),
        "llama-mha-untied": lambda: LlamaConfig(
            **{**llama_like, "num_key_value_heads": 4, "tie_word_embeddings": False}
        ),
        "llama-head-dim": lambda: LlamaConfig(**llama_like, head_dim=12, tie_word_embeddings=True),
        "llama-attention-bias": lambda: LlamaConfig(**llama_like, attention_bias=True),
        "mistral": lambda: MistralConfig(**llama_like, sliding_window=None),
        "mistral-sliding": lambda: MistralConfig(**llama_like, sliding_window=8),
        "qwen2": lambda: Qwen2Config(**llama_like, use_sliding_window=False),
        "qwen2-sliding": lambda: Qwen2Config(
            **llama_like, use_sliding_window=True, sliding_window=8, max_window_layers=1
        ),
        "qwen3": lambda: Qwen3Config(**llama_like, head_dim=12),
        "opt": lambda: OPTConfig(
            vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        # Layers that return tuples, of which the stock loop takes the first: four, since one or two hide it.
        "falcon": lambda: FalconConfig(
            vocab_size=96, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, multi_query=True, alibi=False,
            parallel_attn=True, bias=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        "bloom": lambda: BloomConfig(
            vocab_size=96, hidden_size=32, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        "opt-projected": lambda: OPTConfig(
            vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        "gpt_neox": lambda: GPTNeoXConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        ),
    }
    return makers[kind]()


ARCHITECTURES = (
    "llama-gqa", "llama-mha-untied", "llama-head-dim", "llama-attention-bias", "mistral", "mistral-sliding",
    "qwen2", "qwen2-sliding", "qwen3", "opt", "gpt_neox",
)
FOLDABLE = tuple(kind for kind in ARCHITECTURES if not kind.endswith("-sliding"))


def zero_half(model: nn.Module) -> None:
    """Zeroes the two smaller of every four weights of each matrix inside the decoder layers, in place."""
    from restorelcc.models import prunable_linears

    for _, linear in prunable_linears(model):
        groups = linear.weight.data.view(linear.out_features, -1, 4)
        smaller = groups.abs().argsort(dim=-1)[..., :2]
        groups.scatter_(-1, smaller, 0.0)


def small_tokenizer() -> object:
    """Words "w0" .. "w95", so that a random model is a whole checkpoint."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0")


def random_pair(kind: str, folder: Path) -> tuple[Path, Path]:
    """(dense, pruned) checkpoint directories of a random tiny model, with biases that are not zero."""
    from transformers import AutoModelForCausalLM

    from restorelcc.models import save_checkpoint

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(small_config(kind)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
            elif parameter.ndim == 2:
                parameter.mul_(4)
    dense, pruned = folder / "dense", folder / "pruned"
    save_checkpoint(model, small_tokenizer(), dense)
    zero_half(model)
    save_checkpoint(model, small_tokenizer(), pruned)
    return dense, pruned
