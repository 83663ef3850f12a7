"""Moments of the lost activation of every attention head, streamed layer by layer.

    ΔZ = Z_d − Z_p        z: the head's output, i.e. its slice of the input of the output projection
    count, mean = Σ ΔZ / count  [D],  Gram = ΔZᵀΔZ  [D, D]        per head, in float64

These are sufficient: mean(σ_i u_i) v_i = (mean(ΔZ)·v_i) v_i and the v_i are eigenvectors of the Gram
matrix, so the state is O(L·H·D²) whatever the number of tokens (RestoreLCC, arXiv 2510.21834, eq. 4-6,
restated). One dense and one pruned layer are resident; hidden states ping-pong between two files a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops
from .artifacts import Progress, SilentProgress, atomic_write_tensors, fingerprint
from .head_moments import HeadMoments
from .layer_pairs import LayerPair, stream_pairs
from .layers import LayerStream
from .models import attention_sites
from .resume import only_call
from .step_file import read_step_file

if TYPE_CHECKING:
    from .text import TokenSet

__all__ = ["POSITIONS", "Moments", "collect_moments", "counted_positions"]

POSITIONS = ("all", "last", "response")
_FIELDS = {
    "count": (torch.int64, "L"), "total": (torch.float64, "L H D"), "gram": (torch.float64, "L H D D"),
}  # fmt: skip
_SAMPLES = (torch.float32, "L H S D")
_LAYER = {"count": (torch.int64, "O"), "total": (torch.float64, "H D"), "gram": (torch.float64, "H D D")}


@dataclass(frozen=True)
class Moments:
    """Streaming moments of every head: count [L] tokens, total [L, H, D] and gram [L, H, D, D], float64.

    samples: ΔZ at S of the tokens that were counted, the same for all heads, [L, H, S, D] float32; or None.
    """

    count: Tensor
    total: Tensor
    gram: Tensor
    metadata: dict[str, str]
    samples: Tensor | None = None

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
        tensors = {"count": self.count, "total": self.total, "gram": self.gram}
        if self.samples is not None:
            tensors["samples"] = self.samples
        atomic_write_tensors(path, tensors, {"kind": "moments", "version": "0", **self.metadata})

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Raises ValueError when the file is missing, damaged or not a moments file of this version."""
        remedy = "make one with `restorelcc moments`"
        found, metadata = read_step_file(
            path, "moments", _FIELDS, name="moments", remedy=remedy, others=[_SAMPLES]
        )
        found = {name: value for name, value in found.items() if name in _FIELDS or name == "samples"}
        squares = found["gram"].diagonal(dim1=-2, dim2=-1)
        if int(found["count"].min()) < 0 or bool((squares < 0).any()):
            raise ValueError(f"{path} holds a negative count or a negative sum of squares; {remedy}")
        return cls(**found, metadata=metadata)


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
    positions: str = "all",
    skip_first: int = 1,
    samples: int = 0,
    seed: int = 0,
    batch: int = 4,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Moments:
    """ΔZ moments of every head, both models on the same text, one pair of layers resident.

    Args:
        dense, pruned: checkpoint directories with the same shapes.
        tokens: the text, ids [n, T].
        out: the moments file; its scratch (hidden states, finished layers) stands in `out` + ".work" and is
            removed at the end. A killed call, repeated with the same arguments, goes on at the layer where
            it stopped and gives the same bits.
        positions, skip_first: see `counted_positions`.
        samples: tokens whose ΔZ is kept (at most all that count), drawn by `seed`: 4·L·H·D bytes each.
        batch: rows at once.

    Memory: two layers, the embeddings, `batch` rows of activations and the state of one layer. Disk: four
    files of n·T·E elements of `dtype`.

    Raises:
        ValueError: unknown positions, no token left, models of different shape, text that is not for them, or another
            process that works on `out`.
    """
    progress = progress or SilentProgress()
    keep = counted_positions(tokens, positions, skip_first)
    streams = (LayerStream(dense, dtype=dtype), LayerStream(pruned, dtype=dtype))
    tokens.check_model(streams[0].model)
    sites = attention_sites(streams[0].model)
    if [(s.heads, s.head_dim) for s in sites] != [(s.heads, s.head_dim) for s in attention_sites(streams[1].model)]:
        raise ValueError(f"{dense} and {pruned} differ in layers, heads or head size; prune a copy of the same model")
    heads, head_dim = sites[0].heads, sites[0].head_dim

    out = Path(out)
    work = out.with_name(out.name + ".work")
    stamp = fingerprint(dense=Path(dense), pruned=Path(pruned), ids=tokens.fingerprint(), positions=positions,
                        skip_first=skip_first, batch=batch, dtype=str(dtype), samples=[samples, seed])
    picked = _sampled(keep, samples, seed)
    fields = {**_LAYER, **({"samples": (torch.float32, "H S D")} if samples else {})}
    names = [site.name for site in sites]

    def visit(pair: LayerPair) -> dict[str, Tensor]:
        state, rows = _one_layer(pair, names[pair.index], keep, picked, heads, head_dim)
        found = {"count": torch.tensor([state.count]), "total": state.total, "gram": state.gram}
        return {**found, "samples": rows} if samples else found

    with only_call(work, out):
        parts = list(stream_pairs(
            streams, tokens, visit, work=work, stamp=stamp, fields=fields, batch=batch, task="moments",
            progress=progress,
        ))  # fmt: skip
        metadata = {"fingerprint": stamp, "positions": positions, "skip_first": str(skip_first),
                    "sites": json.dumps(names)}
        moments = Moments(torch.cat([p["count"] for p in parts]), torch.stack([p["total"] for p in parts]),
                          torch.stack([p["gram"] for p in parts]), metadata,
                          torch.stack([p["samples"] for p in parts]) if samples else None)
        moments.save(out)
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
    pair: LayerPair, site: str, keep: Tensor, sampled: Tensor, heads: int, head_dim: int
) -> tuple[HeadMoments, Tensor]:
    """Runs a layer of both models over all text; its head moments, and ΔZ [H, S, D] of the sampled tokens."""
    rows_kept = []
    state: HeadMoments | None = None
    local = site.removeprefix(pair.name + ".")
    for batch in pair.batches():
        rows, length = batch.mask.shape
        picked: list[Tensor] = []
        for model, layer in enumerate(pair.layers):
            seen: list[Tensor] = []
            handle = layer.get_submodule(local).register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0])
            )
            try:
                pair.run(model, batch)
            finally:
                handle.remove()
            z = seen[0].reshape(rows, length, heads, head_dim)
            picked.append(z[keep[batch.begin : batch.end, :length]])
        state = ops.head_moments(picked[0], picked[1], state)
        inside = sampled[batch.begin : batch.end, :length][keep[batch.begin : batch.end, :length]]
        rows_kept.append((picked[0][inside] - picked[1][inside]).float())
    assert state is not None  # keep has a token and every batch was seen
    return state, torch.cat(rows_kept).transpose(0, 1).contiguous()
