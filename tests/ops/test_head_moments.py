"""head_moments: streamed sums in float64, the same bits whatever the threads, the same numbers whatever the chunks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from restorelcc.ops import HeadMoments, head_moments


@dataclass(frozen=True)
class Case:
    name: str
    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"  # contiguous | heads_first | last_stride


CASES = [
    Case("small", 10, 3, 8),
    Case("one", 1, 1, 1),
    Case("no_tokens", 0, 2, 5),
    Case("odd", 129, 3, 65),
    Case("bf16", 70, 4, 64, torch.bfloat16),
    Case("heads_first", 33, 5, 24, layout="heads_first"),
    Case("last_stride", 33, 5, 24, torch.bfloat16, layout="last_stride"),
]


def outputs_of(case: Case) -> tuple[Tensor, Tensor]:
    """(z_dense, z_pruned), close to each other and far from zero, as the outputs of a head are."""
    z_dense = torch.randn(case.tokens, case.heads, case.head_dim) * 3 + 10
    pair = (z_dense.to(case.dtype), (z_dense + 0.1 * torch.randn_like(z_dense)).to(case.dtype))
    if case.layout == "heads_first":
        return tuple(z.transpose(0, 1).contiguous().transpose(0, 1) for z in pair)  # type: ignore[return-value]
    if case.layout == "last_stride":
        return tuple(z.transpose(1, 2).contiguous().transpose(1, 2) for z in pair)  # type: ignore[return-value]
    return pair


def assert_close(ours: HeadMoments, other: HeadMoments, relative: float = 1e-12) -> None:
    assert ours.count == other.count
    for a, b in ((ours.total, other.total), (ours.gram, other.gram)):
        assert a.dtype == torch.float64
        assert (a - b).abs().max() <= relative * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_equation(case: Case, isa: str) -> None:
    z_dense, z_pruned = outputs_of(case)
    ours = head_moments(z_dense, z_pruned)
    lost = z_dense.double() - z_pruned.double()
    gram = torch.einsum("thi,thj->hij", lost, lost)
    assert_close(ours, HeadMoments(case.tokens, lost.sum(0), gram))
    assert_close(ours, head_moments(z_dense, z_pruned, impl="reference"))
    assert torch.equal(ours.gram, ours.gram.transpose(1, 2))
    if case.tokens:
        assert torch.equal(ours.mean, ours.total / case.tokens)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_chunks_and_merges_agree(impl: str) -> None:
    z_dense, z_pruned = outputs_of(Case("", 100, 3, 20))
    whole = head_moments(z_dense, z_pruned, impl=impl)
    state = HeadMoments.zeros(3, 20)
    for start in (0, 7, 40, 99):
        stop = {0: 7, 7: 40, 40: 99, 99: 100}[start]
        returned = head_moments(z_dense[start:stop], z_pruned[start:stop], state, impl=impl)
        assert returned is state
    assert_close(state, whole)
    first = head_moments(z_dense[:40], z_pruned[:40], impl=impl)
    before = first.gram.clone()
    assert_close(first.merge(head_moments(z_dense[40:], z_pruned[40:], impl=impl)), whole)
    assert torch.equal(first.gram, before)


def test_the_bits_do_not_depend_on_threads() -> None:
    z_dense, z_pruned = outputs_of(Case("", 300, 5, 48))
    torch.set_num_threads(1)
    one = head_moments(z_dense, z_pruned)
    torch.set_num_threads(2)
    two = head_moments(z_dense, z_pruned)
    assert torch.equal(one.total, two.total)
    assert torch.equal(one.gram, two.gram)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_refused(impl: str) -> None:
    z = torch.ones(4, 2, 3)
    state = HeadMoments.zeros(2, 3)
    with pytest.raises(ValueError, match=r"z_dense has shape \[4, 6\]; it must be \[T, H, D\]"):
        head_moments(z.flatten(1), z.flatten(1), state, impl=impl)
    with pytest.raises(ValueError, match=r"z_pruned .*\[4, 3, 2\]; it must be .*\[4, 2, 3\]"):
        head_moments(z, z.transpose(1, 2), state, impl=impl)
    with pytest.raises(ValueError, match=r"z_pruned .*bfloat16.*; it must be .*float32"):
        head_moments(z, z.bfloat16(), state, impl=impl)
    with pytest.raises(ValueError, match=r"state holds moments of \[H, D\] = \[5, 3\]"):
        head_moments(z, z, HeadMoments.zeros(5, 3), impl=impl)
    assert state.count == 0
    assert not state.gram.any()


def test_refused_impl_mean_and_merge() -> None:
    z = torch.ones(4, 2, 3)
    with pytest.raises(ValueError, match="impl is 'fast'"):
        head_moments(z, z, impl="fast")
    with pytest.raises(ValueError, match="no token"):
        _ = HeadMoments.zeros(2, 3).mean
    with pytest.raises(ValueError, match="cannot be merged"):
        HeadMoments.zeros(2, 3).merge(HeadMoments.zeros(3, 2))
    with pytest.raises(ValueError, match="z_dense has dtype float64; it must be float32, bfloat16 or float16"):
        head_moments(z.double(), z.double())
