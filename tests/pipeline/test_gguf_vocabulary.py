"""Tokenizers in GGUF files: what is written of each kind, that it means the same, what is refused."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from cli_calls import refuse, succeed
from gguf_tokenizers import (
    CUT_MERGES,
    CUT_TEXT,
    LLAMA3,
    MERGES,
    SPECIAL,
    byte_level,
    bytes_with,
    joined_by_score,
    sentencepiece,
)
from llama_process import ask_llama_cpp
from random_models import write_gguf
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from restorelcc.gguf_export import export_gguf
from restorelcc.gguf_pre_tokenizers import known_as, merge_scores
from restorelcc.gguf_vocabulary import Vocabulary, carried_vocabulary, stock_vocabulary
from restorelcc.models import ModelSource, resolve_model, save_checkpoint

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


def described(folder: Path, tokenizer: Any, rows: int, **config: Any) -> Vocabulary:
    tokenizer.save_pretrained(folder)
    source = ModelSource(str(folder), folder, None, None, "")
    names = {"bos_token_id": None, "eos_token_id": None, **config}
    return stock_vocabulary(source, SimpleNamespace(vocab_size=rows, **names))


def fields(vocabulary: Vocabulary) -> dict[str, Any]:
    return {field.key.removeprefix("tokenizer.ggml."): field.value for field in vocabulary.fields}


def test_every_part_of_a_byte_level_tokenizer_is_written(tmp_path: Path) -> None:
    tokenizer = byte_level(unk_token="<pad>")
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.chat_template = "{{ messages }}"
    vocabulary = described(tmp_path, tokenizer, 270)
    found = fields(vocabulary)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = ["he", "ll", "hell", "Ġw", "hello", "12"]
    assert found["tokens"] == [*SPECIAL, *letters, *joined, "<tool>", *(f"[PAD{i}]" for i in range(266, 270))]
    assert found["token_type"] == [CONTROL] * 3 + [NORMAL] * 262 + [USER] + [UNUSED] * 4
    assert found["merges"] == [f"{left} {right}" for left, right in MERGES]
    assert {name: found[name] for name in ("model", "pre")} == {"model": "gpt2", "pre": "gpt-2"}
    assert {name: value for name, value in found.items() if name.endswith("_token_id")} == {
        "bos_token_id": 1, "eos_token_id": 0, "padding_token_id": 2, "unknown_token_id": 2,
    }  # fmt: skip
    assert (found["add_bos_token"], found["add_eos_token"], found["add_space_prefix"]) == (False, False, False)
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert "scores" not in found
    assert vocabulary.notes == ()
    assert vocabulary.about == "byte-level BPE (gpt-2)"


KNOWN: list[tuple[Any, bool, Any, str, int]] = [
    (bytes_with(None), False, None, "gpt-2", 0),
    (bytes_with(None, digits=True), False, None, "smollm", 0),
    (bytes_with(LLAMA3), True, None, "llama-bpe", 0),
    (bytes_with(LLAMA3), False, None, "smaug-bpe", 0),
    (bytes_with(LLAMA3.replace("{1,3}", "")), False, None, "qwen2", 0),
    (bytes_with(LLAMA3.replace("{1,3}", "")), False, normalizers.NFC(), "qwen2", 1),
]


@pytest.mark.parametrize(("steps", "whole", "normalizer", "name", "notes"), KNOWN)
def test_known_cuts_have_their_names(
    steps: Any, whole: bool, normalizer: Any, name: str, notes: int, tmp_path: Path
) -> None:
    vocabulary = described(tmp_path, byte_level(steps, whole=whole, normalizer=normalizer, begin=True), 265)
    assert fields(vocabulary)["pre"] == name
    assert fields(vocabulary)["add_bos_token"] is True
    assert len(vocabulary.notes) == notes


def random_texts(letters: str) -> list[str]:
    draw = random.Random(5)
    return ["".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(400)]


@pytest.mark.parametrize(("steps", "whole", "normalizer", "name", "notes"), KNOWN)
def test_llama_cpp_cuts_text_as_the_stock_tokenizer_does(
    steps: Any, whole: bool, normalizer: Any, name: str, notes: int, tmp_path: Path
) -> None:
    tokenizer = byte_level(steps, whole=whole, normalizer=normalizer, merges=CUT_MERGES)
    compare_with_llama_cpp(tokenizer, random_texts(CUT_TEXT), tmp_path)


def test_llama_cpp_joins_text_as_the_stock_tokenizer_does(tmp_path: Path) -> None:
    compare_with_llama_cpp(sentencepiece(), random_texts("abcthe xyz é"), tmp_path)


def compare_with_llama_cpp(tokenizer: Any, texts: list[str], folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64,
    )  # fmt: skip
    save_checkpoint(LlamaForCausalLM(config), tokenizer, folder / "model")
    export_gguf(folder / "model", folder / "m.gguf")
    _, cut = ask_llama_cpp(folder / "m.gguf", torch.arange(3), texts, folder)
    for text, ids in zip(texts, cut, strict=True):
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"], repr(text)


def test_the_stock_classes_cut_as_we_know_them() -> None:
    from transformers import GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

    tokens = {token: i for i, token in enumerate(["<|endoftext|>", "<unk>", "<s>", "</s>", "a", "b", "ab"])}
    for stock, expected in ((GPT2Tokenizer, "gpt-2"), (Qwen2Tokenizer, "qwen2"), (LlamaTokenizer, "default")):
        made = stock(vocab=dict(tokens), merges=[("a", "b")])
        assert known_as(json.loads(made.backend_tokenizer.to_str()))[1] == expected


@pytest.mark.parametrize("scheme", ["legacy", "first", "always"])
def test_scores_join_what_the_merges_join(scheme: str, tmp_path: Path) -> None:
    spaces = None if scheme == "legacy" else pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer = sentencepiece(spaces=spaces)
    vocabulary = described(tmp_path, tokenizer, 279)
    found = fields(vocabulary)
    assert (found["model"], found["add_space_prefix"], found["add_bos_token"]) == ("llama", True, True)
    assert found["token_type"] == [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 19 + [USER]
    assert "merges" not in found
    assert len(vocabulary.notes) == {"legacy": 0, "first": 2, "always": 1}[scheme]
    draw = random.Random(3)
    for _ in range(300):
        text = "".join(draw.choices("abcthe xyz é", k=draw.randint(1, 30)))
        if scheme != "legacy":
            text = text.lstrip()
        if text:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert joined_by_score(text, found["tokens"], found["scores"]) == ids, text


def test_a_real_sentencepiece_tokenizer(stories_path: Path) -> None:
    source = resolve_model(stories_path)
    vocabulary = stock_vocabulary(source, SimpleNamespace(vocab_size=512, bos_token_id=1, eos_token_id=2))
    found = fields(vocabulary)
    assert (found["model"], found["bos_token_id"], found["eos_token_id"]) == ("llama", 1, 2)
    from restorelcc.models import load_tokenizer

    tokenizer = load_tokenizer(source)
    for text in ("Once upon a time, there was a little girl named Lily.", "a  b\n\n12 é日", "thethethe   the"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert joined_by_score(text, found["tokens"], found["scores"]) == ids


def test_a_tokenizer_without_beginning_gets_the_end_token_which_is_never_added(tmp_path: Path) -> None:
    found = fields(described(tmp_path, byte_level(bos_token=None), 265))
    assert (found["bos_token_id"], found["eos_token_id"], found["add_bos_token"]) == (0, 0, False)
    found = fields(described(tmp_path / "b", byte_level(bos_token=None, eos_token=None), 265, eos_token_id=[2, 0]))
    assert (found["bos_token_id"], found["eos_token_id"]) == (2, 2)


def test_added_tokens_that_take_spaces_are_told(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True)])
    assert "take the spaces beside them" in described(tmp_path, tokenizer, 266).notes[0]


# ---- refusals ----------------------------------------------------------------------------------------------------


def odd_tokenizers() -> dict[str, tuple[Any, str]]:
    """What it is -> (tokenizer, words of the refusal)."""
    from restoration_models import small_tokenizer
    from tokenizers import processors
    from tokenizers.models import BPE

    around = byte_level()
    around.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<pad> $A <pad>", special_tokens=[("<pad>", 2)]
    )
    dropout = byte_level()
    dropout.backend_tokenizer.model = BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5)
    bare = byte_level()
    bare.backend_tokenizer.model = BPE(byte_level().get_vocab(), [])
    pad = byte_level()
    pad.add_tokens(["[PAD268]"])
    split = pre_tokenizers.Split(Regex(LLAMA3), "removed")
    words = pre_tokenizers.Split(Regex(r"\w+"), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    prefixed = pre_tokenizers.ByteLevel(add_prefix_space=True)
    unknown = "is not among what llama.cpp is known to do"
    pairs = [pair for pair in MERGES_OF_WORDS if pair != ("t", "he")]
    return {
        "words": (small_tokenizer(), "its tokenizer is of type WordLevel, not BPE"),
        "another pattern": (byte_level(pre_tokenizers.Sequence([words, last])), f"(Split and ByteLevel) {unknown}"),
        "a pattern that removes": (byte_level(pre_tokenizers.Sequence([split, last])), unknown),
        "no bytes": (byte_level(pre_tokenizers.Whitespace()), f"(Whitespace) {unknown}"),
        "a space in front": (byte_level(prefixed), unknown),
        "digits in threes": (byte_level(bytes_with(LLAMA3, digits=True)), unknown),
        "whole words of gpt-2": (byte_level(whole=True), unknown),
        "lower case": (byte_level(normalizer=normalizers.Lowercase()), "normalises text (Lowercase)"),
        "dropout": (dropout, "its tokenizer has a dropout"),
        "no end": (byte_level(eos_token=None), "names no end token (eos_token), and llama.cpp would take token 11"),
        "other ends": (around, "puts tokens [2] before and [2] after text"),
        "no merges": (bare, "has no merges, and llama.cpp loads none without"),
        "a name of an unused row": (pad, "has a token that is named like an unused row"),
        "bytes and other spaces": (
            sentencepiece(spaces=pre_tokenizers.Metaspace(prepend_scheme="never")), "does not treat spaces as Llama 2",
        ),
        "a byte without token": (sentencepiece(drop="<0x41>"), "no token for 1 bytes, such as <0x41>"),
        "a missing merge": (sentencepiece(pairs), "does not join 't' and 'he', which llama.cpp would"),
        "merges apart": (
            sentencepiece([*MERGES_OF_WORDS, ("t", "he")]), "not in the order",
        ),
    }  # fmt: skip


MERGES_OF_WORDS = [
    ("t", "h"), ("h", "e"), ("▁", "t"), ("t", "he"), ("th", "e"), ("▁t", "he"), ("▁", "the"), ("▁", "a"), ("a", "b"),
    ("b", "c"), ("a", "bc"), ("ab", "c"),
]  # fmt: skip


@pytest.mark.parametrize("kind", odd_tokenizers())
def test_tokenizers_that_are_refused(kind: str, tmp_path: Path) -> None:
    tokenizer, words = odd_tokenizers()[kind]
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        described(tmp_path, tokenizer, 280)
    assert "\n" not in str(raised.value)
    assert "pass --tokenizer with a GGUF file" in str(raised.value) or kind == "no end"


def test_tokens_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 'hello' as token 263 and the embedding has 263 rows"):
        described(tmp_path, byte_level(), 263)


def test_merges_of_no_token_are_refused() -> None:
    tokens = {f"<0x{byte:02X}>": byte for byte in range(256)}
    with pytest.raises(ValueError, match="'a' and 'b', are not in the order of their tokens"):
        merge_scores(tokens, [("a", "b")])


# ---- from another GGUF file --------------------------------------------------------------------------------------


@pytest.fixture
def original(tmp_path: Path) -> tuple[Path, Path]:
    """(GGUF file of a model with a tokenizer of its own, checkpoint that stock transformers makes of it)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from restorelcc.models import load_model

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    file = tmp_path / "original.gguf"
    write_gguf(LlamaForCausalLM(config), file)
    loaded = load_model(file)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "model")
    return file, tmp_path / "model"


