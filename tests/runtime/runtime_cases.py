"""What the tests of the packed model share: prompts, compensations, and the stock model to compare with."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ALL_VALUES = ("fp32", "bf16", "fp16", "int8")
IDS = torch.tensor([[1, 5, 9, 17, 33, 60], [1, 7, 8, 7, 21, 40], [1, 90, 3, 4, 5, 6]])


def skip_unless_packable(values: str) -> None:
    """int8 and fp16 values need kernels that a build may not have yet; the test is skipped, saying so."""
    from restorelcc import packed

    if values == "int8" and "values" not in inspect.signature(packed.pack).parameters:
        pytest.skip("restorelcc.pack of this build has no int8 values")
    if values == "fp16" and torch.float16 not in packed.PACKED_DTYPES:
        pytest.skip("restorelcc.pack of this build has no fp16 values")


def stock(path: Path, dtype: torch.dtype) -> Any:
    """The checkpoint as transformers alone loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval().requires_grad_(False)


def logits(model: Any, ids: Tensor = IDS, **inputs: Tensor) -> Tensor:
    """[B, T, V]"""
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, **inputs).logits
    return found


def greedy(model: Any, ids: Tensor = IDS, **settings: Any) -> Tensor:
    """Ids of prompt and continuation; never stopped by an end token, so that lengths are equal."""
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    with torch.no_grad():
        found: Tensor = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return found


def some_compensation(pruned: Path, seed: int, scale: float = 0.5) -> Any:
    """Random vectors for the output projections of that checkpoint, large enough to change what it says."""
    from restorelcc.compensation import Compensation
    from restorelcc.models import attention_sites, load_model

    sites = attention_sites(load_model(pruned).model)
    noise = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(sites), sites[0].inputs, generator=noise) * scale
    heads = torch.ones(len(sites), sites[0].heads, dtype=torch.bool)
    return Compensation(vectors, heads, [site.name for site in sites])
