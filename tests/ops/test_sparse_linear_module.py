"""SparseLinear: the same numbers as the op, P kept while it holds and never longer, buffers that can be moved."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import restorelcc
from restorelcc import SparseLinear, ops

K, N = 70, 12


class Calls(TorchDispatchMode):
    """Counts the sparse_linear calls that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        library = torch.ops.restorelcc
        self.count += func in (library.sparse_linear.default, library.sparse_linear_inference.default)
        return func(*args, **(kwargs or {}))


def calls_of(module: SparseLinear, x: Tensor, **arguments: Any) -> int:
    with Calls() as calls:
        module(x, **arguments)
    return calls.count


def linear_of(bias: bool = True) -> nn.Linear:
    linear = nn.Linear(K, N, bias=bias)
    with torch.no_grad():
        linear.weight.mul_(torch.rand_like(linear.weight) > 0.5)
    return linear


def module_of(groups: int = -1) -> SparseLinear:
    return SparseLinear.from_linear(linear_of(), torch.randn(K) if groups < 0 else torch.randn(groups, K))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_replaces_a_linear(bias: bool, grad: bool) -> None:
    linear, x = linear_of(bias), torch.randn(2, 3, K)
    module, comp = SparseLinear.from_linear(linear), torch.randn(K)
    with torch.set_grad_enabled(grad):
        assert torch.allclose(module(x), linear(x), atol=1e-5)
        restored = SparseLinear.from_linear(linear, comp)
        assert torch.allclose(restored(x), linear(x + comp), atol=1e-5)
        residual = torch.randn(2, 3, N)
        assert torch.allclose(restored(x, residual=residual), linear(x + comp) + residual, atol=1e-5)
    assert (module.in_features, module.out_features) == (K, N)
    assert torch.equal(module.packed.unpack(), linear.weight)
    assert f"in_features={K}, out_features={N}, dtype=float32, bias={bias}, comp=1" in repr(restored)


def test_picks_a_compensation_for_each_row() -> None:
    module, x, index = module_of(3), torch.randn(5, K), torch.tensor([0, 2, 1, 1, 0])
    wanted = ops.sparse_linear(x, module.packed, comp=module.comp, comp_index=index, bias=module.bias)
    assert torch.equal(module(x, index), wanted)
    with torch.no_grad():
        assert torch.equal(module(x, index), wanted)
        with pytest.raises(ValueError, match="3 groups"):
            module(x)


def test_gradients_reach_comp_and_bias_and_nothing_else() -> None:
    module, x = module_of(), torch.randn(5, K)
    module(x).sum().backward()
    weight = module.packed.unpack()
    assert torch.allclose(module.comp.grad, 5 * weight.sum(0), atol=1e-4)
    assert torch.allclose(module.bias.grad, torch.full((N,), 5.0))
    assert {name for name, _ in module.named_parameters()} == {"comp", "bias"}


def test_compensation_rows_are_kept_without_gradients() -> None:
    module, x = module_of(), torch.randn(5, K)
    assert calls_of(module, x) == 2
    assert calls_of(module, x) == 2  # with gradients P is a node of the graph each time
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            module.forget()
            assert calls_of(module, x) == 2
            assert calls_of(module, x) == 1
    module.comp.requires_grad_(False)
    assert calls_of(module, x) == 1
    y = module(x.requires_grad_())
    y.sum().backward()
    assert x.grad is not None


def optimizer_step(module: SparseLinear) -> None:
    optimizer = torch.optim.SGD([module.comp], lr=0.1)
    module.comp.grad = torch.ones_like(module.comp)
    optimizer.step()


def reload(module: SparseLinear) -> None:
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["comp"] += 1
    module.load_state_dict(state)


def new_values(module: SparseLinear) -> None:
    module.values.mul_(2)


def new_parameter(module: SparseLinear) -> None:
    module.comp = nn.Parameter(torch.randn(K))


def new_data(module: SparseLinear) -> None:
    module.comp.data = torch.randn(K)


def unseen_edit(module: SparseLinear) -> None:
    module.comp.data.mul_(3)
    module.forget()


CHANGES: list[Callable[[SparseLinear], Any]] = [
    optimizer_step,
    reload,
    new_values,
    new_parameter,
    new_data,
    unseen_edit,
    lambda module: nn.init.normal_(module.comp),
    lambda module: module.load_state_dict(module_of().state_dict()),
    lambda module: module.to(torch.bfloat16),
]


@pytest.mark.parametrize("change", CHANGES)
def test_kept_rows_follow_every_change(change: Callable[[SparseLinear], Any]) -> None:
    module, x = module_of(), torch.randn(5, K)
    with torch.no_grad():
        before = module(x)
        change(module)
        x = x.to(module.values.dtype)
        assert calls_of(module, x) == 2
        fresh = ops.sparse_linear(x, restorelcc.pack(module.packed.unpack()), comp=module.comp, bias=module.bias)
        assert torch.equal(module(x), fresh)
        assert not torch.equal(before.to(fresh.dtype), fresh)


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(assign: bool) -> None:
    module, x = module_of(), torch.randn(5, K)
    denser = SparseLinear(restorelcc.pack(torch.randn(N, K)), torch.zeros(N), comp=torch.zeros(K))  # other values
    denser.load_state_dict(module.state_dict(), assign=assign)
    assert torch.equal(denser(x), module(x))
    assert set(module.state_dict()) == {"mask", "values", "row_offsets", "bias", "comp"}


