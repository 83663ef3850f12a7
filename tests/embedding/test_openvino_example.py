"""examples/openvino: packed Llamas through OpenVINO's CPU plugin against stock transformers in float64.

Budgets are those of test_decode_example.py. The operation alone gives the bits of restorelcc.ops.sparse_linear.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decode_program import written
from llamas import KINDS, Packed, load_stock, logits_of, rounded_to_int8
from openvino_host import Host
from test_decode_example import TOKENS, check_greedy, exact_logits, fp32_budget, some_ids, worst
from torch import Tensor

Tiny = Callable[[str, str], Packed]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_in_fp32(kind: str, host: Host, tiny: Tiny, tmp_path: Path) -> None:
    """The prompt at once, in pieces, and token by token behind the state."""
    model, ids = tiny(kind, "fp32"), some_ids()
    exact = exact_logits(model, ids)
    out = host.converted(model.packed, tmp_path / "new" / "ov")
    for found in host.logits(out, ids, tmp_path, (TOKENS, 37, 1)):
        assert worst(found, exact) <= fp32_budget(model, ids, exact)


@pytest.mark.parametrize("values", ["fp16", "bf16"])
def test_half_precision_values(values: str, host: Host, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny("wide-heads", values), some_ids()
    exact = exact_logits(model, ids)
    out = host.converted(model.packed, tmp_path / "new" / "ov")
    for found in host.logits(out, ids, tmp_path, (TOKENS, 1)):
        assert worst(found, exact) <= fp32_budget(model, ids, exact)


@pytest.mark.parametrize("values", ["int8", "int8+head"])
def test_int8_values(values: str, host: Host, tiny: Tiny, tmp_path: Path) -> None:
    """All tokens at once: x is not rounded. Token by token it is: an error of some 0.5 % in each product."""
    model, ids = tiny("biased", values), some_ids()
    rounded = rounded_to_int8(model.checkpoint, tmp_path)
    exact = logits_of(load_stock(rounded, torch.float32, torch.float64), ids)
    out = host.converted(model.packed, tmp_path / "new" / "ov")
    whole, single = host.logits(out, ids, tmp_path, (TOKENS, 1))
    if values == "int8":  # a packed head is rounded too, which this reference is not
        assert worst(whole, exact) <= fp32_budget(model, ids, exact, rounded)
    for found in (whole, single):
        assert float((found - exact).square().mean().sqrt()) <= 0.04 * float(exact.std())


@pytest.mark.parametrize(("kind", "values"), [("biased", "fp32"), ("plain", "fp32"), ("wide-heads", "bf16")])
def test_a_compensation_by_name(kind: str, values: str, host: Host, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny(kind, values), some_ids()
    exact = exact_logits(model, ids, "law")
    budget = fp32_budget(model, ids, exact, name="law")
    out = host.converted(model.packed, tmp_path / "new" / "ov", "law")
    (found,) = host.logits(out, ids, tmp_path, (TOKENS,))
    assert worst(found, exact) <= budget
    assert worst(exact_logits(model, ids), exact) > 100 * budget


def test_two_texts_side_by_side(host: Host, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("biased", "fp32")
    texts = [some_ids(60), some_ids(23, seed=6)]
    out = host.converted(model.packed, tmp_path / "new" / "ov")
    found = host.arrays(tmp_path, range(2), "padded", model=str(out), texts=texts)
    for logits, ids in zip(found, texts, strict=True):
        exact = exact_logits(model, ids)
        assert worst(logits.double(), exact) <= fp32_budget(model, ids, exact)


@dataclass(frozen=True)
class Program:
    """continue_text as check_greedy() asks for it."""

    host: Host
    model: Path

    def generate(self, _: Path, prompt: Sequence[int], new: int) -> dict[str, Any]:
        done = self.host.run(self.host.program, self.host.extension, self.model, written(prompt), new)
        assert done.returncode == 0, done.stderr
        return {"ids": [int(word) for word in done.stdout.split(",")]}


def test_greedy_tokens_from_cpp(host: Host, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("biased", "fp32")
    out = host.converted(model.packed, tmp_path / "new" / "ov")
    check_greedy(Program(host, out), model, some_ids(9), (), new=60)  # type: ignore[arg-type]


@pytest.mark.parametrize("says", ["whole number", "empty"])
def test_calls_of_the_program(says: str, host: Host, tmp_path: Path) -> None:
    done = host.run(host.program, host.extension, tmp_path, {"whole number": "1,two", "empty": ""}[says])
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


@pytest.mark.parametrize("missing", ["openvino_model.xml", "no.so"])
def test_a_file_that_the_program_needs_is_named(missing: str, host: Host, tmp_path: Path) -> None:
    extension = tmp_path / missing if missing == "no.so" else host.extension
    done = host.run(host.program, extension, tmp_path, "1,5,9")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path / missing} cannot be read; name the" in done.stderr
    assert done.stderr.count("\n") == 1


def product_case(packed: Any, x: Tensor, bias: Tensor | None, folder: Path, values: str = "fp32", **more: Any) -> Any:
    """One of openvino_worker.product's: the operation's inputs as files, those behind x as bytes."""
    folder.mkdir()
    tensors = [packed.mask, packed.values, packed.row_offsets, packed.scales, bias]
    arrays = [one.contiguous().view(torch.uint8).reshape(-1).numpy() for one in tensors if one is not None]
    paths = [folder / f"part{i}.npy" for i in range(len(arrays))]
    for path, array in zip([folder / "x.npy", *paths], [x.numpy(), *arrays], strict=True):
        np.save(path, array)
    attributes = {"rows": packed.shape[0], "columns": packed.shape[1], "values": values, "module": "some.module"}
    case = {"x": str(folder / "x.npy"), "parts": list(map(str, paths)), "attributes": attributes, "as": ["constants"]}
    return {**case, **more}


@pytest.mark.parametrize("values", ["fp32", "bf16", "fp16", "int8"])
def test_the_operation_alone(values: str, host: Host, tmp_path: Path) -> None:
    """The same bits as in Python; weight as constants, checked once, and as inputs, checked in each call."""
    import restorelcc

    weight = torch.randn(70, 200) * (torch.rand(70, 200) < 0.5)
    weight[3] = 0
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(values, torch.float32)
    packed = restorelcc.pack(weight.to(dtype), values="int8" if values == "int8" else None)
    bias, ways = torch.randn(70), ["constants", "inputs"]
    cases, expected = [], []
    for rows, added, threads in itertools.product((0, 1, 3, 21), (None, bias), (1, 2)):
        x, folder, config = torch.randn(1, rows, 200), tmp_path / str(len(cases)), {"INFERENCE_NUM_THREADS": threads}
        cases.append(product_case(packed, x, added, folder, values, config=config, **{"as": ways}))
        expected.append(restorelcc.ops.sparse_linear(x, packed, bias=added))
    names = [f"{number}.{which}" for number in range(len(cases)) for which in ways]
    found = host.arrays(tmp_path, names, "product", cases=cases)
    for name, y in zip(names, found, strict=True):
        assert torch.equal(y, expected[int(name.partition(".")[0])]), name


@pytest.mark.parametrize("hint", ["f16", "bf16"])
def test_types_that_the_plugin_computes_in(hint: str, host: Host, tmp_path: Path) -> None:
    """It may hand on x in the type of the hint (f16, where the CPU has it) or in f32; the weight and the bias stay."""
    import restorelcc

    packed, bias = restorelcc.pack(torch.randn(70, 200) * (torch.rand(70, 200) < 0.5)), torch.randn(70)
    x = torch.randn(1, 3, 200)
    case = product_case(packed, x, bias, tmp_path / "case", config={"INFERENCE_PRECISION_HINT": hint})
    (found,) = host.arrays(tmp_path, ["0.constants"], "product", cases=[case])
    rounded = x.to({"f16": torch.float16, "bf16": torch.bfloat16}[hint])
    as_it_is = restorelcc.ops.sparse_linear(x, packed, bias=bias)
    as_hinted = restorelcc.ops.sparse_linear(rounded, packed, bias=bias).float()
    assert torch.equal(found, as_it_is) or torch.equal(found, as_hinted)


def test_a_compiled_model_from_the_cache(host: Host, tiny: Tiny, tmp_path: Path) -> None:
    """There its constants stand at other places, on no multiple of anything."""
    model, ids = tiny("biased", "fp32"), some_ids(50)
    exact = exact_logits(model, ids)
    out = host.converted(model.packed, tmp_path / "new" / "ov")
    job = {"model": str(out), "ids": ids, "batches": [50], "config": {"CACHE_DIR": str(tmp_path / "cache")}}
    for _ in range(2):
        (found,) = host.arrays(tmp_path, [50], "logits", **job)
        assert list((tmp_path / "cache").glob("*.blob")) != []
        assert worst(found.double(), exact) <= fp32_budget(model, ids, exact)


def test_a_real_model(host: Host, real: Packed, tmp_path: Path) -> None:
    """Logits of 200 tokens of SmolLM2-135M, bf16 values, computed in f32; and its text from C++."""
    ids = some_ids(vocabulary=49152)
    exact = exact_logits(real, ids)
    out = host.converted(real.packed, tmp_path / "new" / "ov")
    for found in host.logits(out, ids, tmp_path, (TOKENS, 1)):
        assert worst(found, exact) <= fp32_budget(real, ids, exact)
    check_greedy(Program(host, out), real, [1, 4093, 198, 9], (), new=24)  # type: ignore[arg-type]


def test_a_stock_checkpoint_without_the_extension(host: Host, tiny: Tiny, tmp_path: Path) -> None:
    """A checkpoint with biases, as `restorelcc fold` writes it, by OpenVINO's own conversion of torch models."""
    if host.run(host.python, "-c", "import torch, transformers").returncode != 0:
        pytest.skip("the Python of RLCC_OPENVINO_PYTHON has no torch and transformers")
    model, ids = tiny("biased", "fp32"), some_ids()
    exact = exact_logits(model, ids)
    (found,) = host.arrays(tmp_path, ("stock",), "stock", model=str(model.checkpoint), ids=ids)
    assert worst(found.double(), exact) <= fp32_budget(model, ids, exact)
