"""Token sets, text files, the model's own text and CPython's prose."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from development_data import shared

from restorelcc.own_text import rows_at_once
from restorelcc.prose import prose_paragraphs
from restorelcc.text import ChoiceItem, TokenSet, load_choices, load_text, prose_windows, write_own_text

STORY = "Once upon a time there was a little girl named Lily. She loved to play outside in the park. "


def words(count: int) -> str:
    return " ".join(f"w{3 + i % 50}" for i in range(count))


def write_lines(path: Path, *objects: Any) -> Path:
    path.write_text("\n".join(json.dumps(value) for value in objects) + "\n")
    return path


# --- token sets


def test_masks_and_labels() -> None:
    tokens = TokenSet(torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]]), torch.tensor([3, 2]), torch.tensor([1, 2]), "x")
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert tokens.labels.tolist() == [[-100, 6, 7, -100], [-100, -100, -100, -100]]
    assert tokens.tokens == 2


def test_splits_are_disjoint_and_seeded(token_set: Callable[..., TokenSet]) -> None:
    tokens = token_set(10)
    state = torch.random.get_rng_state()
    train, held = tokens.split(0.3, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (len(train), len(held)) == (7, 3)
    assert sorted(train.ids.tolist() + held.ids.tolist()) == sorted(tokens.ids.tolist())
    assert torch.equal(tokens.split(0.3, seed=1)[1].ids, held.ids)
    assert not torch.equal(tokens.split(0.3, seed=2)[1].ids, held.ids)
    assert [len(part) for part in token_set(2).split(0.01, seed=0)] == [1, 1]
    with pytest.raises(ValueError, match=r"cannot hold out 0\.5 of 1 rows"):
        token_set(1).split(0.5, seed=0)


def test_batches_cover_all_rows_at_their_width(token_set: Callable[..., TokenSet]) -> None:
    parts = list(token_set(5, 12, ragged=True).batches(2))
    assert [tuple(part.ids.shape) for part in parts] == [(2, 12), (2, 8), (1, 4)]
    with pytest.raises(ValueError, match="at least 1 row"):
        next(token_set().batches(0))


def test_token_files(tmp_path: Path, token_set: Callable[..., TokenSet]) -> None:
    tokens, path = token_set(4, 9, ragged=True), tmp_path / "t.safetensors"
    tokens.save(path)
    again = TokenSet.load(path)
    assert again.fingerprint() == tokens.fingerprint() != token_set(4, 9).fingerprint()
    assert again.name == "random"
    os.truncate(path, 50)
    with pytest.raises(ValueError, match="truncated"):
        TokenSet.load(path)
    with pytest.raises(ValueError, match="does not exist"):
        TokenSet.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("lengths", "start", "message"),
    [
        ([3], [1, 1], r"lengths \[1\]"),
        ([0, 2], [1, 1], "from 0 to 2"),
        ([5, 2], [1, 1], "1 to 4"),
        ([1, 2], [0, 1], "1"),
    ],
)
def test_impossible_sets_are_refused(lengths: list[int], start: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenSet(torch.zeros(2, 4, dtype=torch.long), torch.tensor(lengths), torch.tensor(start), "x")


# --- files


def test_running_text_is_cut_into_windows(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text(words(35))
    tokens = load_text(path, tokenizer, window=10)
    assert tokens.ids.flatten().tolist() == tokenizer(words(30)).input_ids
    assert (tokens.ids.shape, tokens.tokens) == ((3, 10), 27)
    some = load_text(path, tokenizer, window=10, max_tokens=25, seed=3)
    assert len(some) == 2
    assert all(row in tokens.ids.tolist() for row in some.ids.tolist())
    assert len(load_text(path, tokenizer, window=10, max_tokens=1)) == 1


def test_windows_begin_as_the_tokenizer_begins(tmp_path: Path, stories: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text(STORY * 4)
    tokens = load_text(path, stories.tokenizer, window=16)
    assert tokens.ids[:, 0].tolist() == [stories.tokenizer.bos_token_id] * len(tokens)
    whole = stories.tokenizer(STORY * 4).input_ids
    assert tokens.ids[:, 1:].flatten().tolist() == whole[1 : 1 + 15 * len(tokens)]


def test_only_answers_count(tmp_path: Path, stories: Any) -> None:
    prompt, answer = "Once upon a time", " there was a dog."
    path = write_lines(tmp_path / "a.jsonl", {"text": prompt, "label": answer}, {"text": STORY * 9, "label": answer})
    tokens = load_text(path, stories.tokenizer, window=32)
    assert stories.tokenizer.decode(tokens.ids[0, tokens.response_start[0] :]).strip() == answer.strip()
    assert tokens.ids[0].tolist() == stories.tokenizer(prompt + answer).input_ids
    assert tokens.note.startswith("1 of 2 lines left out")
    plain = load_text(
        write_lines(tmp_path / "b.jsonl", {"text": STORY}, {"text": prompt}), stories.tokenizer, window=32
    )
    assert plain.response_start.tolist() == [1, 1]
    assert plain.lengths[0] == 32 > plain.lengths[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n ", "is empty"),
        ("a.txt", words(9), r"9 tokens, fewer than one window of 10"),
        ("a.txt", b"\xff\xfe", r"not UTF-8 text \(byte 0\)"),
        ("a.jsonl", '{"text": "w3 w4"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", '\n["w3"]', "line 2 is a JSON list"),
        ("a.jsonl", '{"prompt": "w3"}', 'line 1 needs "text"'),
        ("a.jsonl", '{"text": "w3", "label": 4}', "both strings"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON of this form"),
        ("a.jsonl", '{"text": "w3 \\ud800 w4"}', "line 1 holds half of a surrogate pair"),
        ("a.jsonl", json.dumps({"text": words(20), "label": " w3"}), "none of the 1 lines .* within 10 tokens"),
    ],
)
def test_bad_text_is_refused(tmp_path: Path, tokenizer: Any, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_text(path, tokenizer, window=10)


def test_marks_and_ends_of_lines_of_other_systems(tmp_path: Path, tokenizer: Any) -> None:
    """A byte order mark is no text, \\r\\n ends a line, and U+2028 inside a string does not."""
    plain, marked = tmp_path / "a.txt", tmp_path / "b.txt"
    plain.write_text(words(20))
    marked.write_bytes(b"\xef\xbb\xbf" + words(20).encode())
    assert load_text(plain, tokenizer, window=10).fingerprint() == load_text(marked, tokenizer, window=10).fingerprint()
    lines = tmp_path / "c.jsonl"
    line = json.dumps({"text": "w3 w4\u2028w5"}, ensure_ascii=False)
    lines.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    assert len(load_text(lines, tokenizer, window=10)) == 2


def test_rows_beyond_the_context_are_refused(random_model: Any, tokenizer: Any, token_set: Any) -> None:
    from restorelcc.pruning import prune_model

    model = random_model("llama")
    with pytest.raises(ValueError, match="rows of 100 tokens, but the model's context is 64"):
        write_own_text(model, tokenizer, tokens=10, window=100)
    with pytest.raises(ValueError, match="window of 16 tokens or more, not 8"):
        write_own_text(model, tokenizer, tokens=10, window=8)
    with pytest.raises(ValueError, match="rows of 70 tokens, but the model's context is 64"):
        prune_model(model, calibration=token_set(2, 70))


def test_absent_text_and_empty_windows_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_text(tmp_path / "none.txt", tokenizer)
    with pytest.raises(ValueError, match="is a directory"):
        load_text(tmp_path, tokenizer)
    (tmp_path / "a.txt").write_text(words(9))
    with pytest.raises(ValueError, match="window of 1"):
        load_text(tmp_path / "a.txt", tokenizer, window=1)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        load_text(tmp_path / "a.txt", tokenizer, window=4, max_tokens=0)


# --- the model's own text


def test_own_text_is_seeded_and_leaves_the_global_state(stories: Any) -> None:
    def write(seed: int) -> TokenSet:
        return write_own_text(stories.model, stories.tokenizer, tokens=120, window=32, batch=8, seed=seed)

    state = torch.random.get_rng_state()
    first = write(1)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert write(1).fingerprint() == first.fingerprint() != write(2).fingerprint()
    assert 120 <= first.tokens < 120 + 32
    assert first.ids.shape[1] <= 32
    assert set(first.ids[:, 0].tolist()) == {stories.tokenizer.bos_token_id}
    assert set(first.response_start.tolist()) == {2}  # the token behind <s> is random: nothing foretells it


def test_own_text_from_random_tokens(stories: Any) -> None:
    """Each row goes on from a token of its own that is no mark, behind what the tokenizer puts first."""

    def write(seed: int) -> TokenSet:
        return write_own_text(stories.model, stories.tokenizer, tokens=400, window=24, seed=seed)

    rows = write(1)
    starts = rows.ids[:, 1].tolist()
    assert set(rows.ids[:, 0].tolist()) == {stories.tokenizer.bos_token_id}
    assert len(set(starts)) == len(starts) > 10
    assert not set(starts) & set(stories.tokenizer.all_special_ids)
    assert write(1).fingerprint() == rows.fingerprint() != write(2).fingerprint()


def test_own_text_from_tokens_of_other_scripts(stories: Any) -> None:
    """Half of the rows begin with a run of tokens of one script that is not the commonest; nothing foretells it."""
    tokenizer = scripted_tokenizer()

    def write(seed: int, scripts: float = 0.5) -> TokenSet:
        return write_own_text(stories.model, tokenizer, tokens=1600, window=96, batch=40, seed=seed, scripts=scripts)

    rows = write(1)
    begins = rows.response_start.tolist()
    assert set(begins) == {1, 16}
    runs = [ids[:16] for ids, begin in zip(rows.ids.tolist(), begins, strict=True) if begin == 16]
    assert len(runs) >= 8
    letters = ["".join(tokenizer.convert_ids_to_tokens(run)) for run in runs]
    assert {unicodedata.name(text[0]).split()[0] for text in letters} == {"CYRILLIC", "GREEK"}  # Hebrew has but three
    assert all(len({unicodedata.name(letter).split()[0] for letter in text}) == 1 for text in letters)
    assert len({tuple(run) for run in runs}) == len(runs)
    assert write(1).fingerprint() == rows.fingerprint() != write(2).fingerprint()
    assert set(write(1, scripts=0.0).response_start.tolist()) == {1}
    with pytest.raises(ValueError, match=r"scripts is 1\.5; it is a share of the rows, 0 to 1"):
        write(1, scripts=1.5)


def scripted_tokenizer() -> Any:
    """Letters as words: 26 Latin, 20 Cyrillic, 17 Greek and 3 Hebrew ones."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    scripts = ((0x61, 26), (0x430, 20), (0x3B1, 17), (0x5D0, 3))
    letters = [chr(first + step) for first, count in scripts for step in range(count)]
    vocabulary = {letter: index for index, letter in enumerate(["<unk>", "<pad>", *letters])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, "<unk>")), unk_token="<unk>", pad_token="<pad>"
    )


