"""What the probes make of the contrasts: signs, units, edits; and where every loss of the product is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contrast_models import contrast_model, contrast_text, naive_contrasts, naive_nll
from test_contrast_engine import some_vectors
from torch import Tensor

from restorelcc import lm_head, ops
from restorelcc.components import Components
from restorelcc.evaluation import token_nll
from restorelcc.lm_head import language_head, token_losses
from restorelcc.pairs import PairSet
from restorelcc.probe_input import ProbeInput
from restorelcc.probes import PROBES, head_scores
from restorelcc.restore import restore
from restorelcc.text import TokenSet
from restorelcc.training import TrainingSettings, closed_form, train_compensation


def lost(vectors: Tensor) -> Components:
    """Components whose vectors are these."""
    length = vectors.norm(dim=-1, keepdim=True)
    return Components("mean", (vectors / length)[..., None, :], length, length, torch.ones(vectors.shape[:2]).double())


def answers() -> PairSet:
    """Six prompts with right and wrong answers of other lengths, the wrong side in a narrower tensor."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 61, (size,), generator=generator).tolist() for size in (2, 4, 3, 6, 5, 2)]
    sides = []
    for sizes in ((1, 5, 2, 3, 6, 4), (3, 2, 1, 4, 2, 5)):
        more = [torch.randint(3, 61, (size,), generator=generator).tolist() for size in sizes]
        rows = [prompt + answer for prompt, answer in zip(prompts, more, strict=True)]
        sides.append(TokenSet.from_rows(rows, pad=0, name="answers", starts=[len(p) for p in prompts]))
    return PairSet(*sides)


def margin(model: Any, pairs: PairSet, comp: Tensor) -> float:
    """M = mean over pairs of [mean NLL of the wrong answer − mean NLL of the right one]."""
    means = []
    for side in (pairs.negative, pairs.positive):
        counted = side.labels != -100
        means.append(((naive_nll(model, side, comp) * counted).sum(1) / counted.sum(1)).mean())
    return float(means[0] - means[1])


def test_text_scores_are_the_fall_of_the_nll() -> None:
    model, tokens = contrast_model("gqa"), contrast_text()
    vectors = some_vectors(model)
    scores = head_scores("perplexity", model, tokens, lost(vectors))
    wanted, _ = naive_contrasts(model, tokens, vectors)
    torch.testing.assert_close(scores.scores, -wanted.squeeze(-1), rtol=0, atol=2e-6)
    assert scores.unit == "change of the contrast, nats per token"


@pytest.mark.parametrize("edit", ["inject", "ablate"])
def test_margin_scores_are_the_rise_of_the_margin(edit: str) -> None:
    """inject: what a head adds to the margin; ablate: what the margin loses with it."""
    model, pairs = contrast_model("gqa"), answers()
    vectors = some_vectors(model)
    base = some_vectors(model, seed=8).float() if edit == "ablate" else None
    found = head_scores("perplexity", model, contrast_text(), lost(vectors), pairs=pairs, contrast="margin", edit=edit,
                        compensation=base).scores  # fmt: skip
    start = torch.zeros(4, 4, 8) if base is None else base
    before = margin(model, pairs, start.flatten(1))
    for layer, head in ((0, 0), (1, 3), (3, 2)):
        comp = start.clone()
        comp[layer, head] = 0.0 if edit == "ablate" else vectors[layer, head].float()
        change = margin(model, pairs, comp.flatten(1)) - before
        assert float(found[layer, head]) == pytest.approx(change if edit == "inject" else -change, abs=5e-6)
    assert float(found.std()) > 1e-3


@pytest.mark.parametrize("contrast", ["text", "margin"])
@pytest.mark.parametrize("edit", ["inject", "ablate"])
def test_attribution_is_the_limit_of_small_edits(edit: str, contrast: str) -> None:
    """First-order scores of small vectors are the exact ones, but for terms of second order."""
    model = contrast_model("gqa")
    vectors, errors = some_vectors(model), []
    for size in (0.02, 0.01):
        small = size * vectors
        given: dict[str, Any] = {"pairs": answers(), "contrast": contrast, "edit": edit}
        if edit == "ablate":
            given["compensation"] = small.float()
        pair = [
            head_scores(kind, model, contrast_text(), lost(small), **given).scores
            for kind in ("attribution", "perplexity")
        ]
        errors.append(float((pair[0] - pair[1]).norm() / pair[1].norm()))
    assert errors[0] < 0.2
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"contrast": "best"}, "unknown contrast 'best'; choose one of text, margin"),
    ({"edit": "swap"}, "unknown edit 'swap'; choose one of inject, ablate"),
    ({"contrast": "margin"}, "the margin contrast needs pairs of right and wrong answers; give --pairs"),
    ({"edit": "ablate"}, "edit=ablate takes heads out of a restored model; give its compensation"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["attribution", "perplexity"])
def test_contrasts_without_what_they_take(kind: str, wrong: dict[str, Any], message: str) -> None:
    model = contrast_model("gqa")
    with pytest.raises(ValueError, match=message):
        head_scores(kind, model, contrast_text(), lost(some_vectors(model)), **wrong)


def test_an_empty_answer_is_refused() -> None:
    model, whole = contrast_model("gqa"), answers()
    positive = TokenSet(whole.positive.ids, whole.positive.lengths, whole.positive.lengths, "answers")
    with pytest.raises(ValueError, match="6 of 12 answers have no token to predict"):
        head_scores("perplexity", model, contrast_text(), lost(some_vectors(model)), contrast="margin",
                    pairs=PairSet(positive, whole.negative))  # fmt: skip


