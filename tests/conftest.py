"""What every Python test starts from: a known seed, global settings put back afterwards, and the real small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from development_data import shared

ISAS = ("scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16")


@pytest.fixture(autouse=True)
def _known_state() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set this CPU has, forced for the test."""
    from restorelcc import _C

    if request.param not in _C.build_info()["isas_available"]:
        pytest.skip(f"this CPU or build has no {request.param}")
    _C.force_isa(request.param)
    yield request.param
    _C.force_isa(None)


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real Llama of 260k parameters: 5 layers, 8 heads, 4 key-value heads, head size 8."""
    return shared("data", "models", "stories260k-hf")


@pytest.fixture(scope="session")
def stories_pair(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(dense, pruned at 2:4 by magnitude) of the real small model, as checkpoint directories."""
    from restoration_models import zero_half

    from restorelcc.models import load_model, save_checkpoint

    folder = tmp_path_factory.mktemp("stories")
    loaded = load_model(stories)
    dense, pruned = folder / "dense", folder / "pruned"
    save_checkpoint(loaded.model, loaded.tokenizer, dense)
    zero_half(loaded.model)
    save_checkpoint(loaded.model, loaded.tokenizer, pruned)
    return dense, pruned
