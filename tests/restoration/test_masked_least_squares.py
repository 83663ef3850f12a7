"""Rows solved together by conjugate gradients against a factorisation of each row, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from restorelcc.masked_least_squares import masked_least_squares


def problem(rows: int, columns: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x [M, K], t [M, N], mask, start): correlated columns of very different sizes, each row its own mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-2, 2, columns, dtype=torch.float64)
    t = torch.randn(tokens, rows, generator=generator, dtype=torch.float64) * x.std()
    mask = torch.rand(rows, columns, generator=generator) < 0.5
    start = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * mask
    return x, t, mask, start


def by_factorisation(gram: Tensor, cross: Tensor, mask: Tensor, start: Tensor, ridge: Tensor) -> Tensor:
    solved = start.clone()
    for row, keep in enumerate(mask):
        matrix = (gram + torch.diag(ridge))[keep][:, keep]
        right = (cross[row] - gram @ start[row])[keep]
        solved[row, keep] += torch.linalg.solve(matrix, right)
    return solved


@pytest.mark.parametrize(("rows", "columns", "tokens"), [(8, 16, 100), (5, 33, 200), (1, 1, 3), (3, 24, 7)])
def test_equals_a_factorisation_of_each_row(rows: int, columns: int, tokens: int) -> None:
    x, t, mask, start = problem(rows, columns, tokens)
    gram, cross = x.T @ x, t.T @ x
    ridge = 0.01 * gram.diagonal()
    want = by_factorisation(gram, cross, mask, start, ridge)
    got = masked_least_squares(gram, cross, mask, start, ridge, tolerance=1e-12, iterations=1000)
    assert got.residual <= 1e-12
    # in the norm that the problem is solved in: columns of size 1e-2 say little about their weights
    scale = gram.diagonal().sqrt()
    assert float(((got.weight - want) * scale).norm()) <= 1e-9 * float((want * scale).norm())
    assert bool((got.weight[~mask] == 0).all())


def test_float32_stays_within_its_tolerance() -> None:
    x, t, mask, start = problem(16, 64, 400)
    gram, cross = x.T @ x, t.T @ x
    ridge = 0.1 * gram.diagonal()
    want = by_factorisation(gram, cross, mask, start, ridge)
    got = masked_least_squares(
        gram.float(), cross.float(), mask, start.float(), ridge.float(), tolerance=1e-3, iterations=200
    )
    scale = gram.diagonal().sqrt()
    assert float(((got.weight.double() - want) * scale).norm()) <= 1e-2 * float(((want - start) * scale).norm())


def test_the_objective_falls_with_every_iteration() -> None:
    x, t, mask, start = problem(4, 32, 50)
    gram, cross, ridge = x.T @ x, t.T @ x, 0.1 * (x * x).sum(0)

    def objective(weight: Tensor) -> float:
        return float(((t - x @ weight.T) ** 2).sum() + (ridge * (weight - start) ** 2).sum())

    values = [
        objective(masked_least_squares(gram, cross, mask, start, ridge, tolerance=0.0, iterations=made).weight)
        for made in range(8)
    ]
    assert values[0] == objective(start)
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_columns_that_say_nothing_stay_as_they_are() -> None:
    x, t, mask, start = problem(4, 8, 20)
    x[:, 3] = 0.0
    mask[:, 3], start[:, 3] = True, 2.5
    got = masked_least_squares(x.T @ x, t.T @ x, mask, start, torch.zeros(8, dtype=torch.float64), tolerance=1e-10)
    assert bool((got.weight[:, 3] == 2.5).all())
    assert bool(torch.isfinite(got.weight).all())


def test_rows_without_columns_and_no_rows() -> None:
    x, t, mask, start = problem(3, 8, 20)
    mask[1], start[1] = False, 0.0
    got = masked_least_squares(x.T @ x, t.T @ x, mask, start, (x * x).sum(0))
    assert bool((got.weight[1] == 0).all())
    none = masked_least_squares(x.T @ x, t.T[:0] @ x, mask[:0], start[:0], (x * x).sum(0))
    assert none.weight.shape == (0, 8)
    assert none.iterations == 0


def test_refused() -> None:
    x, t, mask, start = problem(3, 8, 20)
    gram, cross, ridge = x.T @ x, t.T @ x, torch.ones(8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"gram \[8, 8\], cross \[2, 8\] .* do not fit a weight of 3 x 8"):
        masked_least_squares(gram, cross[:2], mask, start, ridge)
    with pytest.raises(ValueError, match="one number for each of 8 columns"):
        masked_least_squares(gram, cross, mask, start, ridge[:1])
    with pytest.raises(ValueError, match="outside of the mask"):
        masked_least_squares(gram, cross, torch.zeros_like(mask), start, ridge)
    gram[0, 0] = torch.inf
    with pytest.raises(ValueError, match="the gram holds NaN or infinity"):
        masked_least_squares(gram, cross, mask, start, ridge)
