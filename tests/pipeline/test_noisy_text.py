"""Noise on prompts: seeded, of the asked rate, and never on answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import invoke, refuse, succeed

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
    sentence = "Ann called Bea because of _'s dog."
    choices.write_text(json.dumps({"query": sentence, "choices": ["Ann", "Bea"], "gold": 0}))
    for kind in NOISES:
        (item,) = load_choices(choices, noise=Noise(kind, 1.0))
        assert "_'s" in item.query.split()  # or it would be an item of another kind
        assert item.query != sentence
    choices.write_text(json.dumps({"query": "Dogs", "choices": ["run", "fly"], "gold": 0}))
    (item,) = load_choices(choices, noise=Noise("drop", 1.0))
    assert item.query == "Dogs"


def test_eval_with_noise(stories_path: Path, tmp_path: Path) -> None:
    """Other numbers than without it, the same ones twice, others again by another seed; and the answer says so."""
    things = ("little cat", "happy dog", "big red ball", "brown bear")
    rows, items = tmp_path / "rows.jsonl", tmp_path / "items.jsonl"
    told = [{"text": f"Once upon a time there was a {thing} who liked to", "label": " play."} for thing in things]
    asked = [{"query": f"Lily saw a {thing}. She", "choices": [" was", " zq"], "gold": 0} for thing in things]
    rows.write_text("".join(json.dumps(row) + "\n" for row in told))
    items.write_text("".join(json.dumps(item) + "\n" for item in asked))
    call = ("eval", stories_path, "--text", rows, "--choices", items, "--window", "64", "--quiet")
    noisy = (*call, "--noise", "typos", "--noise-rate", "0.5")
    clean, first, again = (succeed(*each) for each in (call, noisy, noisy))
    for each in (first, again):
        assert each.pop("peak_rss_bytes") > 0  # of the whole process, so it may rise from one call to the next
    assert clean["noise"] is None
    assert first["noise"] == {"kind": "typos", "rate": 0.5, "seed": 0, "on": ["prompts", "questions"]}
    assert first == again
    other = succeed(*noisy, "--seed", "1")
    assert other["noise"]["seed"] == 1
    assert len({each["models"][0]["nll"] for each in (clean, first, other)}) == 3
    assert first["models"][0]["nll"] > clean["models"][0]["nll"]  # of the same answers, behind prompts that are worse
    assert first["text"]["tokens"] == clean["text"]["tokens"]
    line = "noise: typos, 50 % of the words of prompts and questions, seed 0"
    assert line in invoke(*noisy).stdout.splitlines()
    assert "noise" not in invoke(*call).stdout
    questions = ("eval", stories_path, *noisy[4:], "--tokens", "128")  # of the text without --text nothing is changed
    assert succeed(*questions)["noise"]["on"] == ["questions"]
    refuse("eval", stories_path, "--noise", "typos", words="noise is for prompts and questions; give --text")
    refuse(*noisy[:-1], "1.5", words="the noise rate is 1.5; it is a share of the words, 0 to 1")
    refuse(*call, "--noise-rate", "0.5", words="--noise-rate belongs to --noise")
