"""The linear probe: planted heads, the split, ties, what it hooks, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from development_data import shared
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, OPTConfig

from restorelcc.compensation import sparse_output_projections
from restorelcc.components import Components
from restorelcc.head_outputs import head_outputs
from restorelcc.models import attention_sites, get_module, load_model
from restorelcc.pairs import PairSet, contrastive_pairs
from restorelcc.probe_input import ProbeInput
from restorelcc.probe_linear import VALIDATION_SHARE, linear_probe, score_heads
from restorelcc.probes import PROBES, head_scores
from restorelcc.token_set import TokenSet

LAYERS, HEADS, SIZE, PAIRS = 3, 4, 6, 60
PLANTED = ((0, 2), (2, 1))

CONFIGS = {
    "gqa": LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    ),
    "head size of its own": LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=12, max_position_embeddings=64, pad_token_id=0,
    ),
    "opt": OPTConfig(
        vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0,
    ),
}  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.2)
    return model


def components_of(model: nn.Module) -> Components:
    sites = attention_sites(model)
    shape = (len(sites), sites[0].heads, 1)
    basis = torch.randn(*shape, sites[0].head_dim, dtype=torch.float64)
    one = torch.ones(shape, dtype=torch.float64)
    return Components("mean", basis / basis.norm(dim=-1, keepdim=True), one, 3 * one, one[..., 0])


def token_set(rows: int, *, first: int = 3, seed: int = 0, width: int = 12) -> TokenSet:
    """Rows of 5 to `width` tokens; answers begin at token 4."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(first, first + 40, (rows, width), generator=generator)
    lengths = torch.randint(5, width + 1, (rows,), generator=generator)
    return TokenSet(ids, lengths, torch.full((rows,), 4), "random")


def pair_set(rows: int = 12) -> PairSet:
    """Right answers end in token 90, wrong ones in 91."""
    sides = [token_set(rows, seed=seed) for seed in (0, 1)]
    for side, last in zip(sides, (90, 91), strict=True):
        side.ids[:, :4] = sides[0].ids[:, :4]
        side.ids[torch.arange(rows), side.lengths - 1] = last
    return PairSet(*sides)


def outputs(seed: int = 0, *, apart: float = 4.0) -> tuple[Tensor, Tensor]:
    """z [L, H, n, D] of right and wrong answers: noise, but for the planted heads."""
    generator = torch.Generator().manual_seed(seed)
    right, wrong = torch.randn(2, LAYERS, HEADS, PAIRS, SIZE, generator=generator)
    for layer, head in PLANTED:
        right[layer, head, :, 1] += apart
    return right, wrong


# --- scores


def test_planted_heads_are_found() -> None:
    result = score_heads(*outputs())
    accuracy = result.details["accuracy"]
    best = result.scores.flatten().argsort(descending=True)[: len(PLANTED)].sort().values
    assert best.tolist() == sorted(layer * HEADS + head for layer, head in PLANTED)
    assert all(float(accuracy[place]) > 0.9 for place in PLANTED)
    others = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    others[tuple(zip(*PLANTED, strict=True))] = False
    assert 0.3 < float(accuracy[others].mean()) < 0.7
    assert result.scores.dtype == torch.float64
    assert result.scores.shape == (LAYERS, HEADS) == result.details["log_loss"].shape


def test_accuracy_goes_first_then_the_log_loss() -> None:
    """Two heads that tell all apart: the one further from the border wins, and never passes a better accuracy."""
    right, wrong = outputs()
    right[1], wrong[1] = right[0], wrong[0]
    for head, apart in enumerate((30.0, 60.0, 0.0, 0.0)):
        right[1, head, :, 0] += apart
    result = score_heads(right, wrong)
    accuracy, loss, scores = result.details["accuracy"], result.details["log_loss"], result.scores
    assert accuracy[1, :2].tolist() == [1.0, 1.0]
    assert loss[1, 1] < loss[1, 0]
    assert scores[1, 1] > scores[1, 0]
    row = 1 / (2 * round(VALIDATION_SHARE * PAIRS))
    assert bool(((accuracy - scores) >= 0).all())
    assert float((accuracy - scores).max()) <= 1e-3 * row
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    assert order == sorted(range(len(order)), key=lambda i: (-float(accuracy.flatten()[i]), float(loss.flatten()[i])))


