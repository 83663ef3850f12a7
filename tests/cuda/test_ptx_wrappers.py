"""The inline assembly that nvcc compiles and the emulator cannot see: against a table, and against CUTLASS's own.

The emulator runs `ptx::mma_m16n8k16_bf16(d, a, b, c)` by its meaning; nvcc compiles a string. A swapped operand, a
missing clobber or a forgotten modifier would show on a GPU only. So each wrapper's string, constraints and order of
operands stand here a second time, wherever CUTLASS has the same instruction its own are compared too, and the emulator
must offer the same functions with the same parameters.
"""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path

import pytest
from ptx_wrappers import Assembly, assemblies, functions, normalised, preprocessed

ROOT = Path(__file__).resolve().parents[2]
PTX = ROOT / "csrc/cuda/device/ptx.cuh"
CONVERT = ROOT / "csrc/cuda/device/convert.cuh"
EMULATION = ROOT / "tests/simt/device_emulation.h"
CUTLASS = Path(os.environ.get("RLCC_CUTLASS") or Path(sysconfig.get_path("purelib")) / "cutlass_library/source")

WRAPPER = r"__device__\s+__forceinline__"


def registers(constraint: str, name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{constraint} {name}[{index}]" for index in range(count))


def fields(constraint: str) -> tuple[str, ...]:
    return tuple(f"{constraint} v.{letter}" for letter in "xyzw")


def cp_async(cache: str, size: int) -> Assembly:
    operands = ("r shared_address(shared)", "l global", "r bytes")
    return Assembly(f"cp.async.{cache}.shared.global [%0], [%1], {size}, %2", (), operands, True, True)


def ldmatrix(count: int, transposed: str = "") -> Assembly:
    places = ", ".join(f"%{index}" for index in range(count))
    template = f"ldmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 {{{places}}}, [%{count}]"
    return Assembly(template, registers("=r", "r", count), ("r shared_address(row)",), True, True)


def mma(kind: str) -> Assembly:
    template = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13}"
    )
    inputs = registers("r", "a", 4) + registers("r", "b", 2) + registers("f", "c", 4)
    return Assembly(template, registers("=f", "d", 4), inputs, False, True)


def mma_sp(kind: str) -> Assembly:
    template = (
        f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%12, %13, %14, %15}, %16, %17"
    )
    inputs = registers("r", "a", 4) + registers("r", "b", 4) + registers("f", "c", 4)
    return Assembly(template, registers("=f", "d", 4), (*inputs, "r metadata", "n kSelector"), False, True)


# What each wrapper must be. Asynchronous copies, ldmatrix and stores are volatile and clobber memory, so that they stay
# on their side of barriers and of plain accesses to shared memory; read-only loads may be moved.
TABLE = {
    "cp_async_4": cp_async("ca", 4),
    "cp_async_8": cp_async("ca", 8),
    "cp_async_16": cp_async("cg", 16),
    "cp_async_commit": Assembly("cp.async.commit_group", (), (), True, True),
    "cp_async_wait_group": Assembly("cp.async.wait_group %0", (), ("n kNewest",), True, True),
    "ldmatrix_x1": ldmatrix(1),
    "ldmatrix_x2": ldmatrix(2),
    "ldmatrix_x4": ldmatrix(4),
    "ldmatrix_x1_transposed": ldmatrix(1, ".trans"),
    "ldmatrix_x2_transposed": ldmatrix(2, ".trans"),
    "ldmatrix_x4_transposed": ldmatrix(4, ".trans"),
    "mma_m16n8k16_bf16": mma("bf16"),
    "mma_m16n8k16_f16": mma("f16"),
    "mma_sp_m16n8k32_bf16": mma_sp("bf16"),
    "mma_sp_m16n8k32_f16": mma_sp("f16"),
    "load_stream_16": Assembly(
        "ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]", fields("=r"), ("l global",), False, False
    ),
    "exp2_approximate": Assembly("ex2.approx.ftz.f32 %0, %1", ("=f result",), ("f x",), False, False),
    "load_cached_16": Assembly("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4]", fields("=r"), ("l global",), False, False),
    "store_stream_16": Assembly(
        "st.global.cs.v4.u32 [%0], {%1, %2, %3, %4}", (), ("l global", *fields("r")), True, True
    ),
}
# The upper half of a pair comes first.
CONVERSIONS = {
    "float_of_f16": Assembly("cvt.f32.f16 %0, %1", ("=f value",), ("h bits",), False, False),
    "bf16_of_float": Assembly("cvt.rn.bf16.f32 %0, %1", ("=h bits",), ("f value",), False, False),
    "f16_of_float": Assembly("cvt.rn.f16.f32 %0, %1", ("=h bits",), ("f value",), False, False),
    "bf16x2_of_floats": Assembly("cvt.rn.bf16x2.f32 %0, %1, %2", ("=r pair",), ("f high", "f low"), False, False),
    "f16x2_of_floats": Assembly("cvt.rn.f16x2.f32 %0, %1, %2", ("=r pair",), ("f high", "f low"), False, False),
}

PARAMETERS = {
    "mma": "float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]",
    "mma_sp": "float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], const float (&c)[4], uint32_t metadata",
}


def wrappers(path: Path) -> dict[str, list[Assembly]]:
    found = {function.name: assemblies(function.body) for function in functions(preprocessed(path), WRAPPER)}
    return {name: given for name, given in found.items() if given}


