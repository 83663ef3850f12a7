"""Moments of the lost activation of every attention head, or of every FFN, streamed layer by layer.

    ΔZ = Z_d − Z_p        z: the head's output, i.e. its slice of the input of the output projection
    ΔY = Y_d − Y_p        y: the FFN's output, i.e. that of its last projection: one unit a layer, of size E
    count, mean = Σ ΔZ / count  [D],  Gram = ΔZᵀΔZ  [D, D]        per head, in float64; of ΔY likewise

These are sufficient: mean(σ_i u_i) v_i = (mean(ΔZ)·v_i) v_i and the v_i are eigenvectors of the Gram
matrix, so the state is O(L·H·D²), or O(L·E²), whatever the number of tokens (RestoreLCC, arXiv 2510.21834, eq. 4-6,
restated). One dense and one pruned layer are resident; hidden states ping-pong between two files a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops
from .artifacts import Progress, SilentProgress, atomic_write_tensors, fingerprint
from .head_moments import HeadMoments
from .layer_pairs import LayerPair, PairBatch, stream_pairs
from .layers import LayerStream
from .resume import only_call
from .sites import (
    ATTENTION,
    Placed,
    Site,
    chained,
    fields_by_place,
    model_sites,
    places_of,
    prefix,
    tensors_by_place,
)
from .step_file import Fields, read_step_file

if TYPE_CHECKING:
    from .text import TokenSet

__all__ = ["POSITIONS", "Moments", "collect_moments", "counted_positions"]

POSITIONS = ("all", "last", "response")
_FIELDS = {
    "count": (torch.int64, "L"), "total": (torch.float64, "L H D"), "gram": (torch.float64, "L H D D"),
}  # fmt: skip
_SAMPLES = {"samples": (torch.float32, "L H S D")}
_LAYER = {"count": (torch.int64, "O"), "total": (torch.float64, "H D"), "gram": (torch.float64, "H D D")}
_LAYER_SAMPLES = {"samples": (torch.float32, "H S D")}


@dataclass(frozen=True)
class Moments(Placed):
    """Streaming moments of every head: count [L] tokens, total [L, H, D] and gram [L, H, D, D], float64.

    samples: ΔZ at S of the tokens that were counted, the same for all heads, [L, H, S, D] float32; or None.
    Of FFNs (place ffn) H is 1 and D is E.
    """

    count: Tensor
    total: Tensor
    gram: Tensor
    metadata: dict[str, str]
    samples: Tensor | None = None
    place: str = ATTENTION
    also: Moments | None = None

    @property
    def mean(self) -> Tensor:
        """mean(ΔZ) [L, H, D], float64."""
        return self.total / self.count.clamp(min=1).to(self.total.dtype)[:, None, None]

    @property
    def rms(self) -> Tensor:
        """Root mean square of ΔZ per element, [L, H]: the natural unit of a head's compensation."""
        trace = self.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        elements = self.count.clamp(min=1).to(trace.dtype)[:, None] * self.gram.shape[-1]
        return (trace / elements).sqrt()

    def save(self, path: Path) -> None:
        """Writes the file that load() reads, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        marks = {"kind": "moments", "version": "0"} | ({} if self.where == ATTENTION else {"places": self.where})
        for part in self.parts:
            dot = prefix(self.places, part.place)
            tensors |= {f"{dot}count": part.count, f"{dot}total": part.total, f"{dot}gram": part.gram}
            if part.samples is not None:
                tensors[f"{dot}samples"] = part.samples
        atomic_write_tensors(path, tensors, {**marks, **self.metadata})

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Raises ValueError when the file is missing, damaged or not a moments file of this version."""
        remedy = "make one with `restorelcc moments`"
        found, metadata = read_step_file(path, "moments", _fields, name="moments", remedy=remedy)
        parts: list[Moments] = []
        for place, tensors in tensors_by_place(places_of(metadata.pop("places", ATTENTION)), found).items():
            squares = tensors["gram"].diagonal(dim1=-2, dim2=-1)
            if int(tensors["count"].min()) < 0 or bool((squares < 0).any()):
                raise ValueError(f"{path} holds a negative count or a negative sum of squares; {remedy}")
            parts.append(cls(**tensors, metadata={} if parts else metadata, place=place))
        return chained(parts)


