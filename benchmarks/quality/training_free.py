"""Peers that compute a correction of the pruned model from calibration text, without any training.

    flap_bias    FLAP's baseline bias compensation: what was pruned, times the mean of its inputs
    eora         EoRA's low-rank path: what was pruned, in the eigenspace of its inputs

Each changes the pruned model it is given into the one that would be used, and says what that costs.
"""

from __future__ import annotations

from typing import Any

import torch
from peers import add_bias
from torch import Tensor, nn

from restorelcc.architectures import record_layer_calls
from restorelcc.evaluation import token_nll
from restorelcc.layers import run_layer
from restorelcc.models import attention_sites, decoder_layers, get_module, prunable_linears, replace_module
from restorelcc.projection_taps import projection_groups, tapping
from restorelcc.text import TokenSet
from restorelcc.training import SCALES
from restorelcc.training_loop import ceiling

PLACES = ("attention", "output", "all")
INPUTS = ("dense", "pruned")


@torch.no_grad()
def mean_inputs(model: Any, text: TokenSet, *, skip_first: int = 1, batch: int = 8) -> dict[str, Tensor]:
    """name -> mean over tokens of the input x of each projection, [K] float64; padding does not count.

    skip_first: so many first positions do not count either: position 0 is an attention sink, whose activations are
    larger than all others by orders of magnitude and would be the mean.
    """
    sums: dict[str, Tensor] = {}
    keep: list[Tensor] = []

    def add(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + args[0].reshape(*keep[0].shape, -1)[keep[0]].double().sum(0)

        return hook

    handles = [linear.register_forward_pre_hook(add(name)) for name, linear in prunable_linears(model)]
    count = 0
    try:
        for part in text.batches(batch):
            keep[:] = [part.attention_mask.bool()]
            keep[0][:, :skip_first] = False
            count += int(keep[0].sum())
            model.base_model(input_ids=part.ids, attention_mask=part.attention_mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError(f"no token of {len(text)} rows is left behind the first {skip_first}; give longer text")
    return {name: total / count for name, total in sums.items()}


@torch.no_grad()
def flap_bias(
    pruned: Any, dense: Any, text: TokenSet, *, where: str = "output", inputs: str = "dense", scale: float | str = 1.0,
    skip_first: int = 1, heldout_share: float = 0.1, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """b = s Σ_j (W_dense − W_pruned)[:, j] mean(x_j), added to the bias of the projection; FLAP, arXiv 2312.11983.

    FLAP prunes whole columns (heads, channels) of the two projections that add to the residual stream, replaces their
    inputs by the mean over its calibration text (of the dense model, all layers in one pass), and so adds
    W[:, j] mean_j of each pruned column j to the bias. Here single weights are pruned: an output loses W[n, j] x_j for
    some j, and gets W[n, j] mean_j back. If the inputs are constant, the bias is the whole error.

    Args:
        pruned: changed in place. dense: not changed.
        text: calibration, less its held-out rows, which only a search of s reads.
        where: `output` (attention output and the last projection of the feed-forward part, as FLAP), `attention` (of
            these the first alone, which gained in our tries where the other lost) or `all`.
        inputs: whose inputs the mean is of: the `dense` model's, as FLAP, or the `pruned` one's.
        scale: s, or "search": the best of `SCALES` on the held-out rows, 0 included. FLAP has 1.
        skip_first: see `mean_inputs`; FLAP leaves nothing out (0).
    """
    for value, allowed, name in ((where, PLACES, "where"), (inputs, INPUTS, "inputs")):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r} of flap-bias; choose one of {', '.join(allowed)}")
    train, heldout = text.split(heldout_share, seed=seed)
    mean = mean_inputs(dense if inputs == "dense" else pruned, train, skip_first=skip_first)
    weights = {name: linear.weight for name, linear in prunable_linears(dense)}
    adding = _adding(pruned, where)
    chosen = [name for name in mean if where == "all" or name in adding]
    bias = {name: (weights[name].double() - get_module(pruned, name).weight.double()) @ mean[name] for name in chosen}
    notes: dict[str, Any] = {"biases": len(bias)}
    if scale == "search":
        tried, held = [], 0.0
        for candidate in SCALES:
            _shift(pruned, bias, candidate - held)
            held = candidate
            tried.append({"scale": candidate, "heldout_nll": ceiling(token_nll(pruned, heldout, batch=4).mean)})
        best = min(tried, key=lambda row: (row["heldout_nll"], row["scale"]))
        _shift(pruned, bias, best["scale"] - held)
        return {**notes, "scale": best["scale"], "search": tried}
    if isinstance(scale, str):
        raise ValueError(f"scale is {scale!r}; give a number or `search`")
    _shift(pruned, bias, scale)
    return {**notes, "scale": scale}


def _shift(model: Any, bias: dict[str, Tensor], scale: float) -> None:
    for name, value in bias.items():
        add_bias(get_module(model, name), scale * value)


def _adding(model: Any, where: str) -> set[str]:
    """The projections whose output goes into the residual stream: of the attention, and the last of each layer."""
    attention = {site.name for site in attention_sites(model)}
    if where == "attention":
        return attention
    prefix, _ = decoder_layers(model)
    last = {name[len(prefix) + 1 :].split(".")[0]: name for name, _ in prunable_linears(model)}
    return attention | set(last.values())


class LowRankPath(nn.Module):
    """y = W x + bias + B (A x): A [r, K], B [N, r] stay apart, since B A has no zeros and would fill those of W."""

    def __init__(self, linear: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.down, self.up = nn.Parameter(down, requires_grad=False), nn.Parameter(up, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out + (x @ self.down.T) @ self.up.T


def eigenspace_factors(lost: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B [N, r], A [r, K]) of lost = W_dense − W_pruned [N, K] and gram = Σ x xᵀ [K, K]; both float64. EoRA eq. 2-4:

        gram = Q Λ Qᵀ,   U Σ Vᵀ = svd(lost Q Λ^½),   B A = U_r Σ_r V_rᵀ Λ^-½ Qᵀ  =  U_r U_rᵀ lost

    which minimises Σ ‖(lost − B A) x‖². The right-hand side needs no inverse, so gram may be singular.
    """
    rank = min(rank, *lost.shape)
    if lost.shape[0] <= lost.shape[1]:
        up = torch.linalg.eigh(lost @ gram @ lost.T)[1].flip(-1)[:, :rank]
        return up, up.T @ lost
    values, vectors = torch.linalg.eigh(gram)  # U from the smaller side
    root = lost @ (vectors * values.clamp(min=0).sqrt())
    right = torch.linalg.eigh(root.T @ root)[1].flip(-1)[:, :rank]
    up = torch.linalg.qr(root @ right).Q
    return up, up.T @ lost


@torch.no_grad()
def eora(
    pruned: Any, dense: Any, text: TokenSet, *, rank: int = 32, skip_first: int = 0, batch: int = 8
) -> dict[str, Any]:
    """EoRA (arXiv 2410.21271): a low-rank path beside every projection that takes back what pruning changed most.

    Layer after layer, as its authors' code: the inputs x are those of the dense layer behind the corrected layers
    before it; the corrected layer then hands its output on. See `eigenspace_factors` for B A of a projection.

    Args:
        pruned: changed in place: each projection becomes a `LowRankPath`. dense: not changed.
        rank: r; the authors use 32 to 512 on models 50 times as large as ours. skip_first: positions whose x do not
            count, none as theirs.

    Returns:
        What it costs: `extra_weights`, the numbers of all A and B, r (N + K) for each projection, which are as many
        multiplications a token; `extra_share` of the weights that pruning left.
    """
    if rank < 1:
        raise ValueError(f"the rank of eora is {rank}; give 1 or more")
    prefix, layers = decoder_layers(dense)
    parts = list(text.batches(batch))
    recorded = [record_layer_calls(dense, part.ids, part.attention_mask) for part in parts]
    hidden = [entered for entered, _ in recorded]
    keeps = []
    for part in parts:
        keeps.append(part.attention_mask.bool())
        keeps[-1][:, :skip_first] = False
    extra = left = 0
    for index, layer in enumerate(layers):
        calls = [call[index] for _, call in recorded]
        for group in projection_groups(layer, hidden[0], calls[0]):
            gram: Any = 0
            for entered, call, keep in zip(hidden, calls, keeps, strict=True):
                with tapping(layer, inputs=group[:1]) as (xs, _):
                    run_layer(layer, entered, call)
                x = xs[group[0]].reshape(*keep.shape, -1)[keep]
                gram = gram + (x.T @ x).double()
            for name in group:
                full = f"{prefix}.{index}.{name}"
                linear = get_module(pruned, full)
                lost = layer.get_submodule(name).weight.double() - linear.weight.double()
                up, down = eigenspace_factors(lost, gram, rank)
                replace_module(pruned, full, LowRankPath(linear, down.to(linear.weight), up.to(linear.weight)))
                extra += up.numel() + down.numel()
                left += int((linear.weight != 0).sum())
        corrected = decoder_layers(pruned)[1][index]
        hidden = [run_layer(corrected, entered, call) for entered, call in zip(hidden, calls, strict=True)]
    return {"extra_weights": extra, "extra_share": extra / max(1, left)}