def test_a_vocabulary_of_one_script_has_no_other(random_model: Any, tokenizer: Any) -> None:
    rows = write_own_text(random_model("llama"), tokenizer, tokens=100, window=40, batch=16, scripts=1)
    assert len(set(rows.response_start.tolist())) == 1


def test_rows_at_once_follow_the_model(random_model: Any) -> None:
    config = random_model("llama").config
    assert rows_at_once(config, 256) == 128
    config.num_hidden_layers, config.num_key_value_heads, config.head_dim = 32, 8, 128  # the shape of an 8B model
    assert rows_at_once(config, 256) == 32
    config.num_key_value_heads = 4096
    assert rows_at_once(config, 256) == 1


def test_ended_rows_keep_their_length(random_model: Any, tokenizer: Any) -> None:
    model = random_model("llama")
    model.generation_config.eos_token_id = list(range(3, 12))
    tokens = write_own_text(model, tokenizer, tokens=100, window=30, batch=16)
    for row, length in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True):
        assert length == 30 or row[length - 1] in range(3, 12)
    assert int(tokens.lengths.min()) >= 8


def test_a_model_that_says_nothing_is_refused(random_model: Any, tokenizer: Any) -> None:
    model = random_model("llama")
    model.generation_config.eos_token_id = list(range(61))
    with pytest.raises(ValueError, match="at once"):
        write_own_text(model, tokenizer, tokens=100, window=30, batch=4)
    with pytest.raises(ValueError, match="tokens=0"):
        write_own_text(model, tokenizer, tokens=0)


