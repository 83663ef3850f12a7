"""benchmarks/gpu.py without a GPU: what needs no device, and with the emulator in a device's place. No times."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_floors  # noqa: E402
from on_device import build, floors, instructions, sanitizer  # noqa: E402
from on_device.abi import HEADERS, CallError, HeaderError, Library, read_headers  # noqa: E402
from on_device.device import DeviceLostError, EmulatedDevice, Queue  # noqa: E402
from on_device.problem import Output, Problem, Struct, check, compare  # noqa: E402
from on_device.stopwatch import in_turns, ratio  # noqa: E402
from on_device.times import hold  # noqa: E402
from on_device.verdict import Verdict  # noqa: E402

INTERFACE = read_headers()
EMULATOR = Path(
    os.environ.get("RLCC_SIMT_LIBRARY", ROOT / "build" / "simt" / "tests" / "device" / "librlcc_cuda_simt.so")
)


@pytest.fixture
def library() -> Library:
    if not EMULATOR.exists() and "RLCC_CUDA_LANE" not in os.environ:  # which has built it
        pytest.skip(f"the emulator's library is not built ({EMULATOR.name}: make test-cuda, or RLCC_SIMT_LIBRARY)")
    return Library(EMULATOR)


@pytest.fixture
def device(library: Library) -> Iterator[EmulatedDevice]:
    device = EmulatedDevice(library.path)
    device.statistics()
    yield device
    device.emulate()


@pytest.fixture
def queue(library: Library, device: EmulatedDevice) -> Queue:
    return Queue(library, device)


def cases(library: Library, op: str) -> Iterator[Problem]:
    module = next(module for module in gpu.CASES if op in module.OPS)
    return (make() for make in module.problems(library, op, True))


# ---- Headers


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_structs_are_laid_out_as_the_compiler_does(tmp_path: Path) -> None:
    lines = ["#include <stdio.h>", "#include <stddef.h>", '#include "restorelcc/cuda.h"', "int main(void) {"]
    expected = []
    for name, struct in INTERFACE.structs.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        for field, _ in struct._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
            expected.append(f"{name}.{field} {getattr(struct, field).offset}")
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["cc", f"-I{HEADERS[0].parents[1]}", str(source), "-o", str(tmp_path / "layout")], check=True)
    printed = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == expected
    assert len(expected) > 100


def test_a_header_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.h").write_text("typedef struct rlcc_odd {\n int64_t a : 3;\n} rlcc_odd;\n")
    with pytest.raises(HeaderError, match="rlcc_odd: not understood: int64_t a : 3"):
        read_headers((tmp_path / "odd.h",))
    (tmp_path / "odd.h").write_text("RLCC_API rlcc_status rlcc_f(long double x);\n")
    with pytest.raises(HeaderError, match="rlcc_f"):
        read_headers((tmp_path / "odd.h",))


def test_every_op_of_the_headers_has_cases() -> None:
    assert set(INTERFACE.cuda_ops()) <= {op for module in gpu.CASES for op in module.OPS}


def test_every_wrapper_has_a_trial() -> None:
    """Of the device layer's two headers; waiting and committing are parts of other trials."""
    names = set()
    for header in ("ptx.cuh", "convert.cuh"):
        text = (ROOT / "csrc" / "cuda" / "device" / header).read_text(encoding="utf-8")
        for name in re.findall(r"__forceinline__ \w+ (\w+(?:##type)?)\(", text):
            names |= {name.replace("##type", kind) for kind in ("bf16", "f16")}
    names -= {"shared_address", "cp_async_commit", "cp_async_wait_group"}
    assert {name for name in names if not any(trial.startswith(name) for trial in instructions.TRIALS)} == set()
    assert len(names) > 20
    assert next(iter(instructions.TRIALS)).startswith("mma_sp")  # what would make most numbers wrong comes first


# ---- Without a device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--quick"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"There is no GPU to run on: [^\n]+\n", printed.err)


def test_an_emulator_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main(["--emulator", str(tmp_path / "nothing.so")]) == 2
    assert "make test-cuda builds it" in capsys.readouterr().err


