"""Refit: against least squares written out on stored activations, under the mask, resumed, on a real model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from restoration_models import ARCHITECTURES, random_pair
from test_moments import ragged_tokens
from torch import Tensor, nn

from restorelcc import refit as module
from restorelcc.evaluation import token_nll
from restorelcc.layer_pairs import LayerPair
from restorelcc.models import load_model, prunable_linears, save_checkpoint
from restorelcc.pruning import rounded_survivors
from restorelcc.refit import RefitSettings, refit
from restorelcc.text import TokenSet, write_own_text

EXACT = RefitSettings(ridge=0.02, iterations=500, tolerance=1e-7, batch=4)


def put(model: nn.Module, changed: dict[str, Tensor]) -> nn.Module:
    for name, value in changed.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return model


def inputs_of(model: nn.Module, tokens: TokenSet) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """(inputs, outputs of every projection; hidden state before each layer and behind the last), real tokens alone."""
    xs: dict[str, Tensor] = {}
    ys: dict[str, Tensor] = {}
    real = tokens.attention_mask.bool()

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(_, args, output):  # type: ignore[no-untyped-def]
            shape = (*real.shape, -1)
            xs[name], ys[name] = args[0].reshape(shape)[real].double(), output.reshape(shape)[real].double()

        return hook

    handles = [linear.register_forward_hook(note(name)) for name, linear in prunable_linears(model)]
    layers: list[Tensor] = []
    stack = next(m for m in model.modules() if isinstance(m, nn.ModuleList))

    def note_layer(_, args, out):  # type: ignore[no-untyped-def]
        behind = out[0] if isinstance(out, tuple) else out
        layers.append((args[0][real].double(), behind[real].double()))

    handles += [layer.register_forward_hook(note_layer) for layer in stack]
    with torch.no_grad():
        model(input_ids=tokens.ids, attention_mask=tokens.attention_mask, use_cache=False)
    for handle in handles:
        handle.remove()
    return xs, ys, layers


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2", "opt", "gpt_neox"])
def test_every_projection_solves_its_least_squares(kind: str, tmp_path: Path) -> None:
    """The refitted model's own activations, stored, give each matrix back by a factorisation of each row."""
    dense, pruned = random_pair(kind, tmp_path)
    tokens = ragged_tokens(96, rows=12)
    names = [name for name, _ in prunable_linears(load_model(pruned).model)]
    got = refit(dense, pruned, tokens, work=tmp_path / "work", settings=EXACT)
    before = dict(prunable_linears(load_model(pruned).model))
    _, targets, their_layers = inputs_of(load_model(dense).model, tokens)
    ours, outputs, our_layers = inputs_of(put(load_model(pruned).model, got), tokens)
    for index in range(2):
        inside = [name for name in names if f"layers.{index}." in name]
        attention = next(n for n in inside if n.endswith(("o_proj", "out_proj", "attention.dense")))
        ffn = inside[-1]
        for name in inside:
            x, t = ours[name], targets[name].clone()
            if name in (attention, ffn):
                t += their_layers[index][0] - our_layers[index][0]
            if name == ffn:
                t += targets[attention] - outputs[attention]
            start, shifted = before[name].weight.detach().double(), f"{name}.bias" in got
            assert shifted == (before[name].bias is not None)
            if shifted:
                mean_x, mean_t = x.mean(0), t.mean(0)
                x, t = x - mean_x, t - mean_t
            gram, cross = x.T @ x, t.T @ x
            ridge = EXACT.ridge * gram.diagonal().mean()
            weight = got[f"{name}.weight"].double()
            assert torch.equal(weight != 0, start != 0), name
            # what remains is orthogonal to every surviving column, but for the pull of the ridge
            left = cross - weight @ gram - ridge * (weight - start)
            first = (cross - start @ gram) * (start != 0)
            assert float((left * (start != 0)).norm()) <= 2e-3 * float(first.norm()), name
            if shifted:
                bias = mean_t - weight @ mean_x
                assert float((got[f"{name}.bias"] - bias).abs().max()) <= 1e-3 * float(bias.abs().max() + 1), name


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_gets_closer_to_the_dense_model(kind: str, tmp_path: Path) -> None:
    dense, pruned = random_pair(kind, tmp_path)
    tokens = ragged_tokens(96, rows=40)
    got = refit(dense, pruned, tokens, work=tmp_path / "work")
    last = [inputs_of(model, tokens)[2][-1][1] for model in (
        load_model(dense).model, load_model(pruned).model, put(load_model(pruned).model, got))]  # fmt: skip
    assert float((last[2] - last[0]).norm()) < 0.75 * float((last[1] - last[0]).norm())


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt_neox"])
def test_dense_outputs_kept_or_computed_anew_give_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, pruned = random_pair(kind, tmp_path)
    tokens, passes = ragged_tokens(96, rows=20), []
    run = module._LayerRefit._run_dense

    def counted(self, batch, names, *, whole):  # type: ignore[no-untyped-def]
        passes.append(whole)
        return run(self, batch, names, whole=whole)

    monkeypatch.setattr(module._LayerRefit, "_run_dense", counted)
    kept = refit(dense, pruned, tokens, work=tmp_path / "kept")
    batches = 2 * math.ceil(len(tokens) / RefitSettings().batch)  # of both layers
    assert passes == [True] * batches
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    anew = refit(dense, pruned, tokens, work=tmp_path / "anew")
    assert passes.count(True) == 2 * batches
    assert passes.count(False) > batches
    assert kept.keys() == anew.keys()
    assert all(torch.equal(kept[name], anew[name]) for name in kept)


