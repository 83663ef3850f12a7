"""Running a stock model once, and from one layer on again with many edits side by side.

    y_l = W_o z_l + W_o c[g]        the attention output of layer l in edit g; layers before l are those of the base run

Everything is done by stock forwards of the whole model. In a run that starts at layer l, the layers before it hand
their input on, the input of layer l is replaced by the recorded one, and its attention module by a stand-in that
applies the output projection to the recorded z. So masks, positions, rotary tables, norms and whatever a layer
returns are those of the stock class, and parallel residuals need no special case.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import ops
from .architectures import AttentionSite, decoder_layers, get_module, replace_module
from .artifacts import reserve
from .lm_head import head_input, language_head
from .sparse_linear import SparseLinear
from .token_set import TokenSet

__all__ = ["BaseRun", "StateStore", "continue_from", "run_base"]


class StateStore:
    """Tensors by key; in memory, or each in a file of its own below `scratch` (which loses nothing)."""

    def __init__(self, scratch: Path | None) -> None:
        self._tensors: dict[Any, Tensor] = {}
        self._kept: dict[Any, tuple[Path, torch.Size, torch.dtype]] = {}
        self._folder = tempfile.TemporaryDirectory(dir=scratch, prefix="contrast-") if scratch is not None else None

    def put(self, key: Any, tensor: Tensor) -> None:
        """Raises OSError when the disk is full."""
        if self._folder is None:
            self._tensors[key] = tensor
            return
        path = Path(self._folder.name) / f"{len(self._kept)}.bin"
        raw = tensor.contiguous().view(torch.uint8).reshape(-1).numpy()
        reserve([path], raw.nbytes)
        np.memmap(path, dtype=np.uint8, mode="r+", shape=raw.shape)[:] = raw
        self._kept[key] = (path, tensor.shape, tensor.dtype)

    def get(self, key: Any) -> Tensor:
        """What was put under this key, bit for bit."""
        if self._folder is None:
            return self._tensors[key]
        path, shape, dtype = self._kept[key]
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8)).view(dtype).reshape(shape)

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._tensors.clear()
        if self._folder is not None:
            self._folder.cleanup()


@dataclass
class BaseRun:
    """What one forward of the base leaves: per layer its input and z, the input of its output projection.

    `end` is what `continue_from` gives as well, [n, T, E] or [n, T, V].
    `returned[l]` is how the attention of layer l returned: None for a tensor, else the tuple it stood first in;
    `adds` are the layers whose attention adds something to its output projection.
    """

    batch: TokenSet
    end: Tensor
    states: StateStore
    returned: dict[int, tuple[Any, ...] | None] = field(default_factory=dict)
    adds: set[int] = field(default_factory=set)


def _attention_name(site: AttentionSite) -> str:
    return site.name.rpartition(".")[0]


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def run_base(model: Any, sites: list[AttentionSite], batch: TokenSet, states: StateStore, wanted: list[int]) -> BaseRun:
    """One stock forward of `batch`; keeps what `continue_from` needs for the `wanted` layers."""
    run = BaseRun(batch, torch.empty(0), states)
    _, layers = decoder_layers(model)
    products: dict[int, Tensor] = {}
    with _hooks() as handles:
        for index in wanted:
            site = sites[index]

            def keep_input(_: nn.Module, args: Any, kwargs: Any, index: int = index) -> None:
                states.put(("input", index), _first_argument(args, kwargs))

            def keep_z(_: nn.Module, args: Any, index: int = index) -> None:
                states.put(("z", index), args[0])

            def keep_product(_: nn.Module, __: Any, y: Tensor, index: int = index) -> None:
                products[index] = y

            def keep_structure(_: nn.Module, __: Any, output: Any, index: int = index) -> None:
                run.returned[index] = (None, *(None for _ in output[1:])) if isinstance(output, tuple) else None
                first = output[0] if isinstance(output, tuple) else output
                y = products.pop(index).reshape(first.shape)
                if not torch.equal(first, y):  # Bloom adds the residual inside its attention
                    states.put(("added", index), first - y)
                    run.adds.add(index)

            handles.append(layers[index].register_forward_pre_hook(keep_input, with_kwargs=True))
            handles.append(get_module(model, site.name).register_forward_pre_hook(keep_z))
            handles.append(get_module(model, site.name).register_forward_hook(keep_product))
            handles.append(get_module(model, _attention_name(site)).register_forward_hook(keep_structure))
        run.end = _end_of_forward(model, batch)
    return run


def _end_of_forward(model: Any, batch: TokenSet) -> Tensor:
    """What enters the LM head [n, T, E]; the logits [n, T, V] where a stock class does more to them than its head."""
    arguments = {"input_ids": batch.ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if not language_head(model).last:
        logits: Tensor = model(**arguments).logits
        return logits
    with head_input(model) as seen:
        model(**arguments)
    return seen[0]


class _StandIn(nn.Module):
    """In the place of a stock module: other attributes are read through, forward() is somebody else's."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_stock", stock)  # hidden from nn.Module: no parameters, no state

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_stock"), name)


