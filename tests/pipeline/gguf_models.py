"""Random Llamas that become GGUF files, and damage done to their checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gguf_tokenizers import byte_level
from safetensors.torch import load_file, save_file

from restorelcc.models import save_checkpoint

VOCABULARY = 265
BASE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 0, "rms_norm_eps": 1e-3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}  # fmt: skip
BIASED = {"attention_bias": True, "mlp_bias": True}
CASES: dict[str, dict[str, Any]] = {
    "shared key-value heads": BIASED,
    "a key-value head for each": {**BIASED, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "one key-value head": {**BIASED, "num_key_value_heads": 1},
    "wide heads": {**BIASED, "head_dim": 12},
    "heads of five pairs": {**BIASED, "hidden_size": 36, "head_dim": 10},
    "biases of attention alone": {"attention_bias": True},
    "a bias of o_proj alone": {"attention_bias": True, "zero": ("q_proj", "k_proj", "v_proj")},
    "biases of FFNs alone": {"mlp_bias": True, "tie_word_embeddings": True},
    "no biases": {},
    "linear positions": {**BIASED, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    "Llama 3 positions": {**BIASED, "rope_parameters": LLAMA3},
    "one layer": {**BIASED, "num_hidden_layers": 1},
}


def checkpoint(
    path: Path, settings: dict[str, Any], *, dtype: torch.dtype = torch.float32, tokenizer: Any = None
) -> Any:
    """A random Llama with half of its weights zero and biases and norms that are far from 0 and 1; returns it.

    settings: of the configuration; `zero` names projections whose biases are zeros.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {key: value for key, value in settings.items() if key != "zero"}
    model = LlamaForCausalLM(LlamaConfig(**{**BASE, **sizes})).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(std=0.5).add_(1.0 if "norm" in name else 0.0)
            if name.endswith(".bias") and name.split(".")[-2] in settings.get("zero", ()):
                parameter.zero_()
        else:
            parameter.normal_(std=0.3)
            if ".layers." in name:
                parameter[:, ::2] = 0
    save_checkpoint(model.to(dtype), tokenizer or byte_level(), path)
    return model


def edit(path: Path, **changes: Any) -> Path:
    """Changes config.json."""
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


def edit_tensors(path: Path, **changes: Any) -> Path:
    """Changes or (None) removes tensors of the weight file; "__" in a name stands for a dot."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, file, {"format": "pt"})
    return path