def contents(file: Path) -> dict[str, Any]:
    reader: Any = gguf.GGUFReader(file)
    found = {key: (field.types, field.contents()) for key, field in reader.fields.items()}
    return {key: value for key, value in found.items() if key.startswith("tokenizer.")}


def test_the_tokenizer_of_the_original_file_is_carried_over(original: tuple[Path, Path], tmp_path: Path) -> None:
    file, model = original
    done = succeed("export", model, "--out", tmp_path / "m.gguf", "--tokenizer", file)
    assert done["tokenizer"] == f"carried over from {file} (default)"
    assert contents(tmp_path / "m.gguf") == contents(file)
    (model / "tokenizer.json").unlink()  # needed no longer
    succeed("export", model, "--out", tmp_path / "again.gguf", "--tokenizer", file)
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()


def test_a_file_of_another_model_is_refused(original: tuple[Path, Path], tmp_path: Path) -> None:
    file, model = original
    out = tmp_path / "m.gguf"
    source = resolve_model(file)
    with pytest.raises(ValueError, match="has 61 tokens and the embedding 60 rows; it belongs to another model"):
        carried_vocabulary(source, 60, None)
    own = {token: i for i, token in enumerate(contents(file)["tokenizer.ggml.tokens"][1])}
    assert carried_vocabulary(source, 61, own).fields
    own["!"], own['"'] = own['"'], own["!"]
    with pytest.raises(ValueError, match=r"token 3 of .* is '!', which is none or another .* \(2 tokens differ\)"):
        carried_vocabulary(source, 61, own)
    refuse("export", model, "--out", out, "--tokenizer", "someone/something", words="is no local file or directory")
    refuse("export", model, "--out", out, "--tokenizer", tmp_path / "no.gguf", words="does not exist")
    refuse("export", model, "--out", file, "--tokenizer", file, "--overwrite", words="which is read to make it")
    (tmp_path / "bad.gguf").write_bytes(file.read_bytes()[:300])
    refuse("export", model, "--out", out, "--tokenizer", tmp_path / "bad.gguf", words="bad.gguf cannot be loaded")
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.add_name("bare")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse("export", model, "--out", out, "--tokenizer", tmp_path / "bare.gguf", words="holds no tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    refuse("export", model, "--out", out, words="cannot be loaded")
    assert not out.exists()
