"""Layer i of the dense and of the pruned model side by side over all text, one pair resident, hidden states on disk.

    h_d, h_p = embedding of the text                   [n, T, E] of each model
    for i in layers:  visit(layer i of both, h_d, h_p);   h_d, h_p = layer_d(h_d), layer_p(h_p)

What a step computes with the pair stands in its `visit`, which may change the pruned layer before it hands on that
layer's output. Hidden states ping-pong between two files a model. A killed call, repeated, goes on at the layer where
it stopped, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .artifacts import Progress, atomic_write_json, atomic_write_tensors, reserve
from .layers import LayerStream, run_layer
from .resume import code_stamp, read_record
from .step_file import Fields, read_step_file

if TYPE_CHECKING:
    from .text import TokenSet

__all__ = ["LayerPair", "PairBatch", "stream_pairs"]

DENSE, PRUNED = 0, 1


@dataclass(frozen=True)
class PairBatch:
    """Rows begin..end of the text, cut to their longest: what enters the layer of both models, and how it is called.

    entered: (h_d, h_p), [B, T, E] each. calls: the (args, kwargs) of the stock models. mask: bool [B, T], no padding.
    """

    begin: int
    end: int
    entered: tuple[Tensor, Tensor]
    calls: tuple[Any, Any]
    mask: Tensor


class LayerPair:
    """One layer of both models, resident while `visit` runs."""

    def __init__(
        self, streams: tuple[LayerStream, LayerStream], index: int, layers: tuple[nn.Module, nn.Module],
        tokens: TokenSet, batch: int, hidden: _HiddenFiles,
    ) -> None:  # fmt: skip
        self.index, self.layers = index, layers
        self.name = f"{streams[DENSE].prefix}.{index}"
        self._streams, self._tokens, self._batch, self._hidden = streams, tokens, batch, hidden

    @property
    def token_count(self) -> int:
        """Of all text, padding left out."""
        return int(self._tokens.lengths.sum())

    def batches(self) -> Iterator[PairBatch]:
        """All text in its order; as often as a step needs it."""
        tokens = self._tokens
        for begin in range(0, len(tokens), self._batch):
            end = min(begin + self._batch, len(tokens))
            length = int(tokens.lengths[begin:end].max())
            ids, mask = tokens.ids[begin:end, :length], tokens.attention_mask[begin:end, :length]
            entered, calls = [], []
            for model, stream in enumerate(self._streams):
                first, arguments = stream.embed(ids, mask)
                if self.index > 0:
                    first = self._hidden.read(model, self.index, begin, end)[:, :length].to(stream.dtype)
                entered.append(first)
                calls.append(arguments[self.index])
            yield PairBatch(begin, end, (entered[0], entered[1]), (calls[0], calls[1]), mask.bool())

    def run(self, model: int, batch: PairBatch) -> Tensor:
        """The output of the DENSE or PRUNED layer, handed on to the next one. [B, T, E]"""
        out = run_layer(self.layers[model], batch.entered[model], batch.calls[model])
        self._hidden.write(model, self.index, batch.begin, out)
        return out


def stream_pairs(
    streams: tuple[LayerStream, LayerStream],
    tokens: TokenSet,
    visit: Callable[[LayerPair], dict[str, Tensor]],
    *,
    work: Path,
    stamp: str,
    fields: Callable[[int], Fields],
    batch: int,
    task: str,
    progress: Progress,
) -> Iterator[dict[str, Tensor]]:
    """What `visit` returned for each layer, in order; read from the files that it is kept in until the end.

    Args:
        visit: must `run` both layers over every batch; its tensors must be as `fields` of the layer's index says.
        work: where hidden states and finished layers are kept; the caller removes it. `stamp`: of all that goes in.

    Memory: two layers, the embeddings, `batch` rows of activations. Disk: four files of n·T·E float32. What is
    returned is mapped from the layers' files, which may be removed meanwhile.
    """
    work.mkdir(parents=True, exist_ok=True)
    rows, length = tokens.ids.shape
    hidden = _HiddenFiles(work, rows, length, streams[DENSE].config.get_text_config(decoder=True).hidden_size)
    stamp += code_stamp()  # layers of another version are of no use
    done = _finished_layers(work, stamp, fields, hidden)
    hidden.open()
    count = streams[DENSE].layer_count
    with progress.task(task, count) as advance:
        advance(done)
        for index in range(done, count):
            with (
                streams[DENSE].layer(index) as dense,
                streams[PRUNED].layer(index) as pruned,
                torch.no_grad(),
            ):
                made = visit(LayerPair(streams, index, (dense, pruned), tokens, batch, hidden))
            hidden.flush()
            atomic_write_tensors(_layer_file(work, index), made, {"kind": "layer", "version": "0"})
            atomic_write_json(work / "progress.json", {"fingerprint": stamp, "layers": index + 1})
            advance(1)
    hidden.close()
    for index in range(count):
        yield _read_layer(work, index, fields(index))


def _layer_file(work: Path, index: int) -> Path:
    return work / f"layer_{index:04d}.safetensors"


def _read_layer(work: Path, index: int, fields: Fields) -> dict[str, Tensor]:
    return read_step_file(_layer_file(work, index), "layer", fields, name="layer", remedy="run it again")[0]


def _finished_layers(work: Path, stamp: str, fields: Callable[[int], Fields], hidden: _HiddenFiles) -> int:
    """Layers a killed call with the same fingerprint finished; everything else in `work` is of no use."""
    state = read_record(work / "progress.json")
    layers = state.get("layers")
    if state.get("fingerprint") == stamp and isinstance(layers, int) and hidden.whole():
        with suppress(ValueError):  # a damaged layer: begin again
            for index in range(layers):
                _read_layer(work, index, fields(index))
            return layers
    for file in work.iterdir():
        file.unlink()
    return 0


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
            for model in (DENSE, PRUNED)
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
