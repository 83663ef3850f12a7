"""FFN sites: moments, components, training and fold against float64 references, alone and beside attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ffn_sites import IDS, down_projections, exact_logits, float_logits, some_vectors
from restoration_models import ARCHITECTURES, FOLDABLE, random_pair, small_config
from stock_process import stock_logits
from test_moments import ragged_tokens
from torch import Tensor

from restorelcc import load, training
from restorelcc.adapter import save_adapter
from restorelcc.compensation import apply_compensation, vector_slots
from restorelcc.components import Components, lost_components
from restorelcc.fold import fold
from restorelcc.fold_target import fold_target
from restorelcc.models import load_model
from restorelcc.moments import Moments, collect_moments, counted_positions
from restorelcc.probes import head_scores
from restorelcc.sites import chained, model_sites, places_of
from restorelcc.text import TokenSet
from restorelcc.training import TrainingSettings, closed_form, summed_nll, train_compensation

FAST = TrainingSettings(learning_rates=(0.05,), epochs=2.0, batch_tokens=256, evaluations=4)


def stored_differences(dense: Path, pruned: Path, tokens: TokenSet, keep: Tensor) -> list[Tensor]:
    """ΔY [tokens, E] float64 of each layer, from whole stock models with hooks."""
    layers: list[list[Tensor]] = []
    for path in (dense, pruned):
        model = load_model(path).model
        seen: list[Tensor] = []
        for module in down_projections(model):
            # copied at once: a stock layer may write into it; OPT hands rows on flat
            module.register_forward_hook(lambda _, __, y, seen=seen: seen.append(y.clone().reshape(*keep.shape, -1)))
        with torch.no_grad():
            model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False)
        layers.append([y[keep].double() for y in seen])
    return [d - p for d, p in zip(*layers, strict=True)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_moments_of_ffn_outputs_equal_stock_forward(kind: str, tmp_path: Path) -> None:
    dense, pruned = random_pair(kind, tmp_path)
    tokens = ragged_tokens(96)
    both = collect_moments(dense, pruned, tokens, out=tmp_path / "b", sites="both", batch=2, samples=10**6)
    alone = collect_moments(dense, pruned, tokens, out=tmp_path / "a", sites="attention", batch=2, samples=10**6)
    ffn = both.part("ffn")
    assert both.places == ("attention", "ffn")
    assert torch.equal(both.gram, alone.gram)
    assert ffn.gram.shape == (2, 1, 32, 32)
    assert ffn.samples is not None
    stored = stored_differences(dense, pruned, tokens, counted_positions(tokens, "all", 1))
    assert len(stored) == 2
    for layer, dy in enumerate(stored):
        assert int(ffn.count[layer]) == dy.shape[0]
        gram, scale = dy.T @ dy, float((dy.T @ dy).abs().max())
        # float32 activations of a batch of 2 and of 5 rows differ in their last bits
        assert float((ffn.gram[layer, 0] - gram).abs().max()) <= 2e-5 * scale
        assert float((ffn.mean[layer, 0] - dy.mean(0)).abs().max()) <= 2e-5 * scale**0.5
        assert float((ffn.samples[layer, 0] - dy).abs().max()) <= 2e-5 * float(dy.abs().max())


def test_components_equal_svd_of_stored_differences(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    tokens = ragged_tokens(512, rows=16, length=64, seed=3)
    moments = collect_moments(*stories_pair, tokens, out=tmp_path / "m", sites="ffn", batch=16)
    parts = lost_components(moments)
    few = lost_components(moments, rank=3)
    assert parts.places == ("ffn",)
    for layer, dy in enumerate(stored_differences(*stories_pair, tokens, counted_positions(tokens, "all", 1))):
        u, sigma, vt = torch.linalg.svd(dy, full_matrices=False)
        assert float((parts.singular_values[layer, 0] - sigma).abs().max()) <= 1e-5 * float(sigma[0])
        assert float((parts.vectors[layer, 0] - dy.mean(0)).abs().max()) <= 1e-5 * float(sigma[0])
        gap = float((sigma[2] ** 2 - sigma[3] ** 2) / sigma[0] ** 2)
        first = ((sigma * u.mean(0))[:3, None] * vt[:3]).sum(0)
        budget = min(1.0, 4e-5 / max(gap, 1e-30)) * float(dy.mean(0).norm()) + 1e-6 * float(sigma[0])
        assert float((few.vectors[layer, 0] - first).abs().max()) <= budget
        assert float(parts.unit[layer, 0]) == pytest.approx(float(dy.square().mean().sqrt()), rel=1e-5)
    with pytest.raises(ValueError, match=r"rank 65 is outside 1\.\.64, the width of the FFN's output"):
        lost_components(moments, rank=65)


@pytest.mark.parametrize("sites", ["ffn", "both"])
@pytest.mark.parametrize("kind", FOLDABLE)
def test_folded_equals_hooked_equals_float64(kind: str, sites: str, tmp_path: Path) -> None:
    _, pruned = random_pair(kind, tmp_path)
    compensation = some_vectors(pruned, sites)
    exact = exact_logits(pruned, compensation)
    bound = 1e-5 * float(exact.abs().max())
    hooked = float_logits(apply_compensation(load_model(pruned).model, compensation))
    assert float((exact - float_logits(load_model(pruned).model)).abs().max()) > 100 * bound, "it must matter here"
    assert float((hooked - exact).abs().max()) <= bound
    target = fold_target(small_config(kind), places=places_of(sites))
    if kind == "qwen3":
        assert target.kind == "adapter"
        assert "the stock qwen3 class has no bias at the last projections of its FFNs, and no stock" in target.reason
        with pytest.raises(ValueError, match=r"last projections of its FFNs.*use --fold none"):
            fold(pruned, compensation, tmp_path / "restored")
        assert not (tmp_path / "restored").exists()
        return
    report = fold(pruned, compensation, tmp_path / "restored")
    assert report.kind == target.kind
    assert report.biases == 2 * len(compensation.parts)
    restored = load_model(tmp_path / "restored").model
    assert float((float_logits(restored) - exact).abs().max()) <= bound
    before = load_model(pruned).model
    for name, vector in zip(compensation.part("ffn").sites, compensation.part("ffn").vectors, strict=True):
        own = before.get_submodule(name).bias
        want = vector if own is None else own + vector
        assert torch.equal(restored.get_submodule(name).bias, want)


@pytest.mark.parametrize(("kind", "sites", "name"), [
    ("llama-gqa", "ffn", "LlamaForCausalLM"), ("qwen2", "both", "LlamaForCausalLM"),
    ("mistral", "ffn", "LlamaForCausalLM"), ("opt", "both", "OPTForCausalLM"),
])  # fmt: skip
def test_a_stock_process_computes_the_same(kind: str, sites: str, name: str, tmp_path: Path) -> None:
    _, pruned = random_pair(kind, tmp_path)
    compensation = some_vectors(pruned, sites)
    fold(pruned, compensation, tmp_path / "restored")
    exact = exact_logits(pruned, compensation)
    got, found, _ = stock_logits(tmp_path / "restored", IDS)
    assert found == name
    assert float((got - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize(("kind", "ffn", "both"), [
    ("llama-gqa", "down_proj_bias", "output_biases"), ("llama-attention-bias", "down_proj_bias", "output_biases"),
    ("mistral", "llama_reexport", "llama_reexport"), ("qwen2", "llama_reexport", "llama_reexport"),
    ("mistral-sliding", "adapter", "adapter"), ("qwen2-sliding", "adapter", "adapter"),
    ("qwen3", "adapter", "adapter"), ("opt", "down_proj_bias", "output_biases"),
    ("gpt_neox", "down_proj_bias", "output_biases"),
])  # fmt: skip
def test_where_it_can_live(kind: str, ffn: str, both: str) -> None:
    config = small_config(kind)
    assert fold_target(config, places=("ffn",)).kind == ffn
    assert fold_target(config, places=("attention", "ffn")).kind == both


def test_no_more_biases_than_needed() -> None:
    """Mistral has no biases at q, k and v, so FFNs alone add none there; Qwen2's need attention_bias to stay."""
    added = fold_target(small_config("mistral"), places=("ffn",)).new_parameters
    assert len(added) == 6
    assert all(".mlp." in name for name in added)
    config = fold_target(small_config("qwen2"), places=("ffn",)).config
    assert (config.attention_bias, config.mlp_bias) == (True, True)


