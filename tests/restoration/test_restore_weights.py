"""What `restore` holds in memory while it changes weights, and that a model measured by layers has the same NLL."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from restoration_models import random_pair
from safetensors import safe_open
from test_moments import ragged_tokens
from torch import Tensor, nn

from restorelcc import restore_weights, step_runner
from restorelcc.artifacts import SilentProgress
from restorelcc.evaluation import token_nll
from restorelcc.fold_target import FoldTarget
from restorelcc.models import load_model, prunable_linears, save_checkpoint
from restorelcc.recipes import RECIPES
from restorelcc.refit import _LayerRefit, refit
from restorelcc.restore import restore
from restorelcc.restored_checkpoint import retargeted
from restorelcc.resume import mark_finished
from restorelcc.streamed_nll import streamed_nll
from restorelcc.tensor_file import load_tensors, save_tensors


def mapped(path: Path, tensor: Tensor) -> bool:
    """Whether the tensor's memory is the file's pages."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.split(maxsplit=5)[5:] in ([str(path)], [f"{path} (deleted)"])
    return False


def whole_models() -> list[nn.Module]:
    """Models that are alive with the weights of more than one decoder layer."""
    gc.collect()
    found = []
    for module in (item for item in gc.get_objects() if issubclass(type(item), nn.ModuleList)):
        held = [layer for layer in module if any(not parameter.is_meta for parameter in layer.parameters())]
        found += [module] if len(held) > 1 else []
    return found


def halved(pair: tuple[Path, Path]) -> tuple[Path, Path]:
    for path in pair:
        loaded = load_model(path, dtype=torch.bfloat16)
        save_checkpoint(loaded.model, loaded.tokenizer, path, overwrite=True)
    return pair


