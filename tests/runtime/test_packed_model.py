"""A packed model against the stock model it was packed from: logits, generation, sizes, what stays dense."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from restoration_models import ARCHITECTURES, small_config, small_tokenizer, zero_half
from runtime_cases import ALL_VALUES, IDS, greedy, logits, skip_unless_packable, some_compensation, stock
from safetensors import safe_open
from torch import nn

import restorelcc
from restorelcc import packed_model
from restorelcc.fold import fold
from restorelcc.models import load_model, prunable_linears, save_checkpoint
from restorelcc.pack_checkpoint import pack_checkpoint
from restorelcc.packed_model import save_packed
from restorelcc.packed_record import DTYPES


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_and_greedy_text_are_the_stock_models(
    kind: str, pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    report = pack_checkpoint(str(pruned(kind)), tmp_path / "packed", values="fp32")
    model, reference = restorelcc.load(tmp_path / "packed"), stock(pruned(kind), torch.float32)
    assert type(model) is type(reference)
    assert report.packed
    assert not report.dense
    assert not any(parameter.is_meta for parameter in model.parameters())
    expected = logits(reference)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(greedy(model), greedy(reference))


@pytest.mark.parametrize("values", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["llama-head-dim", "qwen2", "gpt_neox"])
def test_half_precision_is_as_close_to_float64_as_the_stock_model(
    kind: str, values: str, pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    skip_unless_packable(values)
    pack_checkpoint(str(pruned(kind)), tmp_path / "packed", values=values)
    model, reference = restorelcc.load(tmp_path / "packed"), stock(pruned(kind), DTYPES[values])
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[values]}
    exact = logits(copy.deepcopy(reference).double())  # of the weights as they were rounded
    budget = float((logits(reference).double() - exact).abs().max())
    step = torch.finfo(DTYPES[values]).eps * float(exact.abs().max())
    assert float((logits(model).double() - exact).abs().max()) <= budget + step


def test_int8_values_are_close_and_the_rest_is_bf16(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    skip_unless_packable("int8")
    pack_checkpoint(str(pruned("llama-gqa")), tmp_path / "packed", values="int8")
    model, reference = restorelcc.load(tmp_path / "packed"), stock(pruned("llama-gqa"), torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    expected = logits(reference)
    error = (logits(model).float() - expected).norm() / expected.norm()
    assert float(error) < 0.05
    again = tmp_path / "again"
    save_packed(model, small_tokenizer(), again)
    assert torch.equal(logits(restorelcc.load(again)), logits(model))


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-mha-untied", "opt"])
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_an_int8_head(kind: str, values: str, pruned: Callable[[str], Path], tmp_path: Path) -> None:
    """The head alone is rounded; an embedding tied to it is not. It comes back from the file as it was."""
    source = load_model(pruned(kind)).model
    weight = source.get_output_embeddings().weight.detach().clone()
    embedding = source.get_input_embeddings().weight.detach().to(DTYPES[values])
    pack_checkpoint(str(pruned(kind)), tmp_path / "packed", values=values, lm_head="int8")
    model, plain = restorelcc.load(tmp_path / "packed"), stock(pruned(kind), torch.float32)
    head = model.get_output_embeddings()
    assert head.values.dtype == torch.int8
    assert torch.equal(head.packed.unpack(), restorelcc.pack(weight, values="int8").unpack())
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    expected = logits(plain)
    assert float((logits(model).float() - expected).norm() / expected.norm()) < 0.05
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert torch.equal(logits(restorelcc.load(again)), logits(model))
    assert greedy(model).shape == greedy(plain).shape


def test_the_real_model_speaks_as_the_stock_one(stories_pruned: Path, tmp_path: Path) -> None:
    pack_checkpoint(str(stories_pruned), tmp_path / "packed", values="fp32")
    model, reference = restorelcc.load(tmp_path / "packed"), stock(stories_pruned, torch.float32)
    ids = torch.tensor([[1, 403, 407, 261, 378]])
    assert torch.equal(greedy(model, ids, max_new_tokens=40), greedy(reference, ids, max_new_tokens=40))
    assert torch.equal(
        greedy(model, ids, num_beams=3, length_penalty=0.0), greedy(reference, ids, num_beams=3, length_penalty=0.0)
    )


def test_a_padded_batch_equals_its_sequences_alone(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    pack_checkpoint(str(pruned("llama-gqa")), tmp_path / "packed", values="fp32")
    model = restorelcc.load(tmp_path / "packed")
    padded = torch.cat([IDS[:1], torch.tensor([[0, 0, 1, 7, 8, 9]])])
    mask = (padded != 0).long()
    with torch.no_grad():
        together = model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert torch.equal(together[1, 6:], greedy(model, padded[1:, 2:], max_new_tokens=8)[0, 4:])
    assert torch.equal(together[0, 6:], greedy(model, IDS[:1], max_new_tokens=8)[0, 6:])


def test_folded_biases_stay_biases(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    source = pruned("llama-gqa")
    fold(source, some_compensation(source, 1), tmp_path / "restored")
    pack_checkpoint(str(tmp_path / "restored"), tmp_path / "packed", values="fp32")
    model = restorelcc.load(tmp_path / "packed")
    projection = model.model.layers[0].self_attn.o_proj
    assert projection.bias is not None
    assert projection.comp is None
    assert float(projection.bias.abs().max()) > 0
    expected = logits(stock(tmp_path / "restored", torch.float32))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_tied_embeddings_are_stored_once(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    pack_checkpoint(str(pruned("llama-head-dim")), tmp_path / "packed", values="fp32")
    model = restorelcc.load(tmp_path / "packed")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(tmp_path / "packed" / "packed.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_values_are_used_where_they_are_mapped(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    pack_checkpoint(str(pruned("llama-gqa")), tmp_path / "packed", values="bf16")
    model = restorelcc.load(tmp_path / "packed")
    regions = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("/packed.safetensors")
    ]
    projection = model.model.layers[1].mlp.down_proj
    for tensor in (projection.values, projection.mask, model.model.embed_tokens.weight):
        assert any(begin <= tensor.data_ptr() < end for begin, end in regions)
    assert projection.values.data_ptr() % 16 == 0


def test_a_matrix_with_few_zeros_stays_dense_and_is_listed(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(pruned("llama-gqa"))
    loaded.model.model.layers[1].mlp.up_proj.weight.data.fill_(0.1)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "source")
    report = pack_checkpoint(str(tmp_path / "source"), tmp_path / "packed", values="fp32")
    assert [matrix.name for matrix in report.dense] == ["model.layers.1.mlp.up_proj"]
    assert "stay dense" in " ".join(report.lines())
    model = restorelcc.load(tmp_path / "packed")
    assert type(model.model.layers[1].mlp.up_proj) is nn.Linear
    torch.testing.assert_close(logits(model), logits(loaded.model), rtol=1e-4, atol=1e-4)


def test_a_saved_packed_model_is_the_same_model(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    source = pruned("qwen2")
    pack_checkpoint(str(source), tmp_path / "packed", values="bf16")
    model = restorelcc.load(tmp_path / "packed")
    save_packed(model, small_tokenizer(), tmp_path / "again")
    for name in ("restorelcc.json", "packed.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()
    model.save_pretrained(tmp_path / "stock_name")  # the stock method must not write half a checkpoint
    assert torch.equal(logits(restorelcc.load(tmp_path / "stock_name")), logits(model))
    save_packed(model, small_tokenizer(), tmp_path / "packed", overwrite=True)  # onto the file it is mapped from
    assert torch.equal(logits(restorelcc.load(tmp_path / "packed")), logits(model))


def test_biases_that_add_nothing_are_left_out_and_come_back_when_saved(
    pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    """A Llama's one switch for all biases of attention gives q, k and v biases of zeros beside the folded one."""
    source = pruned("llama-gqa")
    fold(source, some_compensation(source, 1), tmp_path / "restored")
    pack_checkpoint(str(tmp_path / "restored"), tmp_path / "packed", values="fp32")
    model, reference = restorelcc.load(tmp_path / "packed"), stock(tmp_path / "restored", torch.float32)
    for layer, theirs in zip(model.model.layers, reference.model.layers, strict=True):
        ours, theirs = layer.self_attn, theirs.self_attn
        assert theirs.q_proj.bias is not None
        assert ours.q_proj.bias is ours.k_proj.bias is ours.v_proj.bias is None
        assert torch.equal(ours.o_proj.bias, theirs.o_proj.bias)
    expected = logits(reference)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    save_packed(model, small_tokenizer(), tmp_path / "again")
    for name in ("restorelcc.json", "packed.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


def test_a_converted_model_is_not_saved_as_what_it_was(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    model = restorelcc.pack_model(load_model(pruned("llama-gqa")).model, values="bf16").float()
    with pytest.raises(ValueError, match="converted since it was packed as bf16"):
        save_packed(model, None, tmp_path / "out")
    with pytest.raises(ValueError, match="is not packed; call pack_model first"):
        save_packed(load_model(pruned("llama-gqa")).model, None, tmp_path / "out")


def test_weights_that_the_values_cannot_hold_are_refused(pruned: Callable[[str], Path]) -> None:
    model = load_model(pruned("llama-gqa")).model
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 3.4e38  # fits float32, rounds to infinity in bfloat16
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj has 1 weights that bf16 cannot hold"):
        restorelcc.pack_model(model, values="bf16")
    model = load_model(pruned("llama-gqa")).model
    model.model.layers[1].input_layernorm.weight.data[0] = 1e5
    with pytest.raises(ValueError, match=r"layers\.1\.input_layernorm\.weight has 1 weights that fp16 cannot hold"):
        restorelcc.pack_model(model, values="fp16")
    with pytest.raises(ValueError, match="values is 'int3'; it must be one of"):
        restorelcc.pack_model(model, values="int3")


@pytest.mark.parametrize("values", ["fp16", "bf16"])
def test_survivors_too_small_for_the_values_survive(values: str) -> None:
    weight = torch.randn(9, 70)
    weight[torch.rand(9, 70) < 0.5] = 0
    tiny = weight * (1e-9 if values == "fp16" else 1e-42)  # below the least subnormal number, some of them
    packed = packed_model._pack_weight(tiny, values, "up_proj")
    assert torch.equal(packed.unpack() != 0, tiny != 0)


def test_packing_in_memory_equals_packing_to_disk(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    in_memory = restorelcc.pack_model(load_model(pruned("opt")).model, values="fp32")
    pack_checkpoint(str(pruned("opt")), tmp_path / "packed", values="fp32")
    assert torch.equal(logits(restorelcc.load(tmp_path / "packed")), logits(in_memory))


def test_stock_transformers_cannot_mistake_a_packed_model(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    pack_checkpoint(str(pruned("llama-gqa")), tmp_path / "packed", values="bf16")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        stock(tmp_path / "packed", torch.float32)
    record = json.loads((tmp_path / "packed" / "restorelcc.json").read_text())
    assert record["format"] == "restorelcc-packed"
    assert "restorelcc.load" in record["note"]


def test_the_memory_of_loading_stays_below_the_stock_loaders(tmp_path: Path) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("peak memory is read from /proc, which this system lacks or protects")
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=96, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for _, linear in prunable_linears(model):
        linear.weight.data[:, ::2] = 0
    save_checkpoint(model, small_tokenizer(), tmp_path / "dense")
    report = pack_checkpoint(str(tmp_path / "dense"), tmp_path / "packed", values="bf16")
    dense_bytes = (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert report.bytes < 0.6 * dense_bytes  # 1.125 of 2 bytes a weight
    assert dense_bytes > 60e6

    def peak(statement: str) -> tuple[int, int]:
        """Bytes that loading, and loading and one forward pass, added to the peak of a process of its own."""
        program = f"""
import sys, torch, transformers, restorelcc, restorelcc.loading, restorelcc.ops
from transformers import AutoModelForCausalLM, LlamaForCausalLM
torch.set_num_threads(1)
def kib(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
tiny = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                num_attention_heads=1)
LlamaForCausalLM(tiny)(torch.ones(1, 4, dtype=torch.long))
restorelcc.load({str(tmp_path / "tiny")!r})
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
model = {statement}
loaded = kib("VmHWM")
with torch.no_grad():
    model(torch.ones(1, 4, dtype=torch.long))
print(1024 * (loaded - before), 1024 * (kib("VmHWM") - before))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        loading, forward = map(int, done.stdout.split())
        return loading, forward

    small = AutoModelForCausalLM.from_config(small_config("llama-gqa"))
    zero_half(small)
    save_packed(restorelcc.pack_model(small), small_tokenizer(), tmp_path / "tiny")
    ours = peak(f"restorelcc.load({str(tmp_path / 'packed')!r})")
    theirs = peak(f"AutoModelForCausalLM.from_pretrained({str(tmp_path / 'dense')!r})")
    print(f"loading {ours[0]:,} and {theirs[0]:,}; with a forward pass {ours[1]:,} and {theirs[1]:,}")
    assert ours[0] < 0.25 * dense_bytes  # masks only: 1/16 of it, and what a process needs anyway
    assert ours[1] < 0.8 * theirs[1]  # the stock loader maps its file too, so the first pass decides


@pytest.mark.parametrize("values", ALL_VALUES)
def test_the_record_lists_every_prunable_matrix(values: str, pruned: Callable[[str], Path], tmp_path: Path) -> None:
    skip_unless_packable(values)
    report = pack_checkpoint(str(pruned("qwen3")), tmp_path / "packed", values=values)
    names = [name for name, _ in prunable_linears(load_model(pruned("qwen3")).model)]
    assert [matrix.name for matrix in report.packed] == names
    assert report.sparsity == pytest.approx(0.5)
