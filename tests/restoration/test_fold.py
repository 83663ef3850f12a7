"""The fold against the hooked model: every architecture that can be folded, a separate stock process, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from restoration_models import FOLDABLE, random_pair, small_config
from stock_process import stock_logits
from torch import Tensor

from restorelcc.adapter import save_adapter
from restorelcc.compensation import Compensation, apply_compensation
from restorelcc.fold import fold
from restorelcc.fold_target import fold_target
from restorelcc.loading import load
from restorelcc.models import attention_sites, load_model, save_checkpoint
from restorelcc.restore import restore
from restorelcc.training_loop import TrainingSettings


def some_compensation(path: Path, scale: float = 0.5, seed: int = 1) -> Compensation:
    sites = attention_sites(load_model(path).model)
    generator = torch.Generator().manual_seed(seed)
    vectors = scale * torch.randn(len(sites), sites[0].inputs, generator=generator)
    heads = torch.ones(len(sites), sites[0].heads, dtype=torch.bool)
    return Compensation(vectors, heads, [site.name for site in sites])


def budget(logits: Tensor) -> float:
    """Rounding of float32 through a few layers: 1e-5 of the largest logit."""
    return 1e-5 * float(logits.abs().max())


@pytest.mark.parametrize("kind", FOLDABLE)
def test_folded_equals_hooked(kind: str, tmp_path: Path) -> None:
    _, pruned = random_pair(kind, tmp_path)
    compensation = some_compensation(pruned)
    report = fold(pruned, compensation, tmp_path / "restored")
    ids = torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(0))
    hooked = apply_compensation(load_model(pruned).model, compensation)
    plain = load_model(pruned).model
    with torch.no_grad():
        want = hooked(input_ids=ids).logits
        unchanged = plain(input_ids=ids).logits
        restored = load_model(tmp_path / "restored").model
        got = restored(input_ids=ids).logits
    assert float((want - unchanged).abs().max()) > 100 * budget(want), "the compensation must matter here"
    assert float((got - want).abs().max()) <= budget(want)
    assert report.kind == ("llama_reexport" if kind in ("mistral", "qwen2") else "o_proj_bias")
    assert report.matrices_compared > 0
    assert report.zeros > 0


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2"])
def test_a_stock_process_computes_the_same(kind: str, tmp_path: Path) -> None:
    _, pruned = random_pair(kind, tmp_path)
    compensation = some_compensation(pruned)
    fold(pruned, compensation, tmp_path / "restored")
    ids = torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(0))
    hooked = apply_compensation(load_model(pruned).model, compensation)
    with torch.no_grad():
        want = hooked(input_ids=ids).logits
    got, name, _ = stock_logits(tmp_path / "restored", ids)
    assert name == "LlamaForCausalLM"
    assert float((got - want).abs().max()) <= budget(want)


def test_real_model_in_a_stock_process(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, pruned = stories_pair
    compensation = some_compensation(pruned, scale=0.2)
    fold(pruned, compensation, tmp_path / "restored")
    ids = torch.randint(3, 512, (2, 64), generator=torch.Generator().manual_seed(0))
    hooked = apply_compensation(load_model(pruned).model, compensation)
    with torch.no_grad():
        want = hooked(input_ids=ids).logits
    got, *_ = stock_logits(tmp_path / "restored", ids)
    assert float((got - want).abs().max()) <= budget(want)
    config = json.loads((tmp_path / "restored" / "config.json").read_text())
    assert config["attention_bias"] is True
    assert config["model_type"] == "llama"


def tied(compensation: Compensation, heads: int = 2, size: int = 8) -> Compensation:
    """Neighbouring heads share their first one's vector."""
    groups = compensation.vectors.reshape(len(compensation.sites), -1, heads, size)
    shared = groups[:, :, :1].expand_as(groups).reshape(compensation.vectors.shape).clone()
    return Compensation(shared, compensation.heads, compensation.sites)