def test_a_hostile_state_dict_is_refused() -> None:
    module, state = module_of(), module_of().state_dict()
    state["mask"] = torch.full_like(state["mask"], -1)
    with pytest.raises(RuntimeError, match="mask"):
        module.load_state_dict(state)
    with pytest.raises(ValueError, match="mask"):
        module(torch.randn(5, K))
    module.load_state_dict(module_of().state_dict())
    module(torch.randn(5, K))


def test_a_write_to_a_buffer_is_checked_before_use() -> None:
    module = module_of()
    module.row_offsets[2] = 1 << 40
    with pytest.raises(ValueError, match=r"row_offsets\[2\]"):
        module(torch.randn(5, K))


def test_dtype_conversion_repacks_and_spares_comp() -> None:
    module = module_of()
    comp, weight = module.comp.detach().clone(), module.packed.unpack()
    module.to(torch.bfloat16)
    assert module.values.dtype == module.bias.dtype == torch.bfloat16
    assert module.comp.dtype == torch.float32
    assert torch.equal(module.comp, comp)
    assert torch.equal(module.packed.unpack(), weight.bfloat16())
    assert module(torch.randn(5, K).bfloat16()).dtype == torch.bfloat16
    assert nn.Sequential(module).float()[0].values.dtype == torch.float32
    assert nn.Sequential(module).half()[0].values.dtype == torch.float16
    with pytest.raises(ValueError, match="float64"):
        module.double()


def test_int8_values_stay_as_they_are() -> None:
    linear = nn.Linear(K, N)
    module = SparseLinear.from_linear(linear, comp=torch.randn(K), values="int8")
    weight, x = module.packed.unpack(), torch.randn(20, K)
    y = module(x)
    assert torch.allclose(y, x @ weight.T + weight @ module.comp + linear.bias, atol=1e-4)
    module.to(torch.bfloat16)
    assert (module.values.dtype, module.scales.dtype, module.bias.dtype) == (torch.int8, torch.bfloat16, torch.bfloat16)
    assert torch.equal(module.float().packed.unpack(), weight)
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_state_dicts_of_other_values() -> None:
    linear, x = nn.Linear(K, N), torch.randn(20, K)
    plain, int8 = SparseLinear.from_linear(linear), SparseLinear.from_linear(linear, values="int8")
    states, results = [copy.deepcopy(m.state_dict()) for m in (plain, int8)], [m(x) for m in (plain, int8)]
    for module in (plain, int8):
        for state, wanted in zip(states, results, strict=True):
            module.load_state_dict(state)
            assert torch.equal(module(x), wanted)


def test_meta_and_back() -> None:
    module = module_of()
    state = module.state_dict()
    module.to("meta")
    module.load_state_dict(state, assign=True)
    module(torch.randn(5, K))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(clone: Callable[[SparseLinear], SparseLinear]) -> None:
    module, x = module_of(), torch.randn(5, K)
    with torch.no_grad():
        y = module(x)
        other = clone(module)
        other.comp.zero_()
        assert torch.equal(module(x), y)
        assert torch.allclose(other(x), module(x) - ops.compensation_rows(module.comp, module.packed), atol=1e-5)


def test_inference_tensors_are_never_trusted() -> None:
    with torch.inference_mode():
        module, x = module_of(), torch.randn(5, K)
        assert calls_of(module, x) == 2
        y = module(x)
        module.comp.mul_(0)
        assert not torch.equal(module(x), y)


def test_refused() -> None:
    packed = restorelcc.pack(torch.eye(8))
    with pytest.raises(ValueError, match=r"bias has shape \[9\]; it must be \[8\]"):
        SparseLinear(packed, torch.zeros(9))
    with pytest.raises(ValueError, match=r"comp has shape \[9\]; it must be \[8\] or \[G, 8\]"):
        SparseLinear(packed, comp=torch.zeros(9))
    for shift, comp in ((torch.zeros(9), None), (torch.zeros(1, 1, 8), None), (torch.zeros(8), torch.zeros(8))):
        with pytest.raises(ValueError, match=r"it must be \[8\] or \[G, 8\], and comp must be None"):
            SparseLinear(packed, comp=comp, shift=shift)


def test_a_shift_is_added_to_the_output() -> None:
    """y = x Wᵀ + shift[index] + bias, in float64; its gradient is the sum of y's over its rows."""
    linear, x = nn.Linear(K, N), torch.randn(20, K)
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    one = SparseLinear.from_linear(linear, shift=torch.randn(N))
    many = SparseLinear.from_linear(linear, shift=torch.randn(3, N))
    index = torch.arange(20) % 3
    towards = torch.randn(20, N)
    for module, added, arguments in (
        (one, one.shift.detach(), {}), (many, many.shift.detach()[index], {"comp_index": index}),
    ):  # fmt: skip
        y = module(x, **arguments)
        torch.testing.assert_close(y.double(), x.double() @ weight.T + added + bias, rtol=1e-5, atol=1e-5)
        y.backward(towards)
    torch.testing.assert_close(one.shift.grad, towards.sum(0), rtol=1e-5, atol=1e-5)
    wanted = torch.stack([towards[index == row].sum(0) for row in range(3)])
    torch.testing.assert_close(many.shift.grad, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        before = one(x)
        one.shift.add_(1.0)  # nothing derived from it may be kept
        torch.testing.assert_close(one(x), before + 1.0, rtol=1e-5, atol=1e-5)
    one.to(torch.bfloat16)
    assert (one.shift.dtype, one.bias.dtype) == (torch.float32, torch.bfloat16)
    assert "shift=1" in repr(one)
    state = many.state_dict()
    other = SparseLinear.from_linear(nn.Linear(K, N), shift=torch.zeros(3, N))
    other.load_state_dict(state)
    assert torch.equal(other(x, comp_index=index), many(x, comp_index=index))
