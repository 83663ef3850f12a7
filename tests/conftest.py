"""What every Python test starts from: a known seed, and global settings put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

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
