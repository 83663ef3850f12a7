"""Moments of the lost activation of every attention head, streamed layer by layer.

    ΔZ = Z_d − Z_p        z: the head's output, i.e. its slice of the input of the output projection
    count, mean = Σ ΔZ / count  [D],  Gram = ΔZᵀΔZ  [D, D]        per head, in float64

These are sufficient: mean(σ_i u_i) v_i = (mean(ΔZ)·v_i) v_i and the v_i are eigenvectors of the Gram
matrix, so the state is O(L·H·D²) whatever the number of tokens (RestoreLCC, arXiv 2510.21834, eq. 4-6,
restated). One dense and one pruned layer are resident; hidden states ping-pong between two files a model.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import ops
from .artifacts import Progress, SilentProgress, atomic_write_json, atomic_write_tensors, fingerprint, reserve
from .head_moments import HeadMoments
from .layers import LayerStream, run_layer
from .models import attention_sites
from .resume import only_call, read_record
from .step_file import read_step_file

if TYPE_CHECKING:
    from .text import TokenSet

__all__ = ["POSITIONS", "Moments", "collect_moments", "counted_positions"]

POSITIONS = ("all", "last", "response")
_FIELDS = {
    "count": (torch.int64, "L"), "total": (torch.float64, "L H D"), "gram": (torch.float64, "L H D D"),
}  # fmt: skip
_LAYER = {"count": (torch.int64, "O"), "total": (torch.float64, "H D"), "gram": (torch.float64, "H D D")}


@dataclass(frozen=True)
class Moments:
    """Streaming moments of every head: count [L] tokens, total [L, H, D] and gram [L, H, D, D], float64."""

    count: Tensor
    total: Tensor
    gram: Tensor
    metadata: dict[str, str]

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
        atomic_write_tensors(path, tensors, {"kind": "moments", "version": "0", **self.metadata})

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Raises ValueError when the file is missing, damaged or not a moments file of this version."""
        remedy = "make one with `restorelcc moments`"
        found, metadata = read_step_file(path, "moments", _FIELDS, name="moments", remedy=remedy)
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
    layer_count, heads, head_dim = len(sites), sites[0].heads, sites[0].head_dim

    out = Path(out)
    work = out.with_name(out.name + ".work")
    stamp = fingerprint(dense=Path(dense), pruned=Path(pruned), ids=tokens.fingerprint(), positions=positions,
                        skip_first=skip_first, batch=batch, dtype=str(dtype))
    rows, length = tokens.ids.shape
    with only_call(work, out):
        hidden = _HiddenFiles(work, rows, length, streams[0].config.hidden_size)
        done = _finished_layers(work, stamp, hidden)
        hidden.open()
        with progress.task("moments", layer_count) as advance:
            advance(done)
            for index in range(done, layer_count):
                names = [s.name for s in sites]
                state = _one_layer(streams, index, names, tokens, keep, hidden, batch, heads, head_dim)
                hidden.flush()
                tensors = {"count": torch.tensor([state.count]), "total": state.total, "gram": state.gram}
                atomic_write_tensors(_layer_file(work, index), tensors, {"kind": "layer", "version": "0"})
                progress_record = {"fingerprint": stamp, "layers": index + 1}
                atomic_write_json(work / "progress.json", progress_record)
                advance(1)

        parts = [_read_layer(work, index) for index in range(layer_count)]
        metadata = {"fingerprint": stamp, "positions": positions, "skip_first": str(skip_first),
                    "sites": json.dumps([s.name for s in sites])}
        moments = Moments(torch.cat([p["count"] for p in parts]), torch.stack([p["total"] for p in parts]),
                          torch.stack([p["gram"] for p in parts]), metadata)
        moments.save(out)
        hidden.close()
        for file in work.iterdir():
            file.unlink()
        work.rmdir()
    return moments


def _layer_file(work: Path, index: int) -> Path:
    return work / f"layer_{index:04d}.safetensors"