def test_both_rows_of_a_pair_are_on_one_side_of_the_split() -> None:
    """Each pair's rows are alike and far from all others: a probe that saw one of them would know the pair."""
    right, wrong = outputs(apart=0.0)
    scores = [score_heads(right, wrong, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(scores[0].scores, scores[1].scores)
    assert not torch.equal(scores[0].scores, scores[2].scores)
    held = round(VALIDATION_SHARE * PAIRS)
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    right[:, :, order[:held]], wrong[:, :, order[:held]] = 1e3, -1e3  # the held-out pairs are now easy for any w
    right[:, :, order[held:], 0] += 4
    assert score_heads(right, wrong, seed=0).details["accuracy"].unique().numel() <= 2  # none of them, or all


def test_the_score_is_that_of_one_fit_after_another() -> None:
    """The same from the definition: split, one fit per head, counted by hand."""
    from restorelcc.logistic import fit_logistic

    right, wrong = outputs(seed=5, apart=1.0)
    held = round(VALIDATION_SHARE * PAIRS)
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(7))
    found = score_heads(right, wrong, seed=7).details
    for layer in range(LAYERS):
        for head in range(HEADS):
            train, test = (
                torch.cat((right[layer, head, part], wrong[layer, head, part])).double()
                for part in (order[held:].sort().values, order[:held].sort().values)
            )
            fit = fit_logistic(train[None], torch.arange(len(train)) < len(train) // 2)
            says = test @ fit.weight[0] + fit.intercept[0]
            truth = torch.arange(len(test)) < held
            assert float(found["accuracy"][layer, head]) == float(((says > 0) == truth).double().mean())
            loss = -torch.where(truth, says, -says).sigmoid().log().mean()
            assert float(found["log_loss"][layer, head]) == pytest.approx(float(loss), abs=1e-7)


def test_the_prompt_alone_tells_nothing_apart() -> None:
    right, wrong = outputs(apart=0.0)
    prompts = torch.randn(LAYERS, HEADS, PAIRS, SIZE)
    blind = score_heads(torch.zeros_like(right), torch.zeros_like(wrong), prompts=prompts)
    assert blind.details["accuracy"].tolist() == [[0.5] * HEADS] * LAYERS
    planted = score_heads(*outputs(), prompts=prompts)
    assert all(float(planted.details["accuracy"][place]) > 0.9 for place in PLANTED)


def test_too_few_pairs_to_split() -> None:
    right, wrong = outputs()
    with pytest.raises(ValueError, match="1 pairs cannot be split"):
        score_heads(right[:, :, :1], wrong[:, :, :1])
    assert score_heads(right[:, :, :2], wrong[:, :, :2]).scores.shape == (LAYERS, HEADS)


# --- head outputs


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_head_outputs_are_the_inputs_of_the_projections(kind: str, batch: int) -> None:
    """Against one row at a time without padding."""
    model, rows = model_of(kind), token_set(7)
    at = rows.lengths - 1
    at[3] = 2
    told: list[int] = []
    found = head_outputs(model, rows, at, batch=batch, advance=told.append)
    sites = attention_sites(model)
    assert found.shape == (2, 4, 7, sites[0].head_dim)
    assert sum(told) == 7
    for index in range(len(rows)):
        for site in sites:
            seen: list[Tensor] = []
            handle = get_module(model, site.name).register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0]))
            model(input_ids=rows.ids[index : index + 1, : int(rows.lengths[index])], use_cache=False)
            handle.remove()
            expected = seen[0][0, int(at[index])].view(site.heads, site.head_dim)
            torch.testing.assert_close(found[site.layer, :, index], expected, rtol=1e-4, atol=1e-5)


