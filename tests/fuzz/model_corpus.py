"""Small valid packed models to garble, made on the spot; and what a directory to load is here: entries by name.

    llama_bf16     GQA, q/k/v and gate/up joined, tied head
    llama_int8     int8 values with scales, the LM head packed as int8 too
    llama_named    two compensations, the first of them the default; fp32
    llama_dense    one matrix kept dense, so gate and up are not joined; fp16
    qwen2_biased   biases, a head of its own; bf16
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from pathlib import Path
from typing import Any

# Name -> contents, or what stands there instead: {"link": target}, {"pipe": 0}, {"directory": 0}, {"hole": bytes}.
Entry = bytes | dict[str, Any]
Directory = dict[str, Entry]

FILES = ("restorelcc.json", "packed.safetensors", "config.json", "generation_config.json")

_SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_KINDS: dict[str, dict[str, Any]] = {
    "llama_bf16": {"values": "bf16", "tied": True},
    "llama_int8": {"values": "int8", "lm_head": "int8"},
    "llama_named": {"values": "fp32", "compensations": ("law", "tax")},
    "llama_dense": {"values": "fp16", "dense": ("mlp.up_proj",)},
    "qwen2_biased": {"values": "bf16", "model_type": "qwen2"},
}


def build_corpus() -> dict[str, Directory]:
    """Kind -> the files of a packed model; the same bytes in every run of the same torch and transformers."""
    return {kind: _build(**settings) for kind, settings in _KINDS.items()}


def _build(
    values: str,
    *,
    lm_head: str = "dense",
    tied: bool = False,
    compensations: tuple[str, ...] = (),
    dense: tuple[str, ...] = (),
    model_type: str = "llama",
) -> Directory:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from restorelcc.architectures import attention_sites, prunable_linears
    from restorelcc.compensation import Compensation
    from restorelcc.packed_model import pack_model, save_packed

    random = torch.Generator().manual_seed(5)
    config = AutoConfig.for_model(model_type, **_SIZES, tie_word_embeddings=tied)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 or name.endswith(".bias"):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    for name, linear in prunable_linears(model):
        if not name.endswith(dense):
            linear.weight[torch.rand(linear.weight.shape, generator=random) < 0.6] = 0
    sites = attention_sites(model)
    vectors = {
        name: Compensation(
            torch.randn(len(sites), sites[0].inputs, generator=random), torch.empty(0), [site.name for site in sites]
        )
        for name in compensations
    }
    default = compensations[0] if compensations else None
    pack_model(model, values=values, lm_head=lm_head, compensations=vectors, default=default)
    with tempfile.TemporaryDirectory() as folder:
        save_packed(model, None, Path(folder) / "packed")
        return {name: (Path(folder) / "packed" / name).read_bytes() for name in FILES}


def write_directory(directory: Directory, place: Path) -> None:
    """The entries as files (or whatever else they are) in the new directory `place`."""
    place.mkdir()
    for name, entry in directory.items():
        target = place / name
        if isinstance(entry, bytes):
            target.write_bytes(entry)
        elif "link" in entry:
            target.symlink_to(entry["link"])
        elif "pipe" in entry:
            os.mkfifo(target)
        elif "hole" in entry:
            with target.open("wb") as file:
                file.truncate(entry["hole"])
        else:
            target.mkdir()


def to_text(directory: Directory) -> str:
    """One JSON text for the whole directory, for `--replay`."""
    plain = {n: {"base64": base64.b64encode(e).decode()} if isinstance(e, bytes) else e for n, e in directory.items()}
    return json.dumps(plain, indent=1) + "\n"


def from_text(text: str) -> Directory:
    """The inverse of `to_text`."""
    entries = json.loads(text).items()
    return {name: base64.b64decode(entry["base64"]) if "base64" in entry else entry for name, entry in entries}
