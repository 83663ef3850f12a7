"""What enters and leaves the projections of one decoder layer, taken from a call of the stock layer.

    y = W x + bias          x: input of a projection [B, T, K],  y: its output [B, T, N]

The call ends as soon as everything asked for was seen, so that what comes before a projection can be had without
computing what comes behind it. Projections that are called with one tensor (q, k and v; gate and up) form a group:
they share x, and so its Gram matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .layers import run_layer

__all__ = ["projection_groups", "tapped", "tapping"]


class _SeenAllError(Exception):
    """Raised inside of the layer to leave it."""


def tapped(
    layer: nn.Module, entered: Tensor, call: Any, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(name -> x, name -> y) of the projections with these names inside `layer`; what lies behind them is not computed.

    Args:
        entered: hidden state [B, T, E]. call: (args, kwargs) of the stock model for this layer.

    Raises:
        RuntimeError: the layer returned without calling one of them.
    """
    with tapping(layer, inputs=inputs, outputs=outputs, leave=True) as (xs, ys):
        try:
            run_layer(layer, entered, call)
        except _SeenAllError:
            return xs, ys
    missing = sorted((set(inputs) - set(xs)) | (set(outputs) - set(ys)))
    raise RuntimeError(f"{type(layer).__name__} never called {', '.join(missing)}")


@contextmanager
def tapping(
    layer: nn.Module, *, inputs: Sequence[str] = (), outputs: Sequence[str] = (), leave: bool = False
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Inside, a call of the layer fills (name -> x, name -> y); with `leave` it ends as soon as all were seen."""
    xs: dict[str, Tensor] = {}
    ys: dict[str, Tensor] = {}

    def seen() -> None:
        if leave and len(xs) == len(inputs) and len(ys) == len(outputs):
            raise _SeenAllError

    def note_input(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            xs[name] = args[0]
            seen()

        return hook

    def note_output(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            # What runs on may write into it: Falcon adds the attention's output to the mlp's in place.
            ys[name] = output if leave else output.clone()
            seen()

        return hook

    handles = [layer.get_submodule(name).register_forward_pre_hook(note_input(name)) for name in inputs]
    handles += [layer.get_submodule(name).register_forward_hook(note_output(name)) for name in outputs]
    try:
        yield xs, ys
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def projection_groups(layer: nn.Module, entered: Tensor, call: Any) -> list[list[str]]:
    """Names of the nn.Linear inside `layer`, in the order in which they are called; those with one input together.

    Raises:
        ValueError: a projection that is not called, or called more than once.
    """
    linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    calls: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, args[0])))
        for name, module in linears
    ]
    try:
        run_layer(layer, entered, call)
    finally:
        for handle in handles:
            handle.remove()
    called = [name for name, _ in calls]
    odd = [name for name, _ in linears if called.count(name) != 1]
    if odd:
        raise ValueError(
            f"{odd[0]} of {type(layer).__name__} is called {called.count(odd[0])} times a token; only layers that call "
            "each projection once can be refitted (mixtures of experts cannot)"
        )
    groups: list[tuple[Tensor, list[str]]] = []
    for name, x in calls:
        for known, names in groups:
            if known is x:
                names.append(name)
                break
        else:
            groups.append((x, [name]))
    return [names for _, names in groups]
