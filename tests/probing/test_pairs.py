"""Contrastive pairs: which wrong answer, what is left out, what both rows share, and their file."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from development_data import shared
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from restorelcc.models import MissingExtraError, load_tokenizer
from restorelcc.pairs import PairSet, contrastive_pairs
from restorelcc.similarity import SENTENCE_MODEL, Embeddings, TfIdf, choose_similarity, nearest
from restorelcc.text import ChoiceItem
from restorelcc.token_set import TokenSet

WORDS = [
    "which", "red", "green", "blue", "cat", "dog", "sat", "on", "the", "mat", "ran", "far", "away", "5", "6", "yes",
    "no", "is", "it", "a", "color", "of", "sky",
]  # fmt: skip
HAVE_SENTENCE_TRANSFORMERS = importlib.util.find_spec("sentence_transformers") is not None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One id a word of WORDS; no beginning is added."""
    stock = Tokenizer(WordLevel({"<pad>": 0, **{w: i for i, w in enumerate(WORDS, 1)}}, unk_token="<pad>"))
    stock.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=stock, pad_token="<pad>")


def row(prompt: str, answer: str) -> dict[str, str]:
    return {"text": prompt, "label": answer}


def words(side: TokenSet, index: int) -> tuple[str, str]:
    """(prompt, answer) of a row, in words."""
    start, end = int(side.response_start[index]), int(side.lengths[index])
    return tuple(" ".join(WORDS[int(i) - 1] for i in side.ids[index, a:b]) for a, b in ((0, start), (start, end)))


def wrong_answers(pairs: PairSet) -> list[str]:
    return [words(pairs.negative, index)[1] for index in range(len(pairs))]


ROWS = [
    row("which cat", " red cat sat on the mat"),
    row("which dog", " green dog ran far away"),
    row("which color", " the sky is blue"),
    row("which mat", " the red cat sat on a mat"),
    row("is it far", " dog ran far"),
]


# --- which answer


def test_the_wrong_answer_is_the_most_similar_other_one(tokenizer: Any) -> None:
    pairs = contrastive_pairs(ROWS, tokenizer, window=32, similarity="tfidf")
    assert [words(pairs.positive, i) for i in range(5)] == [(r["text"], r["label"].strip()) for r in ROWS]
    assert [words(pairs.negative, i)[0] for i in range(5)] == [r["text"] for r in ROWS]
    assert wrong_answers(pairs)[:2] == ["the red cat sat on a mat", "dog ran far"]
    assert wrong_answers(pairs)[3:] == ["red cat sat on the mat", "green dog ran far away"]
    assert (pairs.note, pairs.similarity) == ("", "TF-IDF")


def test_tf_idf_is_the_formula_of_the_module() -> None:
    texts = ["Red red cat", "the CAT sat", "the dog", "5"]
    bags = [text.casefold().split() for text in texts]
    known = sorted({word for bag in bags for word in bag})
    held = {word: sum(word in bag for bag in bags) for word in known}
    vectors = np.array(
        [[bag.count(word) * (np.log((1 + len(texts)) / (1 + held[word])) + 1) for word in known] for bag in bags]
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = TfIdf(texts)
    for index in range(len(texts)):
        np.testing.assert_allclose(found.row(index), vectors @ vectors[index], rtol=0, atol=1e-15)


def test_texts_without_words_are_like_no_other() -> None:
    found = TfIdf(["?!", "a b", "", "a b c"])
    assert found.row(0).tolist() == [0, 0, 0, 0] == found.row(2).tolist()
    assert found.row(1)[3] > 0.5


def test_ties_go_to_the_next_answer_going_round(tokenizer: Any) -> None:
    rows = [row("which", answer) for answer in (" red", " green", " blue", " 5")]
    assert wrong_answers(contrastive_pairs(rows, tokenizer, window=8, similarity="tfidf")) == [
        "green", "blue", "5", "red",
    ]  # fmt: skip


def test_nearest_looks_only_where_it_may() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.5])
    assert nearest(scores, 1) == 2
    assert nearest(scores, 2) == 1
    assert nearest(scores, 3, (0, 2)) == 2
    assert nearest(scores, 0, (2, 3)) == 2
    assert nearest(scores, 0, (3, 2)) == 2  # the order in which candidates are named does not matter
    assert nearest(scores, 1, (1,)) is None
    assert nearest(np.array([1.0]), 0) is None


