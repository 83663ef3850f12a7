"""What examples/decode refuses: one sentence on standard error, nothing on standard output, exit status 2."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from decode_program import Decoder
from llamas import Packed

Tiny = Callable[[str, str], Packed]
PROMPT = ("--prompt-ids", "1,5,9")


def refused(decoder: Decoder, *words: object, says: str) -> None:
    done = decoder.run(*words)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("decode: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no prompt"),
        (("--prompt-ids",), "--prompt-ids needs a value"),
        (("--prompt-ids", ""), "the prompt is empty"),
        (("--prompt-ids", " , "), "the prompt is empty"),
        (("--prompt-ids", "1,two,3"), 'an id of --prompt-ids is "two"'),
        (("--prompt-ids", "1,-4"), '"-4"'),
        (("--prompt-ids", "1,3.5"), '"3.5"'),
        (("--prompt-ids", "99999999999999999999"), "whole number"),
        (("--prompt-ids", "1,320"), "token id 320 is not in the vocabulary, [0, 320)"),
        (("--prompt-file", "no-such-file.txt"), "no-such-file.txt cannot be read"),
        ((*PROMPT, "--prompt-ids", "2"), "two prompts"),
        ((*PROMPT, "another-model"), "two models"),
        ((*PROMPT, "--beam", "4"), "no option --beam"),
        ((*PROMPT, "--tokens", "0"), "nothing to do"),
        ((*PROMPT, "--tokens", "-1"), "--tokens is"),
        ((*PROMPT, "--tokens", "many"), "--tokens is"),
        ((*PROMPT, "--tokens", "600"), "602 tokens are more than the 512 positions"),
        ((*PROMPT, "--threads", "0"), "--threads is"),
        ((*PROMPT, "--batch", "0"), "--batch is"),
        ((*PROMPT, "--cache", "int8"), 'must be fp32 or bf16'),
        ((*PROMPT, "--activations", "fp64"), 'must be fp32 or bf16'),
        ((*PROMPT, "--report", "xml"), "must be json"),
        ((*PROMPT, "--logits", "out", "--tokens", "3"), "--logits is of the prompt alone"),
        ((*PROMPT, "--compensation", "lore"), 'no compensation "lore"; it has law'),
    ],
)  # fmt: skip
def test_calls(words: tuple[str, ...], says: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    refused(decoder, tiny("biased", "fp32").packed, *words, says=says)


def test_more_positions_than_there_is_memory_for(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    long = {"max_position_embeddings": 2**31 - 1}
    copy = changed(tiny("biased", "fp32").packed, tmp_path / "long", lambda config: config.update(long))
    done = subprocess.run(
        [str(decoder.path), str(copy), *PROMPT, "--tokens", str(2**31 - 4), "--threads", "1"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32)),
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("decode: out of memory; the cache has room for the prompt and --tokens")
    assert done.stderr.count("\n") == 1


def test_a_call_without_a_model(decoder: Decoder) -> None:
    refused(decoder, *PROMPT, says="no model is given")


def test_what_is_no_packed_model(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    refused(decoder, tmp_path / "nothing", *PROMPT, says="nothing")
    refused(decoder, tiny("biased", "fp32").checkpoint, *PROMPT, says="restorelcc.json")


def changed(model: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the packed model with another config.json."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "gelu"}, 'activation is "gelu"'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, '"yarn"'),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "no factor"),
        ({"num_hidden_layers": 4}, "packed.safetensors"),
        ({"vocab_size": 1000}, "model.embed_tokens.weight"),
    ],
)
def test_configurations(change: dict[str, Any], says: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model = changed(tiny("biased", "fp32").packed, tmp_path / "changed", lambda config: config.update(change))
    refused(decoder, model, *PROMPT, says=says)


def test_another_family(decoder: Decoder, tmp_path: Path) -> None:
    from restoration_models import random_pair

    from restorelcc.pack_checkpoint import pack_checkpoint

    pack_checkpoint(str(random_pair("qwen3", tmp_path)[1]), tmp_path / "packed", values="fp32")
    refused(decoder, tmp_path / "packed", *PROMPT, says="qwen3")


def test_an_instruction_set_that_is_none(decoder: Decoder, tiny: Tiny) -> None:
    done = decoder.run(tiny("biased", "fp32").packed, *PROMPT, isa="mmx")
    assert done.returncode == 2
    assert "RLCC_ISA" in done.stderr


def test_a_logits_file_in_no_folder(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    done = decoder.run(tiny("biased", "fp32").packed, *PROMPT, "--logits", tmp_path / "missing" / "out")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr


def test_logits_do_not_replace_what_is_no_file(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for place in (pipe, folder):
        done = decoder.run(tiny("biased", "fp32").packed, *PROMPT, "--logits", place)
        assert done.returncode == 1
        assert f"{place} cannot be written: it is there and not a file" in done.stderr
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("--help",), (*PROMPT, "--report", "json", "--tokens", "500", "--ignore-eos")])
def test_an_output_that_cannot_be_written(words: tuple[str, ...], decoder: Decoder, tiny: Tiny) -> None:
    """The long report fails in a write that is not the last one."""
    with open("/dev/full", "wb") as full:
        call = [str(decoder.path), str(tiny("biased", "fp32").packed), *words]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr == b"decode: standard output cannot be written\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"1\x00,2", '"1?"'),  # of UTF-16, each zero byte would be the token 0
        (b"\x00", '"?"'),
        (b"0" * 50 + b"7x", '"' + "0" * 40 + '..."'),
        (b"7" * 3_000_000, "77..."),
        (b"1,\x1b[31mred", '"?[31mred"'),
        (b"\xff\xfe1\x00", '"??1?"'),
        (b" \n,\t", "has no token ids"),
    ],
)
def test_a_prompt_file_of_something_else(text: bytes, says: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(text)
    refused(decoder, tiny("biased", "fp32").packed, "--prompt-file", tmp_path / "ids", says=says)


def test_a_prompt_file_that_is_a_directory(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    refused(decoder, tiny("biased", "fp32").packed, "--prompt-file", tmp_path, says=f"{tmp_path} cannot be read")


def test_an_id_with_zeros_before_it(decoder: Decoder, tiny: Tiny) -> None:
    """Digits behind the fortieth count."""
    model = tiny("biased", "fp32").packed
    plain = decoder.run(model, "--prompt-ids", "9,77", "--tokens", 4)
    padded = decoder.run(model, "--prompt-ids", f"9,{'0' * 50}77", "--tokens", 4)
    assert plain.returncode == padded.returncode == 0
    assert plain.stdout == padded.stdout


def test_a_refused_prompt_leaves_no_logits_file(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("biased", "fp32").packed
    refused(decoder, model, "--prompt-ids", "1,999", "--logits", tmp_path / "out", says="token id 999")
    assert list(tmp_path.iterdir()) == []


def test_help(decoder: Decoder) -> None:
    done = decoder.run("--help")
    assert done.returncode == 0
    assert "--prompt-ids" in done.stdout
