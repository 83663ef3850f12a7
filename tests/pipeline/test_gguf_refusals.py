"""What `restorelcc export` refuses: configurations, weights, directories, architectures. One sentence, and no file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import refuse, succeed
from gguf_models import BASE, BIASED, LLAMA3, checkpoint, edit, edit_tensors
from gguf_tokenizers import byte_level
from restoration_models import random_pair, small_config
from safetensors.torch import load_file

from restorelcc.adapter import save_adapter
from restorelcc.compensation import Compensation
from restorelcc.gguf_export import export_gguf
from restorelcc.gguf_llama import llama_numbers
from restorelcc.models import attention_sites, load_model, save_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with all biases."""
    checkpoint(tmp_path / "model", BIASED)
    return tmp_path / "model"


CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "gelu"}, "its activation is gelu; llama.cpp computes silu"),
    ({"num_key_value_heads": 3}, "4 heads cannot share 3 key-value heads evenly"),
    ({"num_hidden_layers": 513}, "it has 513 layers; llama.cpp takes 1 to 512"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "scaled as 'dynamic'"),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "it turns a share of 0.5 of each head",
    ),
    ({"intermediate_size": 48}, "of shape [44, 32], its config.json asks for [48, 32]"),
    ({"num_hidden_layers": 3}, "the checkpoint lacks 16 tensors, such as model.layers.2."),
    ({"num_hidden_layers": 1}, "holds model.layers.1."),
    ({"mlp_bias": False}, "_proj.bias, which the stock Llama class of its config.json has no place for"),
    ({"vocab_size": 264}, "of shape [265, 32], its config.json asks for [264, 32]"),
]


@pytest.mark.parametrize(("changes", "words"), CONFIGURATIONS)
def test_configurations_that_are_refused(
    changes: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    refuse("export", edit(folder, **changes), "--out", tmp_path / "m.gguf", words=words)
    assert not list(tmp_path.glob("m.gguf*"))


NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"head_dim": 7}, "its heads have 7 dimensions"),
    ({"num_key_value_heads": 0}, "it has 4 heads and 0 key-value heads"),
    ({"rope_parameters": None}, "its positions are scaled as None"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "are damaged (KeyError: 'factor')"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}}, "are no positive finite numbers"),
    ({"rope_parameters": {**LLAMA3, "factor": float("nan")}}, "are no positive finite numbers"),
    ({"rope_parameters": {**LLAMA3, "low_freq_factor": 0.0}}, "are damaged (ZeroDivisionError"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "are damaged (TypeError"),
]


@pytest.mark.parametrize(("changes", "words"), NUMBERS)
def test_numbers_that_are_refused(changes: dict[str, Any], words: str) -> None:
    """By us too: whether the stock configuration refuses them depends on its release."""
    from transformers import LlamaConfig

    config = LlamaConfig(**BASE)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=re.escape(words)):
        llama_numbers(config)


def test_weights_that_are_refused(folder: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "m.gguf", (folder / "model.safetensors").read_bytes()
    name = "model.layers.1.mlp.up_proj.weight"
    value = load_file(folder / "model.safetensors")[name]
    bad = value.clone()
    bad[0, 0], bad[1, 1] = torch.nan, torch.inf
    large = value.clone()
    large[0, :3] = 7e4
    for given, kind, words in [
        (bad, "f32", f"{name} holds 2 NaN or infinite values"),
        (large, "f16", f"{name} holds 3 values above 65504, the largest of f16; export it as bf16 or f32"),
        (value.to(torch.float8_e4m3fn), "f32", f"stores {name} as F8_E4M3"),
        (None, "f32", f"lacks 1 tensors, such as {name}"),
        (value.T.contiguous(), "f32", f"holds {name} of shape [32, 44], its config.json asks for [44, 32]"),
    ]:
        edit_tensors(folder, **{name.replace(".", "__"): given})
        refuse("export", folder, "--out", out, "--type", kind, "--quiet", words=words)
        (folder / "model.safetensors").write_bytes(whole)
    edit_tensors(folder, model__layers__0__self_attn__q_norm__weight=torch.ones(8))
    refuse("export", folder, "--out", out, words="holds model.layers.0.self_attn.q_norm.weight, which the stock Llama")
    (folder / "model.safetensors").write_bytes(whole[:-100])
    refuse("export", folder, "--out", out, words="is truncated or not a safetensors file")
    (folder / "model.safetensors").unlink()
    refuse("export", folder, "--out", out, words="holds no model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_directories_that_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    _, pruned = random_pair("llama-gqa", tmp_path)
    sites = attention_sites(load_model(pruned).model)
    heads = torch.ones(len(sites), sites[0].heads, dtype=torch.bool)
    vectors = torch.randn(len(sites), sites[0].inputs)
    save_adapter(pruned, Compensation(vectors, heads, [site.name for site in sites]), tmp_path / "adapter")
    refuse("export", tmp_path / "adapter", "--out", out, words="adapter directory; fold it first: restorelcc fold")
    succeed("pack", pruned, "--out", tmp_path / "packed")
    refuse("export", tmp_path / "packed", "--out", out, words="is a packed model; export the checkpoint that it was")
    refuse("export", tmp_path / "none", "--out", out, words="has no config.json; pass the directory of a stock")
    refuse("export", folder / "config.json", "--out", out, words="has no config.json; pass the directory of a stock")
    refuse("export", folder, "--out", folder / "m.gguf", words="which is read to make it")
    refuse("export", folder, "--out", tmp_path, words="which is read to make it")
    (tmp_path / "there").mkdir()
    refuse("export", folder, "--out", tmp_path / "there", words="is a directory; pass the name of a file")
    refuse("export", folder, "--out", out, "--type", "q8_0", words="'q8_0' is not one of 'f32', 'f16', 'bf16'")
    refuse("export", folder, "--out", out, "--format", "onnx", words="'onnx'")
    with pytest.raises(ValueError, match="the type 'q8_0' is none of f32, f16, bf16"):
        export_gguf(folder, out, kind="q8_0")
    out.write_text("mine")
    refuse("export", folder, "--out", out, words="exists; pass --overwrite or another --out")
    with pytest.raises(ValueError, match="exists; pass --overwrite or another --out"):
        export_gguf(folder, out)
    assert out.read_text() == "mine"
    succeed("export", folder, "--out", out, "--overwrite")
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("kind", ["qwen3", "opt", "mistral"])
def test_other_architectures_are_refused(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(small_config(kind))
    save_checkpoint(model, byte_level(), tmp_path / "model")
    words = f"this is a {model.config.model_type} model, and only Llama is exported"
    refuse("export", tmp_path / "model", "--out", tmp_path / "m.gguf", words=words)
