"""The control: the dense model under the restored model's own tuning, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from restorelcc.control import train_control, tuned_dense
from restorelcc.evaluation import token_nll
from restorelcc.models import load_model, load_tokenizer
from restorelcc.recipes import RECIPES
from restorelcc.restore_weights import weights_target
from restorelcc.text import TokenSet, load_text
from restorelcc.training_loop import TrainingSettings
from restorelcc.tuning import tune

SETTINGS = TrainingSettings(learning_rates=(0.002,), batch_tokens=64, evaluations=2, seed=3)


@pytest.fixture(scope="module")
def text(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """One sentence again and again, unlike the model's own stories: every model can learn it."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("The north gate of the mill closes at nine and the ferry waits for no one. " * 40)
    return load_text(file, load_tokenizer(stories), window=32, max_tokens=512, seed=0)


@pytest.mark.parametrize("biases", ["none", "all"])
def test_it_is_the_tuning_of_the_dense_model(
    biases: str, stories_pair: tuple[Path, Path], text: TokenSet
) -> None:  # fmt: skip
    """Its own teacher: asked before anything changes, so a copy of the model teaches the same, bit for bit."""
    dense = stories_pair[0]
    model, found = tuned_dense(dense, text, replace(RECIPES["best"], biases=biases), SETTINGS)
    target = weights_target(dense, biases=biases == "all")
    want = tune(
        load_model(dense, dtype=torch.float32).model, text, biased=target.biased,
        dense=load_model(dense, dtype=torch.float32).model, objective=RECIPES["best"].objective, settings=SETTINGS,
    )  # fmt: skip
    assert found.history == want.history
    assert all(torch.equal(found.tensors[name], value) for name, value in want.tensors.items())
    assert sum(name.endswith(".bias") for name in found.tensors) == (5 * 7 if biases == "all" else 0)
    assert found.heldout_after < found.heldout_before
    _, heldout = text.split(SETTINGS.heldout_share, seed=SETTINGS.seed)
    assert token_nll(model, heldout).mean == pytest.approx(found.heldout_after, rel=1e-5)


def test_it_is_written_as_a_stock_checkpoint(
    stories_pair: tuple[Path, Path], text: TokenSet, tmp_path: Path
) -> None:  # fmt: skip
    dense = stories_pair[0]
    report = train_control(dense, tmp_path / "control", text, replace(RECIPES["best"], biases="all"), SETTINGS)
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "control" / "model.safetensors")
    assert (report.kind, report.biases, report.matrices_compared) == ("o_proj_bias", 35, 35)
    weights: dict[str, Any] = {name: value for name, value in before.items() if value.ndim == 2 and "layers" in name}
    assert all(torch.equal(value == 0, after[name] == 0) for name, value in weights.items())
    assert not any(torch.equal(value, after[name]) for name, value in weights.items())
    with pytest.raises(ValueError, match="is not empty"):
        train_control(dense, tmp_path / "control", text, RECIPES["best"], SETTINGS)


def test_a_recipe_that_tunes_nothing_has_none(stories: Path, text: TokenSet) -> None:
    with pytest.raises(ValueError, match="recipe fast tunes nothing, so it has no control"):
        tuned_dense(stories, text, RECIPES["fast"], SETTINGS)
