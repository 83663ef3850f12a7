"""Pairs of small models: a real one (GQA, tied embeddings) where it is at hand, random ones of other shapes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from restoration_models import zero_half

ROOT = Path(__file__).resolve().parents[2]


def shared(*parts: str) -> Path:
    """A file of the development data beside the project; the test is skipped where it is absent."""
    base = Path(os.environ.get("RLCC_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the development data, which is not beside the project")
    return path


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real Llama of 260k parameters: 5 layers, 8 heads, 4 key-value heads, head size 8."""
    return shared("data", "models", "stories260k-hf")


@pytest.fixture(scope="session")
def stories_pair(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(dense, pruned at 2:4 by magnitude) of the real small model, as checkpoint directories."""
    from restorelcc.models import load_model, save_checkpoint

    folder = tmp_path_factory.mktemp("stories")
    loaded = load_model(stories)
    dense, pruned = folder / "dense", folder / "pruned"
    save_checkpoint(loaded.model, loaded.tokenizer, dense)
    zero_half(loaded.model)
    save_checkpoint(loaded.model, loaded.tokenizer, pruned)
    return dense, pruned