def test_mixtures_of_experts_are_refused() -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                           num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    with pytest.raises(ValueError, match=r"no single FFN's last projection found in model\.layers\.0 of Mixtral"):
        fold_target(config, places=("ffn",))


@pytest.mark.parametrize("sites", ["ffn", "both"])
@pytest.mark.parametrize("kind", ["qwen2-sliding", "qwen3"])
def test_an_adapter_holds_what_no_checkpoint_can(kind: str, sites: str, tmp_path: Path) -> None:
    _, pruned = random_pair(kind, tmp_path)
    compensation = some_vectors(pruned, sites)
    save_adapter(pruned, compensation, tmp_path / "adapter")
    exact = exact_logits(pruned, compensation)
    got = float_logits(load(tmp_path / "adapter"))
    assert float((got - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_the_gradient_of_an_ffn_vector_is_that_of_its_outputs(kind: str, tmp_path: Path) -> None:
    """dL/dc = Σ_tokens dL/dy, against the stock model in float64."""
    _, pruned = random_pair(kind, tmp_path)
    tokens = ragged_tokens(96)
    model = load_model(pruned).model
    slots = vector_slots(model, "ffn")
    for slot in slots:
        slot.requires_grad_(True)
    ours = torch.autograd.grad(summed_nll(model, tokens)[0], slots)
    exact = load_model(pruned, dtype=torch.float64).model
    zeros = [torch.zeros(32, dtype=torch.float64, requires_grad=True) for _ in slots]
    for module, zero in zip(down_projections(exact), zeros, strict=True):
        module.register_forward_hook(lambda _, __, y, zero=zero: y + zero)
    logits = exact(input_ids=tokens.ids, attention_mask=tokens.attention_mask).logits
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens.labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    theirs = torch.autograd.grad(nll, zeros)
    for ours_of, theirs_of in zip(ours, theirs, strict=True):
        scale = float(theirs_of.abs().max())
        assert scale > 0
        assert float((ours_of.double() - theirs_of).abs().max()) <= 1e-4 * scale


@pytest.fixture(scope="module")
def words(stories_pair: tuple[Path, Path]) -> TokenSet:
    """What the dense model writes itself: 24 windows of 64 tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = torch.full((24, 1), 1)
        ids = load_model(stories_pair[0]).model.generate(
            start, max_length=64, min_length=64, do_sample=True, top_k=0, pad_token_id=2
        )
    return TokenSet(ids, torch.full((24,), 64), torch.ones(24, dtype=torch.long), "own text")


@pytest.fixture(scope="module")
def moments(stories_pair: tuple[Path, Path], words: TokenSet, tmp_path_factory: pytest.TempPathFactory) -> Moments:
    return collect_moments(*stories_pair, words, out=tmp_path_factory.mktemp("m") / "m", sites="both")


@pytest.fixture(scope="module")
def lost(moments: Moments) -> Components:
    return lost_components(moments)


def all_units(lost: Components) -> Tensor:
    return torch.ones(lost.unit.shape, dtype=torch.bool)


@pytest.mark.parametrize("sites", ["ffn", "both"])
def test_training_lowers_the_heldout_nll_and_repeats(
    sites: str, stories_pair: tuple[Path, Path], words: TokenSet, lost: Components
) -> None:
    parts = chained([lost.part(place) for place in places_of(sites)])
    results = []
    for _ in range(2):
        model = load_model(stories_pair[1]).model
        results.append(train_compensation(model, words, parts, all_units(parts), FAST))
    first, again = results
    assert first.heldout_after < first.heldout_before - 0.05
    assert first.compensation.where == sites
    for part, other in zip(first.compensation.parts, again.compensation.parts, strict=True):
        assert torch.equal(part.vectors, other.vectors)
        assert bool((part.vectors.abs().sum(1) > 0).all()), "every layer's vector moved"
        held = torch.stack([slot.detach() for slot in _held(model, part.place)])
        assert torch.equal(held, part.vectors), "the model is left with what was learnt"


def _held(model: torch.nn.Module, place: str) -> list[Tensor]:
    modules = [model.get_submodule(site.name) for site in model_sites(model, place)]
    return [module.comp if place == "attention" else module.shift for module in modules]


def test_a_share_of_heads_leaves_every_ffn(stories_pair: tuple[Path, Path], words: TokenSet, lost: Components) -> None:
    heads = torch.zeros(5, 8, dtype=torch.bool)
    heads[2, 3] = True
    quick = TrainingSettings(learning_rates=(0.05,), batch_tokens=256, evaluations=1, steps=2)
    found = train_compensation(load_model(stories_pair[1]).model, words, lost, heads, quick).compensation
    assert torch.equal(found.vectors.view(5, 8, -1).abs().sum(-1) > 0, heads)
    assert bool(found.part("ffn").heads.all())
    assert bool(found.part("ffn").vectors.any())


@pytest.mark.parametrize("sites", ["ffn", "both"])
def test_closed_form_is_never_worse_and_is_the_scaled_mean(
    sites: str, stories_pair: tuple[Path, Path], words: TokenSet, lost: Components, moments: Moments
) -> None:
    parts = chained([lost.part(place) for place in places_of(sites)])
    model = load_model(stories_pair[1]).model
    found = closed_form(model, words, parts, all_units(parts), scales=(0.0, 0.03, 0.1))
    assert found.heldout_after <= found.heldout_before
    scale = float(found.compensation.metadata["scale"])
    for place in places_of(sites):
        want = scale * moments.part(place).mean.flatten(1)
        assert torch.allclose(found.compensation.part(place).vectors.double(), want, rtol=1e-5, atol=1e-6)


def test_another_compensation_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    model = apply_compensation(load_model(pruned).model, some_vectors(pruned, "both"))
    for sites in ("attention", "ffn"):
        other = some_vectors(pruned, sites, seed=5)
        got, exact = float_logits(apply_compensation(model, other)), exact_logits(pruned, other)
        assert float((got - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


def test_a_killed_collection_goes_on_at_its_layer(
    stories_pair: tuple[Path, Path], words: TokenSet, moments: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import moments as module

    real = module._one_layer
    ran: list[int] = []

    def dies_in_layer_three(pair, *rest):  # type: ignore[no-untyped-def]
        ran.append(pair.index)
        found = real(pair, *rest)
        if ran == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(module, "_one_layer", dies_in_layer_three)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        collect_moments(*stories_pair, words, out=out, sites="both")
    resumed = collect_moments(*stories_pair, words, out=out, sites="both")
    assert ran == [0, 1, 2, 3, 3, 4]
    read = Moments.load(out)
    for one, other, third in zip(moments.parts, resumed.parts, read.parts, strict=True):
        assert torch.equal(one.gram, other.gram)
        assert torch.equal(one.total, other.total)
        assert torch.equal(one.gram, third.gram)


def test_work_of_other_sites_is_not_gone_on_with(
    stories_pair: tuple[Path, Path], words: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import moments as module

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    out, real = tmp_path / "m", module._one_layer
    monkeypatch.setattr(module, "_one_layer", lambda pair, *rest: dies() if pair.index == 2 else real(pair, *rest))
    with pytest.raises(KeyboardInterrupt):
        collect_moments(*stories_pair, words, out=out, sites="attention")
    monkeypatch.setattr(module, "_one_layer", real)
    assert collect_moments(*stories_pair, words, out=out, sites="ffn").gram.shape[:2] == (5, 1)


def test_probes_score_heads_alone(stories_pair: tuple[Path, Path], words: TokenSet, lost: Components) -> None:
    model = load_model(stories_pair[1]).model
    both = head_scores("attribution", model, words.subset([0, 1]), lost).scores
    alone = head_scores("attribution", model, words.subset([0, 1]), lost.part("attention")).scores
    assert torch.equal(both, alone)
    with pytest.raises(ValueError, match="probes score attention heads, and these components are of ffn alone"):
        head_scores("attribution", model, words, lost.part("ffn"))


def test_components_of_another_model_are_refused(tmp_path: Path, lost: Components) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    part = lost.part("ffn")
    with pytest.raises(ValueError, match="of 5 layers with 1 FFN outputs of size 64, the model has 2 with 1 of size"):
        training.closed_form(load_model(pruned).model, ragged_tokens(96), part, all_units(part))
    _, other = random_pair("opt", tmp_path / "opt")
    model = load_model(other).model
    with pytest.raises(ValueError, match="made for 2 projections of 32 outputs and 1 vector a layer, the model has 2"):
        apply_compensation(model, some_vectors(pruned, "ffn"))
