"""GGUF files read back: every tensor and number, logits of llama.cpp's graph in float64, a kill on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from cli_calls import invoke, refuse, succeed
from gguf_graph import GgufFile
from gguf_models import BIASED, CASES, VOCABULARY, checkpoint, edit_tensors
from gguf_tokenizers import byte_level
from llama_process import ask_llama_cpp
from restoration_models import random_pair
from safetensors.torch import load_file, save_file

from restorelcc import cli_options, gguf_export
from restorelcc.compensation import Compensation
from restorelcc.fold import fold
from restorelcc.gguf_export import GGUF_TYPES, export_gguf
from restorelcc.models import attention_sites, load_model, quiet_transformers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with all biases."""
    checkpoint(tmp_path / "model", BIASED)
    return tmp_path / "model"


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


def test_one_tensor_at_a_time_is_in_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, given, most = gguf_export.stored_tensor, [], 0

    def watched(*arguments: Any) -> torch.Tensor:
        nonlocal most
        value = read(*arguments)
        given.append(weakref.ref(value))
        most = max(most, sum(one() is not None for one in given))
        return value

    monkeypatch.setattr(gguf_export, "stored_tensor", watched)
    export_gguf(folder, tmp_path / "m.gguf", kind="bf16")
    assert len(given) > 35
    assert most <= 2, "the one that was written last, and the next"


def test_rotary_tables_and_a_tied_head_in_an_old_file_are_left_out(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", {**BIASED, "tie_word_embeddings": True})
    export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    edit_tensors(
        tmp_path / "model", model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
        lm_head__weight=torch.ones(VOCABULARY, 32),
    )  # fmt: skip
    export_gguf(tmp_path / "model", tmp_path / "again.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


# ---- whole or absent ---------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
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


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_survivors_too_small_for_the_type_survive(kind: str) -> None:
    weight = torch.randn(6, 40)
    weight[torch.rand(6, 40) < 0.5] = 0
    tiny = weight * (1e-9 if kind == "f16" else 1e-42)
    matrix: Any = SimpleNamespace(is_matrix=True, source="model.layers.0.mlp.up_proj.weight", rope_heads=0)
    written = torch.from_numpy(gguf_export._as_array(tiny, matrix, kind))
    assert torch.equal(written != 0, tiny != 0)
