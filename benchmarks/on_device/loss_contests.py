"""Losses and moments to time: ours, torch's plain and chunked losses, Liger and cut-cross-entropy where they are
installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from on_device import floors
from on_device.contests import Contender, Contest, checked_rows, keeping
from on_device.device import Queue
from on_device.floors import Cost


@dataclass(frozen=True)
class LossShape:
    """h [M, E] against W [V, E], bf16."""

    model: str
    rows: int
    vocabulary: int
    columns: int


@dataclass(frozen=True)
class MomentsShape:
    """z [T, H, D], bf16."""

    model: str
    tokens: int
    heads: int
    head_dim: int


PASSES = {"forward": False, "forward and grad_h": True, "forward and both gradients": True}


def losses(queue: Queue, shape: LossShape) -> Iterator[Contest]:
    """One contest per pass. A loss is a sum over rows where a gradient is wanted, else one number per row."""
    place, library = queue.device.place, queue.library
    M, V, E = shape.rows, shape.vocabulary, shape.columns
    random = torch.Generator().manual_seed(3)
    h = torch.randn(M, E, generator=random).bfloat16().to(place)
    weight = (torch.randn(V, E, generator=random) * 3 / E**0.5).bfloat16().to(place)
    labels = torch.randint(0, V, (M,), generator=random).to(place)
    rows = checked_rows(M)
    logits = h[rows.to(place)].double().cpu() @ weight.double().cpu().T
    nll64 = logits.logsumexp(1) - logits.gather(1, labels.cpu()[rows][:, None]).squeeze(1)

    head = {
        "head.vocabulary": V, "head.columns": E, "head.weight_stride": E, "head.dtype": library.dtypes["bf16"],
        "rows": M, "h_stride": E, "ignore_index": -100,
    }  # fmt: skip
    given = {"head.weight": weight, "h": h, "labels": labels}

    def ours(gradient: bool, backward: bool) -> Contender:
        tensors = {**given, "nll": torch.empty(M, device=place), "lse": torch.empty(M, device=place)}
        numbers = dict(head)
        cost = floors.linear_cross_entropy(M, V, E, gradient)
        if gradient:
            tensors["grad_h"], numbers["grad_h_stride"] = torch.empty_like(h), E
        params = library.struct("rlcc_linear_cross_entropy_params", {**numbers, **tensors})
        calls = [keeping(queue.prepared("linear_cross_entropy", params), tensors)]
        if backward:
            both = {**given, "lse": tensors["lse"], "grad_nll": torch.ones(M, device=place)}
            both |= {"grad_h": torch.empty_like(h), "grad_weight": torch.empty_like(weight)}
            strides = {"grad_h_stride": E, "grad_weight_stride": E}
            params = library.struct("rlcc_linear_cross_entropy_backward_params", {**head, **strides, **both})
            calls.append(keeping(queue.prepared("linear_cross_entropy_backward", params), both))
            more = floors.linear_cross_entropy_backward(M, V, E)
            cost = Cost(cost.bytes + more.bytes, cost.flops + more.flops, "tensor")
        return Contender(lambda: [call() for call in calls], cost, ours=True, result=lambda: tensors["nll"])

    def rival(loss: Callable[[Tensor, Tensor, str], Tensor], name: str) -> Contender:
        """loss(h, W, reduction), which autograd differentiates."""
        leaf_h = h.detach().clone().requires_grad_(PASSES[name])
        leaf_w = weight.detach().requires_grad_(name == "forward and both gradients")
        out: list[Tensor] = []

        def call() -> None:
            leaf_h.grad = leaf_w.grad = None
            if PASSES[name]:
                loss(leaf_h, leaf_w, "sum").backward()  # type: ignore[no-untyped-call]
            else:
                with torch.no_grad():
                    out[:] = [loss(leaf_h, leaf_w, "none")]

        call()  # refuses here, if it does
        cost = floors.linear_cross_entropy(M, V, E, PASSES[name])
        if name == "forward and both gradients":
            cost = Cost(cost.bytes, 6.0 * M * V * E, "tensor")
        # Rivals round logits to bf16.
        return Contender(call, cost, result=(lambda: out[0]) if not PASSES[name] else None, slack=2 * 2.0**-8)

    def plain(x: Tensor, w: Tensor, reduction: str) -> Tensor:
        return functional.cross_entropy((x @ w.T).float(), labels, reduction=reduction)

    def chunked(x: Tensor, w: Tensor, reduction: str) -> Tensor:
        return functional.linear_cross_entropy(x, w, labels, reduction=reduction)

    def liger(x: Tensor, w: Tensor, reduction: str) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        found: Tensor = LigerFusedLinearCrossEntropyLoss(reduction=reduction)(w, x, labels)
        return found

    def cut(x: Tensor, w: Tensor, reduction: str) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        found: Tensor = linear_cross_entropy(x, w, labels, reduction=reduction)
        return found

    rivals = {"torch plain": plain, "torch chunked": chunked, "Liger": liger, "cut-cross-entropy": cut}
    for name in PASSES:
        contest = Contest("linear_cross_entropy", {**vars(shape), "pass": name}, baseline="ours bf16", checked=rows)
        contest.exact = nll64
        contest.sizes = h[rows.to(place)].double().cpu().abs().sum(1) * weight.double().cpu().abs().amax()
        if name == "forward":
            contest.add("ours bf16", partial(ours, False, False))
        elif name == "forward and grad_h":
            contest.add("ours bf16", partial(ours, True, False))
        else:
            contest.add("ours bf16", partial(ours, False, True))
        for label, loss in rivals.items():
            contest.add(label, partial(rival, loss, name))
        yield contest


def contrasts(queue: Queue, shape: LossShape, groups: int) -> Contest:
    """head_contrast of `groups` edits against a loop of plain losses."""
    place, library = queue.device.place, queue.library
    M, V, E = shape.rows, shape.vocabulary, shape.columns
    random = torch.Generator().manual_seed(4)
    h = torch.randn(groups, M, E, generator=random).bfloat16().to(place)
    weight = (torch.randn(V, E, generator=random) * 3 / E**0.5).bfloat16().to(place)
    labels = torch.randint(0, V, (M,), generator=random).to(place)
    base = torch.full((M,), 5.0, device=place)
    contest = Contest("head_contrast", {**vars(shape), "groups": groups}, baseline="ours bf16")

    def ours() -> Contender:
        result = torch.empty(groups, 1, dtype=torch.float64, device=place)
        tensors = {"head.weight": weight, "h": h, "labels": labels, "base_nll": base, "contrast": result}
        numbers = {
            "head.vocabulary": V, "head.columns": E, "head.weight_stride": E, "head.dtype": library.dtypes["bf16"],
            "groups": groups, "rows": M, "group_stride": M * E, "h_stride": E, "ignore_index": -100, "segment_count": 1,
        }  # fmt: skip
        call = queue.prepared("head_contrast", library.struct("rlcc_head_contrast_params", {**numbers, **tensors}))
        return Contender(keeping(call, tensors), floors.head_contrast(groups, M, V, E), ours=True)

    def loop() -> list[Tensor]:
        losses = (functional.cross_entropy((one @ weight.T).float(), labels, reduction="none") for one in h)
        return [(nll - base).mean() for nll in losses]

    contest.add("ours bf16", ours)
    contest.add("torch plain", lambda: Contender(loop, floors.head_contrast(groups, M, V, E)))
    return contest


def moments(queue: Queue, shape: MomentsShape) -> Contest:
    """head_moments against fp32 differences and one batched fp32 product, TF32 off."""
    place, library = queue.device.place, queue.library
    T, H, D = shape.tokens, shape.heads, shape.head_dim
    random = torch.Generator().manual_seed(5)
    dense, pruned = (torch.randn(T, H, D, generator=random).bfloat16().to(place) for _ in range(2))
    contest = Contest("head_moments", vars(shape), baseline="ours bf16")

    def ours() -> Contender:
        total = torch.zeros(H, D, dtype=torch.float64, device=place)
        gram = torch.zeros(H, D, D, dtype=torch.float64, device=place)
        tensors = {"z_dense": dense, "z_pruned": pruned, "total": total, "gram": gram}
        strides = {"dense_token_stride": H * D, "pruned_token_stride": H * D}
        strides |= {"dense_head_stride": D, "pruned_head_stride": D}
        numbers = {"tokens": T, "heads": H, "head_dim": D, "dtype": library.dtypes["bf16"], **strides}
        call = queue.prepared("head_moments", library.struct("rlcc_head_moments_params", {**numbers, **tensors}))
        return Contender(keeping(call, tensors), floors.head_moments(T, H, D), ours=True)

    def torch_moments() -> Any:
        dz = (dense.float() - pruned.float()).permute(1, 0, 2)
        return dz.sum(1), torch.bmm(dz.mT, dz)

    contest.add("ours bf16", ours)
    contest.add("torch fp32", lambda: Contender(torch_moments, floors.head_moments(T, H, D)))
    return contest
