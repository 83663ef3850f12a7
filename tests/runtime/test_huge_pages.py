"""Packed models in pages of 2 MiB: the same model, whose weights no longer hang on the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runtime_cases import logits

import restorelcc
from restorelcc.huge_pages import HugePages
from restorelcc.pack_checkpoint import pack_checkpoint
from restorelcc.sparse_linear import SparseLinear


@pytest.mark.parametrize("values", ["bf16", "fp32"])
def test_the_same_logits_as_from_the_mapped_file(
    values: str, pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    pack_checkpoint(str(pruned("llama-gqa")), tmp_path / "packed", values=values)
    mapped = restorelcc.load(tmp_path / "packed")
    held = restorelcc.load(tmp_path / "packed", huge_pages=True)
    assert torch.equal(logits(held), logits(mapped))


def test_weights_outlive_the_file_and_stay_trusted(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    pack_checkpoint(str(pruned("llama-gqa")), tmp_path / "packed")
    model = restorelcc.load(tmp_path / "packed", huge_pages=True)
    expected = logits(model)
    file = tmp_path / "packed" / "packed.safetensors"
    file.write_bytes(bytes(file.stat().st_size))  # in place, which a mapped model would feel
    assert torch.equal(logits(model), expected)
    # Tensors of one memory must not share a version: a weight would look edited, and be checked again in each call.
    assert all(module.packed.trusted for module in model.modules() if isinstance(module, SparseLinear))


def test_other_models_are_refused(pruned: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"is not a packed model, and only those go into huge pages"):
        restorelcc.load(pruned("llama-gqa"), huge_pages=True)


def test_copies_are_aligned_and_bounded() -> None:
    memory = HugePages(HugePages.room(12) + HugePages.room(8) + HugePages.room(0))
    first, second = torch.arange(3, dtype=torch.int32), torch.ones(2, 2, dtype=torch.bfloat16)
    copies = [memory.copy(first), memory.copy(second), memory.copy(torch.empty(0, 4))]
    assert torch.equal(copies[0], first)
    assert torch.equal(copies[1], second)
    assert copies[2].shape == (0, 4)
    assert all(copy.data_ptr() % 64 == 0 for copy in copies[:2])
    version = copies[0]._version
    with pytest.raises(ValueError, match="1 bytes do not fit: 0 of 128 are left"):
        memory.copy(torch.zeros(1, dtype=torch.uint8))
    assert copies[0]._version == version
