"""Directions other than singular vectors: the autoencoder on planted structure, random ones, none; sampled rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from restoration_models import random_pair
from test_moments import ragged_tokens, stored_differences

from restorelcc.autoencoder import fit_autoencoders
from restorelcc.components import Components, lost_components
from restorelcc.models import load_model
from restorelcc.moments import Moments, collect_moments, counted_positions
from restorelcc.training import closed_form


def planted(heads: int, rows: int, size: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows [G, S, D] on a curved surface inside of `rank` directions, little noise; those directions [G, D, R])."""
    directions = torch.linalg.qr(torch.randn(heads, size, rank)).Q
    code = torch.tanh(2 * torch.randn(heads, rows, rank))
    return code @ directions.transpose(-1, -2) + 0.01 * torch.randn(heads, rows, size), directions


def test_the_decoder_spans_what_was_planted() -> None:
    samples, directions = planted(5, 400, 12, 3)
    found = fit_autoencoders(samples, 3)
    identity = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    torch.testing.assert_close(found.basis @ found.basis.transpose(-1, -2), identity, rtol=0, atol=1e-10)
    ours = found.basis.transpose(-1, -2) @ found.basis
    theirs = (directions @ directions.transpose(-1, -2)).double()
    assert float((ours - theirs).abs().max()) < 0.05
    assert float(found.loss.max()) < 0.05
    again = fit_autoencoders(samples, 3)
    assert torch.equal(found.basis, again.basis)
    assert not torch.equal(found.basis, fit_autoencoders(samples, 3, seed=1).basis)


def test_heads_do_not_see_each_other() -> None:
    samples, _ = planted(3, 100, 8, 2)
    together = fit_autoencoders(samples, 2, steps=30)
    samples[1:] = 0.0
    apart = fit_autoencoders(samples, 2, steps=30)
    torch.testing.assert_close(together.basis[0], apart.basis[0], rtol=1e-3, atol=1e-4)
    assert bool(torch.isfinite(apart.basis).all())


def test_autoencoder_refusals() -> None:
    samples, _ = planted(1, 10, 4, 2)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank {rank} is outside 1..4"):
            fit_autoencoders(samples, rank)
    with pytest.raises(ValueError, match="no sampled rows"):
        fit_autoencoders(samples[:, :0], 2)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Moments:
    folder = tmp_path_factory.mktemp("pair")
    dense, pruned = random_pair("llama-gqa", folder)
    collect_moments(dense, pruned, ragged_tokens(96, rows=12), out=folder / "m.safetensors", samples=20, seed=3)
    return Moments.load(folder / "m.safetensors")


def test_sampled_rows_are_those_of_the_models(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    tokens = ragged_tokens(96)
    keep = counted_positions(tokens, "all", 1)
    few = collect_moments(dense, pruned, tokens, out=tmp_path / "few", samples=7, seed=2, batch=2)
    everything = collect_moments(dense, pruned, tokens, out=tmp_path / "all", samples=10**6, batch=2)
    none = collect_moments(dense, pruned, tokens, out=tmp_path / "none", batch=2)
    assert none.samples is None
    assert torch.equal(none.gram, few.gram)
    assert few.samples is not None
    assert everything.samples is not None
    assert few.samples.shape == (2, 4, 7, 8)
    for layer, dz in enumerate(stored_differences(dense, pruned, tokens, keep)):
        got = everything.samples[layer].double()
        assert float((got - dz.transpose(0, 1)).abs().max()) <= 2e-5 * float(dz.abs().max())
        for row in few.samples[layer].transpose(0, 1):
            assert bool((everything.samples[layer].transpose(0, 1) == row).all((1, 2)).any())
    with pytest.raises(ValueError, match="samples is -1"):
        collect_moments(dense, pruned, tokens, out=tmp_path / "bad", samples=-1)


@pytest.mark.parametrize("kind", ["svd", "autoencoder", "random", "mean"])
def test_directions_are_orthonormal_and_carry_the_mean(kind: str, moments: Moments) -> None:
    rank = None if kind == "mean" else 5
    parts = lost_components(moments, kind=kind, rank=rank)
    gram = parts.basis @ parts.basis.transpose(-1, -2)
    torch.testing.assert_close(gram, torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram), rtol=0, atol=1e-9)
    assert bool((parts.singular_values.diff(dim=-1) <= 0).all())
    assert bool((parts.coefficients >= 0).all())
    inside = torch.einsum("lhrd,lhd->lhr", parts.basis, moments.mean)
    torch.testing.assert_close(parts.vectors, torch.einsum("lhr,lhrd->lhd", inside, parts.basis))
    if kind != "mean":
        whole = lost_components(moments, kind=kind, rank=8)
        torch.testing.assert_close(whole.vectors, moments.mean)


def test_seeds_and_refusals(moments: Moments, tmp_path: Path) -> None:
    for kind in ("random", "autoencoder"):
        first, again, other = (lost_components(moments, kind=kind, rank=3, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first.basis, again.basis)
        assert not torch.equal(first.basis, other.basis)
        first.save(tmp_path / kind)
        assert torch.equal(Components.load(tmp_path / kind).basis, first.basis)
    bare = Moments(moments.count, moments.total, moments.gram, moments.metadata)
    with pytest.raises(ValueError, match="--samples 512"):
        lost_components(bare, kind="autoencoder")
    for kind in ("mean", "none"):
        with pytest.raises(ValueError, match="have no rank"):
            lost_components(moments, kind=kind, rank=2)
    with pytest.raises(ValueError, match=r"rank 9 is outside 1\.\.8"):
        lost_components(moments, kind="random", rank=9)


def test_no_direction_leaves_the_free_vector_alone(moments: Moments, tmp_path: Path) -> None:
    parts = lost_components(moments, kind="none")
    assert not bool(parts.vectors.any())
    assert torch.equal(parts.unit, moments.rms)
    _, pruned = random_pair("llama-gqa", tmp_path)
    with pytest.raises(ValueError, match="no closed form"):
        closed_form(load_model(pruned).model, ragged_tokens(96), parts, torch.ones(2, 4, dtype=torch.bool))
