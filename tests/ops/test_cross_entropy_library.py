"""What torch asks of the two ops: schemas, fake kernels, torch.compile. And that no logits are ever held."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from cross_entropy_cases import BF16, F32, Case, inputs_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from restorelcc import ops

OPS = torch.ops.restorelcc
SCHEMAS = {
    "linear_cross_entropy": "(Tensor h, Tensor weight, Tensor labels, Tensor? bias=None, int ignore_index=-100, "
    "bool with_lse=False, bool with_grad_h=False) -> (Tensor nll, Tensor lse, Tensor grad_h)",
    "linear_cross_entropy_backward": "(Tensor grad_nll, Tensor h, Tensor weight, Tensor labels, Tensor lse, "
    "Tensor? bias=None, int ignore_index=-100, bool with_grad_h=True, bool with_grad_weight=True, "
    "bool with_grad_bias=False) -> (Tensor grad_h, Tensor grad_weight, Tensor grad_bias)",
    "head_contrast": "(Tensor h_edited, Tensor weight, Tensor labels, Tensor base_nll, Tensor? segments=None, "
    "Tensor? weights=None, SymInt segment_count=1, Tensor? bias=None, int ignore_index=-100) -> Tensor",
}


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch.compiler.reset()  # what one test compiled counts towards the next one's limit of recompilations


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    assert str(getattr(OPS, name).default._schema) == f"restorelcc::{name}{SCHEMAS[name]}"


def linear_cross_entropy_samples() -> list[tuple[Any, ...]]:
    plain = inputs_of(Case("", (2, 3), 11, 8, bias=F32))
    narrow = inputs_of(Case("", (7,), 11, 8, BF16, ignore_index=3))
    h, weight, bias = (t.clone().requires_grad_() for t in (plain.h, plain.weight, plain.bias))
    return [
        (plain.h, plain.weight, plain.labels),
        (h, plain.weight, plain.labels, plain.bias, -100, False, True),
        (h, weight, plain.labels, bias, -100, True),
        (h, weight, plain.labels),
        (narrow.h.requires_grad_(), narrow.weight, narrow.labels, None, 3, True, True),
        (torch.randn(0, 8, requires_grad=True), weight, torch.zeros(0, dtype=torch.int64)),
    ]


@pytest.mark.parametrize("sample", range(6))
def test_opcheck_linear_cross_entropy(sample: int) -> None:
    torch.library.opcheck(OPS.linear_cross_entropy, linear_cross_entropy_samples()[sample])


def test_opcheck_the_others() -> None:
    h, weight, labels, bias, _ = inputs_of(Case("", (7,), 11, 8, bias=F32, ignored=0.0))
    nll, lse, _ = OPS.linear_cross_entropy(h, weight, labels, bias, -100, True)
    torch.library.opcheck(OPS.linear_cross_entropy_backward, (nll, h, weight, labels, lse))
    torch.library.opcheck(
        OPS.linear_cross_entropy_backward, (nll, h, weight, labels, lse, bias, -100, False, True, True)
    )
    edited = torch.stack([h, h + 1, h - 1])
    segments = torch.tensor([0, 1, -1, 0, 1, 2, 2])
    torch.library.opcheck(OPS.head_contrast, (edited, weight, labels, nll))
    torch.library.opcheck(OPS.head_contrast, (edited, weight, labels, nll, segments, torch.rand(7), 3, bias, -100))


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    with FakeTensorMode(shape_env=ShapeEnv()):
        h, weight, labels = torch.empty(2, 3, 8, dtype=BF16), torch.empty(11, 8, dtype=BF16), torch.empty(2, 3).long()
        nll, lse, grad_h = OPS.linear_cross_entropy(h, weight, labels, None, -100, True, True)
        assert [(t.shape, t.dtype) for t in (nll, lse, grad_h)] == [((2, 3), F32), ((2, 3), F32), ((2, 3, 8), BF16)]
        assert [t.shape for t in OPS.linear_cross_entropy(h, weight, labels)] == [(2, 3), (0,), (0,)]
        found = OPS.linear_cross_entropy_backward(nll, h, weight, labels, lse, None, -100, True, True, True)
        assert [(t.shape, t.dtype) for t in found] == [((2, 3, 8), BF16), ((11, 8), BF16), ((11,), F32)]
        contrast = OPS.head_contrast(h, weight, labels[0], nll[0], labels[0], None, 4)
        assert (contrast.shape, contrast.dtype) == ((2, 4), torch.float64)
        with pytest.raises(ValueError, match=r"h has shape \[2, 3, 8\]; its last dimension must be 7"):
            OPS.linear_cross_entropy(h, weight[:, :7], labels)
        with pytest.raises(ValueError, match=r"base_nll has shape \[2\]; it must be \[3\]"):
            OPS.head_contrast(h, weight, labels[0], nll[0, :2])


def loss(h: Tensor, weight: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    nll, lse = ops.linear_cross_entropy(torch.cos(h), weight, labels, bias=bias, return_lse=True)
    return torch.sin(nll).sum() + lse.sum()


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("training", [(), (0,), (0, 1, 3), (3,)], ids=str)
def test_compiles_into_one_graph(training: tuple[int, ...], dynamic: bool | None) -> None:
    *tensors, _ = inputs_of(Case("", (2, 5), 11, 8, bias=F32))
    for index in training:
        tensors[index].requires_grad_()
    asked = [tensors[index] for index in training]
    expected = loss(*tensors)
    found = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)(*tensors)
    assert torch.allclose(found, expected, rtol=1e-6)
    if asked:
        pairs = zip(torch.autograd.grad(found, asked), torch.autograd.grad(expected, asked), strict=True)
        assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")  # torch's own, inside inductor
def test_compiles_with_inductor() -> None:
    *tensors, _ = inputs_of(Case("", (2, 5), 11, 8, bias=F32))
    tensors[0].requires_grad_()
    expected, found = loss(*tensors), torch.compile(loss, fullgraph=True)(*tensors)
    assert torch.allclose(found, expected, rtol=1e-6)
    (one,), (other,) = (torch.autograd.grad(value, tensors[:1]) for value in (found, expected))
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamic", [None, True])
def test_head_contrast_compiles_into_one_graph(dynamic: bool | None) -> None:
    h, weight, labels, bias, _ = inputs_of(Case("", (5,), 11, 8, bias=F32))
    edited, segments = torch.stack([h, h + 1]), torch.tensor([0, 1, 1, 0, -1])

    def contrast(edited: Tensor, base_nll: Tensor) -> Tensor:
        return ops.head_contrast(
            edited * 2, weight, labels, base_nll, segments=segments, segment_count=3, weights=base_nll, bias=bias
        )

    base = torch.rand(5)
    found = torch.compile(contrast, backend="aot_eager", fullgraph=True, dynamic=dynamic)(edited, base)
    assert torch.allclose(found, contrast(edited, base), equal_nan=True)


# Peak resident memory above what was there before a call, in MiB. M V float32 logits would be 32.
PEAK = """
import sys, torch
from restorelcc import ops
rows, vocabulary, columns = 256, 32768, 16
dtype = getattr(torch, sys.argv[2])
h, weight = torch.randn(rows, columns).to(dtype), torch.randn(vocabulary, columns).to(dtype)
labels, base = torch.randint(0, vocabulary, (rows,)), torch.zeros(rows)
calls = {
    "forward": lambda h, w, y, b: ops.linear_cross_entropy(h, w, y),
    "backward": lambda h, w, y, b: ops.linear_cross_entropy(h.requires_grad_(), w, y).sum().backward(),
    "training": lambda h, w, y, b: ops.linear_cross_entropy(h, w.requires_grad_(), y).sum().backward(),
    "contrast": lambda h, w, y, b: ops.head_contrast(h[None], w, y, b),
}
call = calls[sys.argv[1]]
call(h[:64].clone(), weight[:100].clone(), labels[:64] % 100, base[:64])  # threads and pools are there

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
call(h, weight, labels, base)
print((status("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resets the peak of resident memory through /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["forward", "backward", "training", "contrast"])
def test_the_logits_are_never_held(what: str, dtype: str) -> None:
    run = subprocess.run([sys.executable, "-c", PEAK, what, dtype], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    allowed = 6.0 if what != "training" else 10.0  # the gradient of W is 2 MiB, and 2 more where sums are float32
    assert float(run.stdout) < allowed
