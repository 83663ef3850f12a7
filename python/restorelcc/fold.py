"""The fold: a compensation becomes a bias, so that stock tools load the restored model and no zero is lost.

    y = W_o z + W_o c  =  W_o z + bias,      bias = W_o c  [N]  (+ the bias that was there)

Where there is no such bias but one of the value projection, c goes there: attention weights sum to 1, so z + c comes
out.

Exact up to rounding. W_o c is computed once in float32 and added after the product; z + c is never formed (in
bf16, rounding z + c loses 17 % of |W_o c| when |c| is 1 % of |z|). Where the bias can live depends on the
architecture, so the target is chosen before any training (see `fold_target`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import ops
from .artifacts import refuse_inputs
from .compensation import Compensation, check_fits
from .fold_target import fold_target, value_projection
from .models import attention_sites, load_model
from .packed import pack
from .restored_checkpoint import FoldReport, write_restored

__all__ = ["FOLDS", "FoldReport", "fold"]

FOLDS = ("o_proj", "none")


def fold(pruned: Path, compensation: Compensation, out: Path, *, overwrite: bool = False) -> FoldReport:
    """Writes `pruned` with W_o c folded into its output projections' biases, as a stock checkpoint, to `out`.

    Args:
        pruned: checkpoint directory of the pruned model.
        compensation: vectors c [L, H·D].
        out: directory; written under a temporary name and renamed when it is whole. The masks are proven first.

    Raises:
        ValueError: the architecture has no place for the bias (the sentence says what to do), the compensation
            belongs to another model, or a mask changed.
    """
    refuse_inputs(out, pruned)
    loaded = load_model(pruned)
    model = loaded.model
    target = fold_target(model.config)
    if target.kind == "adapter":
        raise ValueError(f"cannot fold into {pruned}: {target.reason}; use --fold none")
    check_fits(model, compensation)
    biases = {}
    for site, vector in zip(attention_sites(model), compensation.vectors, strict=True):
        if target.kind == "v_proj_bias":
            name = value_projection(site.name)
            shared = _shared_by_heads(vector.reshape(site.heads, site.head_dim), target.tied)
            biases[f"{name}.bias"] = shared.flatten() + model.get_submodule(name).bias.detach().float()
            continue
        projection = model.get_submodule(site.name)
        bias = ops.sparse_linear(vector[None, :].float(), pack(projection.weight.detach().float()))[0]
        biases[f"{site.name}.bias"] = bias if projection.bias is None else bias + projection.bias.detach().float()
    return write_restored(
        pruned, loaded, biases, target, out, overwrite=overwrite,
        extra_files={"compensation.safetensors": compensation.to_bytes()},
    )  # fmt: skip


def _shared_by_heads(vectors: Tensor, tied: int) -> Tensor:
    """c [H / tied, D] of heads [H, D] that share one; ValueError where they do not."""
    groups = vectors.reshape(-1, tied, vectors.shape[-1])
    if not torch.equal(groups, groups[:, :1].expand_as(groups)):
        raise ValueError(
            f"in this model {tied} heads share each value projection's bias, and the compensation gives them different "
            "vectors; train it for that (--fold o_proj), or use --fold none"
        )
    return groups[:, 0]