def test_no_logits_and_no_hooks_left() -> None:
    model, rows = model_of("gqa"), token_set(3)
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the head of the language model ran"))
    head_outputs(model, rows, rows.lengths - 1)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(IndexError):
        head_outputs(model, TokenSet(rows.ids + 90, rows.lengths, rows.response_start, "x"), rows.lengths - 1)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_sparse_projections_give_the_same() -> None:
    model, rows = model_of("gqa"), token_set(5)
    before = head_outputs(model, rows, rows.lengths - 1)
    sparse_output_projections(model)
    torch.testing.assert_close(head_outputs(model, rows, rows.lengths - 1), before, rtol=1e-4, atol=1e-5)


# --- the probe


def given(model: nn.Module, **settings: Any) -> ProbeInput:
    return ProbeInput(model, token_set(2), components_of(model), **{"pairs": pair_set(), **settings})


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_probe_is_score_heads_of_the_last_answer_token(kind: str) -> None:
    model = model_of(kind)
    pairs = pair_set()
    result = linear_probe(given(model))
    sides = [head_outputs(model, side, side.lengths - 1) for side in (pairs.positive, pairs.negative)]
    assert torch.equal(result.scores, score_heads(*sides).scores)
    assert float(result.details["accuracy"].max()) > 0.8  # the last token tells right from wrong
    assert torch.equal(linear_probe(given(model)).scores, result.scores)


def test_it_is_registered() -> None:
    model = model_of("gqa")
    assert PROBES["linear"][1] == "validation accuracy of a linear probe"
    scores = head_scores("linear", model, token_set(2), components_of(model), pairs=pair_set(), seed=3)
    assert scores.kind == "linear"
    assert torch.equal(scores.scores, linear_probe(given(model, seed=3)).scores)


def test_with_the_dense_model_it_is_the_authors_probe() -> None:
    pruned, dense, pairs = model_of("gqa"), model_of("gqa"), pair_set()
    for parameter in pruned.parameters():
        parameter.mul_(0.9)
    result = linear_probe(given(pruned, dense=dense))
    sides = [head_outputs(dense, side, side.lengths - 1) for side in (pairs.positive, pairs.negative)]
    prompts = head_outputs(pruned, pairs.positive, pairs.positive.response_start - 1)
    same = head_outputs(pruned, pairs.negative, pairs.negative.response_start - 1)
    torch.testing.assert_close(same, prompts)  # both rows of a pair have the same prompt
    assert torch.equal(result.scores, score_heads(*sides, prompts=prompts).scores)
    assert not torch.equal(result.scores, linear_probe(given(pruned)).scores)
    with pytest.raises(ValueError, match="other attention heads"):
        linear_probe(given(pruned, dense=model_of("head size of its own")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pairs": None}, "needs pairs of right and wrong answers"),
        ({"pairs": pair_set(1)}, "2 pairs or more"),
        ({"edit": "ablate"}, "knows no edit=ablate"),
        ({"memory": 4096}, "the head outputs of 12 pairs take 0 MiB, more than the 0 MiB given; use 8 pairs"),
    ],
)
def test_refusals(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        linear_probe(given(model_of("gqa"), **settings))


def test_pairs_of_another_tokenizer() -> None:
    pairs = pair_set()
    pairs.negative.ids[0, 0] = 96
    with pytest.raises(ValueError, match="the model knows 96"):
        linear_probe(given(model_of("gqa"), pairs=pairs))


# --- a real model


def test_a_real_model(tmp_path: Path) -> None:
    place = shared("data", "models", "stories260k-hf")
    torch.set_num_threads(1)
    loaded = load_model(place)
    names, things = ("Lily", "Tom", "Ben", "Anna"), ("ball", "dog", "hat", "cake", "bird")
    rows = [
        {"text": f"{name} had a {thing}. The {thing} was", "label": f" the {thing} of {name}."}
        for name in names
        for thing in things
    ]
    pairs = contrastive_pairs(rows, loaded.tokenizer, window=48, similarity="tfidf")
    scores = head_scores("linear", loaded.model, pairs.positive, components_of(loaded.model), pairs=pairs)
    assert len(pairs) == 20
    assert scores.scores.shape == (5, 8)
    assert bool(((scores.scores > 0) & (scores.scores <= 1)).all())
    again = head_scores("linear", loaded.model, pairs.positive, components_of(loaded.model), pairs=pairs)
    assert torch.equal(scores.scores, again.scores)