def test_the_build_is_of_one_architecture(tmp_path: Path) -> None:
    configure, compile_ = build.commands(tmp_path, "90", 3)
    assert "-DRLCC_CUDA_ARCHITECTURES=90" in configure
    assert "-DRLCC_CUDA=ON" in configure
    assert compile_[-2:] == ["restorelcc", "rlcc_cuda_instructions"]
    with pytest.raises(build.BuildError, match=r"librestorelcc\.so is not there; run without --skip-build"):
        build.built(tmp_path)
    ran: list[list[str]] = []
    with pytest.raises(build.BuildError):
        build.build(tmp_path, "80", lambda command: ran.append(list(command)))
    assert len(ran) == 2


def test_the_tables_of_the_documentation_are_calculated() -> None:
    text = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    assert gpu_floors.with_tables(text) == text, "run benchmarks/gpu_floors.py --write docs/cuda.md"
    with pytest.raises(ValueError, match="no place"):
        gpu_floors.with_tables("nothing")


def test_floors() -> None:
    a100 = floors.CARDS[0]
    one_row = floors.sparse_linear(4096, 4096, 1)
    assert one_row.bytes == 4096 * 4096 * 1.125 + 4097 * 8 + 2 * 8192
    assert one_row.bound(a100.roof) == "memory"
    assert one_row.seconds(a100.roof) == one_row.bytes / 2.0e12
    many = floors.sparse_linear_2to4(4096, 4096, 4096)
    assert many.seconds(a100.roof) == pytest.approx(floors.sparse_linear(4096, 4096, 4096).seconds(a100.roof) / 2)
    # A lane a clock and scheduler, against the bytes of a weight: docs/cuda.md, "What issue allows".
    assert a100.lane_instructions_per_weight(1.125) == pytest.approx(108 * 128 * 1.41e9 * 1.125 / 2.0e12)


# ---- Comparing


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: None, None),
        (lambda y: y[0, :3].fill_(1.5), r"3 of 6 are wrong, the first at \[0, 0\]: 1.5 for 1, allowed 1.1"),
        (lambda y: y[1, 1].fill_(float("nan")), r"at \[1, 1\]: nan for 4"),
        (lambda y: y[1, 0].fill_(0.0), r"at \[1, 0\]: 0 for nan"),
        (lambda y: y[1, 2].fill_(float("-inf")), r"at \[1, 2\]: -inf for inf"),
        (lambda y: y[0, 3].fill_(0.0), "between the rows"),
    ],
)
def test_what_a_comparison_finds(change: Callable[[torch.Tensor], Any], says: str | None) -> None:
    before = torch.full((2, 4), float("nan"))
    expected = before.clone()
    expected[:, :3] = torch.tensor([[1.0, 2.0, 3.0], [float("nan"), 4.0, float("inf")]])
    inside = torch.zeros(2, 4, dtype=torch.bool)
    inside[:, :3] = True
    got = expected.clone()
    change(got)
    problem = compare(got, expected, Output(torch.full((6,), 1e-6), inside), before).problem
    assert problem is None if says is None else re.search(says, problem or "")


def test_symmetry_and_shares() -> None:
    expected = torch.eye(3, dtype=torch.float64)
    got = expected.clone()
    got[0, 1] = 5e-7
    output = Output(torch.full((3, 3), 1e-6), symmetric=False)
    assert compare(got, expected, output, expected).share == pytest.approx(0.5)
    symmetric = Output(torch.full((3, 3), 1e-6), symmetric=True)
    assert compare(got, expected, symmetric, expected).problem == "not exactly symmetric"


# ---- compute-sanitizer, a script in its place


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_compute_sanitizer_passes_and_finds(tmp_path: Path) -> None:
    verdict = Verdict()
    sanitizer.check(None, [], verdict)
    assert verdict.passed
    assert verdict.skipped[0][0] == "compute-sanitizer"
    log = tmp_path / "log"
    echo = f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $*" >> {log}'
    said = sanitizer.check(program(tmp_path, f"{echo}; echo '======== ERROR SUMMARY: 0 errors'"), ["gpu.py"], verdict)
    assert verdict.passed
    assert verdict.checks["compute-sanitizer"] == 3
    assert said["racecheck"]["summary"] == ["ERROR SUMMARY: 0 errors"]
    assert log.read_text().splitlines()[1].startswith("1 --tool racecheck --error-exitcode 99 ")
    failing = "echo '======== Invalid __global__ read of size 16'; echo '======== ERROR SUMMARY: 2 errors'; exit 99"
    sanitizer.check(program(tmp_path, failing), ["gpu.py"], verdict)
    assert len(verdict.problems) == 3
    assert "2 errors" in verdict.problems[0][2]
    assert "Invalid __global__ read of size 16" in verdict.problems[0][2]


