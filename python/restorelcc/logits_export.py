"""A loaded model as a graph of torch.export, for hosts without Python: AOTInductor compiles it, libtorch runs it.

    ids [1, T] int64  ->  logits [1, T, V] float32        1 <= T <= most_tokens, T free

Weights stay packed: the graph calls `restorelcc::sparse_linear_inference` on them, once for q, k and v and once for
gate and up where they are joined. A host loads librestorelcc_torch.so, which registers that op, before the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .frozen_graphs import MergeProducts, tracing_frozen
from .joined import JoinedLinear
from .wording import one_line

__all__ = ["export_logits", "positions_of"]

_TRACED_TOKENS = 24  # any number but 1, which torch takes for a constant


class _Logits(nn.Module):
    """The stock model without its cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """ids [1, T] -> logits [1, T, V] float32"""
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits.float()


@torch.no_grad()
def export_logits(model: Any, *, most_tokens: int | None = None) -> torch.export.ExportedProgram:
    """The graph ids [1, T] -> logits [1, T, V] float32 of `model`, with its weights.

        program = export_logits(restorelcc.load("packed"))
        torch._inductor.aoti_compile_and_package(program, package_path="model.pt2")

    A compensation that applies when this is called (see `restorelcc.compensations`) is part of the graph. Activations
    are of the model's dtype. The weights were checked when the model was loaded; the graph does not check them again.

    Args:
        model: of `restorelcc.load`, on the CPU. It is not changed; the graph shares its memory.
        most_tokens: the largest T; None: the positions that the model's configuration has.

    Raises:
        ValueError: a model that is not on the CPU or that torch.export cannot trace, positions that it does not have.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"the model is on {device}, the graph is made on the CPU; move it with .cpu()")
    positions = positions_of(model, most_tokens)
    wrapped = _Logits(model)
    wrapped(torch.zeros(1, 1, dtype=torch.long))  # so that P and the joined biases are there to be taken
    for family in {id(m.family): m.family for m in model.modules() if isinstance(m, JoinedLinear)}.values():
        family.merged = family.holds()
    ids = torch.arange(min(_TRACED_TOKENS, positions)).remainder(model.config.vocab_size).unsqueeze(0)
    tokens = torch.export.Dim("tokens", min=1, max=positions)
    free = None if positions == 1 else {"ids": {1: tokens}}
    try:
        with tracing_frozen():
            program = torch.export.export(wrapped, (ids,), dynamic_shapes=free, strict=False)
    except Exception as error:  # whatever the forward of a stock class meets there
        raise ValueError(f"{type(model).__name__} cannot be exported: {one_line(error, 400)}") from error
    MergeProducts()(program.graph_module.graph)
    _keep_what_is_read(program)
    return program


def positions_of(model: Any, most_tokens: int | None) -> int:
    """The largest T: most_tokens, or where that is None all positions of the configuration.

    Raises:
        ValueError: more than the model has, or fewer than 1.
    """
    has = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most_tokens is None and has is None:
        raise ValueError("the configuration does not say how many positions the model has; pass most_tokens")
    wanted = int(has if most_tokens is None else most_tokens)  # type: ignore[arg-type]
    if wanted < 1 or (has is not None and wanted > has):
        raise ValueError(f"most_tokens is {wanted}; the model has 1 to {has} positions")
    return wanted


def _keep_what_is_read(program: torch.export.ExportedProgram) -> None:
    """Weights that no node reads go: those of joined members, which stand in the joint matrix too, and c beside P.

    What is left stands in memory of its own, for AOTInductor writes the whole storage of each weight: of a view, all of
    the tensor that it is a view of.
    """
    graph, signature = program.graph_module.graph, program.graph_signature
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    read, weights = [], set()
    for spec in signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.target is None or node.users:
            read.append(spec)
        else:
            graph.erase_node(node)
        if spec.target is not None and node.users:
            weights.add(spec.target)
    signature.input_specs[:] = read
    program.graph_module.recompile()
    for held in (program.state_dict, program.constants):
        for name in list(held):
            if name not in weights:
                del held[name]
            elif isinstance(held[name], Tensor) and held[name].untyped_storage().nbytes() > held[name].nbytes:
                held[name] = held[name].clone()
