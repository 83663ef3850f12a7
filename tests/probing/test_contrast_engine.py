"""The exact contrasts against one stock forward for each head, in every way that they may be cut into batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contrast_models import MODELS, contrast_model, contrast_text, naive_contrasts
from torch import Tensor, nn

from restorelcc import artifacts, contrast_engine, ops
from restorelcc.contrast_engine import head_contrasts
from restorelcc.contrast_plan import ContrastPlan, row_cost
from restorelcc.models import attention_sites, load_model

SLACK = 2e-6  # nats: float32 through four layers, two of which differ in the order of sums


def some_vectors(model: Any, seed: int = 3) -> Tensor:
    sites = attention_sites(model)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(sites), sites[0].heads, sites[0].head_dim, generator=generator, dtype=torch.float64)


def close(found: Tensor, wanted: Tensor, slack: float = SLACK) -> None:
    assert float(wanted.abs().max()) > 1e-3, "the edits must matter here"
    assert float(wanted.std()) > 1e-3, "and not be alike"
    torch.testing.assert_close(found, wanted, rtol=0, atol=slack)


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "full"])
@pytest.mark.parametrize("kind", MODELS)
def test_contrasts_are_those_of_one_forward_for_each_head(kind: str, ragged: bool) -> None:
    model, tokens = contrast_model(kind), contrast_text(ragged=ragged)
    vectors = some_vectors(model)
    wanted, base = naive_contrasts(model, tokens, vectors)
    found = head_contrasts(model, tokens, vectors)
    close(found.delta, wanted)
    torch.testing.assert_close(found.base_nll, base, rtol=0, atol=SLACK)
    assert found.weight.tolist() == [int((tokens.labels != -100).sum())]


@pytest.mark.parametrize("kind", ["gqa", "gemma2", "gpt_neox"])
def test_segments_and_weights(kind: str) -> None:
    model, tokens = contrast_model(kind), contrast_text()
    generator = torch.Generator().manual_seed(0)
    asked: dict[str, Any] = {
        "segments": torch.randint(-1, 3, tokens.ids.shape, generator=generator), "segment_count": 3,
        "weights": torch.rand(tokens.ids.shape, generator=generator) * torch.randint(0, 2, tokens.ids.shape),
    }  # fmt: skip
    vectors = some_vectors(model)
    wanted, base = naive_contrasts(model, tokens, vectors, **asked)
    found = head_contrasts(model, tokens, vectors, **asked)
    close(found.delta, wanted)
    torch.testing.assert_close(found.base_nll, base, rtol=0, atol=SLACK)


@pytest.mark.parametrize("edit", ["inject", "ablate"])
@pytest.mark.parametrize("kind", ["mha", "opt"])
def test_edits_of_a_compensated_model(kind: str, edit: str) -> None:
    model, tokens = contrast_model(kind), contrast_text()
    vectors, base = some_vectors(model), some_vectors(model, seed=4).flatten(1).float()
    wanted, _ = naive_contrasts(model, tokens, vectors, base=base, edit=edit)
    close(head_contrasts(model, tokens, vectors, base=base, edit=edit).delta, wanted)


def test_some_heads_only() -> None:
    model, tokens = contrast_model("gqa"), contrast_text()
    vectors, heads = some_vectors(model), torch.zeros(4, 4, dtype=torch.bool)
    heads[0, 1] = heads[2, 0] = heads[2, 3] = True
    all_of_them = head_contrasts(model, tokens, vectors).delta
    found = head_contrasts(model, tokens, vectors, heads=heads).delta
    assert torch.equal(found.isnan().squeeze(-1), ~heads)
    torch.testing.assert_close(found[heads], all_of_them[heads], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["sliding", "phi", "gemma2", "bloom"])
def test_memory_changes_the_batches_and_nothing_else(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = contrast_model(kind), contrast_text()
    vectors = some_vectors(model)
    plans: list[ContrastPlan] = []
    real = contrast_engine.contrast_plan

    def watched(*sizes: Any) -> ContrastPlan:
        plans.append(real(*sizes))
        return plans[-1]

    monkeypatch.setattr(contrast_engine, "contrast_plan", watched)
    much = head_contrasts(model, tokens, vectors)
    assert not any(plan.spill for plan in plans)
    least = row_cost(model, 14).flight
    for memory in (least, 2 * least, 9 * least):
        little = head_contrasts(model, tokens, vectors, memory=memory, scratch=tmp_path)
        torch.testing.assert_close(little.delta, much.delta, rtol=0, atol=1e-6)
        assert torch.equal(head_contrasts(model, tokens, vectors, memory=memory, scratch=tmp_path).delta, little.delta)
    assert len(set(plans)) >= 3
    assert any(plan.spill for plan in plans)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"a row of 14 tokens needs about [\d.]+ MB, but only 0.0 MB are allowed"):
        head_contrasts(model, tokens, vectors, memory=1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_on_disk_are_those_in_memory(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = contrast_model("gqa", dtype=dtype), contrast_text()
    vectors = some_vectors(model)
    found = {}
    for spill in (False, True):
        plan = ContrastPlan(2, 4, spill)
        monkeypatch.setattr(contrast_engine, "contrast_plan", lambda *_, plan=plan: plan)
        found[spill] = head_contrasts(model, tokens, vectors, scratch=tmp_path)
    assert torch.equal(found[True].delta, found[False].delta)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = contrast_model("gqa"), contrast_text()
    monkeypatch.setattr(artifacts, "_free_bytes", lambda _: 10)
    with pytest.raises(OSError, match=r"needs [\d,]+ bytes and 10 are free"):
        head_contrasts(model, tokens, some_vectors(model), memory=row_cost(model, 14).flight, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert all(not model.get_submodule(site.name).comp.any() for site in attention_sites(model))


def test_bfloat16_is_within_its_budget() -> None:
    """|ours − float64| <= |the naive loop in bfloat16 − float64| + slack: the edits themselves are never rounded."""
    tokens = contrast_text()
    exact_model = contrast_model("gqa", dtype=torch.bfloat16).float()
    model = contrast_model("gqa", dtype=torch.bfloat16)
    vectors = some_vectors(model)
    exact, _ = naive_contrasts(exact_model, tokens, vectors)
    naive, _ = naive_contrasts(model, tokens, vectors)
    ours = head_contrasts(model, tokens, vectors).delta
    assert float((ours - exact).abs().mean()) <= 1.1 * float((naive - exact).abs().mean()) + 1e-3


def test_the_real_small_model(stories_pair: tuple[Path, Path]) -> None:
    model = load_model(stories_pair[1]).model
    ids = torch.randint(3, 512, (3, 24), generator=torch.Generator().manual_seed(1))
    from restorelcc.text import TokenSet

    tokens = TokenSet(ids, torch.tensor([24, 17, 24]), torch.tensor([1, 4, 9]), "random")
    vectors = some_vectors(model)
    wanted, _ = naive_contrasts(model, tokens, vectors)
    close(head_contrasts(model, tokens, vectors).delta, wanted, slack=5e-6)


def modules_and_hooks(model: nn.Module) -> list[tuple[str, int, int]]:
    return [
        (name, id(module), len(module._forward_hooks) + len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("kind", ["gqa", "bloom"])
def test_nothing_is_left_in_the_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = contrast_model(kind), contrast_text()
    vectors = some_vectors(model)
    head_contrasts(model, tokens, vectors)  # the projections are replaced once
    before = modules_and_hooks(model)
    head_contrasts(model, tokens, vectors, base=vectors.flatten(1))
    assert modules_and_hooks(model) == before
    assert all(not model.get_submodule(site.name).comp.any() for site in attention_sites(model))
    calls = {"projections": 0, "heads": 0}

    def failing(name: str, real: Any, at: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            if calls[name] == at:
                raise RuntimeError("as if interrupted")
            return real(*args, **kwargs)

        return call

    for module, attribute, name, at in (
        (ops, "sparse_linear", "projections", 2), (ops, "linear_cross_entropy", "heads", 1),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, attribute, failing(name, getattr(module, attribute), at))
            with pytest.raises(RuntimeError, match="as if interrupted"):
                head_contrasts(model, tokens, vectors, base=vectors.flatten(1))
        assert modules_and_hooks(model) == before
        assert all(not model.get_submodule(site.name).comp.any() for site in attention_sites(model))


def test_earlier_layers_run_once_and_logits_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of layer l: once in the base run, and once for each batch of edits of a layer before it."""
    model, tokens = contrast_model("gqa"), contrast_text(ragged=False)
    attended = [0, 0, 0, 0]
    for site in attention_sites(model):
        def count(*_: Any, layer: int = site.layer) -> None:
            attended[layer] += 1

        model.get_submodule(site.name.rpartition(".")[0]).register_forward_hook(count)
    largest = [0]
    model.lm_head.register_forward_hook(lambda _, __, out: largest.append(out.numel()))
    head_contrasts(model, tokens, some_vectors(model))
    assert attended[0] in (1, 2)  # the very first call of a model tries its head on one token
    assert [count - attended[0] for count in attended] == [0, 1, 2, 3]
    assert max(largest) <= 2 * 61


