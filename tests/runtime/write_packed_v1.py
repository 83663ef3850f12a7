"""Wrote tests/runtime/packed_v1, once, when version 1 of the packed format was frozen.

Kept to say what is in there. It is not run again: test_packed_v1.py reads what was written then. A change of the format
gets a new version, a new folder, and leaves this one readable.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import restorelcc
from restorelcc.compensation import Compensation
from restorelcc.models import attention_sites, prunable_linears
from restorelcc.packed_model import pack_model, save_packed

IDS = [[3, 1, 4, 1, 5, 9, 2, 6]]


def checkpoint() -> LlamaForCausalLM:
    """K not a multiple of 64, 128 columns of scales and a few more, shared key-value heads, biases, untied head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=40, intermediate_size=136, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=32, attention_bias=True, tie_word_embeddings=False,
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for _, linear in prunable_linears(model):
        linear.weight[torch.rand_like(linear.weight) < 0.6] = 0.0
        if linear.bias is not None:
            linear.bias.normal_()
    return model


def main() -> None:
    folder = Path(__file__).with_name("packed_v1")
    if folder.exists():
        sys.exit(f"{folder} is there; what was frozen is not written again")
    for values in ("bf16", "int8"):
        model = checkpoint()
        sites = attention_sites(model)
        heads = torch.ones(len(sites), sites[0].heads, dtype=torch.bool)
        task = Compensation(torch.randn(len(sites), sites[0].inputs), heads, [site.name for site in sites])
        head = "int8" if values == "int8" else "dense"
        save_packed(pack_model(model, values=values, lm_head=head, compensations={"task": task}), None, folder / values)
        loaded = restorelcc.load(folder / values)
        expected = {
            f"{name}.weight": module.packed.unpack()
            for name, module in loaded.named_modules() if isinstance(module, restorelcc.SparseLinear)
        }  # fmt: skip
        ids = torch.tensor(IDS)
        with torch.no_grad():
            expected["logits"] = loaded(input_ids=ids).logits
            with restorelcc.compensations(loaded, ["task"]):
                expected["logits of task"] = loaded(input_ids=ids).logits
        save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / f"{values}.safetensors")


if __name__ == "__main__":
    main()
