"""Where a compensation vector is added: one site a layer, described alike for attention and FFN.

    attention   y = W_o (z + c)        c [H·D] at the input of the output projection: H units of size D, the heads
    ffn         y = W_down x + c       c [E] at the output of the FFN's last projection: one unit of size E

A unit has moments, components and a vector of its own, so every step is one code path over [L, units, size]. Records
of both places are two records, the FFN's behind the attention's (`Placed`). Their files hold plain names where they
are of attention alone; otherwise each name begins with its place, so that no reader takes a part for the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .architectures import attention_sites, ffn_outputs
from .step_file import Fields

__all__ = [
    "ATTENTION", "FFN", "SITES", "Placed", "Site", "chained", "fields_by_place", "model_sites", "places_of", "prefix",
    "tensors_by_place",
]  # fmt: skip

ATTENTION, FFN = "attention", "ffn"
_PLACES = {"attention": (ATTENTION,), "ffn": (FFN,), "both": (ATTENTION, FFN)}
SITES = tuple(_PLACES)  # what a user says

Record = TypeVar("Record", bound="Placed")


@dataclass(frozen=True)
class Site:
    """The place of one layer's vector: a module, and `units` vectors of `size` at its input or output."""

    place: str
    layer: int
    name: str
    units: int
    size: int

    @property
    def width(self) -> int:
        """Elements of the vector."""
        return self.units * self.size

    def watch(self, module: nn.Module, note: Callable[[Tensor], None]) -> RemovableHandle:
        """Calls note(z) in each call of `module`: with its input for attention, with its output for an FFN.

        z [B, T, width] (or [B·T, width]: OPT flattens) must be used at once; what runs on may write into it, as Falcon
        does when it adds the attention's output to the FFN's in place.
        """
        if self.place == ATTENTION:
            return module.register_forward_pre_hook(lambda _, args: note(args[0]))
        return module.register_forward_hook(lambda _, __, output: note(output))


def places_of(sites: str) -> tuple[str, ...]:
    """The places of `attention`, `ffn` or `both`. ValueError for another word."""
    if sites not in _PLACES:
        raise ValueError(f"unknown sites {sites[:40]!r}; choose one of {', '.join(SITES)}")
    return _PLACES[sites]


def model_sites(model: nn.Module, place: str) -> list[Site]:
    """The sites of one place, one a decoder layer, in order; `model` may be a skeleton without storage.

    Raises:
        ValueError: a layer whose projection is unknown (see `attention_sites` and `ffn_outputs`).
    """
    if place == ATTENTION:
        return [Site(place, site.layer, site.name, site.heads, site.head_dim) for site in attention_sites(model)]
    return [Site(place, layer, name, 1, width) for layer, (name, width) in enumerate(ffn_outputs(model))]


class Placed:
    """A record of the units of one place of all layers; `also`: that of the other place, where there is one."""

    place: str
    also: Any

    @property
    def parts(self: Record) -> tuple[Record, ...]:
        """The records of each place, attention first."""
        return (self,) if self.also is None else (self, self.also)

    @property
    def places(self) -> tuple[str, ...]:
        """Of the parts."""
        return tuple(part.place for part in self.parts)

    @property
    def where(self) -> str:
        """The word for the places: attention, ffn or both."""
        return next(word for word, places in _PLACES.items() if places == self.places)

    def part(self: Record, place: str, source: object = "this record") -> Record:
        """The record of one place alone. ValueError where there is none; `source` is what it calls this one."""
        found = next((part for part in self.parts if part.place == place), None)
        if found is None:
            raise ValueError(
                f"{source} is of the sites {self.where} alone, and {place} is asked for; make it with --sites {place} "
                "or both"
            )
        return replace(found, also=None)  # type: ignore[type-var]


def chained(parts: Sequence[Record]) -> Record:
    """One record of the records of each place, attention first."""
    return parts[0] if len(parts) == 1 else replace(parts[0], also=parts[1])  # type: ignore[type-var]


def prefix(places: Sequence[str], place: str) -> str:
    """What names begin with in a file of these places."""
    return "" if tuple(places) == (ATTENTION,) else f"{place}."


def fields_by_place(
    places: Sequence[str], fields: Fields, optional: Fields | None = None, names: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of a file of these places; `optional` ones are among them where `names` has them.

    Sizes of the FFN's units are other letters; layers L and sampled tokens S are the same.
    """
    found = {}
    for place in places:
        dot = prefix(places, place)
        wanted = {**fields, **{name: form for name, form in (optional or {}).items() if f"{dot}{name}" in names}}
        for name, (dtype, letters) in wanted.items():
            own = " ".join(letter if letter in "LS" or place == ATTENTION else letter.lower()
                           for letter in letters.split())  # fmt: skip
            found[f"{dot}{name}"] = (dtype, own)
    return found


def tensors_by_place(places: Sequence[str], found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """place -> name -> entry of what a file of these places holds under prefixed names."""
    dots = {place: prefix(places, place) for place in places}
    return {
        place: {name.removeprefix(dot): entry for name, entry in found.items() if name.startswith(dot)}
        for place, dot in dots.items()
    }