def test_restore_scores_heads_where_it_chooses_or_was_asked(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    settings = TrainingSettings(learning_rates=(0.02,), batch_tokens=256, evaluations=1)
    common: dict[str, Any] = {
        "recipe": "compensate", "tokens": 512, "window": 64, "training": settings, "heads": 0.25,
        "work": tmp_path / "w",
    }  # fmt: skip
    report = restore(*stories_pair, tmp_path / "a", **common)
    assert set(report.head_scores) == {"attribution"}
    exact = restore(*stories_pair, tmp_path / "b", **common, probe="perplexity")
    assert set(exact.head_scores) == {"perplexity"}
    scores = torch.tensor(exact.head_scores["perplexity"])
    assert torch.equal(torch.tensor(exact.selected), scores >= scores.flatten().sort().values[-10])


class Counter:
    """Counts calls, and how many tokens they were for."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real, self.calls, self.tokens = real, 0, 0

    def __call__(self, h: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self.tokens += h.shape[0]
        return self.real(h, *args, **kwargs)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Every loss goes through ops.linear_cross_entropy: torch's own is not there, nor is a head's output."""
    counter = Counter(ops.linear_cross_entropy)
    monkeypatch.setattr(ops, "linear_cross_entropy", counter)

    def refused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a loss was computed beside lm_head")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", refused)
    monkeypatch.setattr(lm_head, "logit_losses", refused)
    return counter


def test_every_loss_is_counted(losses: Counter) -> None:
    model, tokens = contrast_model("gqa"), contrast_text()
    vectors, heads = some_vectors(model), torch.ones(4, 4, dtype=torch.bool)
    token_nll(model, tokens, batch=2)
    assert (losses.calls, losses.tokens) == (3, tokens.tokens)  # the last of four batches has no counted token
    head_scores("attribution", model, tokens, lost(vectors), batch=2)
    assert (losses.calls, losses.tokens) == (7, 2 * tokens.tokens)
    settings = TrainingSettings(learning_rates=(0.01,), batch_tokens=8, heldout_share=0.3, evaluations=2, epochs=1.0)
    result = train_compensation(model, tokens, lost(vectors), heads, settings)
    assert result.tokens == losses.tokens - 2 * tokens.tokens - heldout(tokens, settings) * len(result.history)
    before = losses.calls
    closed_form(model, tokens, lost(vectors), heads, scales=(0.0, 0.5))
    assert losses.calls == before + 2
    head_scores("perplexity", model, tokens, lost(vectors))
    assert losses.calls >= before + 3


def heldout(tokens: TokenSet, settings: TrainingSettings) -> int:
    return tokens.split(settings.heldout_share, seed=settings.seed)[1].tokens


@pytest.mark.parametrize("kind", ["mha", "gqa", "opt", "gpt_neox", "phi", "falcon", "bloom", "qwen3"])
def test_a_head_that_is_all_there_is(kind: str) -> None:
    model = contrast_model(kind)
    head = language_head(model)
    assert head.plain
    assert head.module.weight is model.get_output_embeddings().weight
    assert (head.module.bias is None) == (kind != "phi")


@pytest.mark.parametrize("kind", ["gemma2", "cohere"])
def test_logits_that_are_more_than_their_head(kind: str) -> None:
    head = language_head(contrast_model(kind))
    assert not head.last
    assert not head.plain


def test_a_soft_cap_is_seen_through_small_logits() -> None:
    """Logits of 0.01 under a cap of 30 are bent by one part in 10^8."""
    model = contrast_model("gemma2")
    model.config.final_logit_softcapping = 30.0
    model.lm_head.weight.mul_(1e-4)
    assert not language_head(model).last
    model = contrast_model("gemma2")
    model.config.final_logit_softcapping = None
    assert language_head(model).plain


def test_the_verdict_is_kept_until_the_head_changes() -> None:
    model = contrast_model("mha")
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(3):
        assert language_head(model).plain
    assert len(calls) == 1
    model.set_output_embeddings(torch.nn.Linear(32, 61, bias=False))
    assert language_head(model).module is model.lm_head
    assert len(calls) == 2
    model.double()  # float64 has no kernel
    assert token_losses(model, contrast_text()).dtype == torch.float32


@pytest.mark.parametrize("kind", ["gqa", "gemma2", "cohere", "falcon", "phi"])
def test_gradients_of_losses_are_those_of_the_stock_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "_CHUNK_ELEMENTS", 61 * 5)
    model, tokens = contrast_model(kind), contrast_text()
    embedding = model.get_input_embeddings().weight.requires_grad_(True)
    stock = model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False).logits
    labels = tokens.labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(stock[:, :-1].transpose(1, 2), labels, reduction="none")
    wanted = torch.autograd.grad(loss.square().sum(), embedding)[0]
    nll = token_losses(model, tokens)
    torch.testing.assert_close(nll, loss[labels != -100], rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(nll.square().sum(), embedding)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_every_probe_has_a_unit() -> None:
    assert set(PROBES) >= {"attribution", "perplexity", "random"}
    assert all(unit for _, unit in PROBES.values())
    assert ProbeInput.__dataclass_fields__["contrast"].default == "text"
