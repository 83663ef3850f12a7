"""Noise on prompts: seeded, of the asked rate, and never on answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from restorelcc.noisy_text import NOISES, Noise
from restorelcc.text import load_choices, load_text

TEXT = "\n".join(f"The quick brown fox number {i} jumps over the lazy dog, again and again." for i in range(60))


@pytest.mark.parametrize("kind", NOISES)
def test_the_rate_is_that_of_the_words(kind: str) -> None:
    noisy = Noise(kind, 0.2).apply(TEXT)
    assert noisy == Noise(kind, 0.2).apply(TEXT)
    assert noisy != Noise(kind, 0.2, seed=1).apply(TEXT)
    assert Noise(kind, 0.0).apply(TEXT) == TEXT
    before, after = TEXT.split(" "), noisy.split(" ")
    assert len(before) == len(after)
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    assert 0.12 * len(before) < changed < 0.25 * len(before)  # digits are left alone


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("word", ["a", "I", "é", "don't", "(x)", "Q"])
def test_every_word_takes_it(kind: str, word: str) -> None:
    for seed in range(30):
        noisy = Noise(kind, 1.0, seed).apply(word)
        if kind == "drop":
            assert noisy == ""
        elif kind == "case":
            assert noisy.lower() == word.lower()
            assert noisy != word
        else:
            assert abs(len(noisy) - len(word)) <= 1


def test_refused() -> None:
    with pytest.raises(ValueError, match="unknown noise 'rain'; choose one of typos, case, drop"):
        Noise("rain")
    with pytest.raises(ValueError, match=r"the noise rate is 2; it is a share"):
        Noise("typos", 2)


def test_answers_stay_and_prompts_change(stories: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "Once upon a time there was a little dog who", "label": " ran away."}))
    clean = load_text(path, stories.tokenizer)
    noisy = load_text(path, stories.tokenizer, noise=Noise("drop", 1.0))
    assert noisy.tokens == clean.tokens
    assert int(noisy.lengths[0]) < int(clean.lengths[0])
    tail = clean.ids[0, int(clean.response_start[0]) : int(clean.lengths[0])]
    assert noisy.ids[0, int(noisy.response_start[0]) : int(noisy.lengths[0])].tolist() == tail.tolist()
    plain = tmp_path / "plain.txt"
    plain.write_text(TEXT)
    with pytest.raises(ValueError, match="noise is for prompts"):
        load_text(plain, stories.tokenizer, noise=Noise("drop"))
    choices = tmp_path / "choices.jsonl"
    choices.write_text(json.dumps({"query": "What do dogs like?", "choices": ["to run", "to fly"], "gold": 0}))
    (item,) = load_choices(choices, noise=Noise("case", 1.0))
    assert item.query != "What do dogs like?"
    assert item.query.lower() == "what do dogs like?"
    assert item.choices == ("to run", "to fly")