class _HandsOn(_StandIn):
    """A layer that returns its input, as the stock layer would return its output."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return _first_argument(args, kwargs)


class _KnownAttention(_StandIn):
    """An attention module whose output is known."""

    def __init__(self, stock: nn.Module, output: Tensor, returned: tuple[Any, ...] | None) -> None:
        super().__init__(stock)
        self.output, self.returned = output, returned

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output if self.returned is None else (self.output, *self.returned[1:])


@contextmanager
def _in_place_of(model: nn.Module, name: str, stand_in: nn.Module) -> Iterator[None]:
    stock = get_module(model, name)
    replace_module(model, name, stand_in)
    try:
        yield
    finally:
        replace_module(model, name, stock)


def continue_from(model: Any, site: AttentionSite, base: BaseRun, comp: Tensor) -> Tensor:
    """What enters the LM head, [G, n, T, E], when the compensation of layer `site` is comp[g], [G, H·D]; or the logits.

    The G edits are one batch from that layer on: row g·n + i of it is row i of the base's batch, and each takes its
    own compensation through `comp_index`.
    """
    groups, rows = comp.shape[0], len(base.batch)
    projection = get_module(model, site.name)
    assert isinstance(projection, SparseLinear)
    z = base.states.get(("z", site.layer))
    length = z.shape[-2] if z.dim() > 2 else z.shape[0] // rows
    index = torch.arange(groups).repeat_interleave(rows * length)
    output = ops.sparse_linear(
        z.reshape(1, rows, length, -1).expand(groups, -1, -1, -1).reshape(groups * rows, length, -1),
        projection.packed, comp=comp, comp_index=index, bias=projection.bias,
    )  # fmt: skip
    if site.layer in base.adds:
        output = output + base.states.get(("added", site.layer)).repeat(groups, 1, 1)
    entered = base.states.get(("input", site.layer)).repeat(groups, 1, 1)
    edited = TokenSet(
        base.batch.ids.repeat(groups, 1), base.batch.lengths.repeat(groups),
        base.batch.response_start.repeat(groups), base.batch.name,
    )  # fmt: skip
    prefix, layers = decoder_layers(model)

    def replace_input(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return ((entered, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entered})

    with ExitStack() as stack:
        for before in range(site.layer):
            stack.enter_context(_in_place_of(model, f"{prefix}.{before}", _HandsOn(layers[before])))
        attention = get_module(model, _attention_name(site))
        stand_in = _KnownAttention(attention, output, base.returned[site.layer])
        stack.enter_context(_in_place_of(model, _attention_name(site), stand_in))
        handles = stack.enter_context(_hooks())
        handles.append(layers[site.layer].register_forward_pre_hook(replace_input, with_kwargs=True))
        end = _end_of_forward(model, edited)
    return end.reshape(groups, rows, *end.shape[1:])
