"""`restorelcc.load`: whatever this project leaves behind, as a stock transformers model.

    packed directory      SparseLinear projections, mapped                    (packed_model)
    adapter directory     the pruned model with W_o c added                   (adapter)
    anything else         what AutoModelForCausalLM.from_pretrained gives     (models)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .adapter import adapter_base, is_adapter, load_adapter
from .models import load_model, load_tokenizer
from .packed_model import load_packed
from .packed_record import PackedRecord, is_packed

__all__ = ["kind_of", "load", "tokenizer_of"]


def load(path: str | Path, *, base: str | Path | None = None, huge_pages: bool = False) -> Any:
    """A stock transformers model in evaluation mode, without gradients, on the CPU.

    Args:
        path: a packed directory, an adapter directory, or any MODEL (such as a checkpoint with a folded compensation).
        base: the pruned model of an adapter, where it moved since the adapter was written.
        huge_pages: copy a packed model's weights into memory with pages of 2 MiB instead of mapping the file: faster
            decoding (docs/performance.md) for as much memory as the file has bytes, which other processes then do not
            share. Where the system offers no huge pages it is ordinary memory. Of other models: ValueError.

    Raises:
        ValueError: `path` is none of them, or its files are damaged, of another version or do not fit each other.
    """
    if is_packed(path):
        return load_packed(path, huge_pages=huge_pages)
    if huge_pages:
        raise ValueError(f"{path} is not a packed model, and only those go into huge pages; run restorelcc pack first")
    if is_adapter(path):
        return load_adapter(path, base=base)
    return load_model(path).model


def tokenizer_of(path: str | Path) -> Any:
    """The tokenizer of what `load` loads; that of an adapter is its pruned model's."""
    return load_tokenizer(adapter_base(path) if is_adapter(path) else path)


def kind_of(path: str | Path) -> str:
    """"packed bf16", "adapter", or "" for everything else."""
    if is_packed(path):
        return f"packed {PackedRecord.read(Path(path).expanduser()).values}"
    return "adapter" if is_adapter(path) else ""