def test_heads_that_share_values_share_a_vector_in_their_bias(tmp_path: Path) -> None:
    """Qwen2 with a sliding window has no bias behind its attention, but one at its values; 4 heads, 2 of values."""
    _, pruned = random_pair("qwen2-sliding", tmp_path)
    target = fold_target(small_config("qwen2-sliding"))
    assert (target.kind, target.tied) == ("v_proj_bias", 2)
    compensation = tied(some_compensation(pruned))
    report = fold(pruned, compensation, tmp_path / "restored")
    assert report.kind == "v_proj_bias"
    ids = torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(0))  # longer than the window of 8
    hooked, plain = apply_compensation(load_model(pruned).model, compensation), load_model(pruned).model
    with torch.no_grad():
        want, unchanged = hooked(input_ids=ids).logits, plain(input_ids=ids).logits
    assert float((want - unchanged).abs().max()) > 100 * budget(want)
    got, name, _ = stock_logits(tmp_path / "restored", ids)
    assert name == "Qwen2ForCausalLM"
    assert float((got - want).abs().max()) <= budget(want)
    with pytest.raises(ValueError, match="2 heads share each value projection's bias"):
        fold(pruned, some_compensation(pruned), tmp_path / "untied")


def test_a_compensation_is_trained_for_where_it_will_live(tmp_path: Path) -> None:
    dense, pruned = random_pair("qwen2-sliding", tmp_path)
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{3 + (7 * i + i * i // 5) % 90}" for i in range(600)))
    settings = TrainingSettings(learning_rates=(0.05,), batch_tokens=64, evaluations=3, epochs=3.0)
    for train in ("lm", "none"):
        report = restore(dense, pruned, tmp_path / train, recipe="compensate", heads=0.25, train=train, data=words,
                         tokens=512, window=16, training=settings)  # fmt: skip
        assert report.fold["kind"] == "v_proj_bias"
        chosen = torch.tensor(report.selected).reshape(2, 2, 2)
        assert torch.equal(chosen[..., 0], chosen[..., 1])
        assert report.heldout["restored"] <= report.heldout["pruned"]
        assert load_model(tmp_path / train).model(torch.ones(1, 4, dtype=torch.int64)).logits.isfinite().all()


def test_sliding_window_goes_to_an_adapter(tmp_path: Path) -> None:
    kind = "mistral-sliding"
    _, pruned = random_pair(kind, tmp_path)
    target = fold_target(small_config(kind))
    assert target.kind == "adapter"
    assert "sliding window of 8 tokens" in target.reason
    compensation = some_compensation(pruned)
    with pytest.raises(ValueError, match="use --fold none"):
        fold(pruned, compensation, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    save_adapter(pruned, compensation, tmp_path / "adapter")
    ids = torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(0))
    hooked = apply_compensation(load_model(pruned).model, compensation)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "adapter")(input_ids=ids).logits, hooked(input_ids=ids).logits)


def test_adapter_refusals(tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    save_adapter(pruned, some_compensation(pruned), tmp_path / "adapter")
    moved = tmp_path / "elsewhere"
    pruned.rename(moved)
    with pytest.raises(ValueError, match="is gone; pass base="):
        load(tmp_path / "adapter")
    assert load(tmp_path / "adapter", base=moved) is not None
    record = tmp_path / "adapter" / "adapter_config.json"
    record.write_text(record.read_text().replace('"version": 0', '"version": 9'))
    with pytest.raises(ValueError, match="version 9; this release reads"):
        load(tmp_path / "adapter", base=moved)


def test_compensation_of_another_model_is_refused(tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path / "a")
    _, other = random_pair("llama-head-dim", tmp_path / "b")
    with pytest.raises(ValueError, match=r"2 projections of 48 inputs"):
        fold(other, some_compensation(pruned), tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_bf16_bias_is_rounded_once(tmp_path: Path) -> None:
    """|folded bias − float64 W c| <= half a bf16 step: nothing was rounded on the way."""
    _, pruned = random_pair("llama-gqa", tmp_path)
    loaded = load_model(pruned, dtype=torch.bfloat16)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "bf16")
    compensation = some_compensation(pruned)
    fold(tmp_path / "bf16", compensation, tmp_path / "restored")
    restored = load_model(tmp_path / "restored").model
    assert restored.dtype == torch.bfloat16
    for site, vector in zip(attention_sites(restored), compensation.vectors, strict=True):
        projection = restored.get_submodule(site.name)
        exact = projection.weight.double() @ vector.double()
        assert bool(((projection.bias.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all())