def _fields(metadata: dict[str, str], names: list[str]) -> Fields:
    return fields_by_place(places_of(metadata.get("places", ATTENTION)), _FIELDS, _SAMPLES, names)


def counted_positions(tokens: TokenSet, positions: str, skip_first: int) -> Tensor:
    """Which tokens [n, T] enter the moments.

    `all`: every token but padding; `response`: from the first answer token on; `last`: the last token before
    the answer (the paper's choice). The first `skip_first` tokens are left out everywhere: position 0 is an
    attention sink whose activations are orders of magnitude larger than all others.

    Raises:
        ValueError: an unknown choice, or a choice that leaves no token.
    """
    if positions not in POSITIONS:
        raise ValueError(f"unknown positions {positions!r}; choose one of {', '.join(POSITIONS)}")
    index = torch.arange(tokens.ids.shape[1])[None, :]
    keep = index < tokens.lengths[:, None]
    if positions == "response":
        keep = keep & (index >= tokens.response_start[:, None])
    elif positions == "last":
        plain = tokens.response_start <= 1  # no prompt: the last token of the text itself
        last = torch.where(plain, tokens.lengths - 1, tokens.response_start - 1)
        keep = keep & (index == last[:, None])
    keep = keep & (index >= skip_first)
    if not bool(keep.any()):
        raise ValueError(
            f"no token is left: {tokens.ids.shape[0]} rows, positions={positions}, skip_first={skip_first}; "
            "give longer text or a smaller skip_first"
        )
    return keep