def test_what_is_sanitized_are_the_quick_checks() -> None:
    options = gpu.parsed(gpu.sanitized_arguments()[1:])
    assert options.quick
    assert options.skip_build
    assert options.no_graphs
    assert set(options.only) == {"instructions", "ops"}


# ---- The emulator in a device's place


def test_instructions_and_what_a_wrong_one_looks_like(library: Library, device: EmulatedDevice) -> None:
    wrappers = instructions.Instructions(library.path, device)
    verdict = Verdict()
    instructions.check(wrappers, verdict)
    assert verdict.problems == []
    assert verdict.checks["instruction"] >= len(instructions.TRIALS)
    assert max(instructions.rounding_of_mma(wrappers).values()) <= 1  # the emulator rounds once

    def exchange(a: str, b: str) -> list[str]:
        """The names under which problems are found where two instructions stand for each other."""
        before = dict(wrappers.words)
        wrappers.words[a], wrappers.words[b] = before[b], before[a]
        found = Verdict()
        instructions.check(wrappers, found)
        wrappers.words = before
        return sorted({case for _, case, _ in found.problems})

    for a, b in (
        ("mma_sp_m16n8k32_bf16_0", "mma_sp_m16n8k32_bf16_1"),
        ("mma_m16n8k16_bf16", "mma_m16n8k16_f16"),
        ("ldmatrix_x4", "ldmatrix_x4_transposed"),
        ("float_of_bf16_low", "float_of_bf16_high"),
        ("bf16_of_float", "f16_of_float"),
    ):
        assert exchange(a, b) == sorted([a, b])
    wrappers.words["new"] = wrappers.words.pop("load_cached_16")
    verdict = Verdict()
    instructions.check(wrappers, verdict)
    assert {case: problem for _, case, problem in verdict.problems} == {
        "load_cached_16": "the library does not have it",
        "new": "has no trial in on_device/instructions.py",
    }


def test_the_quick_matrix(queue: Queue, device: EmulatedDevice) -> None:
    verdict = Verdict()
    gpu.check_ops(queue, gpu.Options(quick=True), verdict)
    assert verdict.problems == []
    for op in INTERFACE.cuda_ops():
        assert verdict.checks[op] >= 6, op
        assert verdict.worst[op] <= 1
    ran = device.statistics()
    assert min(ran[name] for name in ("copies", "mma", "mma_sp", "ldmatrix")) > 100


class Breaking(Queue):
    """Calls whose first output is spoilt afterwards."""

    def __init__(self, queue: Queue, spoil: Callable[[torch.Tensor], None]) -> None:
        super().__init__(queue.library, queue.device)
        self.spoil, self.output = spoil, ""

    def prepared(self, op: str, *structs: Any) -> Callable[[], None]:
        call = super().prepared(op, *structs)
        address = getattr(structs[0], self.output)

        def broken() -> None:
            call()
            self.spoil(self.at[address])

        return broken

    at: ClassVar[dict[int, torch.Tensor]] = {}


