"""The fold: a compensation becomes a bias, so that stock tools load the restored model and no zero is lost.

    y = W_o z + W_o c  =  W_o z + bias,      bias = W_o c  [N]  (+ the bias that was there)

Exact up to rounding. W_o c is computed once in float32 and added after the product; z + c is never formed (in
bf16, rounding z + c loses 17 % of |W_o c| when |c| is 1 % of |z|). Where the bias can live depends on the
architecture, so the target is chosen before any training (see `fold_target`).
"""

from __future__ import annotations

from pathlib import Path

from . import ops
from .artifacts import refuse_inputs
from .compensation import Compensation, check_fits
from .fold_target import fold_target
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
        projection = model.get_submodule(site.name)
        bias = ops.sparse_linear(vector[None, :].float(), pack(projection.weight.detach().float()))[0]
        biases[f"{site.name}.bias"] = bias if projection.bias is None else bias + projection.bias.detach().float()
    return write_restored(
        pruned, loaded, biases, target, out, overwrite=overwrite,
        extra_files={"compensation.safetensors": compensation.to_bytes()},
    )  # fmt: skip
