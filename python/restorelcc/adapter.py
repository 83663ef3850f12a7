"""A compensation beside its pruned model: an adapter directory that `restorelcc.load` applies.

    adapter_config.json          format, version, the pruned model it belongs to, the projections it changes
    adapter_model.safetensors    vectors [L, H·D] float32 and the chosen heads [L, H]; or those of FFNs, or both

For architectures where no stock checkpoint has a place for W_o c, and for people who want it apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .artifacts import atomic_directory, atomic_write_json, read_json
from .compensation import Compensation, apply_compensation, check_fits
from .fold_target import skeleton_of, stored_config
from .models import load_model
from .output_places import refuse_inputs

__all__ = ["adapter_base", "adapter_compensation", "is_adapter", "load_adapter", "save_adapter"]

_FORMAT = "restorelcc-adapter"


def save_adapter(pruned: Path, compensation: Compensation, out: Path, *, overwrite: bool = False) -> None:
    """Writes the adapter directory of `compensation` for the checkpoint `pruned`; whole or not at all.

    Raises:
        ValueError: the compensation belongs to another model.
    """
    refuse_inputs(out, pruned)  # an adapter needs its pruned model
    check_fits(skeleton_of(stored_config(Path(pruned))), compensation)
    with atomic_directory(out, overwrite=overwrite) as partial:
        config = {
            "format": _FORMAT,
            "version": 0,
            "base_model": str(Path(pruned).resolve()),
            **compensation.described(),
        }
        atomic_write_json(partial / "adapter_config.json", config)
        compensation.save(partial / "adapter_model.safetensors")


def is_adapter(path: str | Path) -> bool:
    """Whether `path` is an adapter directory."""
    return _record(path).is_file()


def adapter_base(path: str | Path, *, base: str | Path | None = None) -> Path:
    """The pruned model that the adapter directory `path` was written for, or `base` where that moved.

    Raises:
        ValueError: no adapter, an adapter record of another format or version, or its model is gone.
    """
    record = _record(path)
    config = _checked(record)
    named = base if base is not None else config.get("base_model")
    if not isinstance(named, str | Path) or "\0" in str(named):
        raise ValueError(f"{record} names no pruned model (base_model); write the adapter again or pass base=")
    source = Path(named)
    if not source.is_dir():
        raise ValueError(
            f"the pruned model {str(source)[:200]} of the adapter {record.parent} is gone; pass base=<its new place> "
            "or correct base_model in adapter_config.json"
        )
    return source


def adapter_compensation(path: str | Path) -> Compensation:
    """The compensation in the adapter directory `path`.

    Raises:
        ValueError: a damaged adapter, or one whose two files are not of one adapter.
    """
    record = _record(path)
    config = _checked(record)
    compensation = Compensation.load(record.parent / "adapter_model.safetensors")
    said = {key: value for key, value in config.items() if key.rpartition(".")[2] in ("sites", "inputs")}
    if said != compensation.described():
        raise ValueError(f"{record} and adapter_model.safetensors beside it are not of one adapter; write it again")
    return compensation


def load_adapter(path: str | Path, *, base: str | Path | None = None) -> Any:
    """The pruned model of the adapter directory `path` with its output projections adding W_o c (and c, FFNs').

    Raises:
        ValueError: as `adapter_base` and `adapter_compensation`, or it does not fit the model.
    """
    compensation = adapter_compensation(path)
    return apply_compensation(load_model(adapter_base(path, base=base)).model, compensation)


def _record(path: str | Path) -> Path:
    return Path(path).expanduser() / "adapter_config.json"


def _checked(record: Path) -> dict[str, Any]:
    config = read_json(record)
    if config.get("format") != _FORMAT or config.get("version") != 0:
        raise ValueError(
            f"{record} has format {config.get('format')!r} version {config.get('version')!r}; "
            f"this release reads {_FORMAT!r} version 0"
        )
    return config
