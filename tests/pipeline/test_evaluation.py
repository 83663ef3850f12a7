"""Perplexity against the stock loss, multiple choice against a plain restatement, the bootstrap against its limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import SUPPORTED
from torch.nn import functional

from restorelcc.evaluation import (
    NllResult,
    gap_closed,
    greedy_samples,
    multiple_choice,
    predicted_bytes,
    token_nll,
)
from restorelcc.text import ChoiceItem, TokenSet

Build = Callable[[str], Any]


def plain_nll(model: Any, tokens: TokenSet) -> torch.Tensor:
    """Σ nll [n] in float64, from all logits at once."""
    with torch.no_grad():
        logits = model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False).logits.double()
    labels = tokens.labels[:, 1:]
    loss = functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return loss.sum(1)


@pytest.mark.parametrize("name", SUPPORTED)
def test_nll_is_that_of_the_stock_model(
    name: str, random_model: Build, token_set: Callable[..., TokenSet]
) -> None:
    """gemma2 caps its logits after the LM head: that the stock class does, not we."""
    model, tokens = random_model(name), token_set(5, 14, ragged=True)
    tokens = TokenSet(tokens.ids, tokens.lengths, torch.tensor([1, 3, 1, 8, 5]), "random")
    found = token_nll(model, tokens, batch=2)
    torch.testing.assert_close(found.nll_sum, plain_nll(model, tokens), rtol=1e-5, atol=1e-5)
    assert found.count.tolist() == [13, 9, 9, 0, 1]
    assert found.mean == pytest.approx(float(found.nll_sum.sum()) / 32)
    assert found.perplexity == pytest.approx(math.exp(found.mean))


def test_nll_matches_the_stock_loss(stories: Any) -> None:
    text = TokenSet.from_rows([stories.tokenizer("Once upon a time there was a dog.").input_ids], pad=0, name="x")
    stock = stories.model(text.ids, labels=text.labels).loss
    assert token_nll(stories.model, text).mean == pytest.approx(float(stock), rel=1e-5)


def test_bits_per_byte_count_the_text_of_predicted_tokens(stories: Any) -> None:
    prompt, answer = "Once upon a time", " there was a dögg."
    ids = stories.tokenizer(prompt + answer).input_ids
    start = len(stories.tokenizer(prompt).input_ids)
    whole = TokenSet.from_rows([ids], pad=0, name="x")
    part = TokenSet.from_rows([ids], pad=0, name="x", starts=[start])
    size = predicted_bytes(part, stories.tokenizer)
    before = stories.tokenizer.decode(ids[:start], skip_special_tokens=True)
    assert size == len((prompt + answer).encode()) - len(before.encode())
    assert size >= len(answer.encode()) - 1
    assert predicted_bytes(whole, stories.tokenizer) == len((prompt + answer).encode())
    nll = NllResult(torch.tensor([math.log(2) * 10]), torch.tensor([4]))
    assert nll.bits_per_byte(5) == pytest.approx(2.0)


def test_extreme_logits_stay_finite(random_model: Build, token_set: Callable[..., TokenSet]) -> None:
    model = random_model("llama")
    model.lm_head.weight.mul_(1e5)
    found = token_nll(model, token_set())
    assert torch.isfinite(found.nll_sum).all()
    assert found.perplexity == math.inf


def test_impossible_measurements_are_refused(random_model: Build, token_set: Callable[..., TokenSet]) -> None:
    with pytest.raises(ValueError, match="rows of 80 tokens, but the model's context is 64"):
        token_nll(random_model("llama"), token_set(1, 80))
    with pytest.raises(ValueError, match="no token of random"):
        token_nll(random_model("llama"), token_set(2, 1))


def test_choices_are_scored_by_their_own_tokens(random_model: Build, tokenizer: Any) -> None:
    model = random_model("llama")
    items = [ChoiceItem("w5 w6 w7", ("w8", "w9 w10", "w11 w12 w13"), gold) for gold in range(3)]
    items += [ChoiceItem("w5 _ w9", ("w20", "w21"), 1)]
    found = multiple_choice(model, tokenizer, items, batch=3)
    scores, normalised = [], []
    for choice in items[0].choices:
        prompt, answer = tokenizer("w5 w6 w7").input_ids, tokenizer(choice).input_ids
        tokens = TokenSet.from_rows([prompt + answer], pad=0, name="x", starts=[len(prompt)])
        scores.append(-float(plain_nll(model, tokens)))
        normalised.append(scores[-1] / len(choice))
    best = max(range(3), key=scores.__getitem__)
    assert found.correct.tolist()[:3] == [gold == best for gold in range(3)]
    assert found.accuracy == pytest.approx(float(found.correct.double().mean()))
    gap = [TokenSet.from_rows([[5, choice, 9]], pad=0, name="x", starts=[2]) for choice in (20, 21)]
    assert bool(found.correct[3]) == bool(plain_nll(model, gap[1]) < plain_nll(model, gap[0]))
    only = multiple_choice(model, tokenizer, items[:3])
    assert only.accuracy_normalised == pytest.approx(1 / 3)
    assert only.stderr == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))
    with pytest.raises(ValueError, match="no multiple-choice items"):
        multiple_choice(model, tokenizer, [])


def test_items_of_all_lengths_score_as_they_do_alone(random_model: Build, tokenizer: Any) -> None:
    """Rows are scored in order of their length; the answers come back in the order of the items."""
    model, draw = random_model("llama"), torch.Generator().manual_seed(5)

    def words(count: int) -> str:
        return " ".join(f"w{3 + int(torch.randint(50, (1,), generator=draw))}" for _ in range(count))

    items = [
        ChoiceItem(words(1 + 7 * i % 23), tuple(words(1 + (i + 3 * choice) % 5) for choice in range(3)), i % 3)
        for i in range(12)
    ]
    together = multiple_choice(model, tokenizer, items, batch=5)
    alone = [multiple_choice(model, tokenizer, [item], batch=1) for item in items]
    assert together.correct.tolist() == [bool(one.correct) for one in alone]
    assert together.correct_normalised.tolist() == [bool(one.correct_normalised) for one in alone]
    assert together.accuracy_normalised == pytest.approx(float(together.correct_normalised.double().mean()))
    assert 0 < int(together.correct.sum()) < 12
    assert together.correct.tolist() != together.correct_normalised.tolist()


def results(*means: float, rows: int = 40, noise: float = 0.0) -> list[NllResult]:
    """One result per mean, on the same rows; the rows' difficulty is shared, so that pairing matters."""
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(5, 50, (rows,), generator=generator)
    shared = torch.randn(rows, generator=generator, dtype=torch.float64)
    found = []
    for mean in means:
        own = noise * torch.randn(rows, generator=generator, dtype=torch.float64)
        found.append(NllResult((mean + shared + own) * count, count))
    return found


