"""A compensation beside its pruned model: an adapter directory that `restorelcc.load` applies.

    adapter_config.json          format, version, the pruned model it belongs to, the projections it changes
    adapter_model.safetensors    vectors [L, H·D] float32 and the chosen heads [L, H]

For architectures where no stock checkpoint has a place for W_o c, and for people who want it apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .artifacts import atomic_directory, atomic_write_json, read_json
from .compensation import Compensation, apply_compensation
from .models import load_model

__all__ = ["load", "save_adapter"]

_FORMAT = "restorelcc-adapter"


def save_adapter(pruned: Path, compensation: Compensation, out: Path, *, overwrite: bool = False) -> None:
    """Writes the adapter directory of `compensation` for the checkpoint `pruned`; whole or not at all."""
    with atomic_directory(out, overwrite=overwrite) as partial:
        config = {
            "format": _FORMAT,
            "version": 0,
            "base_model": str(Path(pruned).resolve()),
            "sites": compensation.sites,
            "inputs": int(compensation.vectors.shape[1]),
        }
        atomic_write_json(partial / "adapter_config.json", config)
        compensation.save(partial / "adapter_model.safetensors")


def load(path: str | Path, *, base: str | Path | None = None) -> Any:
    """The restored model, as a stock transformers model whose output projections add W_o c.

    Args:
        path: an adapter directory, or any checkpoint directory with a folded compensation (loaded as it is).
        base: the pruned model, where it moved since the adapter was written.

    Returns:
        a transformers model in evaluation mode.

    Raises:
        ValueError: `path` is neither, its version is unknown, or it does not fit the model.
    """
    path = Path(path)
    record = path / "adapter_config.json"
    if not record.is_file():
        return load_model(path).model
    config = read_json(record)
    if config.get("format") != _FORMAT or config.get("version") != 0:
        raise ValueError(
            f"{record} has format {config.get('format')!r} version {config.get('version')!r}; "
            f"this release reads {_FORMAT!r} version 0"
        )
    source = Path(base) if base is not None else Path(config["base_model"])
    if not source.exists():
        raise ValueError(f"the pruned model {source} of the adapter {path} is gone; pass base=<its new place>")
    return apply_compensation(load_model(source).model, Compensation.load(path / "adapter_model.safetensors"))
