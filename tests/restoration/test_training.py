"""Probes, training and the closed form on a small real pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_moments import ragged_tokens

from restorelcc.compensation import Compensation, apply_compensation, sparse_output_projections
from restorelcc.components import Components, lost_components
from restorelcc.models import attention_sites, load_model
from restorelcc.moments import Moments, collect_moments
from restorelcc.probes import head_scores, select_heads
from restorelcc.text import TokenSet
from restorelcc.training import TrainingSettings, closed_form, summed_nll, train_compensation

FAST = TrainingSettings(learning_rates=(0.05,), epochs=2.0, batch_tokens=256, evaluations=4)


@pytest.fixture(scope="module")
def story_text(stories_pair: tuple[Path, Path]) -> TokenSet:
    """What the dense model writes itself: 24 windows of 64 tokens."""
    loaded = load_model(stories_pair[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = torch.full((24, 1), 1)
        ids = loaded.model.generate(start, max_length=64, min_length=64, do_sample=True, top_k=0, pad_token_id=2)
    rows = ids.shape[0]
    return TokenSet(ids=ids, lengths=torch.full((rows,), 64), response_start=torch.ones(rows, dtype=torch.long),
                    name="own text")  # fmt: skip


@pytest.fixture(scope="module")
def lost(stories_pair: tuple[Path, Path], story_text: TokenSet, tmp_path_factory: pytest.TempPathFactory) -> Components:
    out = tmp_path_factory.mktemp("moments") / "m.safetensors"
    return lost_components(collect_moments(*stories_pair, story_text, out=out))


def test_attribution_is_the_derivative_of_the_nll(
    stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components
) -> None:
    """s_h against a central difference of the NLL along c_h, in the head with the largest score."""
    model = load_model(stories_pair[1]).model
    text = story_text.subset(torch.arange(6))
    scores = head_scores("attribution", model, text, lost).scores
    assert scores.shape == (5, 8)
    layer, head = divmod(int(scores.abs().argmax()), 8)
    site = attention_sites(model)[layer]
    step = 0.05

    def nll(scale: float) -> float:
        vectors = torch.zeros(5, site.inputs)
        vectors.view(5, 8, -1)[layer, head] = scale * lost.vectors[layer, head].float()
        sites = [s.name for s in attention_sites(model)]
        apply_compensation(model, Compensation(vectors, torch.ones(5, 8, dtype=torch.bool), sites))
        with torch.no_grad():
            total, count = summed_nll(model, text)
        return float(total) / count

    slope = -(nll(step) - nll(-step)) / (2 * step)
    assert slope == pytest.approx(float(scores[layer, head]), rel=0.05)


def test_random_scores_follow_the_seed(stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components) -> None:
    model = load_model(stories_pair[1]).model
    first, again, other = (head_scores("random", model, story_text, lost, seed=s).scores for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="unknown probe 'best'; choose one of attribution"):
        head_scores("best", model, story_text, lost)


def test_select_heads() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.9, -1.0]])
    assert select_heads(scores, 0.25).tolist() == [[False, True], [False, False]]
    assert select_heads(scores, 0.5).tolist() == [[False, True], [True, False]]
    assert bool(select_heads(scores, "all").all())
    for share in (0.0, 1.5, -1, "most"):
        with pytest.raises(ValueError, match="share"):
            select_heads(scores, share)


def test_training_lowers_the_heldout_nll(
    stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components
) -> None:
    model = load_model(stories_pair[1]).model
    result = train_compensation(model, story_text, lost, torch.ones(5, 8, dtype=torch.bool), FAST)
    assert result.heldout_after < result.heldout_before - 0.05
    assert result.history[0]["heldout_nll"] == result.heldout_before
    installed = torch.stack([p.comp.detach() for p in sparse_output_projections_kept(model)])
    assert torch.equal(installed, result.compensation.vectors)


def sparse_output_projections_kept(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [model.get_submodule(site.name) for site in attention_sites(model)]


def test_unchosen_heads_stay_zero(stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components) -> None:
    model = load_model(stories_pair[1]).model
    chosen = torch.zeros(5, 8, dtype=torch.bool)
    chosen[2, 3] = chosen[4, 0] = True
    result = train_compensation(model, story_text, lost, chosen, FAST)
    moved = result.compensation.vectors.view(5, 8, -1).abs().sum(-1) > 0
    assert torch.equal(moved, chosen)


def test_training_repeats_bit_for_bit(stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components) -> None:
    runs = [
        train_compensation(
            load_model(stories_pair[1]).model, story_text, lost, torch.ones(5, 8, dtype=torch.bool), FAST
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0].compensation.vectors, runs[1].compensation.vectors)


def test_hopeless_training_returns_its_start(
    stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components
) -> None:
    """A learning rate that destroys the model gives zero vectors, not a worse model."""
    model = load_model(stories_pair[1]).model
    wild = TrainingSettings(learning_rates=(1e4,), batch_tokens=256, evaluations=4)
    result = train_compensation(model, story_text, lost, torch.ones(5, 8, dtype=torch.bool), wild)
    assert result.heldout_after == result.heldout_before
    assert not bool(result.compensation.vectors.any())


def test_closed_form_is_never_worse(stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components) -> None:
    model = load_model(stories_pair[1]).model
    heads = torch.ones(5, 8, dtype=torch.bool)
    result = closed_form(model, story_text, lost, heads)
    assert result.heldout_after <= result.heldout_before
    destroyed = Components(lost.kind, lost.basis, lost.singular_values, lost.coefficients * 1e4, lost.unit)
    result = closed_form(model, story_text, destroyed, heads)
    assert result.compensation.metadata["scale"] == "0.0"
    assert not bool(result.compensation.vectors.any())
    with pytest.raises(ValueError, match="0 must be among them"):
        closed_form(model, story_text, lost, heads, scales=(0.5, 1.0))


def test_spanned_vectors_stay_in_the_span_of_the_components(
    stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components
) -> None:
    """Two directions a head: c = Σ β_i v_i has no part across them; with b it has."""
    heads = torch.ones(5, 8, dtype=torch.bool)
    two = Components(lost.kind, lost.basis[:, :, :2], lost.singular_values[:, :, :2], lost.coefficients[:, :, :2],
                     lost.unit)  # fmt: skip
    across = {}
    for kind in ("free", "spanned"):
        model = load_model(stories_pair[1]).model
        result = train_compensation(model, story_text, two, heads, FAST, vectors=kind)
        assert result.heldout_after < result.heldout_before
        c = result.compensation.vectors.view(5, 8, -1).double()
        along = torch.einsum("lhd,lhrd,lhre->lhe", c, two.basis, two.basis)
        across[kind] = float((c - along).norm() / c.norm())
    assert across["spanned"] < 1e-6
    assert across["free"] > 0.1


def test_vectors_that_cannot_be_trained(
    stories_pair: tuple[Path, Path], story_text: TokenSet, lost: Components
) -> None:
    model, heads = load_model(stories_pair[1]).model, torch.ones(5, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="unknown vectors 'beta'; choose one of free, spanned"):
        train_compensation(model, story_text, lost, heads, FAST, vectors="beta")
    none = Components("none", lost.basis[:, :, :1] * 0, lost.singular_values[:, :, :1], lost.coefficients[:, :, :1],
                      lost.unit)  # fmt: skip
    with pytest.raises(ValueError, match="no directions, so they span no vector"):
        train_compensation(model, story_text, none, heads, FAST, vectors="spanned")


def test_too_little_text(stories_pair: tuple[Path, Path], lost: Components) -> None:
    model = load_model(stories_pair[1]).model
    one = ragged_tokens(512, rows=1)
    with pytest.raises(ValueError, match="at least 2 rows"):
        train_compensation(model, one, lost, torch.ones(5, 8, dtype=torch.bool), FAST)


def test_projections_are_replaced_once(stories_pair: tuple[Path, Path]) -> None:
    model = load_model(stories_pair[1]).model
    first = sparse_output_projections(model)
    assert all(a is b for a, b in zip(first, sparse_output_projections(model), strict=True))


def test_moments_file_refuses_another_kind(tmp_path: Path, lost: Components) -> None:
    lost.save(tmp_path / "c.safetensors")
    again = Components.load(tmp_path / "c.safetensors")
    assert torch.equal(again.basis, lost.basis)
    assert again.kind == "svd"
    with pytest.raises(ValueError, match="is not a moments file of version 0"):
        Moments.load(tmp_path / "c.safetensors")
