"""From a pruned checkpoint to a packed directory: what `restorelcc pack` does.

    pruned checkpoint                            -> packed, no compensation
    restored checkpoint (folded biases)          -> packed, the biases stay biases
    adapter directory                            -> its pruned model packed, its compensation the default
    any of the first, and NAME=DIR ...           -> packed with these compensations side by side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .adapter import adapter_base, adapter_compensation, is_adapter
from .artifacts import Progress
from .compensation import Compensation
from .models import load_model
from .output_places import refuse_inputs
from .packed_model import pack_model, save_packed
from .packed_record import DTYPES, PACKED_FILE, Matrix, check_name

__all__ = ["DEFAULT_NAME", "PackReport", "pack_checkpoint", "parse_compensations"]

DEFAULT_NAME = "default"  # of the one compensation that was given without a name
_FILES = ("adapter_model.safetensors", "compensation.safetensors")


@dataclass(frozen=True)
class PackReport:
    """What was written. Bytes: of packed.safetensors, and of all parameters in the model's type, dense.

    dense: matrices that stayed dense, for having too few zeros.
    """

    out: Path
    values: str
    packed: tuple[Matrix, ...]
    dense: tuple[Matrix, ...]
    compensations: tuple[str, ...]
    default: str | None
    bytes: int
    bytes_dense: int

    @property
    def sparsity(self) -> float:
        """Of the packed matrices together."""
        weights = sum(matrix.rows * matrix.columns for matrix in self.packed)
        return 1.0 - sum(matrix.nonzero for matrix in self.packed) / max(weights, 1)

    def lines(self) -> list[str]:
        """For a person."""
        dtype = str(DTYPES[self.values]).removeprefix("torch.")
        lines = [
            f"{self.out}: {len(self.packed)} matrices packed as {self.values}, {self.sparsity:.1%} zeros; "
            f"{self.bytes:,} bytes (all dense in {dtype}: {self.bytes_dense:,})"
        ]
        if self.dense:
            first = self.dense[0]
            lines.append(
                f"{len(self.dense)} matrices stay dense, having too few zeros, such as {first.name} "
                f"({first.sparsity:.1%})"
            )
        if self.compensations:
            lines.append(f"compensations: {', '.join(self.compensations)}; by default {self.default or 'none'}")
        return lines


def parse_compensations(specs: Sequence[str]) -> dict[str, Path]:
    """["law=a", "b"] -> {"law": a, "default": b}.

    Raises:
        ValueError: a name twice, more than one without a name, or a name of other characters.
    """
    found: dict[str, Path] = {}
    for spec in specs:
        name, sign, path = spec.partition("=")
        if not sign or Path(spec).exists():
            name, path = DEFAULT_NAME, spec
        if check_name(name) in found:
            raise ValueError(
                f"two compensations are called {name}; give each a name of its own, as --compensation NAME=DIR"
            )
        found[name] = Path(path)
    return found


def read_compensation(path: Path) -> Compensation:
    """From an adapter directory, a checkpoint with a folded compensation, or a compensation file."""
    files = [path] if path.is_file() else [path / name for name in _FILES if (path / name).is_file()]
    if not files:
        raise ValueError(
            f"{path} holds no compensation ({' or '.join(_FILES)}); pass an adapter directory, a checkpoint that "
            "`fold` or a recipe of compensations wrote, or a file of `restorelcc train` (`best` and `fast` change "
            "weights: pack what they wrote)"
        )
    try:
        return Compensation.load(files[0])
    except KeyError as error:
        raise ValueError(f"{files[0]} lacks {error}; make it again with `restorelcc restore`") from error


def pack_checkpoint(
    source: str,
    out: Path,
    *,
    values: str = "bf16",
    lm_head: str = "dense",
    compensations: Mapping[str, Path] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackReport:
    """Packs the checkpoint `source` (MODEL or an adapter directory) and writes it to `out`, whole or not at all.

    Args:
        values: see `pack_model`.
        compensations: name -> adapter directory, restored checkpoint or compensation file. The one called "default"
            applies where a run chooses none.

    Raises:
        ValueError: not pruned, a compensation that is not there or belongs to another model, or one for a checkpoint
            that has a compensation folded into its biases already.
        OSError: no space left; nothing is left behind.
    """
    given = dict(compensations or {})
    base = adapter_base(source) if is_adapter(source) else None
    read = [Path(place) for place in (source, base, *given.values()) if place is not None]
    refuse_inputs(Path(out), *(place for place in read if place.exists()))
    if given and (Path(source) / "compensation.safetensors").is_file():
        raise ValueError(
            f"{source} has a compensation folded into its biases, and --compensation would be added on top; "
            "pack the pruned checkpoint it was made from"
        )
    vectors = {name: read_compensation(path) for name, path in given.items()}
    if base is not None:
        if DEFAULT_NAME in vectors:
            raise ValueError(
                f"{source} is an adapter, whose compensation is the default one; name the other, as NAME=DIR"
            )
        vectors = {DEFAULT_NAME: adapter_compensation(source), **vectors}
    loaded = load_model(source if base is None else base)
    default = DEFAULT_NAME if DEFAULT_NAME in vectors else None
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    model = pack_model(
        loaded.model, values=values, lm_head=lm_head, compensations=vectors, default=default, progress=progress
    )
    save_packed(model, loaded.tokenizer, out, overwrite=overwrite)
    record = model.packed_record
    return PackReport(
        Path(out), values, record.packed, record.dense, record.compensations, default,
        (Path(out) / PACKED_FILE).stat().st_size, parameters * record.dtype.itemsize,
    )  # fmt: skip