def test_the_same_answer_is_never_its_own_negative(tokenizer: Any) -> None:
    rows = [row("which cat", " red cat"), row("which dog", " red cat "), row("which mat", "\tred cat"), row("is", " 5")]
    pairs = contrastive_pairs(rows, tokenizer, window=16, similarity="tfidf")
    assert wrong_answers(pairs) == ["5", "5", "5", "red cat"]


def test_a_negative_gets_the_white_space_of_its_positive(tmp_path: Path) -> None:
    """Seen by a tokenizer of characters: white space must not tell right from wrong."""
    letters = {chr(code): code - 31 for code in range(32, 127)}
    stock = Tokenizer(WordLevel({"<pad>": 0, **letters}, unk_token="<pad>"))
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    stock.pre_tokenizer = Split(Regex("."), "isolated")
    characters = PreTrainedTokenizerFast(tokenizer_object=stock, pad_token="<pad>")
    rows = [row("p", "  yes "), row("q", "no"), row("r", " maybe")]
    pairs = contrastive_pairs(rows, characters, window=16, similarity="tfidf")
    answers = [
        "".join(chr(int(i) + 31) for i in pairs.negative.ids[k, 1 : pairs.negative.lengths[k]]) for k in range(3)
    ]
    assert answers == ["  no ", "maybe", " yes"]


# --- what is left out, cut, shared


def test_what_is_left_out_is_counted(tokenizer: Any) -> None:
    rows = [*ROWS, row("which", ""), row("which", "  "), row("the mat " * 8, " red"), row("", " blue dog")]
    pairs = contrastive_pairs(rows, tokenizer, window=12, similarity="tfidf")
    assert len(pairs) == 5
    assert pairs.note == (
        "4 of 9 rows left out: 1 whose prompt has no token of its own, 2 without an answer, "
        "1 without different answers within 12 tokens"
    )


def test_rows_are_cut_to_the_window(tokenizer: Any) -> None:
    whole = contrastive_pairs(ROWS, tokenizer, window=32, similarity="tfidf")
    cut = contrastive_pairs(ROWS, tokenizer, window=5, similarity="tfidf")
    assert cut.positive.ids.shape[1] == 5
    assert int(cut.positive.lengths.max()) == 5 == int(cut.negative.lengths.max())
    kept = [0, 1, 2, 3, 4]
    assert len(cut) == len(kept)
    for at, index in enumerate(kept):
        length = int(cut.negative.lengths[at])
        assert torch.equal(cut.negative.ids[at, :length], whole.negative.ids[index, :length])


def test_rows_that_the_window_makes_equal_hold_no_contrast(tokenizer: Any) -> None:
    rows = [row("which", " red cat sat"), row("which", " red cat ran"), row("it", " red cat"), row("is", " blue sky")]
    pairs = contrastive_pairs(rows, tokenizer, window=3, similarity="tfidf")
    assert pairs.note == "3 of 4 rows left out: 3 without different answers within 3 tokens"
    assert wrong_answers(pairs) == ["red cat"]


def test_both_rows_share_the_prompt_tokens_across_a_merged_border() -> None:
    """`ab` merges the last letter of the prompt with an answer's first: that token counts as answer in both rows."""
    stock = Tokenizer(WordLevel({"<pad>": 0, "p": 1, "a": 2, "b": 3, "c": 4, "ab": 5}, unk_token="<pad>"))
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    stock.pre_tokenizer = Split(Regex("ab|."), "isolated")
    merging = PreTrainedTokenizerFast(tokenizer_object=stock, pad_token="<pad>")
    pairs = contrastive_pairs([row("pa", "b"), row("pa", "c")], merging, window=8, similarity="tfidf")
    assert pairs.positive.ids.tolist() == [[1, 5, 0], [1, 2, 4]]
    assert pairs.negative.ids.tolist() == [[1, 2, 4], [1, 5, 0]]
    assert pairs.positive.response_start.tolist() == [1, 1] == pairs.negative.response_start.tolist()


def test_pairs_are_drawn_by_the_seed_in_file_order(tokenizer: Any) -> None:
    draws = [contrastive_pairs(ROWS, tokenizer, window=32, max_pairs=3, seed=s, similarity="tfidf") for s in (0, 0, 1)]
    assert draws[0].fingerprint() == draws[1].fingerprint() != draws[2].fingerprint()
    prompts = [words(draws[0].positive, i)[0] for i in range(3)]
    assert prompts == [r["text"] for r in ROWS if r["text"] in prompts]
    whole = contrastive_pairs(ROWS, tokenizer, window=32, similarity="tfidf")
    chosen = [index for index, r in enumerate(ROWS) if r["text"] in prompts]
    assert wrong_answers(draws[0]) == [wrong_answers(whole)[index] for index in chosen]  # from the whole file


