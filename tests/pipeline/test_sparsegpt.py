"""SparseGPT against its algorithm written out row by row, with an inverse Hessian that shrinks column by column."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from development_data import shared
from torch import Tensor

from restorelcc.models import prunable_linears
from restorelcc.pruning_pattern import Pattern
from restorelcc.sparsegpt import sparsegpt
from restorelcc.text import TokenSet, load_text


def problem(rows: int, columns: int, tokens: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(W [N, K], x [M, K]) with correlated inputs of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    x = x + x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    x = x * torch.linspace(0.2, 3, columns, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), x


def step_by_step(weight: Tensor, gram: Tensor, keep: Tensor, damp: float) -> Tensor:
    """Optimal brain surgeon on a given mask: each column's inverse Hessian is that of the columns not yet passed."""
    h = gram + damp * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    w = weight.clone()
    for k in range(w.shape[1]):
        inverse = torch.linalg.inv(h[k:, k:])
        error = torch.where(keep[:, k], 0.0, w[:, k]) / inverse[0, 0]
        w[:, k:] -= torch.outer(error, inverse[0])
        w[:, k] = torch.where(keep[:, k], w[:, k], 0.0)
    return w


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:3", "0.5", "0.3"])
@pytest.mark.parametrize("block", [8, 24, 128])
def test_weights_are_those_of_the_algorithm_on_its_mask(pattern: str, block: int) -> None:
    weight, x = problem(6, 24)
    gram = x.T @ x
    got = sparsegpt(weight, gram, Pattern.parse(pattern), block=block)
    want = step_by_step(weight, gram, got != 0, 0.01)
    assert float((got.double() - want).norm()) <= 1e-5 * float(want.norm())


def test_the_first_mask_is_that_of_the_scores() -> None:
    weight, x = problem(5, 16)
    gram = x.T @ x
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(16, dtype=gram.dtype)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    scores = (weight / factor.diagonal()).square()
    got = sparsegpt(weight, gram, Pattern.parse("0.5"), block=16)
    assert torch.equal(got != 0, Pattern.parse("0.5").mask(scores, compare="matrix"))


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_every_group_keeps_its_number(pattern: str) -> None:
    weight, x = problem(7, 40)
    chosen = Pattern.parse(pattern)
    kept = (sparsegpt(weight, x.T @ x, chosen, block=12) != 0).reshape(-1, chosen.group).sum(1)
    assert bool((kept == chosen.keep).all())


def test_what_stays_makes_up_for_what_goes() -> None:
    weight, _ = problem(16, 64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 16, generator=generator, dtype=torch.float64)  # 64 inputs that say the same 16 things, nearly
    x = x @ torch.randn(16, 64, generator=generator, dtype=torch.float64)
    x = x + 0.1 * torch.randn(300, 64, generator=generator, dtype=torch.float64)
    chosen = Pattern.parse("2:4")
    got = sparsegpt(weight, x.T @ x, chosen).double()
    plain = weight * chosen.mask(weight.abs() * x.square().sum(0).sqrt())
    error, wanda = ((x @ (w - weight).T).norm() for w in (got, plain))
    assert float(error) < 0.5 * float(wanda)


@torch.no_grad()
def inputs_of_projections(model: Any, tokens: TokenSet) -> dict[str, Tensor]:
    """name -> x [tokens, K] float64 of each projection."""
    seen: dict[str, Tensor] = {}
    hooks = [
        linear.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0].flatten(0, 1).double()})
        )
        for name, linear in prunable_linears(model)
    ]
    model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def test_at_2_to_4_a_real_model_reads_real_text_with_less_error(stories: Any) -> None:
    """Σ ‖x (Ŵ − W)ᵀ‖² of each projection, on rows that nothing was calibrated with."""
    file = shared("data", "text", "wikitext2_valid.txt")
    text = load_text(file, stories.tokenizer, window=128, max_tokens=8192, seed=0)
    calibration, held = text.split(0.25, seed=0)
    inputs, other = (inputs_of_projections(stories.model, rows) for rows in (calibration, held))
    chosen = Pattern.parse("2:4")
    assert len(inputs) == 5 * 7
    for name, linear in prunable_linears(stories.model):
        weight, x = linear.weight.detach().double(), inputs[name]
        made = (
            sparsegpt(weight, x.T @ x, chosen).double(),
            weight * chosen.mask(weight.abs() * x.square().sum(0).sqrt()),
            weight * chosen.mask(weight.abs()),
        )
        ours, wanda, magnitude = (float((other[name] @ (w - weight).T).square().sum()) for w in made)
        assert ours < 0.9 * min(wanda, magnitude), name


def test_columns_that_are_never_used_go_first() -> None:
    weight, x = problem(4, 8)
    x[:, [1, 6]] = 0.0
    got = sparsegpt(weight, x.T @ x, Pattern.parse("2:4"))
    assert bool((got[:, [1, 6]] == 0).all())
    assert bool(torch.isfinite(got).all())


def test_refused() -> None:
    weight, x = problem(4, 8)
    gram = x.T @ x
    with pytest.raises(ValueError, match="not divisible by 3"):
        sparsegpt(weight, gram, Pattern.parse("1:3"))
    gram[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        sparsegpt(weight, gram, Pattern.parse("2:4"))