def words(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text(" ".join(f"w{3 + (7 * i + i * i // 5) % 90}" for i in range(600)))
    return path


def test_no_whole_model_is_alive_while_its_layers_are_refitted_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, pruned = halved(random_pair("llama-gqa", tmp_path))
    seen: dict[str, int] = {}
    before = len(whole_models())
    assert len(whole_models()) == before
    kept = load_model(pruned)
    assert len(whole_models()) == before + 1, "what this test counts"
    del kept

    def noting(name: str) -> None:
        real = getattr(restore_weights, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen[name] = len(whole_models()) - before
            return real(*arguments, **options)

        monkeypatch.setattr(restore_weights, name, call)

    for name in ("refit", "streamed_nll"):
        noting(name)
    restore(dense, pruned, tmp_path / "out", recipe="fast", data=words(tmp_path), tokens=512, window=16)
    assert seen == {"refit": 0, "streamed_nll": 0}


def test_a_refit_is_stored_in_the_types_of_the_checkpoint_and_handed_on_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, pruned = halved(random_pair("opt", tmp_path))
    types: dict[str, set[str]] = {}
    real = restore_weights.save_tensors

    def note(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                types[file.name] = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118

    def saved(path: Path, kind: str, tensors: Any) -> None:
        if kind == "refit":
            layers = path.parent / "refit.layers"
            note(layers)
            for name, tensor in tensors.items():
                index = int(name.split(".layers.")[1].split(".")[0])
                assert mapped(layers / f"layer_{index:04d}.safetensors", tensor), name
        real(path, kind, tensors)

    found: list[dict[str, Tensor]] = []
    search = restore_weights._line_search

    def searched(pruned: Path, solved: Any, *rest: Any) -> Any:
        found.append(dict(solved))
        return search(pruned, solved, *rest)

    monkeypatch.setattr(restore_weights, "save_tensors", saved)
    monkeypatch.setattr(restore_weights, "_line_search", searched)
    restore(dense, pruned, tmp_path / "out", recipe="fast", data=words(tmp_path), tokens=512, window=16)
    step = tmp_path / "out.work" / "refit.safetensors"
    note(step.parent)
    names = ("layer_0000.safetensors", "layer_0001.safetensors", step.name)
    assert {name: types[name] for name in names} == {name: {"BF16"} for name in names}
    assert any(name.endswith(".bias") for name in found[0])
    assert all(mapped(step, tensor) for tensor in found[0].values())


def test_killed_before_its_mark_a_refit_goes_on_from_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when these are removed nothing is mapped from them, for a network file system would keep such files."""
    dense, pruned = random_pair("llama-gqa", tmp_path)
    layers = tmp_path / "out.work" / "refit.layers"

    class Killed(BaseException):
        pass

    def killed(mark: Path, *rest: Any) -> None:
        if mark.name == "refit.json":
            raise Killed
        mark_finished(mark, *rest)

    def again() -> None:
        restore(dense, pruned, tmp_path / "out", recipe="fast", data=words(tmp_path), tokens=512, window=16)

    with monkeypatch.context() as patched:
        patched.setattr(step_runner, "mark_finished", killed)
        with pytest.raises(Killed):
            again()
    refitted: list[int] = []
    run = _LayerRefit.run

    def noted(layer: _LayerRefit) -> dict[str, Tensor]:
        refitted.append(layer.pair.index)
        return run(layer)

    monkeypatch.setattr(_LayerRefit, "run", noted)
    remove = shutil.rmtree

    def removed(path: Any, **options: Any) -> None:
        assert str(layers) not in Path("/proc/self/maps").read_text()
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", removed)
    again()
    assert refitted == []
    assert not layers.exists()


def test_types_that_differ_inside_one_checkpoint_stay_as_they_are(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    loaded = load_model(pruned)
    second = loaded.model.model.layers[1]
    second.mlp.up_proj.bfloat16()
    second.self_attn.half()
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "mixed")
    got = refit(dense, tmp_path / "mixed", ragged_tokens(96, rows=12), work=tmp_path / "work")
    for name, linear in prunable_linears(loaded.model):
        assert got[f"{name}.weight"].dtype == linear.weight.dtype, name
        assert torch.equal(got[f"{name}.weight"] != 0, linear.weight != 0), name


def test_loaded_tensors_and_those_of_a_model_that_takes_them_are_the_files_pages(tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    model = load_model(pruned).model
    changed = {f"{name}.weight": 2 * linear.weight for name, linear in prunable_linears(model)}
    path = tmp_path / "refit.safetensors"
    save_tensors(path, "refit", changed)
    read = load_tensors(path, "refit")
    made = retargeted(model, read, FoldTarget("unchanged", "llama as it is", model.config))
    for name, value in changed.items():
        assert torch.equal(read[name], value)
        assert mapped(path, read[name]), name
        assert mapped(path, made.get_parameter(name)), name


@pytest.mark.parametrize("kind", [
    "llama-mha-untied", "llama-head-dim", "mistral-sliding", "qwen3", "opt", "opt-projected", "gpt_neox", "falcon",
    "bloom",
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_by_layer_the_nll_is_that_of_the_whole_model(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, pruned = random_pair(kind, tmp_path)
    loaded = load_model(pruned, dtype=dtype)
    save_checkpoint(loaded.model, loaded.tokenizer, pruned, overwrite=True)
    tokens = ragged_tokens(96, rows=11, length=24)
    model = load_model(pruned, dtype=torch.float32).model
    assert torch.equal(streamed_nll(pruned, tokens).nll_sum, token_nll(model, tokens).nll_sum)

    def changed(name: str, value: Tensor) -> Tensor:
        return value * 1.5 if name.endswith("weight") and ".1." in name else value

    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for name, parameter in layers[1].named_parameters():
        if name.endswith("weight"):
            parameter.mul_(1.5)
    assert torch.equal(streamed_nll(pruned, tokens, changed=changed).nll_sum, token_nll(model, tokens).nll_sum)


def test_text_that_is_not_for_the_model_is_refused_when_streamed(tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    with pytest.raises(ValueError, match="holds token"):
        streamed_nll(pruned, ragged_tokens(512))
    none = ragged_tokens(96)
    with pytest.raises(ValueError, match=r"no token of .* is to be predicted"):
        streamed_nll(pruned, replace(none, response_start=none.lengths))


def test_a_survivor_that_a_part_of_the_refit_would_cancel_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """w = −w° leaves nothing at a half; the mask must not lose these weights."""
    dense, pruned = halved(random_pair("llama-gqa", tmp_path))

    def opposite(*_: Any, **__: Any) -> dict[str, Tensor]:
        (tmp_path / "out.work" / "refit.layers").mkdir()
        return {f"{name}.weight": -linear.weight for name, linear in prunable_linears(load_model(pruned).model)}

    monkeypatch.setattr(restore_weights, "refit", opposite)
    monkeypatch.setattr(restore_weights, "SCALES", (0.5,))
    nll = iter([3.0, 4.0, 1.0])
    stock = restore_weights.streamed_nll
    monkeypatch.setattr(restore_weights, "ceiling", lambda value: value)
    monkeypatch.setattr(
        restore_weights, "streamed_nll",
        lambda *a, **k: replace(stock(*a, **k), nll_sum=torch.tensor([next(nll)]), count=torch.tensor([1])),
    )  # fmt: skip
    report = restore(
        dense, pruned, tmp_path / "out", recipe=RECIPES["fast"], data=words(tmp_path), tokens=512, window=16
    )
    assert report.fold["matrices_compared"] == 14


@pytest.mark.parametrize("helps", [True, False])
def test_the_bar_of_the_scales_ends_full(helps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the whole refit is taken, or each part of it measured as well."""
    _, pruned = random_pair("llama-gqa", tmp_path)
    nll = iter([3.0, 2.0 if helps else 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(restore_weights, "streamed_nll", lambda *_, **__: SimpleNamespace(mean=next(nll)))
    bars: list[tuple[str, int, list[int]]] = []

    class Told(SilentProgress):
        @contextmanager
        def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
            bars.append((description, total, []))
            yield bars[-1][2].append

    _, search = restore_weights._line_search(pruned, {}, ragged_tokens(96), Told())
    assert [row["refit_scale"] for row in search] == ([0.0, 1.0] if helps else [0.0, 1.0, 0.75, 0.5, 0.25])
    (description, total, advances), = bars
    assert (description, total, sum(advances)) == ("refit scale", 5, 5)


@pytest.mark.parametrize("nll", [math.nan, math.inf])
def test_no_scale_is_chosen_beside_a_pruned_model_without_an_nll(
    nll: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """min() would take the first of the scales beside NaN, and anything at all beside infinity."""
    _, pruned = random_pair("llama-gqa", tmp_path)
    found = iter([nll, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(restore_weights, "streamed_nll", lambda *_, **__: SimpleNamespace(mean=next(found)))
    with pytest.raises(ValueError, match=f"has a held-out loss of {nll} before anything is changed"):
        restore_weights._line_search(pruned, {}, ragged_tokens(96), SilentProgress())
    assert next(found) == 2.0, "no scale is measured"


@pytest.mark.parametrize(("recipe", "choice"), [
    ("fast", {}), (replace(RECIPES["best"], refit=None), {}), ("compensate", {}), ("compensate", {"train": "none"}),
])  # fmt: skip
def test_a_pruned_model_that_overflows_is_refused(recipe: Any, choice: dict[str, Any], tmp_path: Path) -> None:
    """Its numbers are finite, what it computes behind the last layer is not: only the NLL can tell."""
    dense, pruned = random_pair("llama-gqa", tmp_path)
    loaded = load_model(pruned)
    loaded.model.model.norm.weight.fill_(3e38)
    save_checkpoint(loaded.model, loaded.tokenizer, pruned, overwrite=True)
    with pytest.raises(ValueError, match=r"a held-out loss of nan .* or its activations overflow: make it again"):
        restore(
            dense, pruned, tmp_path / "out", recipe=recipe, data=words(tmp_path), tokens=512, window=16, **choice
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
