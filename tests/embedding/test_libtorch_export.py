"""A packed model as a graph of torch.export, and the library of its ops in a process without Python.

AOTInductor compiles nothing here: that is test_libtorch_example.py.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from libtorch_program import EXAMPLE, LIBRARIES, compiler
from llamas import Packed, logits_of
from test_decode_example import exact_logits, fp32_budget, some_ids, worst

import restorelcc
from restorelcc.logits_export import export_logits

Tiny = Callable[[str, str], Packed]

# torch's own, about its own classes, in copies that torch.export makes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

# Loads libtorch and then the ops, every symbol bound at once, which registers them; no header of torch.
LOADER = r"""
#include <dlfcn.h>
#include <cstdio>
int main(int, char** paths) {
  for (int i = 1; i <= 2; ++i)
    if (dlopen(paths[i], RTLD_NOW | RTLD_GLOBAL) == nullptr) return std::printf("%s\n", dlerror()), 1;
  if (dlsym(RTLD_DEFAULT, "Py_IsInitialized") != nullptr) return std::printf("there is a Python\n"), 1;
  std::printf("loaded\n");
}
"""


def products(program: Any) -> int:
    op = torch.ops.restorelcc.sparse_linear_inference.default
    return sum(node.target is op for node in program.graph.nodes)


def weights_of(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    return [*program.state_dict.values(), *program.constants.values()]


def test_the_ops_load_without_python(tmp_path: Path) -> None:
    source, loader = tmp_path / "loader.cpp", tmp_path / "loader"
    source.write_text(LOADER)
    subprocess.run([compiler(), "-std=c++17", str(source), "-o", str(loader), "-ldl"], check=True)
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    done = subprocess.run(
        [str(loader), str(torch_cpu), str(LIBRARIES / "librestorelcc_torch.so")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stdout + done.stderr


@pytest.mark.parametrize(("kind", "compensation"), [("biased", "law"), ("partly-dense", None)])
def test_logits_of_any_length(kind: str, compensation: str | None, tiny: Tiny) -> None:
    model = tiny(kind, "fp32")
    loaded = restorelcc.load(model.packed)
    if compensation is None:
        program = export_logits(loaded)
    else:
        with restorelcc.compensations(loaded, compensation):
            program = export_logits(loaded)
    run = program.module()
    for tokens in (1, 2, 17, 200, 512):
        ids = some_ids(tokens)
        exact = exact_logits(model, ids, compensation)
        with torch.no_grad():
            found = run(torch.tensor([ids]))
        assert found.dtype == torch.float32
        assert found.shape == (1, *exact.shape)
        assert worst(found[0].double(), exact) <= fp32_budget(model, ids, exact, name=compensation), tokens
    with pytest.raises((RuntimeError, AssertionError)):
        run(torch.zeros(1, 513, dtype=torch.long))


@pytest.mark.parametrize("values", ["bf16", "int8+head"])
def test_other_values_give_what_the_model_gives(values: str, tiny: Tiny) -> None:
    """The same op on the same rows of x, so what differs is the order in which few small sums are added."""
    loaded = restorelcc.load(tiny("biased", values).packed)
    run = export_logits(loaded, most_tokens=64).module()
    for tokens in (1, 5, 40):
        ids = some_ids(tokens)
        with torch.no_grad():
            found = run(torch.tensor([ids]))[0].double()
        wanted = logits_of(loaded, ids)
        assert float((found - wanted).abs().max()) <= 2.0**-5 * float(wanted.abs().max()), tokens


def test_siblings_are_one_product_and_nothing_is_kept_twice(tiny: Tiny) -> None:
    model = tiny("biased", "fp32")
    program = export_logits(restorelcc.load(model.packed))
    assert products(program) == 4 * 3  # q+k+v, o, gate+up, down
    kept = sum(weight.untyped_storage().nbytes() for weight in weights_of(program))
    assert kept <= 1.05 * (model.packed / "packed.safetensors").stat().st_size


def test_members_that_are_not_joined_keep_their_own(tiny: Tiny) -> None:
    """After an edit each has rows of the joint matrix, of which only its own are kept."""
    model = tiny("plain", "fp32")
    loaded = restorelcc.load(model.packed)
    for layer in loaded.model.layers:
        layer.self_attn.q_proj.forget()
        layer.self_attn.q_proj.values = layer.self_attn.q_proj.values.clone()
    program = export_logits(loaded)
    assert products(program) == 6 * 3  # q, k, v, o, gate+up, down
    kept = sum(weight.untyped_storage().nbytes() for weight in weights_of(program))
    assert kept <= 1.05 * (model.packed / "packed.safetensors").stat().st_size
    ids = some_ids()
    exact = exact_logits(model, ids)
    with torch.no_grad():
        found = program.module()(torch.tensor([ids]))[0].double()
    assert worst(found, exact) <= fp32_budget(model, ids, exact)


@pytest.mark.parametrize("most", [0, 513])
def test_positions_that_a_model_has_not(most: int, tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=f"most_tokens is {most}; the model has 1 to 512 positions"):
        export_logits(restorelcc.load(tiny("biased", "fp32").packed), most_tokens=most)


@pytest.fixture(scope="module")
def script() -> Any:
    """examples/libtorch/export.py as a module."""
    spec = importlib.util.spec_from_file_location("libtorch_export", EXAMPLE / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "required: packed, out"),
        (["PACKED"], "required: out"),
        (["PACKED", "OUT/model.so"], "must end in .pt2"),
        (["PACKED", "OUT/there.pt2"], "is there already"),
        (["PACKED", "OUT/missing/model.pt2"], "no directory"),
        (["CHECKPOINT", "OUT/model.pt2"], "is not a packed model"),
        (["OUT/nothing", "OUT/model.pt2"], "is not a packed model"),
        (["PACKED", "OUT/model.pt2", "--most-tokens", "many"], "invalid int value"),
        (["PACKED", "OUT/model.pt2", "--most-tokens", "600"], "the model has 1 to 512 positions"),
        (["PACKED", "OUT/model.pt2", "--compensation", "lore"], "no compensation 'lore'"),
        (["PACKED", "OUT/model.pt2", "--beam", "4"], "unrecognized arguments"),
    ],
)
def test_what_the_script_refuses(
    words: list[str], says: str, script: Any, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("biased", "fp32")
    (tmp_path / "there.pt2").write_bytes(b"")
    places = {"PACKED": str(model.packed), "CHECKPOINT": str(model.checkpoint), "OUT": str(tmp_path)}
    for name, path in places.items():
        words = [word.replace(name, path, 1) if word.startswith(name) else word for word in words]
    assert script.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("export.py: ")
    assert said.err.count("\n") == 1
    assert says in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]
