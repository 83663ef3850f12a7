"""Output-projection shapes of real models, as data: name, outputs N, inputs K."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """One projection: y [M, N] = x [M, K] Wᵀ."""

    model: str
    outputs: int
    inputs: int


O_PROJ = (
    Shape("SmolLM2-135M", 576, 576),
    Shape("Llama-3.2-1B", 2048, 2048),
    Shape("Llama-2-7B", 4096, 4096),
)
ROWS = (1, 16, 256)  # one token, a small batch, a prompt
