"""sparse_linear against float64: every dtype, layout, instruction set; what must be refused is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sparse_cases import (
    BF16,
    CASES,
    F16,
    F32,
    Case,
    arguments_of,
    assert_within_budget,
    exact,
    magnitude_of,
    name_of,
    plain_torch,
    weight_of,
    x_of,
)
from torch.nn import functional

import restorelcc
from restorelcc import ops


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_within_the_error_of_plain_torch(case: Case, isa: str) -> None:
    weight, x, arguments = weight_of(case), x_of(case), arguments_of(case)
    y = ops.sparse_linear(x, restorelcc.pack(weight), **arguments)
    truth = exact(x, weight, arguments)
    if truth.numel() == 0:
        assert y.shape == truth.shape
        assert y.dtype == x.dtype
    else:
        assert_within_budget(y, plain_torch(x, weight, arguments), truth, magnitude_of(x, weight, arguments))


@pytest.mark.parametrize("case", [c for c in CASES if 0 not in c.leading], ids=name_of)
def test_reference_is_rounded_once(case: Case) -> None:
    weight, x, arguments = weight_of(case), x_of(case), arguments_of(case)
    y = ops.sparse_linear(x, restorelcc.pack(weight), impl="reference", **arguments)
    assert torch.equal(y, exact(x, weight, arguments).to(x.dtype))


def test_reference_is_the_equation() -> None:
    case = Case("", (2, 3), 20, 70, groups=4, bias=F32, residual=True)
    weight, x, arguments = weight_of(case).double(), x_of(case).double(), arguments_of(case)
    folded = functional.linear(x + arguments["comp"][arguments["comp_index"]].double(), weight)
    wanted = folded + arguments["bias"].double() + arguments["residual"].double()
    assert (exact(x, weight.float(), arguments) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("rows", [1, 40])
def test_infinities_and_nans_go_where_a_dense_product_puts_them(dtype: torch.dtype, rows: int, isa: str) -> None:
    weight = weight_of(Case("", (rows,), 30, 140, weight_dtype=dtype))
    weight[3, 5], weight[9, 139], weight[12, 0] = torch.inf, -torch.inf, torch.nan
    x = torch.randn(rows, 140).to(dtype)
    x[0, 17], x[-1, 130] = torch.inf, torch.nan  # meets pruned places too: 0 * inf is NaN there
    truth = exact(x, weight, {})
    y = ops.sparse_linear(x, restorelcc.pack(weight))
    assert truth.isnan().any()
    assert_within_budget(y, plain_torch(x, weight, {}), truth, torch.full((), 1e3))


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 60])
def test_int8_values(dtype: torch.dtype, rows: int, isa: str) -> None:
    """Against the rounded weight: exact x from 17 rows on, below that x rounded to 8 bits in groups of 128 columns."""
    case = Case("", (rows,), 33, 300, dtype, groups=2, bias=F32, residual=True)
    x, arguments = x_of(case), arguments_of(case)
    x[0, 5] = 50.0  # an outlier costs its own group alone
    packed = restorelcc.pack(weight_of(case), values="int8")
    weight = packed.unpack()
    y, truth = ops.sparse_linear(x, packed, **arguments), exact(x, weight, arguments)
    reference = ops.sparse_linear(x, packed, impl="reference", **arguments)
    assert torch.equal(reference, truth.to(dtype))
    rounding = torch.finfo(dtype).eps / 2 * truth.abs() + 64 * torch.finfo(F32).eps * magnitude_of(x, weight, arguments)
    if rows <= 16:
        padded = functional.pad(x.double().abs(), (0, 84)).view(rows, 3, 128)
        steps = padded.amax(-1, keepdim=True).expand_as(padded).reshape(rows, 384)[:, :300] / 254
        rounding = rounding + steps @ weight.double().abs().T
    assert ((y.double() - truth).abs() <= rounding).all()


def test_a_small_compensation_keeps_its_digits() -> None:
    """comp of 1% of x in bfloat16: W (x + comp) with x + comp rounded loses a good part of W comp."""
    weight = weight_of(Case("", (1,), 64, 576)).bfloat16()
    packed, x = restorelcc.pack(weight), torch.randn(8, 576).bfloat16()
    comp = torch.randn(576) * 0.01
    rows = ops.compensation_rows(comp, packed)
    wanted = weight.double() @ comp.double()
    assert rows.dtype == F32
    assert (rows[0] - wanted).norm() < 1e-6 * wanted.norm()
    rounded = (x.float() + comp).bfloat16().double() - x.double()
    assert ((rounded @ weight.double().T) - wanted).norm(dim=1).min() > 0.05 * wanted.norm()


@pytest.mark.parametrize("case", [c for c in CASES if c.leading and 0 not in c.leading], ids=name_of)
def test_the_bits_do_not_depend_on_threads(case: Case) -> None:
    packed, x, arguments = restorelcc.pack(weight_of(case)), x_of(case), arguments_of(case)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.sparse_linear(x, packed, **arguments))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_each_row_takes_the_compensation_of_its_index() -> None:
    packed = restorelcc.pack(weight_of(Case("", (1,), 33, 100)))
    x, comp = torch.randn(6, 100), torch.randn(3, 100)
    index = torch.tensor([2, 0, 1, 1, 2, 0])
    rows = ops.compensation_rows(comp, packed)
    wanted = ops.sparse_linear(x, packed) + rows[index]
    assert torch.equal(ops.sparse_linear(x, packed, comp=comp, comp_index=index), wanted)
    shaped = ops.sparse_linear(x.view(2, 3, 100), packed, comp=comp, comp_index=index.view(2, 3))
    assert torch.equal(shaped.view(6, 33), wanted)


@dataclass(frozen=True)
class Refused:
    name: str
    sentence: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    reference_too: bool = True


REFUSED = [
    Refused("columns", r"x has shape \[5, 69\]; its last dimension must be 70", lambda a: {"x": torch.ones(5, 69)}),
    Refused("scalar", r"x has shape \[\]", lambda a: {"x": torch.ones(())}),
    Refused(
        "float64",
        "x has dtype float64; it must be float32, bfloat16 or float16",
        lambda a: {"x": a["x"].double(), "residual": None},
        False,
    ),
    Refused("int8", "x has dtype .*int8; it must be", lambda a: {"x": a["x"].to(torch.int8), "residual": None}),
    Refused("int", r"x has dtype (torch\.)?int32; it must be", lambda a: {"x": a["x"].int(), "residual": None}),
    Refused("index_high", r"comp_index.* 3[^0-9].*\[0, 3\)", lambda a: {"comp_index": torch.tensor([0, 1, 2, 3, 0])}),
    Refused("index_low", r"comp_index.* -1[^0-9].*\[0, 3\)", lambda a: {"comp_index": torch.tensor([0, 1, 2, -1, 0])}),
    Refused(
        "index_length",
        "comp_index has 4 entries; x has 5 rows",
        lambda a: {"comp_index": torch.zeros(4, dtype=torch.int64)},
    ),
    Refused(
        "index_dtype",
        "comp_index has dtype .*int32; it must be .*int64",
        lambda a: {"comp_index": a["comp_index"].int()},
    ),
    Refused("index_missing", "3 (compensations|groups)", lambda a: {"comp_index": None}),
    Refused("index_alone", "comp_index is set, but there is no compensation", lambda a: {"comp": None}),
    Refused(
        "comp_columns",
        r"comp has shape \[3, 71\]; it must be \[70\] or \[G, 70\]",
        lambda a: {"comp": torch.ones(3, 71)},
    ),
    Refused("comp_rank", r"comp has shape \[1, 3, 70\]", lambda a: {"comp": torch.ones(1, 3, 70)}),
    Refused("bias", r"bias has shape \[8\]; it must be \[9\]", lambda a: {"bias": torch.ones(8)}),
    Refused("bias_rank", r"bias has shape \[1, 9\]; it must be \[9\]", lambda a: {"bias": torch.ones(1, 9)}),
    Refused("residual", r"residual has shape \[5, 8\]; it must be \[5, 9\]", lambda a: {"residual": torch.ones(5, 8)}),
    Refused(
        "residual_dtype",
        "residual has dtype .*bfloat16; it must be .*float32",
        lambda a: {"residual": a["residual"].bfloat16()},
    ),
]


def good_arguments() -> dict[str, Any]:
    case = Case("", (5,), 9, 70, groups=3, bias=F32, residual=True)
    return {"x": x_of(case), "packed": restorelcc.pack(weight_of(case)), **arguments_of(case)}


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: r.name)
def test_refused(refused: Refused, impl: str) -> None:
    arguments = good_arguments()
    arguments.update(refused.change(arguments))
    x, packed = arguments.pop("x"), arguments.pop("packed")
    if impl == "reference" and not refused.reference_too:
        ops.sparse_linear(x.double(), packed, impl=impl, **arguments)  # float64 is what it is there for
        return
    with pytest.raises(ValueError, match=refused.sentence):
        ops.sparse_linear(x, packed, impl=impl, **arguments)


def test_refused_device() -> None:
    """A tensor on a device without kernels, or apart from the others, meets one sentence. The kernel is handed meta
    tensors past the dispatcher, which would have traced shapes."""
    packed = restorelcc.pack(torch.eye(8))
    with pytest.raises(ValueError, match="weight is on meta; packing runs on the CPU"):
        restorelcc.pack(torch.empty(8, 8, device="meta"))
    kernel = torch.ops.restorelcc.sparse_linear.default._op_dk
    x = torch.ones(1, 8)
    for name, arguments in {
        "x": (x.to("meta"), *packed.tensors),
        "mask": (x, packed.mask.to("meta"), *packed.tensors[1:]),
        "values": (x, packed.mask, packed.values.to("meta"), *packed.tensors[2:]),
        "bias": (x, *packed.tensors, None, None, x[0].to("meta")),
    }.items():
        sentence = "neither on the CPU nor on a CUDA device" if name == "x" else "not on the CPU, where x is"
        with pytest.raises(ValueError, match=f"^{name} is {sentence}"):
            kernel(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)


def test_refused_impl() -> None:
    packed = restorelcc.pack(torch.eye(8))
    with pytest.raises(ValueError, match="impl is 'fast'; it must be 'auto' or 'reference'"):
        ops.sparse_linear(torch.ones(1, 8), packed, impl="fast")
