"""The adaptive probe: its estimates and intervals against known truth, and the probe itself against the exact one."""

from __future__ import annotations

import pytest
import torch
from contrast_models import contrast_model
from torch import Tensor

from restorelcc.components import Components
from restorelcc.probe_adaptive import AdaptiveSettings, Estimate, adaptive, estimate, settle
from restorelcc.probe_input import ProbeInput
from restorelcc.probe_perplexity import perplexity
from restorelcc.text import TokenSet


def planted(seed: int, units: int = 60) -> tuple[Tensor, Tensor]:
    """(exact, first order) [12, 9, U]: the first order explains most of a score, units are noisy."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    first = normal(12, 9, 1) + 1.5 * normal(12, 9, units)
    return 0.8 * first + 0.4 * normal(12, 9, 1) + 0.7 * normal(12, 9, units), first


def sampled(exact: Tensor, count: int, seed: int) -> Tensor:
    kept = torch.randperm(exact.shape[-1], generator=torch.Generator().manual_seed(seed))[:count]
    found = torch.full_like(exact, torch.nan)
    found[..., kept] = exact[..., kept]
    return found


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("count", [3, 10, 40])
def test_intervals_cover_what_they_promise(count: int, confidence: float) -> None:
    covered = []
    for seed in range(12):
        exact, first = planted(seed)
        found = estimate(sampled(exact, count, seed), first, confidence)
        covered.append(((found.score - exact.sum(-1)).abs() <= found.half_width).double().mean())
    share = float(torch.stack(covered).mean())
    assert confidence - 0.08 <= share <= confidence + 0.08


def test_everything_measured_is_exact() -> None:
    exact, first = planted(1)
    found = estimate(exact, first, 0.95)
    torch.testing.assert_close(found.score, exact.sum(-1))
    assert float(found.half_width.max()) == 0


def test_the_first_order_makes_intervals_narrow() -> None:
    exact, first = planted(2)
    partly = sampled(exact, 6, 0)
    with_it, without = estimate(partly, first, 0.95), estimate(partly, 1e-9 * torch.ones_like(first), 0.95)
    assert float(with_it.half_width.mean()) < 0.7 * float(without.half_width.mean())


def test_heads_measured_on_different_units() -> None:
    exact, first = planted(3)
    partly = sampled(exact, 40, 0)
    partly[:, 4:] = torch.where(sampled(exact, 8, 1)[:, 4:].isnan(), torch.nan, exact[:, 4:])
    found = estimate(partly, first, 0.95)
    assert float(found.half_width[:, :4].mean()) < float(found.half_width[:, 4:].mean())
    assert bool(found.score.isfinite().all())


def test_settle() -> None:
    found = Estimate(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[0.4, 0.6, 0.4, 1.6]]))
    inside, undecided = settle(found, 2)  # the cut is 2.5
    assert inside.tolist() == [[True, True, False, False]]
    assert undecided.tolist() == [[False, True, False, True]]
    inside, undecided = settle(found, 4)
    assert bool(inside.all())
    assert not bool(undecided.any())


@pytest.fixture(scope="module")
def given() -> ProbeInput:
    model = contrast_model("gqa")
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(3, 61, (n,), generator=generator).tolist() for n in range(5, 29)]
    vectors = torch.randn(4, 4, 8, generator=generator, dtype=torch.float64)
    length = vectors.norm(dim=-1, keepdim=True)
    lost = Components("mean", (vectors / length)[..., None, :], 0.3 * length, 0.3 * length, torch.ones(4, 4).double())
    return ProbeInput(model, TokenSet.from_rows(rows, pad=0, name="random"), lost)


def test_all_the_work_gives_the_exact_scores(given: ProbeInput) -> None:
    found = adaptive(given, AdaptiveSettings(work=10.0, first=1.0, band=0.0))
    torch.testing.assert_close(found.scores, perplexity(given).scores, rtol=0, atol=2e-6)
    assert float(found.details["half_width"].max()) == 0
    assert not bool(found.details["undecided"].any())
    assert float(found.details["work"]) == 1.0


def test_a_part_of_the_work_keeps_to_it(given: ProbeInput) -> None:
    found, again = adaptive(given, AdaptiveSettings(work=0.4)), adaptive(given, AdaptiveSettings(work=0.4))
    assert torch.equal(found.scores, again.scores)
    assert 0 < float(found.details["work"]) <= 0.4
    exact = perplexity(given).scores
    error = (found.scores - exact).abs()
    assert float((error <= found.details["half_width"]).double().mean()) >= 0.7
    assert float(error.max()) > 0
    assert int(found.details["inside"].sum()) == 4
    assert int(found.details["units"].min()) >= 2


def test_another_seed_measures_other_rows(given: ProbeInput) -> None:
    from dataclasses import replace

    settings = AdaptiveSettings(work=0.2)
    assert not torch.equal(adaptive(given, settings).scores, adaptive(replace(given, seed=1), settings).scores)