# --- prose


def test_prose_is_prose() -> None:
    paragraphs = prose_paragraphs()
    assert paragraphs == prose_paragraphs()
    assert len(paragraphs) == len(set(paragraphs)) > 300
    text = "\n".join(paragraphs)
    assert not any(mark in text for mark in ("::=", ">>>", "***", "---", "\t"))
    letters = sum(character.isalpha() or character in " \n" for character in text)
    assert letters > 0.93 * len(text)
    assert all(paragraph[0].isupper() and paragraph[-1] in ".!?" for paragraph in paragraphs)


def test_prose_windows(stories: Any) -> None:
    tokens = prose_windows(stories.tokenizer, window=128, max_tokens=1000)
    assert tokens.ids.shape == (7, 128)
    assert "CPython" in tokens.name
    assert prose_windows(stories.tokenizer, window=512).tokens > 16384
    with pytest.raises(ValueError, match="fewer than one window"):
        prose_windows(stories.tokenizer, window=10**7)


# --- choices


def test_choices_of_every_form(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        {"query": "The sky is", "choices": ["blue", "green"], "gold": 0},
        {"query": "Ann saw Bea so _ left.", "choices": ["Ann", "Bea"], "gold": 1},
        {"premise": "It rains.", "hypothesis": "It is wet.", "choices": ["True", "False"], "gold": 0},
    )
    plain, gap, entailment = load_choices(path)
    assert plain.pairs == [("The sky is", " blue"), ("The sky is", " green")]
    assert gap.pairs == [("Ann saw Bea so Ann", " left."), ("Ann saw Bea so Bea", " left.")]
    assert entailment.query == "It rains.\nQuestion: It is wet. True or False?\nAnswer:"
    for query in ("What does get_name return?", "The capital is ____ .", "Either _ or _ is right.", "It ends in _"):
        assert ChoiceItem(query, ("a", "b"), 0).pairs == [(query, " a"), (query, " b")]
    assert ChoiceItem("It was _'s dog.", ("Ann", "Bea"), 0).pairs[1] == ("It was Bea", "'s dog.")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"query": "x", "choices": ["a", "b"]}, 'line 1 needs "query"'),
        ({"query": " ", "choices": ["a", "b"], "gold": 0}, "line 1 has an empty query"),
        ({"query": "x", "choices": ["a"], "gold": 0}, "has 1 choices"),
        ({"query": "x", "choices": ["a", "b"], "gold": 2}, "gold 2"),
        ({"query": "x", "choices": ["a", "b"], "gold": True}, 'line 1 needs "query"'),
        ({"query": "x", "choices": ["a", ""], "gold": 0}, "no text or empty"),
        ({"query": "x", "choices": ["a", ["b"]], "gold": 0}, "no text or empty"),
    ],
)
def test_bad_choices_are_refused(tmp_path: Path, value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_choices(write_lines(tmp_path / "a.jsonl", value))


@pytest.mark.parametrize("name", ["piqa", "winogrande", "arc_easy_train", "openbookqa_train", "rte_train"])
def test_released_choice_files_load(name: str) -> None:
    items = load_choices(shared("data", "mc", f"{name}.jsonl"))
    assert len(items) > 100
    assert all(len(item.pairs) == len(item.choices) for item in items)