def test_bf16_checkpoints_keep_type_and_mask(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    loaded = load_model(pruned)
    save_checkpoint(loaded.model.bfloat16(), loaded.tokenizer, tmp_path / "half")
    got = refit(dense, tmp_path / "half", ragged_tokens(96, rows=20), work=tmp_path / "work")
    for name, linear in prunable_linears(load_model(tmp_path / "half").model):
        assert got[f"{name}.weight"].dtype == torch.bfloat16
        assert torch.equal(got[f"{name}.weight"] != 0, linear.weight != 0)


def test_a_survivor_stays_one_however_small() -> None:
    weight = torch.tensor([[1.0, 1e-45, 0.0, -1e-42]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kept = rounded_survivors(weight, weight != 0, dtype)
        assert (kept != 0).tolist() == [[True, True, False, True]]
        assert torch.equal(kept, kept.to(dtype).float())


def test_a_killed_refit_goes_on_at_its_layer(
    stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, pruned = stories_pair
    tokens = ragged_tokens(512, rows=8, length=32)
    whole = refit(dense, pruned, tokens, work=tmp_path / "whole")
    real = module._LayerRefit.run
    ran: list[int] = []

    def dies_in_layer_three(self: module._LayerRefit) -> dict[str, Tensor]:
        ran.append(self.pair.index)
        made = real(self)
        if self.pair.index == 3 and ran.count(3) == 1:
            raise KeyboardInterrupt  # after it wrote hidden states, before it was recorded
        return made

    monkeypatch.setattr(module._LayerRefit, "run", dies_in_layer_three)
    with pytest.raises(KeyboardInterrupt):
        refit(dense, pruned, tokens, work=tmp_path / "killed")
    again = refit(dense, pruned, tokens, work=tmp_path / "killed")
    assert ran == [0, 1, 2, 3, 3, 4]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_real_model_gets_its_quality_back(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    dense, pruned = stories_pair
    loaded = load_model(dense)
    text = write_own_text(loaded.model, loaded.tokenizer, tokens=6000, window=96, seed=0)
    calibration, held = text.split(0.3, seed=0)
    got = refit(dense, pruned, calibration, work=tmp_path / "work")
    nll = [token_nll(model, held).mean for model in (
        loaded.model, load_model(pruned).model, put(load_model(pruned).model, got))]  # fmt: skip
    assert (nll[1] - nll[2]) > 0.3 * (nll[1] - nll[0])


def test_refused(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    with pytest.raises(ValueError, match="holds token"):
        refit(dense, pruned, ragged_tokens(512), work=tmp_path / "w")


def test_a_layer_pair_reads_its_text_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    seen: list[list[Tensor]] = []
    real = module._LayerRefit.run

    def twice(self: module._LayerRefit) -> dict[str, Tensor]:
        pair: LayerPair = self.pair
        for _ in range(2):
            seen.append([batch.entered[1].clone() for batch in pair.batches()])
        return real(self)

    monkeypatch.setattr(module._LayerRefit, "run", twice)
    refit(dense, pruned, ragged_tokens(96), work=tmp_path / "work")
    for first, second in (seen[:2], seen[2:]):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
