"""What several files of this folder restore, and learn from."""

from __future__ import annotations

from pathlib import Path

import pytest
from restoration_models import random_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small dense model and its pruned twin, both random."""
    return random_pair("llama-gqa", tmp_path_factory.mktemp("pair"))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """600 words that their tokenizer knows."""
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"w{3 + (7 * i + i * i // 5) % 90}" for i in range(600)))
    return path
