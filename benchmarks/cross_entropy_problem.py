"""What benchmarks/cross_entropy.py times: a case, its contenders, and the same numbers in float64 for some rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

from restorelcc import ops

PASSES = ("forward", "forward+backward")
CHECKED_ROWS = 16
VOCABULARY_AT_ONCE = 4096  # rows of W that are widened to float64 at once
# Rows a chunk of torch's chunked form; which is fastest is tried out before anything is timed.
CHUNK_ROWS = (64, 128, 256, 512, 1024)
POLICIES = ("accurate", "balanced")


@dataclass(frozen=True)
class Case:
    """h [M, E] against W [V, E]."""

    rows: int
    vocabulary: int
    columns: int
    dtype: str  # of torch: "bfloat16"

    def __str__(self) -> str:
        return f"M={self.rows} V={self.vocabulary} E={self.columns} {self.dtype}"


class Problem(NamedTuple):
    h: Tensor
    weight: Tensor
    labels: Tensor


def problem_of(case: Case, seed: int = 0) -> Problem:
    """Logits of a few units, so that the words share the probability as they do in a language model."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    h = torch.randn(case.rows, case.columns, generator=generator)
    weight = torch.empty(case.vocabulary, case.columns, dtype=dtype)
    for begin in range(0, case.vocabulary, VOCABULARY_AT_ONCE):
        part = weight[begin : begin + VOCABULARY_AT_ONCE]
        part.copy_(torch.randn(part.shape, generator=generator) * 3 / case.columns**0.5)
    labels = torch.randint(0, case.vocabulary, (case.rows,), generator=generator)
    return Problem(h.to(dtype), weight, labels)


def plain(p: Problem, reduction: str) -> Tensor:
    """What is written without a thought: the logits of all rows at once, in the dtype of h, the loss in float32."""
    return functional.cross_entropy((p.h @ p.weight.T).float(), p.labels, reduction=reduction)


def ours(p: Problem, reduction: str) -> Tensor:
    nll = ops.linear_cross_entropy(p.h, p.weight, p.labels)
    assert isinstance(nll, Tensor)
    return nll.sum() if reduction == "sum" else nll


def chunked(options: LinearCrossEntropyOptions) -> Callable[[Problem, str], Tensor]:
    def loss(p: Problem, reduction: str) -> Tensor:
        return functional.linear_cross_entropy(p.h, p.weight, p.labels, reduction=reduction, options=options)

    return loss


@dataclass(frozen=True)
class Contender:
    """loss(problem, reduction) -> Tensor, with reduction "none" (forward) or "sum" (backward)."""

    name: str
    loss: Callable[[Problem, str], Tensor]


def contender(name: str) -> Contender:
    """By its name: "ours", "torch plain", "torch chunked auto", "torch chunked 128 accurate"."""
    if name in ("ours", "torch plain"):
        return Contender(name, ours if name == "ours" else plain)
    rows, *policy = name.removeprefix("torch chunked ").split()
    if rows == "auto":
        return Contender(name, chunked(LinearCrossEntropyOptions()))
    options = LinearCrossEntropyOptions(batch_chunk_size=int(rows), chunking_method=None, acc_policy=policy[0])  # type: ignore[arg-type]
    return Contender(name, chunked(options))


def chunked_names(case: Case) -> list[str]:
    """All forms of torch's chunked loss that are tried out for this case."""
    sizes = sorted({min(rows, case.rows) for rows in CHUNK_ROWS})
    policies = POLICIES if case.dtype != "float32" else POLICIES[:1]  # in float32 they are one
    return ["torch chunked auto", *(f"torch chunked {rows} {policy}" for rows in sizes for policy in policies)]


def run(contender: Contender, problem: Problem, what: str) -> Tensor:
    """One pass: the nll [M] of "forward", or the gradient [M, E] of h with a frozen weight."""
    if what == "forward":
        with torch.no_grad():
            return contender.loss(problem, "none")
    leaf = problem.h.detach().requires_grad_()
    contender.loss(problem._replace(h=leaf), "sum").backward()
    assert leaf.grad is not None
    return leaf.grad


class Truth:
    """nll and its gradient with respect to h in float64, of rows spread over the problem."""

    def __init__(self, p: Problem) -> None:
        self.rows = torch.linspace(0, p.h.shape[0] - 1, min(CHECKED_ROWS, p.h.shape[0])).long()
        h, labels = p.h[self.rows].double(), p.labels[self.rows]
        logits = torch.cat([h @ part.double().T for part in p.weight.split(VOCABULARY_AT_ONCE)], 1)
        shares = logits.log_softmax(1)
        self.nll = -shares.gather(1, labels[:, None]).squeeze(1)
        shares = shares.exp_()
        shares[torch.arange(labels.shape[0]), labels] -= 1
        parts = zip(shares.split(VOCABULARY_AT_ONCE, 1), p.weight.split(VOCABULARY_AT_ONCE), strict=True)
        self.grad_h = sum((g @ w.double() for g, w in parts), torch.zeros_like(h))

    def error(self, found: Tensor, what: str) -> float:
        """The largest difference, relative to the largest value."""
        truth = self.nll if what == "forward" else self.grad_h
        return float((found[self.rows].double() - truth).abs().max() / truth.abs().max())