@pytest.mark.parametrize("op", INTERFACE.cuda_ops())
def test_a_wrong_number_is_found(queue: Queue, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every op, in its first output, where a hundredth is added to one element, or noise that differs each time."""
    from on_device import problem as module

    def spoil_one(tensor: torch.Tensor) -> None:
        flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor
        place = int(flat.double().nan_to_num(0).abs().argmax())
        flat[place] = flat[place] * 1.02 + 0.01

    calls = iter(range(1, 10**6))

    def spoil_each_time(tensor: torch.Tensor) -> None:
        flat = tensor.reshape(-1)
        place = int(flat.double().nan_to_num(0).abs().argmax())
        bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        bits[place] += next(calls) % 2  # a unit in the last place, every other time

    chosen = [p for p in cases(queue.library, op) if "special" not in p.case][-1]
    placed = module.on

    def on(device: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copies = placed(device, tensors)
        Breaking.at |= {tensor.data_ptr(): tensor for tensor in copies.values()}
        return copies

    monkeypatch.setattr(module, "on", on)
    for spoil, says in ((spoil_one, "wrong|symmetric"), (spoil_each_time, "a second call gives other bits|symmetric")):
        Breaking.at = {}
        breaking = Breaking(queue, spoil)
        breaking.output = next(iter(chosen.outputs))
        verdict = Verdict()
        check(chosen, breaking, verdict)
        assert len(verdict.problems) == 1
        assert re.search(says, verdict.problems[0][2]), verdict.problems


def test_a_refusal_and_a_lost_device_are_reported(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = next(p for p in cases(queue.library, "sparse_linear") if p.params.numbers["x_rows"] > 1)
    numbers = {**problem.params.numbers, "weight.trusted": 0}
    params = Struct(problem.params.name, numbers, problem.params.arrays)
    wrong = Problem("sparse_linear", "untrusted", params, problem.outputs)
    verdict = Verdict()
    check(wrong, queue, verdict)
    assert "rlcc_cuda_sparse_linear_workspace: " in verdict.problems[0][2]
    assert "trusted" in verdict.problems[0][2]

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(queue.device, "wait", lost)
    with pytest.raises(DeviceLostError, match="lost in sparse_linear"):
        check(problem, queue, verdict)


def test_an_op_without_cases_is_a_problem(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue.library.interface, "cuda_ops", lambda: ["new_op"])
    verdict = Verdict()
    gpu.check_ops(queue, gpu.Options(quick=True), verdict)
    assert verdict.problems[0][:2] == ("new_op", "all")


def test_structs_refuse_fields_that_are_not_there(library: Library) -> None:
    with pytest.raises(KeyError, match="no field y_strides"):
        library.struct("rlcc_sparse_linear_params", {"y_strides": 3})
    with pytest.raises(CallError, match="rlcc_cuda_sparse_linear_workspace: "):
        library.call("rlcc_cuda_sparse_linear_workspace", None, None)


def test_turns_and_ratios(device: EmulatedDevice) -> None:
    order: list[str] = []
    calls = {name: (lambda n=name: order.append(n)) for name in "ABC"}  # type: ignore[misc]
    samples = in_turns(device, calls, seconds=0.0)
    measured = order[9:]  # after the warm-up
    assert measured[:6] == ["A", "B", "C", "B", "C", "A"]
    assert {name: measured.count(name) for name in "ABC"} == dict.fromkeys("ABC", len(samples["A"].seconds))
    assert ratio(samples["A"], samples["A"]) == {"median": 1.0, "q1": 1.0, "q3": 1.0}


def test_a_wrong_kernel_is_not_timed(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Queue.prepared

    def spoilt(self: Queue, op: str, *structs: Any) -> Callable[[], None]:
        if op == "sparse_linear":
            structs[0].bias = None  # a kernel that forgets the bias
        return real(self, op, *structs)

    monkeypatch.setattr(Queue, "prepared", spoilt)
    verdict = Verdict()
    roof = floors.CARDS[0].roof
    found = hold(queue, roof, verdict, quick=True, seconds=0.0, chosen=lambda op: op == "sparse_linear")
    assert {"ours bf16", "ours fp16", "ours int8"} <= found[0]["refused"].keys()
    assert "torch bf16" in found[0]["contenders"]
    assert "ours 2:4 bf16" in found[0]["contenders"]
    assert "wrong result" in found[0]["refused"]["ours bf16"]
    assert not verdict.passed


def test_the_whole_command(library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, drawn = tmp_path / "run.json", tmp_path / "run.png"
    arguments = ["--emulator", str(library.path), "--quick", "--seconds", "0"]
    assert (
        gpu.main([*arguments, "--only", "instructions", "--only", "times", "--json", str(written), "--png", str(drawn)])
        == 0
    )
    report = json.loads(written.read_text(encoding="utf-8"))
    assert report["device"]["emulated"] is True
    assert report["checks"]["passed"] is True
    assert report["arguments"][0] == "--emulator"
    assert {result["op"] for result in report["times"]} == {
        op for op in INTERFACE.cuda_ops() if op not in ("sparse_linear_2to4", "linear_cross_entropy_backward")
    }
    forward = report["times"][0]
    assert forward["contenders"]["ours bf16"]["floor_seconds"] > 0
    assert "over_ours" in forward["contenders"]["torch bf16"]
    assert "need a CUDA device" in forward["refused"]["torch 2:4 cuSPARSELt bf16"]
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "µs" not in printed  # no time of the emulator reaches the screen
    assert "times mean nothing" in printed
