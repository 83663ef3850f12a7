"""Which heads and FFN channels a structured checkpoint kept of its dense model, and the file in it that says so.

    q_proj, k_proj, v_proj, gate_proj, up_proj      W = W_d[kept rows]            [N', K]
    o_proj, down_proj                               W = W_d[:, kept columns]      [N, K']

Rows and columns of a head are the D that are its own; query head h reads key-value head h // (H / H_kv). All layers
keep equally many, and each kept key-value head keeps equally many query heads, in their order: so a stock configuration
with smaller numbers describes the result, and a query head still reads the key-value head that it read.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifacts import read_json

__all__ = ["STRUCTURE_FILE", "Structure", "carried_files", "read_structure", "refuse_structured"]

STRUCTURE_FILE = "structure.json"
_SIZES = ("head_dim", "heads", "key_value_heads", "channels")
_LISTS = ("kept_heads", "kept_channels")
_MOST = 2**24  # of anything that is counted here; a hostile file must not make us allocate
_ROWS = {
    "q_proj": "heads", "k_proj": "key_value_heads", "v_proj": "key_value_heads",
    "gate_proj": "channels", "up_proj": "channels",
}  # fmt: skip
_COLUMNS = {"o_proj": "heads", "down_proj": "channels"}


@dataclass(frozen=True)
class Structure:
    """Sizes of the dense model (head_dim D, heads H, key_value_heads, channels) and what stayed, layer by layer.

    kept_heads, kept_channels: rising indices into the dense model's, one tuple a layer.

    Raises:
        ValueError: indices that are out of range or do not rise, or layers and groups that keep different numbers.
    """

    head_dim: int
    heads: int
    key_value_heads: int
    channels: int
    kept_heads: tuple[tuple[int, ...], ...]
    kept_channels: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for name in _SIZES:
            if not 0 < getattr(self, name) <= _MOST:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 1 and {_MOST}")
        if self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_value_heads} key-value heads evenly")
        if not self.kept_heads or len(self.kept_heads) != len(self.kept_channels):
            raise ValueError(
                f"it lists the heads of {len(self.kept_heads)} layers and the channels of {len(self.kept_channels)}"
            )
        for name, size in (("heads", self.heads), ("channels", self.channels)):
            lists = getattr(self, f"kept_{name}")
            for layer, kept in enumerate(lists):
                rising = all(a < b for a, b in itertools.pairwise(kept))
                if not kept or not rising or kept[0] < 0 or kept[-1] >= size:
                    raise ValueError(f"the kept {name} of layer {layer} are no rising list of numbers below {size}")
                if len(kept) != len(lists[0]):
                    raise ValueError(
                        f"layer 0 keeps {len(lists[0])} {name} and layer {layer} keeps {len(kept)}; a stock "
                        "configuration has one number for all layers"
                    )
        for layer in range(self.layers):
            groups = self.kept_key_value_heads(layer)
            counts = {sum(h // self.group == g for h in self.kept_heads[layer]) for g in groups}
            if len(counts) != 1 or len(groups) != len(self.kept_key_value_heads(0)):
                raise ValueError(f"layer {layer} keeps different numbers of the heads that share key-value heads")

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.kept_heads)

    @property
    def group(self) -> int:
        """Query heads of the dense model that read one key-value head."""
        return self.heads // self.key_value_heads

    def kept_key_value_heads(self, layer: int) -> tuple[int, ...]:
        """Those that a kept query head reads."""
        return tuple(sorted({head // self.group for head in self.kept_heads[layer]}))

    def rows(self, layer: int, projection: str) -> Tensor | None:
        """Kept rows [N'] int64 of a projection of the dense layer ("self_attn.q_proj"); None where all are kept."""
        return self._index(layer, _ROWS.get(projection.rpartition(".")[2]))

    def columns(self, layer: int, projection: str) -> Tensor | None:
        """Kept columns [K'] int64; None where all are kept."""
        return self._index(layer, _COLUMNS.get(projection.rpartition(".")[2]))

    def _index(self, layer: int, unit: str | None) -> Tensor | None:
        if unit is None:
            return None
        if unit == "channels":
            return torch.tensor(self.kept_channels[layer])
        kept = self.kept_heads[layer] if unit == "heads" else self.kept_key_value_heads(layer)
        return (torch.tensor(kept)[:, None] * self.head_dim + torch.arange(self.head_dim)).flatten()

    def cut(self, name: str, value: Tensor) -> Tensor:
        """What is kept of the dense model's weight [N, K] or bias [N] of the projection `name`, a full name.

        Raises:
            ValueError: it has other sizes than the dense model of this structure, or is of no layer of it.
        """
        layer = _layer_of(name)
        if layer >= self.layers:
            raise ValueError(
                f"{name} is of layer {layer}, the pruned model's {STRUCTURE_FILE} lists {self.layers} layers; "
                "pass the dense model it was made from"
            )
        for dimension, units, index in (
            (0, _ROWS, self.rows(layer, name)), (1, _COLUMNS, self.columns(layer, name)),
        ):  # fmt: skip
            if index is None or dimension >= value.dim():
                continue
            unit = units[name.rpartition(".")[2]]
            size = getattr(self, unit) * (1 if unit == "channels" else self.head_dim)
            if value.shape[dimension] != size:
                raise ValueError(
                    f"{name} of the dense model is {list(value.shape)}, the pruned model's {STRUCTURE_FILE} is of one "
                    f"with {size} {'rows' if dimension == 0 else 'columns'}; pass the dense model it was made from"
                )
            value = value.index_select(dimension, index.to(value.device))
        return value

    def to_json(self) -> str:
        """The contents of the file in a checkpoint."""
        fields = {name: getattr(self, name) for name in (*_SIZES, *_LISTS)}
        return json.dumps({"kind": "structure", "version": 0, **fields})


def _layer_of(name: str) -> int:
    """7 of "model.layers.7.mlp.up_proj"."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    if not numbers:
        raise ValueError(f"{name} is of no decoder layer")
    return int(numbers[0])


def read_structure(path: Path) -> Structure | None:
    """What the checkpoint directory `path` kept of its dense model; None where no heads or channels were removed.

    Raises:
        ValueError: the file is damaged, of another version, or lists what cannot be; with the remedy.
    """
    file = Path(path) / STRUCTURE_FILE
    if not file.exists():
        return None
    found = read_json(file)
    remedy = "prune again, or copy the file from where the checkpoint was made"
    if found.get("kind") != "structure" or found.get("version") != 0 or isinstance(found.get("version"), bool):
        raise ValueError(f"{file} is no structure file of version 0; {remedy}")
    sizes = [found.get(name) for name in _SIZES]
    lists = [found.get(name) for name in _LISTS]
    if not all(_whole(size) for size in sizes) or not all(_lists_of_numbers(value) for value in lists):
        raise ValueError(f"{file} lacks {', '.join((*_SIZES, *_LISTS))}, or they are no whole numbers; {remedy}")
    try:
        return Structure(*sizes, *(tuple(map(tuple, value)) for value in lists))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; {remedy}") from error


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lists_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, list) and all(map(_whole, part)) for part in value)


def carried_files(path: Path | None) -> dict[str, str]:
    """name -> contents of the structure file, for a checkpoint that is made from the one at `path`; {} without one."""
    structure = None if path is None else read_structure(path)
    return {} if structure is None else {STRUCTURE_FILE: structure.to_json()}


def refuse_structured(path: Path, what: str) -> None:
    """Raises ValueError where heads or channels of the checkpoint were removed, which `what` cannot work with."""
    if read_structure(path) is not None:
        raise ValueError(
            f"{what} compares the heads of two models one by one, but {path} has lost heads or channels of its dense "
            "model; restore it with --recipe best or fast"
        )