def _read_layer(work: Path, index: int) -> dict[str, Tensor]:
    return read_step_file(_layer_file(work, index), "layer", _LAYER, name="layer", remedy="run it again")[0]


class _HiddenFiles:
    """Hidden states [n, T, E] of both models in two files each: a layer reads one and writes the other.

    Stored as float32 whatever the computation type, which loses nothing of bf16 and fp16.
    """

    def __init__(self, work: Path, rows: int, length: int, width: int) -> None:
        self.shape = (rows, length, width)
        self.size = rows * length * width * 4
        self.maps: dict[tuple[int, int], np.memmap[Any, Any]] = {}
        self.files = {
            (model, parity): work / f"hidden_{('dense', 'pruned')[model]}_{parity}.f32"
            for model in (0, 1)
            for parity in (0, 1)
        }

    def whole(self) -> bool:
        """Whether an earlier call left all of them, in this size."""
        return all(path.is_file() and path.stat().st_size == self.size for path in self.files.values())

    def open(self) -> None:
        """Maps those that are there, and makes the others.

        Raises:
            OSError: not enough room.
        """
        if not self.whole():
            reserve(list(self.files.values()), self.size)
        for key, path in self.files.items():
            self.maps[key] = np.memmap(path, dtype=np.float32, mode="r+", shape=self.shape)

    def read(self, model: int, index: int, begin: int, end: int) -> Tensor:
        return torch.from_numpy(np.array(self.maps[model, index % 2][begin:end]))

    def write(self, model: int, index: int, begin: int, value: Tensor) -> None:
        """Output of layer `index`, which is the input of layer index + 1."""
        self.maps[model, (index + 1) % 2][begin : begin + value.shape[0], : value.shape[1]] = value.float().numpy()

    def flush(self) -> None:
        for array in self.maps.values():
            array.flush()

    def close(self) -> None:
        self.maps.clear()


def _finished_layers(work: Path, stamp: str, hidden: _HiddenFiles) -> int:
    """Layers a killed call with the same fingerprint finished; everything else in `work` is of no use."""
    state = read_record(work / "progress.json")
    layers = state.get("layers")
    if state.get("fingerprint") == stamp and isinstance(layers, int) and hidden.whole():
        with suppress(ValueError):  # a damaged layer: begin again
            for index in range(layers):
                _read_layer(work, index)
            return layers
    for file in work.iterdir():
        file.unlink()
    return 0


def _one_layer(
    streams: tuple[LayerStream, LayerStream],
    index: int,
    sites: list[str],
    tokens: TokenSet,
    keep: Tensor,
    hidden: _HiddenFiles,
    batch: int,
    heads: int,
    head_dim: int,
) -> HeadMoments:
    """Runs layer `index` of both models over all text, writes its outputs and returns its head moments."""
    state: HeadMoments | None = None
    rows = tokens.ids.shape[0]
    with streams[0].layer(index) as dense, streams[1].layer(index) as pruned, torch.no_grad():
        for begin in range(0, rows, batch):
            end = min(begin + batch, rows)
            length = int(tokens.lengths[begin:end].max())
            ids, mask = tokens.ids[begin:end, :length], tokens.attention_mask[begin:end, :length]
            picked: list[Tensor] = []
            for model, (stream, layer) in enumerate(zip(streams, (dense, pruned), strict=True)):
                entered, arguments = stream.embed(ids, mask)
                if index > 0:
                    entered = hidden.read(model, index, begin, end)[:, :length].to(stream.dtype)
                projection = stream.model.get_submodule(sites[index])
                seen: list[Tensor] = []
                handle = projection.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                try:
                    out = run_layer(layer, entered, arguments[index])
                finally:
                    handle.remove()
                hidden.write(model, index, begin, out)
                z = seen[0].reshape(end - begin, length, heads, head_dim)
                picked.append(z[keep[begin:end, :length]])
            state = ops.head_moments(picked[0], picked[1], state)
    assert state is not None  # keep has a token and every batch was seen
    return state