def collect_moments(
    dense: Path,
    pruned: Path,
    tokens: TokenSet,
    *,
    out: Path,
    work: Path | None = None,
    sites: str = ATTENTION,
    positions: str = "all",
    skip_first: int = 1,
    samples: int = 0,
    seed: int = 0,
    batch: int = 4,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Moments:
    """ΔZ moments of every head, ΔY moments of every FFN, or both, of both models on the same text.

    Args:
        dense, pruned: checkpoint directories with the same shapes.
        tokens: the text, ids [n, T].
        out: the moments file. A killed call, repeated with the same arguments, goes on at the layer where it stopped
            and gives the same bits.
        work: a directory of this step alone for its scratch (hidden states, finished layers), which the caller removes;
            by default `out` + ".work", which is removed at the end.
        sites: attention, ffn or both: one pass over the text gives both.
        positions, skip_first: see `counted_positions`.
        samples: tokens whose ΔZ is kept (at most all that count), drawn by `seed`: 4·L·H·D bytes each (4·L·E).
        batch: rows at once.

    Memory: two layers, the embeddings, `batch` rows of activations and the state of one layer; at the end that of all,
    8·L·H·D² bytes, 8·L·E² for FFNs. Disk: four files of n·T·E float32.

    Raises:
        ValueError: unknown sites or positions, no token left, models of different shape, text that is not for them, or
            another process that works on `out`.
    """
    progress = progress or SilentProgress()
    keep = counted_positions(tokens, positions, skip_first)
    streams = (LayerStream(dense, dtype=dtype), LayerStream(pruned, dtype=dtype))
    tokens.check_model(streams[0].model)
    places = places_of(sites)
    found = {place: model_sites(streams[0].model, place) for place in places}
    if found != {place: model_sites(streams[1].model, place) for place in places}:
        raise ValueError(f"{dense} and {pruned} differ in layers, heads or head size; prune a copy of the same model")

    out = Path(out)
    kept, work = work is not None, work or out.with_name(out.name + ".work")
    stamp = fingerprint(dense=Path(dense), pruned=Path(pruned), ids=tokens.fingerprint(), positions=positions,
                        skip_first=skip_first, batch=batch, dtype=str(dtype), samples=[samples, seed],
                        **({} if sites == ATTENTION else {"sites": sites}))  # fmt: skip
    picked = _sampled(keep, samples, seed)
    fields = fields_by_place(places, {**_LAYER, **(_LAYER_SAMPLES if samples else {})})

    def visit(pair: LayerPair) -> dict[str, Tensor]:
        made = _one_layer(pair, [found[place][pair.index] for place in places], keep, picked)
        tensors: dict[str, Tensor] = {}
        for place, (state, rows) in zip(places, made, strict=True):
            dot = prefix(places, place)
            tensors |= {f"{dot}count": torch.tensor([state.count]), f"{dot}total": state.total,
                        f"{dot}gram": state.gram}  # fmt: skip
            if samples:
                tensors[f"{dot}samples"] = rows
        return tensors

    with only_call(work, out):
        layers = [tensors_by_place(places, layer) for layer in stream_pairs(
            streams, tokens, visit, work=work, stamp=stamp, fields=lambda _: fields, batch=batch, task="moments",
            progress=progress,
        )]  # fmt: skip
        metadata = {"fingerprint": stamp, "positions": positions, "skip_first": str(skip_first)}
        metadata |= {
            f"{prefix(places, place)}sites": json.dumps([site.name for site in found[place]]) for place in places
        }
        records: list[Moments] = []
        for place in places:
            parts = [layer[place] for layer in layers]
            records.append(Moments(
                torch.cat([p["count"] for p in parts]), torch.stack([p["total"] for p in parts]),
                torch.stack([p["gram"] for p in parts]), {} if records else metadata,
                torch.stack([p["samples"] for p in parts]) if samples else None, place,
            ))  # fmt: skip
        moments = chained(records)
        moments.save(out)
        if not kept:
            for file in work.iterdir():
                file.unlink()
            work.rmdir()
    return moments


def _sampled(keep: Tensor, samples: int, seed: int) -> Tensor:
    """bool [n, T]: `samples` of the tokens in `keep`, or all of them where they are fewer.

    Raises:
        ValueError: a negative number.
    """
    if samples < 0:
        raise ValueError(f"samples is {samples}; it is a number of tokens, 0 or more")
    places = keep.flatten().nonzero()[:, 0]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(keep.numel(), dtype=torch.bool)
    chosen[places[order[:samples]]] = True
    return chosen.reshape(keep.shape)


def _one_layer(
    pair: LayerPair, sites: list[Site], keep: Tensor, sampled: Tensor
) -> list[tuple[HeadMoments, Tensor]]:
    """Runs a layer of both models over all text; of each site its moments, and ΔZ [H, S, D] of the sampled tokens."""
    states: list[HeadMoments | None] = [None] * len(sites)
    rows_kept: list[list[Tensor]] = [[] for _ in sites]
    for batch in pair.batches():
        seen: list[list[Tensor]] = [[] for _ in sites]  # of the dense model, then of the pruned one
        for model in range(len(pair.layers)):
            _watched_run(pair, model, batch, sites, keep, seen)
        counted = keep[batch.begin : batch.end, : batch.mask.shape[1]]
        inside = sampled[batch.begin : batch.end, : batch.mask.shape[1]][counted]
        for index, (dense, pruned) in enumerate(seen):
            states[index] = ops.head_moments(dense, pruned, states[index])
            rows_kept[index].append((dense[inside] - pruned[inside]).float())
    found = []
    for state, rows in zip(states, rows_kept, strict=True):
        assert state is not None  # keep has a token and every batch was seen
        found.append((state, torch.cat(rows).transpose(0, 1).contiguous()))
    return found


def _watched_run(
    pair: LayerPair, model: int, batch: PairBatch, sites: list[Site], keep: Tensor, seen: list[list[Tensor]]
) -> None:
    """Runs the layer of one model; appends z [tokens, H, D] of the counted tokens to each site's list."""
    rows, length = batch.mask.shape
    counted = keep[batch.begin : batch.end, :length]

    def note(site: Site, into: list[Tensor]) -> Callable[[Tensor], None]:
        return lambda z: into.append(z.reshape(rows, length, site.units, site.size)[counted])

    handles = []
    for site, into in zip(sites, seen, strict=True):
        module = pair.layers[model].get_submodule(site.name.removeprefix(pair.name + "."))
        handles.append(site.watch(module, note(site, into)))
    try:
        pair.run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
