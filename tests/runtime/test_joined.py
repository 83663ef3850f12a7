"""Projections that share a weight and a call: the same numbers as apart, whatever is done to them in between."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_cases import ALL_VALUES, greedy, logits, stock
from torch import Tensor

import restorelcc
from restorelcc import ops
from restorelcc.joined import JoinedLinear, join, joinable, joint_weight
from restorelcc.pack_checkpoint import pack_checkpoint
from restorelcc.packed import stack_rows
from restorelcc.sparse_linear import SparseLinear

SIZES, COLUMNS = (24, 8, 8), 70
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}


class Family:
    """Three projections apart, the same joined, and how often the compiled op was called since."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, values: str = "fp32", *, bias: bool = False) -> None:
        torch.manual_seed(3)
        dense = [torch.randn(n, COLUMNS).to(DTYPES[values]) * (torch.rand(n, COLUMNS) < 0.5) for n in SIZES]
        packed = [restorelcc.pack(w, values="int8" if values == "int8" else None) for w in dense]
        biases = [torch.randn(n).to(DTYPES[values]) if bias else None for n in SIZES]
        self.apart = [SparseLinear(w, b).requires_grad_(False) for w, b in zip(packed, biases, strict=True)]
        self.joined = join(stack_rows(packed), SIZES, biases)
        self.x = torch.randn(1, 1, COLUMNS).to(DTYPES[values])
        self.calls = 0
        native = ops.sparse_linear_native

        def counted(*arguments: Any, **options: Any) -> Tensor:
            self.calls += 1
            return native(*arguments, **options)

        monkeypatch.setattr(ops, "sparse_linear_native", counted)

    def check(self, x: Tensor, calls: int) -> None:
        expected = [member(x) for member in self.apart]
        self.calls = 0
        found = [member(x) for member in self.joined]
        assert self.calls == calls
        for y, wanted in zip(found, expected, strict=True):
            assert torch.equal(y, wanted)
            assert y.is_contiguous()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("values", ALL_VALUES)
def test_one_call_gives_the_same_bits(values: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch, values, bias=bias)
    for rows, calls in ((1, 1), (3, 1), (16, 1), (17, 3), (0, 3)):
        family.check(torch.randn(1, rows, COLUMNS).to(family.x.dtype), calls)


def test_any_order_and_a_second_round(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    family.joined, family.apart = family.joined[::-1], family.apart[::-1]
    family.check(family.x, 1)
    family.check(family.x, 1)  # the same tensor again: all had taken theirs


def test_what_one_left_is_dropped_by_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    family.joined[0](family.x)  # and its siblings are never asked
    family.check(torch.randn(1, 1, COLUMNS), 1)


def test_another_tensor_is_not_answered_with_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    other = torch.randn(1, 1, COLUMNS)
    family.joined[0](family.x)
    assert torch.equal(family.joined[1](other), family.apart[1](other))
    family.check(family.x, 3)  # such a model gains nothing from joining


def test_writing_to_the_input_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    family.joined[0](family.x)
    family.x.mul_(2)
    assert torch.equal(family.joined[1](family.x), family.apart[1](family.x))


@pytest.mark.parametrize("name", ["values", "row_offsets", "mask"])
def test_an_edited_or_replaced_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    for member in (family.joined[1], family.apart[1]):
        if name == "values":
            member.values.mul_(2.0)
        else:
            setattr(member, name, getattr(member, name).clone())
    family.check(family.x, 3)


def test_a_loaded_state_with_another_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    other = SparseLinear(restorelcc.pack(torch.randn(SIZES[1], COLUMNS) * (torch.rand(SIZES[1], COLUMNS) < 0.5)))
    for member in (family.joined[1], family.apart[1]):
        member.load_state_dict(other.state_dict())
    family.check(family.x, 3)


def test_conversions_and_copies_compute_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch, bias=True)
    family.joined[0](family.x)  # something left
    family.joined = copy.deepcopy(family.joined)
    family.check(family.x, 3)
    family.joined, family.apart = ([m.to(torch.bfloat16) for m in some] for some in (family.joined, family.apart))
    family.check(family.x.bfloat16(), 3)


def test_inference_mode_computes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    with torch.inference_mode():
        family.check(torch.randn(1, 1, COLUMNS), 3)


