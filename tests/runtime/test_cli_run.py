"""`restorelcc pack` and `generate`, and `eval` of a packed directory: results as JSON, mistakes as one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import invoke, refuse, succeed
from runtime_cases import some_compensation

from restorelcc import cli_options, packed_model, packed_record
from restorelcc.adapter import save_adapter
from restorelcc.models import load_model, save_checkpoint
from restorelcc.pack_checkpoint import parse_compensations


@pytest.fixture(scope="module")
def packed(pruned: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama with two named compensations, packed by the command line."""
    source, at = pruned("llama-gqa"), tmp_path_factory.mktemp("cli")
    save_adapter(source, some_compensation(source, 1), at / "law")
    some_compensation(source, 2).save(at / "tax.safetensors")
    report = succeed(
        *("pack", source, "--out", at / "packed", "--values", "fp32"),
        *("--compensation", f"law={at / 'law'}", "--compensation", f"tax={at / 'tax.safetensors'}"),
    )
    assert report["compensations"] == ["law", "tax"]
    assert report["default"] is None
    assert report["sparsity"] == pytest.approx(0.5)
    assert report["bytes"] == (at / "packed" / "packed.safetensors").stat().st_size
    return Path(at / "packed")


def test_the_offered_values_are_those_of_the_library() -> None:
    assert list(cli_options.VALUES) == list(packed_record.DTYPES)
    assert cli_options.LM_HEADS == packed_model.LM_HEADS


def test_pack_says_what_it_did(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    result = invoke("pack", pruned("llama-gqa"), "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert "14 matrices packed as bf16, 50.0% zeros" in result.stdout


def test_mistakes_of_pack_are_one_line(pruned: Callable[[str], Path], packed: Path, tmp_path: Path) -> None:
    source, out = pruned("llama-gqa"), tmp_path / "out"
    dense = source.with_name("dense")
    refuse("pack", dense, "--out", out, words="packing pays for a pruned model, prune it first")
    speckled = load_model(dense)  # one zero by chance is no pruning, whatever int8 alone would save
    speckled.model.model.layers[0].mlp.up_proj.weight[0, 0] = 0
    save_checkpoint(speckled.model, speckled.tokenizer, tmp_path / "speckled")
    refuse("pack", tmp_path / "speckled", "--out", out, "--values", "int8", words="prune it first")
    refuse("pack", packed, "--out", out, words="is a packed model")
    refuse("pack", tmp_path / "none", "--out", out, words="does not exist")
    refuse("pack", source, "--out", packed, words="pass --overwrite")
    refuse("pack", source, "--out", source, "--overwrite", words="which is read to make it")
    assert (source / "config.json").is_file()
    refuse("pack", source, "--out", out, "--compensation", tmp_path / "none", words="holds no compensation")
    refuse("pack", source, "--out", out, "--compensation", f"none={packed}", words="cannot name a compensation")
    refuse("pack", source, "--out", out, "--compensation", "a=x", "--compensation", "a=y", words="are called a")
    refuse("pack", source, "--out", out, "--values", "int3", words="int3")
    save_adapter(pruned("opt"), some_compensation(pruned("opt"), 1), tmp_path / "other")
    refuse("pack", source, "--out", out, "--compensation", tmp_path / "other", words="use the pruned model it was made")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    broken = tmp_path / "broken.safetensors"
    refuse("pack", source, "--out", out, "--compensation", broken, words="truncated or not a safetensors file")
    loaded = load_model(source)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "folded", extra_files={"compensation.safetensors": b""})
    refuse("pack", tmp_path / "folded", "--out", out, "--compensation", packed, words="would be added on top")
    save_adapter(source, some_compensation(source, 1), tmp_path / "adapter")
    refuse("pack", tmp_path / "adapter", "--out", out, "--compensation", tmp_path / "adapter", words="name the other")
    assert not out.exists()


def test_a_compensation_is_given_with_or_without_a_name(tmp_path: Path) -> None:
    assert parse_compensations(["law=a", "b"]) == {"law": Path("a"), "default": Path("b")}
    odd = tmp_path / "lr=3"
    odd.mkdir()
    assert parse_compensations([str(odd)]) == {"default": odd}
    with pytest.raises(ValueError, match="two compensations are called default"):
        parse_compensations(["a", "b"])


def test_generate_gives_the_same_text_streamed_and_as_json(packed: Path) -> None:
    told = succeed("generate", packed, "w5 w6 w7", "--max-new-tokens", "6")
    assert told["kind"] == "packed fp32"
    assert told["prompt_tokens"] == 3
    assert 1 <= told["new_tokens"] <= 6
    streamed = invoke("generate", packed, "w5 w6 w7", "--max-new-tokens", "6")
    assert streamed.exit_code == 0, streamed.output
    assert streamed.stdout.split() == told["text"].split()
    assert "3 prompt tokens in" in streamed.stderr
    assert "tokens/s" in streamed.stderr
    quiet = invoke("generate", packed, "w5 w6 w7", "--max-new-tokens", "6", "--quiet")
    assert quiet.stdout == streamed.stdout
    assert quiet.stderr == ""


def test_generate_with_a_compensation_and_with_sampling(packed: Path, pruned: Callable[[str], Path]) -> None:
    ask = ("w5 w6 w7", "--max-new-tokens", "12")
    texts = {name: succeed("generate", packed, *ask, "--compensation", name)["text"] for name in ("law", "tax", "none")}
    assert len(set(texts.values())) == 3
    assert succeed("generate", pruned("llama-gqa"), *ask)["text"] == texts["none"]
    assert succeed("generate", packed.with_name("law"), *ask)["text"] == texts["law"]  # the adapter directory
    drawn = [succeed("generate", packed, *ask, "--temperature", "2", "--seed", seed)["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_mistakes_of_generate_are_one_line(packed: Path, pruned: Callable[[str], Path], tmp_path: Path) -> None:
    refuse("generate", packed, "w5", "--compensation", "code", words="it has law, tax")
    refuse("generate", pruned("llama-gqa"), "w5", "--compensation", "law", words="no compensations to choose from")
    refuse("generate", packed, "w5", "--chat", words="no chat template; use --no-chat")
    refuse("generate", packed, "", words="the prompt has no tokens")
    refuse("generate", packed, "w5 " * 64, words="the prompt has 64 tokens, but the model's context is 64")
    refuse("generate", tmp_path / "none", "w5", words="does not exist")


def test_generate_uses_the_chat_template_where_there_is_one(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(pruned("llama-gqa"))
    loaded.tokenizer.chat_template = "{% for m in messages %}w9 {{ m.content }} {% endfor %}w8"
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "chat")
    succeed("pack", tmp_path / "chat", "--out", tmp_path / "packed")
    assert succeed("generate", tmp_path / "packed", "w5 w6", "--max-new-tokens", "2")["prompt_tokens"] == 4
    plain = succeed("generate", tmp_path / "packed", "w5 w6", "--max-new-tokens", "2", "--no-chat")
    assert plain["prompt_tokens"] == 2


def test_eval_takes_a_packed_directory(stories_pruned: Path, tmp_path: Path) -> None:
    succeed("pack", stories_pruned, "--out", tmp_path / "packed", "--values", "fp32")
    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl named Lily. " * 20)
    result = succeed(
        *("eval", tmp_path / "packed", "--against", stories_pruned, "--text", tmp_path / "text.txt"),
        *("--tokens", "256", "--window", "32"),
    )
    packed, source = result["models"]
    assert packed["source"] == "packed fp32"
    assert packed["nll"] == pytest.approx(source["nll"], abs=1e-5)
