"""A stock checkpoint: the pruned model with some weights and biases replaced, and the proof that no mask changed.

    changed: "model.layers.0.mlp.up_proj.weight" [N, K],  "model.layers.0.mlp.up_proj.bias" [N], ...

The class and configuration are those of a `FoldTarget`, which may have biases that the pruned model's class has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .fold_target import FoldTarget, skeleton_of
from .models import LoadedModel, save_checkpoint
from .pruning import masks_equal, rounded_survivors, sparsity_table

__all__ = ["FoldReport", "retargeted", "write_restored"]


@dataclass(frozen=True)
class FoldReport:
    """What was written: target kind, biases, and the proof that the masks are the same bit by bit."""

    kind: str
    reason: str
    biases: int
    matrices_compared: int
    zeros: int


def retargeted(model: Any, changed: Mapping[str, Tensor], target: FoldTarget) -> nn.Module:
    """`model` as the class of `target`, with the tensors in `changed`; biases that nobody set are zero.

    May be `model` itself. The tensors take the type of the parameter they replace, or of the model; those that have it
    become parameters as they are, mapped where they are, so that nothing of this size is copied.

    Raises:
        ValueError: a tensor of another shape, or of no parameter of the target.
    """
    state = dict(model.state_dict())
    shapes = dict(skeleton_of(target.config).named_parameters()) if target.new_parameters else state
    for name in target.new_parameters:
        state[name] = torch.zeros(shapes[name].shape, dtype=model.dtype)
    for name, value in changed.items():
        if name not in state or state[name].shape != value.shape:
            raise ValueError(
                f"{name} {list(value.shape)} is no parameter of {type(model).__name__} with {target.reason}; "
                "it was made for another model"
            )
        dtype = state[name].dtype
        if name.endswith(".weight") and value.dtype != dtype:
            value = rounded_survivors(value.float(), value != 0, dtype)
        state[name] = value.to(dtype)
    if not target.new_parameters:
        for name in changed:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(state[name], requires_grad=False))
        return model  # type: ignore[no-any-return]
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(target.config, dtype=model.dtype)  # type: ignore[no-untyped-call]
    made.load_state_dict(state, assign=True, strict=False)
    made.tie_weights()
    made.generation_config = model.generation_config
    for name, buffer in model.named_buffers():  # the rotary tables, which a state dict leaves out
        owner, _, leaf = name.rpartition(".")
        made.get_submodule(owner)._buffers[leaf] = buffer
    left = [name for name, parameter in made.named_parameters() if parameter.is_meta]
    if left:
        raise ValueError(f"{len(left)} parameters of the restored model got no value, the first is {left[0]}")
    return made.eval().requires_grad_(False)  # type: ignore[no-any-return]


def write_restored(
    pruned: Path, loaded: LoadedModel, changed: Mapping[str, Tensor], target: FoldTarget, out: Path, *,
    extra_files: Mapping[str, str | bytes] | None = None, overwrite: bool = False,
) -> FoldReport:  # fmt: skip
    """Writes `loaded`, which is the checkpoint `pruned`, with `changed` to `out`, whole or not at all.

    Raises:
        ValueError: tensors that do not fit, or a mask that differs from that of `pruned`: nothing is written then.
    """
    made = retargeted(loaded.model, changed, target)
    masks_equal(pruned, made)
    table = sparsity_table(made)
    save_checkpoint(made, loaded.tokenizer, out, extra_files=extra_files, overwrite=overwrite)
    biases = sum(name.endswith(".bias") for name in changed)
    return FoldReport(target.kind, target.reason, biases, len(table), sum(int(row["zeros"]) for row in table))
