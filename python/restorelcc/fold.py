"""The fold: a compensation becomes a bias, so that stock tools load the restored model and no zero is lost.

    y = W_o z + W_o c  =  W_o z + bias,      bias = W_o c  [N]  (+ the bias that was there)
    y = W_down x + c,                        bias = c  [E]      of an FFN, likewise

Where there is no such bias but one of the value projection, c goes there: attention weights sum to 1, so z + c comes
out.

Exact up to rounding. W_o c is computed once in float32 and added after the product; z + c is never formed (in
bf16, rounding z + c loses 17 % of |W_o c| when |c| is 1 % of |z|). Where the bias can live depends on the
architecture, so the target is chosen before any training (see `fold_target`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ops
from .compensation import Compensation, check_fits
from .fold_target import FoldTarget, fold_target, value_projection
from .models import load_model
from .output_places import refuse_inputs
from .packed import pack
from .restored_checkpoint import FoldReport, write_restored
from .sites import FFN, Site, model_sites

__all__ = ["FOLDS", "FoldReport", "fold"]

FOLDS = ("o_proj", "none")


def fold(pruned: Path, compensation: Compensation, out: Path, *, overwrite: bool = False) -> FoldReport:
    """Writes `pruned` with W_o c (and c of FFNs) folded into its output projections' biases, as a stock checkpoint.

    Args:
        pruned: checkpoint directory of the pruned model.
        compensation: vectors c [L, H·D] of heads, [L, E] of FFNs, or both.
        out: directory; written under a temporary name and renamed when it is whole. The masks are proven first.

    Raises:
        ValueError: the architecture has no place for the bias (the sentence says what to do), the compensation
            belongs to another model, or a mask changed.
    """
    refuse_inputs(out, pruned)
    loaded = load_model(pruned)
    model = loaded.model
    target = fold_target(model.config, places=compensation.places)
    if target.kind == "adapter":
        raise ValueError(f"cannot fold into {pruned}: {target.reason}; use --fold none")
    check_fits(model, compensation)
    biases = {}
    for part in compensation.parts:
        for site, vector in zip(model_sites(model, part.place), part.vectors, strict=True):
            name, bias = _bias(model, site, vector, target)
            own = model.get_submodule(name).bias
            biases[f"{name}.bias"] = bias if own is None else bias + own.detach().float()
    return write_restored(
        pruned, loaded, biases, target, out, overwrite=overwrite,
        extra_files={"compensation.safetensors": compensation.to_bytes()},
    )  # fmt: skip


def _bias(model: Any, site: Site, vector: Tensor, target: FoldTarget) -> tuple[str, Tensor]:
    """(projection, what is added to its bias, float32) of one site's vector."""
    if site.place == FFN:
        return site.name, vector.float()
    if target.kind == "v_proj_bias":
        shared = _shared_by_heads(vector.reshape(site.units, site.size), target.tied)
        return value_projection(site.name), shared.flatten()
    weight = model.get_submodule(site.name).weight.detach().float()
    return site.name, ops.sparse_linear(vector[None, :].float(), pack(weight))[0]


def _shared_by_heads(vectors: Tensor, tied: int) -> Tensor:
    """c [H / tied, D] of heads [H, D] that share one; ValueError where they do not."""
    groups = vectors.reshape(-1, tied, vectors.shape[-1])
    if not torch.equal(groups, groups[:, :1].expand_as(groups)):
        raise ValueError(
            f"in this model {tied} heads share each value projection's bias, and the compensation gives them different "
            "vectors; train it for that (--fold o_proj), or use --fold none"
        )
    return groups[:, 0]
