"""The task recipe: its loss, what it may change, resuming, and several compensations in one packed model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import restorelcc
from restorelcc.adapter import adapter_compensation
from restorelcc.choice_rows import ChoiceSet, choice_scores
from restorelcc.compare import compare
from restorelcc.components import lost_components
from restorelcc.evaluation import multiple_choice
from restorelcc.models import load_model
from restorelcc.moments import collect_moments
from restorelcc.pack_checkpoint import pack_checkpoint
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.task_training import TaskObjective, choice_loss, draw_examples, read_examples, train_for_task
from restorelcc.text import ChoiceItem, load_choices
from restorelcc.training import TrainingSettings

QUICK = TrainingSettings(learning_rates=(0.05,), epochs=4.0, batch_tokens=64, heldout_share=0.25, evaluations=4)
NAMES = ("Lily", "Tom", "Anna", "Max", "Sue", "Ben", "Mia", "Sam")
PLACES = ("the park", "a big house", "the red car", "the old tree", "the sea", "school")


def write_task(path: Path, right: str, wrong: str) -> Path:
    """Questions whose right answer is always the same: what any compensation should be able to learn."""
    lines = [
        {"query": f"{name} went to {place}. Then {name} was", "choices": [right, wrong][:: 1 if turn % 2 else -1],
         "gold": 0 if turn % 2 else 1}
        for turn, (name, place) in enumerate((name, place) for name in NAMES for place in PLACES)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return {
        "sad": write_task(folder / "sad.jsonl", "very sad and cold", "happy"),
        "happy": write_task(folder / "happy.jsonl", "happy", "very sad and cold"),
    }


@pytest.fixture(scope="module")
def learnt(
    tasks: dict[str, Path], stories_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """name -> adapter directory, 24 examples each."""
    folder = tmp_path_factory.mktemp("learnt")
    for name, path in tasks.items():
        report = restore(*stories_pair, folder / name, recipe="task", data=path, examples=24, training=QUICK)
        assert report.heldout["restored"] < report.heldout["pruned"]
        assert report.heldout_unit == "choice loss and distillation, nats"
        assert len(report.text["examples"]) == report.text["rows"] == 24
        assert report.fold["kind"] == "adapter"
    return {name: folder / name for name in tasks}


def test_the_choice_loss_is_its_formula(stories_pair: tuple[Path, Path]) -> None:
    loaded = load_model(stories_pair[1])
    items = [
        ChoiceItem("Lily saw", ("a dog", "the big red car", "it"), 1), ChoiceItem("Tom was", ("sad", "so happy"), 0),
    ]  # fmt: skip
    batch = ChoiceSet.of(items, loaded.tokenizer).batch(loaded.model)
    with torch.no_grad():
        scores, _ = choice_scores(loaded.model, batch)
    expected = 0.0
    for (begin, end), item in zip(batch.spans, items, strict=True):
        powers = [
            math.exp(3.0 * float(score) / len(choice))
            for score, choice in zip(scores[begin:end], item.choices, strict=True)
        ]
        expected -= math.log(powers[item.gold] / sum(powers))
    assert float(choice_loss(batch, scores, 3.0)) == pytest.approx(expected, rel=1e-4)


def test_examples_are_drawn_by_the_seed() -> None:
    items = [ChoiceItem("a", ("b", "c"), 0)] * 30
    first = draw_examples(items, 10, 0)
    assert first == sorted(set(first)) == draw_examples(items, 10, 0)
    assert first != draw_examples(items, 10, 1)
    assert draw_examples(items, 100, 0) == list(range(30))


def test_labels_are_compared_by_their_sums(tmp_path: Path, stories_pair: tuple[Path, Path]) -> None:
    """True and False in every item: the longer is not helped. Other choices keep their bytes."""
    tokenizer = load_model(stories_pair[1]).tokenizer
    path = tmp_path / "labels.jsonl"
    lines = [{"query": f"Is {name} sad?", "choices": ["yes", "never"], "gold": 0} for name in NAMES]
    path.write_text("\n".join(map(json.dumps, lines)))
    examples, drawn = read_examples(path, tokenizer, 5, 0)
    assert len(drawn) == 5
    assert {question.sizes for question in examples.questions} == {(4, 4)}
    path.write_text("\n".join(map(json.dumps, [*lines, {**lines[0], "choices": ["no", "never"]}])))
    assert {q.sizes for q in read_examples(path, tokenizer, 9, 0)[0].questions} == {(3, 5), (2, 5)}
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(ValueError, match="has 1 item; give 2 or more"):
        read_examples(path, tokenizer, 9, 0)


def test_a_compensation_learns_its_task(
    learnt: dict[str, Path], tasks: dict[str, Path], stories_pair: tuple[Path, Path]
) -> None:
    """Each does its own task better than the pruned model, and the other's worse than its own compensation does."""
    tokenizer = load_model(stories_pair[1]).tokenizer
    for name, other in (("sad", "happy"), ("happy", "sad")):
        items = load_choices(tasks[name])
        own = multiple_choice(restorelcc.load(learnt[name]), tokenizer, items).accuracy_normalised
        strange = multiple_choice(restorelcc.load(learnt[other]), tokenizer, items).accuracy_normalised
        assert own > 0.9
        assert strange < 0.5


