"""What benchmarks/quality is asked for and measures with: method names with settings, catalogues, answers."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from restorelcc.evaluation import greedy_samples
from restorelcc.recipes import RECIPES
from restorelcc.training_loop import TrainingSettings

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_settings_belong_to_the_name_before_them(module: Any) -> None:
    parse = module("variants").parse_methods
    found = parse("best,compensate:probe=linear,heads=0.25,rank=none,lora:rank=16,dense")
    assert [variant.name for variant in found] == ["best", "compensate", "lora", "dense"]
    assert found[1].text == "compensate:probe=linear,heads=0.25,rank=none"
    assert found[1].settings == {"probe": "linear", "heads": 0.25, "rank": None}
    assert found[2].settings == {"rank": 16}
    for text, message in (
        ("lora,rank=8", "the setting rank=8 of --methods follows no name; write NAME:rank=8"),
        ("rank=8", "follows no name"),
        ("best:tokens", "'tokens' of best:tokens is no setting"),
        ("best,best", "best is asked for 2 times"),
        ("best,,lora", "'' names no method"),
        ("lora:rank=1,rank=2", "sets rank twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)


def test_recipes_take_settings_of_all_their_parts(module: Any) -> None:
    variants = module("variants")

    def recipe(text: str) -> Any:
        return variants.recipe_of(variants.parse_methods(text)[0], TrainingSettings())

    found, settings = recipe("compensate:probe=linear,heads=1,components=none,epochs=3,learning_rates=0.02")
    assert (found.probe, found.heads, found.components) == ("linear", 1.0, "none")
    assert (settings.epochs, settings.learning_rates) == (3.0, (0.02,))
    assert found.name == "compensate:probe=linear,heads=1,components=none,epochs=3,learning_rates=0.02"
    best, _ = recipe("best:distill=0,ridge=1,own_text=0")
    assert best.objective is not None
    assert best.refit is not None
    assert (best.objective.distill, best.refit.ridge, best.own_text) == (0.0, 1.0, 0.0)
    assert RECIPES["best"].objective is not None
    assert RECIPES["best"].objective.distill > 0  # ours alone changed
    assert recipe("best:refit=none")[0].refit is None
    assert [recipe(f"compensate{rest}")[0].sites for rest in ("", ":sites=ffn", ":sites=both,heads=0.25")] == [
        "attention", "ffn", "both",
    ]  # fmt: skip
    for text, message in (
        ("best:colour=1", "best:colour=1 has no setting colour; its settings are refit, .*ridge.*distill.*epochs"),
        ("compensate:ridge=1", "compensate:ridge=1 has no setting ridge"),
        ("best:heads=0.5", "best:heads=0.5 does not read heads; its settings are"),
        ("fast:epochs=1", "fast:epochs=1 does not read epochs; its settings are .*heldout_share$"),
        ("best:epochs=-1", "epochs=-1 of best:epochs=-1: epochs is -1.0; it must be more than 0"),
        ("best:epochs=1,tuning=none", "does not read epochs"),
        ("best:tuning=none,distill=0", "does not read distill|has no setting distill"),
        ("fast:biases=all", "fast:biases=all does not read biases"),
        ("best:objective=none", "best:objective=none has no setting objective"),
        ("best:refit=none,tuning=none", "leaves nothing to do: it has neither refit nor tuning; keep one of them"),
        ("best:steps=0", "steps=0 of best:steps=0: training of 0 steps learns nothing; make at least 1"),
        ("compensate:skip_first=-1", "skip_first is -1; it must be 0 or more"),
        ("compensate:probe_tokens=0", "probe_tokens is 0; it must be 1 or more"),
        ("best:distill=2", "distill=2 of best:distill=2: distill is 2.0; it must lie between 0 and 1"),
        ("compensate:heads=none,rank=half", "rank of .* is 'half'; it must be int | None"),
        ("best:refit=1", "refit of best:refit=1 is a whole step; leave it out with refit=none"),
        ("nothing", "unknown recipe nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(text)


def write_catalogue(path: Path, entries: dict[str, str], order: str) -> None:
    """A .mo file as msgfmt writes it: header, two tables of (length, offset), the strings, each ended by a zero."""
    pairs = sorted((message.encode(), translation.encode()) for message, translation in entries.items())
    begin, tables, blob = 28 + 16 * len(pairs), [b"", b""], b""
    for which in (0, 1):
        for pair in pairs:
            tables[which] += struct.pack(order + "2I", len(pair[which]), begin + len(blob))
            blob += pair[which] + b"\0"
    head = struct.pack(order + "7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, begin)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + tables[0] + tables[1] + blob)


@pytest.mark.parametrize("order", ["<", ">"])
def test_long_translations_are_text(module: Any, tmp_path: Path, order: str) -> None:
    languages = module("languages")
    long = "Ein langer Satz über das Wetter, den jemand übersetzt hat, weil er ihn\n  für wichtig genug hielt."
    path = tmp_path / "de" / "LC_MESSAGES" / "git.mo"
    write_catalogue(
        path,
        {"": "Content-Type: text/plain; charset=UTF-8\n" + 30 * "Kopfzeile ", "a": long, "again": long, "b": "kurz",
         "table": 30 * "-x %s ", "c" * 90: "c" * 90, "one\0many": long + "\0" + long},
        order,
    )  # fmt: skip
    assert languages.translated_text("de", [tmp_path]) == " ".join(long.split())
    assert dict(languages.messages(path))["b"] == "kurz"
    with pytest.raises(ValueError, match=r"no translations into fr in .*; give --text fr=FILE"):
        languages.translated_text("fr", [tmp_path])
    whole = path.read_bytes()
    for damaged, message in ((b"PK" + whole[2:], "is no message catalogue"), (whole[:60], "is damaged"),
                             (whole[:-200], "is damaged: message")):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            list(languages.messages(path))


def test_what_plots_sort_by(module: Any, tmp_path: Path) -> None:
    """A word stays a word: components=none is one kind of components, and no missing setting."""
    run, methods = module("run"), module("methods")
    options = run.parser().parse_args(
        ["--dense", "d", "--pruned", "p", "--data", "t", "--out", str(tmp_path / "x.jsonl"), "--tokens", "64"]
    )
    known = {"name": "compensate", "tokens": 32, "epochs": 2.0, "probe": "attribution", "heads": "all", "rank": None,
             "train": "lm", "positions": "all", "learning_rates": 0.03}  # fmt: skip
    for text, own in (
        ("components=none", {"components": "none"}), ("vectors=spanned", {"components": "svd", "vectors": "spanned"}),
    ):  # fmt: skip
        variants = module("variants").parse_methods(f"compensate:{text},tokens=32,learning_rates=0.03")
        assert methods.Methods(options).config(variants[0]) == {**known, **own}


def test_overlap_with_a_reference(module: Any) -> None:
    answers = module("answers")
    assert answers.rouge_l("The cat sat.", "the CAT sat") == 1.0
    assert answers.rouge_l("a b c d", "a x c") == pytest.approx(2 * 2 / 7)  # a c
    assert answers.rouge_l("c a", "a c") == pytest.approx(0.5)  # order counts
    assert answers.rouge_l("", "a") == 0.0
    assert answers.chrf("same words", "same words") == pytest.approx(1.0)
    assert answers.chrf("xyz", "abc") == 0.0
    # 1-grams 1/2 and 1/3, 2-grams 0/1 and 0/2: P 1/4, R 1/6
    assert answers.chrf("ax", "abc") == pytest.approx(5 * (1 / 4) * (1 / 6) / (4 / 4 + 1 / 6))
    assert answers.repetition("a b c d e f") == 0.0
    assert answers.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert answers.repetition("so so so so", 2) == pytest.approx(2 / 3)


def test_chrf_is_that_of_sacrebleu(module: Any) -> None:
    metric = pytest.importorskip("sacrebleu.metrics").CHRF()
    answers = module("answers")
    for ours, theirs in (("a b", "the quick brown fox"), ("The quick fox runs", "The quick brown fox"), ("a", "abc")):
        assert answers.chrf(ours, theirs) == pytest.approx(metric.sentence_score(ours, [theirs]).score / 100)


def test_answers_in_a_batch_are_those_alone(module: Any, stories: Any, tmp_path: Path) -> None:
    answers = module("answers")
    lines = [("Once upon a time", " there was a dog."), ("The", " big ball was new."), ("Tom and Lily", " went home.")]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in lines))
    prompts = answers.load_prompts(file, stories.tokenizer, count=5, window=64, seed=0)
    assert prompts.texts == [text for text, _ in lines]
    found = answers.measured_answers(stories.model, stories.model, stories.tokenizer, prompts, new_tokens=12)
    assert found["texts"] == greedy_samples(stories.model, stories.tokenizer, prompts.texts, max_new_tokens=12)
    assert found["judged_count"] == [12, 12, 12]
    mean = sum(found["judged_sum"]) / sum(found["judged_count"])
    assert mean < sum(found["reference_sum"]) / sum(found["reference_count"])  # greedy answers are likely ones
    assert len(answers.load_prompts(file, stories.tokenizer, count=2, window=64, seed=0).texts) == 2
    with pytest.raises(ValueError, match=r"none of the 3 prompts of .* is shorter than 2 tokens"):
        answers.load_prompts(file, stories.tokenizer, count=2, window=4, seed=0)
