"""Many logistic regressions at once: against one at a time in float64, against scikit-learn, and at its corners."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from restorelcc import logistic
from restorelcc.logistic import fit_logistic

HAVE_SCIKIT_LEARN = importlib.util.find_spec("sklearn") is not None
TOLERANCE = 1e-6


def problems(
    count: int = 6, rows: int = 80, size: int = 7, *, apart: float = 0.5, spread: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features [B, n, D] whose columns differ in scale by e^spread and are off the origin, and labels [n]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(rows) % 2 == 1
    x = normal(count, rows, size) + apart * normal(count, 1, size) * (labels.double()[None, :, None] - 0.5)
    return x * torch.exp(spread * normal(count, 1, size)) + 3 * normal(count, 1, size), labels


def objective(x: Tensor, labels: Tensor, w: Tensor, b: Tensor, C: float) -> Tensor:
    """½ |w|² + C Σ log(1 + exp(−y (x·w + β))) of one problem."""
    y = 2 * labels.double() - 1
    return 0.5 * w @ w + C * torch.log1p(torch.exp(-(y * (x @ w + b)))).sum()


def one_at_a_time(x: Tensor, labels: Tensor, C: float) -> tuple[Tensor, Tensor]:
    """Newton's method with damping on one problem, derivatives by autograd: slow, and shares nothing with ours."""
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64)

    def f(values: Tensor) -> Tensor:
        return objective(x, labels, values[:-1], values[-1], C)

    for _ in range(100):
        leaf = parameters.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(f(leaf), leaf)
        if float(gradient.abs().max()) < 1e-11:
            break
        step = torch.linalg.solve(torch.autograd.functional.hessian(f, parameters), gradient)
        length = 1.0
        while f(parameters - length * step) > f(parameters) + 1e-12 and length > 1e-9:
            length /= 2
        parameters = parameters - length * step
    return parameters[:-1], parameters[-1]


CASES = {
    "plain": {}, "one column": {"size": 1}, "two rows": {"rows": 2}, "odd": {"rows": 33, "size": 13},
    "wide": {"rows": 10, "size": 40}, "separable": {"apart": 50.0}, "scales": {"spread": 3.0},
    "one problem": {"count": 1},
}  # fmt: skip


@pytest.mark.parametrize("C", [1.0, 0.01, 30.0])
@pytest.mark.parametrize("case", CASES)
def test_each_problem_has_its_own_minimum(case: str, C: float) -> None:
    x, labels = problems(**CASES[case])
    fits = fit_logistic(x, labels, C=C)
    for index in range(len(x)):
        w, b = one_at_a_time(x[index], labels, C)
        scale = 1 + float(w.abs().max())
        assert float((fits.weight[index] - w).abs().max()) <= TOLERANCE * scale
        assert float((fits.intercept[index] - b).abs()) <= TOLERANCE * (scale + float(b.abs()))


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_at_the_solution_is_zero(case: str) -> None:
    x, labels = problems(**CASES[case])
    fits = fit_logistic(x, labels)
    assert float(fits.decrement.max()) <= 1e-8
    for index in range(len(x)):
        w, b = (value[index].clone().requires_grad_(True) for value in (fits.weight, fits.intercept))
        found = torch.autograd.grad(objective(x[index], labels, w, b, 1.0), (w, b))
        size = float(x[index].abs().sum(0).max())
        assert all(float(g.abs().max()) <= 1e-9 * (1 + size) for g in found)


@pytest.mark.skipif(not HAVE_SCIKIT_LEARN, reason="scikit-learn is not installed")
@pytest.mark.parametrize("case", [case for case in CASES if case != "two rows"])
def test_it_is_the_objective_of_scikit_learn(case: str) -> None:
    from sklearn.linear_model import LogisticRegression

    x, labels = problems(**CASES[case])
    fits = fit_logistic(x, labels)
    for index in range(len(x)):
        theirs = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(
            x[index].numpy(), labels.numpy()
        )
        scale = 1 + abs(theirs.coef_).max()
        assert abs(theirs.coef_[0] - fits.weight[index].numpy()).max() <= TOLERANCE * scale
        assert abs(theirs.intercept_[0] - float(fits.intercept[index])) <= TOLERANCE * (
            scale + abs(theirs.intercept_[0])
        )
        assert (theirs.predict(x[index].numpy()) == (fits.margins(x)[index] > 0).numpy()).all()


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = problems(count=11)
    whole, again = fit_logistic(x, labels), fit_logistic(x, labels)
    assert torch.equal(whole.weight, again.weight)
    assert torch.equal(whole.intercept, again.intercept)
    monkeypatch.setattr(logistic, "CHUNK_BYTES", 3 * 8 * 80 * 8)  # three problems a chunk, the last chunk two
    parts = fit_logistic(x, labels)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=1e-7)
    torch.testing.assert_close(parts.margins(x), whole.margins(x), rtol=0, atol=1e-6)
    monkeypatch.setattr(logistic, "CHUNK_BYTES", 1)
    torch.testing.assert_close(fit_logistic(x, labels).weight, whole.weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("refresh", [0.0, 0.9])
def test_stale_hessians_lead_to_the_same_place(refresh: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = problems(apart=3.0, spread=2.0)
    usual = fit_logistic(x, labels)
    monkeypatch.setattr(logistic, "REFRESH", refresh)
    other = fit_logistic(x, labels)
    torch.testing.assert_close(other.weight, usual.weight, rtol=1e-6, atol=1e-7)


def test_a_constant_added_to_every_row_moves_only_the_intercept() -> None:
    x, labels = problems()
    moved = x + 5 * torch.randn(len(x), 1, x.shape[-1], dtype=torch.float64)
    one, other = fit_logistic(x, labels), fit_logistic(moved, labels)
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(one.margins(x), other.margins(moved), rtol=0, atol=1e-8)


def test_features_that_say_nothing() -> None:
    fits = fit_logistic(torch.zeros(2, 8, 3), torch.arange(8) < 6)
    assert fits.weight.abs().max() == 0
    torch.testing.assert_close(fits.intercept, torch.full((2,), 3.0).log().double())


def test_huge_features_come_to_an_end() -> None:
    x, labels = problems(apart=100.0)
    fits = fit_logistic(1e7 * x, labels)
    assert bool(torch.isfinite(fits.weight).all())
    assert bool(((fits.margins(1e7 * x) > 0) == labels).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_are_fitted_in_float64(dtype: torch.dtype) -> None:
    x, labels = problems(spread=0.3)
    given = x.to(dtype)
    fits = fit_logistic(given, labels)
    assert torch.equal(fits.weight, fit_logistic(given.double(), labels).weight)
    assert fits.margins(given).dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "labels", "settings", "said"),
    [
        (torch.zeros(2, 4), torch.arange(4) < 2, {}, r"features \[2, 4\]"),
        (torch.zeros(2, 4, 3), torch.arange(5) < 2, {}, r"labels \[5\]"),
        (torch.zeros(2, 4, 3), torch.ones(4, dtype=torch.bool), {}, "all 4 labels are the same"),
        (torch.zeros(2, 4, 3), torch.arange(4) < 2, {"C": 0.0}, "C is 0"),
        (torch.full((2, 4, 3), torch.nan), torch.arange(4) < 2, {}, "6 columns of the features hold NaN"),
        (1e200 * torch.randn(2, 4, 3).double(), torch.arange(4) < 2, {}, "too much to be fitted"),
    ],
)
def test_refusals(features: Tensor, labels: Tensor, settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_logistic(features, labels, **settings)
