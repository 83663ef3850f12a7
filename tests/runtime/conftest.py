"""Packed random models of every architecture, and a real one where the development data is at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from development_data import shared

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "restoration"))  # random models of small sizes: restoration_models


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # a model so small only waits for more; put back by the fixture of all tests


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> a pruned checkpoint directory (2:4) of that random architecture, made once."""
    from restoration_models import random_pair

    made: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in made:
            made[kind] = random_pair(kind, tmp_path_factory.mktemp(kind))[1]
        return made[kind]

    return build


@pytest.fixture(scope="session")
def stories_pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Llama of 260k parameters (GQA, tied embeddings), pruned at 2:4."""
    from restoration_models import zero_half

    from restorelcc.models import load_model, save_checkpoint

    path = shared("data", "models", "stories260k-hf")
    loaded = load_model(path)
    zero_half(loaded.model)
    out = tmp_path_factory.mktemp("stories") / "pruned"
    save_checkpoint(loaded.model, loaded.tokenizer, out)
    return out