# --- multiple choice


def choices_file(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in rows), encoding="utf-8")
    return path


def test_the_most_similar_wrong_choice(tokenizer: Any, tmp_path: Path) -> None:
    path = choices_file(
        tmp_path / "c.jsonl",
        {"query": "which cat", "choices": ["blue sky", "red cat", "red dog", "red cat "], "gold": 1},
        {"query": "is it", "choices": ["yes", "no"], "gold": 0},
        {"query": "is the cat", "choices": ["yes", "yes"], "gold": 1},
    )
    pairs = contrastive_pairs(path, tokenizer, window=16, similarity="tfidf")
    assert [words(pairs.positive, i) for i in range(2)] == [("which cat", "red cat"), ("is it", "yes")]
    assert wrong_answers(pairs) == ["red dog", "no"]
    assert pairs.note == "1 of 3 rows left out: 1 without a different answer"
    assert pairs.positive.name == "c.jsonl"


def test_a_gap_is_filled_and_the_answer_runs_to_the_end(tokenizer: Any) -> None:
    item = ChoiceItem("the cat sat on the _ far away", ("mat", "dog"), 1)
    pairs = contrastive_pairs([item], tokenizer, window=16)
    assert words(pairs.positive, 0) == ("the cat sat on the", "dog far away")
    assert words(pairs.negative, 0) == ("the cat sat on the", "mat far away")


# --- refusals


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        (ROWS, {"window": 1}, "window of 1"),
        (ROWS, {"max_pairs": 0}, "max_pairs is 0"),
        (ROWS, {"similarity": "magic"}, "unknown similarity 'magic'"),
        ([], {}, "rows gives no pair; it has no rows"),
        ([row("which", " red")], {}, "1 of 1 rows left out: 1 without a different answer"),
        ([row("which", ""), row("it", "")], {}, "2 without an answer"),
        ([{"label": "x"}], {}, 'row 0 needs "text"'),
        ([{"text": "x", "label": 5}], {}, 'row 0 needs "text"'),
    ],
)
def test_no_pairs_is_one_sentence(rows: Any, settings: dict[str, Any], said: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        contrastive_pairs(rows, tokenizer, **{"window": 16, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"text": "which", "label": " red"}\n{"label": "x"}\n', 'line 2 needs "text"'),
        ('{"text": "which"\n', "line 1 is not JSON"),
        ('{"query": "is it", "choices": ["yes"], "gold": 0}\n', "line 1 has 1 choices"),
    ],
)
def test_bad_files_are_one_sentence(content: str, said: str, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        contrastive_pairs(path, tokenizer, window=16)
    with pytest.raises(ValueError, match="does not exist"):
        contrastive_pairs(tmp_path / "none.jsonl", tokenizer, window=16)


# --- embeddings


class _Encoder:
    """A stand-in for a sentence model: texts are alike when they are equally long."""

    loaded: list[tuple[str, dict[str, Any]]]

    def __init__(self, model: str, **settings: Any) -> None:
        if model == "absent" or model.endswith("broken"):
            raise OSError("not here")
        self.loaded.append((model, settings))

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.array([[np.cos(len(t) / 9), np.sin(len(t) / 9)] for t in texts], dtype=np.float32)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    module = types.ModuleType("sentence_transformers")
    module.__spec__ = importlib.machinery.ModuleSpec("sentence_transformers", None)
    _Encoder.loaded = []
    module.SentenceTransformer = _Encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return _Encoder.loaded


def test_embeddings_are_used_where_they_are(stand_in: list[Any], tokenizer: Any, tmp_path: Path) -> None:
    rows = [row("which", " red"), row("which", " red cat sat"), row("which", " 5 6"), row("which", " blue cat ran")]
    pairs = contrastive_pairs(rows, tokenizer, window=16)
    assert wrong_answers(pairs) == ["5 6", "blue cat ran", "red", "red cat sat"]
    assert pairs.similarity == f"embeddings of {SENTENCE_MODEL}"
    assert stand_in == [(SENTENCE_MODEL, {"device": "cpu", "local_files_only": True})]
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert choose_similarity(["a"], str(folder)).name == "embeddings of my-model"


def test_a_model_that_is_not_here(stand_in: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_Encoder, "__init__", lambda self, model, **_: (_ for _ in ()).throw(OSError("offline")))
    assert choose_similarity(["a", "b"]).name == "TF-IDF"
    with pytest.raises(ValueError, match="all-MiniLM-L6-v2 is not on this machine"):
        choose_similarity(["a", "b"], "embeddings")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sentence_transformers" else found(name, *rest)
    )
    assert choose_similarity(["a", "b"]).name == "TF-IDF"
    with pytest.raises(MissingExtraError, match=r"pip install .*\.\[embeddings\]"):
        choose_similarity(["a", "b"], "embeddings")