def test_one_packed_model_serves_both_in_one_batch(
    learnt: dict[str, Path], tasks: dict[str, Path], stories_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Logits of a mixed batch, and choices, are those of the adapters alone; the sparse weights are there once."""
    pack_checkpoint(str(stories_pair[1]), tmp_path / "packed", values="fp32", compensations=learnt)
    packed, loaded = restorelcc.load(tmp_path / "packed"), load_model(stories_pair[1])
    assert restorelcc.compensation_names(packed) == ["sad", "happy"]
    ids = loaded.tokenizer("Lily went to the park. Then Lily was", return_tensors="pt").input_ids
    with torch.no_grad(), restorelcc.compensations(packed, ["sad", None, "happy"]):
        mixed = packed(input_ids=ids.expand(3, -1)).logits
        alone = [
            restorelcc.load(learnt["sad"])(input_ids=ids).logits[0], loaded.model(input_ids=ids).logits[0],
            restorelcc.load(learnt["happy"])(input_ids=ids).logits[0],
        ]  # fmt: skip
    for row, expected in zip(mixed, alone, strict=True):
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert float((mixed[0] - mixed[2]).abs().max()) > 0.1
    for name, path in tasks.items():
        found = compare(
            [str(tmp_path / "packed"), str(learnt[name]), str(stories_pair[1])], choices=path, text=text_of(tmp_path),
            window=32, tokens=128, compensation=name,
        )  # fmt: skip
        ours, adapter, pruned = (model["choices"]["accuracy_normalised"] for model in found["models"])
        assert ours == adapter
        assert found["differences"][0]["choices"]["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        gain = found["differences"][1]["choices"]["accuracy_normalised"]
        assert gain["value"] == pytest.approx(ours - pruned)
        assert gain["low"] <= gain["value"] <= gain["high"]
        assert name != "sad" or gain["low"] > 0  # what the pruned model gets wrong


def text_of(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("Once upon a time there was a little girl who loved to play in the park. " * 20)
    return path


def test_an_adapter_leaves_the_sparse_weights_alone(learnt: dict[str, Path], stories_pair: tuple[Path, Path]) -> None:
    for path in learnt.values():
        assert sorted(file.name for file in path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        vectors = adapter_compensation(path).vectors
        assert torch.isfinite(vectors).all()
        assert float(vectors.abs().max()) > 0


def test_a_finished_compensation_is_not_learnt_again(
    tasks: dict[str, Path], stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    common: dict[str, Any] = {"recipe": "task", "examples": 8, "training": QUICK, "work": tmp_path / "work"}
    first = restore(*stories_pair, tmp_path / "a", data=tasks["sad"], **common)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("learnt again")

    monkeypatch.setattr("restorelcc.restore_compensation.train_for_task", never)
    again = restore(*stories_pair, tmp_path / "b", data=tasks["sad"], **common)
    assert again.heldout == first.heldout
    assert torch.equal(*(adapter_compensation(tmp_path / name).vectors for name in "ab"))
    with pytest.raises(AssertionError, match="learnt again"):
        restore(*stories_pair, tmp_path / "c", data=tasks["happy"], **common)


def test_what_cannot_be_learnt_from_is_refused(
    tasks: dict[str, Path], stories_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="recipe task learns from the items of one task: give --data"):
        restore(*stories_pair, tmp_path / "out", recipe="task")
    with pytest.raises(ValueError, match="recipe compensate learns from text"):
        restore(*stories_pair, tmp_path / "out", recipe="compensate", data=tasks["sad"], examples=10)
    with pytest.raises(ValueError, match="recipe compensate learns from text"):
        restore(*stories_pair, tmp_path / "out", recipe="compensate", data=tasks["sad"], train="choices")
    with pytest.raises(ValueError, match=r"recipe fast makes no compensation, so it reads no examples; .* recipe task"):
        restore(*stories_pair, tmp_path / "out", recipe="fast", data=tasks["sad"], examples=10)
    with pytest.raises(ValueError, match="1 examples leave nothing to hold out"):
        restore(*stories_pair, tmp_path / "out", recipe="task", data=tasks["sad"], examples=1)
    with pytest.raises(ValueError, match="distil"):
        TaskObjective(distill=-1.0)
    with pytest.raises(ValueError, match="0 bytes"):
        TaskObjective(bytes=0)
    assert not (tmp_path / "out").exists()


def test_without_the_dense_model_distillation_is_refused(
    tasks: dict[str, Path], stories_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    loaded = load_model(stories_pair[1])
    examples = ChoiceSet.of(load_choices(tasks["sad"])[:8], loaded.tokenizer)
    text = examples.right_answers(pad=0, name="x")
    lost = lost_components(collect_moments(*stories_pair, text, out=tmp_path / "m.safetensors"))
    heads = torch.ones(lost.unit.shape, dtype=torch.bool)
    with pytest.raises(ValueError, match="distillation needs the dense model"):
        train_for_task(loaded.model, examples, lost, heads, QUICK)
    alone = train_for_task(loaded.model, examples, lost, heads, QUICK, objective=TaskObjective(distill=0.0))
    assert alone.heldout_after <= alone.heldout_before


def test_the_recipe_changes_no_weight() -> None:
    assert not RECIPES["task"].changes_weights
    assert RECIPES["task"].examples == 100
