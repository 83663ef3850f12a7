"""The programs of examples/decode and openvino, packed random Llamas, and a real one where its package is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from decode_program import PROGRAM, Decoder
from llamas import Packed, make_real, make_tiny
from openvino_host import Host, find_host

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    """`decode`, as `make test-cpp` builds it; $RLCC_DECODE names another one."""
    given = os.environ.get("RLCC_DECODE")
    places = [Path(given)] if given else [ROOT / "build" / "core" / "examples" / "decode" / PROGRAM]
    for place in places:
        if place.is_file():
            return Decoder(place)
    pytest.skip(f"{places[0]} is not built; `make test-cpp` builds it (CMake option RLCC_BUILD_EXAMPLES)")


@pytest.fixture(scope="session")
def host() -> Host:
    """A Python that has OpenVINO, $RLCC_OPENVINO_PYTHON, and examples/openvino, built."""
    return find_host()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Packed]:
    """(kind of llamas.KINDS, values) -> that random model, packed; made once."""
    made: dict[tuple[str, str], Packed] = {}

    def build(kind: str, values: str) -> Packed:
        if (kind, values) not in made:
            made[kind, values] = make_tiny(kind, values, tmp_path_factory.mktemp(f"{kind}-{values}"))
        return made[kind, values]

    return build


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """SmolLM2-135M, restored by `make demo` where that ran, else pruned and given random biases; packed as bf16."""
    return make_real(ROOT / "runs" / "demo" / "restored", tmp_path_factory.mktemp("real"))