def squeezed(parameters: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\s*([(),&\[\]=])\s*", r"\1", parameters)).strip()


@pytest.mark.parametrize(("path", "table"), [(PTX, TABLE), (CONVERT, CONVERSIONS)], ids=["ptx", "convert"])
def test_wrappers_are_the_table(path: Path, table: dict[str, Assembly]) -> None:
    found = wrappers(path)
    assert found.keys() == table.keys(), "a wrapper is new or gone: say here what it must be"
    for name, expected in table.items():
        assert found[name] == [expected], name


def test_the_emulator_has_the_same_functions() -> None:
    real = {one.name: squeezed(one.parameters) for one in functions(preprocessed(PTX), WRAPPER)}
    text = preprocessed(EMULATION)
    text = text[re.search(r"namespace ptx\s*\{", text).end() :]  # type: ignore[union-attr]
    emulated = {}
    for one in functions(text, r"\binline"):
        given = re.sub(r",?\s*const char ?\*\s*simt_file.*", "", one.parameters)  # what the emulator adds
        emulated[one.name] = squeezed(given)
    assert emulated == real


def test_parameters_are_in_the_order_of_the_instruction() -> None:
    for one in functions(preprocessed(PTX), WRAPPER):
        for prefix, expected in PARAMETERS.items():
            if one.name.startswith(f"{prefix}_m16"):
                assert squeezed(one.parameters) == squeezed(expected), one.name


# ---- CUTLASS's own


def cutlass(file: str) -> str:
    path = CUTLASS / file
    if not path.is_file():
        if os.environ.get("RLCC_CUDA_LANE"):
            pytest.fail(f"{path} is missing: pip install nvidia-cutlass, or point RLCC_CUTLASS at its source folder")
        pytest.skip("CUTLASS is not installed (pip install nvidia-cutlass)")
    return path.read_text(encoding="utf-8")


def within(text: str, begin: str) -> list[Assembly]:
    """The asm statements from `begin` to the end of the struct."""
    start = text.index(begin)
    return assemblies(text[start : text.index("\n};", start)])


def places(one: Assembly) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Without differences of style: `D[0]`, `d0` and `d[0]` are one, and so are the orders of ldmatrix's modifiers."""
    opcode, _, rest = one.template.partition(" ")
    opcode = ".".join(sorted(opcode.replace(".L2::128B", "").split(".")))

    def names(operands: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(re.sub(r"[\[\]]", "", operand).lower() for operand in operands)

    return f"{opcode} {rest}", names(one.outputs), names(one.inputs)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma_is_cute_s(kind: str) -> None:
    text = cutlass("include/cute/arch/mma_sm80.hpp")
    (theirs,) = within(text, f"struct SM80_16x8x16_F32{kind.upper()}{kind.upper()}F32_TN")
    assert places(mma(kind)) == places(theirs)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("selector", [0, 1])
def test_mma_sp_is_cutlass_s(kind: str, selector: int) -> None:
    text = cutlass("include/cutlass/arch/mma_sparse_sm80.h")
    ours = mma_sp(kind)
    ours = Assembly(
        ours.template.replace("%17", f"{selector:#x}"), ours.outputs, (*ours.inputs[:-2], "r e"), False, True
    )
    opcode = ours.template.split(" ")[0]
    theirs = [one for one in assemblies(text) if one.template.startswith(opcode)]
    assert places(ours) in [places(one) for one in theirs]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_is_cute_s(count: int, transposed: bool) -> None:
    text = cutlass("include/cute/arch/copy_sm75.hpp")
    name = f"SM75_U16x{2 * count}_LDSM_T" if transposed else f"SM75_U32x{count}_LDSM_N"
    (theirs,) = within(text, f"struct {name}")
    ours = ldmatrix(count, ".trans" if transposed else "")
    template, outputs, _ = places(theirs)
    assert (template, len(outputs)) == (places(ours)[0], len(ours.outputs))
    assert theirs.outputs == tuple(f"=r dst{index if count > 1 else ''}" for index in range(count))


@pytest.mark.parametrize("cache", ["ca", "cg"])
def test_cp_async_is_cute_s(cache: str) -> None:
    text = cutlass("include/cute/arch/copy_sm80.hpp")
    name = {"ca": "SM80_CP_ASYNC_CACHEALWAYS_ZFILL", "cg": "SM80_CP_ASYNC_CACHEGLOBAL_ZFILL"}[cache]
    (theirs,) = within(text, f"struct {name}")
    ours = cp_async(cache, 16).template.replace("16, %2", "%2, %3")  # theirs has the size as an operand
    assert places(theirs)[0] == places(Assembly(ours, (), (), True, True))[0]
    assert [operand.split(" ")[0] for operand in theirs.inputs] == ["r", "l", "n", "r"]
    assert theirs.inputs[3] == "r src_size"


# ---- The reader itself


def test_a_swapped_operand_is_seen() -> None:
    text = preprocessed(PTX)
    swapped = text.replace('"r"(a[1]), "r"(a[2])', '"r"(a[2]), "r"(a[1])')
    assert swapped != text
    found = {one.name: assemblies(one.body) for one in functions(swapped, WRAPPER)}
    assert found["mma_m16n8k16_bf16"] != [TABLE["mma_m16n8k16_bf16"]]


def test_a_missing_clobber_is_seen() -> None:
    text = preprocessed(PTX).replace(': "memory"', "")
    found = {one.name: assemblies(one.body) for one in functions(text, WRAPPER)}
    assert found["ldmatrix_x4"] != [TABLE["ldmatrix_x4"]]


def test_templates_are_compared_without_layout() -> None:
    assert normalised("a.b  {%0,  %1},{%2};\\n") == "a.b {%0, %1}, {%2}"
