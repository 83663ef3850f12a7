"""GGUF files read back: every tensor and number, logits of llama.cpp's graph in float64, refusals, a kill."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from cli_calls import invoke, refuse, succeed
from gguf_graph import GgufFile
from gguf_tokenizers import byte_level
from llama_process import ask_llama_cpp
from restoration_models import random_pair, small_config
from safetensors.torch import load_file, save_file

from restorelcc import cli_options, gguf_export
from restorelcc.adapter import save_adapter
from restorelcc.compensation import Compensation
from restorelcc.fold import fold
from restorelcc.gguf_export import GGUF_TYPES, export_gguf
from restorelcc.gguf_llama import llama_numbers
from restorelcc.models import attention_sites, load_model, quiet_transformers, save_checkpoint

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with all biases."""
    checkpoint(tmp_path / "model", BIASED)
    return tmp_path / "model"


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


def close(ours: torch.Tensor, stock: torch.Tensor) -> None:
    """Rounding of stock float32 through two layers: 1e-5 of the largest logit."""
    assert float(stock.abs().max()) > 1
    assert float((ours - stock.double()).abs().max()) <= 1e-5 * float(stock.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_the_graph_of_the_file_gives_the_stock_logits(case: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", CASES[case])
    report = export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    ids = torch.randint(VOCABULARY, (50,))
    with torch.no_grad():
        close(file.logits(ids), model(input_ids=ids[None]).logits[0])
    parts = ["attn_q", "attn_k", "attn_v"] * (bool(CASES[case].get("attention_bias")) and "zero" not in CASES[case])
    parts += ["attn_output"] * bool(CASES[case].get("attention_bias"))
    parts += ["ffn_gate", "ffn_up", "ffn_down"] * bool(CASES[case].get("mlp_bias"))
    assert report.biases == dict.fromkeys(parts, model.config.num_hidden_layers)
    assert ("output.weight" in file.tensors) != model.config.tie_word_embeddings
    assert report.tensors == len(file.tensors)
    assert report.sparsity == pytest.approx(0.5)


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_stock_logits(case: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", CASES[case])
    export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    ids = torch.randint(VOCABULARY, (50,))
    theirs, _ = ask_llama_cpp(tmp_path / "m.gguf", ids, [], tmp_path)
    close(theirs.double(), model(input_ids=ids[None]).logits[0])


@pytest.mark.parametrize("case", ["shared key-value heads", "wide heads", "Llama 3 positions"])
def test_an_error_of_order_or_a_lost_bias_would_show(case: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", CASES[case])
    export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    ids = torch.randint(VOCABULARY, (50,))
    stock = model(input_ids=ids[None]).logits[0].double()
    names = ["attn_q.weight", "attn_k.bias", "attn_output.bias", "ffn_down.bias"]
    for name in [f"blk.1.{name}" for name in names] + ["rope_freqs.weight"] * ("rope" in str(CASES[case])):
        file = GgufFile(tmp_path / "m.gguf")
        file.tensors[name] = file.tensors[name].roll(1, 0)
        assert float((file.logits(ids) - stock).abs().max()) > 1e-3 * float(stock.abs().max())


def test_the_numbers_and_the_names(folder: Path, tmp_path: Path) -> None:
    export_gguf(folder, tmp_path / "m.gguf")
    fields = GgufFile(tmp_path / "m.gguf").fields
    expected = {
        "general.architecture": "llama", "general.type": "model", "general.name": "model", "general.file_type": 0,
        "general.quantization_version": 2, "llama.context_length": 64, "llama.embedding_length": 32,
        "llama.block_count": 2, "llama.feed_forward_length": 44, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 8, "llama.attention.value_length": 8,
        "llama.rope.dimension_count": 8, "llama.rope.freq_base": 10000.0, "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    }  # fmt: skip
    assert {key: fields[key] for key in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-3, rel=1e-6)
    assert "llama.rope.scaling.type" not in fields


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_tensors_are_the_checkpoints(kind: str, folder: Path, tmp_path: Path) -> None:
    export_gguf(folder, tmp_path / "m.gguf", kind=kind)
    file = GgufFile(tmp_path / "m.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    dtype = gguf_export._TYPES[kind][0]
    assert file.fields["general.file_type"] == {"f32": 0, "f16": 1, "bf16": 32}[kind]
    stored = load_file(folder / "model.safetensors")
    assert len(stored) == len(file.tensors)
    for name, value in stored.items():
        written = names.get_name(name, (".weight", ".bias"))
        wide = kind.upper() if value.ndim == 2 else "F32"
        expected = value.to(dtype).float() if value.ndim == 2 else value
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        got = file.tensors[written]
        if heads:  # the other way round than the export does it: even rows first, then odd ones
            got = torch.cat([part for head in got.chunk(heads) for part in (head[0::2], head[1::2])])
        assert torch.equal(got, expected), name
        assert file.types[written] == wide
        assert torch.equal(got == 0, value == 0), "a zero came or went"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", BIASED, dtype=dtype)
    report = export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert report.type == ("bf16" if dtype == torch.bfloat16 else "f16")
    export_gguf(tmp_path / "model", tmp_path / "wide.gguf", kind="f32")
    narrow, wide = GgufFile(tmp_path / "m.gguf"), GgufFile(tmp_path / "wide.gguf")
    assert narrow.types["token_embd.weight"] == report.type.upper()
    assert narrow.types["blk.0.attn_output.bias"] == wide.types["token_embd.weight"] == "F32"
    assert narrow.tensors.keys() == wide.tensors.keys()
    for name, value in wide.tensors.items():
        assert torch.equal(narrow.tensors[name], value), name
        assert torch.equal(value.to(dtype).float(), value)


def test_a_sharded_checkpoint_with_mixed_types_is_written_in_float32(folder: Path, tmp_path: Path) -> None:
    export_gguf(folder, tmp_path / "one.gguf", kind="f32")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = {name: value for name, value in tensors.items() if ".layers.0." in name}
    rest = {name: value for name, value in tensors.items() if name not in first}
    rest["model.embed_tokens.weight"] = rest["model.embed_tokens.weight"].bfloat16()
    save_file(first, folder / "a.safetensors")
    save_file(rest, folder / "b.safetensors")
    index = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(rest, "b.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert export_gguf(folder, tmp_path / "two.gguf").type == "f32"
    one, two = GgufFile(tmp_path / "one.gguf").tensors, GgufFile(tmp_path / "two.gguf").tensors
    embedding = one.pop("token_embd.weight")
    assert torch.equal(two.pop("token_embd.weight"), embedding.bfloat16().float())
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors does not exist, though the index names it"):
        export_gguf(folder, tmp_path / "three.gguf")


def test_stock_transformers_reads_the_file(tmp_path: Path) -> None:
    """Its reader of Llama files builds a model without biases; told of them, it reads all seven."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = checkpoint(tmp_path / "model", BIASED)
    export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    config = LlamaConfig.from_pretrained(tmp_path / "model")
    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="m.gguf", config=config, dtype=torch.float32, local_files_only=True
        )
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", local_files_only=True)
    own = dict(model.named_parameters())
    assert own.keys() == dict(read.named_parameters()).keys()
    for name, value in read.named_parameters():
        assert torch.equal(value, own[name]), name
    for name, value in plain.named_parameters():
        assert torch.equal(value, own[name]), name
    ids = torch.randint(VOCABULARY, (1, 20))
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, model(input_ids=ids).logits)


def test_our_own_reader_refuses_a_file_whose_biases_stock_transformers_would_drop(tmp_path: Path) -> None:
    for name, settings in (("biased", BIASED), ("plain", {})):
        checkpoint(tmp_path / name, settings)
        export_gguf(tmp_path / name, tmp_path / f"{name}.gguf")
    with pytest.raises(ValueError, match=r"biased\.gguf holds 14 biases, and transformers reads 0 of them"):
        load_model(tmp_path / "biased.gguf")
    read = load_model(tmp_path / "plain.gguf").model
    stored = load_file(tmp_path / "plain" / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in read.state_dict().items())


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-head-dim", "llama-attention-bias", "mistral", "qwen2"])
def test_what_the_fold_leaves_goes_into_the_file(kind: str, tmp_path: Path) -> None:
    _, pruned = random_pair(kind, tmp_path)
    sites = attention_sites(load_model(pruned).model)
    vectors = torch.randn(len(sites), sites[0].inputs)
    heads = torch.ones(len(sites), sites[0].heads, dtype=torch.bool)
    learned = Compensation(vectors, heads, [site.name for site in sites])
    fold(pruned, learned, tmp_path / "restored")
    tokenizer(96).save_pretrained(tmp_path / "words")
    done = succeed("export", tmp_path / "restored", "--out", tmp_path / "m.gguf", "--tokenizer", tmp_path / "words")
    # q, k and v of a class that the fold gave biases to have zeros there, which are left out
    stored = load_file(tmp_path / "restored" / "model.safetensors")
    added = [name for name, value in stored.items() if name.endswith("q_proj.bias") and bool(value.any())]
    assert done["biases"] == {**dict.fromkeys(("attn_q", "attn_k", "attn_v") * bool(added), 2), "attn_output": 2}
    assert bool(added) == (kind in ("llama-attention-bias", "qwen2"))
    assert done["format"] == "gguf"
    assert done["sparsity"] == pytest.approx(0.5, abs=0.01)
    ids = torch.randint(96, (30,))
    restored, before = load_model(tmp_path / "restored").model, load_model(pruned).model
    ours = GgufFile(tmp_path / "m.gguf").logits(ids)
    stock = restored(input_ids=ids[None]).logits[0]
    assert float((ours - stock.double()).abs().max()) <= 1e-5 * float(stock.abs().max())
    assert float((before(input_ids=ids[None]).logits[0] - stock).abs().max()) > 1e-3 * float(stock.abs().max())


def tokenizer(rows: int) -> Any:
    """A byte-level BPE of at most `rows` tokens."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens = ["<|end|>", "<s>", *"abcdefgh", "ab"]
    assert len(tokens) <= rows
    stock = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [("a", "b")]))
    stock.pre_tokenizer, stock.decoder = byte_level().backend_tokenizer.pre_tokenizer, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=stock, eos_token="<|end|>", bos_token="<s>")


def test_the_verb_says_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    said = invoke("export", folder, "--format", "gguf", "--out", out, "--type", "f16", "--quiet")
    assert said.exit_code == 0, said.output
    assert said.stderr == ""
    lines = said.stdout.splitlines()
    assert lines[0].startswith(f"{out}: 35 tensors, matrices in f16, {out.stat().st_size:,} bytes; tokenizer: byte-lev")
    assert lines[1] == "biases: " + ", ".join(
        f"2 of {part}" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    )
    assert lines[2] == "50.0% of the layers' weights are zero; llama.cpp stores and multiplies them as any other"
    assert cli_options.GGUF_TYPES == GGUF_TYPES


# ---- refusals ----------------------------------------------------------------------------------------------------

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


def test_rotary_tables_and_a_tied_head_in_an_old_file_are_left_out(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", {**BIASED, "tie_word_embeddings": True})
    export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    edit_tensors(
        tmp_path / "model", model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
        lm_head__weight=torch.ones(VOCABULARY, 32),
    )  # fmt: skip
    export_gguf(tmp_path / "model", tmp_path / "again.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


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


# ---- whole or absent ---------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from restorelcc.gguf_export import export_gguf

class Killing:
    @contextmanager
    def task(self, description, total):
        def advance(count):
            self.done = getattr(self, "done", 0) + count
            if self.done == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        yield advance

export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), progress=Killing())
"""


def test_a_killed_export_leaves_no_file_and_the_next_one_clears_up(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob("m.gguf.partial-*"))) == 1
    export_gguf(folder, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "model"]


def test_a_full_disk_is_said_and_leaves_the_old_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.gguf"
    out.write_text("old")

    def full(*_: Any) -> None:
        raise OSError("4096 requested and 17 written")  # as numpy says it

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    refuse("export", folder, "--out", out, "--overwrite", "--quiet", words="no room to write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "model"]
    assert out.read_text() == "old"
