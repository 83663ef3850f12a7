"""Streamed moments against stored activations of stock forward passes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from restoration_models import ARCHITECTURES, random_pair
from torch import Tensor

from restorelcc import step_runner
from restorelcc.components import lost_components
from restorelcc.models import attention_sites, load_model
from restorelcc.moments import Moments, collect_moments, counted_positions
from restorelcc.restore import restore
from restorelcc.resume import mark_finished
from restorelcc.text import TokenSet
from restorelcc.training import TrainingSettings


def ragged_tokens(vocab: int, *, rows: int = 5, length: int = 19, seed: int = 0) -> TokenSet:
    """Rows of different lengths with answers that start at different places."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (rows, length), generator=generator)
    lengths = torch.randint(9, length + 1, (rows,), generator=generator)
    lengths[0] = length
    ids[torch.arange(length)[None] >= lengths[:, None]] = 0
    start = torch.randint(2, 6, (rows,), generator=generator)
    return TokenSet(ids=ids, lengths=lengths, response_start=start, name="ragged")


def stored_differences(dense: Path, pruned: Path, tokens: TokenSet, keep: Tensor) -> list[Tensor]:
    """ΔZ [tokens, H, D] float64 of each layer, from whole stock models with hooks."""
    layers: list[list[Tensor]] = []
    for path in (dense, pruned):
        model = load_model(path).model
        seen: list[Tensor] = []
        for site in attention_sites(model):
            projection = model.get_submodule(site.name)
            projection.register_forward_pre_hook(
                lambda _, args, site=site, seen=seen: seen.append(
                    args[0].reshape(*args[0].shape[:2], site.heads, site.head_dim)
                )
            )
        with torch.no_grad():
            model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False)
        layers.append([z[keep].double() for z in seen])
    return [d - p for d, p in zip(*layers, strict=True)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_streamed_layers_equal_stock_forward(kind: str, tmp_path: Path) -> None:
    dense, pruned = random_pair(kind, tmp_path)
    tokens = ragged_tokens(96)
    moments = collect_moments(dense, pruned, tokens, out=tmp_path / "m.safetensors", batch=2)
    stored = stored_differences(dense, pruned, tokens, counted_positions(tokens, "all", 1))
    for layer, dz in enumerate(stored):
        assert int(moments.count[layer]) == dz.shape[0]
        gram = torch.einsum("thi,thj->hij", dz, dz)
        scale = gram.abs().max()
        # float32 activations of a batch of 2 and of 5 rows differ in their last bits
        assert float((moments.gram[layer] - gram).abs().max()) <= 2e-5 * float(scale)
        assert float((moments.mean[layer] - dz.mean(0)).abs().max()) <= 2e-5 * float(scale.sqrt())


@pytest.mark.parametrize("positions", ["all", "last", "response"])
def test_positions(positions: str) -> None:
    tokens = ragged_tokens(96)
    keep = counted_positions(tokens, positions, 1)
    assert not bool(keep[:, 0].any())
    assert not bool((keep & (tokens.attention_mask == 0)).any())
    per_row = keep.sum(1)
    if positions == "all":
        assert torch.equal(per_row, tokens.lengths - 1)
    elif positions == "response":
        assert torch.equal(per_row, tokens.lengths - tokens.response_start)
    else:
        assert torch.equal(keep.long().argmax(1), tokens.response_start - 1)
        assert bool((per_row == 1).all())


def test_positions_refused() -> None:
    tokens = ragged_tokens(96)
    with pytest.raises(ValueError, match="choose one of all, last, response"):
        counted_positions(tokens, "first", 1)
    with pytest.raises(ValueError, match="no token is left: 5 rows, positions=all, skip_first=19"):
        counted_positions(tokens, "all", 19)


def test_components_equal_svd_of_stored_differences(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Subspaces by projectors with a gap-scaled tolerance, c by a budget, on a real model."""
    dense, pruned = stories_pair
    tokens = ragged_tokens(512, rows=16, length=64, seed=3)
    moments = collect_moments(dense, pruned, tokens, out=tmp_path / "m.safetensors", batch=16)
    parts = lost_components(moments)
    stored = stored_differences(dense, pruned, tokens, counted_positions(tokens, "all", 1))
    head_dim = parts.basis.shape[-1]
    for layer, dz in enumerate(stored):
        for head in range(dz.shape[1]):
            u, sigma, vt = torch.linalg.svd(dz[:, head], full_matrices=False)
            error = (parts.singular_values[layer, head] - sigma).abs().max() / sigma[0]
            assert float(error) <= 1e-5
            for rank in range(1, head_dim):
                gap = float((sigma[rank - 1] ** 2 - sigma[rank] ** 2) / sigma[0] ** 2)
                ours = parts.basis[layer, head, :rank]
                difference = ours.T @ ours - vt[:rank].T @ vt[:rank]
                # Davis-Kahan: the angle is bounded by the perturbation of the Gram matrix over the gap
                assert float(difference.abs().max()) <= min(1.0, 4e-5 / max(gap, 1e-30)) + 1e-12
                c_svd = ((sigma * u.mean(0))[:rank, None] * vt[:rank]).sum(0)
                c_ours = (parts.coefficients[layer, head, :rank, None] * ours).sum(0)
                budget = min(1.0, 4e-5 / max(gap, 1e-30)) * float(dz[:, head].mean(0).norm()) + 1e-6 * float(sigma[0])
                assert float((c_svd - c_ours).abs().max()) <= budget
            whole = parts.vectors[layer, head]
            assert float((whole - dz[:, head].mean(0)).abs().max()) <= 1e-5 * float(sigma[0])


def test_a_killed_collection_goes_on_at_its_layer(
    stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import moments as module

    dense, pruned = stories_pair
    tokens = ragged_tokens(512, rows=6, length=32)
    whole = collect_moments(dense, pruned, tokens, out=tmp_path / "whole.safetensors")

    real = module._one_layer
    ran: list[int] = []

    def dies_in_layer_three(pair, *rest):  # type: ignore[no-untyped-def]
        index = pair.index
        ran.append(index)
        state = real(pair, *rest)
        if index == 3 and ran.count(3) == 1:
            raise KeyboardInterrupt  # after it wrote hidden states, before it was recorded
        return state

    monkeypatch.setattr(module, "_one_layer", dies_in_layer_three)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(dense, pruned, tokens, out=tmp_path / "killed.safetensors")
    resumed = collect_moments(dense, pruned, tokens, out=tmp_path / "killed.safetensors")
    assert ran == [0, 1, 2, 3, 3, 4]
    assert torch.equal(whole.gram, resumed.gram)
    assert torch.equal(whole.total, resumed.total)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.safetensors", "whole.safetensors"]


def test_killed_before_their_mark_moments_are_not_collected_again(
    stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import moments as module

    work = tmp_path / "out.work"
    ran: list[int] = []
    real = module._one_layer

    class Killed(BaseException):
        pass

    def noted(pair: Any, *rest: Any) -> Any:
        ran.append(pair.index)
        return real(pair, *rest)

    def killed(mark: Path, *rest: Any) -> None:
        if mark.name == "moments.json":
            assert ran == [0, 1, 2, 3, 4]
            raise Killed
        mark_finished(mark, *rest)

    def again() -> None:
        settings = TrainingSettings(learning_rates=(0.02,), batch_tokens=256, evaluations=1)
        restore(*stories_pair, tmp_path / "out", recipe="compensate", tokens=512, window=32, training=settings)

    monkeypatch.setattr(module, "_one_layer", noted)
    with monkeypatch.context() as patched:
        patched.setattr(step_runner, "mark_finished", killed)
        with pytest.raises(Killed):
            again()
    first = Moments.load(work / "moments.safetensors")
    (work / "moments.safetensors").unlink()
    again()
    assert ran == [0, 1, 2, 3, 4]
    assert torch.equal(Moments.load(work / "moments.safetensors").gram, first.gram)
    assert not (work / "moments.safetensors.work").exists()
    (work / "moments.safetensors.work").mkdir()  # as a call leaves it that is killed behind the mark
    shutil.rmtree(tmp_path / "out")
    again()
    assert not (work / "moments.safetensors.work").exists()


def test_other_text_starts_clean(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Left-over layers of another text are not used."""
    dense, pruned = stories_pair
    out = tmp_path / "m.safetensors"
    work = tmp_path / "m.safetensors.work"
    work.mkdir()
    (work / "progress.json").write_text('{"fingerprint": "other", "layers": 4}')
    (work / "layer_0000.safetensors").write_bytes(b"not a file")
    moments = collect_moments(dense, pruned, ragged_tokens(512), out=out)
    assert bool((moments.count == moments.count[0]).all())
    assert moments.count.shape == (5,)