def test_gap_closed_is_paired() -> None:
    exact = gap_closed(*results(3.0, 5.0, 4.0))
    assert (exact.value, exact.improvement) == (pytest.approx(0.5), pytest.approx(1.0))
    assert (exact.low, exact.high, exact.improvement_low) == (
        pytest.approx(0.5),
        pytest.approx(0.5),
        pytest.approx(1.0),
    )
    noisy = gap_closed(*results(3.0, 5.0, 4.0, noise=0.5))
    assert 0.3 < noisy.low < noisy.value < noisy.high < 0.7
    assert noisy.improvement_low < noisy.improvement < noisy.improvement_high
    assert noisy == gap_closed(*results(3.0, 5.0, 4.0, noise=0.5))
    assert noisy != gap_closed(*results(3.0, 5.0, 4.0, noise=0.5), seed=1)


def test_a_gap_that_does_not_exist_is_not_a_number() -> None:
    found = gap_closed(*results(5.0, 4.0, 3.0))
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert found.improvement == pytest.approx(1.0)
    dense, pruned, _ = results(3.0, 5.0, 4.0)
    with pytest.raises(ValueError, match="measure all three on the same text"):
        gap_closed(dense, pruned, results(4.0, rows=39)[0])


def test_greedy_samples_continue(stories: Any) -> None:
    prompts = ["Once upon a time", "Lily and Ben went"]
    both = greedy_samples(stories.model, stories.tokenizer, prompts, 12)
    assert both == [greedy_samples(stories.model, stories.tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert all(text and prompt not in text for prompt, text in zip(prompts, both, strict=True))
