"""Patterns, magnitude and Wanda against plain restatements, and the proof that masks stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import SUPPORTED
from torch import Tensor

from restorelcc.models import prunable_linears, save_checkpoint
from restorelcc.pruning import Pattern, masks_equal, prune_model, sparsity_table
from restorelcc.sparsegpt import sparsegpt

Build = Callable[[str], Any]


def test_patterns_are_read() -> None:
    assert (Pattern.parse("0.5").sparsity, Pattern.parse("0.5").group) == (0.5, 0)
    assert (Pattern.parse(" 2:4 ").sparsity, Pattern.parse("4:8").keep, Pattern.parse("1:4").sparsity) == (0.5, 4, 0.75)


@pytest.mark.parametrize("text", ["3:2", "4:4", "0:4", "1.5", "0", "1", "-0.5", "nan", "abc", "", "2:4:8", "50%"])
def test_unknown_patterns_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown pattern"):
        Pattern.parse(text)


@pytest.mark.parametrize("shape", [(1, 8), (7, 24), (64, 172), (3, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_masks_keep_the_highest_scores(shape: tuple[int, int], tied: bool) -> None:
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if tied:
        scores = (scores * 3).round()

    def by_sorting(values: Tensor, keep: int) -> Tensor:  # ties: the first column, as a stable sort leaves them
        order = values.argsort(dim=1, descending=True, stable=True)
        return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order[:, :keep], True)

    for text in ("0.5", "0.3", "0.9"):
        pattern = Pattern.parse(text)
        keep = shape[1] - int(shape[1] * pattern.fraction)
        assert torch.equal(pattern.mask(scores), by_sorting(scores, keep))
        whole = pattern.mask(scores, compare="matrix")
        keep = scores.numel() - int(scores.numel() * pattern.fraction)
        assert torch.equal(whole, by_sorting(scores.reshape(1, -1), keep).reshape(shape))
    for keep, group in ((2, 4), (1, 4), (5, 8), (20, 24), (1, 43)):  # short groups are compared by pairs, long ones not
        if shape[1] % group == 0:
            mask = Pattern.parse(f"{keep}:{group}").mask(scores)
            assert torch.equal(mask, by_sorting(scores.reshape(-1, group), keep).reshape(shape))


def test_equal_and_infinite_scores() -> None:
    assert Pattern.parse("2:4").mask(torch.zeros(1, 8)).tolist() == [[True, True, False, False] * 2]
    scores = torch.tensor([[0.0, torch.inf, 1.0, torch.inf]])
    assert Pattern.parse("0.5").mask(scores).tolist() == [[False, True, False, True]]
    with pytest.raises(ValueError, match="1 of the 4 scores are NaN"):
        Pattern.parse("0.5").mask(torch.tensor([[0.0, torch.nan, 1.0, 2.0]]))
    with pytest.raises(ValueError, match="6 columns are not divisible by 4"):
        Pattern.parse("2:4").mask(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="unknown comparison"):
        Pattern.parse("0.5").mask(torch.zeros(2, 4), compare="model")


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_magnitude_keeps_the_largest_weights(pattern: str, random_model: Build) -> None:
    model = random_model("llama")
    before = copy.deepcopy(model)
    report = prune_model(model, None, method="magnitude", pattern=pattern)
    assert report.sparsity == pytest.approx(0.5)
    for (name, old), (_, new) in zip(prunable_linears(before), prunable_linears(model), strict=True):
        kept = new.weight != 0
        assert torch.equal(new.weight[kept], old.weight[kept]), name
        if pattern == "0.5":
            assert old.weight[kept].abs().min() >= old.weight[~kept].abs().max()
        else:
            assert (kept.reshape(-1, 4).sum(1) == 2).all()
    assert torch.equal(model.lm_head.weight, before.lm_head.weight)


def plain(model: Any, tokens: Any, pattern: Pattern, method: str) -> None:
    """Without propagation tricks: per layer, a whole stock forward of the model as pruned so far."""
    names = [name for name, _ in prunable_linears(model)]
    layers = sorted({name.rpartition("layers.")[2].split(".")[0] for name in names}, key=int)
    for layer in layers:
        chosen = {n: m for n, m in prunable_linears(model) if f"layers.{layer}." in n}
        seen: dict[str, Tensor] = {}

        def note(name: str, seen: dict[str, Tensor] = seen) -> Callable[[Any, Any], None]:
            def hook(_: Any, args: Any) -> None:
                flat = args[0].reshape(-1, args[0].shape[-1])
                seen[name] = flat[tokens.attention_mask.reshape(-1).bool()].double()

            return hook

        handles = [linear.register_forward_pre_hook(note(name)) for name, linear in chosen.items()]
        with torch.no_grad():
            model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False)
            for handle in handles:
                handle.remove()
            for name, linear in chosen.items():
                x = seen[name]
                if method == "wanda":
                    linear.weight.mul_(pattern.mask(linear.weight.abs() * x.square().sum(0).sqrt().float()))
                else:
                    linear.weight.copy_(sparsegpt(linear.weight, x.T @ x, pattern))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_prunes_layer_after_layer(
    name: str, method: str, random_model: Build, token_set: Callable[..., Any]
) -> None:
    tokens, pattern = token_set(5, 14, ragged=True), Pattern.parse("2:4")
    ours, slow = random_model(name), random_model(name)
    report = prune_model(ours, None, method=method, pattern=pattern, calibration=tokens, batch=5)
    plain(slow, tokens, pattern, method)
    masks_equal(ours, slow)
    for (_, one), (_, other) in zip(prunable_linears(ours), prunable_linears(slow), strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-3 * float(other.weight.abs().max()))
    assert report.calibration_tokens == int(tokens.lengths.sum())
    assert {row["sparsity"] for row in report.table} == {0.5}


def test_padding_does_not_reach_wanda(random_model: Build, token_set: Callable[..., Any]) -> None:
    tokens = token_set(4, 12, ragged=True)
    other = copy.deepcopy(tokens)
    other.ids[tokens.attention_mask == 0] = 7
    models = [random_model("llama"), random_model("llama")]
    for model, text in zip(models, (tokens, other), strict=True):
        prune_model(model, None, method="wanda", pattern="0.5", calibration=text, batch=4)
    masks_equal(*models)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_layer_may_have_its_own_pattern(
    method: str, random_model: Build, token_set: Callable[..., Any]
) -> None:
    model, tokens = random_model("llama"), token_set(5, 14)
    report = prune_model(model, None, method=method, pattern="0.25,2:4", calibration=tokens)
    assert {(row["name"].split(".")[2], row["sparsity"]) for row in report.table} == {("0", 0.25), ("1", 0.5)}
    assert report.pattern == "0.25,2:4"
    with pytest.raises(ValueError, match="3 patterns for 2 decoder layers"):
        prune_model(random_model("llama"), None, method=method, pattern="0.1,0.2,0.3", calibration=tokens)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_on_a_real_model_sparsegpt_beats_wanda_and_wanda_magnitude(pattern: str, stories: Any) -> None:
    from restorelcc.evaluation import token_nll
    from restorelcc.text import write_own_text

    text = write_own_text(stories.model, stories.tokenizer, tokens=1500, window=96, temperature=1.0)
    calibration, held = text.split(0.3, seed=0)
    other, best = copy.deepcopy(stories.model), copy.deepcopy(stories.model)
    dense = token_nll(stories.model, held).mean
    prune_model(stories.model, None, method="wanda", pattern=pattern, calibration=calibration)
    prune_model(other, None, method="magnitude", pattern=pattern)
    prune_model(best, None, method="sparsegpt", pattern=pattern, calibration=calibration)
    found = [token_nll(model, held).mean for model in (best, stories.model, other)]
    assert dense < found[0] < found[1] < found[2]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, {"method": "lottery"}, "unknown method 'lottery'; choose one of magnitude, wanda, sparsegpt"),
        (None, {"method": "sparsegpt"}, "sparsegpt needs calibration text"),
        (None, {"method": "wanda"}, "wanda needs calibration text"),
        (None, {"method": "magnitude", "pattern": "2:5"}, r"q_proj has 32 columns, not divisible by the 5"),
        ("nan", {"method": "magnitude"}, r"layers\.1\.mlp\.down_proj has 1 NaN or infinite weights"),
    ],
)
def test_refusals_leave_the_model_as_it_was(
    change: str | None, arguments: dict[str, Any], message: str, random_model: Build
) -> None:
    model = random_model("llama")
    if change:
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float(change)
    with pytest.raises(ValueError, match=message):
        prune_model(model, None, **arguments)
    assert sum(row["zeros"] for row in sparsity_table(model)) == 0


def test_gpt2_is_refused(random_model: Build) -> None:
    with pytest.raises(ValueError, match=r"nn\.Linear"):
        prune_model(random_model("gpt2"), None, method="magnitude")


def test_masks_are_compared_bit_by_bit(random_model: Build, tokenizer: Any, tmp_path: Path) -> None:
    before = random_model("llama")
    prune_model(before, None, method="magnitude", pattern="2:4")
    after = copy.deepcopy(before)
    weight = after.model.layers[1].self_attn.k_proj.weight
    weight.mul_(3)
    masks_equal(before, after)
    save_checkpoint(before, tokenizer, tmp_path / "before")
    masks_equal(tmp_path / "before", after)
    assert sparsity_table(tmp_path / "before") == sparsity_table(before)
    place = (weight == 0).nonzero()[0].tolist()
    weight[place[0], place[1]] = 1e-30
    with pytest.raises(ValueError, match=r"k_proj changed: 1 pruned weights became non-zero and 0 kept"):
        masks_equal(before, after)
    save_checkpoint(after, tokenizer, tmp_path / "after")
    with pytest.raises(ValueError, match=r"k_proj changed: 0 pruned weights became non-zero and 1 kept"):
        masks_equal(tmp_path / "after", tmp_path / "before")
    with pytest.raises(ValueError, match="copies of one model"):
        masks_equal(before, random_model("opt"))
    fewer = copy.deepcopy(before)
    del fewer.model.layers[1]
    with pytest.raises(ValueError, match="is new"):
        masks_equal(fewer, before)
    with pytest.raises(ValueError, match="became no matrix"):
        masks_equal(before, fewer)