@pytest.mark.skipif(not HAVE_SENTENCE_TRANSFORMERS, reason="sentence-transformers is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_real_sentence_model(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import BoW

    vocabulary = ["red", "cat", "dog", "sky"]
    folder = tmp_path / "bag-of-words"
    SentenceTransformer(modules=[BoW(vocabulary)], device="cpu").save(str(folder))
    found = Embeddings(["red cat", "dog", "cat red", "sky cat"], str(folder))
    np.testing.assert_allclose(found.row(0), [1, 0, 1, 0.5], atol=1e-6)


# --- the file


def test_pair_files(tokenizer: Any, tmp_path: Path) -> None:
    pairs, path = contrastive_pairs([*ROWS, row("it", "")], tokenizer, window=8, similarity="tfidf"), tmp_path / "p"
    pairs.save(path)
    again = PairSet.load(path)
    assert again.fingerprint() == pairs.fingerprint()
    assert (again.note, again.similarity, again.positive.name) == (pairs.note, "TF-IDF", "rows")
    assert again.note.startswith("1 of 6")
    part = again.subset([3, 0])
    assert torch.equal(part.negative.ids, pairs.negative.ids[[3, 0]])
    assert len(part) == 2


def test_damaged_pair_files(tokenizer: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    pairs, path = contrastive_pairs(ROWS, tokenizer, window=8, similarity="tfidf"), tmp_path / "p.safetensors"
    pairs.save(path)
    good = load_file(path)
    marks = {"kind": "pairs", "version": "0", "name": "", "note": "", "similarity": "", "fingerprint": ""}
    changed = {**good, "negative_ids": good["negative_ids"] + 1}
    fewer = {**good, **{k: v[:2].clone() for k, v in good.items() if k.startswith("negative")}}
    long = {**good, "positive_lengths": good["positive_lengths"] + 99}
    bare = {k: v for k, v in good.items() if k != "negative_start"}
    for tensors, metadata, said in (
        (changed, {**marks, "fingerprint": pairs.fingerprint()}, "not those of its fingerprint"),
        (fewer, marks, "negative_ids of shape"),
        (long, marks, "lengths run from"),
        (bare, marks, "lacks negative_start"),
        (good, {**marks, "kind": "tokens"}, "is not a pair file"),
        ({**good, "positive_ids": good["positive_ids"].float()}, marks, "positive_ids as torch.float32"),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=said) as caught:
            PairSet.load(path)
        assert "make the pairs again" in str(caught.value)
    os.truncate(path, 40)
    with pytest.raises(ValueError, match="truncated"):
        PairSet.load(path)
    with pytest.raises(ValueError, match="does not exist"):
        PairSet.load(tmp_path / "none")


def test_sides_of_different_length_are_no_pairs() -> None:
    side = TokenSet(torch.ones(2, 3, dtype=torch.long), torch.tensor([3, 3]), torch.tensor([1, 1]), "x")
    with pytest.raises(ValueError, match="2 positive rows, but 1 negative"):
        PairSet(side, side.subset([0]))


# --- a real tokenizer


def test_a_real_tokenizer(tmp_path: Path) -> None:
    place = shared("data", "models", "stories260k-hf")
    stock = load_tokenizer(place)
    rows = [
        row("Once upon a time", " there was a dog."),
        row("Lily saw", " a big dog."),
        row("Tom had", " a red ball."),
    ]
    pairs = contrastive_pairs(rows, stock, window=32, similarity="tfidf")
    for index, given in enumerate(rows):
        length = int(pairs.positive.lengths[index])
        assert pairs.positive.ids[index, :length].tolist() == stock(given["text"] + given["label"]).input_ids
        start = int(pairs.positive.response_start[index])
        assert torch.equal(pairs.positive.ids[index, :start], pairs.negative.ids[index, :start])
    answer = pairs.negative.ids[1, pairs.negative.response_start[1] : pairs.negative.lengths[1]]
    assert stock.decode(answer).strip() == "there was a dog."
