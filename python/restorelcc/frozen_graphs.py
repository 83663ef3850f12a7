"""Graphs of a model whose weights stay as they are: what tracing may take for granted there, and one pass over them.

    tracing_frozen()        inside, a traced projection may use what was derived from its weights before
    MergeProducts()         y1 = f(x, W), y2 = f(x, W)  ->  y1 alone: siblings that each ask for the joint product

Graphs that somebody else compiles are traced without: there a weight may be edited between two calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

__all__ = ["MergeProducts", "is_tracing_frozen", "tracing_frozen"]

_frozen = False


def is_tracing_frozen() -> bool:
    """Whether a graph is being traced, and for weights that stay as they are."""
    return _frozen and torch.compiler.is_compiling()


@contextmanager
def tracing_frozen() -> Iterator[None]:
    """Graphs traced inside are of weights that stay as they are."""
    global _frozen
    before, _frozen = _frozen, True
    try:
        yield
    finally:
        _frozen = before


class MergeProducts(CustomGraphPass):
    """Products with the same arguments become one. The graph is functional by then: same arguments, same values."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Edits `graph` in place."""
        op, seen = torch.ops.restorelcc.sparse_linear_inference.default, dict[Any, torch.fx.Node]()
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is op:
                first = seen.setdefault((node.args, tuple(sorted(node.kwargs.items()))), node)
                if first is not node:
                    node.replace_all_uses_with(first)
                    graph.erase_node(node)

    def uuid(self) -> Any:
        """What inductor's cache on disk knows this pass by."""
        return get_hash_for_files((__file__,))