def test_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch, bias=True)
    found = []
    for members in (family.joined, family.apart):
        for member in members:
            assert member.bias is not None
            member.bias.requires_grad_(True)
        x = torch.randn(2, 3, COLUMNS, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        outputs = [member(x) for member in members]
        outputs[0].mul_(2.0)  # some stock classes write into what a projection returned
        sum((y**2).sum() for y in outputs).backward()
        found.append([x.grad, *(member.bias.grad for member in members if member.bias is not None)])
    for joined, apart in zip(*found, strict=True):  # sums in another order: an error of the largest, not of each
        largest = float(apart.abs().max())
        torch.testing.assert_close(joined, apart, rtol=0, atol=1e-6 * largest)


def test_a_gradient_of_the_values_reaches_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    family.joined[1].values.requires_grad_(True)
    sum(member(family.x).sum() for member in family.joined).backward()
    assert family.joined[1].values.grad is not None
    assert family.joined[1].values.grad.abs().sum() > 0


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    monkeypatch.undo()
    together = torch.compile(lambda x: [member(x) for member in family.joined], fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for y, member in zip(together(family.x), family.apart, strict=True):
            assert torch.equal(y, member(family.x))


def test_which_modules_are_siblings() -> None:
    layer = [f"layers.1.attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert joinable(layer) == [tuple(layer[:3])]
    assert joinable(layer[1:]) == []
    assert joinable(["up_proj", "gate_proj", "down_proj"]) == [("gate_proj", "up_proj")]


def test_join_refuses_what_does_not_fit() -> None:
    joint = restorelcc.pack(torch.eye(8, 16))
    with pytest.raises(ValueError, match="2 projections of 7 rows, 0 of them with a bias, cannot share a weight of 8"):
        join(joint, [4, 3], [None, None])
    with pytest.raises(ValueError, match="1 of them with a bias"):
        join(joint, [4, 4], [None, torch.zeros(4)])
    with pytest.raises(ValueError, match="2 kinds"):
        stack_rows([joint, restorelcc.pack(torch.eye(8, 17))])
    with pytest.raises(ValueError, match="rows 4 to 9 are not within the 8"):
        joint.slice_rows(4, 9)


@pytest.mark.parametrize("values", [None, "int8"])
@pytest.mark.parametrize("sizes", [(3, 0, 5), (1, 1, 1), (0, 0, 0)])
def test_stacking_and_slicing_are_inverse(sizes: tuple[int, ...], values: str | None) -> None:
    dense = [torch.randn(n, 130) * (torch.rand(n, 130) < 0.5) for n in sizes]
    joint, begin = stack_rows([restorelcc.pack(w, values=values) for w in dense]), 0
    assert torch.equal(joint.unpack(), restorelcc.pack(torch.cat(dense), values=values).unpack())
    for w in dense:
        part = joint.slice_rows(begin, begin + len(w))
        assert torch.equal(part.unpack(), restorelcc.pack(w, values=values).unpack())
        begin += len(w)


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2", "opt", "gpt_neox"])
def test_a_packed_model_on_disk(kind: str, pruned: Callable[[str], Path], tmp_path: Path) -> None:
    """Joined where the stock class has siblings, one weight for all in the file, and the same text."""
    pack_checkpoint(str(pruned(kind)), tmp_path / "packed", values="fp32")
    record = json.loads((tmp_path / "packed" / "restorelcc.json").read_text())
    families = {"llama-gqa": 2, "qwen2": 2, "opt": 1, "gpt_neox": 0}[kind]
    model, reference = restorelcc.load(tmp_path / "packed"), stock(pruned(kind), torch.float32)
    assert len(record["joined"]) == families * model.config.num_hidden_layers
    assert torch.equal(greedy(model), greedy(reference))
    for family in record["joined"]:
        members: list[Any] = [model.get_submodule(name) for name in family]
        assert all(isinstance(member, JoinedLinear) for member in members)
        assert joint_weight(members) is members[0].family.joint  # still shared after a run
        assert members[0].values.untyped_storage().data_ptr() == members[1].values.untyped_storage().data_ptr()
    model.save_pretrained(tmp_path / "again")
    for name in ("packed.safetensors", "restorelcc.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()
    assert torch.equal(logits(restorelcc.load(tmp_path / "again")), logits(model))
