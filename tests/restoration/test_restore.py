"""restore() as a whole: quality back, resumed bit for bit, calls counted, bad input refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from restoration_models import random_pair
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from restorelcc import own_text
from restorelcc.artifacts import fingerprint
from restorelcc.models import load_model, save_checkpoint
from restorelcc.moments import Moments
from restorelcc.probes import HeadScores
from restorelcc.recipe_settings import with_settings
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.text import TokenSet
from restorelcc.training import TrainingSettings

SMALL: dict[str, Any] = {
    "recipe": "compensate", "tokens": 1536, "window": 64,
    "training": TrainingSettings(learning_rates=(0.02, 0.05), search_steps=2, batch_tokens=256, evaluations=3),
}  # fmt: skip


class OpCounter(TorchDispatchMode):
    """Counts calls of our ops as torch dispatches them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("restorelcc::"):
            self.calls[name.removeprefix("restorelcc::").split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_restore_gives_quality_back_through_our_ops(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    dense, pruned = stories_pair
    with OpCounter() as counter:
        report = restore(dense, pruned, tmp_path / "restored", **SMALL, probe="attribution")
    assert report.heldout["restored"] < report.heldout["pruned"]
    layers = 5
    batches = -(-report.text["rows"] // 4)
    assert batches >= 6
    # head_moments: every layer, every batch
    assert counter.calls["head_moments_"] == layers * batches
    # attribution: each batch, each projection: z Wᵀ and c Wᵀ forward, the gradient of c backward; training adds to it
    assert counter.calls["sparse_linear"] >= layers * batches * 2
    assert counter.calls["sparse_linear_grad_x"] >= layers * batches
    before, after = tensors(pruned), tensors(tmp_path / "restored")
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    added = sorted(set(after) - set(before))
    assert len(added) == 4 * layers
    assert all(name.endswith("_proj.bias") for name in added)
    for name in added:
        if ".o_proj." not in name:
            assert not bool(after[name].any()), name
    assert set(report.head_scores) == {"attribution"}  # asked for, though all heads are taken
    assert report.fold["kind"] == "o_proj_bias"
    assert report.fold["zeros"] > 0


@pytest.mark.parametrize("choice", [
    {"train": "none"}, {"components": "mean"}, {"heads": 0.25}, {"probe": "random", "heads": 0.25},
    {"positions": "last"}, {"fold_into": "none"},
])  # fmt: skip
def test_every_choice_does_something(
    choice: dict[str, Any], stories_pair: tuple[Path, Path], tmp_path: Path, default_vectors: torch.Tensor
) -> None:
    report = restore(*stories_pair, tmp_path / "out", **SMALL, **choice)
    if choice.get("fold_into") == "none":
        assert (tmp_path / "out" / "adapter_config.json").is_file()
        return
    vectors = load_file(tmp_path / "out" / "compensation.safetensors")["vectors"]
    assert not torch.equal(vectors, default_vectors)
    assert report.heldout["restored"] <= report.heldout["pruned"]


@pytest.fixture(scope="module")
def default_vectors(stories_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    out = tmp_path_factory.mktemp("default") / "out"
    restore(*stories_pair, out, **SMALL)
    return load_file(out / "compensation.safetensors")["vectors"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.training import TrainingSettings

dense, pruned, out = map(Path, sys.argv[1:4])
for awaited in sys.argv[4:]:  # a child for each, of a process that has imported everything and begun nothing
    child = os.fork()
    if child == 0:
        restore(dense, pruned, out, recipe="compensate", tokens=1536, window=64,
                training=TrainingSettings(learning_rates=(0.02, 0.05), search_steps=2, batch_tokens=256, evaluations=3))
        os._exit(0)
    while not (found := Path(f"{out}.work", awaited).exists()) and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.002)
    assert found, f"the call ended before {awaited}"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_killed_at_each_step_it_resumes_bit_for_bit(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """SIGKILL as soon as each step's file appears, again and again, then one undisturbed call."""
    restore(*stories_pair, tmp_path / "whole", **SMALL)
    out = tmp_path / "killed"
    awaited = ("moments.safetensors.work/progress.json", "moments.json", "compensation.json")
    command = [sys.executable, "-c", KILLED, *map(str, stories_pair), str(out), *awaited]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, env=environment, check=True)
    restore(*stories_pair, out, **SMALL, overwrite=True)
    for name, value in tensors(tmp_path / "whole").items():
        assert torch.equal(value, tensors(out)[name]), name
    left = [path.name for path in tmp_path.iterdir()]
    assert sorted(left) == ["killed", "killed.work", "whole", "whole.work"], "no partial directory may stay"


def test_steps_are_marked_by_what_goes_into_them_alone(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Names and stamps of the files: where they change, work directories of earlier versions are computed again."""
    dense, pruned = stories_pair
    report = restore(dense, pruned, tmp_path / "out", **SMALL, probe="attribution", heads=0.5)
    work = tmp_path / "out.work"
    text = TokenSet.load(work / "text.safetensors")
    moments = fingerprint(
        dense=dense, pruned=pruned, text=text.fingerprint(), positions="all", skip_first=1, samples=0
    )
    expected = {
        "moments": moments,
        "scores_attribution": fingerprint(
            moments=moments, probe="attribution", components=["svd", None, 0], seed=0, tokens=4096, pairs=None
        ),
        "compensation": fingerprint(
            moments=moments, heads=report.selected, components=["svd", None, 0], tied=1, train="lm",
            settings=asdict(SMALL["training"]), threads=torch.get_num_threads(), task=None, examples=None, data=None,
        ),
    }  # fmt: skip
    assert {name: json.loads((work / f"{name}.json").read_text())["fingerprint"] for name in expected} == expected
    steps = [f"{name}.{kind}" for name in ("text", *expected) for kind in ("json", "safetensors")]
    beside = ["components.safetensors", "report.json", "training.json"]
    assert sorted(path.name for path in work.iterdir()) == sorted([*steps, *beside])


def test_a_second_call_reuses_the_steps(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    restore(*stories_pair, tmp_path / "out", **SMALL)
    with OpCounter() as counter:
        restore(*stories_pair, tmp_path / "out", **SMALL, overwrite=True)
    assert counter.calls["head_moments_"] == 0
    assert counter.calls["sparse_linear_grad_x"] == 0




def test_models_of_different_shape(tmp_path: Path, stories_pair: tuple[Path, Path]) -> None:
    _, other = random_pair("llama-gqa", tmp_path)
    with pytest.raises(ValueError, match="512 tokens and the pruned one 96"):
        restore(stories_pair[0], other, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_pruned_without_zeros(tmp_path: Path, stories_pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="zero"):
        restore(stories_pair[0], stories_pair[0], tmp_path / "out", **SMALL)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)  # fmt: skip
@pytest.mark.parametrize("role", ["dense", "pruned"])
def test_nan_weights(name: str, role: str, tmp_path: Path, stories_pair: tuple[Path, Path]) -> None:
    pair = dict(zip(("dense", "pruned"), stories_pair, strict=True))
    loaded = load_model(pair[role])
    with torch.no_grad():
        loaded.model.get_parameter(name).view(-1)[0] = float("nan")
    pair[role] = tmp_path / "nan"
    save_checkpoint(loaded.model, loaded.tokenizer, pair[role])
    message = f"{name.removesuffix('.weight') if 'up_proj' in name else name} of the {role} model has 1 NaN or infinite"
    with pytest.raises(ValueError, match=re.escape(message)):
        restore(pair["dense"], pair["pruned"], tmp_path / "out", **SMALL)
    assert not list((tmp_path / "out.work").glob("*.safetensors")), "no step began"


@pytest.mark.parametrize(("content", "message"), [("", "empty"), ("Once upon a time.", "window")])
def test_bad_text(content: str, message: str, tmp_path: Path, stories_pair: tuple[Path, Path]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content)
    with pytest.raises(ValueError, match=message):
        restore(*stories_pair, tmp_path / "out", data=text, **SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [
    {"probe": "linear-ish"}, {"components": "pca"}, {"train": "rl"}, {"fold_into": "v_proj"}, {"positions": "first"},
    {"heads": "some"}, {"heads": 0.0},
])  # fmt: skip
def test_unknown_choices_name_the_known_ones(
    wrong: dict[str, Any], tmp_path: Path, stories_pair: tuple[Path, Path]
) -> None:
    with pytest.raises(ValueError, match=r"choose one of|give `all` or a share"):
        restore(*stories_pair, tmp_path / "out", **SMALL, **wrong)
    assert not (tmp_path / "out.work").exists()


def test_existing_output_is_not_overwritten(tmp_path: Path, stories_pair: tuple[Path, Path]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="pass --overwrite"):
        restore(*stories_pair, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_an_fp16_checkpoint_is_restored_in_fp16(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    for path in (dense, pruned):
        loaded = load_model(path, dtype=torch.float16)
        save_checkpoint(loaded.model, loaded.tokenizer, path, overwrite=True)
    report = restore(dense, pruned, tmp_path / "restored", **SMALL)
    before, after = tensors(pruned), tensors(tmp_path / "restored")
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report.fold["zeros"] > 0
    assert load_model(tmp_path / "restored").model(torch.ones(1, 4, dtype=torch.int64)).logits.isfinite().all()


WEIGHTS: dict[str, Any] = {
    "recipe": "best", "tokens": 1536, "window": 64,
    "training": TrainingSettings(learning_rates=(0.004,), batch_tokens=256, evaluations=3, epochs=2.0),
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["fast", "best"])
def test_weights_change_under_the_mask_and_quality_comes_back(
    recipe: str, stories_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    dense, pruned = stories_pair
    report = restore(dense, pruned, tmp_path / "restored", **{**WEIGHTS, "recipe": recipe})
    gained = report.heldout["pruned"] - report.heldout["restored"]
    assert gained > 0.3
    assert report.heldout["restored"] <= report.heldout["refitted"]
    before, after = tensors(pruned), tensors(tmp_path / "restored")
    changed = 0
    for name, weight in before.items():
        if weight.ndim == 2 and "layers" in name:
            assert torch.equal(weight == 0, after[name] == 0), name
            changed += not torch.equal(weight, after[name])
        else:
            assert torch.equal(weight, after[name]), name
    assert changed == report.fold["matrices_compared"] == 5 * 7
    added = sorted(set(after) - set(before))
    assert not added
    assert report.fold["kind"] == "unchanged"
    assert report.recipe == recipe
    assert not (tmp_path / "restored.work" / "refit.layers").exists()


@pytest.mark.parametrize("biases", ["outputs", "all"])
def test_best_with_biases(biases: str, stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = replace(RECIPES["best"], refit=None, biases=biases)
    report = restore(*stories_pair, tmp_path / "restored", **{**WEIGHTS, "recipe": recipe})
    assert report.heldout["restored"] < report.heldout["pruned"]
    after = tensors(tmp_path / "restored")
    found = {name: bool(bias.any()) for name, bias in after.items() if name.endswith(".bias")}
    assert len(found) == 5 * 7
    used = {name.removesuffix(".bias").rpartition(".")[2] for name, is_used in found.items() if is_used}
    attention, ffn = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    assert used == ({*attention, *ffn} if biases == "all" else {"o_proj", "down_proj"})
    with pytest.raises(ValueError, match="biases is some; it must be one of all, outputs, none"):
        replace(recipe, biases="some")


def test_a_finished_recipe_is_not_computed_again(
    stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import restore_weights

    restore(*stories_pair, tmp_path / "restored", **WEIGHTS)
    before = tensors(tmp_path / "restored")

    def computed(*_: Any, **__: Any) -> None:
        raise AssertionError("this step was finished")

    for name in ("refit", "tune", "write_own_text"):
        monkeypatch.setattr(restore_weights, name, computed)
    restore(*stories_pair, tmp_path / "restored", **WEIGHTS, overwrite=True)
    after = tensors(tmp_path / "restored")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_refit_that_destroys_the_model_is_scaled_down(
    stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import restore_weights

    stock = restore_weights.refit

    def wild(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        return {name: 50 * value for name, value in stock(*arguments, **options).items()}

    monkeypatch.setattr(restore_weights, "refit", wild)
    report = restore(*stories_pair, tmp_path / "restored", **{**WEIGHTS, "recipe": "fast"})
    assert report.heldout["restored"] <= report.heldout["pruned"]
    assert [row["refit_scale"] for row in report.search] == [0.0, 1.0, 0.75, 0.5, 0.25]
    if report.heldout["restored"] == report.heldout["pruned"]:
        assert report.warnings[0].startswith("Nothing was gained")
        before, after = tensors(stories_pair[1]), tensors(tmp_path / "restored")
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["mistral", "mistral-sliding", "qwen3", "opt", "gpt_neox"])
@pytest.mark.parametrize("biases", ["none", "all"])
def test_best_writes_a_stock_checkpoint_of_every_architecture(kind: str, biases: str, tmp_path: Path) -> None:
    dense, pruned = random_pair(kind, tmp_path)
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{3 + (7 * i + i * i // 5) % 90}" for i in range(600)))
    settings = TrainingSettings(learning_rates=(0.002,), batch_tokens=64, evaluations=2)
    recipe = replace(RECIPES["best"], biases=biases)
    report = restore(
        dense, pruned, tmp_path / "out", recipe=recipe, data=words, tokens=512, window=16, training=settings
    )  # fmt: skip
    model = load_model(tmp_path / "out").model
    if biases == "none":
        assert report.fold["kind"] == "unchanged"
        assert tensors(tmp_path / "out").keys() == tensors(pruned).keys()
    else:
        others = {"mistral": "llama_reexport", "mistral-sliding": "unchanged"}
        assert report.fold["kind"] == others.get(kind, "o_proj_bias")
    assert model(torch.ones(1, 4, dtype=torch.int64)).logits.isfinite().all()


def test_weights_are_restored_by_default_with_text_and_without(
    stories_pair: tuple[Path, Path], tmp_path: Path
) -> None:  # fmt: skip
    settings = TrainingSettings(learning_rates=(0.002,), batch_tokens=64, evaluations=1, steps=1)
    words = tmp_path / "words.txt"
    words.write_text("Once upon a time there was a little dog who liked to play in the park. " * 40)
    common: dict[str, Any] = {"tokens": 512, "window": 32, "training": settings}
    for name, data, share in (("a", words, 0.667), ("b", None, 0.0)):
        report = restore(*stories_pair, tmp_path / name, data=data, **common)
        assert report.recipe == "best"
        assert report.settings["own_text"] == share
        assert report.heldout["refitted"] < report.heldout["pruned"]
        assert "tuning" in report.timings
    with pytest.raises(ValueError, match=r"own_text=0.5 is a share beside --data, and without --data all text is"):
        restore(*stories_pair, tmp_path / "c", recipe=replace(RECIPES["best"], own_text=0.5), **common)


@pytest.mark.parametrize(("distill", "taught"), [(0.0, 0.0), (0.3, 1.0), (0.6, 0.6)])
def test_without_data_the_dense_model_teaches_unless_told_otherwise(
    distill: float, taught: float, stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.3 is the recipe's own share beside an NLL that own text has not; any other one was asked for."""
    seen: list[Any] = []

    def tuned(*_: Any, objective: Any, dense: Any, **__: Any) -> Any:
        seen.append((objective.distill, dense is not None))
        raise InterruptedError

    monkeypatch.setattr("restorelcc.restore_weights.tune", tuned)
    recipe = with_settings(RECIPES["best"], {"distill": distill, "refit": None})
    with pytest.raises(InterruptedError):
        restore(*stories_pair, tmp_path / "out", recipe=recipe, tokens=256, window=32)
    assert seen == [(taught, taught > 0)]


def test_own_text_of_other_scripts_is_learnt_from(
    stories_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that begin with a run of one script: of the own text beside data, and of the whole text without."""
    monkeypatch.setattr(own_text, "_other_scripts", lambda *_: [list(range(300, 330)), list(range(340, 360))])
    words = tmp_path / "words.txt"
    words.write_text("Once upon a time there was a little dog who liked to play in the park. " * 40)
    recipe = replace(RECIPES["fast"], scripts=0.5)
    for name, data, file in (("a", words, "own_text.safetensors"), ("b", None, "text.safetensors")):
        report = restore(*stories_pair, tmp_path / name, data=data, recipe=recipe, tokens=512, window=32)
        rows = TokenSet.load(tmp_path / f"{name}.work" / file)
        assert set(rows.response_start.tolist()) == {2, 1 + 32 // 4}
        assert report.settings["scripts"] == 0.5


def test_options_of_another_recipe_are_refused(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe best makes no compensation, so it reads no probe, heads"):
        restore(*stories_pair, tmp_path / "out", probe="random", heads=0.5)
    with pytest.raises(ValueError, match="unknown recipe 'slow'; choose one of best, fast, compensate, paper"):
        restore(*stories_pair, tmp_path / "out", recipe="slow")
    with pytest.raises(ValueError, match=r"give --data FILE\.jsonl"):
        restore(*stories_pair, tmp_path / "out", recipe="paper")
    with pytest.raises(ValueError, match="probe_tokens=100 is of the scores of heads, and all are taken unscored"):
        restore(*stories_pair, tmp_path / "out", recipe="compensate", probe_tokens=100)
    assert not list(tmp_path.iterdir())


def test_the_paper_recipe_takes_its_pairs_from_the_text(stories_pair: tuple[Path, Path], tmp_path: Path) -> None:
    lines = [
        {"text": f"Once upon a time there was a {name} who liked", "label": f" to {verb} in the {place} every day"}
        for name in ("cat", "dog", "girl") for verb in ("run", "play") for place in ("park", "house", "garden")
    ]  # fmt: skip
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines))
    settings = TrainingSettings(learning_rates=(0.02,), batch_tokens=64, evaluations=1)
    report = restore(
        *stories_pair, tmp_path / "out", recipe="paper", data=data, tokens=1024, window=64, training=settings
    )
    assert set(report.head_scores) == {"linear"}
    assert sum(map(sum, report.selected)) == 10
    # as the authors' code: the dense model's outputs at the answers, and one lost activation for each prompt
    assert HeadScores.load(tmp_path / "out.work" / "scores_linear.safetensors").record["dense"] is True
    assert Moments.load(tmp_path / "out.work" / "moments.safetensors").count.unique().tolist() == [len(lines)]
    pruned = replace(RECIPES["paper"], probe_outputs="pruned")
    again = restore(
        *stories_pair, tmp_path / "pruned", recipe=pruned, data=data, tokens=1024, window=64, training=settings,
        work=tmp_path / "out.work",
    )  # fmt: skip
    assert HeadScores.load(tmp_path / "out.work" / "scores_linear.safetensors").record["dense"] is False
    assert again.head_scores["linear"] != report.head_scores["linear"]
    with pytest.raises(ValueError, match="probe_outputs is both; it must be one of pruned, dense"):
        replace(RECIPES["paper"], probe_outputs="both")
