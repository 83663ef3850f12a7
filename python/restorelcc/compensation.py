"""Compensation vectors, and the hooked model that applies them.

    attention   y = W_o z + W_o c      one constant vector c [H·D] per layer, every token, W_o of the pruned model
    ffn         y = W_down x + c       one constant vector c [E] per layer at the output of its FFN

The first is RestoreLCC (arXiv 2510.21834) eq. 9. In the hooked model each of these projections is a `SparseLinear` that
reads only the surviving weights and adds W_o c, or c, in float32; `fold` turns the same vectors into biases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .artifacts import atomic_write_tensors
from .models import get_module, replace_module
from .sites import ATTENTION, Placed, chained, fields_by_place, model_sites, places_of, prefix, tensors_by_place
from .sparse_linear import SparseLinear
from .step_file import Fields, read_step_file

__all__ = [
    "Compensation", "apply_compensation", "check_fits", "install_vectors", "sparse_output_projections", "vector_slots",
]  # fmt: skip

_FIELDS = {"vectors": (torch.float32, "L K"), "heads": (torch.bool, "L H")}
_REMEDY = "make one with `restorelcc restore`"


@dataclass(frozen=True)
class Compensation(Placed):
    """vectors [L, H·D] float32, zero outside the chosen `heads` [L, H]; `sites` name the output projections.

    Of FFNs: vectors [L, E], heads [L, 1], and the names of their last projections.
    """

    vectors: Tensor
    heads: Tensor
    sites: list[str]
    metadata: dict[str, str] = field(default_factory=dict)
    place: str = ATTENTION
    also: Compensation | None = None

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        marks = {"kind": "compensation", "version": "0"}
        if self.where != ATTENTION:
            marks["places"] = self.where
        for part in self.parts:
            dot = prefix(self.places, part.place)
            tensors |= {f"{dot}vectors": part.vectors, f"{dot}heads": part.heads}
            marks[f"{dot}sites"] = json.dumps(part.sites)
        return tensors, {**self.metadata, **marks}

    def save(self, path: Path) -> None:
        """Writes the file that load() reads, whole or not at all."""
        atomic_write_tensors(path, *self._contents())

    def to_bytes(self) -> bytes:
        """What save() writes."""
        tensors, metadata = self._contents()
        return save(tensors, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Compensation:
        """Raises ValueError when the file is missing, damaged or not a compensation file of this version."""
        found, metadata = read_step_file(path, "compensation", _fields, name="compensation", remedy=_REMEDY)
        places = places_of(metadata.pop("places", ATTENTION))
        names = {f"{prefix(places, place)}sites": place for place in places}
        missing = [key for key in names if key not in metadata]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; {_REMEDY}")
        sites = {place: _site_names(path, metadata.pop(key)) for key, place in names.items()}
        parts: list[Compensation] = []
        for place, tensors in tensors_by_place(places, found).items():
            (layers, inputs), heads = tensors["vectors"].shape, tensors["heads"].shape[1]
            if len(sites[place]) != layers or inputs % heads:
                raise ValueError(
                    f"{path} does not fit itself: {layers} vectors of {inputs}, {heads} heads, "
                    f"projections {str(sites[place])[:60]}; {_REMEDY}"
                )
            parts.append(cls(**tensors, sites=sites[place], metadata={} if parts else metadata, place=place))
        return chained(parts)

    def described(self) -> dict[str, Any]:
        """What an adapter's record says of its vectors: `sites` and `inputs`, the width; by place as in a file."""
        found: dict[str, Any] = {}
        for part in self.parts:
            dot = prefix(self.places, part.place)
            found |= {f"{dot}sites": part.sites, f"{dot}inputs": int(part.vectors.shape[1])}
        return found


def _fields(metadata: dict[str, str], _: list[str]) -> Fields:
    return fields_by_place(places_of(metadata.get("places", ATTENTION)), _FIELDS)


def _site_names(path: Path, text: str) -> list[str]:
    try:
        sites = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} names its projections in no readable list; {_REMEDY}") from error
    if not isinstance(sites, list) or not all(isinstance(site, str) for site in sites):
        raise ValueError(f"{path} names projections {str(sites)[:60]}, which is no list of names; {_REMEDY}")
    return sites


def sparse_output_projections(model: nn.Module, place: str = ATTENTION) -> list[SparseLinear]:
    """Replaces the projection of every site of `model`, in place, by a `SparseLinear` whose vector is 0.

    That is comp [K] of an attention output projection, and shift [E] of an FFN's. The gradient of a layer's vector is
    Σ_tokens dL/dz [H·D], or Σ_tokens dL/dy [E], because it is added at every token. Projections that are `SparseLinear`
    already are kept (their vector is set to 0).
    """
    projections = []
    for site in model_sites(model, place):
        module = get_module(model, site.name)
        if not isinstance(module, SparseLinear):
            assert isinstance(module, nn.Linear)
            zero = torch.zeros(site.width)
            added = {"comp": zero} if place == ATTENTION else {"shift": zero}
            module = SparseLinear.from_linear(module, **added)  # type: ignore[arg-type]
            replace_module(model, site.name, module)
        with torch.no_grad():
            _slot(module, place).zero_()
        module.requires_grad_(False)
        projections.append(module)
    return projections


def _slot(projection: SparseLinear, place: str) -> nn.Parameter:
    slot = projection.comp if place == ATTENTION else projection.shift
    assert slot is not None
    return slot


def vector_slots(model: nn.Module, place: str) -> list[nn.Parameter]:
    """The vector of every site, as `sparse_output_projections` leaves it: 0, and part of what the model computes."""
    return [_slot(projection, place) for projection in sparse_output_projections(model, place)]


def install_vectors(model: nn.Module, place: str, vectors: Tensor) -> None:
    """Makes the hooked model's vectors of one place those [L, width]."""
    with torch.no_grad():
        for slot, vector in zip(vector_slots(model, place), vectors, strict=True):
            slot.copy_(vector)


def check_fits(model: nn.Module, compensation: Compensation) -> None:
    """Refuses a compensation of another model; `model` may be a skeleton without storage.

    Raises:
        ValueError: the model's projections or heads are not the ones the compensation was made for.
    """
    for part in compensation.parts:
        sites = model_sites(model, part.place)
        inputs, heads = part.vectors.shape[1], part.heads.shape[1]
        if [(site.name, site.width, site.units) for site in sites] != [(name, inputs, heads) for name in part.sites]:
            unit = ("inputs", "heads") if part.place == ATTENTION else ("outputs", "vector a layer")
            raise ValueError(
                f"the compensation was made for {len(part.sites)} projections of {inputs} {unit[0]} and {heads} "
                f"{unit[1]}, the model has {len(sites)} projections of {sites[0].width} {unit[0]} and "
                f"{sites[0].units} {unit[1]}; use the pruned model it was made from"
            )


def apply_compensation(model: nn.Module, compensation: Compensation) -> nn.Module:
    """The hooked model: `model` with c at every site of the compensation and at no other, in place; returns it.

    Raises:
        ValueError: the model's output projections are not the ones the compensation was made for.
    """
    check_fits(model, compensation)
    with torch.no_grad():  # vectors of an earlier call at places that this compensation has not
        for module in model.modules():
            for slot in (module.comp, module.shift) if isinstance(module, SparseLinear) else ():
                if slot is not None:
                    slot.zero_()
    for part in compensation.parts:
        install_vectors(model, part.place, part.vectors)
    return model
