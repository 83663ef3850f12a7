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

__all__ = ["adapter_base", "adapter_compensation", "load_adapter", "save_adapter"]

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


def adapter_base(path: str | Path) -> Path | None:
    """The pruned model that the adapter directory `path` was written for; None where `path` is no adapter.

    Raises:
        ValueError: an adapter record of another format or version.
    """
    record = Path(path).expanduser() / "adapter_config.json"
    if not record.is_file():
        return None
    config = read_json(record)
    if config.get("format") != _FORMAT or config.get("version") != 0 or not isinstance(config.get("base_model"), str):
        raise ValueError(
            f"{record} has format {config.get('format')!r} version {config.get('version')!r}; "
            f"this release reads {_FORMAT!r} version 0"
        )
    return Path(config["base_model"])


def adapter_compensation(path: str | Path) -> Compensation:
    """The compensation in the adapter directory `path`."""
    return Compensation.load(Path(path).expanduser() / "adapter_model.safetensors")


def load_adapter(path: str | Path, *, base: str | Path | None = None) -> Any:
    """The pruned model of the adapter directory `path` with its output projections adding W_o c.

    Raises:
        ValueError: no adapter, its version is unknown, its model is gone, or it does not fit the model.
    """
    recorded = adapter_base(path)
    if recorded is None:
        raise ValueError(f"{path} is no adapter directory; it has no adapter_config.json")
    source = Path(base) if base is not None else recorded
    if not source.exists():
        raise ValueError(f"the pruned model {source} of the adapter {path} is gone; pass base=<its new place>")
    return apply_compensation(load_model(source).model, adapter_compensation(path))