@pytest.mark.parametrize(("wrong", "message"), [
    ({"edit": "swap"}, "unknown edit 'swap'; choose one of inject, ablate"),
    ({"vectors": torch.zeros(4, 4, 5)}, r"vectors has shape \[4, 4, 5\]; it must be \[4, 4, 8\]"),
    ({"base": torch.zeros(4, 23)}, r"base has shape \[4, 23\]; it must be \[4, 32\]"),
    ({"heads": torch.zeros(4, 4, dtype=torch.bool)}, "heads asks for no head at all"),
    ({"heads": torch.ones(4, 3, dtype=torch.bool)}, r"heads has shape \[4, 3\]; it must be \[4, 4\]"),
    ({"segments": torch.zeros(7, 13, dtype=torch.long)}, r"segments has shape \[7, 13\]; it must be \[7, 14\]"),
    ({"segments": torch.ones(7, 14, dtype=torch.long)}, "segments go up to 1; they must stay below 1"),
    ({"weights": torch.full((7, 14), -1.0)}, "weights hold -1; they must be finite and at least 0"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], message: str) -> None:
    model, tokens = contrast_model("gqa"), contrast_text()
    arguments = {"vectors": torch.zeros(4, 4, 8), **wrong}
    with pytest.raises(ValueError, match=message):
        head_contrasts(model, tokens, **arguments)
