"""FFN sites through files, adapters, restore() and the command line; files of attention alone stay what they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import refuse, succeed
from ffn_sites import IDS, exact_logits, float_logits
from restoration_models import random_pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from restorelcc import load
from restorelcc.adapter import save_adapter
from restorelcc.compensation import Compensation, apply_compensation
from restorelcc.components import Components, lost_components
from restorelcc.models import load_model
from restorelcc.moments import Moments
from restorelcc.pack_checkpoint import pack_checkpoint
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.sites import chained, places_of
from restorelcc.training import TrainingSettings

LAYERS = 2
SMALL: dict[str, Any] = {
    "recipe": "compensate", "tokens": 1536, "window": 64,
    "training": TrainingSettings(learning_rates=(0.02, 0.05), search_steps=2, batch_tokens=256, evaluations=3),
}  # fmt: skip


def moments(sites: str) -> Moments:
    parts = []
    for place in places_of(sites):
        units, size = (4, 8) if place == "attention" else (1, 32)
        z = torch.randn(9, LAYERS, units, size, dtype=torch.float64)
        gram = torch.einsum("tlhd,tlhe->lhde", z, z)
        samples = torch.randn(LAYERS, units, 3, size)
        parts.append(Moments(torch.full((LAYERS,), 9), z.sum(0), gram, {}, samples, place))
    return chained(parts)


def compensation(sites: str) -> Compensation:
    parts = []
    for place in places_of(sites):
        units = 4 if place == "attention" else 1
        names = [f"model.layers.{i}.{'self_attn.o_proj' if units == 4 else 'mlp.down_proj'}" for i in range(LAYERS)]
        heads = torch.ones(LAYERS, units, dtype=torch.bool)
        parts.append(Compensation(torch.randn(LAYERS, 32), heads, names, place=place))
    return chained(parts)


KINDS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "moments": (moments, Moments), "components": (lambda sites: lost_components(moments(sites)), Components),
    "compensation": (compensation, Compensation),
}  # fmt: skip


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


@pytest.mark.parametrize("sites", ["attention", "ffn", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_again(kind: str, sites: str, tmp_path: Path) -> None:
    make, record = KINDS[kind]
    made, path = make(sites), tmp_path / "a.safetensors"
    made.save(path)
    for _ in range(2):
        again = record.load(path)
        assert again.where == sites
        for part, other in zip(made.parts, again.parts, strict=True):
            for name, value in vars(part).items():
                if isinstance(value, Tensor):
                    assert torch.equal(value, getattr(other, name)), name
            assert getattr(part, "sites", None) == getattr(other, "sites", None)
        again.save(path)
    again.part(again.place).save(path)  # of both: without what its metadata said of the other
    assert record.load(path).where == again.place
    names = contents(path)[0]
    assert all(name.startswith("ffn.") == (again.place == "ffn") for name in names)


def test_files_of_attention_alone_are_as_they_were(tmp_path: Path) -> None:
    """Written by hand as version 0 was before there were other sites: plain names, no word of places."""
    z = torch.randn(9, LAYERS, 4, 8, dtype=torch.float64)
    tensors = {"count": torch.full((LAYERS,), 9), "total": z.sum(0), "gram": torch.einsum("tlhd,tlhe->lhde", z, z)}
    save_file(tensors, tmp_path / "m", metadata={"kind": "moments", "version": "0", "positions": "all"})
    assert torch.equal(Moments.load(tmp_path / "m").gram, tensors["gram"])
    assert Moments.load(tmp_path / "m").places == ("attention",)
    names = [f"model.layers.{i}.self_attn.o_proj" for i in range(LAYERS)]
    vectors = {"vectors": torch.randn(LAYERS, 32), "heads": torch.ones(LAYERS, 4, dtype=torch.bool)}
    save_file(vectors, tmp_path / "c", metadata={"kind": "compensation", "version": "0", "sites": json.dumps(names)})
    found = Compensation.load(tmp_path / "c")
    assert torch.equal(found.vectors, vectors["vectors"])
    assert (found.sites, found.places) == (names, ("attention",))
    found.save(tmp_path / "again")
    assert contents(tmp_path / "again")[1] == contents(tmp_path / "c")[1]
    assert set(contents(tmp_path / "again")[0]) == {"vectors", "heads"}
    _, pruned = random_pair("llama-gqa", tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (tmp_path / "c").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({
        "format": "restorelcc-adapter", "version": 0, "base_model": str(pruned), "sites": names, "inputs": 32,
    }))  # fmt: skip
    wanted = float_logits(apply_compensation(load_model(pruned).model, found))
    assert torch.equal(float_logits(load(adapter)), wanted)
    save_adapter(pruned, found, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text()).keys() == {
        "format", "version", "base_model", "sites", "inputs",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    make, record = KINDS[kind]
    path = tmp_path / "a.safetensors"
    make("both").save(path)
    tensors, marks = contents(path)

    def refused(said: str, changed: dict[str, Tensor | None] | None = None, **more: str) -> None:
        kept = {key: value for key, value in {**tensors, **(changed or {})}.items() if value is not None}
        save_file(kept, path, metadata={**marks, **more})
        with pytest.raises(ValueError, match=said) as caught:
            record.load(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("unknown sites 'x'; choose one of attention, ffn, both", places="x")
    refused("unknown sites", places="")
    refused("lacks", places="attention")  # plain names are wanted then
    for key, value in tensors.items():
        if "samples" not in key:
            refused(f"lacks {key}", {key: None})
        refused(f"holds {key} as torch.float16", {key: value.half()})
        refused("of shape", {key: value[:-1].contiguous()})
        if value.is_floating_point():
            broken = value.clone()
            broken.view(-1)[-1] = float("nan")
            refused(f"1 NaN or infinite values in {key}", {key: broken})
    if kind == "moments":
        refused("negative count", {"ffn.count": -tensors["ffn.count"]})
    if kind == "compensation":
        for text in ("5", "[1,{", '["one"]', "[1, 2]"):
            refused("projections", **{"ffn.sites": text})
        save_file(tensors, path, metadata={key: value for key, value in marks.items() if key != "ffn.sites"})
        with pytest.raises(ValueError, match=r"lacks ffn\.sites"):
            Compensation.load(path)


@pytest.mark.parametrize(("changed", "said"), [
    ({"ffn.sites": ["x"]}, "not of one adapter"), ({"ffn.inputs": 7}, "not of one adapter"),
    ({"sites": []}, "not of one adapter"), ({"ffn.inputs": None}, "not of one adapter"),
])  # fmt: skip
def test_adapter_records_that_say_something_else(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    save_adapter(pruned, compensation("both"), tmp_path / "adapter")
    record = tmp_path / "adapter" / "adapter_config.json"
    assert load(tmp_path / "adapter") is not None
    record.write_text(json.dumps({**json.loads(record.read_text()), **changed}))
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "adapter")


@pytest.mark.parametrize("sites", ["ffn", "both"])
def test_restore_gives_quality_back(sites: str, stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    dense, pruned = stories_pair
    report = restore(dense, pruned, tmp_path / "out", **SMALL, sites=sites)
    assert report.heldout["restored"] < report.heldout["pruned"]
    assert report.settings["sites"] == sites
    assert report.fold["kind"] == {"ffn": "down_proj_bias", "both": "output_biases"}[sites]
    assert report.head_scores == {}
    before, after = load_file(pruned / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    moved = {name.split(".", 3)[3] for name, value in after.items() if name not in before and bool(value.any())}
    assert moved == {"mlp.down_proj.bias"} | ({"self_attn.o_proj.bias"} if sites == "both" else set())
    learned = Compensation.load(tmp_path / "out" / "compensation.safetensors")
    exact, got = exact_logits(pruned, learned, IDS), float_logits(load_model(tmp_path / "out").model)
    assert float((got - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
    again = restore(dense, pruned, tmp_path / "again", **SMALL, sites=sites)
    assert again.heldout == report.heldout
    same = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(value, same[name]) for name, value in after.items())


@pytest.mark.parametrize("components", ["autoencoder", "mean", "random", "none"])
def test_every_kind_of_components(components: str, stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = replace(RECIPES["compensate"], name="mine", sites="both", components=components)
    report = restore(*stories_pair, tmp_path / "out", **{**SMALL, "recipe": recipe})
    assert report.heldout["restored"] < report.heldout["pruned"]


def test_choices_of_sites(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert RECIPES["compensate"].sites == "attention"
    with pytest.raises(ValueError, match="unknown sites 'mlp'; choose one of attention, ffn, both"):
        restore(*stories_pair, tmp_path / "out", **SMALL, sites="mlp")
    with pytest.raises(ValueError, match=r"no share of 0\.25 can be chosen; use --heads all, or --sites both"):
        restore(*stories_pair, tmp_path / "out", **SMALL, sites="ffn", heads=0.25)
    with pytest.raises(ValueError, match="no head is scored and nothing reads probe; leave that out, or use --sites b"):
        restore(*stories_pair, tmp_path / "out", **SMALL, sites="ffn", probe="adaptive")
    with pytest.raises(ValueError, match="nothing reads probe, probe_tokens"):
        restore(*stories_pair, tmp_path / "out", **SMALL, sites="ffn", probe="random", probe_tokens=64)
    with pytest.raises(ValueError, match="recipe fast makes no compensation, so it reads no sites"):
        restore(*stories_pair, tmp_path / "out", recipe="fast", sites="both")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sites", "said"), [
    ("attention", r"rank 65 is outside 1\.\.8, the head size"), ("both", r"rank 65 is outside 1\.\.8, the head size"),
    ("ffn", r"rank 65 is outside 1\.\.64, the width of the FFN's output; choose one inside, or leave it out"),
])  # fmt: skip
def test_a_rank_that_no_unit_has_is_refused_before_any_work(
    sites: str, said: str, stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("the weights are read")

    monkeypatch.setattr("restorelcc.restore.check_pair", read)
    with pytest.raises(ValueError, match=said):
        restore(*stories_pair, tmp_path / "out", **SMALL, sites=sites, rank=65)
    with pytest.raises(AssertionError, match="the weights are read"):
        restore(*stories_pair, tmp_path / "out", **SMALL, sites=sites, rank=64 if sites == "ffn" else 8)
    assert not list(tmp_path.iterdir())


def test_what_no_checkpoint_can_hold_becomes_an_adapter(tmp_path: Path) -> None:
    dense, pruned = random_pair("qwen3", tmp_path)
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{3 + (7 * i + i * i // 5) % 90}" for i in range(600)))
    settings = TrainingSettings(learning_rates=(0.05,), batch_tokens=64, evaluations=2)
    report = restore(dense, pruned, tmp_path / "out", recipe="compensate", sites="both", data=words, tokens=512,
                     window=16, training=settings)  # fmt: skip
    assert report.fold["kind"] == "adapter"
    assert "no bias at the last projections of its FFNs" in report.warnings[-1]
    hooked = float_logits(load(tmp_path / "out"))
    pack_checkpoint(str(tmp_path / "out"), tmp_path / "packed", values="fp32")
    packed = float_logits(load(tmp_path / "packed"))
    assert float((packed - hooked).abs().max()) <= 1e-4 * float(hooked.abs().max())
    assert float((packed - float_logits(load_model(pruned).model)).abs().max()) > 0


def test_steps_of_the_command_line(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    dense, pruned = stories_pair
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time there was a little dog who ran away into the park. " * 60)
    small = ("--tokens", "512", "--window", "32", "--quiet", "--data", text)
    for sites in ("both", "ffn"):
        found = succeed("moments", "--dense", dense, "--pruned", pruned, "--out", tmp_path / f"{sites}.m",
                        "--sites", sites, *small)  # fmt: skip
        assert (found["sites"], found["heads"]) == (sites, 8 if sites == "both" else 0)
    common = ("train", "--pruned", pruned, "--quiet", "--train", "none", "--moments")
    for name, arguments in {
        "b": ("both.m",), "f": ("both.m", "--sites", "ffn"), "g": ("ffn.m",), "a": ("both.m", "--sites", "attention"),
    }.items():  # fmt: skip
        succeed(*common, tmp_path / arguments[0], *arguments[1:], "--out", tmp_path / name)
    found = {name: Compensation.load(tmp_path / name) for name in "bfga"}
    assert {name: each.where for name, each in found.items()} == {"b": "both", "f": "ffn", "g": "ffn", "a": "attention"}
    assert torch.equal(found["f"].vectors, found["g"].vectors)
    folded = succeed("fold", "--pruned", pruned, "--compensation", tmp_path / "b", "--out", tmp_path / "restored")
    assert (folded["kind"], folded["biases"]) == ("output_biases", 10)
    config = json.loads((tmp_path / "restored" / "config.json").read_text())
    assert config["attention_bias"] is config["mlp_bias"] is True
    scores = tmp_path / "s"
    succeed("probe", "--pruned", pruned, "--moments", tmp_path / "both.m", "--out", scores, "--quiet")
    few = succeed("train", "--pruned", pruned, "--quiet", "--train", "none", "--moments", tmp_path / "both.m",
                  "--scores", scores, "--heads", "0.25", "--out", tmp_path / "few")  # fmt: skip
    assert few["heads"] == 10
    assert bool(Compensation.load(tmp_path / "few").part("ffn").heads.all())
    for said, arguments in {
        "is of the sites ffn alone, and attention is asked for": (*common, tmp_path / "ffn.m", "--sites", "attention"),
        "--heads 0.25 is of heads, and only FFNs get vectors": (*common, tmp_path / "ffn.m", "--heads", "0.25"),
        "--scores is of heads, and only FFNs": (*common, tmp_path / "ffn.m", "--scores", scores),
        "ffn.m is of the sites ffn alone": ("probe", "--pruned", pruned, "--quiet", "--moments", tmp_path / "ffn.m"),
        "has vectors of the sites both, and probes keep": (
            *("probe", "--pruned", pruned, "--quiet", "--moments", tmp_path / "both.m", "--edit", "ablate"),
            *("--compensation", tmp_path / "b"),
        ),
    }.items():  # fmt: skip
        refuse(*arguments, "--out", tmp_path / "refused", words=said)
