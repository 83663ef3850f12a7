"""Choices that share a context score as choices in rows of their own, on every supported class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import SUPPORTED

from restorelcc import choice_rows
from restorelcc.choice_rows import ChoiceSet, choice_scores, shares_contexts
from restorelcc.text import ChoiceItem, TokenSet

Build = Callable[[str], Any]
# Ragged on purpose: contexts of 1 to 9 tokens, choices of 1 to 4, 2 to 4 of them, one with a gap, two choices alike.
ITEMS = [
    ChoiceItem("w5 w6 w7", ("w8", "w9 w10", "w11 w12 w13"), 0),
    ChoiceItem("w5", ("w8 w8 w8 w8", "w9"), 1),
    ChoiceItem("w5 _ w9 w4", ("w20", "w21"), 1),
    ChoiceItem("w30 w31 w32 w33 w34 w35 w36 w37 w38", ("w8 w9", "w8 w10", "w8 w9", "w4"), 3),
]


def by_rows(model: Any, tokenizer: Any, items: list[ChoiceItem]) -> torch.Tensor:
    """Σ log p of each choice, one stock forward for each."""
    scores = []
    for item in items:
        for context, choice in item.pairs:
            start, ids = len(tokenizer(context).input_ids), tokenizer(context + choice).input_ids
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
            picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            scores.append(picked[start - 1 :].sum())
    return torch.stack(scores)


@pytest.mark.parametrize("name", SUPPORTED)
@torch.no_grad()
def test_scores_are_those_of_separate_rows(name: str, random_model: Build, tokenizer: Any) -> None:
    model = random_model(name)
    batch = ChoiceSet.of(ITEMS, tokenizer).batch(model)
    found, _ = choice_scores(model, batch)
    torch.testing.assert_close(found.double(), by_rows(model, tokenizer, ITEMS), rtol=1e-4, atol=1e-4)
    assert batch.spans == ((0, 3), (3, 5), (5, 7), (7, 11))


@torch.no_grad()
def test_both_layouts_of_one_model_agree(random_model: Build, tokenizer: Any, monkeypatch: Any) -> None:
    model = random_model("llama")
    asked = ChoiceSet.of(ITEMS, tokenizer)
    assert shares_contexts(model)
    shared = asked.batch(model)
    monkeypatch.setattr(choice_rows, "shares_contexts", lambda _: False)
    own = asked.batch(model)
    assert len(shared.ids) == 4
    assert len(own.ids) == 11
    assert int(shared.once.sum()) == int(own.once.sum()) == asked.tokens
    torch.testing.assert_close(choice_scores(model, shared)[0], choice_scores(model, own)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_class_that_ignores_the_mask_gets_rows_of_its_own(random_model: Build, monkeypatch: Any) -> None:
    model = random_model("llama")
    stock = type(model).forward

    def deaf(self: Any, attention_mask: Any = None, **arguments: Any) -> Any:
        return stock(self, attention_mask=None if attention_mask.dim() == 4 else attention_mask, **arguments)

    monkeypatch.setattr(type(model), "forward", deaf)
    assert not shares_contexts(model)


def test_a_sliding_window_gets_rows_of_its_own(random_model: Build) -> None:
    model = random_model("llama")
    model.config.sliding_window = 4
    assert not shares_contexts(model)


def test_splits_are_disjoint_and_seeded(tokenizer: Any) -> None:
    asked = ChoiceSet.of(ITEMS, tokenizer)
    train, held = asked.split(0.25, seed=3)
    assert (len(train), len(held)) == (3, 1)
    assert not set(map(id, train.questions)) & set(map(id, held.questions))
    assert asked.split(0.25, seed=3) == (train, held)


def test_right_answers_are_the_rows_of_the_gold_choice(tokenizer: Any) -> None:
    text = ChoiceSet.of(ITEMS[:2], tokenizer).right_answers(pad=0, name="x")
    expected = [tokenizer("w5 w6 w7 w8").input_ids, tokenizer("w5 w9").input_ids]
    wanted = TokenSet.from_rows(expected, pad=0, name="x")
    assert torch.equal(text.ids, wanted.ids)
    assert text.labels[0].tolist().count(-100) == len(expected[0]) - 1
